"""The tabletop's tasks in a dream: what a hand reaches, pushes, or picks and places, judged by learned heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from worldscape.hand_tasks import check_reward_mode, pay
from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame


class HandTask(Task):
    """Rewards by the rules of `WorldScape-Tabletop-v0`, from where a head finds object and target in the picture
    (`worldscape.hand_tasks`).

    threshold: success is when its probability by the same rules is above it; goal_terminates: success ends the episode;
    reward_mode: `"dense"`, in [0, 1] each step; `"missing"`, dense - 1; `"sparse"`, 1 on success, else 0.

    Info terms: `success_probability`.
    """

    recorded_as: ClassVar[int]
    """The task's place in `worldscape.hand_tasks.HAND_TASKS`: only its recordings show what it is about."""

    def __init__(self, *, threshold: float = 0.5, reward_mode: str = "dense", goal_terminates: bool = True) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"the threshold of success is {threshold}; give a probability between 0 and 1.")
        self.threshold = threshold
        self.reward_mode = check_reward_mode(reward_mode)
        self.goal_terminates = goal_terminates

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        if frame.hands is None:
            raise ValueError("this task rewards hands and this world has none; make it with hands='right'.")
        success = frame.hands.success[:, self.recorded_as]
        reached = success > self.threshold
        return TaskResult(
            reward=pay(self.reward_mode, frame.hands.reward[:, self.recorded_as], reached),
            terminated=reached if self.goal_terminates else self.none(),
            success=reached,
            terms={"success_probability": success},
        )


class Reach(HandTask):
    """Bring the index fingertip to the green ball."""

    recorded_as = 0


class Push(HandTask):
    """Push the object onto the disc."""

    recorded_as = 1


class PickPlace(HandTask):
    """Lift the object and put it down on the disc."""

    recorded_as = 2
