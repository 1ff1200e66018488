"""Configs: presets, round trips, what is refused; and the sizes that the presets promise."""

import json

import pytest
import torch

from worldscape.config import PRESETS, CodecConfig, MemoryConfig, TransformerConfig, WorldConfig, preset
from worldscape.world import WorldModel


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_json(name):
    assert WorldConfig.from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)


def test_unknown_keys_are_refused_where_they_stand():
    values = preset("debug").to_dict()
    values["transformer"]["wings"] = 2
    with pytest.raises(ValueError, match=r"config.transformer has unknown keys \['wings'\]"):
        WorldConfig.from_dict(values)


def test_values_of_the_wrong_type_are_refused():
    with pytest.raises(ValueError, match="config.steps_per_frame is 'two'"):
        WorldConfig.from_dict({"steps_per_frame": "two"})


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="debug, nano, small"):
        preset("huge")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CodecConfig, {"size": 60}),
        (CodecConfig, {"size": -64}),
        (CodecConfig, {"widths": (64,)}),
        (TransformerConfig, {"width": 10, "num_heads": 4}),
        (TransformerConfig, {"attention": "quick"}),
        (MemoryConfig, {"num_keyframes": 1, "num_anchors": 4}),
        (MemoryConfig, {"novelty": 0.0}),
        (WorldConfig, {"steps_per_frame": 0}),
        (WorldConfig, {"field_of_view": 180.0}),
    ],
)
def test_nonsense_is_refused(kind, settings):
    with pytest.raises(ValueError, match="is not allowed|are not allowed|with"):
        kind(**settings)


@pytest.mark.parametrize(
    ("name", "tokens", "generator"), [("debug", 16, (1e3, 5e4)), ("nano", 16, (3e6, 6e6)), ("small", 64, (1e7, 3e7))]
)
def test_presets_have_the_promised_size(name, tokens, generator):
    with torch.device("meta"):
        model = WorldModel(preset(name))
    assert preset(name).codec.num_tokens == tokens
    assert generator[0] <= sum(p.numel() for p in model.transformer.parameters()) <= generator[1]
