"""Action spaces and the controls they stand for.

Every mode combines the nine keys of `worldscape.conditioning.controls`; combined keys never walk faster than one.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from torch import Tensor

from worldscape.conditioning.controls import ControlScale, discrete_controls

# Rows of `discrete_controls`: (first key, second key) of each opposed pair.
AXES = {"walk": (1, 3), "strafe": (4, 2), "turn": (6, 5), "look": (7, 8)}

# SDL key codes of the arrow keys, as `gymnasium.utils.play` reads them from pygame.
ARROW_RIGHT, ARROW_LEFT, ARROW_DOWN, ARROW_UP = range(1073741903, 1073741907)

AXIS_KEYS = {
    "walk": (ord("w"), ord("s")),
    "strafe": (ord("d"), ord("a")),
    "turn": (ARROW_RIGHT, ARROW_LEFT),
    "look": (ARROW_UP, ARROW_DOWN),
}


class ActionMode(ABC):
    """One action space, its keys and its conversion to controls."""

    name: ClassVar[str]
    space: spaces.Space

    def __init__(self, scale: ControlScale | None = None) -> None:
        self.scale = scale or ControlScale()
        self.table = discrete_controls(self.scale)

    def to_controls(self, actions: Any, active: np.ndarray) -> np.ndarray:
        """Actions [B, ...] -> controls float32 [B, 6] (metres, radians); rows that are not active get no motion.

        Raises ValueError for a wrong type, a wrong shape, NaN or a value outside the space in an active row.
        """
        actions = self._of_slots(actions, active)
        if False not in active.tolist():
            return self._convert(self._validated(actions))
        controls = np.zeros((len(active), self.table.shape[1]), np.float32)
        if active.any():
            controls[active] = self._convert(self._validated(actions[active]))
        return controls

    def to_hands(self, actions: Any, active: np.ndarray, command: Tensor) -> Tensor | None:
        """Actions [B, ...] -> hand actions [B, 2, 13] on the device of `command` [B, 2, 16], where the hands were told
        to be; None for modes without hands. Raises as to_controls."""
        return None

    @abstractmethod
    def keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Pressed keys (unicode code points or SDL key codes, sorted) -> action, for `gymnasium.utils.play`."""

    def _of_slots(self, actions: Any, active: np.ndarray) -> np.ndarray:
        """Numbers, one action of the space's shape for each slot. Raises ValueError for anything else."""
        actions = _as_numbers(actions, self.space)
        if actions.ndim == 0 or len(actions) != len(active):
            raise ValueError(f"actions have shape {actions.shape}; give one action for each of {len(active)} slots.")
        if actions.shape[1:] != self.space.shape:
            raise ValueError(f"an action has shape {actions.shape[1:]}; one of {self.space} has {self.space.shape}.")
        return actions

    @abstractmethod
    def _validated(self, actions: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _convert(self, actions: np.ndarray) -> np.ndarray: ...


class DiscreteActions(ActionMode):
    """`Discrete(9)`: one key a step, 0 is no-op."""

    name = "discrete"

    def __init__(self, scale: ControlScale | None = None) -> None:
        super().__init__(scale)
        self.space = spaces.Discrete(len(self.table))

    def keys_to_action(self) -> dict[tuple[int, ...], int]:
        pairs = ((AXIS_KEYS[axis], rows) for axis, rows in AXES.items())
        return {(key,): row for keys, rows in pairs for key, row in zip(keys, rows, strict=True)}

    def _validated(self, actions: np.ndarray) -> np.ndarray:
        return _whole_numbers(actions, len(self.table), self.space)

    def _convert(self, actions: np.ndarray) -> np.ndarray:
        return self.table[actions]


class _AxisActions(ActionMode):
    """Shared by the modes with one number per axis (walk, strafe, turn, look), + being the axis' first key."""

    def combine(self, axes: np.ndarray) -> np.ndarray:
        """Axis values [N, 4] in [-1, 1] -> controls [N, 6], walking at most one step's length."""
        steps = self.table[[first for first, _ in AXES.values()]]
        # A plain sum, not a matrix product, whose rounding may depend on the number of rows.
        controls = (axes.astype(np.float32)[:, :, None] * steps).sum(axis=1)
        length = np.linalg.norm(controls[:, :3], axis=1, keepdims=True)
        # Exact for a single key: its length must not be changed by rounding.
        shrink = np.where(length > self.scale.move * (1 + 1e-6), self.scale.move / np.maximum(length, 1e-9), 1.0)
        controls[:, :3] *= shrink
        return controls

    def keys_to_action(self) -> dict[tuple[int, ...], np.ndarray]:
        choices = [(None, *AXIS_KEYS[axis]) for axis in AXES]
        signs = [(0, 1, -1) for _ in AXES]
        mapping = {}
        for keys, axes in zip(itertools.product(*choices), itertools.product(*signs), strict=True):
            pressed = tuple(sorted(key for key in keys if key is not None))
            if pressed:
                mapping[pressed] = self._from_axes(np.array(axes))
        return mapping

    @abstractmethod
    def _from_axes(self, axes: np.ndarray) -> np.ndarray:
        """Axis signs [4] in {-1, 0, 1} -> the action that stands for them."""


class CombinedKeys(_AxisActions):
    """`MultiDiscrete([3, 3, 3, 3])`: walk, strafe, turn, look; 0 none, 1 forward, right, right, up, 2 the opposite."""

    name = "multi_discrete"

    def __init__(self, scale: ControlScale | None = None) -> None:
        super().__init__(scale)
        self.space = spaces.MultiDiscrete([3] * len(AXES))

    def _from_axes(self, axes: np.ndarray) -> np.ndarray:
        return (axes % 3).astype(np.int64)

    def _validated(self, actions: np.ndarray) -> np.ndarray:
        return _whole_numbers(actions, 3, self.space)

    def _convert(self, actions: np.ndarray) -> np.ndarray:
        return self.combine(np.where(actions == 2, -1, actions))


class ContinuousCamera(_AxisActions):
    """`Box(-1, 1, (4,), float32)`: walk, strafe, turn, look as shares of one step; + is forward, right, right, up."""

    name = "continuous"

    def __init__(self, scale: ControlScale | None = None) -> None:
        super().__init__(scale)
        self.space = spaces.Box(-1.0, 1.0, (len(AXES),), np.float32)

    def _from_axes(self, axes: np.ndarray) -> np.ndarray:
        return axes.astype(np.float32)

    def _validated(self, actions: np.ndarray) -> np.ndarray:
        _reject(actions, np.abs(actions) > 1.0 + 1e-6, self.space)
        return np.clip(actions, -1.0, 1.0)

    def _convert(self, actions: np.ndarray) -> np.ndarray:
        return self.combine(actions)


ACTION_MODES: dict[str, type[ActionMode]] = {
    mode.name: mode for mode in (DiscreteActions, CombinedKeys, ContinuousCamera)
}


def check_action_mode(name: str) -> None:
    """Raises ValueError for a name that is no action mode."""
    if name not in ACTION_MODES:
        raise ValueError(f"actions={name!r} is not an action mode; choose one of {sorted(ACTION_MODES)}.")


def make_action_mode(name: str, scale: ControlScale | None = None) -> ActionMode:
    """Action mode by name, with the step sizes that a world was trained with; raises ValueError for an unknown one."""
    check_action_mode(name)
    return ACTION_MODES[name](scale)


def _as_numbers(actions: Any, space: spaces.Space) -> np.ndarray:
    """Anything array-like, tensors included -> a numeric array without NaN in reach of `_reject`."""
    if hasattr(actions, "detach"):
        actions = actions.detach().cpu().numpy()
    try:
        array = np.asarray(actions)
    except ValueError as error:
        raise ValueError(f"actions {actions!r} are ragged; {space} takes one array.") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"actions {actions!r} of type {array.dtype} are not numbers; sample {space} for an example.")
    return array


def _whole_numbers(actions: np.ndarray, limit: int, space: spaces.Space) -> np.ndarray:
    if actions.dtype == np.int64 and all(0 <= number < limit for number in actions.ravel().tolist()):
        return actions
    _reject(actions, (actions < 0) | (actions >= limit) | (actions != np.floor(actions)), space)
    return actions.astype(np.int64)


def _reject(actions: np.ndarray, wrong: np.ndarray, space: spaces.Space) -> None:
    wrong = wrong | ~np.isfinite(actions)
    if wrong.any():
        raise ValueError(f"action value {actions[wrong][0]} is outside {space}; clip or round actions into the space.")
