"""Find the view that a picture shows (ImageNav), judged by comparing the dreamed frame with the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from ws_gym.pictures import load_picture
from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame

GRID = 8  # the comparison averages colours over GRID x GRID fields of the picture


class GoalImage(Task):
    """Reward = decrease in image distance + `bonus` when it falls below `threshold`, which ends the episode.

    The image distance is the mean absolute difference, 0 to 1, of the colours averaged over 8 x 8 fields: it asks for
    the same view, not for the same object. The goal is the reset option "goal_image", an array or a path; without one
    it is the start itself, to be found again after leaving it (the distance must first exceed `leave`). In the rooms
    a view turned by 15 degrees is about 0.05 away, one turned by 90 degrees about 0.11.

    Info terms: `image_distance`, `has_left`.
    """

    reset_options = frozenset({"goal_image"})
    per_slot = ("goal", "distance", "has_left")

    def __init__(self, *, threshold: float = 0.03, leave: float = 0.08, bonus: float = 1.0) -> None:
        if not 0.0 < threshold < leave < 1.0:
            raise ValueError(f"goal_image has threshold {threshold}, leave {leave}; let 0 < threshold < leave < 1.")
        self.threshold, self.leave, self.bonus = threshold, leave, bonus

    def bind(self, num_slots: int, device: torch.device) -> None:
        super().bind(num_slots, device)
        self.goal = torch.zeros(num_slots, 3, GRID, GRID, device=device)
        self.distance = torch.zeros(num_slots, device=device)
        self.has_left = self.none()

    def reset(
        self,
        frame: EngineFrame,
        rows: Tensor,
        rngs: Sequence[np.random.Generator],
        options: Mapping[str, Any],
    ) -> None:
        summary = _summarise(frame.frame)
        given = options.get("goal_image")
        if given is None:
            self.goal[rows] = summary[rows]
        else:
            height, width = frame.frame.shape[1:3]
            picture = torch.from_numpy(load_picture(given, (height, width)))
            self.goal[rows] = _summarise(picture[None].to(self.device))
        self.has_left[rows] = given is not None
        self.distance[rows] = self._compare(summary)[rows]

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        distance = self._compare(_summarise(frame.frame))
        has_left = self.has_left | (distance > self.leave)
        reached = has_left & (distance < self.threshold)
        result = TaskResult(
            reward=self.distance - distance + self.bonus * reached,
            terminated=reached,
            success=reached,
            terms={"image_distance": distance, "has_left": has_left},
        )
        self.distance = torch.where(active, distance, self.distance)
        self.has_left = torch.where(active, has_left, self.has_left)
        return result

    def _compare(self, summary: Tensor) -> Tensor:
        return reduce((summary - self.goal).abs(), "b c y x -> b", "mean")


def _summarise(frames: Tensor) -> Tensor:
    """Frames uint8 [B, h, w, 3] -> mean colours [B, 3, GRID, GRID] in [0, 1]."""
    pixels = rearrange(frames, "b h w c -> b c h w").float() / 255.0
    return torch.nn.functional.adaptive_avg_pool2d(pixels, GRID)
