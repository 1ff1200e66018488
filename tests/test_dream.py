"""`worldscape dream` and the engine of teachers: clips follow on each other, a student's frames are its engine's."""

from __future__ import annotations

from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.train.walks import walk_store
from tests.videos import read_video
from worldscape import dream
from worldscape.cli import main
from worldscape.clip_engine import ClipEngine
from worldscape.codec import token_coverage
from worldscape.conditioning.camera import pose_from_state
from worldscape.data.clips import FrameStore
from worldscape.dream import dream_walk
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.engines import open_engine
from worldscape.evaluate.pictures import LABEL_HEIGHT
from worldscape.train.cli import copy_parts
from worldscape.train.rollouts import start_at
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel, debug_world


@pytest.fixture(scope="module")
def store() -> FrameStore:
    return walk_store()


def teach(num_retrieved: int = 0) -> WorldModel:
    student = debug_world()
    memory = replace(student.config.memory, num_retrieved=num_retrieved)
    model = WorldModel(adapt_model(replace(student.config, memory=memory)))
    copy_parts(student, model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher() -> WorldModel:
    return teach()


def opened(model: WorldModel, store: FrameStore, starts: list[int], seeds: list[int], steps: int) -> ClipEngine:
    """An engine on recorded frames that foresees the recorded motion after each."""
    engine = ClipEngine(model, len(starts), steps_per_frame=2)
    engine.open(start_at(store, np.array(starts)), torch.tensor(seeds))
    engine.foresee(motion(store, starts, steps), is_realised=True)
    return engine


def motion(store: FrameStore, starts: list[int], steps: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([store.realised[first + 1 : first + 1 + steps] for first in starts]))


def play(engine: ClipEngine, controls: torch.Tensor) -> torch.Tensor:
    return torch.stack([engine.step(control, is_realised=True).frame for control in controls.unbind(1)], 1)


def test_clips_follow_on_each_other(store, teacher):
    """Five frames are one clip here; a longer walk begins with the same frames, whatever comes after."""
    walk = np.arange(9)
    short, long = (dream_walk(teacher, store, walk[:count], calls=2, seed=3) for count in (5, 9))
    assert np.array_equal(long[0], store.frames[0]) and long.shape == store.frames[:9].shape
    assert np.array_equal(short, long[:5])
    other = dream_walk(teacher, store, walk[:5], calls=2, seed=4)
    assert not any(np.array_equal(one, two) for one, two in zip(short[1:], other[1:], strict=True))


def test_a_clip_costs_its_calls_once(store, teacher):
    """A clip has two new frames."""
    engine = opened(teacher, store, [0], [3], 8)
    calls = [engine.step(control, is_realised=True).model_calls for control in motion(store, [0], 8).unbind(1)]
    assert engine.clip_length == 5 and calls == [2, 0, 2, 0, 2, 0, 2, 0]


def test_a_slot_dreams_the_same_beside_others(store, teacher):
    alone = play(opened(teacher, store, [0], [3], 6), motion(store, [0], 6))
    both = play(opened(teacher, store, [4, 0], [5, 3], 6), motion(store, [4, 0], 6))
    assert (both[1].int() - alone[0].int()).abs().max() <= 1 and not torch.equal(both[0], both[1])


def test_a_clip_holds_sink_last_frames_and_new_ones(store, teacher):
    engine = opened(teacher, store, [0], [3], 8)
    play(engine, motion(store, [0], 5))
    assert engine._plan is not None
    assert len(engine._ready) == 1
    engine._place = 5
    frames, clip = engine._frames, engine._compose(engine._move(engine._plan, 2))
    assert torch.equal(clip.frames.latent[:, :3], torch.cat([frames[place].latent for place in (0, 4, 5)], 1))
    assert not clip.frames.latent[:, 3:].any() and clip.sees is None
    # Of both new frames memory shows what it knows now.
    state, shown = engine.state, []
    for motion_ahead in engine._move(engine._plan, 2):
        recall = state.memory.recall(pose_from_state(motion_ahead.camera), state.intrinsics, rebuild=engine.rebuild)
        shown.append(token_coverage(recall.anchor.mask, engine.config.codec.grid))
    assert torch.equal(clip.frames.coverage[:, 3:], torch.stack(shown, 1)) and float(shown[1].max()) > 0


def test_a_clip_holds_what_memory_retrieves_for_its_last_frame(store):
    """After 12 recorded frames at most two of them join the sink and the last two; an absent one is not seen."""
    engine, index = ClipEngine(teach(2), 1, steps_per_frame=1), np.arange(12)
    parts = store.frames[index], store.depth[index].astype(np.float32), store.pose[index], store.intrinsics[:1]
    frames, depth, pose, intrinsics = (torch.from_numpy(part) for part in parts)
    engine.open(Start(frames[None], depth[None], pose[None], intrinsics), torch.tensor([3]))
    engine.foresee(motion(store, [11], 2), is_realised=True)
    assert engine._plan is not None
    clip, known = engine._compose(engine._move(engine._plan, 2)), torch.cat([f.latent for f in engine._frames], 1)
    assert clip.sees is not None and known.shape[1] == 12
    held = clip.sees[0, -1].tolist()
    assert held[0] and any(held[1:3]) and all(held[3:])
    for place in (1, 2):
        is_known = [torch.equal(clip.frames.latent[:, place], frame) for frame in known[:, 1:10].unbind(1)]
        assert any(is_known) or not held[place]
    assert torch.equal(clip.frames.latent[:, 3:5], known[:, 10:]) and not clip.frames.latent[:, 5:].any()


def test_walls_are_asked_of_what_is_known_when_a_clip_begins(store, teacher):
    """With a head that refuses every walk, controls that are no recorded motion lead nowhere; turns still do."""
    shut = WorldModel(replace(teacher.config, heads=replace(teacher.config.heads, blocked_logit=1e9)))
    shut.load_state_dict(teacher.state_dict())
    engine = ClipEngine(shut, 1, steps_per_frame=1)
    engine.open(start_at(store, np.array([0])), torch.tensor([0]))
    walk = torch.zeros(1, 3, 6)
    walk[0, :, 2], walk[0, :, 4] = 0.25, 0.1
    engine.foresee(walk)
    realised = torch.stack([engine.step(control).realised[0] for control in walk.unbind(1)])
    assert not realised[:, :3].any() and (realised[:, 4].abs() > 0.09).all()


def test_what_was_not_foreseen_is_refused(store, teacher):
    engine, controls = opened(teacher, store, [0], [3], 2), motion(store, [0], 2)
    with pytest.raises(ValueError, match="step 0 is told something else than was foreseen"):
        engine.step(controls[:, 0] + 1.0, is_realised=True)
    with pytest.raises(ValueError, match="step 0 is told something else than was foreseen"):
        engine.step(controls[:, 0], hands=torch.zeros(1, 2, 16), is_realised=True)
    with pytest.raises(ValueError, match="controls hold NaN or infinity"):
        engine.foresee(torch.full((1, 1, 6), torch.inf))
    with pytest.raises(ValueError, match="hands were commanded in an engine that has none"):
        engine.foresee(torch.zeros(1, 1, 6), hands=torch.zeros(1, 1, 2, 13))
    with pytest.raises(ValueError, match=r"call open\(\) first"):
        ClipEngine(teacher, 1).foresee(torch.zeros(1, 1, 6))
    play(engine, controls)
    with pytest.raises(ValueError, match="say with foresee"):
        engine.step(controls[:, 0], is_realised=True)
    with pytest.raises(ValueError, match=r"controls have shape \(2, 1, 6\)"):
        engine.foresee(torch.zeros(2, 1, 6))
    with pytest.raises(ValueError, match="cannot be kept or copied"):
        engine.snapshot()
    with pytest.raises(ValueError, match="leave out rows"):
        engine.open(start_at(store, np.array([0])), torch.tensor([0]), torch.tensor([0]))


def test_each_kind_of_weights_has_its_engine(store, teacher):
    assert type(open_engine(debug_world(), 1)) is WorldEngine and type(open_engine(teacher, 1)) is ClipEngine
    with pytest.raises(ValueError, match="step them in a WorldEngine"):
        ClipEngine(debug_world(), 1)


def test_a_student_is_stepped_along_the_walk(store):
    made = dream_walk(debug_world(), store, np.arange(4), calls=1, seed=3)
    assert np.array_equal(made[0], store.frames[0]) and len(made) == 4
    assert not np.array_equal(made[1], made[2])


def test_the_noise_of_a_dream_may_be_larger(store):
    plain, wild = (dream_walk(debug_world(), store, np.arange(3), 1, 3, temperature) for temperature in (1.0, 3.0))
    assert np.array_equal(plain[0], wild[0]) and not np.array_equal(plain[1], wild[1])


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_dream_is_filmed_beside_its_recording(tmp_path, monkeypatch, store, suffix):
    monkeypatch.setattr(dream, "load_frames", lambda *_, **__: store)
    out, made, asked = tmp_path / f"film.{suffix}", dream.dream_walk, []
    monkeypatch.setattr(dream, "dream_walk", lambda *args: asked.append(args[3]) or made(*args))
    told = ["--weights", "debug", "--data", "rooms", "--frames", "6", "--scale", "1", "--out", str(out)]
    assert main(["dream", *told]) == 0
    film = read_video(out) if suffix == "mp4" else iio.imread(out)
    assert film.shape == (6, 64 + LABEL_HEIGHT, 128, 3)
    recorded = film[:, LABEL_HEIGHT:, :64].astype(float) - store.frames[:6]
    assert np.abs(recorded).mean() < 60, "in 256 colours, or compressed; of other noise it would be 85"
    assert asked == [None], "the engine knows how many calls these weights were trained for"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episode", "1"], "--episode 1 must be one of 1"),
        (["--frames", "1"], "--frames 1 must be at least 2"),
        (["--calls", "0"], "--calls 0 must be at least 1"),
        (["--temperature", "-1"], "temperature is -1.0; give a number of at least 0"),
        (["--fps", "0"], "--fps 0 must be at least 1"),
        (["--scale", "0"], "--scale 0 must be at least 1"),
    ],
)
def test_what_cannot_be_dreamed_is_named(capsys, monkeypatch, store, options, message):
    monkeypatch.setattr(dream, "load_frames", lambda *_, **__: store)
    assert main(["dream", "--weights", "debug", "--data", "rooms", *options]) != 0
    assert message in capsys.readouterr().err
