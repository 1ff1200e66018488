"""The real stages at debug size: the command line trains them in turn on a recording, and each overfits one batch."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from worldscape.checkpoint import load_aggregator, load_world, read_provenance
from worldscape.cli import main
from worldscape.conditioning.reproject import decode_depth
from worldscape.config import preset
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.sight import present
from worldscape.train import codec, decoder, heads, spatial, world
from worldscape.train.config import override
from worldscape.train.loop import train
from worldscape.train.spatial_losses import depth_loss

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
    "spatial": "world",
    "ode": "world",
    "distill": "ode",
    "decoder": "distill",
    "heads": "decoder",
}
BUILDERS = {"codec": codec, "world": world, "spatial": spatial, "decoder": decoder, "heads": heads}


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


def test_retrieved_keys_train_from_the_command_line(runs, dataset, tmp_path):
    """Three steps, and one step and then the rest, on clips with retrieved frames; the weights say what they read."""
    common = ["train", "world", "--preset", "debug", "--data", str(dataset), "--init", str(runs / "codec"), *QUIET]
    common += ["--model", "memory.num_retrieved=2", "--set", "dream_frames=24"]
    assert main([*common, "--out", str(tmp_path / "whole"), "--steps", "3"]) == 0
    assert main([*common, "--out", str(tmp_path / "parts"), "--steps", "3", "--minutes", "1e-9"]) == 0
    assert main([*common, "--out", str(tmp_path / "parts"), "--steps", "3"]) == 0
    whole, parts = load_world(tmp_path / "whole"), load_world(tmp_path / "parts")
    assert whole.config.memory.num_retrieved == 2
    assert all(torch.equal(tensor, parts.state_dict()[key]) for key, tensor in whole.state_dict().items())
    config = override(world.DEFAULTS["debug"], {"dream_frames": 24, "device": "cpu"})
    stage = world.build_stage(whole.config, config, dataset, str(runs / "codec"))
    assert any(present(stage.batch(step, 0, 1)["sees"])[:, 1:3].any() for step in range(3))


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
OVERFITS = {"codec": (30, 0.6), "world": (60, 0.2), "spatial": (30, 0.8), "heads": (60, 0.3)}


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


@pytest.fixture(scope="module")
def space(runs, dataset):
    """The spatial stage, a model with its aggregator and the first batch."""
    config = override(spatial.DEFAULTS["debug"], {"device": "cpu", "alpha": 0.5, "beta": 2.0, "ramp": 4})
    stage = spatial.build_stage(preset("debug"), config, dataset, runs / "spatial")
    model = copy.deepcopy(load_world(runs / "world"))
    stage.trainable(model).requires_grad_(True)
    return stage, model, stage.batch(0, 0, 1)


def test_the_spatial_loss_is_the_sum_that_is_promised(space):
    stage, model, batch = space
    found = stage.loss(model, batch, torch.Generator().manual_seed(0))
    flow = stage.clips.loss(model, batch, torch.Generator().manual_seed(0))["loss"]
    expected = flow + 0.25 * (0.5 * found["depth"] + 2.0 * (found["render"] + found["shown"]))
    torch.testing.assert_close(found["loss"], expected)
    assert float(stage.batch(3, 0, 1)["ramp"]) == float(stage.batch(99, 0, 1)["ramp"]) == 1.0
    assert found["depth"] > 0 and found["render"] > 0 and found["shown"] > 0


def test_frames_as_they_are_shown_teach_the_decoder_to_keep_what_memory_knows(space):
    """Nothing else learns of them; recorded frames then look more like what memory shows there, and as they did before
    where memory knows nothing."""
    stage, model, batch = space
    model = copy.deepcopy(model)
    model.codec.load_state_dict(stage.before.codec.state_dict())
    refined = stage.clips.refine(model, batch, torch.Generator().manual_seed(0))

    def shown() -> torch.Tensor:
        return stage.measure_shown(model, batch, refined, torch.Generator().manual_seed(0))

    model.zero_grad()
    first = shown()
    first.backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    names = [name for name, _ in model.codec.decoder.named_parameters() if not name.startswith("hands.")]
    assert taught == {f"codec.decoder.{name}" for name in names}
    optimizer = torch.optim.Adam(model.codec.decoder.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        shown().backward()
        optimizer.step()
    assert shown() < 0.6 * first
    blind = {**batch, "still": torch.zeros_like(batch["still"])}
    model.codec.load_state_dict(stage.before.codec.state_dict())
    assert stage.measure_shown(model, blind, refined, torch.Generator().manual_seed(0)) == 0.0
    hands = {**batch, "hands": torch.zeros(1)}
    assert stage.measure_shown(model, hands, refined, torch.Generator().manual_seed(0)) == 0.0


def test_without_keep_the_decoder_is_left_alone(runs, dataset):
    config = override(spatial.DEFAULTS["debug"], {"device": "cpu", "keep": 0.0})
    stage = spatial.build_stage(preset("debug"), config, dataset, runs / "world")
    model = copy.deepcopy(load_world(runs / "world"))
    assert set(dict(stage.trainable(model).named_children())) == {"transformer", "aggregator"}
    assert stage.loss(model, stage.batch(0, 0, 1), torch.Generator().manual_seed(0))["shown"] == 0.0


@pytest.mark.parametrize("part", ["measure_depth", "measure_views"])
def test_depth_and_views_teach_the_generator_and_the_aggregator(space, part):
    stage, model, batch = space
    refined = stage.clips.refine(model, batch, torch.Generator().manual_seed(0))
    built = stage.build_space(model, batch, refined)
    loss = stage.measure_depth(batch, refined, built) if part == "measure_depth" else stage.measure_views(batch, built)
    model.zero_grad()
    (loss if part == "measure_depth" else loss.loss).backward()
    for module in (model.transformer, model.aggregator):
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().max() > 1e-7 for gradient in gradients)
    assert all(parameter.grad is None for parameter in model.codec.parameters())


def test_the_truth_is_the_minimum_of_what_frames_lose_in_depth(space):
    """The true latents lose nothing, though their depth is not that recorded; nearly clean frames, noise, and what
    memory does not show, none at all."""
    stage, model, batch = space
    refined = stage.clips.refine(model, batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        built = stage.build_space(model, batch, refined)
    assert not torch.allclose(built.wanted, batch["pictures"], atol=0.05)

    def of_frames(rgbd: torch.Tensor, level: float, coverage: float = 1.0) -> float:
        """The part of L_depth that is of the frames."""
        shown = torch.full_like(refined.coverage, coverage)
        at_level = refined._replace(level=torch.full_like(refined.level, level), coverage=shown)
        other = stage.measure_depth(batch, at_level, built._replace(rgbd=built.wanted))
        return float(stage.measure_depth(batch, at_level, built._replace(rgbd=rgbd)) - other)

    depth, wanted = (decode_depth(rgbd[:, :, 3]) for rgbd in (built.rgbd - 0.1, built.wanted))
    assert of_frames(built.rgbd - 0.1, 0.5) == pytest.approx(float(depth_loss(depth, wanted).mean()), rel=1e-3)
    assert of_frames(built.rgbd - 0.1, stage.config.context_level) == of_frames(built.rgbd - 0.1, 1.0) == 0.0
    assert of_frames(built.rgbd - 0.1, 0.5, coverage=0.4) == 0.0


def test_what_moves_is_not_drawn_nor_looked_at(space):
    stage, model, batch = space
    refined = stage.clips.refine(model, batch, torch.Generator().manual_seed(0))
    still = batch["still"].clone()
    still[..., :32] = False
    moving = batch | {"still": still}
    drawable = stage.build_space(model, moving, refined).found.gaussians.opacity_logits.isfinite()
    cells = stage.aggregator.config.cells
    drawable = drawable.view(len(drawable), -1, cells, cells)
    assert not drawable[..., : cells // 2].any() and drawable[..., cells // 2 :].all()
    assert not spatial.find_seen(moving, batch["views"])[..., :32].any()


def test_views_without_overlap_count_for_nothing_and_break_nothing(space):
    """Held-out cameras that look the other way: no pixel of theirs is seen, and all gradients stay finite."""
    stage, model, batch = space
    poses = batch["poses"].clone()
    poses[:, batch["views"][:1], :3, :3] = poses[:, batch["views"][:1], :3, :3] @ torch.diag(
        torch.tensor([-1.0, 1, -1])
    )
    poses[:, batch["views"][:1], :3, 3] += 30.0
    turned = batch | {"poses": poses}
    assert not spatial.find_seen(turned, batch["views"][:1]).any() and spatial.find_seen(batch, batch["context"]).any()
    found = stage.loss(model, turned, torch.Generator().manual_seed(0))
    model.zero_grad()
    found["loss"].backward()
    assert found["seen"] == 0 and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_depth_that_is_nan_is_refused(dataset, runs, monkeypatch):
    real = spatial.build_world_stage

    def with_nan(*arguments):
        stage = real(*arguments)
        depth = stage.store.depth.copy()  # the store itself is kept for whoever reads these recordings next
        depth[0, 0, 0] = float("nan")
        return replace(stage, store=replace(stage.store, depth=depth))

    monkeypatch.setattr(spatial, "build_world_stage", with_nan)
    with pytest.raises(ValueError, match="depth that is NaN; record 0"):
        spatial.build_stage(preset("debug"), spatial.DEFAULTS["debug"], dataset, runs / "world")


def test_an_aggregator_needs_a_frame_to_look_at(dataset, runs):
    config = override(spatial.DEFAULTS["debug"], {"num_held_out": 5})
    with pytest.raises(ValueError, match="num_held_out = 5 is not allowed: it must be below the 5 frames"):
        spatial.build_stage(preset("debug"), config, dataset, runs / "world")


def test_the_aggregator_is_saved_beside_the_world_and_left_behind_by_other_stages(runs, space):
    saved = load_aggregator(runs / "spatial")
    assert saved is not None and load_aggregator(runs / "world") is None and load_aggregator("debug") is None
    assert load_aggregator(runs / "decoder") is None
    assert all(torch.equal(t, saved.state_dict()[k]) for k, t in space[0].aggregator.state_dict().items())
    assert saved.to_gaussians.weight.any(), "it learned"
    assert load_world(runs / "spatial").aggregator is None


@pytest.mark.parametrize("setting", ["alpha=-1", "num_held_out=0", "picture_dropout=2", "depth_kind=odd", "keep=1.5"])
def test_bad_spatial_settings_are_named(setting):
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=f"{name} = .* is not allowed"):
        override(spatial.DEFAULTS["debug"], {name: value})


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


def test_held_out_layouts_are_dreamed_along_but_not_learned_from(tmp_path, capsys):
    data, film = str(tmp_path / "held_out"), tmp_path / "film.gif"
    told = ["--env", "worldscape.data.rooms:WorldScape-Rooms-v0", "--episodes", "1", "--steps-per-episode", "6"]
    assert main(["record", *told, "--seed", str(HELD_OUT_SEED + 7), "--out", data]) == 0
    assert main(["train", "codec", "--preset", "debug", "--data", data, "--out", str(tmp_path / "run"), *QUIET]) != 0
    assert f"holds 1 held-out layouts (seed {HELD_OUT_SEED + 7}); train on seeds below" in capsys.readouterr().err
    assert main(["dream", "--weights", "debug", "--data", data, "--frames", "5", "--out", str(film)]) == 0
    assert film.is_file()
