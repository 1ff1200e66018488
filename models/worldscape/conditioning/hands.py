"""Hand actions: how thirteen numbers a step move a hand, and what other descriptions of a hand they stand for.

The simulator and the dream share them. Translations and rotations are along the world axes (x right, y down, z
forward; the axes of a level camera that looks ahead), so an action means the same for a left and a right hand. Two
hands are (left, right), in actions as in every array with a dimension of hands.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.hand_model import FINGER_STATE, HandState, rotation_about
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.shapes import is_static

HAND_ACTION = (
    ("wrist right", "m"),
    ("wrist down", "m"),
    ("wrist forward", "m"),
    ("turn about right", "rad"),
    ("turn about down", "rad"),
    ("turn about forward", "rad"),
    *((name, "share of the range") for name in FINGER_STATE),
)
"""Name and unit of each of the thirteen numbers of a hand's action."""

HAND_ACTION_WIDTH = len(HAND_ACTION)
CURLS = slice(6, 12)
"""Numbers of an action that close a hand: five fingers, and the thumb's opposition."""
GRASP_ACTION_WIDTH = 4
"""Of an action that only moves and closes a hand: wrist right, down, forward, and one number for all of CURLS."""
ACTION_WIDTHS = {"delta": HAND_ACTION_WIDTH, "grasp": GRASP_ACTION_WIDTH}
"""Numbers a hand of the actions that say how it changes."""
HAND_STATE_WIDTH = 16
HANDS = {"left": (0,), "right": (1,), "both": (0, 1)}
"""Which rows of an array with a dimension of hands an option `hands=` names."""

LEASH = 0.02
"""Metres that a command may be ahead of the wrist that contact holds back; it waits there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandScale:
    """What an action of 1 does in one step, and how far a hand can go.

    | numbers | meaning of +1 | unit | default |
    |---|---|---|---|
    | 0, 1, 2 | wrist right, down, forward by `move` | metres | 0.03 |
    | 3, 4, 5 | hand turns by `turn` about the axes right, down, forward through the wrist | radians | 0.25 |
    | 6 ... 10 | thumb, index, middle, ring, little finger curl by `curl` | share of the range | 0.2 |
    | 11 | thumb opposes by `curl` | share of the range | 0.2 |
    | 12 | fingers spread by `curl` | share of the range | 0.2 |

    A range is what a finger number of 0 to 1 covers, see `hand_model`: an index finger's curl of 1 is 83, 80 and 57
    degrees in its three joints. low, high: corners of the box that the wrist stays in (metres, world axes). max_tilt:
    largest angle in radians between the hand and one held palm down, fingers forward.
    """

    move: float = 0.03
    turn: float = 0.25
    curl: float = 0.2
    low: tuple[float, float, float] = (-0.26, -0.36, -0.26)
    high: tuple[float, float, float] = (0.26, -0.015, 0.26)
    max_tilt: float = 1.9

    def __post_init__(self) -> None:
        for name in ("move", "turn", "curl", "max_tilt"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"HandScale.{name} is {value}; it must be finite and positive.")
        if self.max_tilt > 3.0:
            raise ValueError(f"HandScale.max_tilt is {self.max_tilt}; it must be at most 3 radians.")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"HandScale's box from {self.low} to {self.high} is empty; low must be below high.")


def check_hand_actions(actions: np.ndarray, num_hands: int, kind: str = "delta") -> np.ndarray:
    """Actions [..., A * num_hands] of any number type -> delta actions float32 [..., num_hands, 13], clipped to
    [-1, 1]. kind: one of ACTION_WIDTHS, which gives A.

    Raises ValueError for another width, for values that are no numbers, and for NaN or infinity.
    """
    actions = np.asarray(actions)
    each = ACTION_WIDTHS[kind]
    if actions.ndim == 0 or actions.shape[-1] != each * num_hands:
        raise ValueError(
            f"a hand action has shape {actions.shape}; {num_hands} hand(s) take {each * num_hands} numbers "
            f"({each} a hand)."
        )
    if actions.dtype.kind not in "iuf":
        raise ValueError(f"a hand action of type {actions.dtype} is not made of numbers; give float32 in [-1, 1].")
    if not np.isfinite(actions).all():
        raise ValueError(f"a hand action holds {actions[~np.isfinite(actions)][0]}; every number must be finite.")
    clipped = np.clip(actions.astype(np.float32), -1.0, 1.0)
    return to_delta(rearrange(clipped, "... (hands a) -> ... hands a", a=each))


def to_delta(actions: np.ndarray) -> np.ndarray:
    """Actions [..., A] with one of ACTION_WIDTHS numbers -> delta actions [..., 13] that do the same."""
    if actions.shape[-1] == HAND_ACTION_WIDTH:
        return actions
    delta = np.zeros((*actions.shape[:-1], HAND_ACTION_WIDTH), actions.dtype)
    delta[..., :3], delta[..., CURLS] = actions[..., :3], actions[..., 3:]
    return delta


def apply_hand_action(state: HandState, action: Tensor, scale: HandScale) -> HandState:
    """Hand states [...] and delta actions [..., 13] in [-1, 1] -> the states that they command, within the limits.

    Turns first and independently of the move; differentiable where no limit holds.
    """
    rotation = rotation_from_vector(action[..., 3:6] * scale.turn) @ state.rotation
    moved = HandState(
        position=state.position + action[..., :3] * scale.move,
        rotation=rotation,
        fingers=state.fingers + action[..., 6:] * scale.curl,
    )
    return limit_hand(moved, scale)


def limit_hand(state: HandState, scale: HandScale) -> HandState:
    """The nearest state [...] inside the box, the tilt limit and the fingers' range."""
    low, high = _box(scale.low, scale.high, state.position.device, state.position.dtype)
    return HandState(
        position=torch.minimum(torch.maximum(state.position, low), high),
        rotation=_limit_tilt(state.rotation, scale.max_tilt),
        fingers=state.fingers.clamp(0.0, 1.0),
    )


@made_once
def _box(
    low: tuple[float, ...], high: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return torch.tensor(low, device=device, dtype=dtype), torch.tensor(high, device=device, dtype=dtype)


def _limit_tilt(rotation: Tensor, max_tilt: float) -> Tensor:
    """Rotations [..., 3, 3], turned back to `max_tilt` radians where they are beyond."""
    if not is_static(rotation):
        trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)  # 1 + 2 cos(tilt)
        if not (trace < 1 + 2 * math.cos(max_tilt) + 1e-3).any():
            return rotation
    tilt = vector_from_rotation(rotation)
    angle = tilt.norm(dim=-1, keepdim=True)
    is_beyond = angle > max_tilt
    inside = rotation_from_vector(tilt * (max_tilt / angle.clamp_min(1e-6)))
    return torch.where(is_beyond[..., None], inside, rotation)


def leash(commanded: Tensor, wrist: Tensor) -> Tensor:
    """Commanded and true wrist positions [..., 3] (metres) -> commands that are ahead by `LEASH` at most."""
    ahead = commanded - wrist
    return wrist + ahead * (LEASH / ahead.norm(dim=-1, keepdim=True).clamp_min(LEASH))


def action_between(state: HandState, goal: HandState, scale: HandScale) -> Tensor:
    """The delta action [..., 13] that moves states [...] to goals, or by as much as one step can, towards them.

    Turning and moving too far are shortened, not clipped number by number: the direction is kept.
    """
    move = _shorten((goal.position - state.position) / scale.move)
    turn = _shorten(vector_from_rotation(goal.rotation @ state.rotation.mT) / scale.turn)
    fingers = ((goal.fingers - state.fingers) / scale.curl).clamp(-1.0, 1.0)
    return torch.cat([move, turn, fingers], -1)


def rotation_from_vector(vector: Tensor) -> Tensor:
    """Rotation vectors [..., 3] (axis times radians) -> rotations [..., 3, 3]; smooth at zero."""
    angle = (vector.square().sum(-1) + 1e-16).sqrt()
    return rotation_about(vector / angle[..., None], angle)


def vector_from_rotation(rotation: Tensor) -> Tensor:
    """Rotations [..., 3, 3] -> rotation vectors [..., 3] in radians; for angles below 3.1."""
    twice = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    )
    sine = (twice.square().sum(-1) + 1e-16).sqrt() / 2
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return twice * (torch.atan2(sine, cosine) / (2 * sine))[..., None]


def rotation_to_six(rotation: Tensor) -> Tensor:
    """Rotations [..., 3, 3] -> their first two columns [..., 6]."""
    return rotation[..., :2].mT.flatten(-2)


def rotation_from_six(six: Tensor) -> Tensor:
    """Two directions [..., 6], any length -> the rotations [..., 3, 3] whose first two columns come closest.

    The first direction is kept, the second made perpendicular to it (Gram-Schmidt).
    """
    first = torch.nn.functional.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    return _complete_rotation(first, torch.nn.functional.normalize(second, dim=-1))


def rotation_from_columns(six: Tensor) -> Tensor:
    """The inverse of `rotation_to_six` of what it made itself, a fifth of the operations of `rotation_from_six`."""
    return _complete_rotation(six[..., :3], six[..., 3:])


def _complete_rotation(first: Tensor, second: Tensor) -> Tensor:
    """The rotation [..., 3, 3] of which these are two columns [..., 3]."""
    return torch.stack([first, second, torch.cross(first, second, dim=-1)], -1)


def state_to_vector(state: HandState) -> Tensor:
    """Hand states [...] -> [..., 16]: position 3 (metres), first two columns of the rotation 6, fingers 7."""
    return torch.cat([state.position, rotation_to_six(state.rotation), state.fingers], -1)


def state_bound(scale: HandScale) -> float:
    """No number of `state_to_vector` is larger in size, of hands within their limits: metres, or 1."""
    return max(1.0, *(abs(side) for side in (*scale.low, *scale.high)))


def state_from_vector(vector: Tensor, *, is_exact: bool = False) -> HandState:
    """The inverse of `state_to_vector`: [..., 16] -> hand states [...]. is_exact: it was made by `state_to_vector`."""
    rotation = (rotation_from_columns if is_exact else rotation_from_six)(vector[..., 3:9])
    return HandState(vector[..., :3], rotation, vector[..., 9:])


def _shorten(shares: Tensor) -> Tensor:
    """Vectors [..., 3] scaled down so that no number is above 1 in size."""
    return shares / shares.abs().amax(-1, keepdim=True).clamp_min(1.0)
