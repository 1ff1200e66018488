"""Hands: fixed bones, joint limits, actions that do what their table says, and conversions that undo each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldscape.conditioning.hand_model import (
    ADROIT,
    BONES,
    FINGERTIPS,
    KEYPOINT_NAMES,
    MANO_ORDER,
    HandState,
    bone_lengths,
    hand_keypoints,
    joint_angles,
    keypoints_in_hand,
)
from worldscape.conditioning.hand_poses import (
    egodex_from_states,
    keypoints_from_action,
    state_from_keypoints,
    states_from_egodex,
)
from worldscape.conditioning.hands import (
    HAND_ACTION,
    HandScale,
    action_between,
    apply_hand_action,
    check_hand_actions,
    limit_hand,
    rotation_from_vector,
    state_from_vector,
    state_to_vector,
    vector_from_rotation,
)

SCALE = HandScale()


def random_states(*shape: int, seed: int = 0) -> HandState:
    """States well inside the limits."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda width: torch.rand(*shape, width, generator=generator)  # noqa: E731
    position = torch.tensor([-0.1, -0.25, -0.1]) + 0.2 * draw(3)
    return HandState(position, rotation_from_vector(1.4 * (draw(3) - 0.5)), 0.1 + 0.8 * draw(7))


def neutral() -> HandState:
    return HandState(torch.tensor([0.0, -0.2, 0.0]), torch.eye(3), torch.full((7,), 0.5))


def rotate(points: torch.Tensor, axis: int, degrees: float) -> torch.Tensor:
    vector = torch.zeros(3)
    vector[axis] = math.radians(degrees)
    return points @ rotation_from_vector(vector).T


def test_a_flat_right_hand_lies_palm_down_with_its_thumb_on_the_left():
    points = dict(zip(KEYPOINT_NAMES, keypoints_in_hand(torch.zeros(7)), strict=True))
    assert points["wrist"].tolist() == [0, 0, 0]
    assert points["thumb_tip"][0] < points["index_tip"][0] < points["middle_tip"][0] < points["little_tip"][0]
    assert points["middle_tip"][2] == pytest.approx(0.133 + 0.045 + 0.025 + 0.026, abs=0.002)
    curled = dict(zip(KEYPOINT_NAMES, keypoints_in_hand(torch.tensor([0, 1, 1, 1, 1, 0, 0.0])), strict=True))
    assert all(curled[f"{name}_tip"][1] > 0.02 for name in ("index", "middle", "ring", "little"))


def test_bones_keep_their_lengths():
    lengths = bone_lengths(hand_keypoints(random_states(200)))
    assert (lengths - lengths[:1]).abs().max() < 1e-6
    expected = torch.tensor(ADROIT.lengths).flatten()
    np.testing.assert_allclose(lengths[0].reshape(5, 4)[:, 1:].flatten(), expected, atol=1e-6)


def test_joints_keep_their_limits_even_for_numbers_beyond_the_range():
    generator = torch.Generator().manual_seed(1)
    angles = joint_angles(4 * torch.rand(500, 7, generator=generator) - 1.5)
    low, high = torch.tensor(ADROIT.limits).unbind(-1)
    assert (angles >= low).all() and (angles <= high).all()
    assert angles[..., 1:, 1].amax() > 1.4


def test_a_left_hand_mirrors_a_right_one():
    state = neutral()
    right, left = (hand_keypoints(state, torch.tensor(side)) for side in (False, True))
    np.testing.assert_allclose(left, right * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-7)


def test_a_scaled_hand_is_the_same_hand_larger():
    fingers = random_states(5).fingers
    np.testing.assert_allclose(
        keypoints_in_hand(fingers, ADROIT.scaled(1.2)), 1.2 * keypoints_in_hand(fingers), atol=1e-6
    )


def test_keypoints_are_differentiable_in_the_whole_state():
    state = HandState(*(part.double().requires_grad_() for part in random_states(2)))
    assert torch.autograd.gradcheck(lambda *parts: hand_keypoints(HandState(*parts)), tuple(state))


def test_the_order_of_mano_starts_with_the_wrist_and_ends_with_the_tips():
    names = [KEYPOINT_NAMES[index] for index in MANO_ORDER]
    assert names[:5] == ["wrist", "index_mcp", "index_pip", "index_dip", "middle_mcp"]
    assert names[13:] == ["thumb_cmc", "thumb_mcp", "thumb_ip"] + [KEYPOINT_NAMES[tip] for tip in FINGERTIPS]
    assert sorted(MANO_ORDER) == list(range(21)) and len(BONES) == 20


@pytest.mark.parametrize(
    ("number", "axis", "amount"), [(0, 0, 0.03), (1, 1, 0.03), (2, 2, 0.03)], ids=["right", "down", "forward"]
)
def test_translations_are_along_the_world_axes(number, axis, amount):
    action = torch.zeros(13)
    action[number] = 1.0
    turned = neutral()._replace(rotation=rotation_from_vector(torch.tensor([0.3, -0.4, 0.5])))
    moved = apply_hand_action(turned, action, SCALE)
    expected = turned.position.clone()
    expected[axis] += amount
    np.testing.assert_allclose(moved.position, expected, atol=1e-7)
    assert torch.equal(moved.fingers, turned.fingers)
    np.testing.assert_allclose(moved.rotation, turned.rotation, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turns_are_about_the_world_axes_through_the_wrist(axis):
    action = torch.zeros(13)
    action[3 + axis] = 1.0
    before, after = neutral(), apply_hand_action(neutral(), action, SCALE)
    expected = rotate(hand_keypoints(before) - before.position, axis, math.degrees(SCALE.turn)) + before.position
    np.testing.assert_allclose(hand_keypoints(after), expected, atol=1e-6)


@pytest.mark.parametrize("number", range(7))
def test_each_finger_number_moves_what_its_name_says(number):
    action = torch.zeros(13)
    action[6 + number] = 1.0
    moved = hand_keypoints(apply_hand_action(neutral(), action, SCALE)) - hand_keypoints(neutral())
    fingers = {0: {0}, 1: {1}, 2: {2}, 3: {3}, 4: {4}, 5: {0}, 6: {1, 3, 4}}[number]
    for finger in range(5):
        distance = moved[4 * finger + 4].norm()
        assert distance > 0.0005 if finger in fingers else distance == 0.0, HAND_ACTION[6 + number]


def test_limits_hold_however_long_the_hand_is_driven():
    state, action = neutral(), torch.ones(13)
    for _ in range(60):
        state = apply_hand_action(state, action, SCALE)
    np.testing.assert_allclose(state.position, torch.tensor(SCALE.high), atol=1e-7)
    assert vector_from_rotation(state.rotation).norm() < SCALE.max_tilt + 1e-4
    assert state.fingers.max() == 1.0
    np.testing.assert_allclose(state.rotation @ state.rotation.mT, torch.eye(3), atol=1e-4)


def test_a_state_inside_the_limits_is_left_alone():
    states = random_states(50)
    for before, after in zip(states, limit_hand(states, SCALE), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_delta_and_absolute_agree():
    """The step towards a goal within reach arrives there; one out of reach goes straight towards it."""
    states = random_states(30)
    actions = 1.6 * torch.rand(30, 13, generator=torch.Generator().manual_seed(3)) - 0.8
    goals = apply_hand_action(states, actions, SCALE)
    recovered = action_between(states, goals, SCALE)
    arrived = apply_hand_action(states, recovered, SCALE)
    np.testing.assert_allclose(hand_keypoints(arrived), hand_keypoints(goals), atol=1e-5)
    far = neutral()._replace(position=torch.tensor([0.2, -0.15, 0.1]))
    step = action_between(neutral(), far, SCALE)
    np.testing.assert_allclose(step[:3], [1.0, 0.25, 0.5], atol=1e-5)


def test_applying_an_action_is_differentiable_at_rest():
    action = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    state = HandState(*(part.double() for part in neutral()))
    assert torch.autograd.gradcheck(lambda a: tuple(apply_hand_action(state, a, SCALE)), (action,))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3))
def test_rotation_vectors_are_undone(vector):
    vector = torch.tensor(vector, dtype=torch.float64)
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-6)


def test_vectors_hold_the_whole_state():
    states = random_states(4, 2)
    for before, after in zip(states, state_from_vector(state_to_vector(states)), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_states_are_found_again_from_21_keypoints():
    """For both hands, and for a hand of another size."""
    states, is_left = random_states(40, seed=5), torch.arange(40) % 2 == 0
    for factor in (1.0, 0.85):
        keypoints = hand_keypoints(states, is_left, ADROIT.scaled(factor))
        found = state_from_keypoints(keypoints, is_left)
        for before, after in zip(states, found, strict=True):
            np.testing.assert_allclose(after, before, atol=5e-3)


def test_a_keypoint_action_is_reached_like_a_delta_one():
    goal = random_states(seed=6)
    action = hand_keypoints(goal).flatten()
    state = neutral()
    for _ in range(12):
        target = state_from_keypoints(keypoints_from_action(action))
        state = apply_hand_action(state, action_between(state, target, SCALE), SCALE)
    assert (hand_keypoints(state) - hand_keypoints(goal)).norm(dim=-1).max() < 0.002


def test_egodex_numbers_are_undone():
    states = random_states(20, 2, seed=7)
    numbers = egodex_from_states(states)
    assert numbers.shape == (20, 48)
    left_wrist, right_tip = numbers[:, :3], numbers[:, 45:48]
    np.testing.assert_allclose(left_wrist, states.position[:, 0], atol=1e-7)
    np.testing.assert_allclose(right_tip, hand_keypoints(states)[:, 1, 20], atol=1e-6)
    found = states_from_egodex(numbers)
    is_left = torch.tensor([True, False]).expand(20, 2)
    miss = (hand_keypoints(found, is_left) - hand_keypoints(states, is_left)).norm(dim=-1)
    assert miss.mean() < 0.0005 and miss.max() < 0.005


@pytest.mark.parametrize(
    ("actions", "hands", "message"),
    [
        (np.zeros(12), 1, r"shape \(12,\); 1 hand\(s\) take 13 numbers"),
        (np.zeros(13), 2, r"2 hand\(s\) take 26 numbers"),
        (np.full(13, np.nan), 1, "holds nan"),
        (np.full((2, 13), -np.inf), 1, "holds -inf"),
        (np.zeros(13, bool), 1, "type bool is not made of numbers"),
    ],
)
def test_malformed_actions_are_refused(actions, hands, message):
    with pytest.raises(ValueError, match=message):
        check_hand_actions(actions, hands)


def test_actions_are_split_by_hand_and_clipped():
    split = check_hand_actions(np.arange(26) / 10 - 1, 2)
    assert split.shape == (2, 13) and split.dtype == np.float32
    assert split[0, 0] == -1.0 and split[1, 0] == pytest.approx(0.3) and split[1, 12] == 1.0


@pytest.mark.parametrize(
    "settings",
    [{"move": 0.0}, {"turn": math.nan}, {"max_tilt": 3.1}, {"low": (0.3, 0, 0)}],
)
def test_bad_scales_are_refused(settings):
    with pytest.raises(ValueError, match="HandScale"):
        HandScale(**settings)


@pytest.mark.parametrize(
    ("convert", "value"),
    [
        (keypoints_from_action, torch.zeros(62)),
        (states_from_egodex, torch.zeros(24)),
        (states_from_egodex, torch.full((48,), torch.nan)),
        (state_from_keypoints, torch.zeros(25, 3)),
    ],
)
def test_malformed_poses_are_refused(convert, value):
    with pytest.raises(ValueError, match="shape|finite"):
        convert(value)
