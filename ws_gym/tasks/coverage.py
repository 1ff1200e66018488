"""See as many places and directions as possible, judged by the dreamed camera's pose."""

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

NUM_CELLS = 32  # along x and along z; what lies beyond counts as the cell at the border
NUM_DIRECTIONS = 4


class Coverage(Task):
    """Reward 1 for each new (cell, direction): floor cells of `cell` metres around the start, four view directions.

    It rewards realised motion, not picture change. Success, and the end of the episode, is `target` of them.

    Info terms: `visited` (number of different cells and directions so far) and `novelty` (share of the picture that
    nothing in memory shows).
    """

    per_slot = ("seen", "visited", "origin")

    def __init__(self, *, cell: float = 0.5, target: int = 60) -> None:
        if not cell > 0.0:
            raise ValueError(f"coverage cell is {cell}; give a positive number of metres.")
        if target < 2:
            raise ValueError(f"coverage target is {target}; give a number of cells of at least 2.")
        self.cell = cell
        self.target = target

    def bind(self, num_slots: int, device: torch.device) -> None:
        super().bind(num_slots, device)
        num_places = NUM_CELLS * NUM_CELLS * NUM_DIRECTIONS
        self.seen = torch.zeros(num_slots, num_places, dtype=torch.bool, device=device)
        self.visited = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.origin = torch.zeros(num_slots, 6, device=device)

    def reset(
        self,
        frame: EngineFrame,
        rows: Tensor,
        rngs: Sequence[np.random.Generator],
        options: Mapping[str, Any],
    ) -> None:
        self.origin[rows] = frame.camera[rows]
        self.seen[rows] = False
        self.visited[rows] = 0
        self._mark(frame.camera, rows)

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        is_new = self._mark(frame.camera, active)
        success = self.visited >= self.target
        return TaskResult(
            reward=is_new.float(),
            terminated=success,
            success=success,
            terms={"visited": self.visited.clone(), "novelty": 1.0 - frame.coverage},
        )

    def _mark(self, camera: Tensor, rows: Tensor) -> Tensor:
        """Note the places where the cameras [B, 6] of `rows` are -> bool [B], True where that place is new."""
        place = self._place(camera)[:, None]
        is_new = rows & ~self.seen.gather(1, place)[:, 0]
        self.seen.scatter_(1, place, self.seen.gather(1, place) | rows[:, None])
        self.visited += is_new
        return is_new

    def _place(self, camera: Tensor) -> Tensor:
        """Cameras [B, 6] -> index [B] of cell and direction, relative to the start."""
        offset = (camera - self.origin)[:, [0, 2]] / self.cell
        column, row = (offset.round().long() + NUM_CELLS // 2).clamp(0, NUM_CELLS - 1).unbind(-1)
        quarter = (camera[:, 3] - self.origin[:, 3]) * NUM_DIRECTIONS / (2 * math.pi)
        direction = torch.remainder(quarter.round().long(), NUM_DIRECTIONS)
        return (row * NUM_CELLS + column) * NUM_DIRECTIONS + direction
