"""The kinematic hand: 21 keypoints from a wrist pose and seven finger numbers, batched and differentiable.

Hand axes: z from the wrist to the fingers, y out of the palm, x = y cross z; so the identity is a hand held palm down,
fingers forward, in world axes (x right, y down, z forward). The numbers are those of the Adroit hand (24 joints, of
which the wrist's two, the little finger's metacarpal and one of the thumb's are held still).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.made_once import made_once

NUM_KEYPOINTS = 21
NUM_FINGERS = 5
NUM_PARTS = 16  # the palm and three bones a finger
FINGER_STATE = ("thumb curl", "index curl", "middle curl", "ring curl", "little curl", "opposition", "spread")
"""The seven finger numbers, each in [0, 1]: 0 is a flat hand with its fingers together, 1 the end of the range."""

KEYPOINT_NAMES = ("wrist",) + tuple(
    f"{finger}_{joint}"
    for finger, joints in (
        ("thumb", ("cmc", "mcp", "ip", "tip")),
        *((finger, ("mcp", "pip", "dip", "tip")) for finger in ("index", "middle", "ring", "little")),
    )
    for joint in joints
)
"""Order of the keypoints, which is MediaPipe's."""

MANO_ORDER = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20)
"""`keypoints[..., MANO_ORDER, :]` is in the order of MANO's 16 joints (wrist, index, middle, little, ring, thumb)
followed by its five fingertips (thumb, index, middle, ring, little)."""

BONES = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
"""Pairs of keypoints that a bone joins, finger by finger; the first of each finger starts at the wrist."""

FINGERTIPS = (4, 8, 12, 16, 20)

_THUMB_TURN = 0.785  # radians between the thumb's base and the palm
_FLAT, _FLEX, _SIDE = (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)


class HandState(NamedTuple):
    """Where hands are. position [..., 3] of the wrist (metres), rotation [..., 3, 3] of the hand's axes, both in world
    axes; fingers [..., 7] in [0, 1], see `FINGER_STATE`."""

    position: Tensor
    rotation: Tensor
    fingers: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class HandSkeleton:
    """A right hand's geometry in hand axes; metres and radians. Rows of five are thumb, index, middle, ring, little.

    roots: where each finger leaves the palm. lengths: its three bones, from root to tip. axes: of its four joints (two
    at the root, one at each of the next keypoints). neutral, limits: joint angles of a flat hand and their range.
    coupling: (finger, joint, finger number, radians from 0 to 1).
    """

    roots: tuple[tuple[float, float, float], ...]
    lengths: tuple[tuple[float, float, float], ...]
    axes: tuple[tuple[tuple[float, float, float], ...], ...]
    neutral: tuple[tuple[float, float, float, float], ...]
    limits: tuple[tuple[tuple[float, float], ...], ...]
    coupling: tuple[tuple[int, int, int, float], ...]

    def scaled(self, factor: float) -> "HandSkeleton":
        """The same hand, `factor` times as large."""
        grow = lambda rows: tuple(tuple(factor * value for value in row) for row in rows)  # noqa: E731
        return HandSkeleton(
            roots=grow(self.roots),
            lengths=grow(self.lengths),
            axes=self.axes,
            neutral=self.neutral,
            limits=self.limits,
            coupling=self.coupling,
        )


_FINGER_LIMITS = ((-0.436, 0.436), (0.0, 1.571), (0.0, 1.571), (0.0, 1.571))

ADROIT = HandSkeleton(
    roots=(
        (-0.034, 0.009, 0.063),
        (-0.033, 0.0, 0.129),
        (-0.011, 0.0, 0.133),
        (0.011, 0.0, 0.129),
        (0.034, 0.0, 0.122),
    ),
    lengths=((0.038, 0.032, 0.0275), *((0.045, 0.025, 0.026),) * 4),
    axes=(((0.0, 0.0, -1.0), _FLEX, _SIDE, _SIDE), *((_SIDE, _FLEX, _FLEX, _FLEX),) * 4),
    neutral=((-0.2, 0.15, 0.2, 0.0), *((0.0, 0.05, 0.05, 0.03),) * 4),
    limits=(((-1.047, 1.047), (0.0, 1.309), (-0.524, 0.524), (-1.571, 0.0)), *(_FINGER_LIMITS,) * 4),
    coupling=(
        (0, 2, 0, -0.65),
        (0, 3, 0, -1.2),
        (0, 0, 5, 1.2),
        (0, 1, 5, 0.9),
        *(
            (finger, joint, finger, radians)
            for finger in range(1, 5)
            for joint, radians in ((1, 1.45), (2, 1.4), (3, 1.0))
        ),
        (1, 0, 6, 0.3),
        (3, 0, 6, -0.2),
        (4, 0, 6, -0.4),
    ),
)


class _Tables(NamedTuple):
    roots: Tensor
    lengths: Tensor
    root_rotations: Tensor
    turning: tuple[Tensor, Tensor, Tensor]
    neutral: Tensor
    low: Tensor
    high: Tensor
    coupling: Tensor


@made_once
def _tables(skeleton: HandSkeleton, device: torch.device, dtype: torch.dtype) -> _Tables:
    coupling = torch.zeros(NUM_FINGERS, 4, len(FINGER_STATE))
    for finger, joint, number, radians in skeleton.coupling:
        coupling[finger, joint, number] = radians
    limits = torch.tensor(skeleton.limits)
    turned = torch.eye(3).repeat(NUM_FINGERS, 1, 1)
    turned[0] = rotation_about(torch.tensor([0.0, -1.0, 0.0]), torch.tensor(_THUMB_TURN))
    tensors = (
        torch.tensor(skeleton.roots),
        torch.tensor(skeleton.lengths),
        turned,
        torch.tensor(skeleton.neutral),
        limits[..., 0],
        limits[..., 1],
        coupling,
    )
    roots, lengths, root_rotations, *angles = (tensor.to(device, dtype) for tensor in tensors)
    return _Tables(roots, lengths, root_rotations, _turning(torch.tensor(skeleton.axes).to(device, dtype)), *angles)


class _Fixed(NamedTuple):
    """identity [4, 4]; skew [3, 9]: a vector times it is the matrix of its cross product; mirror [4, 4]: what a mirror
    (x negated, in both axes) multiplies the numbers of a pose by; is_left bool [2] of a left and a right hand."""

    identity: Tensor
    skew: Tensor
    mirror: Tensor
    is_left: Tensor


@made_once
def _fixed(device: torch.device, dtype: torch.dtype) -> _Fixed:
    skew = torch.zeros(3, 3, 3)
    for first, second, third in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        skew[first, third, second], skew[first, second, third] = 1.0, -1.0
    sign = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    return _Fixed(
        identity=torch.eye(4).to(device, dtype),
        skew=skew.flatten(1).to(device, dtype),
        mirror=(sign[:, None] * sign).to(device, dtype),
        is_left=torch.tensor([True, False], device=device),
    )


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """Unit axes [..., 3] and angles [...] in radians -> rotations [..., 3, 3]."""
    return _turned(_turning(axis), angle[..., None, None])


def _turning(axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit axes [..., 3] -> what is always there of a rotation about them, what goes with the angle's sine, and what
    with its cosine, [..., 3, 3] each (Rodrigues)."""
    fixed = _fixed(axis.device, axis.dtype)
    cross = (axis @ fixed.skew).unflatten(-1, (3, 3))
    square = cross @ cross
    return fixed.identity[:3, :3] + square, cross, -square


def _turned(turning: tuple[Tensor, Tensor, Tensor], angle: Tensor) -> Tensor:
    """Angles [..., 1, 1] in radians -> rotations [..., 3, 3] about axes (_turning)."""
    always, of_sine, of_cosine = turning
    return torch.addcmul(torch.addcmul(always, angle.sin(), of_sine), angle.cos(), of_cosine)


def is_left_of_both(like: Tensor) -> Tensor:
    """Of a left and a right hand, on the device of `like`: bool [2]."""
    return _fixed(like.device, like.dtype).is_left


def joint_angles(fingers: Tensor, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Finger numbers [..., 7] -> joint angles [..., 5, 4] in radians, within the joints' limits."""
    tables = _tables(skeleton, fingers.device, fingers.dtype)
    moved = (fingers.clamp(0.0, 1.0) @ tables.coupling.flatten(0, 1).mT).unflatten(-1, tables.coupling.shape[:2])
    return torch.minimum(torch.maximum(tables.neutral + moved, tables.low), tables.high)


def mirror_x(points: Tensor, is_left: Tensor) -> Tensor:
    """Points [..., N, 3] in hand axes, is_left bool [...] -> the points with x negated where it is a left hand."""
    sign = torch.where(is_left, -1.0, 1.0).to(points.dtype)
    return points * torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)[..., None, :]


def parts_in_hand(fingers: Tensor, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Finger numbers [..., 7] -> poses of a right hand's rigid parts [..., 16, 4, 4], part to hand axes, metres.

    Part 0 is the palm with the wrist at its origin, parts 3 f + 1 to 3 f + 3 are the bones of finger f from its root to
    its tip; a bone begins at its origin and points along its z.
    """
    tables = _tables(skeleton, fingers.device, fingers.dtype)
    turns = _turned(tables.turning, joint_angles(fingers, skeleton)[..., None, None])
    rotation = tables.root_rotations @ turns[..., 0, :, :] @ turns[..., 1, :, :]
    point = tables.roots.expand(*fingers.shape[:-1], NUM_FINGERS, 3)
    bones = []
    for bone in range(3):
        if bone > 0:
            rotation = rotation @ turns[..., bone + 1, :, :]
        bones.append(torch.cat([rotation, point[..., None]], -1))
        point = point + rotation[..., 2] * tables.lengths[:, bone, None]
    parts = _as_poses(torch.stack(bones, -3).flatten(-4, -3))
    palm = _fixed(parts.device, parts.dtype).identity.expand(*parts.shape[:-3], 1, 4, 4)
    return torch.cat([palm, parts], -3)


def _as_poses(upper: Tensor) -> Tensor:
    """Rotations and positions [..., 3, 4] -> poses [..., 4, 4]."""
    last = _fixed(upper.device, upper.dtype).identity[3]
    return torch.cat([upper, last.expand(*upper.shape[:-2], 1, 4)], -2)


def keypoints_of(parts: Tensor, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Poses of a hand's rigid parts [..., 16, 4, 4] (parts_in_hand) in any axes -> its keypoints [..., 21, 3] there."""
    lengths = _tables(skeleton, parts.device, parts.dtype).lengths[:, -1:]
    bones = parts[..., 1:, :3, :].unflatten(-3, (NUM_FINGERS, -1))
    tips = bones[..., -1, :, 3] + bones[..., -1, :, 2] * lengths
    joints = torch.cat([bones[..., 3], tips[..., None, :]], -2)
    return torch.cat([parts[..., :1, :3, 3], joints.flatten(-3, -2)], -2)


def keypoints_in_hand(fingers: Tensor, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Finger numbers [..., 7] -> keypoints of a right hand [..., 21, 3] in hand axes, metres, wrist at the origin."""
    return keypoints_of(parts_in_hand(fingers, skeleton), skeleton)


def hand_parts(state: HandState, is_left: Tensor | None = None, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Hand states [...] -> poses of their rigid parts [..., 16, 4, 4], part to world axes, metres (parts_in_hand).

    is_left: bool, broadcastable to [...]; None for right hands. The parts of a left hand are those of a right one in a
    mirror (x negated in hand axes and in each part's own). Differentiable in all parts of the state.
    """
    parts = parts_in_hand(state.fingers, skeleton)
    if is_left is not None:
        parts = torch.where(is_left[..., None, None, None], parts * _fixed(parts.device, parts.dtype).mirror, parts)
    wrist = _as_poses(torch.cat([state.rotation, state.position[..., None]], -1))
    return wrist[..., None, :, :] @ parts


def hand_keypoints(state: HandState, is_left: Tensor | None = None, skeleton: HandSkeleton = ADROIT) -> Tensor:
    """Hand states [...] -> keypoints [..., 21, 3] in world axes, metres, in the order of `KEYPOINT_NAMES`.

    is_left: bool, broadcastable to [...]; None for right hands. Differentiable in all parts of the state.
    """
    return keypoints_of(hand_parts(state, is_left, skeleton), skeleton)


def bone_lengths(keypoints: Tensor) -> Tensor:
    """Keypoints [..., 21, 3] -> lengths of `BONES` [..., 20] in their unit."""
    ends = torch.tensor(BONES, device=keypoints.device)
    return (keypoints[..., ends[:, 1], :] - keypoints[..., ends[:, 0], :]).norm(dim=-1)
