"""Cameras: states, poses, rays. World axes follow OpenCV (x right, y down, z forward; metres), gravity along +y.

A camera state is (x, y, z, yaw, pitch, roll): yaw right, pitch up, roll clockwise, radians; all zero is the identity.
"""

import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from worldscape.conditioning.made_once import kept_while_equal, made_once

METRES_PER_RADIAN = 2.0  # how far apart two cameras must be to differ as much as one radian of turn


def rotation_from_angles(angles: Tensor) -> Tensor:
    """(yaw, pitch, roll) [..., 3] in radians -> camera-to-world rotation Ry(yaw) Rx(pitch) Rz(roll), [..., 3, 3]."""
    (cy, cp, cr), (sy, sp, sr) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    across, along = sy * sp, cy * sp
    right = (torch.addcmul(cy * cr, across, sr), cp * sr, torch.addcmul(-sy * cr, along, sr))
    down = (torch.addcmul(-cy * sr, across, cr), cp * cr, torch.addcmul(sy * sr, along, cr))
    return torch.stack([*right, *down, sy * cp, -sp, cy * cp], -1).unflatten(-1, (3, 3)).mT


def pose_from_state(state: Tensor) -> Tensor:
    """Camera state [..., 6] -> camera-to-world pose [..., 4, 4]."""
    pose = torch.zeros(*state.shape[:-1], 4, 4, dtype=state.dtype, device=state.device)
    pose[..., :3, :3] = rotation_from_angles(state[..., 3:])
    pose[..., :3, 3] = state[..., :3]
    pose[..., 3, 3] = 1.0
    return pose


def pose_from_state_numpy(state: np.ndarray) -> np.ndarray:
    """Camera state [..., 6] -> camera-to-world pose float32 [..., 4, 4]."""
    return pose_from_state(torch.as_tensor(state, dtype=torch.float32)).numpy()


def state_from_pose(pose: Tensor) -> Tensor:
    """Camera-to-world pose [..., 4, 4] -> camera state [..., 6]; the inverse of `pose_from_state` for |pitch| < 90."""
    r = pose[..., :3, :3]
    yaw = torch.atan2(r[..., 0, 2], r[..., 2, 2])
    pitch = torch.asin((-r[..., 1, 2]).clamp(-1.0, 1.0))
    roll = torch.atan2(r[..., 1, 0], r[..., 1, 1])
    return torch.cat([pose[..., :3, 3], torch.stack([yaw, pitch, roll], -1)], -1)


def apply_control(state: Tensor, control: Tensor, max_pitch: float) -> Tensor:
    """Advance camera states [..., 6] by controls [..., 6]: rotate, then walk along the new yaw-levelled axes.

    Control is (right, down, forward) in metres and (yaw, pitch, roll) in radians. Pitch stays within +-max_pitch; a
    camera that looks farther up or down already may stay there or turn back.
    """
    x, y, z, yaw, before, roll = state.unbind(-1)
    right, down, forward, turn, look, tilt = control.unbind(-1)
    yaw = torch.remainder(yaw + turn + math.pi, 2 * math.pi) - math.pi
    pitch = (before + look).clamp(before.clamp_max(-max_pitch), before.clamp_min(max_pitch))
    sin, cos = yaw.sin(), yaw.cos()
    x = x + forward * sin + right * cos
    z = z + forward * cos - right * sin
    return torch.stack([x, y + down, z, yaw, pitch, roll + tilt], -1)


def level_pose(pose: Tensor) -> Tensor:
    """A camera-to-world pose [..., 4, 4], |pitch| < 90 degrees, with pitch and roll removed."""
    forward = pose[..., 0:3:2, 2]  # on the floor plan: (sin yaw, cos yaw) * cos pitch
    sin, cos = normalize(forward, dim=-1).unbind(-1)
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    rotation = _matrix(cos, zero, sin, zero, one, zero, -sin, zero, cos)
    return _with_last_row(rotation, pose[..., :3, 3:], pose)


def angle_difference(camera: Tensor, previous: Tensor) -> Tensor:
    """Realised (yaw, pitch, roll) [B, 3] between two camera states [B, 6], wrapped to +-pi."""
    difference = camera[:, 3:] - previous[:, 3:]
    return torch.remainder(difference + torch.pi, 2 * torch.pi) - torch.pi


def pose_distance(poses: Tensor, others: Tensor) -> Tensor:
    """Cameras [..., N, 4, 4] and [..., M, 4, 4] -> distance [..., N, M] in position and view direction, in radians;
    roll does not count.
    """
    exact = "donot_use_mm_for_euclid_dist"  # which is faster too, for so few
    moved = torch.cdist(poses[..., :3, 3], others[..., :3, 3], compute_mode=exact)
    turned = torch.acos((poses[..., :3, 2] @ others[..., :3, 2].transpose(-1, -2)).clamp(-1.0, 1.0))
    return moved / METRES_PER_RADIAN + turned


def invert_pose(pose: Tensor) -> Tensor:
    """Rigid pose [..., 4, 4] -> its inverse [..., 4, 4]."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    return _with_last_row(rotation, -(rotation @ pose[..., :3, 3:]), pose)


def square_intrinsics(field_of_view: float) -> np.ndarray:
    """Degrees from edge to edge of a square picture -> normalised intrinsics (fx, fy, cx, cy), float32 [4]."""
    focal = 0.5 / math.tan(math.radians(field_of_view / 2))
    return np.array([focal, focal, 0.5, 0.5], np.float32)


def camera_axes(intrinsics: Tensor, size: int) -> Tensor:
    """Normalised intrinsics [..., 4] -> x of rays (z = 1) through the pixel centres of each column, camera axes, and y
    of those of each row: [..., 2, size]."""
    focal, middle = intrinsics.unflatten(-1, (2, 2))[..., None].unbind(-3)
    centres = (torch.arange(size, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5) / size
    return (centres - middle) / focal


def camera_rays(intrinsics: Tensor, size: int, some: slice = slice(None)) -> Tensor:
    """Normalised intrinsics [..., 4] -> rays through the pixel centres, camera axes, z = 1: [..., size, size, 3]; of
    `some` rows and columns only."""
    x, y = camera_axes(intrinsics, size)[..., some].unbind(-2)
    rays = x.new_ones(*x.shape, x.shape[-1], 3)
    rays[..., 0], rays[..., 1] = x[..., None, :], y[..., :, None]
    return rays


@made_once
def centres_along(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Centres of the pixels of one row, or one column: [size]."""
    return torch.arange(size, device=device, dtype=dtype) + 0.5


@made_once
def pixel_centres(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Centres of pixels (column, row): [size, size, 2]."""
    along = centres_along(size, device, dtype)
    return torch.stack([along.expand(size, size), along[:, None].expand(size, size)], -1)


@kept_while_equal
def camera_matrices(intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Normalised intrinsics [..., 4] -> the matrix from camera axes to pixels of a picture of size x size, and its
    inverse: [..., 3, 3] each."""
    focal, centre = (intrinsics * size).split(2, -1)
    zero, one = torch.zeros_like(focal[..., 0]), torch.ones_like(focal[..., 0])
    scale_and_move = (focal, centre), (1.0 / focal, -centre / focal)
    (fx, fy, cx, cy), (gx, gy, dx, dy) = (torch.cat(both, -1).unbind(-1) for both in scale_and_move)
    to_pixels = _matrix(fx, zero, cx, zero, fy, cy, zero, zero, one)
    return to_pixels, _matrix(gx, zero, dx, zero, gy, dy, zero, zero, one)


def pixel_motions(motion: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Motions [B, ..., 3, 4] from one camera's axes to another's -> the same and the way back, in pixels of pictures of
    size x size: turn [2, B, ..., 3, 3] and shift [2, B, ..., 3, 1].

    A point at pixel p = (column, row, 1) and depth d goes to turn @ p * d + shift = (column * z, row * z, z).
    intrinsics [B, 4] are normalised, those of both cameras.
    """
    to_pixels, to_rays = camera_matrices(intrinsics.view(-1, *[1] * (motion.ndim - 3), 4), size)
    turn, shift = motion.split([3, 1], -1)
    turns = torch.stack([turn, turn.mT])
    shifts = torch.stack([shift, -(turn.mT @ shift)])
    return to_pixels @ turns @ to_rays, to_pixels @ shifts


def plucker_map(pose: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Pose [..., 4, 4] relative to a reference, intrinsics [..., 4] -> Pluecker rays [..., 6, size, size].

    Channels are the unit direction d and the moment o x d (metres), which does not change when o slides along the ray.
    """
    rays = camera_rays(intrinsics, size)
    rotation = pose[..., None, None, :3, :3]
    direction = normalize((rotation @ rays[..., None]).squeeze(-1), dim=-1)
    origin = pose[..., None, None, :3, 3].expand_as(direction)
    moment = torch.cross(origin, direction, dim=-1)
    return rearrange(torch.cat([direction, moment], -1), "... h w c -> ... c h w")


def _with_last_row(rotation: Tensor, position: Tensor, pose: Tensor) -> Tensor:
    """Rotation [..., 3, 3] and position [..., 3, 1] as a pose; its last row is that of every pose."""
    return torch.cat([torch.cat([rotation, position], -1), pose[..., 3:, :]], -2)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1).unflatten(-1, (3, 3))
