"""Other descriptions of a hand: 21 keypoints, EgoDex's 48 numbers, and the hand states that come closest to them.

Absolute actions are states to be reached: convert them, then `hands.action_between` gives the step towards them.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.hand_model import (
    ADROIT,
    FINGERTIPS,
    NUM_KEYPOINTS,
    HandSkeleton,
    HandState,
    hand_keypoints,
    is_left_of_both,
    keypoints_in_hand,
    mirror_x,
)
from worldscape.conditioning.hands import rotation_from_six, rotation_to_six

KEYPOINT_ACTION_WIDTH = 3 * NUM_KEYPOINTS
"""Absolute keypoint action of a hand: x, y, z (metres, world axes) of the keypoints in the order of MediaPipe."""

EGODEX_HAND_WIDTH = 24
EGODEX_ACTION_WIDTH = 2 * EGODEX_HAND_WIDTH
"""Left hand, then right. Of each: wrist x, y, z (metres, world axes); the first two columns of the rotation of the
hand's axes, see `hand_model` (6); x, y, z of the tips of thumb, index, middle, ring and little finger (15)."""

_PALM = (0, 1, 5, 9, 13, 17)  # keypoints that no finger number moves
_ITERATIONS = 12
_NUDGE = 1e-3  # of a finger's range
_DAMPING = 1e-5  # square metres per square of a finger's range


class PalmFit(NamedTuple):
    """Wrist position [..., 3], rotation [..., 3, 3] of the hand's axes, and the size of the hand over the model's."""

    position: Tensor
    rotation: Tensor
    scale: Tensor


def keypoints_from_action(action: Tensor) -> Tensor:
    """Absolute keypoint actions [..., 63] -> keypoints [..., 21, 3]; raises ValueError for another width or NaN."""
    _check(action, KEYPOINT_ACTION_WIDTH, "an absolute keypoint action")
    return rearrange(action, "... (k c) -> ... k c", c=3)


def egodex_from_states(states: HandState, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """States [..., 2] of the left and the right hand -> EgoDex-style numbers [..., 48]."""
    keypoints = hand_keypoints(states, _is_left(states.position), skeleton)
    tips = rearrange(keypoints[..., list(FINGERTIPS), :], "... f c -> ... (f c)")
    rows = torch.cat([states.position, rotation_to_six(states.rotation), tips], -1)
    return rearrange(rows, "... hands n -> ... (hands n)")


def states_from_egodex(action: Tensor, skeleton: HandSkeleton = ADROIT) -> HandState:
    """EgoDex-style numbers [..., 48] -> states [..., 2] of both hands whose fingertips come closest to the given ones.

    Raises ValueError for another width or numbers that are not finite.
    """
    _check(action, EGODEX_ACTION_WIDTH, "an EgoDex-style action")
    rows = rearrange(action, "... (hands n) -> ... hands n", hands=2)
    position, rotation = rows[..., :3], rotation_from_six(rows[..., 3:9])
    tips = rearrange(rows[..., 9:], "... (f c) -> ... f c", c=3)
    local = _into_hand(tips, position, rotation, _is_left(position))
    return HandState(position, rotation, _fit_fingers(local, FINGERTIPS, skeleton))


def state_from_keypoints(
    keypoints: Tensor, is_left: Tensor | None = None, skeleton: HandSkeleton = ADROIT
) -> HandState:
    """Keypoints [..., 21, 3] in metres -> the hand states [...] whose keypoints come closest.

    The wrist's pose is that of the palm; fingers are fitted by damped least squares. A hand of another size is scaled
    to the model's, about the wrist. Raises ValueError for another shape or numbers that are not finite.
    """
    if keypoints.shape[-2:] != (NUM_KEYPOINTS, 3) or not bool(torch.isfinite(keypoints).all()):
        raise ValueError(f"keypoints have shape {tuple(keypoints.shape)}; give finite numbers [..., 21, 3] in metres.")
    is_left = _right(keypoints[..., 0, :]) if is_left is None else is_left.expand(keypoints.shape[:-2])
    palm = fit_palm(keypoints, is_left, skeleton)
    local = _into_hand(keypoints, palm.position, palm.rotation, is_left) / palm.scale[..., None, None]
    return HandState(palm.position, palm.rotation, _fit_fingers(local, tuple(range(NUM_KEYPOINTS)), skeleton))


def fit_palm(keypoints: Tensor, is_left: Tensor, skeleton: HandSkeleton = ADROIT) -> PalmFit:
    """The pose of the palm in keypoints [..., 21, 3]: the rotation that brings the model's palm closest (Kabsch)."""
    flat = keypoints_in_hand(torch.zeros(*keypoints.shape[:-2], 7).to(keypoints), skeleton)
    model = mirror_x(flat, is_left)[..., list(_PALM), :]
    seen = keypoints[..., list(_PALM), :] - keypoints[..., :1, :]
    u, _, vt = torch.linalg.svd(seen.mT @ model)
    sign = torch.ones_like(seen[..., 0, :])
    sign[..., 2] = torch.linalg.det(u @ vt)
    scale = seen.square().sum((-1, -2)).sqrt() / model.square().sum((-1, -2)).sqrt()
    return PalmFit(keypoints[..., 0, :], (u * sign[..., None, :]) @ vt, scale)


def _fit_fingers(points: Tensor, which: tuple[int, ...], skeleton: HandSkeleton) -> Tensor:
    """Keypoints `which` [..., N, 3] of right hands in hand axes -> finger numbers [..., 7] (Levenberg-Marquardt)."""
    shape, wanted = points.shape[:-2], points.flatten(-2).reshape(-1, 3 * len(which))
    picked = list(which)

    def place(fingers: Tensor) -> Tensor:
        return keypoints_in_hand(fingers, skeleton)[..., picked, :].flatten(-2)

    nudge = _NUDGE * torch.eye(7, dtype=points.dtype, device=points.device)
    ridge = _DAMPING * torch.eye(7, dtype=points.dtype, device=points.device)
    fingers = torch.full((len(wanted), 7), 0.35, dtype=points.dtype, device=points.device)
    for _ in range(_ITERATIONS):
        around = fingers[:, None]
        slope = (place(around + nudge) - place(around - nudge)).mT / (2 * _NUDGE)
        push = slope.mT @ (wanted - place(fingers))[..., None]
        step = torch.linalg.solve(slope.mT @ slope + ridge, push)
        fingers = (fingers + step[..., 0]).clamp(_NUDGE, 1.0 - _NUDGE)
    return fingers.reshape(*shape, 7)


def _into_hand(points: Tensor, position: Tensor, rotation: Tensor, is_left: Tensor) -> Tensor:
    """Points [..., N, 3] in world axes -> in the axes of hands, mirrored to a right one."""
    return mirror_x((points - position[..., None, :]) @ rotation, is_left)


def _is_left(positions: Tensor) -> Tensor:
    """[..., 2, 3] of a left and a right hand -> bool [..., 2]."""
    return is_left_of_both(positions).expand(positions.shape[:-1])


def _right(positions: Tensor) -> Tensor:
    return torch.zeros(positions.shape[:-1], dtype=torch.bool, device=positions.device)


def _check(action: Tensor, width: int, what: str) -> None:
    if action.ndim == 0 or action.shape[-1] != width:
        raise ValueError(f"{what} has shape {tuple(action.shape)}; it takes {width} numbers.")
    if not bool(torch.isfinite(action).all()):
        raise ValueError(f"{what} holds NaN or infinity; every number must be finite.")
