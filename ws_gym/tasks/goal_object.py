"""Find the object that the world was trained with (the red box of the rooms), judged by the learned heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine import EngineFrame


class GoalObject(Task):
    """MiniWorld's go-to-object: reward `1 - 0.2 * t / horizon` on reaching the goal object at step t, else 0.

    Reaching it is what the reward head, learned from the simulator's own events, reads from the dream: its probability
    is above `threshold`. The episode ends there, or where the termination head says so. On held-out recorded walks no
    episode was paid before the walker had arrived at 0.7 and above, but 4 of 48 were at 0.5.

    Info terms: `reward_probability`, `end_probability`.
    """

    def __init__(self, *, threshold: float = 0.75, horizon: int = 300) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"goal_object threshold is {threshold}; give a probability between 0 and 1.")
        if horizon < 1:
            raise ValueError(f"goal_object horizon is {horizon}; give a number of steps of at least 1.")
        self.threshold = threshold
        self.horizon = horizon

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        reached = frame.reward > self.threshold
        share = (elapsed / self.horizon).clamp(max=1.0)
        return TaskResult(
            reward=reached * (1.0 - 0.2 * share),
            terminated=reached | (frame.end > self.threshold),
            success=reached,
            terms={
                "reward_probability": frame.reward,
                "end_probability": frame.end,
            },
        )
