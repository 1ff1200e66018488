"""A deterministic env of a few pixels that offers everything the recorder keeps; registered on import."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIZE = 6


class TinyEnv(gym.Env):
    """A coloured square whose shade, depth and pose follow from the seed and the actions."""

    def __init__(self, delay: float = 0.0, break_at: int = -1, fault: str = "", terminate_at: int = -1) -> None:
        self.delay, self.break_at, self.fault, self.terminate_at = delay, break_at, fault, terminate_at
        image = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = spaces.Dict(image=image, speed=spaces.Box(-1, 1, (2,))) if fault == "dict" else image
        self.action_space = spaces.Discrete(9)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.seed, self.steps, self.position = seed, 0, 0.0
        info = self._info()
        if self.fault == "no reset pose":
            del info["pose"]
        return self._observation(), info

    def step(self, action):
        time.sleep(self.delay)
        self.steps += 1
        self.position += 0.25 * (action == 1)
        if self.steps == self.break_at:
            self._break()
        info = self._info()
        if self.fault == "lost depth" and self.steps == 2:
            del info["depth"]
        return self._observation(), float(action == 1), self.steps == self.terminate_at, False, info

    def _break(self) -> None:
        if self.fault == "die":
            import os

            os._exit(7)
        if self.fault == "full":
            import errno

            raise OSError(errno.ENOSPC, "No space left on device")

    def _observation(self):
        image = self.np_random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        if self.fault == "wrong shape" and self.steps == 1:
            return image[1:]
        return {"image": image, "speed": np.full(2, 0.5, np.float32)} if self.fault == "dict" else image

    def _info(self) -> dict[str, Any]:
        pose = np.eye(4, dtype=np.float32)
        pose[2, 3] = self.position
        return {
            "depth": np.full((SIZE, SIZE), 1.0 + self.position + 100.0 * (self.steps == 3), np.float32),
            "pose": pose,
            "intrinsics": np.array([0.6, 0.6, 0.5, 0.5], np.float32),
            "camera": np.array([0, 0, self.position, 0, 0, 0], np.float32),
            "realised": np.array([0, 0, 0.25, 0, 0, 0], np.float32),
            "collision": self.steps % 2 == 1,
            "success": self.steps == 4,
            "goal_distance": 3.0 - self.position,
            "note": "not kept",
        }


def explore(env, rng):
    """A policy that looks at its generator only."""
    return lambda observation, info: int(rng.integers(9))


gym.register("Tiny-v0", f"{__name__}:TinyEnv")
gym.register("TinyState-v0", "gymnasium.envs.classic_control:CartPoleEnv")
