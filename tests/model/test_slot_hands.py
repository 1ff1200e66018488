"""Hands of the engine's slots: they go where they are told, come along with the eyes, and belong to their slot."""

import math
from dataclasses import replace

import pytest
import torch

from worldscape import handling
from worldscape.conditioning.camera import invert_pose, level_pose, pose_from_state
from worldscape.conditioning.hand_model import HandState, hand_keypoints
from worldscape.conditioning.hands import (
    HANDS,
    LEASH,
    HandScale,
    rotation_from_vector,
    state_from_vector,
    state_to_vector,
)
from worldscape.conditioning.layers import OBJECT
from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame, HandFrame, RecordedHands, Start
from worldscape.hand_heads import ObjectMotion, Things
from worldscape.rolling import RollingEngine
from worldscape.slot_hands import SlotHands, draw_hands, limit_to, mirror_states, resting_hands
from worldscape.snapshot import Snapshot
from worldscape.world import debug_world

SCALE = HandScale()
BOTH = torch.tensor([True, False])


@pytest.fixture(scope="module")
def model():
    return debug_world()


def states(slots: int, seed: int = 0) -> torch.Tensor:
    """[slots, 2, 16] of hands over a table."""
    rng = torch.Generator().manual_seed(seed)
    position = torch.tensor([0.1, -0.15, 0.05]) * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    position = position + 0.02 * torch.randn(slots, 2, 3, generator=rng)
    rotation = rotation_from_vector(0.3 * torch.randn(slots, 2, 3, generator=rng))
    return state_to_vector(HandState(position, rotation, torch.rand(slots, 2, 7, generator=rng)))


def starts(slots: int, hands: torch.Tensor | None = None) -> Start:
    rng = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (slots, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)
    pose = pose_from_state(torch.tensor([0.0, -0.39, -0.27, 0.0, -0.8, 0.0])).expand(slots, 1, 4, 4)
    recorded = None
    if hands is not None:
        recorded = RecordedHands(hands[:, None], hands[:, None], torch.ones(slots, 1, 2, dtype=torch.bool))
    return Start(frames, torch.full((slots, 1, 64, 64), 0.5), pose, hands=recorded)


def actions(slots: int, steps: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(steps, slots, 2, 13, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def hands_of(frame: EngineFrame) -> HandFrame:
    assert frame.hands is not None
    return frame.hands


def same(one, other, rows=slice(None)) -> bool:
    parts = [(one.frame, other.frame), (one.latent, other.latent), *zip(hands_of(one), hands_of(other), strict=True)]
    return all(torch.equal(a[rows], b[rows]) for a, b in parts)


class Finder(torch.nn.Module):
    """Finds the object half a metre ahead and the target beside it; how sure it is of the object can be set."""

    spread = 0.01

    def forward(self, rgbd, keypoints, present, intrinsics):
        ahead = rgbd.new_tensor([0.0, 0.0, 0.5]).expand(len(rgbd), 3)
        spread = rgbd.new_tensor([self.spread, 0.01]).expand(len(rgbd), 2)
        return Things(ahead, ahead + 0.1, spread, rgbd.new_full((len(rgbd), 3), -5.0))


class Mover(torch.nn.Module):
    """Moves every object by a centimetre to the right, whatever hands do, and says that they are lifted."""

    def forward(self, before, after, present, thing, shift, rows=(0, 1)):
        right = shift.new_tensor([0.01, 0.0, 0.0]).expand_as(shift)
        touch = shift.new_tensor([-5.0, -5.0, 5.0]).expand_as(shift)
        return ObjectMotion(right, shift.new_full((len(shift),), 50.0), touch)


@pytest.fixture
def moving_model():
    model = debug_world()
    model.heads.things, model.heads.object = Finder(), Mover()  # pyright: ignore[reportAttributeAccessIssue]
    return model


@pytest.mark.parametrize("kind", [WorldEngine, RollingEngine])
def test_an_object_goes_where_its_head_says(moving_model, kind):
    """A rolling sampler shows it a step later; what is remembered is as far as what is shown."""
    engine = kind(moving_model, 2, steps_per_frame=2, hands="right")
    first = hands_of(engine.open(starts(2), torch.arange(2))).object
    late = engine.action_latency
    for step, action in enumerate(actions(2, 5)):
        frame = hands_of(engine.step(torch.zeros(2, 6), hands=action))
        moved = max(step + 1 - late, 0)
        torch.testing.assert_close(frame.object - first, torch.tensor([[0.01 * moved, 0.0, 0.0]] * 2))
        memory = engine.state.memory
        parts = memory.store.fields.parts[memory.tables.latest]
        torch.testing.assert_close(parts[:, -1, :3, 3], frame.object - first)
        assert (frame.touch[:, 2] > 0.9).all() == (moved > 0)


def test_a_clearer_sight_of_the_object_corrects_where_it_is_and_moves_no_pixels(moving_model):
    engine, still = WorldEngine(moving_model, 1, hands="right"), torch.zeros(1, 6)
    first = hands_of(engine.open(starts(1), torch.tensor([0]))).object
    for _ in range(3):
        engine.step(still)
    moving_model.heads.things.spread = 0.005
    seen = hands_of(engine.step(still)).object
    torch.testing.assert_close(seen, first)
    assert float(engine.state.object_moved[0, 0]) == pytest.approx(0.04)
    moving_model.heads.things.spread = 0.02
    torch.testing.assert_close(hands_of(engine.step(still)).object - first, torch.tensor([[0.01, 0.0, 0.0]]))


def test_an_object_that_nobody_has_seen_well_is_not_moved(moving_model):
    moving_model.heads.things.spread = 0.2
    engine = WorldEngine(moving_model, 1, hands="right")
    first = hands_of(engine.open(starts(1), torch.tensor([0])))
    second = hands_of(engine.step(torch.zeros(1, 6)))
    torch.testing.assert_close(second.object, first.object)
    assert not engine.state.object_moved.any() and not (engine.state.memory.store.fields.owner == OBJECT).any()


@pytest.mark.parametrize("kind", [WorldEngine, RollingEngine])
def test_a_start_that_says_where_things_are_is_believed(moving_model, kind):
    """In the second world it knows the target only, and the object is looked for as ever."""
    moving_model.heads.things.spread = 0.001
    told = torch.tensor([[[0.2, -0.03, 0.1], [0.0, 0.0, 0.3]], [[math.nan] * 3, [0.1, 0.0, 0.2]]])
    engine, start, still = kind(moving_model, 2, steps_per_frame=2, hands="right"), starts(2), torch.zeros(2, 6)
    read = hands_of(engine.open(start, torch.arange(2)))
    first = hands_of(engine.open(replace(start, places=told[:, None]), torch.arange(2)))
    torch.testing.assert_close(first.target, told[:, 1])
    torch.testing.assert_close(first.object, torch.stack([told[0, 0], read.object[1]]))
    for _ in range(4):
        later = hands_of(engine.step(still))
    moved = torch.tensor([0.01 * (4 - engine.action_latency), 0.0, 0.0])
    torch.testing.assert_close(later.object[0], told[0, 0] + moved)
    torch.testing.assert_close(later.target, told[:, 1])


def test_what_a_start_told_is_not_looked_for_and_the_dream_is_the_same(moving_model, monkeypatch):
    looked, finder = [], moving_model.heads.things
    monkeypatch.setattr(finder, "forward", lambda *seen: looked.append(1) or Finder.forward(finder, *seen))
    start = replace(starts(2), places=torch.tensor([[[[0.2, -0.03, 0.1], [0.0, 0.0, 0.3]]]] * 2))
    frames = {}
    for asks in (False, True):
        if asks:
            monkeypatch.setattr(handling, "knows_places", lambda state, hands: False)
        engine = WorldEngine(moving_model, 2, hands="right")
        engine.open(start, torch.arange(2))
        looked.clear()
        frames[asks] = [engine.step(torch.zeros(2, 6), hands=action) for action in actions(2, 4)]
        assert len(looked) == (4 if asks else 0)
    assert all(same(*pair) for pair in zip(frames[False], frames[True], strict=True))


def test_places_of_the_wrong_kind_are_refused(model):
    engine = WorldEngine(model, 1, hands="right")
    for places in (torch.zeros(1, 2, 3), torch.full((1, 1, 2, 3), math.inf)):
        with pytest.raises(ValueError, match="start places have shape .*; give .*: object and target in metres"):
            engine.open(replace(starts(1), places=places), torch.tensor([0]))


def test_without_an_object_head_every_picture_says_where_the_object_is(moving_model):
    moving_model.heads.object = None
    engine = WorldEngine(moving_model, 1, hands="right")
    engine.open(starts(1), torch.tensor([0]))
    moving_model.heads.things.spread = 0.3
    pose = engine.step(torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.0, 0.0]]), is_realised=True).pose
    expected = (pose[0] @ torch.tensor([0.0, 0.0, 0.5, 1.0]))[None, :3]
    torch.testing.assert_close(engine.state.places[:, 0], expected)


@pytest.mark.parametrize("num_retrieved", [0, 2])
def test_a_fast_dream_of_hands_is_the_plain_dream_to_rounding(model, num_retrieved):
    """Slot 2 has no hand in its start; slot 1 stands still once."""
    memory = replace(model.config.memory, num_retrieved=num_retrieved)
    start = starts(3, states(3))
    assert start.hands is not None
    start.hands.present[2] = False
    engines = [
        WorldEngine(model, 3, steps_per_frame=2, use_fast=fast, hands="both", memory=memory) for fast in (True, False)
    ]
    for engine in engines:
        engine.open(start, torch.arange(3))
    for step, action in enumerate(actions(3, 7)):
        active = torch.tensor([True, step != 3, True])
        fast, plain = (engine.step(torch.zeros(3, 6), active, hands=action) for engine in engines)
        torch.testing.assert_close(fast.latent, plain.latent, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(hands_of(fast).keypoints, hands_of(plain).keypoints, atol=1e-4, rtol=1e-3)
        assert int((fast.frame.int() - plain.frame.int()).abs().max()) <= 1


def test_commands_move_the_hand_and_the_picture(model):
    one, other = (WorldEngine(model, 1, hands="right") for _ in range(2))
    for engine in (one, other):
        opened = engine.open(starts(1, states(1)), torch.tensor([0]))
    assert hands_of(opened).keypoints.abs().max() < 1.0
    still, moved = torch.zeros(1, 2, 13), torch.zeros(1, 2, 13)
    moved[:, 1, 0] = 1.0
    a, b = one.step(torch.zeros(1, 6), hands=still), other.step(torch.zeros(1, 6), hands=moved)
    wrist = (hands_of(b).keypoints - hands_of(a).keypoints)[0, 1, 0]
    assert float(wrist[0]) == pytest.approx(SCALE.move, abs=0.015) and not torch.equal(a.frame, b.frame)
    assert torch.equal(hands_of(a).keypoints[0, 0], hands_of(b).keypoints[0, 0])


def test_a_wrist_that_is_held_back_keeps_its_command_on_a_leash():
    hands = resting_hands(1, (1,), torch.zeros(()))
    action = torch.zeros(1, 2, 13)
    action[..., 2] = 1.0
    lag = torch.zeros(1, 2, 6)
    lag[..., 2] = -1.0  # as far back as the step goes ahead: the wrist does not move
    for _ in range(5):
        hands = hands.moved(hands.told(action, SCALE), lag, SCALE)
        ahead = (hands.command - hands.state)[0, 1, :3]
        assert float(ahead.norm()) == pytest.approx(LEASH, abs=1e-6)
    assert float(hands.state[0, 1, 2]) < 0.15 + 5 * SCALE.move - 0.02


def test_free_hands_are_the_kinematic_hand():
    hands = resting_hands(2, (0, 1), torch.zeros(()))
    action = actions(2, 1)[0]
    goal = hands.told(action, SCALE)
    moved = hands.moved(goal, torch.zeros(2, 2, 6), SCALE)
    torch.testing.assert_close(moved.state, goal)
    torch.testing.assert_close(moved.command, goal)


def test_hands_come_along_when_the_eyes_turn_and_walk(model):
    engine = WorldEngine(model, 1, hands="both")
    before = hands_of(engine.open(starts(1, states(1)), torch.tensor([0])))
    move = torch.tensor([[0.1, 0.0, 0.2, 0.5, 0.0, 0.0]])
    frame = engine.step(move, is_realised=True)
    sin, cos = math.sin(0.5), math.cos(0.5)
    turn = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    eyes = torch.tensor([0.0, -0.39, -0.27])
    expected = (before.keypoints - eyes) @ turn.T + frame.camera[:, :3]
    torch.testing.assert_close(hands_of(frame).keypoints, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(hands_of(frame).state, before.state)


def test_recorded_hands_are_where_the_recording_has_them(model):
    engine, reached = WorldEngine(model, 2, hands="both"), states(2, seed=3)
    engine.open(starts(2, states(2)), torch.arange(2))
    frame = engine.step(torch.tensor([[0.1, 0, 0, 0.3, 0, 0]] * 2), hands=reached, is_realised=True)
    expected = hand_keypoints(state_from_vector(reached), BOTH.expand(2, 2))
    torch.testing.assert_close(hands_of(frame).keypoints, expected, atol=1e-5, rtol=1e-5)


def test_a_start_without_hands_shows_them_in_front_of_the_eyes(model):
    frame = WorldEngine(model, 1, hands="both").open(starts(1), torch.tensor([0]))
    assert hands_of(frame).present.all()
    start = starts(1)
    start.pose = torch.eye(4).expand(1, 1, 4, 4)
    engine = WorldEngine(model, 1, hands="right")
    frame = engine.open(start, torch.tensor([0]))
    assert hands_of(frame).present.tolist() == [[False, True]]
    hands = engine.state.hands
    limbs = hands.limbs(hands.workspace(frame.pose), HANDS["right"])
    torch.testing.assert_close(limbs.keypoints, hands_of(frame).keypoints)
    picture = draw_hands(limbs, frame.pose, engine.state.intrinsics, 64)
    assert int((picture[0, :3].amax(0) > 0.3).sum()) > 30


def test_drawing_one_hand_is_drawing_both_with_the_other_absent():
    pose = pose_from_state(torch.tensor([[0.0, -0.39, -0.27, 0.1, -0.8, 0.0]] * 2))
    hands = SlotHands.absent(2, torch.zeros(())).placed(states(2), states(2), torch.tensor([[False, True]] * 2), pose)
    intrinsics = torch.tensor([[1.0, 1.0, 0.5, 0.5]] * 2)
    one, both = (
        draw_hands(hands.limbs(hands.workspace(pose), HANDS[which]), pose, intrinsics, 32)
        for which in ("right", "both")
    )
    torch.testing.assert_close(one, both, atol=1e-6, rtol=1e-5)
    assert one.shape == (2, 4, 32, 32) and 0 < float(one[:, 3].max()) <= 1


def test_slots_are_independent(model):
    """Slot 1 of three dreams what it dreams alone, up to the order of sums."""
    three, alone = WorldEngine(model, 3, hands="both"), WorldEngine(model, 1, hands="both")
    start = starts(3, states(3))
    assert start.depth is not None and start.pose is not None and start.hands is not None
    three.open(start, torch.arange(3))
    hands = RecordedHands(*(part[1:2] for part in start.hands))
    one = Start(start.frames[1:2], start.depth[1:2], start.pose[1:2], hands=hands)
    alone.open(one, torch.tensor([1]))
    for action in actions(3, 4):
        ours, single = three.step(torch.zeros(3, 6), hands=action), alone.step(torch.zeros(1, 6), hands=action[1:2])
        torch.testing.assert_close(ours.latent[1:2], single.latent, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(hands_of(ours).keypoints[1:2], hands_of(single).keypoints, atol=1e-4, rtol=1e-3)


def test_snapshots_restores_and_forks_carry_the_hands(model):
    engine, still = WorldEngine(model, 2, hands="both"), torch.zeros(2, 6)
    engine.open(starts(2, states(2)), torch.arange(2))
    for action in actions(2, 3):
        engine.step(still, hands=action)
    saved, future = engine.snapshot(), actions(2, 4, seed=5)
    first = [engine.step(still, hands=action) for action in future]
    engine.restore(Snapshot.from_bytes(saved.to_bytes()))
    assert all(same(engine.step(still, hands=action), frame) for action, frame in zip(future, first, strict=True))
    engine.restore(saved)
    copied = engine.fork(0, torch.tensor([1]))
    assert all(torch.equal(part[0], part[1]) for part in hands_of(copied))
    twin = engine.step(still, hands=future[0][:1].expand(2, -1, -1))
    torch.testing.assert_close(hands_of(twin).keypoints[0], hands_of(twin).keypoints[1], atol=1e-5, rtol=1e-5)


def test_reset_rows_leave_the_other_hands_alone(model):
    engine, still = WorldEngine(model, 2, hands="both"), torch.zeros(2, 6)
    engine.open(starts(2, states(2)), torch.arange(2))
    before = engine.step(still, hands=actions(2, 1)[0])
    after = engine.open(starts(1, states(1, seed=9)), torch.tensor([7]), torch.tensor([1]))
    assert same(before, after, rows=slice(0, 1))
    torch.testing.assert_close(hands_of(after).state[1], states(1, seed=9)[0])


@pytest.mark.parametrize("camera", [torch.zeros(6), torch.tensor([2.0, -0.5, 1.0, 0.7, -0.4, 0.1])])
def test_a_missing_hand_is_the_mirror_image_of_the_other_as_the_eyes_see_it(camera):
    pose = pose_from_state(camera).expand(2, 4, 4)
    recorded, present = states(2), torch.tensor([[False, True], [False, False]])
    state, wanted = limit_to(HANDS["both"], recorded, present, pose)
    assert wanted.tolist() == [[True, True], [False, False]]
    assert torch.equal(state[0, 1], recorded[0, 1])
    to_eyes = invert_pose(level_pose(pose[0]))
    keypoints = hand_keypoints(state_from_vector(state[0]), BOTH)
    left, right = keypoints @ to_eyes[:3, :3].T + to_eyes[:3, 3]
    torch.testing.assert_close(left, right * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-5, rtol=1e-5)
    eyes = level_pose(pose)[:, None]
    torch.testing.assert_close(mirror_states(mirror_states(recorded, eyes), eyes), recorded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("hands", "message"),
    [
        (torch.zeros(1, 13), r"give \[1, 2, 13\]"),
        (torch.full((1, 2, 13), torch.nan), "NaN or infinity"),
    ],
)
def test_bad_hands_are_refused(model, hands, message):
    engine = WorldEngine(model, 1, hands="right")
    engine.open(starts(1), torch.tensor([0]))
    with pytest.raises(ValueError, match=message):
        engine.step(torch.zeros(1, 6), hands=hands)


def test_an_engine_without_hands_refuses_them(model):
    engine = WorldEngine(model, 1)
    with pytest.raises(ValueError, match="this engine has none"):
        engine.open(starts(1, states(1)), torch.tensor([0]))
    assert engine.open(starts(1), torch.tensor([0])).hands is None
    with pytest.raises(ValueError, match="make it with hands="):
        engine.step(torch.zeros(1, 6), hands=torch.zeros(1, 2, 13))
    with pytest.raises(ValueError, match="choose one of left, right, both"):
        WorldEngine(model, 1, hands="third")
    bad = starts(1, states(1))
    assert bad.hands is not None
    bad.hands = bad.hands._replace(state=bad.hands.state * torch.nan)
    with pytest.raises(ValueError, match="start hands"):
        WorldEngine(model, 1, hands="right").open(bad, torch.tensor([0]))


def test_what_a_walker_is_paid_for_is_looked_for_when_somebody_asks(model, monkeypatch):
    """Hands are paid by other heads; a walker's events are known with the frame."""
    asked = []
    heads = model.heads
    monkeypatch.setattr(heads, "happens", lambda rgbd: asked.append(rgbd) or type(heads).happens(heads, rgbd))
    engine = WorldEngine(model, 2, hands="right")
    engine.open(starts(2), torch.tensor([0, 1]))
    frame = engine.step(torch.zeros(2, 6), hands=actions(2, 1)[0])
    assert not asked
    reward, end = frame.reward, frame.end
    assert len(asked) == 1
    torch.testing.assert_close(torch.stack([reward, end], 1), torch.stack(heads.events(frame.rgbd), 1).sigmoid())
    walker = WorldEngine(model, 2)
    walker.open(starts(2), torch.tensor([0, 1]))
    shown = walker.step(torch.zeros(2, 6))
    count = len(asked)
    torch.testing.assert_close(shown.reward, heads.events(shown.rgbd).reward.sigmoid())
    assert len(asked) == count
