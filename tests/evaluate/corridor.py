"""A simulator for policies: three steps ahead lie between the start and the goal."""

from typing import Any

import gymnasium as gym
import numpy as np

from worldscape.conditioning.camera import pose_from_state_numpy
from worldscape.conditioning.controls import discrete_controls
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
