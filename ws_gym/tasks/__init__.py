"""Tasks: what is rewarded in a dream. `TASKS` and `HAND_TASKS` name those that `task=` knows."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from ws_gym.tasks.base import FunctionTask, Task, TaskResult
from ws_gym.tasks.coverage import Coverage
from ws_gym.tasks.goal_image import GoalImage
from ws_gym.tasks.goal_object import GoalObject
from ws_gym.tasks.goal_pose import GoalPose
from ws_gym.tasks.hands import PickPlace, Push, Reach

__all__ = [
    "HAND_TASKS",
    "TASKS",
    "Coverage",
    "GoalImage",
    "GoalObject",
    "GoalPose",
    "PickPlace",
    "Push",
    "Reach",
    "Task",
    "TaskResult",
    "make_task",
]

TASKS: dict[str, type[Task]] = {
    "goal_object": GoalObject,
    "goal_pose": GoalPose,
    "goal_image": GoalImage,
    "coverage": Coverage,
}

HAND_TASKS: dict[str, type[Task]] = {"reach": Reach, "push": Push, "pick_place": PickPlace}
"""Tasks that need hands."""


def make_task(task: Any, options: Mapping[str, Any] | None = None) -> Task:
    """A task of one's own from a name, a Task, a Task class or a reward function.

    `options` are the keyword arguments of a named task or class. Raises ValueError for what is unknown.
    """
    options, known = dict(options or {}), {**TASKS, **HAND_TASKS}
    if isinstance(task, str):
        if task not in known:
            raise ValueError(f"task={task!r} is unknown; choose one of {sorted(known)} or pass a ws_gym.tasks.Task.")
        return _build(known[task], options)
    if isinstance(task, type) and issubclass(task, Task):
        return _build(task, options)
    if options:
        raise ValueError(
            f"task_options {sorted(options)} need a task by name or class; set them on your object instead."
        )
    if isinstance(task, Task):
        return copy.deepcopy(task)
    if callable(task):
        return FunctionTask(task)  # pyright: ignore[reportArgumentType]
    raise ValueError(f"task={task!r} is no task; give a name of {sorted(known)}, a ws_gym.tasks.Task or a function.")


def _build(task_class: type[Task], options: dict[str, Any]) -> Task:
    known = set(inspect.signature(task_class).parameters)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"task_options {unknown} are unknown to {task_class.__name__}; it takes {sorted(known)}.")
    try:
        return task_class(**options)
    except TypeError as error:  # "x" < 1 and the like
        raise ValueError(f"task_options {options} do not suit {task_class.__name__}: {error}.") from error
