"""What the simulators to record from share: a world built from a seed, an episode's steps, pictures for people."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldscape.conditioning.hands import HAND_STATE_WIDTH, HandScale, state_bound

PIXELS_AND_HANDS = "pixels+hands"
"""The `obs` of worlds with hands, dreamed or simulated, that `space_with_hands` describes."""


def space_with_hands(pixels: spaces.Space, scale: HandScale, num_hands: int) -> spaces.Dict:
    """Pictures, and beside them where hands are: a dict of `pixels` and `hands` float32 [16 * num_hands]."""
    bound = state_bound(scale)
    told = spaces.Box(-bound, bound, (HAND_STATE_WIDTH * num_hands,), np.float32)
    return spaces.Dict({"pixels": pixels, "hands": told})


class SimulatorEnv(gym.Env[Any, Any]):
    """A Gymnasium environment around a `world` that is built at first use and rebuilt by each reset.

    Subclasses say how to make the world and a large picture of it, and keep `reset` and `step`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, size: int, goal_terminates: bool, max_episode_steps: int, render_mode: str | None):
        if not isinstance(max_episode_steps, int) or max_episode_steps < 0:
            raise ValueError(f"max_episode_steps is {max_episode_steps!r}; give a whole number, 0 for no limit.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'.")
        self.size = size
        self.goal_terminates = goal_terminates
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.observation_space: spaces.Space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._world: Any = None
        self._steps = 0
        self._needs_reset = True

    @property
    def world(self) -> Any:
        """The simulator's world (ground truth for policies and judges); built at first use."""
        if self._world is None:
            self._world = self._make_world()
        return self._world

    def render(self) -> np.ndarray | None:
        """The view -> uint8 [256, 256, 3], or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._needs_reset and self._steps == 0:
            raise gym.error.ResetNeeded("Call reset() before render().")
        return self._picture()

    def close(self) -> None:
        """Free the renderer; may be called twice."""
        if self._world is not None:
            self._world.close()
            self._world = None
        self._needs_reset = True

    def _make_world(self) -> Any:
        raise NotImplementedError

    def _picture(self) -> np.ndarray:
        raise NotImplementedError

    def _choose_layout(self, seed: int | None, options: dict[str, Any] | None) -> int:
        """Begin an episode -> seed of its layout: the one given, or the next random one. `options` must be empty."""
        super().reset(seed=seed)
        if options:
            name = type(self).__name__.removesuffix("Env")
            raise ValueError(f"WorldScape-{name} takes no reset options, got {sorted(options)}; pass none.")
        self._steps = 0
        self._needs_reset = False
        return seed if seed is not None else int(self.np_random.integers(1_000_000))

    def _check_running(self) -> None:
        if self._needs_reset:
            raise gym.error.ResetNeeded("Call reset() before step(), and again after an episode ended.")

    def _is_over(self, success: bool) -> tuple[bool, bool]:
        """Terminated and truncated after this step."""
        terminated = success and self.goal_terminates
        truncated = 0 < self.max_episode_steps <= self._steps
        self._needs_reset = terminated or truncated
        return terminated, truncated
