"""WorldScape-Rooms: the procedural MiniWorld simulator that the shipped world was learned from.

It is the dream's real counterpart: same actions, same observations, same task. Layout, textures, light and objects
are a pure function of the reset seed. See `rooms_layout.py` for what is built and `rooms_gl.py` for how it is drawn.
"""

from typing import Any

import numpy as np
from gymnasium import spaces

from worldscape.conditioning.controls import DISCRETE_ACTIONS, ControlScale, discrete_controls
from worldscape.data.simulator import SimulatorEnv

FIELD_OF_VIEW = 80.0  # degrees, vertical and horizontal (the picture is square)


class RoomsEnv(SimulatorEnv):
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
    `1 - 0.2 * t / T` on reaching the red box at step t, else 0. `dense=True` adds how much nearer than before the agent
    is, once the box was in sight, in shares of 8 m (`worldscape.goals.nearness`).

    ## Starting State
    A free place, facing open space.

    ## Episode End
    Terminated on reaching the red box (unless `goal_terminates=False`); truncated after `max_episode_steps`.

    ## Arguments
    - `size`: picture height and width in pixels (at least 16).
    - `goal_terminates`: end the episode at the red box; recordings set False and read `info["success"]`.
    - `dense`: reward the way to the red box too.
    - `max_episode_steps`: steps before truncation by the environment itself; 0 (default) leaves it to `gym.make`, which
      truncates after 300. T in the reward is this number, or 300 for 0.
    - `render_mode`: None or `"rgb_array"` (256 x 256).

    `info` holds `depth` [size, size] (metres along the view axis, at most 50), `pose` [4, 4] (camera to world, OpenCV
    axes: x right, y down, z forward; metres), `intrinsics` [4] (fx, fy, cx, cy over the picture size), `camera` [6]
    (x, y, z, yaw, pitch, roll), `realised` [6] (the control that took place), `collision`, `success`,
    `goal_distance` (metres); with `dense`, `goal_nearness`.

    ## Version History
    - v0: first version.
    """

    def __init__(
        self,
        size: int = 64,
        goal_terminates: bool = True,
        max_episode_steps: int = 0,
        render_mode: str | None = None,
        dense: bool = False,
    ):
        if not isinstance(size, int) or size < 16:
            raise ValueError(f"size is {size!r}; it must be an int of at least 16 pixels.")
        super().__init__(size, goal_terminates, max_episode_steps, render_mode)
        self.scale = ControlScale()
        self.action_space = spaces.Discrete(len(DISCRETE_ACTIONS))
        self._controls = discrete_controls(self.scale)
        self.dense, self._is_known, self._nearness = dense, False, 0.0

    def _make_world(self):
        from worldscape.data.rooms_gl import RoomsWorld

        return RoomsWorld(self.size, FIELD_OF_VIEW)

    def _picture(self) -> np.ndarray:
        return self.world.picture()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Build the layout of `seed` (or of the next random seed) -> (observation, info). `options` must be empty."""
        self.world.build(self._choose_layout(seed, options))
        self._is_known = False
        return self._observe(np.zeros(6, np.float32), collision=False)

    def step(self, action: Any):
        """Take one action -> (observation, reward, terminated, truncated, info)."""
        self._check_running()
        control = self._controls[self._validated(action)]
        realised = self.world.move(control, self.scale.max_pitch)
        self._steps += 1
        collision = bool(np.any(np.abs(control[:3] - realised[:3]) > 1e-6))
        before = self._nearness
        observation, info = self._observe(realised, collision)
        terminated, truncated = self._is_over(info["success"])
        reward = self._reward(info["success"]) + self._nearness - before
        return observation, reward, terminated, truncated, info

    def _validated(self, action: Any) -> int:
        number = np.asarray(action.detach().cpu() if hasattr(action, "detach") else action)
        if number.shape or number.dtype.kind not in "iuf" or number != np.floor(number):
            raise ValueError(f"Action {action!r} is not a whole number; WorldScape-Rooms takes 0 to 8.")
        if not 0 <= number < len(self._controls):
            raise ValueError(f"Action {action} is out of range; WorldScape-Rooms takes 0 to 8.")
        return int(number)

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
        if self.dense:
            info["goal_nearness"] = self._nearness = self._look_for_goal(info)
        return frame, info

    def _look_for_goal(self, info: dict[str, Any]) -> float:
        """How near the red box is, 0 while it was never in sight."""
        import torch

        from worldscape.goals import look_for, nearness

        shown = (self.world.goal_position(), info["depth"], info["pose"], info["intrinsics"])
        goal, depth, pose, intrinsics = (torch.from_numpy(part)[None].float() for part in shown)
        self._is_known = self._is_known or bool(look_for(goal, depth, pose, intrinsics).is_seen)
        return float(nearness(torch.tensor(info["goal_distance"]), torch.tensor(self._is_known)))
