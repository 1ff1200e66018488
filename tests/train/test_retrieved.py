"""Training on what MACO retrieves: chosen by the engine's policy, composed into clips, learned from in every stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.walks import FRAMES, walk_store
from worldscape.checkpoint import load_world, save_world
from worldscape.codec import normalise_tokens
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.config import WorldConfig
from worldscape.engine import WorldEngine
from worldscape.memory.naive import NaiveMemory
from worldscape.memory.world_memory import WorldMemory
from worldscape.sight import present, sight
from worldscape.train import distill, ode, spatial, teacher, world
from worldscape.train.cli import choose_model
from worldscape.train.config import override
from worldscape.train.prepare import prepare
from worldscape.train.rollouts import start_at
from worldscape.train.self_rollout import roll_out
from worldscape.train.world import WorldStage
from worldscape.world import WorldModel, debug_world

CONFIG = choose_model("debug", ["memory.num_retrieved=2"])
WINDOW, RETRIEVED, TIMES = CONFIG.memory.local_window, slice(1, 3), CONFIG.memory.num_context + 1
STAGES = {"world": world, "teacher": teacher, "spatial": spatial, "ode": ode}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Iterator[Any]:
    """Where prepared frames of the walk are kept; stages that load frames get the walk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (world, distill):
            patch.setattr(module, "load_frames", lambda *_, **__: walk_store())
        yield tmp_path_factory.mktemp("walk") / "rooms"


def fresh(config: WorldConfig = CONFIG) -> WorldModel:
    """The debug world, trainable, under another config of the same weights."""
    with torch.random.fork_rng(devices=[]):
        model = WorldModel(config)
    model.load_state_dict(debug_world().state_dict())
    return model.requires_grad_(False)


def build(name: str, dataset, **changes) -> tuple[Any, WorldModel]:
    """A stage of clips of the whole walk, and a model for it."""
    module, config = STAGES[name], CONFIG
    if name == "teacher":
        config = teacher.adapt_model(config)
    settings = override(module.DEFAULTS["debug"], {"dream_frames": FRAMES, "device": "cpu", **changes})
    teachers = ["debug"] if name == "ode" else []
    return module.build_stage(config, settings, dataset, "debug", *teachers), fresh(config)


@pytest.fixture(scope="module")
def clips(dataset) -> WorldStage:
    return build("world", dataset, batch_size=32)[0]


def test_prepared_frames_name_what_the_naive_twin_retrieves(tmp_path, monkeypatch):
    twins: list[NaiveMemory] = []
    expected: list[list[int]] = []
    append = WorldMemory.append

    def append_both(memory, frame, recall, active):
        twin = twins[0] if twins else NaiveMemory(memory.config, memory.tables.levels)
        twins[:] = [twin]
        expected.append((twin.retrieved(frame.pose, frame.intrinsics) + [-1, -1])[:2])
        twin.append([], frame.rgbd, frame.pose, frame.intrinsics)
        append(memory, frame, recall, active)

    monkeypatch.setattr(WorldMemory, "append", append_both)
    found = prepare(debug_world(), CONFIG.memory, walk_store(), tmp_path / "rooms", FRAMES, seed=0).retrieved
    assert found.tolist() == [expected]
    assert (found >= 0).any() and (found < 0).any()
    oldest_local = torch.arange(FRAMES)[:, None] - WINDOW
    assert ((found < 0) | (found < oldest_local)).all()


@pytest.mark.parametrize("changes", [{"num_retrieved": 0}, {"policy": "sink+local"}])
def test_frames_prepared_without_retrieval_say_so(tmp_path, changes):
    """Also when they are read again; a policy without a pool has nothing to retrieve."""
    memory = replace(CONFIG.memory, **changes)
    found = [prepare(debug_world(), memory, walk_store(), tmp_path / "rooms", 8, seed=0) for _ in range(2)]
    assert all(frames.retrieved.shape == (1, 8, 0) for frames in found)
    assert prepare(debug_world(), CONFIG.memory, walk_store(), tmp_path / "rooms", 8, seed=0).retrieved.shape[2] == 2


def test_a_clip_is_sink_retrieved_window_and_target(clips):
    dreams, places = clips.draw_clips(np.random.default_rng(0), 64)
    batch, target = clips.gather(dreams, places), places[:, -1]
    assert places.shape == (64, TIMES) and (places[:, 0] == 0).all()
    assert np.array_equal(places[:, 3:], target[:, None] + np.arange(-WINDOW, 1))
    assert np.array_equal(places[:, RETRIEVED], clips.prepared.retrieved[dreams, target].numpy())
    is_there = torch.from_numpy(places >= 0)
    assert torch.equal(batch["sees"], sight(is_there[:, RETRIEVED], 1, WINDOW + 1))
    assert torch.equal(present(batch["sees"]), is_there)
    assert 0 < int(is_there[:, RETRIEVED].sum()) < 128
    for name in ("latent", "guess", "coverage", "frames"):
        whole = getattr(clips.prepared, name)[dreams[:, None], np.maximum(places, 0)]
        assert torch.equal(batch[name][is_there].double(), whole[is_there].double()), name


def test_absent_frames_add_nothing_to_the_loss(clips):
    model, batch = fresh(), clips.batch(0, 0, 1)
    is_there, rng = present(batch["sees"]), torch.Generator().manual_seed(0)
    noise, level = torch.randn(batch["latent"].shape, generator=rng), torch.rand(is_there.shape, generator=rng)
    other = {name: batch[name].clone() for name in ("latent", "guess", "coverage", "rays")}
    for part in other.values():
        part[~is_there] += 1.0
    one, two = (clips.flow_loss(b, clips.refine_at(model, b, noise, level)) for b in (batch, batch | other))
    assert not is_there.all() and all(torch.equal(one[name], two[name]) for name in one)
    other["latent"] = batch["latent"].clone()
    other["latent"][:, RETRIEVED] += 1.0
    assert clips.flow_loss(batch, clips.refine_at(model, batch | other, noise, level))["loss"] != one["loss"]


def test_retrieved_frames_are_history(clips):
    batch = clips.batch(0, 0, 1)
    level = clips.refine(fresh(), batch, torch.Generator().manual_seed(0)).level
    assert float(level[:, RETRIEVED].max()) <= clips.config.context_level < float(level[:, 3:-1].max())


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_learns_from_what_was_retrieved(name, dataset):
    stage, model = build(name, dataset)
    module = stage.trainable(model).requires_grad_(True)
    step = next(step for step in range(20) if present(stage.batch(step, 0, 1)["sees"])[:, RETRIEVED].any())
    batch = stage.batch(step, 0, 1)
    parts = stage.loss(model, batch, torch.Generator().manual_seed(0))
    parts["loss"].backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    changed = batch["latent"].clone()
    changed[:, RETRIEVED] = normalise_tokens(changed[:, RETRIEVED].flip(2) + 1.0)
    other = stage.loss(model, batch | {"latent": changed}, torch.Generator().manual_seed(0))
    assert other["loss"] != parts["loss"]


def test_a_teachers_retrieved_frames_stay_clean(dataset, monkeypatch):
    stage, model = build("teacher", dataset, batch_size=64)
    levels: list[Tensor] = []
    real = stage.clips.refine_at
    monkeypatch.setattr(WorldStage, "refine_at", lambda _, *given: levels.append(given[-1]) or real(*given))
    stage.loss(model, stage.batch(0, 0, 1), torch.Generator().manual_seed(0))
    assert not levels[0][:, :3].any() and levels[0][:, 3].any()


def test_space_is_measured_on_consecutive_frames(dataset):
    stage, _ = build("spatial", dataset)
    batch = stage.batch(0, 0, 1)
    assert batch["own"].tolist() == [0, 3, 4, 5, 6]
    rows = stage.config.spatial_rows
    poses = stage.clips.store.pose[batch["frames"][:rows, batch["own"]].numpy()]
    assert torch.equal(batch["poses"], torch.from_numpy(poses))
    assert int(torch.cat([batch["views"], batch["context"]]).max()) == 4


def test_flows_are_followed_and_learned_with_the_same_history(dataset):
    """A student that is its teacher answers the end of a flow of one call; not so if it sees nothing retrieved."""
    model = fresh()
    rng = torch.Generator().manual_seed(0)
    for parameter in model.transformer.parameters():  # weights on which a frame of history makes a difference
        torch.nn.init.normal_(parameter, std=0.2, generator=rng)
    path = save_world(model, dataset.parent / "teacher", {})
    changes = {"dream_frames": FRAMES, "teacher_calls": 1, "student_calls": 1, "batch_size": 16}
    config = override(ode.DEFAULTS["debug"], changes)
    stage, model = ode.build_stage(CONFIG, config, dataset, "debug", str(path)), load_world(path)
    assert (stage.flows["places"][:, RETRIEVED] >= 0).any()
    batch = stage.batch(0, 0, 1)
    drawn = np.random.default_rng([stage.config.seed, 0, 0, 9])
    drawn.random()  # with hands or without
    rows = drawn.choice(len(stage.flows["dreams"]), size=16)
    ends = stage.flows["state"][rows, -1].float()
    batch["end"] = ends
    assert float(stage.loss(model, batch, torch.Generator())["loss"]) < 1e-6
    blind = batch | {"sees": sight(torch.zeros(16, 2, dtype=torch.bool), 1, WINDOW + 1)}
    assert float(stage.loss(model, blind, torch.Generator())["loss"]) > 5e-6


def rolling(dataset, **changes) -> tuple[distill.DistillStage, WorldModel]:
    config = override(distill.DEFAULTS["debug"], {"device": "cpu", "student_every": 1, "dreams": 0, **changes})
    stage = distill.build_stage(CONFIG, config, dataset, None, "debug")
    model = fresh()
    stage.trainable(model).requires_grad_(True)
    return stage, model


def test_a_rollout_ends_in_the_clip_that_its_last_frame_read(dataset):
    stage, model = rolling(dataset, rollout=12)
    batch = stage.batch(0, 0, 1)
    clip = roll_out(model, batch, window=2)
    store = stage.store
    starts = [int(np.flatnonzero((store.pose == pose.numpy()).all((1, 2)))[0]) for pose in batch["pose"][:, 0]]
    engine = WorldEngine(model, len(starts), use_fast=False)
    engine.rebuild = reproject_fast
    latents = [engine.open(start_at(store, np.array(starts)), batch["seeds"]).latent]
    latents += [engine.step(control, is_realised=True).latent for control in batch["controls"].unbind(1)]
    made, retrieved = torch.stack(latents, 1), engine.state.memory.tables.retrieved
    places = torch.cat([torch.zeros(len(starts), 1, dtype=torch.long), retrieved], 1)
    places = torch.cat([places, torch.arange(9, 13).expand(len(starts), -1)], 1)
    assert clip.sees is not None and torch.equal(present(clip.sees), places >= 0) and (retrieved >= 0).any()
    kept = made[torch.arange(len(starts))[:, None], places]
    torch.testing.assert_close(clip.frames.latent.detach()[places >= 0], kept[places >= 0], atol=2e-5, rtol=1e-4)


def test_student_and_critic_learn_from_rollouts_that_retrieve(dataset):
    stage, model = rolling(dataset, rollout=12)
    parts = stage.loss(model, stage.batch(0, 0, 1), torch.Generator().manual_seed(0))
    assert float(parts["gap"]) == 0.0, "a critic that is the teacher agrees with it"
    stage.critic.to_latent.bias.data += 0.1
    parts = stage.loss(model, stage.batch(0, 0, 1), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    gradient = model.transformer.to_latent.weight.grad
    assert gradient is not None and torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


def test_a_window_longer_than_the_tail_of_a_clip_is_refused(dataset):
    with pytest.raises(ValueError, match="window is 5; local window and target are 4 frames"):
        rolling(dataset, window=5, rollout=8)
