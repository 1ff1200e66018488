"""`worldscape average`: weights between two, and what does not go together."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from worldscape.average import average_worlds
from worldscape.checkpoint import load_world, read_provenance, save_world, weights_id
from worldscape.cli import main
from worldscape.train.cli import copy_parts
from worldscape.world import WorldModel, debug_world


def with_hand_decoder() -> WorldModel:
    """The debug model with a hand decoder that is a copy of its decoder."""
    first = debug_world()
    config = replace(first.config, codec=replace(first.config.codec, hand_decoder=True))
    model = WorldModel(config).eval().requires_grad_(False)
    copy_parts(first, model)
    return model


def moved(model: WorldModel, part: str) -> WorldModel:
    other = copy.deepcopy(model).requires_grad_(False)
    for parameter in getattr(other, part).parameters():
        parameter += 0.5
    return other


def test_the_generator_is_between_and_the_rest_the_first_ones(tmp_path, capsys):
    first = debug_world()
    second = moved(moved(first, "transformer"), "heads")
    folders = [save_world(model, tmp_path / name, {"by": name}) for model, name in ((first, "a"), (second, "b"))]
    command = ["average", "--weights", str(folders[0]), "--towards", str(folders[1]), "--share", "0.25"]
    assert main([*command, "--out", str(tmp_path / "made")]) == 0
    made = load_world(tmp_path / "made")
    own, ours = made.transformer.state_dict(), first.transformer.state_dict()
    assert all(torch.allclose(own[name], ours[name] + 0.125, atol=2e-3) for name in ours)
    for part in ("codec", "heads"):
        kept, ours = getattr(made, part).state_dict(), getattr(first, part).state_dict()
        assert all(torch.allclose(kept[name], ours[name], atol=1e-3) for name in ours)
    told = read_provenance(tmp_path / "made")
    assert told["by"] == "a" and told["generator averaged towards"]["provenance"] == {"by": "b"}
    assert told["generator averaged towards"]["weights"] == weights_id(load_world(folders[1]))


@pytest.mark.parametrize("part", ["decoder", "hand_decoder"])
def test_of_a_codec_the_part_that_is_named_is_between(tmp_path, part):
    first = with_hand_decoder()
    second = moved(moved(moved(first, "transformer"), "heads"), "codec")
    second.codec.encoder.load_state_dict(first.codec.encoder.state_dict())
    folders = [save_world(model, tmp_path / name, {"by": name}) for model, name in ((first, "a"), (second, "b"))]
    command = ["average", "--weights", str(folders[0]), "--towards", str(folders[1]), "--share", "0.5", "--part", part]
    assert main([*command, "--out", str(tmp_path / "made")]) == 0
    before, made = first.state_dict(), load_world(tmp_path / "made").state_dict()
    for name, value in before.items():
        shift = 0.25 if name.startswith(f"codec.{part}.") else 0.0
        assert torch.allclose(made[name], value + shift, atol=2e-3), name
    assert read_provenance(tmp_path / "made")[f"{part} averaged towards"]["share"] == 0.5


def test_what_a_stage_learned_is_added_to_what_another_did(tmp_path):
    """One stage moved all by 0.5, the other by 0.5 twice; 0.4 of the second on top of the first is 0.9 from before."""
    before = debug_world()
    one, other = moved(before, "transformer"), moved(moved(before, "transformer"), "transformer")
    named = {"before": before, "one": one, "other": other}
    folders = {name: str(save_world(model, tmp_path / name, {"by": name})) for name, model in named.items()}
    command = ["average", "--weights", folders["one"], "--towards", folders["other"], "--since", folders["before"]]
    assert main([*command, "--share", "0.4", "--out", str(tmp_path / "made")]) == 0
    made, ours = load_world(tmp_path / "made").transformer.state_dict(), before.transformer.state_dict()
    assert all(torch.allclose(made[name], ours[name] + 0.9, atol=4e-3) for name in ours)
    told = read_provenance(tmp_path / "made")
    besides = told["generator learned besides"]
    assert told["by"] == "one" and besides["share"] == 0.4
    assert besides["since"] == weights_id(load_world(folders["before"]))
    with pytest.raises(ValueError, match="different codecs"):
        average_worlds(one, other, 0.4, since=moved(before, "codec"))


def test_ends_are_the_weights_themselves():
    first, second = debug_world(), moved(debug_world(), "transformer")
    assert weights_id(average_worlds(first, second, 0.0)) == weights_id(first)
    assert weights_id(average_worlds(first, second, 1.0)) == weights_id(second)


def test_what_does_not_go_together_is_refused():
    first = debug_world()
    with pytest.raises(ValueError, match="outside 0 to 1"):
        average_worlds(first, first, 1.5)
    with pytest.raises(ValueError, match="different codecs"):
        average_worlds(first, moved(first, "codec"), 0.5)
    with pytest.raises(ValueError, match="no hand decoder"):
        average_worlds(first, first, 0.5, "hand_decoder")
