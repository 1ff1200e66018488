"""WorldScape-Rooms: the procedural MiniWorld simulator that the shipped world was learned from.

It is the dream's real counterpart: same actions, same observations, same task. Layout, textures, light and objects
are a pure function of the reset seed. See `rooms_layout.py` for what is built and `rooms_gl.py` for how it is drawn.
"""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldscape.conditioning.controls import DISCRETE_ACTIONS, ControlScale, discrete_controls

FIELD_OF_VIEW = 80.0  # degrees, vertical and horizontal (the picture is square)


class RoomsEnv(gym.Env[np.ndarray, np.int64]):
    """Procedurally varied rooms, indoor and open-air, with a red box to find.

    ## Description
    The agent stands in one to four connected rooms or in a walled garden. Sizes, doorways, textures, tints, light,
    furniture and the place of the red box follow from the reset seed. Seeds from 1,000,000 on are held out: no
    shipped weights were trained on them.

    ## Action Space
    `Discrete(9)`:

    | num | action | effect |
    |---|---|---|
    | 0 | no-op | none |
    | 1 | W, forward | 0.25 m ahead |
    | 2 | A, left | 0.25 m to the left |
    | 3 | S, back | 0.25 m back |
    | 4 | D, right | 0.25 m to the right |
    | 5 | turn left | 15 degrees |
    | 6 | turn right | 15 degrees |
    | 7 | look up | 10 degrees, at most 30 above level |
    | 8 | look down | 10 degrees, at most 30 below level |

    A step that would touch a wall or an object is refused whole: the agent does not move.

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: the first-person picture, 80 degrees wide and high.

    ## Rewards
    `1 - 0.2 * t / T` on reaching the red box at step t, else 0.

    ## Starting State
    A free place, facing open space.

    ## Episode End
    Terminated on reaching the red box (unless `goal_terminates=False`); truncated after `max_episode_steps`.

    ## Arguments
    - `size`: picture height and width in pixels (at least 16).
    - `goal_terminates`: end the episode at the red box; recordings set False and read `info["success"]`.
    - `max_episode_steps`: steps before truncation by the environment itself; 0 (default) leaves it to `gym.make`, which
      truncates after 300. T in the reward is this number, or 300 for 0.
    - `render_mode`: None or `"rgb_array"` (256 x 256).

    `info` holds `depth` [size, size] (metres along the view axis, at most 50), `pose` [4, 4] (camera to world, OpenCV
    axes: x right, y down, z forward; metres), `intrinsics` [4] (fx, fy, cx, cy over the picture size), `camera` [6]
    (x, y, z, yaw, pitch, roll), `realised` [6] (the control that took place), `collision`, `success`,
    `goal_distance` (metres).

    ## Version History
    - v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        size: int = 64,
        goal_terminates: bool = True,
        max_episode_steps: int = 0,
        render_mode: str | None = None,
    ):
        if not isinstance(size, int) or size < 16:
            raise ValueError(f"size is {size!r}; it must be an int of at least 16 pixels.")
        if not isinstance(max_episode_steps, int) or max_episode_steps < 0:
            raise ValueError(f"max_episode_steps is {max_episode_steps!r}; give a whole number, 0 for no limit.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'.")
        self.size = size
        self.goal_terminates = goal_terminates
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.scale = ControlScale()
        self.action_space = spaces.Discrete(len(DISCRETE_ACTIONS))
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._controls = discrete_controls(self.scale)
        self._world = None
        self._steps = 0
        self._needs_reset = True

    @property
    def world(self):
        """The MiniWorld world behind the environment (ground truth for policies and judges); built at first use."""
        if self._world is None:
            from worldscape.data.rooms_gl import RoomsWorld

            self._world = RoomsWorld(self.size, FIELD_OF_VIEW)
        return self._world

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Build the layout of `seed` (or of the next random seed) -> (observation, info). `options` must be empty."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"WorldScape-Rooms takes no reset options, got {sorted(options)}; pass none.")
        layout_seed = seed if seed is not None else int(self.np_random.integers(1_000_000))
        self.world.build(layout_seed)
        self._steps = 0
        self._needs_reset = False
        return self._observe(np.zeros(6, np.float32), collision=False)

    def step(self, action: Any):
        """Take one action -> (observation, reward, terminated, truncated, info)."""
        if self._needs_reset:
            raise gym.error.ResetNeeded("Call reset() before step(), and again after an episode ended.")
        control = self._controls[self._validated(action)]
        realised = self.world.move(control, self.scale.max_pitch)
        self._steps += 1
        collision = bool(np.any(np.abs(control[:3] - realised[:3]) > 1e-6))
        observation, info = self._observe(realised, collision)
        terminated = info["success"] and self.goal_terminates
        truncated = 0 < self.max_episode_steps <= self._steps
        self._needs_reset = terminated or truncated
        return observation, self._reward(info["success"]), terminated, truncated, info

    def render(self):
        """The agent's view -> uint8 [256, 256, 3], or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._needs_reset and self._steps == 0:
            raise gym.error.ResetNeeded("Call reset() before render().")
        return self.world.picture()

    def close(self) -> None:
        """Free the window and its buffers; may be called twice."""
        if self._world is not None:
            self._world.close()
            self._world = None
        self._needs_reset = True

    def _validated(self, action: Any) -> int:
        if isinstance(action, np.ndarray) and action.size == 1:
            action = action.item()
        if isinstance(action, bool) or not isinstance(action, (int, np.integer)):
            raise ValueError(f"Action {action!r} is not a whole number; WorldScape-Rooms takes 0 to 8.")
        if not 0 <= action < len(self._controls):
            raise ValueError(f"Action {action} is out of range; WorldScape-Rooms takes 0 to 8.")
        return int(action)

    def _reward(self, success: bool) -> float:
        if not success:
            return 0.0
        horizon = self.max_episode_steps or 300
        return 1.0 - 0.2 * min(self._steps / horizon, 1.0)

    def _observe(self, realised: np.ndarray, collision: bool):
        frame, depth = self.world.observe()
        info = {
            "depth": depth,
            "pose": self.world.pose(),
            "intrinsics": self.world.intrinsics(),
            "camera": self.world.camera(),
            "realised": realised,
            "collision": collision,
            "success": self.world.reached_goal(),
            "goal_distance": self.world.goal_distance(),
        }
        return frame, info
