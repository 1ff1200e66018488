"""Walk to a point given relative to the start (PointNav), judged by the dreamed camera's position.

The reward is about realised motion, that is, commanded motion minus what the motion head says a wall stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame


class GoalPose(Task):
    """Reward = decrease in distance to the goal (metres) + `slack` per step + `bonus` on arrival within `radius`.

    The goal lies `nearest` to `farthest` metres from the start, at most `max_bearing` radians off its view axis, and
    in front of what the start's depth sees in that direction; `reset(options={"goal": (forward, right)})` in metres
    sets it instead, for all rows or one pair per row.

    Info terms: `goal_distance` (metres), `goal_bearing` (radians from the view axis, positive to the right) and
    `euclidean_spl` = success * straight distance / max(straight distance, distance walked).
    """

    reset_options = frozenset({"goal"})
    per_slot = ("goal", "position", "straight", "walked", "distance")

    def __init__(
        self,
        *,
        radius: float = 0.3,
        nearest: float = 1.0,
        farthest: float = 4.0,
        max_bearing: float = math.radians(30.0),
        slack: float = -0.01,
        bonus: float = 1.0,
    ) -> None:
        if not 0.0 < radius < nearest <= farthest:
            raise ValueError(
                f"goal_pose has radius {radius}, nearest {nearest}, farthest {farthest}; let each be larger."
            )
        if not 0.0 <= max_bearing < math.pi / 2:
            raise ValueError(f"goal_pose max_bearing is {max_bearing}; give radians from 0 to below pi/2.")
        self.radius, self.nearest, self.farthest = radius, nearest, farthest
        self.max_bearing = max_bearing
        self.slack, self.bonus = slack, bonus

    def bind(self, num_slots: int, device: torch.device) -> None:
        super().bind(num_slots, device)
        self.goal = torch.zeros(num_slots, 2, device=device)
        self.position = torch.zeros(num_slots, 2, device=device)
        self.straight = torch.zeros(num_slots, device=device)
        self.walked = torch.zeros(num_slots, device=device)
        self.distance = torch.zeros(num_slots, device=device)

    def reset(
        self,
        frame: EngineFrame,
        rows: Tensor,
        rngs: Sequence[np.random.Generator],
        options: Mapping[str, Any],
    ) -> None:
        if "goal" in options:
            offset = _given_goal(options["goal"], len(rngs))
        else:
            offset = self._draw(frame.depth[rows], rngs)
        start, yaw = _floor(frame.camera[rows]), frame.camera[rows, 3]
        forward, right = offset.to(self.device, torch.float32).unbind(-1)
        step = torch.stack([forward * yaw.sin() + right * yaw.cos(), forward * yaw.cos() - right * yaw.sin()], -1)
        self.goal[rows] = start + step
        self.position[rows] = start
        self.straight[rows] = self.distance[rows] = torch.hypot(forward, right)
        self.walked[rows] = 0.0

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        position = _floor(frame.camera)
        to_goal, moved = self.goal - position, position - self.position
        distance = torch.hypot(*to_goal.unbind(-1))
        walked = self.walked + torch.hypot(*moved.unbind(-1))
        reached = distance < self.radius
        bearing = torch.atan2(to_goal[:, 0], to_goal[:, 1]) - frame.camera[:, 3]
        result = TaskResult(
            reward=self.distance - distance + self.slack + self.bonus * reached,
            terminated=reached,
            success=reached,
            terms={
                "goal_distance": distance,
                "goal_bearing": torch.remainder(bearing + math.pi, 2 * math.pi) - math.pi,
                "euclidean_spl": reached * self.straight / torch.maximum(self.straight, walked).clamp(min=1e-6),
            },
        )
        self.position = torch.where(active[:, None], position, self.position)
        self.distance = torch.where(active, distance, self.distance)
        self.walked = torch.where(active, walked, self.walked)
        return result

    def _draw(self, depth: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Goals [R, 2] = (forward, right) in metres, in front of the depth [R, h, w] that the start sees there."""
        draws = np.stack([rng.random(2) for rng in rngs])
        bearing = (2 * draws[:, 0] - 1) * self.max_bearing
        farthest = np.clip(_reach(depth, bearing) - self.radius, self.nearest, self.farthest)
        distance = self.nearest + draws[:, 1] * (farthest - self.nearest)
        return torch.from_numpy(np.stack([distance * np.cos(bearing), distance * np.sin(bearing)], -1))


def _reach(depth: Tensor, bearing: np.ndarray) -> np.ndarray:
    """Depth [R, h, w], bearings [R] in radians -> metres [R] to the nearest thing at eye level in that direction."""
    # Half the rooms' field of view: a user's own camera may be narrower, and then sees the goal nearer to the edge.
    half_view = math.radians(40.0)
    height, width = depth.shape[1:]
    column = np.round((np.tan(bearing) / math.tan(half_view) + 1) / 2 * (width - 1)).astype(int).clip(0, width - 1)
    band = depth[:, height * 2 // 5 : height * 3 // 5].amin(1).cpu().numpy()
    return band[np.arange(len(band)), column] / np.cos(bearing)


def _floor(camera: Tensor) -> Tensor:
    """Camera state [..., 6] -> place on the floor [..., 2] = (x, z) in metres."""
    return camera[..., [0, 2]]


def _given_goal(goal: Any, num_rows: int) -> Tensor:
    goals = np.asarray(goal, dtype=np.float32)
    if goals.shape not in ((2,), (num_rows, 2)) or not np.isfinite(goals).all():
        raise ValueError(f"goal {goal!r} is not (forward, right) in metres; give two finite numbers, or two per row.")
    return torch.from_numpy(np.broadcast_to(goals, (num_rows, 2)).copy())
