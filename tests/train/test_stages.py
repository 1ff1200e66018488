"""The real stages at debug size: the command line trains them in turn on a recording, and each overfits one batch."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from worldscape.checkpoint import load_world, read_provenance
from worldscape.cli import main
from worldscape.config import preset
from worldscape.train import codec, decoder, heads, world
from worldscape.train.config import override
from worldscape.train.loop import train

QUIET = ["--set", "tensorboard=false", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two episodes of 24 steps."""
    out = tmp_path_factory.mktemp("recorded") / "rooms"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(out), "--steps-per-episode", "24"]) == 0
    return out


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A folder in which every stage was trained for three steps on top of the one before."""
    out = tmp_path_factory.mktemp("runs")
    for stage, init in STAGES.items():
        chain = ["--init", str(out / init)] if init else []
        common = ["--preset", "debug", "--data", str(dataset), "--out", str(out / stage), "--steps", "3"]
        assert main(["train", stage, *common, *chain, *QUIET]) == 0
    return out


STAGES = {
    "codec": None,
    "world": "codec",
    "ode": "world",
    "distill": "ode",
    "decoder": "distill",
    "heads": "decoder",
}
BUILDERS = {"codec": codec, "world": world, "decoder": decoder, "heads": heads}


@pytest.mark.parametrize("stage", STAGES)
def test_three_steps_from_the_command_line(runs, stage):
    out = runs / stage
    assert json.loads((out / "status.json").read_text()) == {"status": "finished", "step": 3, "steps": 3}
    assert any((out / "samples").iterdir())
    assert read_provenance(out)[stage]["steps"] == 3
    assert read_provenance(out)[stage]["data"] == "rooms"


@pytest.mark.parametrize("stage", STAGES)
def test_stop_and_go_on_from_the_command_line(runs, dataset, tmp_path, stage):
    """One step, then the rest, gives the weights of three at once."""
    init = STAGES[stage]
    chain = ["--init", str(runs / init)] if init else []
    command = ["train", stage, "--preset", "debug", "--data", str(dataset), "--out", str(tmp_path), *chain, *QUIET]
    assert main([*command, "--steps", "3", "--minutes", "1e-9"]) == 0
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "minutes"
    assert main([*command, "--steps", "3"]) == 0
    whole, parts = load_world(runs / stage), load_world(tmp_path)
    assert all(torch.equal(tensor, parts.state_dict()[key]) for key, tensor in whole.state_dict().items())


class OneBatch:
    """A stage that sees its first batch and its first random numbers again and again."""

    def __init__(self, stage) -> None:
        self.stage, self.name, self.losses = stage, stage.name, []
        self.trainable, self.samples = stage.trainable, stage.samples
        self.first = stage.batch(0, 0, 1)

    def batch(self, step, rank, world_size):
        return self.first

    def loss(self, model, batch, generator):
        parts = self.stage.loss(model, batch, generator.manual_seed(0))
        self.losses.append(float(parts["loss"].detach()))
        return parts


# Share of the first loss that is left after so many steps.
OVERFITS = {"codec": (30, 0.6), "world": (60, 0.2), "heads": (60, 0.3)}


@pytest.mark.parametrize(("name", "expected"), OVERFITS.items())
def test_each_stage_overfits_one_batch(runs, dataset, tmp_path, name, expected):
    steps, share = expected
    init = STAGES[name]
    settings = {"steps": steps, "lr": 1e-2, "ema": 0.0, "sample_every": 0, "tensorboard": False, "device": "cpu"}
    config = override(BUILDERS[name].DEFAULTS["debug"], settings)
    model = copy.deepcopy(load_world(runs / init if init else "debug"))
    stage = OneBatch(BUILDERS[name].build_stage(preset("debug"), config, dataset, runs / init if init else None))
    train(stage, model, config, tmp_path)
    assert stage.losses[-1] < share * stage.losses[0], (stage.losses[0], stage.losses[-1])


@pytest.mark.parametrize("blind_share", [0.0, 1.0])
def test_the_codec_learns_with_memory_alone_and_without_any(dataset, blind_share):
    config = override(codec.DEFAULTS["debug"], {"blind_share": blind_share, "device": "cpu"})
    stage = codec.build_stage(preset("debug"), config, dataset, None)
    parts = stage.loss(load_world("debug"), stage.batch(0, 0, 1), torch.Generator().manual_seed(0))
    is_missing = {name: float(parts[name]) == 0.0 for name in ("alone", "psnr", "psnr_blind")}
    assert is_missing == {"alone": blind_share == 1, "psnr": blind_share == 1, "psnr_blind": blind_share == 0}
    assert parts["loss"] > 0


def test_world_without_a_codec_is_refused(dataset, tmp_path, capsys):
    command = ["train", "world", "--preset", "debug", "--data", str(dataset), "--out", str(tmp_path)]
    assert main(command) == 1
    assert "train world builds on a trained codec: give --init RUN_OR_WEIGHTS" in capsys.readouterr().err


def test_a_codec_of_another_preset_is_refused(runs, dataset, tmp_path, capsys):
    command = ["train", "world", "--preset", "nano", "--data", str(dataset), "--out", str(tmp_path)]
    assert main([*command, "--init", str(runs / "codec")]) == 1
    assert "does not fit this --preset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--preset", "giant"], "unknown preset 'giant'"),
        (["--set", "lrr=1"], "unknown config key 'lrr'"),
        (["--init", "nowhere"], "weights 'nowhere': this is neither a shipped name nor a directory"),
        (["--steps", "0"], "steps = 0 is not allowed"),
    ],
)
def test_bad_arguments_are_one_line_on_stderr(dataset, tmp_path, capsys, changes, message):
    command = ["train", "codec", "--preset", "debug", "--data", str(dataset), "--out", str(tmp_path), *changes, *QUIET]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("worldscape: error:") and error.count("\n") == 1
    assert not any(tmp_path.iterdir())
