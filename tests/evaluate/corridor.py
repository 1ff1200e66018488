"""Simulators for policies: three steps lie between the start and the goal, of a walker and of a fingertip."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldscape.conditioning.camera import pose_from_state_numpy
from worldscape.conditioning.controls import discrete_controls
from worldscape.conditioning.hand_model import HandState, hand_keypoints
from worldscape.conditioning.hands import HandScale, apply_hand_action, check_hand_actions, state_to_vector
from worldscape.policy import PixelPolicy, PolicyConfig

FORWARD, BACK = 1, 3


class Corridor(gym.Env):
    """Nine actions as in the rooms, a grey picture, success at z = 0.75 m; nothing stops a walk."""

    def __init__(self, size: int = 64) -> None:
        self.action_space = gym.spaces.Discrete(9)
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.controls = discrete_controls()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        assert not options
        self.camera = np.zeros(6, np.float32)
        return self._observe(np.zeros(6, np.float32))

    def step(self, action):
        control = self.controls[action].copy()
        control[3:] = 0.0
        self.camera += control
        frame, info = self._observe(control)
        return frame, float(info["success"]), bool(info["success"]), False, info

    def _observe(self, realised: np.ndarray):
        shape = self.observation_space.shape
        assert shape is not None
        info = {
            "depth": np.full(shape[:2], 4.0, np.float32),
            "pose": pose_from_state_numpy(self.camera),
            "intrinsics": np.array([0.6, 0.6, 0.5, 0.5], np.float32),
            "camera": self.camera.copy(),
            "realised": realised,
            "success": bool(self.camera[2] > 0.7),
        }
        return np.full(shape, 100, np.uint8), info


def stubborn(action: int, size: int = 64) -> PixelPolicy:
    """A policy that always takes one action."""
    policy = PixelPolicy(PolicyConfig(num_actions=9, size=size, frames=2, channels=(4, 4), hidden=8))
    policy.actor.bias.data[action] = 1000.0
    return policy.requires_grad_(False).eval()


class Finger(gym.Env):
    """A hand over nothing, a grey picture; the reward grows by 0.2 for each full step to the right, the third succeeds.

    `actions` keeps what it was told.
    """

    def __init__(self, size: int = 64) -> None:
        self.action_space = gym.spaces.Box(-1.0, 1.0, (13,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        assert not options
        self.hand = HandState(torch.tensor([0.0, -0.2, 0.1]), torch.eye(3), torch.full((7,), 0.4))
        return self._observe()

    def step(self, action):
        self.actions.append(action)
        moves = check_hand_actions(action, 1)[0]
        self.hand = apply_hand_action(self.hand, torch.from_numpy(moves), HandScale())
        frame, info = self._observe()
        success = bool(info["success"])
        return frame, 1.0 if success else 0.2 * max(self._steps_to_the_right(), 0), success, False, info

    def _steps_to_the_right(self) -> int:
        return round(float(self.hand.position[0]) / HandScale().move)

    def _observe(self):
        shape = self.observation_space.shape
        assert shape is not None
        camera = np.array([0.0, -0.39, -0.27, 0.0, 0.0, 0.0], np.float32)
        state, present = state_to_vector(self.hand).numpy(), np.array([False, True])
        info = {
            "depth": np.full(shape[:2], 1.0, np.float32),
            "pose": pose_from_state_numpy(camera),
            "intrinsics": np.array([0.6, 0.6, 0.5, 0.5], np.float32),
            "camera": camera,
            "hand_present": present,
            "hand_state": np.stack([np.zeros_like(state), state]),
            "hand_command": np.stack([np.zeros_like(state), state]),
            "hand_keypoints": np.stack([np.zeros((21, 3), np.float32), hand_keypoints(self.hand).numpy()]),
            "success": self._steps_to_the_right() >= 3,
        }
        return np.full(shape, 100, np.uint8), info


def pointing(right: float, size: int = 64) -> PixelPolicy:
    """A policy that moves the wrist to the right, `right` of a full step each time, as exactly as one can."""
    config = PolicyConfig(num_actions=13, is_continuous=True, size=size, frames=2, channels=(4, 4), hidden=8)
    policy = PixelPolicy(config)
    assert policy.spread is not None
    policy.actor.weight.data.zero_()
    policy.actor.bias.data[0] = np.arctanh(0.999 * right)
    policy.spread.data -= 100.0
    return policy.requires_grad_(False).eval()
