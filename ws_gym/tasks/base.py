"""What a task is: batched state and a result per step, judged from what the engine dreamed.

Every tensor has one row per slot, and a row depends on its own slot only; that is what lets slots reset alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from worldscape.engine_frames import EngineFrame


@dataclass(kw_only=True, slots=True)
class TaskResult:
    """Judgement of one step: reward float32 [B], terminated bool [B], success bool [B], info terms {name: [B, ...]}."""

    reward: Tensor
    terminated: Tensor
    success: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


def checked_result(result: Any, num_slots: int) -> TaskResult:
    """A task's result as tensors that no gradient goes through. Raises ValueError for anything else than TaskResult
    says of B = `num_slots`."""
    if not isinstance(result, TaskResult):
        raise ValueError(f"a task judged a step with {type(result).__name__}; return a ws_gym.tasks.TaskResult.")
    for name in ("reward", "terminated", "success"):
        value, kind = getattr(result, name), "float" if name == "reward" else "bool"
        _check_rows(name, value, num_slots)
        if not (value.is_floating_point() if kind == "float" else value.dtype == torch.bool):
            raise ValueError(f"the task's {name} is a tensor of {value.dtype}; convert it with .{kind}().")
        if value.ndim > 1:
            raise ValueError(f"the task's {name} has shape {tuple(value.shape)}; return one per slot, ({num_slots},).")
    for name, value in result.terms.items():
        _check_rows(f"info term {name!r}", value, num_slots)
    return TaskResult(
        reward=result.reward.detach(),
        terminated=result.terminated,
        success=result.success,
        terms={name: value.detach() for name, value in result.terms.items()},
    )


def _check_rows(name: str, value: Any, num_slots: int) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"the task's {name} is {type(value).__name__}; return a torch tensor with one row per slot.")
    if value.shape[:1] != (num_slots,):
        raise ValueError(f"the task's {name} has shape {tuple(value.shape)}; return one per slot, ({num_slots},).")


class Task(ABC):
    """A reward, an episode end and the info terms that explain them.

    Subclass it and pass an instance: `gym.make("WorldScape-Nav-v0", task=MyTask())`. The environment works on its own
    copy. State is kept in tensors with one row per slot, created in `bind` and named in `per_slot`.

    It may use torch networks: gradients are off. Tensors of a frame are shared: clone them before changing them in
    place.
    """

    reset_options: frozenset[str] = frozenset()
    """Names that `reset(options={...})` may carry for this task."""

    recorded_as: int | None = None
    """`task_id` of the recordings that this task's worlds open with, where they have any; None: all of them."""

    per_slot: tuple[str, ...] = ()
    """Attributes that are tensors with one row per slot: what a snapshot or a fork of a world takes along."""

    num_slots: int
    device: torch.device

    def bind(self, num_slots: int, device: torch.device) -> None:
        """Called once, before the first reset: create per-slot state."""
        self.num_slots = num_slots
        self.device = device

    # Not abstract, because a task without state per episode has nothing to do here.
    def reset(  # noqa: B027
        self,
        frame: EngineFrame,
        rows: Tensor,
        rngs: Sequence[np.random.Generator],
        options: Mapping[str, Any],
    ) -> None:
        """Start new episodes in the rows that are True in `rows` bool [B], and in no others.

        `frame` holds the first frames, `rngs` one generator per row started, in row order: draw all randomness
        from it, so that a seed gives the same goals whatever the number of slots.
        """

    def describe(self, frame: EngineFrame) -> TaskResult:
        """The result reported at reset, with the same terms as `step`; rewards and ends are not used."""
        return self.step(frame, torch.zeros(self.num_slots, dtype=torch.long, device=self.device), self.none())

    @abstractmethod
    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        """Judge one step: `elapsed` long [B] counts steps; rows not in `active` bool [B] must keep their state."""

    def state(self) -> dict[str, Tensor]:
        """What the task knows of its slots, [B, ...] by name: the attributes in `per_slot`.

        Override it, with `load`, in a task that keeps its state elsewhere. Raises ValueError for attributes of another
        kind.
        """
        state = {name: getattr(self, name) for name in self.per_slot}
        for name, value in state.items():
            _check_rows(f"attribute {name!r}, named in per_slot,", value, self.num_slots)
        return state

    def load(self, rows: Tensor, state: Mapping[str, Tensor]) -> None:
        """Overwrite the slots `rows` long [R] with [R, ...] by name, as `state` gave them."""
        for name, value in state.items():
            getattr(self, name)[rows] = value.to(self.device)

    def none(self) -> Tensor:
        """bool [B], all False."""
        return torch.zeros(self.num_slots, dtype=torch.bool, device=self.device)


class FunctionTask(Task):
    """A user's own reward function `function(frame, elapsed) -> reward [B]`; episodes end at the time limit only.

    It may use torch networks, as a Task may.
    """

    def __init__(self, function: Callable[[EngineFrame, Tensor], Tensor]) -> None:
        self.function = function

    def step(self, frame: EngineFrame, elapsed: Tensor, active: Tensor) -> TaskResult:
        given = self.function(frame, elapsed)
        try:
            reward = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the reward function returned {given!r}; return one reward per slot.") from error
        return TaskResult(reward=reward, terminated=self.none(), success=self.none())
