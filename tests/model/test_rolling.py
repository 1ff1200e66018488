"""The rolling sampler: one call a step, actions show later, and what it makes is what the frames' levels promise."""

from __future__ import annotations

import pytest
import torch

from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame, HandFrame, Start
from worldscape.engines import open_engine
from worldscape.rolling import RollingEngine
from worldscape.world import debug_world


def starts(number: int, seed: int = 0) -> Start:
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (number, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)
    return Start(frames, torch.full((number, 1, 64, 64), 3.0), torch.eye(4).repeat(number, 1, 1, 1))


def walk(number: int, steps: int = 12, seed: int = 5) -> torch.Tensor:
    """Turns and short walks, [steps, number, 6]."""
    rng = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(steps, number, 6, generator=rng)


def opened(number: int, calls: int, kind: type[WorldEngine] = RollingEngine, **options) -> WorldEngine:
    engine = kind(debug_world(), number, steps_per_frame=calls, **options)
    engine.open(starts(number), torch.arange(number))
    return engine


def dream(engine, controls: torch.Tensor) -> list:
    return [engine.step(control, is_realised=True) for control in controls]


def test_with_one_frame_in_flight_the_first_frames_are_those_of_the_other_sampler():
    """As long as no window slides, a frame taken in by the next call sees what it sees in a call of its own."""
    rolling, blockwise = opened(2, 1, use_fast=False), opened(2, 1, WorldEngine, use_fast=False)
    memory = rolling.config.memory
    steps = memory.num_sink + memory.local_window
    for one, other in zip(dream(rolling, walk(2, steps)), dream(blockwise, walk(2, steps)), strict=True):
        torch.testing.assert_close(one.latent, other.latent, atol=1e-4, rtol=1e-4)
        assert (one.model_calls, other.model_calls) == (1, 2)


def test_the_first_frame_is_refined_as_often_as_asked():
    """Nothing but the start comes before it, so its two calls, a step apart, are those of the other sampler."""
    rolling, blockwise = opened(2, 2, use_fast=False), opened(2, 2, WorldEngine, use_fast=False)
    controls = walk(2, 2)
    late, first = dream(rolling, controls)[1], dream(blockwise, controls)[0]
    torch.testing.assert_close(late.latent, first.latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(late.camera, first.camera)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_actions_show_as_much_later_as_it_says(calls):
    """The start is shown until the first action's frame is finished; then one frame after another, each with the
    camera and the control of its own action."""
    rolling, blockwise = opened(2, calls), opened(2, 1, WorldEngine)
    controls = walk(2)
    shown, now = dream(rolling, controls), dream(blockwise, controls)
    assert rolling.action_latency == calls - 1 and blockwise.action_latency == 0
    for step in range(calls - 1):
        assert torch.equal(shown[step].frame, starts(2).frames[:, 0]) and not shown[step].commanded.any()
        assert shown[step].steps.tolist() == [0, 0] and shown[step].model_calls == 1
    for late, first, control in zip(shown[calls - 1 :], now, controls, strict=False):
        torch.testing.assert_close(late.camera, first.camera)
        torch.testing.assert_close(late.commanded, control)
        torch.testing.assert_close(late.realised, first.realised)
    assert shown[-1].steps.tolist() == [len(controls) - calls + 1] * 2


@pytest.mark.parametrize("hands", [None, "right"])
def test_a_fast_dream_is_the_plain_dream_to_rounding(hands):
    fast, plain = (opened(3, 2, use_fast=fast, hands=hands) for fast in (True, False))
    plain.rebuild = fast.rebuild  # where rounding decides what is nearer, random weights make much of one pixel
    rng = torch.Generator().manual_seed(3)
    for step, control in enumerate(walk(3, 9)):
        active = torch.tensor([True, step != 4, True])
        moved = None if hands is None else 0.5 * torch.randn(3, 2, 13, generator=rng)
        one, other = (engine.step(control, active, hands=moved) for engine in (fast, plain))
        torch.testing.assert_close(one.latent, other.latent, atol=2e-3, rtol=1e-2)


def test_a_slot_dreams_the_same_beside_others():
    alone, beside = RollingEngine(debug_world(), 1, steps_per_frame=2), opened(3, 2)
    start = starts(3)
    assert start.depth is not None and start.pose is not None
    alone.open(Start(start.frames[1:2], start.depth[1:2], start.pose[1:2]), torch.tensor([1]))
    controls = walk(3)
    for one, many in zip(dream(alone, controls[:, 1:2]), dream(beside, controls), strict=True):
        assert int((one.frame[0].int() - many.frame[1].int()).abs().max()) <= 1


def test_who_stands_still_keeps_what_is_in_flight():
    """A slot that waits for two steps shows afterwards what one shows that never waited."""
    waits, goes = opened(2, 3), opened(2, 3)
    controls = walk(2, 8)
    expected = dream(goes, controls)
    for control in controls[:4]:
        waits.step(control, is_realised=True)
    before = waits.state.rgbd[1].clone()
    for control in walk(2, 2, seed=9):
        waits.step(control, torch.tensor([True, False]), is_realised=True)
    assert torch.equal(waits.state.rgbd[1], before)
    for control, frame in zip(controls[4:], expected[4:], strict=True):
        found = waits.step(control, is_realised=True)
        assert int((found.frame[1].int() - frame.frame[1].int()).abs().max()) <= 1
    waits.state.memory.check()


def test_reopening_a_slot_leaves_the_others_and_empties_its_flight():
    one, other = opened(3, 2), opened(3, 2)
    controls = walk(3)
    for control in controls[:5]:
        one.step(control, is_realised=True)
        other.step(control, is_realised=True)
    fresh = starts(1, seed=7)
    one.open(fresh, torch.tensor([9]), torch.tensor([1]))
    for number, control in enumerate(controls[5:]):
        found, expected = (engine.step(control, is_realised=True) for engine in (one, other))
        for slot in (0, 2):
            assert int((found.frame[slot].int() - expected.frame[slot].int()).abs().max()) <= 1
        assert torch.equal(found.frame[1], fresh.frames[0, 0]) == (number == 0)


def test_forks_and_snapshots_take_along_what_is_in_flight():
    """A copy goes on as its original; copies that part do not change what the original dreams, although they share
    the page whose keys and values are still to be made."""
    plain, forked, restored = (opened(3, 3) for _ in range(3))
    controls = walk(3, 10)
    for engine in (plain, forked, restored):
        dream(engine, controls[:5])
    forked.fork(0, torch.tensor([2]))
    kept = restored.snapshot()
    dream(restored, controls[5:7])
    restored.restore(kept)
    for control in controls[5:]:
        parted = control.clone()
        parted[2, 3:] += 0.3
        expected, copied, again = plain.step(control), forked.step(parted), restored.step(control)
        assert int((copied.frame[0].int() - expected.frame[0].int()).abs().max()) <= 1
        assert int((again.frame.int() - expected.frame.int()).abs().max()) <= 1
    assert int((copied.frame[2].int() - copied.frame[0].int()).abs().max()) > 1
    forked.state.memory.check()
    with pytest.raises(ValueError, match="other sampler than this engine has"):
        opened(3, 2).restore(kept)


def hands_of(frame: EngineFrame) -> HandFrame:
    assert frame.hands is not None
    return frame.hands


def test_hands_are_shown_as_late_as_the_camera():
    rolling, blockwise = opened(1, 2, hands="right"), opened(1, 1, WorldEngine, hands="right")
    rng = torch.Generator().manual_seed(3)
    moves = 0.5 * torch.randn(6, 1, 2, 13, generator=rng)
    nothing = torch.zeros(1, 6)
    late, now = ([hands_of(engine.step(nothing, hands=move)) for move in moves] for engine in (rolling, blockwise))
    before = hands_of(rolling.open(starts(1), torch.tensor([0])))
    torch.testing.assert_close(late[0].command, before.command)
    torch.testing.assert_close(late[1].command[..., 9:], now[0].command[..., 9:])
    assert not torch.allclose(late[1].keypoints, late[2].keypoints)


def test_more_frames_than_the_window_holds_are_refused():
    window = debug_world().config.memory.local_window
    with pytest.raises(ValueError, match=f"local window has {window} places"):
        RollingEngine(debug_world(), 1, steps_per_frame=window + 1)
    with pytest.raises(ValueError, match="sampler='sideways' is unknown; choose one of blockwise, rolling"):
        open_engine(debug_world(), 1, sampler="sideways")
