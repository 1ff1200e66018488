"""Weights on disk: they come back as they were, are shared in memory, and every kind of wrong file is told apart."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldscape import checkpoint
from worldscape.checkpoint import CONFIG_FILE, load_world, read_provenance, save_world, weights_id

PARTS = ("encoder", "decoder", "transformer", "heads")  # files of a model without a hand decoder


@pytest.fixture
def model():
    return copy.deepcopy(load_world("debug"))


@pytest.fixture
def saved(model, tmp_path):
    return save_world(model, tmp_path / "weights", {"codec": {"data": "rooms"}})


def edit_header(directory, **changes):
    header = json.loads((directory / CONFIG_FILE).read_text())
    (directory / CONFIG_FILE).write_text(json.dumps({**header, **changes}))


def replace_part(directory, part, tensors):
    """Put other tensors into a part, with a checksum that fits."""
    file = directory / f"{part}.safetensors"
    save_file(tensors, file)
    header = json.loads((directory / CONFIG_FILE).read_text())
    header["files"][part] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    edit_header(directory, files=header["files"])


def test_weights_come_back_as_float16_rounds_them(model, saved):
    loaded = load_world(saved)
    assert loaded.config == model.config
    for key, tensor in model.state_dict().items():
        found = loaded.state_dict()[key]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor.half().float() if tensor.is_floating_point() else tensor), key
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert read_provenance(saved) == {"codec": {"data": "rooms"}}


def test_files_are_float16_with_sizes_and_checksums(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted([CONFIG_FILE, *(f"{part}.safetensors" for part in PARTS)])
    header = json.loads((saved / CONFIG_FILE).read_text())
    for part in PARTS:
        file = saved / f"{part}.safetensors"
        assert header["files"][part]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert not any(tensor.dtype == torch.float32 for tensor in load_file(file).values())


def test_weights_id_survives_saving_and_sees_every_weight_and_setting(model, saved):
    name = weights_id(model)
    assert len(name) == 16 and weights_id(load_world(saved)) == name
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.heads.parameters()).reshape(-1)[0] += 1.0
    assert weights_id(changed) != name


def test_debug_is_always_the_same_and_leaves_the_random_state_alone():
    random_state = torch.get_rng_state()
    first = load_world("debug")
    name, address = weights_id(first), weakref.ref(first)
    assert load_world("debug") is first
    del first
    gc.collect()
    assert address() is None
    assert weights_id(load_world("debug")) == name
    assert torch.equal(torch.get_rng_state(), random_state)
    assert read_provenance("debug") == {}


def test_the_cache_shares_one_instance_and_holds_it_weakly(model, saved):
    first = load_world(saved)
    assert load_world(str(saved)) is first
    assert load_world(saved.parent) is first, "a run directory stands for its weights"
    address = weakref.ref(first)
    del first
    gc.collect()
    assert address() is None


def test_new_weights_in_the_same_place_are_read_anew(model, saved):
    before = load_world(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_world(model, saved, {})
    after = load_world(saved)
    assert after is not before
    assert all(not parameter.any() for parameter in after.parameters())
    assert [p.name for p in saved.parent.iterdir()] == ["weights"], "nothing partial is left"


def test_shipped_names_come_before_paths(model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert checkpoint.list_weights() == ["weights"]
    assert checkpoint.resolve_weights("weights") == saved.resolve()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"weights 'nowhere': this is neither a shipped name nor a directory; choose .*debug"),
        ("", r"weights '': this holds no weights; choose .*debug"),
    ],
)
def test_unknown_weights(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_world(name)


@pytest.mark.parametrize("part", PARTS)
def test_truncated_corrupt_and_missing_files(saved, part):
    file = saved / f"{part}.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=rf"{part}.safetensors: this has {len(data) - 10} bytes instead"):
        load_world(saved)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{part}.safetensors: this does not match its checksum"):
        load_world(saved)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{part}.safetensors: this is not readable .*No such file"):
        load_world(saved)


def test_a_foreign_file_with_a_fitting_checksum(saved):
    foreign = b"PK not tensors at all"
    (saved / "decoder.safetensors").write_bytes(foreign)
    header = json.loads((saved / CONFIG_FILE).read_text())
    header["files"]["decoder"] = {"bytes": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}
    edit_header(saved, files=header["files"])
    with pytest.raises(ValueError, match=r"decoder.safetensors: this is not readable \(.*; download or save"):
        load_world(saved)


def test_a_config_that_is_not_ours(saved):
    original = (saved / CONFIG_FILE).read_text()
    for text, message in [
        ("{", "is not readable JSON"),
        ("[]", "is not a worldscape-weights file"),
        ('{"format": "other"}', "is not a worldscape-weights file"),
        ('{"format": "worldscape-weights", "format_version": 99}', "has format version 99, this version reads 1 and 2"),
        ('{"format": "worldscape-weights", "format_version": 1}', "lacks the section 'model'"),
    ]:
        (saved / CONFIG_FILE).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_world(saved)
    (saved / CONFIG_FILE).write_text(original)
    edit_header(saved, model={"widht": 3})
    with pytest.raises(ValueError, match=r"config.json: this has a model config that this version does not .*widht"):
        load_world(saved)
    (saved / CONFIG_FILE).write_text(original)
    edit_header(saved, files={})
    with pytest.raises(ValueError, match=r"config.json: this lists no size and checksum for encoder.safetensors"):
        load_world(saved)


def test_tensors_that_do_not_fit_the_config_are_named(saved):
    tensors = load_file(saved / "heads.safetensors")
    name = sorted(tensors)[0]
    replace_part(saved, "heads", {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match=rf"lacks tensor 'heads.{name}'"):
        load_world(saved)
    replace_part(saved, "heads", {**tensors, "zzz": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has an unknown tensor 'heads.zzz'"):
        load_world(saved)
    replace_part(saved, "heads", {**tensors, name: torch.zeros(7, 7, 7)})
    with pytest.raises(ValueError, match=rf"has 'heads.{name}' of shape \(7, 7, 7\), the model config wants"):
        load_world(saved)


@pytest.mark.parametrize(
    "sizes", [{"num_layers": 10**9}, {"width": 2 * 10**6, "num_heads": 10**6}, {"mlp_width": 10**9}]
)
def test_a_config_of_a_model_that_no_memory_holds_is_refused_before_it_is_built(saved, sizes):
    described = json.loads((saved / CONFIG_FILE).read_text())["model"]
    described["transformer"] |= sizes
    edit_header(saved, model=described)
    with pytest.raises(ValueError, match=r"config.json: this describes a model of [\d,]+ numbers or more"):
        load_world(saved)


def test_saving_refuses_foreign_directories_and_wild_weights(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("all I have")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.txt\): weights replace their whole directory"):
        save_world(model, tmp_path, {})
    with pytest.raises(ValueError, match=r"thesis.txt is a file"):
        save_world(model, tmp_path / "thesis.txt", {})
    for value in (1e6, float("nan")):
        with torch.no_grad():
            next(model.heads.parameters()).fill_(value)
        with pytest.raises(ValueError, match=r"weight heads\..* does not fit into float16"):
            save_world(model, tmp_path / "weights", {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
