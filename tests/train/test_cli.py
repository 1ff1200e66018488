"""The command line of training: which config it makes, and what it refuses before any work begins."""

from __future__ import annotations

from argparse import Namespace

import pytest

from worldscape.config import preset
from worldscape.train.cli import NEEDS, choose_config, choose_model, exit_code
from worldscape.train.config import TrainConfig

DEFAULTS = {"debug": TrainConfig(steps=7, lr=0.1)}


def arguments(**changes):
    return Namespace(**{"stage": "codec", "preset": "debug", "set": [], "steps": None, "minutes": None, **changes})


def test_steps_and_minutes_come_last():
    config = choose_config(DEFAULTS, arguments(set=["lr=0.5", "steps=9"], steps=11, minutes=2.0))
    assert config == TrainConfig(lr=0.5, steps=11, minutes=2.0)
    assert choose_config(DEFAULTS, arguments()) == DEFAULTS["debug"]


def test_a_preset_without_defaults_is_named():
    with pytest.raises(ValueError, match=r"stage codec has no preset 'huge': choose one of debug"):
        choose_config(DEFAULTS, arguments(preset="huge"))


def test_model_settings_change_by_dotted_name():
    config = choose_model("debug", ["transformer.anchor=false", "steps_per_frame=3", "transformer.attention=reference"])
    assert not config.transformer.anchor and config.transformer.attention == "reference"
    assert config.steps_per_frame == 3
    assert config.codec == preset("debug").codec
    assert choose_model("debug", []) == preset("debug")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transformer.wings=2", "wings"),
        ("wings.width=2", r"--model wings.width: 'wings' is no section of the config: preset, codec"),
        ("preset.width=2", r"'preset' is no section"),
        ("transformer.width", r"--model 'transformer.width' does not read as key=value"),
        ("transformer.width=wide", "width"),
    ],
)
def test_bad_model_settings_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        choose_model("debug", [text])


CODES = {"finished": 0, "minutes": 0, "running": 0, "SIGTERM": 143, "SIGINT": 130}


@pytest.mark.parametrize(("why", "code"), CODES.items())
def test_exit_codes(tmp_path, why, code):
    (tmp_path / "status.json").write_text(f'{{"status": "{why}"}}')
    assert exit_code(tmp_path) == code


def test_every_stage_says_what_it_builds_on():
    both = ("codec", "transformer")
    assert NEEDS == {"codec": (), "world": ("codec",), "spatial": both, "decoder": both, "heads": both}
