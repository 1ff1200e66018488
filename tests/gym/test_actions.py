"""Action spaces and the controls they stand for."""

import math

import numpy as np
import pytest
import torch

from worldscape.conditioning.controls import DISCRETE_ACTIONS, ControlScale, discrete_controls
from ws_gym.actions import ACTION_MODES, make_action_mode

YAW, PITCH = math.radians(15), math.radians(10)
ALL = np.ones(1, dtype=bool)


def control(mode: str, action) -> np.ndarray:
    return make_action_mode(mode).to_controls(np.asarray(action)[None], ALL)[0]


def test_discrete_actions_are_the_table_of_the_world_model():
    mode = make_action_mode("discrete")
    controls = mode.to_controls(np.arange(9), np.ones(9, dtype=bool))
    np.testing.assert_array_equal(controls, discrete_controls(ControlScale()))


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
        ([1, 0, 0, 0], [0, 0, 0.25, 0, 0, 0]),
        ([2, 0, 0, 0], [0, 0, -0.25, 0, 0, 0]),
        ([0, 1, 0, 0], [0.25, 0, 0, 0, 0, 0]),
        ([0, 2, 1, 0], [-0.25, 0, 0, YAW, 0, 0]),
        ([0, 0, 2, 1], [0, 0, 0, -YAW, PITCH, 0]),
        ([1, 0, 0, 2], [0, 0, 0.25, 0, -PITCH, 0]),
    ],
)
def test_combined_keys_add_up(action, expected):
    np.testing.assert_allclose(control("multi_discrete", action), expected, atol=1e-7)


@pytest.mark.parametrize("mode", ["multi_discrete", "continuous"])
def test_two_walking_keys_walk_diagonally_and_not_faster(mode):
    diagonal = 0.25 / math.sqrt(2)
    np.testing.assert_allclose(control(mode, [1, 1, 0, 0])[:3], [diagonal, 0, diagonal], atol=1e-7)


def test_single_keys_are_the_same_control_in_every_mode():
    keys = {mode: make_action_mode(mode).keys_to_action() for mode in ACTION_MODES}
    for pressed, number in keys["discrete"].items():
        for mode in ("multi_discrete", "continuous"):
            np.testing.assert_array_equal(control(mode, keys[mode][pressed]), control("discrete", number))


def test_continuous_camera_scales_with_the_action():
    np.testing.assert_allclose(control("continuous", [0.5, 0, -0.5, 1]), [0, 0, 0.125, -YAW / 2, PITCH, 0], atol=1e-7)


def test_step_sizes_are_those_of_the_world():
    mode = make_action_mode("continuous", ControlScale(move=1.0, yaw=0.5))
    np.testing.assert_allclose(mode.to_controls(np.array([[1, 0, 1, 0]]), ALL)[0], [0, 0, 1, 0.5, 0, 0])


def test_keys_are_what_they_are_called():
    keys = make_action_mode("discrete").keys_to_action()
    names = {chr(pressed[0]): DISCRETE_ACTIONS[action] for pressed, action in keys.items() if pressed[0] < 128}
    assert names == {"w": "forward", "a": "left", "s": "back", "d": "right"}
    arrows = {1073741903: "turn right", 1073741904: "turn left", 1073741905: "look down", 1073741906: "look up"}
    assert {pressed[0]: DISCRETE_ACTIONS[action] for pressed, action in keys.items() if pressed[0] > 128} == arrows


@pytest.mark.parametrize("mode", sorted(ACTION_MODES))
def test_key_combinations_suit_gymnasiums_play(mode):
    """`play` sorts pressed keys, refuses empty combinations and actions outside the space."""
    actions = make_action_mode(mode)
    keys = actions.keys_to_action()
    assert all(pressed and list(pressed) == sorted(set(pressed)) for pressed in keys)
    assert all(action in actions.space for action in keys.values())
    assert len(keys) == {"discrete": 8, "multi_discrete": 80, "continuous": 80}[mode]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.float32, np.float64])
def test_actions_are_cast_whatever_their_type(dtype):
    np.testing.assert_array_equal(control("discrete", np.array(6, dtype=dtype)), discrete_controls()[6])


def test_tensors_are_actions():
    controls = make_action_mode("discrete").to_controls(torch.tensor([3, 1]), np.ones(2, dtype=bool))
    np.testing.assert_array_equal(controls, discrete_controls()[[3, 1]])


def test_rows_that_are_not_active_do_not_move_and_are_not_checked():
    controls = make_action_mode("continuous").to_controls(
        np.array([[1, 0, 0, 0], [np.nan] * 4]), np.array([True, False])
    )
    np.testing.assert_array_equal(controls, [[0, 0, 0.25, 0, 0, 0], [0] * 6])


@pytest.mark.parametrize(
    ("mode", "action", "message"),
    [
        ("discrete", 9, "value 9 is outside Discrete"),
        ("discrete", -1, "value -1 is outside Discrete"),
        ("discrete", 1.5, "value 1.5 is outside Discrete"),
        ("discrete", np.nan, "value nan is outside Discrete"),
        ("discrete", "forward", "are not numbers"),
        ("discrete", True, "are not numbers"),
        ("discrete", None, "are not numbers"),
        ("discrete", [1, 2], r"an action has shape \(2,\); one of Discrete\(9\) has \(\)"),
        ("multi_discrete", [0, 0, 0, 3], "value 3 is outside MultiDiscrete"),
        ("multi_discrete", [0, 0, 0], r"an action has shape \(3,\)"),
        ("multi_discrete", 1, r"an action has shape \(\)"),
        ("continuous", [0.0, 0.0, np.nan, 0.0], "value nan is outside Box"),
        ("continuous", [0.0, 0.0, np.inf, 0.0], "value inf is outside Box"),
        ("continuous", [0.0, 0.0, 0.0, 1.01], "value 1.01 is outside Box"),
        ("continuous", [[0.0] * 4], r"an action has shape \(1, 4\)"),
    ],
)
def test_wrong_actions_are_refused(mode, action, message):
    with pytest.raises(ValueError, match=message):
        control(mode, action)


def test_ragged_actions_are_refused():
    with pytest.raises(ValueError, match="ragged"):
        make_action_mode("multi_discrete").to_controls([[0, 0, 0, 0], [0]], np.ones(2, dtype=bool))


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="'keys' is not an action mode; choose one of"):
        make_action_mode("keys")
