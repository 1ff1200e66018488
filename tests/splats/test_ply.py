"""Exported Gaussians, read by an independent reader and by our own; rendered again they match."""

import numpy as np
import pytest
import torch
from plyfile import PlyData

from tests.splats.scenes import join, one_gaussian, random_scene, views
from worldscape.splats.gaussians import Gaussians
from worldscape.splats.ply import attribute_names, load_ply, save_ply
from worldscape.splats.render import render

NAMES = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 {} opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"


@pytest.mark.parametrize(("degree", "rest"), [(0, 0), (1, 9)])
def test_an_independent_reader_finds_the_standard_names_and_values(tmp_path, degree, rest):
    scene = random_scene(1, 7, degree=degree, dtype=torch.float32)
    assert save_ply(scene, tmp_path / "place.ply") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["place.ply"]
    data = PlyData.read(tmp_path / "place.ply")
    assert not data.text and data.byte_order == "<"
    assert data.comments == ["axes x right, y down, z forward", "unit metre"]
    vertices = data["vertex"]
    names = [prop.name for prop in vertices.properties]
    assert names == NAMES.format(" ".join(f"f_rest_{i}" for i in range(rest))).split()
    assert np.array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), scene.means[0].numpy())
    assert np.array_equal(np.stack([vertices[f"rot_{i}"] for i in range(4)], -1), scene.quaternions[0].numpy())
    assert np.array_equal(np.stack([vertices[f"scale_{i}"] for i in range(3)], -1), scene.log_scales[0].numpy())
    assert np.array_equal(vertices["opacity"], scene.opacity_logits[0].numpy())
    assert np.array_equal(np.stack([vertices[f"f_dc_{i}"] for i in range(3)], -1), scene.harmonics[0, :, 0].numpy())
    if rest:  # all of red, then green, then blue
        assert np.array_equal(vertices["f_rest_1"], scene.harmonics[0, :, 2, 0].numpy())
        assert np.array_equal(vertices["f_rest_3"], scene.harmonics[0, :, 1, 1].numpy())
    assert not np.any(vertices["nx"])


@pytest.mark.parametrize("degree", [0, 1])
def test_what_is_read_back_is_the_same_and_looks_the_same(tmp_path, degree):
    scene = random_scene(1, 60, degree=degree, dtype=torch.float32)
    save_ply(scene, tmp_path / "folder" / "place.ply")
    found = load_ply(tmp_path / "folder" / "place.ply")
    assert all(torch.equal(part, other) for part, other in zip(scene, found, strict=True))
    cameras = views(1, 2, dtype=torch.float32)
    pictures = (render(each, *cameras, 32) for each in (scene, found))
    assert all(torch.equal(part, other) for part, other in zip(*pictures, strict=True))


def test_a_file_that_the_independent_reader_rewrote_is_read(tmp_path):
    """With another order, doubles, a comment and an element behind."""
    scene = random_scene(1, 5, dtype=torch.float32)
    save_ply(scene, tmp_path / "place.ply")
    data = PlyData.read(tmp_path / "place.ply")
    old = data["vertex"].data
    names = sorted(old.dtype.names)
    new = np.zeros(len(old), [(name, "<f8") for name in names])
    for name in names:
        new[name] = old[name]
    from plyfile import PlyElement

    behind = PlyElement.describe(np.zeros(3, [("cameras", "<i4")]), "extra")
    PlyData([PlyElement.describe(new, "vertex"), behind], byte_order="<", comments=["by hand"]).write(
        tmp_path / "other.ply"
    )
    found = load_ply(tmp_path / "other.ply")
    assert all(torch.equal(part, other) for part, other in zip(scene, found, strict=True))


def test_what_cannot_be_drawn_is_not_written(tmp_path):
    bad = one_gaussian()._replace(means=torch.full((1, 1, 3), float("nan")).double())
    assert save_ply(join(bad, one_gaussian()), tmp_path / "place.ply") == 1
    assert save_ply(bad, tmp_path / "place.ply") == 0, "and an empty place is a file too"
    assert load_ply(tmp_path / "place.ply").means.shape == (1, 0, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_ply(one_gaussian(), tmp_path / "place.ply")
    before = (tmp_path / "place.ply").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        save_ply(random_scene(1, 9), tmp_path / "place.ply")
    assert (tmp_path / "place.ply").read_bytes() == before


def broken(text: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "text": (b"hello", "no binary little endian"),
        "ascii": (text.replace(b"binary_little_endian", b"ascii"), "no binary little endian"),
        "short": (text[:-1], "cut short"),
        "points": (text.replace(b"scale_0", b"scale_x"), "lacks the 3DGS properties scale_0"),
        "degree": (text.replace(b"f_rest_8", b"fxrest_8"), "8 f_rest properties"),
        "faces": (text.replace(b"vertex", b"corner"), "does not begin with vertices"),
        "lists": (text.replace(b"property float nx", b"property list uchar int nx"), "no plain numbers"),
    }


@pytest.mark.parametrize("name", broken(b""))
def test_wrong_files_are_told_apart(tmp_path, name):
    save_ply(random_scene(1, 2), tmp_path / "place.ply")
    data, message = broken((tmp_path / "place.ply").read_bytes())[name]
    (tmp_path / "place.ply").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_ply(tmp_path / "place.ply")


def test_two_scenes_do_not_fit_into_one_file(tmp_path):
    with pytest.raises(ValueError, match="2 scenes"):
        save_ply(Gaussians(*random_scene(2, 3)), tmp_path / "place.ply")


def test_names_follow_the_degree():
    assert len(attribute_names(1)) == 17 and len(attribute_names(4)) == 26
