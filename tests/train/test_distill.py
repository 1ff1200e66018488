"""Self-forcing: rollouts are the engine's own dreams, one call a frame learns, and nothing learns through history."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.walks import SIZE, walk_store
from worldscape.checkpoint import save_world
from worldscape.codec import token_coverage
from worldscape.conditioning.camera import apply_control, camera_rays, pose_from_state
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.data.clips import FrameStore
from worldscape.engine import WorldEngine
from worldscape.engines import open_engine
from worldscape.rolling import RollingEngine
from worldscape.scoring import estimate_end
from worldscape.train import distill
from worldscape.train.config import override
from worldscape.train.distill import DEFAULTS, DistillStage, DistillTrainConfig
from worldscape.train.matching import matching_gradient
from worldscape.train.optim import build_optimizers, set_lr
from worldscape.train.rollouts import RolloutPlan, start_at
from worldscape.train.self_rollout import leave_alone, roll_out
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel, debug_world


@pytest.fixture(scope="module")
def store() -> FrameStore:
    return walk_store()


def build(store: FrameStore, steps_per_frame: int = 1, **changes) -> tuple[DistillStage, WorldModel]:
    config = override(DEFAULTS["debug"], changes)
    assert isinstance(config, DistillTrainConfig)
    model = copy.deepcopy(debug_world()).requires_grad_(False)
    model.config = replace(model.config, steps_per_frame=steps_per_frame)
    stage = DistillStage(
        store=store,
        config=config,
        model_config=model.config,
        teacher=copy.deepcopy(model.transformer),
        critic=copy.deepcopy(model.transformer),
    )
    stage.trainable(model).requires_grad_(True)
    return stage, model


def student_gradient(model: WorldModel, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.transformer.parameters()), allow_unused=True))


def test_a_rollout_is_the_dream_of_the_engine(store):
    """Six frames after one recorded: the clip holds the sink and the last four, as the engine's steps make them."""
    stage, model = build(store, rollout=6)
    batch = stage.batch(3, 0, 1)
    clip = roll_out(model, batch, window=2).frames
    size = len(batch["seeds"])
    starts = [int(np.flatnonzero((store.pose == pose.numpy()).all((1, 2)))[0]) for pose in batch["pose"][:, 0]]
    engine = WorldEngine(model, size, use_fast=False)
    engine.rebuild = reproject_fast
    latents = [engine.open(start_at(store, np.array(starts)), batch["seeds"]).latent]
    latents += [engine.step(control, is_realised=True).latent for control in batch["controls"].unbind(1)]
    assert clip.latent.shape[1] == stage.model_config.memory.num_context + 1 == 5
    kept = torch.stack([latents[0], *latents[-4:]], 1)
    torch.testing.assert_close(clip.latent.detach(), kept, atol=2e-5, rtol=1e-4)
    assert float(clip.coverage[:, 1:].max()) > 0 and float(clip.coverage[:, 0].max()) == 0


def test_every_second_rollout_goes_on_from_a_dream(store):
    """What it opens on is what the dream shows, and what follows is how its recording moved on from there."""
    stage, model = build(store, batch_size=4, history=2)
    plan = RolloutPlan(episodes=1, dreamed=2, recorded=0, length=8, seed=0)
    dreams = {"frames": plan.draw(store), "shown": torch.rand(2, 8, 4, SIZE, SIZE).half()}
    stage = replace(stage, dreams=dreams)
    found = set()
    for step in range(8):
        batch = stage.batch(step, 0, 1)
        for row in range(4):
            matches = (dreams["shown"][:, :, None] == batch["rgbd"][row].half()).flatten(3).all(3)
            assert bool(matches.any()) == (row % 2 == 0)
            if row % 2 == 0:
                dream, first = (int(place[0]) for place in matches[..., 0].nonzero().unbind(1))
                assert matches[dream, first + 1, 1]
                frames = dreams["frames"][dream, first : first + 5].numpy()
                assert torch.equal(batch["pose"][row], torch.from_numpy(store.pose[frames[:2]]))
                assert torch.equal(batch["controls"][row], torch.from_numpy(store.realised[frames[2:]]))
                found.add(first)
    assert found == {1, 2, 3}, "any place after the first, which is recorded"
    assert roll_out(model, batch, window=2).frames.latent.isfinite().all()


def test_some_windows_are_judged_alone(store):
    """Only rollouts that open on dreams; what went before them and what memory shows then say nothing of the window."""
    stage, model = build(store, batch_size=4, history=2, window=2, dreams=2, alone_share=1.0)
    plan = RolloutPlan(episodes=1, dreamed=2, recorded=0, length=8, seed=0)
    shown = torch.rand(2, 8, 4, SIZE, SIZE).half()
    stage = replace(stage, dreams={"frames": plan.draw(store), "shown": shown})
    batch = stage.batch(0, 0, 1)
    assert batch["alone"].tolist() == [True, False, True, False]
    with torch.no_grad():
        clip = roll_out(model, batch, window=2)
        left = leave_alone(clip, 2, batch["alone"])
        frames, level = left.frames, torch.full((4,), 0.5)
        noised = torch.randn_like(frames.latent[:, -2:])
        found = estimate_end(stage.teacher, frames, noised, level, left.sees)
        other = frames._replace(latent=torch.cat([torch.randn_like(frames.latent[:, :-2]), noised], 1))
        same = (found == estimate_end(stage.teacher, other, noised, level, left.sees)).flatten(1).all(1)
        assert same.tolist() == batch["alone"].tolist()
        shown_all = estimate_end(stage.teacher, clip.frames, noised, level, clip.sees)
        torch.testing.assert_close(found[1::2], shown_all[1::2])
    assert float(frames.coverage[::2].max()) == 0 == float(frames.anchor[::2].abs().max())
    assert float(clip.frames.coverage[::2, -2:].max()) > 0
    stage.teacher.to_latent.bias.data += 1.0
    parts = stage.loss(model, batch | {"is_turn": torch.tensor(True)}, torch.Generator().manual_seed(0))
    assert any(float(g.abs().max()) > 0 for g in student_gradient(model, parts["loss"]) if g is not None)


def test_rollouts_from_recordings_are_drawn_to_what_was_recorded(store):
    """By as much as to a teacher whose estimates were the recorded frames; those that open on dreams are not."""
    stage, model = build(store, batch_size=4, history=2, window=2, dreams=2, recorded_weight=0.25, student_every=2)
    plan = RolloutPlan(episodes=1, dreamed=2, recorded=0, length=8, seed=0)
    shown = torch.rand(2, 8, 4, SIZE, SIZE).half()
    stage = replace(stage, dreams={"frames": plan.draw(store), "shown": shown})
    assert "recorded" not in stage.batch(0, 0, 1), "nothing moves the student there"
    batch = stage.batch(1, 0, 1)
    everything = store.rgbd(np.arange(len(store.frames)))
    for row in (1, 3):
        at = int((everything == batch["rgbd"][row, -1]).flatten(1).all(1).nonzero().item())
        assert torch.equal(batch["recorded"][row], everything[at + 2 : at + 4])

    def distances() -> Tensor:
        with torch.no_grad():
            made = roll_out(model, batch, window=2).frames.latent[:, -2:]
        return (made - model.codec.encode(batch["recorded"].flatten(0, 1)).view_as(made)).square().mean((1, 2, 3))

    before, optimizer = distances(), torch.optim.Adam(model.transformer.parameters(), lr=1e-3)
    for step in range(10):
        parts = stage.loss(model, batch, torch.Generator().manual_seed(step))
        assert float(parts["gap"]) == pytest.approx(0.125), "half of the rollouts; teacher and critic agree"
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimizer.step()
    assert (distances()[1::2] < 0.9 * before[1::2]).all()


def test_rollouts_may_be_drawn_to_what_their_openings_know_alone(store):
    """Known is what the opening shows of the window by the recorded depth; the rest pulls at nothing."""
    away = camera_rays(torch.from_numpy(store.intrinsics[:1]), SIZE)[0].norm(dim=-1)
    far = replace(store, depth=np.broadcast_to((40.0 / away).half().numpy(), store.depth.shape))  # a sphere around
    stage, model = build(far, batch_size=4, history=2, window=2, known_weight=0.5, student_every=1)
    batch = stage.batch(0, 0, 1)
    with torch.no_grad():
        made = roll_out(model, batch, window=2).frames.latent[:, -2:]
    known, pull = stage._known(model, batch), stage._pull(model, made, batch)
    assert known.shape == made.shape[:3] and 0.5 < float(known.mean()) < 1 == float(known.max())
    recorded = model.codec.encode(batch["recorded"].flatten(0, 1)).view_as(made)
    torch.testing.assert_close(pull, 0.5 * known[..., None] * matching_gradient(made, recorded, made))
    again = batch | {"recorded": batch["rgbd"], "recorded_pose": batch["pose"]}
    assert (stage._known(model, again) == 1).all(), "what is recorded twice is known"
    turned = batch["recorded_pose"].clone()
    turned[0, :, :3, :3] = turned[0, :, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))
    turned[0, :, :3, 3] += 30.0
    elsewhere = batch | {"recorded_pose": turned, "still": batch["still"].clone()}
    elsewhere["still"][1] = False
    assert not stage._known(model, elsewhere)[:2].any()
    assert torch.equal(stage._known(model, elsewhere)[2:], known[2:])
    dreamed = batch | {"is_recorded": torch.tensor([False, True, True, True])}
    assert not stage._pull(model, made, dreamed)[0].any()


def test_without_distribution_matching_only_recordings_are_heeded(store):
    """Teacher and critic, which know nothing here, take no part; each step is the student's and brings it nearer."""
    changes = {"window": 2, "dreams": 0, "recorded_weight": 1.0, "teacher_weight": 0.0, "student_every": 3}
    stage, model = build(store, batch_size=4, **changes)
    for scorer in (stage.teacher, stage.critic):
        scorer.to_latent.bias.data.fill_(float("nan"))
    learns = stage.trainable(model)
    assert {id(p) for p in learns.parameters()} == {id(p) for p in model.transformer.parameters()}
    batch, optimizer = stage.batch(0, 0, 1), torch.optim.Adam(learns.parameters(), lr=1e-3)
    errors = []
    for step in range(10):
        with torch.no_grad():
            made = roll_out(model, batch, window=2).frames.latent[:, -2:]
        errors.append(float((made - model.codec.encode(batch["recorded"].flatten(0, 1)).view_as(made)).square().mean()))
        parts = stage.loss(model, batch, torch.Generator().manual_seed(step))
        assert float(parts["critic"]) == 0 and float(parts["gap"]) == pytest.approx(1.0)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimizer.step()
    assert errors[-1] < 0.9 * errors[0]


def test_nobody_dreamed_of_these_episodes(store):
    stage, _ = build(store)
    dreams = {"frames": torch.arange(6)[None] + len(store.frames), "shown": torch.rand(1, 6, 4, SIZE, SIZE).half()}
    batch, recorded = replace(stage, dreams=dreams).batch(0, 0, 1), stage.batch(0, 0, 1)
    assert all(torch.equal(batch[name], recorded[name]) for name in recorded)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_rolling_rollout_is_the_dream_of_its_engine(store, calls):
    """Six frames after one recorded, the last ones finished while more are taken up that nobody sees."""
    stage, model = build(store, steps_per_frame=2, rollout=6)
    batch = stage.batch(3, 0, 1) | {"num_calls": torch.tensor(calls)}
    clip = roll_out(model, batch, 2, "rolling").frames
    starts = [int(np.flatnonzero((store.pose == pose.numpy()).all((1, 2)))[0]) for pose in batch["pose"][:, 0]]
    engine = RollingEngine(model, len(starts), num_calls=calls, use_fast=False)
    engine.rebuild = reproject_fast
    latents = [engine.open(start_at(store, np.array(starts)), batch["seeds"]).latent]
    controls = [*batch["controls"].unbind(1), *[batch["controls"][:, -1]] * (calls - 1)]
    latents += [engine.step(control, is_realised=True).latent for control in controls][calls - 1 :]
    torch.testing.assert_close(clip.latent.detach(), torch.stack([latents[0], *latents[-4:]], 1), atol=2e-5, rtol=1e-4)


def test_of_a_rolling_rollout_the_call_that_finishes_a_frame_learns(store):
    """Four frames of two calls each, of which the last two are compared: five calls, and the last two learn. A frame's
    gradient is the same whether the one before it learned or not."""
    stage, model = build(store, steps_per_frame=2, rollout=4)
    batch = stage.batch(0, 0, 1) | {"num_calls": torch.tensor(2)}
    learns: list[bool] = []
    handle = model.transformer.blocks[0].register_forward_hook(lambda *_: learns.append(torch.is_grad_enabled()))
    made = roll_out(model, batch, 2, "rolling").frames.latent
    handle.remove()
    assert learns == [False, *[False] * 3, True, True]
    assert made[:, -2:].requires_grad and float(made[:, 0].detach().abs().max()) > 0
    gradients = [
        student_gradient(model, roll_out(model, batch, window, "rolling").frames.latent[:, -1].sin().sum())
        for window in (1, 2)
    ]
    assert any(float(g.abs().max()) > 0 for g in gradients[0] if g is not None)
    for one, other in zip(*gradients, strict=True):  # to rounding: some processors multiply otherwise without gradients
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_on_the_critics_turn_the_same_is_dreamed_without_gradient(store):
    stage, model = build(store)
    batch = stage.batch(0, 0, 1)
    with torch.no_grad():
        fast = roll_out(model, batch, window=2).frames
    plain = roll_out(model, batch, window=2).frames
    assert fast.hands is None and plain.hands is None
    for name in fast._fields[:-1]:
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name).detach(), atol=1e-3, rtol=1e-3, msg=name)


def test_the_critic_is_shown_what_the_student_has_become(store):
    """The optimiser that training uses counts no version of the weights that it writes."""
    stage, model = build(store, student_every=1)
    module = stage.trainable(model)
    optimizers = build_optimizers(module, stage.config)
    with torch.no_grad():
        first = roll_out(model, stage.batch(0, 0, 1), window=2).frames.latent
    set_lr(optimizers, 0.05)
    stage.teacher.to_latent.bias.data += 1.0
    stage.loss(model, stage.batch(0, 0, 1), torch.Generator().manual_seed(0))["loss"].backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        fast = roll_out(model, stage.batch(0, 0, 1), window=2).frames.latent
    plain = roll_out(model, stage.batch(0, 0, 1), window=2).frames.latent.detach()
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=1e-3)
    assert float((fast - first).abs().max()) > 0.1


@pytest.mark.parametrize("num_calls", [1, 2])
def test_exactly_one_call_of_each_frame_of_the_window_learns(store, num_calls):
    stage, model = build(store, steps_per_frame=2)
    batch = stage.batch(0, 0, 1) | {"num_calls": torch.tensor(num_calls)}
    learns: list[bool] = []
    handle = model.transformer.blocks[0].register_forward_hook(lambda *_: learns.append(torch.is_grad_enabled()))
    roll_out(model, batch, window=2)
    handle.remove()
    frame, commit = [False] * (num_calls - 1), False
    untouched, compared = [*frame, False, commit], [*frame, True, commit]
    assert learns == [commit, *untouched, *compared, *compared]


def test_what_is_committed_later_does_not_change_an_earlier_gradient(store):
    """A recomputation that read a cache whose index had moved on would learn from the wrong history."""
    stage, model = build(store, rollout=3, window=3)
    batch = stage.batch(0, 0, 1)
    short = batch | {"controls": batch["controls"][:, :1]}
    gradients = [student_gradient(model, roll_out(model, b, 3).frames.latent[:, 1].sin().sum()) for b in (short, batch)]
    assert any(float(g.abs().max()) > 0 for g in gradients[0] if g is not None)
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_a_frame_has_no_gradient_through_its_history(store):
    """The last frame depends on the one before, and its gradient is the same whether that one learned or not."""
    stage, model = build(store, rollout=2, window=2)
    batch = stage.batch(0, 0, 1)
    gradients = [student_gradient(model, roll_out(model, batch, w).frames.latent[:, -1].sin().sum()) for w in (1, 2)]
    assert all(one is None if other is None else torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_critic_learns_at_every_step_and_the_student_at_its_turns(store):
    stage, model = build(store, student_every=2)
    assert [bool(stage.batch(step, 0, 1)["is_turn"]) for step in range(4)] == [False, True, False, True]
    for step in range(2):
        module = stage.trainable(model)
        module.zero_grad(set_to_none=True)
        parts = stage.loss(model, stage.batch(step, 0, 1), torch.Generator().manual_seed(step))
        parts["loss"].backward()
        for layer in (model.transformer.to_latent, model.transformer.embed_anchor, model.transformer.embed_rays[0]):
            assert (layer.weight.grad is not None) == (step == 1)
        assert stage.critic.to_latent.weight.grad is not None
        assert not any(p.grad is not None for p in stage.teacher.parameters())


def test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone(store):
    stage, model = build(store)
    parts = stage.loss(model, stage.batch(1, 0, 1), torch.Generator().manual_seed(0))
    assert float(parts["gap"]) == 0.0 and float(parts["matching"]) == 0.0


def shown_ahead(engine: WorldEngine, batch: dict[str, Tensor], first: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents and coverage that memory suggests now for the frames after controls number `first` and on."""
    state, camera = engine.state, engine.state.camera
    guess, coverage = [], []
    for control in batch["controls"].unbind(1)[first:]:
        camera = apply_control(camera, control, engine.config.controls.max_pitch)
        recall = state.memory.recall(pose_from_state(camera), state.intrinsics, rebuild=reproject_fast)
        guess.append(engine.model.codec.encode_anchor(recall.anchor).latent)
        coverage.append(token_coverage(recall.anchor.mask, engine.config.codec.grid))
    return guess, coverage


@pytest.mark.parametrize(("sampler", "calls"), [("blockwise", 1), ("rolling", 1), ("rolling", 2)])
def test_a_bidirectional_teacher_is_shown_the_window_as_it_was_known_before(store, sampler, calls):
    """In the clips of a causal one memory shows a later frame of the window what the student dreamed in it."""
    stage, model = build(store, steps_per_frame=2, rollout=6)
    batch = stage.batch(3, 0, 1) | {"num_calls": torch.tensor(calls)}
    causal, both_ways = (roll_out(model, batch, 2, sampler, is_causal=c).frames for c in (True, False))
    engine = open_engine(model, len(batch["seeds"]), sampler=sampler, num_calls=calls, use_fast=False)
    engine.rebuild = reproject_fast
    starts = [int(np.flatnonzero((store.pose == pose.numpy()).all((1, 2)))[0]) for pose in batch["pose"][:, 0]]
    with torch.inference_mode():
        engine.open(start_at(store, np.array(starts)), batch["seeds"])
        for control in batch["controls"].unbind(1)[: 4 + engine.action_latency]:
            engine.step(control, is_realised=True)
        guess, coverage = shown_ahead(engine, batch, 4)
    torch.testing.assert_close(both_ways.anchor[:, -2:], torch.stack(guess, 1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(both_ways.coverage[:, -2:], torch.stack(coverage, 1), atol=1e-6, rtol=0)
    for name in ("latent", "rays", "level"):
        assert torch.equal(getattr(causal, name), getattr(both_ways, name))
    torch.testing.assert_close(causal.anchor[:, :-1], both_ways.anchor[:, :-1], atol=2e-5, rtol=1e-4)
    assert float((causal.anchor[:, -1] - both_ways.anchor[:, -1]).detach().abs().max()) > 1e-3


def test_a_student_learns_from_a_bidirectional_teacher(store):
    stage, model = build(store, student_every=1)
    for scorer in (stage.teacher, stage.critic):
        scorer.config = replace(scorer.config, is_causal=False)
    parts = stage.loss(model, stage.batch(1, 0, 1), torch.Generator().manual_seed(0))
    assert float(parts["gap"]) == 0.0, "a critic that is the teacher agrees with it"
    stage.teacher.to_latent.bias.data += 1.0
    parts = stage.loss(model, stage.batch(1, 0, 1), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    gradient = model.transformer.to_latent.weight.grad
    assert gradient is not None and float(parts["gap"]) > 0 and float(gradient.abs().max()) > 0


def test_a_bidirectional_teacher_refines_so_many_frames_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "load_frames", lambda *_, **__: walk_store())
    model = WorldModel(adapt_model(debug_world().config))
    path, config = (
        str(save_world(model, tmp_path / "teacher", {})),
        override(DEFAULTS["debug"], {"window": 3, "dreams": 0}),
    )
    with pytest.raises(ValueError, match="window is 3; a bidirectional teacher refines 2 frames at once: --set win"):
        distill.build_stage(debug_world().config, config, "rooms", None, path)
    alone = override(DEFAULTS["debug"], {"window": 2, "alone_share": 0.5})
    with pytest.raises(ValueError, match="alone_share is for a causal teacher"):
        distill.build_stage(debug_world().config, alone, "rooms", None, path)
    config = override(config, {"window": 2})
    assert not distill.build_stage(debug_world().config, config, "rooms", None, path).teacher.config.is_causal


def test_ranks_share_the_number_of_calls_and_nothing_else(store):
    stage, _ = build(store, steps_per_frame=4)
    pairs = [(stage.batch(step, 0, 2), stage.batch(step, 1, 2)) for step in range(40)]
    calls = [(int(one["num_calls"]), int(other["num_calls"])) for one, other in pairs]
    assert all(one == other for one, other in calls) and {one for one, _ in calls} == {1, 2, 3, 4}
    assert not torch.equal(pairs[0][0]["seeds"], pairs[0][1]["seeds"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 4}, "rollout is 3; it holds the window of 4 frames"),
        ({"history": 0}, "history is 0; it must be at least 1"),
        ({"dreams": -1}, "dreams is -1; it must be at least 0"),
        ({"dream_frames": 4}, r"dream_frames is 4; openings and rollouts of 1 \+ 3 frames lie within a dream"),
        ({"alone_share": 1.5}, r"alone_share = 1.5 is not allowed: it must be in \[0, 1\]"),
        ({"alone_share": 0.5, "dreams": 0}, "alone_share is of the rollouts that open on dreams: give it some"),
        ({"recorded_weight": -1.0}, "recorded_weight = -1.0 is not allowed: it must be at least 0"),
        ({"known_weight": -1.0}, "known_weight = -1.0 is not allowed: it must be at least 0"),
        ({"teacher_weight": -1.0}, "teacher_weight = -1.0 is not allowed: it must be at least 0"),
        ({"teacher_weight": 0.0, "dreams": 0}, "with teacher_weight = 0 recordings are all there is to learn from"),
        ({"teacher_weight": 0.0, "recorded_weight": 1.0}, "give recorded_weight and dreams = 0"),
        ({"sampler": "sideways"}, "sampler = 'sideways' is not allowed: it must be one of blockwise, rolling"),
        ({"level_shift": 0.5}, "level_shift is 0.5; it must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        override(DEFAULTS["debug"], changes)


def test_the_student_moves_to_a_teacher_that_answers_otherwise(store):
    """The teacher adds a constant to every answer; the critic begins where the student is, and follows it."""
    stage, model = build(store, student_every=1)
    offset = torch.linspace(-1.0, 1.0, stage.teacher.to_latent.bias.numel())
    stage.teacher.to_latent.bias.data += offset
    module = stage.trainable(model)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.0, 0.99))

    def projection() -> float:
        with torch.no_grad():
            made = roll_out(model, stage.batch(100, 0, 1), 2).frames.latent[:, -2:, :, :]
        return float((made @ offset[:-1]).mean() / offset[:-1].norm())

    before = projection()
    for step in range(12):
        parts = stage.loss(model, stage.batch(step, 0, 1), torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimizer.step()
    assert projection() > before + 0.5
