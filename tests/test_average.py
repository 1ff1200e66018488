"""`worldscape average`: weights between two, and what does not go together."""

from __future__ import annotations

import copy

import pytest
import torch

from worldscape.average import average_generators
from worldscape.checkpoint import load_world, read_provenance, save_world, weights_id
from worldscape.cli import main
from worldscape.world import WorldModel, debug_world


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
    assert told["by"] == "a" and told["averaged towards"]["provenance"] == {"by": "b"}
    assert told["averaged towards"]["weights"] == weights_id(load_world(folders[1]))


def test_ends_are_the_weights_themselves():
    first, second = debug_world(), moved(debug_world(), "transformer")
    assert weights_id(average_generators(first, second, 0.0)) == weights_id(first)
    assert weights_id(average_generators(first, second, 1.0)) == weights_id(second)


def test_what_does_not_go_together_is_refused():
    first = debug_world()
    with pytest.raises(ValueError, match="outside 0 to 1"):
        average_generators(first, first, 1.5)
    with pytest.raises(ValueError, match="different codecs"):
        average_generators(first, moved(first, "codec"), 0.5)
