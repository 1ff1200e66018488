"""Weights in 8 bits: how much they err, that packing twice changes nothing, the command, and files of before."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldscape.checkpoint import CONFIG_FILE, load_aggregator, load_world, read_provenance, save_world, weights_id
from worldscape.cli import main
from worldscape.config import WorldConfig
from worldscape.eight_bit import LIMIT, SCALE, pack, unpack
from worldscape.splats.aggregator import Aggregator
from worldscape.splats.config import AggregatorConfig
from worldscape.world import WorldModel, debug_world

ROWS = torch.randn(300, 64, generator=torch.Generator().manual_seed(5)) * torch.logspace(-6, 3, 300)[:, None]


def relative_error(values: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """[rows]: root mean square of what is off, as a share of the row's."""
    return ((found - values).square().sum(1) / values.square().sum(1)).sqrt()


def test_every_row_is_near_and_whole_numbers_are_few():
    packed = pack({"w": ROWS})
    assert packed["w"].dtype == torch.int8 and packed["w"].shape == ROWS.shape
    assert packed["w" + SCALE].shape == (300,) and packed["w"].abs().max() == LIMIT
    error = relative_error(ROWS, unpack(packed)["w"])
    ordinary = ROWS.abs().amax(1) > 1e-3  # below, multiples of float16's least number are what there is
    assert ordinary.sum() > 150
    assert error[ordinary].max() < 0.012 and 0.004 < error[ordinary].mean() < 0.009


def test_the_scale_is_chosen_for_least_error():
    outlier = torch.cat([torch.randn(400, generator=torch.Generator().manual_seed(1)), torch.tensor([4.6])])[None]
    found = unpack(pack({"w": outlier}))["w"]
    unclipped = (outlier * LIMIT / 4.6).round() * 4.6 / LIMIT
    assert relative_error(outlier, found) < 1.1 * relative_error(outlier, unclipped)


@pytest.mark.parametrize("seed", range(20))
def test_packing_once_more_gives_the_same_bytes_and_float16_holds_them(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(500, 7, 3, generator=generator) * torch.rand(500, 1, 1, generator=generator) ** 4
    first = pack({"w": rows})
    second = pack(unpack(first))
    assert all(first[name].equal(second[name]) for name in ("w", "w" + SCALE))
    values = unpack(first)["w"]
    assert values.equal(values.half().float())
    assert pack({"w": values.half()})["w"].equal(first["w"])


def test_zeros_vectors_and_whole_numbers_stay():
    given = {
        "zero": torch.zeros(3, 4),
        "half": torch.tensor([[0.0, 0.0], [1e-9, 0.0], [127 / 256, -0.25]]),
        "bias": torch.tensor([0.1, 0.2]),
        "scale": torch.tensor([0.3]),
        "count": torch.tensor([[7, 300]]),
    }
    found = unpack(pack(given))
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        wanted = torch.tensor([[0.0, 0.0], [0.0, 0.0], [127 / 256, -0.25]]) if name == "half" else tensor
        assert found[name].equal(wanted), name


@pytest.mark.parametrize("scale", [None, torch.ones(2), torch.ones(3, 1), torch.ones(3, dtype=torch.int64)])
def test_whole_numbers_without_their_scales_are_refused(scale):
    packed = {"w": torch.ones(3, 4, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"w has no scale for each row"):
        unpack(packed if scale is None else {**packed, "w" + SCALE: scale})


def test_scalars_and_vectors_of_int8_are_refused():
    for tensor in (torch.ones(3, dtype=torch.int8), torch.ones((), dtype=torch.int8)):
        with pytest.raises(ValueError, match=r"w has no scale for each row"):
            unpack({"w": tensor, "w" + SCALE: torch.ones(3)})


@pytest.fixture
def trained(tmp_path):
    """The debug model with an aggregator, saved as training does."""
    model = debug_world()
    model.aggregator = Aggregator(AggregatorConfig(), model.config.codec, model.config.transformer.width)
    return save_world(model, tmp_path / "trained", {"world": {"data": "rooms"}})


def test_the_command_halves_the_files_and_the_model_stays_near(trained, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["pack", "--weights", str(trained), "--out", str(out)]) == 0
    before, after = load_world(trained), load_world(out)
    assert capsys.readouterr().out.startswith(f"wrote {out}: {weights_id(after)}, ")
    assert read_provenance(out) == read_provenance(trained) and after.config == before.config
    assert load_aggregator(out) is not None
    for name, tensor in before.state_dict().items():
        found = after.state_dict()[name]
        if tensor.ndim > 1:
            assert not found.equal(tensor) and (found - tensor).norm() < 0.012 * tensor.norm(), name
        else:
            assert found.equal(tensor), name
    for file in trained.glob("*.safetensors"):
        large = sum(t.numel() for t in load_file(file).values() if t.ndim > 1)
        saved = file.stat().st_size - (out / file.name).stat().st_size
        assert saved > 0.8 * large, "8 of 16 bits of every matrix, less its scales and the header's entries"


def test_a_part_that_stayed_is_the_same_file(trained, tmp_path):
    first = save_world(load_world(trained), tmp_path / "first", {}, bits=8)
    changed = copy.deepcopy(load_world(first))
    with torch.no_grad():
        next(changed.codec.decoder.parameters()).add_(0.1)
    second = save_world(changed, tmp_path / "second", {}, bits=8)
    same = {file.name: file.read_bytes() == (second / file.name).read_bytes() for file in first.glob("*.safetensors")}
    files = ("decoder", "encoder", "heads", "transformer")
    assert same == {f"{file}.safetensors": file != "decoder" for file in files}
    assert weights_id(load_world(save_world(load_world(first), tmp_path / "wide", {}))) == weights_id(load_world(first))


def test_files_of_the_first_format_are_read(trained, tmp_path):
    """One file for the whole codec, as nano's are."""
    old, model = tmp_path / "old", load_world(trained)
    old.mkdir()
    files = {}
    for part in ("codec", "transformer", "heads"):
        file = old / f"{part}.safetensors"
        save_file({name: t.half().contiguous() for name, t in getattr(model, part).state_dict().items()}, file)
        files[part] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    header = json.loads((trained / CONFIG_FILE).read_text())
    (old / CONFIG_FILE).write_text(json.dumps({**header, "format_version": 1, "files": files}))
    assert weights_id(load_world(old)) == weights_id(model)
    save_world(model, old, {})
    assert not (old / "codec.safetensors").exists() and weights_id(load_world(old)) == weights_id(model)


def test_other_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights are written in 16 or 8 bits, not 4"):
        save_world(debug_world(), tmp_path / "w", {}, bits=4)
    assert not any(tmp_path.iterdir())


def test_a_hand_decoder_has_its_own_file(tmp_path):
    config = debug_world().config.to_dict()
    config["codec"]["hand_decoder"] = True
    model = WorldModel(WorldConfig.from_dict(config))
    folder = save_world(model, tmp_path / "w", {}, bits=8)
    (folder / "hand_decoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"hand_decoder.safetensors: this is not readable .*No such file"):
        load_world(folder)
