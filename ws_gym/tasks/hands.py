"""The tabletop's tasks in a dream: what a hand reaches, pushes, or picks and places, judged by learned heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ws_gym.tasks.base import Task, TaskResult

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame


class HandTask(Task):
    """Dense reward in [0, 1] each step by the rules of `WorldScape-Tabletop-v0`, from where a head finds object and
    target in the picture (`worldscape.hand_tasks`).

    Success, which ends the episode, is when its probability by the same rules is above `threshold`.

    Info terms: `success_probability`.
    """

    recorded_as: ClassVar[int]
    """The task's place in `worldscape.hand_tasks.HAND_TASKS`: only its recordings show what it is about."""

    def __init__(self, *, threshold: float = 0.5) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"the threshold of success is {threshold}; give a probability between 0 and 1.")
        self.threshold = threshold

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        if frame.hands is None:
            raise ValueError("this task rewards hands and this world has none; make it with hands='right'.")
        success = frame.hands.success[:, self.recorded_as]
        reached = success > self.threshold
        return TaskResult(
            reward=frame.hands.reward[:, self.recorded_as],
            terminated=reached,
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
