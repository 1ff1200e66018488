"""The command line of training: which config it makes, and what it refuses before any work begins."""

from __future__ import annotations

import copy
from argparse import Namespace

import pytest
import torch

from worldscape.checkpoint import load_world
from worldscape.config import preset
from worldscape.train.cli import NEEDS, build_model, check_teacher, choose_config, choose_model, exit_code
from worldscape.train.config import TrainConfig
from worldscape.world import WorldModel

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
    codec, both = dict.fromkeys(("teacher", "world"), ("codec",)), ("codec", "transformer")
    assert NEEDS == {"codec": (), **codec, **dict.fromkeys(("ode", "distill", "spatial", "decoder", "heads"), both)}


def test_a_teacher_with_another_codec_is_refused():
    student = copy.deepcopy(load_world("debug"))
    check_teacher(load_world("debug"), student, "run")
    student.codec.encoder.to_latent.weight += 1.0
    with pytest.raises(ValueError, match="--teacher run has another codec than the student"):
        check_teacher(load_world("debug"), student, "run")


def test_a_bidirectional_teacher_is_refused():
    """It would send one noise to several ends, depending on frames that the student cannot see."""
    teacher = WorldModel(choose_model("debug", ["transformer.is_causal=false"]))
    with pytest.raises(ValueError, match="distil from a causal one"):
        check_teacher(teacher, teacher, "run")
    check_teacher(teacher, teacher, "run", may_see_ahead=True)


def test_a_teacher_that_reads_another_history_is_refused():
    student = WorldModel(choose_model("debug", ["memory.num_retrieved=2"]))
    with pytest.raises(ValueError, match="--teacher run reads 0 retrieved frames and the student 2: give --model"):
        check_teacher(load_world("debug"), student, "run")


def test_the_shipped_weights_go_on_with_another_number_of_retrieved_keys():
    """Parameters are the same, and those of hands come in addition, so training continues from them."""
    config = choose_model("nano", ["memory.num_retrieved=3", "codec.hand_decoder=true"])
    model, _ = build_model(config, "world", "nano", seed=3)
    assert model.config.memory.num_retrieved == 3 and preset("nano").memory.num_retrieved == 2
    shipped, found = load_world("nano").state_dict(), model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in shipped.items())


def test_a_model_with_more_channels_starts_from_what_fits(capsys):
    """Codec and generator of the debug model keep their trunks; only the layers that touch latents start afresh."""
    wider = choose_model("debug", ["codec.latent_channels=10"])
    source = load_world("debug")
    model, _ = build_model(wider, "codec", "debug", seed=3)
    fresh, _ = build_model(wider, "codec", None, seed=3)
    stem = "encoder.stem.weight"
    assert torch.equal(model.codec.state_dict()[stem], source.codec.state_dict()[stem])
    assert torch.equal(model.codec.encoder.to_latent.weight, fresh.codec.encoder.to_latent.weight)
    said = capsys.readouterr().out
    assert "% of the codec" in said and "% of the transformer" in said
    with pytest.raises(ValueError, match="the codec of --init debug does not fit"):
        build_model(wider, "world", "debug", seed=3)


def test_a_model_that_hardly_fits_is_not_copied():
    wider = choose_model("debug", ["transformer.width=48", "transformer.mlp_width=96"])
    model, _ = build_model(wider, "codec", "debug", seed=3)
    fresh, _ = build_model(wider, "codec", None, seed=3)
    pairs = zip(model.transformer.parameters(), fresh.transformer.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
