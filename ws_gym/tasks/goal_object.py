"""Find the object that the world was trained with (the red box of the rooms), judged by the learned heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldscape.goals import floor_distance, nearness
from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame


class GoalObject(Task):
    """MiniWorld's go-to-object: reward `1 - 0.2 * t / horizon` on reaching the goal object at step t, else 0.

    Reaching it is what the reward head, learned from the simulator's own events, reads from the dream: its probability
    is above `threshold`. The episode ends there, or where the termination head says so. On held-out recorded walks no
    episode was paid before the walker had arrived at 0.7 and above, but 4 of 48 were at 0.5.

    dense: beside that, how much nearer than before the walker is to the goal, once it was in sight, in shares of 8 m
    (`worldscape.goals.nearness`); the first sight counts from far away. All of it sums up to less than 1.

    Info terms: `reward_probability`, `end_probability`; dense, also `goal_nearness`.
    """

    def __init__(self, *, threshold: float = 0.75, horizon: int = 300, dense: bool = False) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"goal_object threshold is {threshold}; give a probability between 0 and 1.")
        if horizon < 1:
            raise ValueError(f"goal_object horizon is {horizon}; give a number of steps of at least 1.")
        self.threshold = threshold
        self.horizon = horizon
        self.dense = dense
        self.per_slot = ("goal", "is_known", "nearness") if dense else ()

    def bind(self, num_slots: int, device: torch.device) -> None:
        super().bind(num_slots, device)
        if self.dense:
            self.goal = torch.zeros(num_slots, 3, device=device)
            self.is_known = self.none()
            self.nearness = torch.zeros(num_slots, device=device)

    def reset(
        self, frame: EngineFrame, rows: Tensor, rngs: Sequence[np.random.Generator], options: Mapping[str, Any]
    ) -> None:
        if self.dense:
            self.is_known = self.is_known & ~rows
            self._look(frame, rows)

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        reached = frame.reward > self.threshold
        share = (elapsed / self.horizon).clamp(max=1.0)
        reward = reached * (1.0 - 0.2 * share)
        terms = {"reward_probability": frame.reward, "end_probability": frame.end}
        if self.dense:
            before = self.nearness
            self._look(frame, active)
            reward, terms["goal_nearness"] = reward + self.nearness - before, self.nearness.clone()
        return TaskResult(
            reward=reward,
            terminated=reached | (frame.end > self.threshold),
            success=reached,
            terms=terms,
        )

    def _look(self, frame: EngineFrame, rows: Tensor) -> None:
        """Note in these rows where the goal is, if it is seen, and how near that is."""
        shown = frame.goal
        if shown is None:
            raise ValueError(
                "these weights cannot tell where the goal is, which a dense reward needs; leave dense out."
            )
        is_seen = rows & (shown.seen > 0)
        self.goal = torch.where(is_seen[:, None], shown.place, self.goal)
        self.is_known = self.is_known | is_seen
        now = nearness(floor_distance(self.goal, frame.camera), self.is_known)
        self.nearness = torch.where(rows, now, self.nearness)
