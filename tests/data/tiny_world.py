"""Stands in for the learned world in tests of `worldscape play`: its picture tells the last action."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIZE = 16
EPISODE_STEPS = 5


class TinyWorld(gym.Env):
    """Every pixel of row i is 50 times the action on axis i; the last row is the number of worlds opened.

    Like the learned world it ends by its own task, unless it is given another one, and by Gymnasium's time limit.
    """

    def __init__(self, actions: str, device: str = "cpu", weights: str = "none", task: object = None) -> None:
        assert actions == "multi_discrete"
        self.ends = task is None
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = spaces.MultiDiscrete([3] * 4)
        self.num_worlds = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_worlds += 1
        self.steps = 0
        return self._picture(np.zeros(4, np.int64)), {}

    def step(self, action):
        self.steps += 1
        return self._picture(action), 0.0, self.ends and self.steps == EPISODE_STEPS, False, {}

    def _picture(self, action):
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        picture[:4] = 50 * action[:, None, None]
        picture[-1] = self.num_worlds
        return picture


gym.register("TinyWorld-v0", f"{__name__}:TinyWorld", max_episode_steps=EPISODE_STEPS)
