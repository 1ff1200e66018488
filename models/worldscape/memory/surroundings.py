"""Surroundings: what memory and the current picture show around the walker, as the way to the nearest surface and as
plan views, turned so that the commanded walk points up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.camera import camera_rays
from worldscape.conditioning.made_once import kept_while_equal
from worldscape.conditioning.reproject import decode_depth
from worldscape.config import BodyConfig

CELL = 0.1  # metres a cell
CELLS = 24  # cells a side
BEHIND = 0.7  # metres of the view that lie behind the walker
NEAR_CHANNELS = 4  # of surroundings_along: two plan views
STRIDE = 2  # pixels of the current picture between the points that stand for it
STANDING = 1e-6  # metres: a shorter walk has no direction


class Surfaces(NamedTuple):
    """Remembered surfaces: points [B, N, 3] in world axes (y down), metres; known bool [B, N], False for padding."""

    points: Tensor
    known: Tensor

    @classmethod
    def of(cls, points: Tensor) -> "Surfaces":
        """Those of points_in, [..., 3, N], all known."""
        return cls(points.mT, torch.ones_like(points[..., 0, :], dtype=torch.bool))

    def clearance(self, position: Tensor, body: BodyConfig) -> Tensor:
        """Metres on the floor plan from `position` [B, 3] to the nearest surface at body height: [B], inf for none."""
        x, down, z = self._offset(position)
        is_in_way = (down > -body.above) & (down < body.below) & self.known
        distance = x.square() + z.square()
        return torch.where(is_in_way, distance, torch.inf).amin(1).sqrt()

    def plan_view(self, position: Tensor, walk: Tensor, body: BodyConfig) -> Tensor:
        """How many points lie in each cell around the camera at `position` [B, 3]: log(1 + n), [B, 2, CELLS, CELLS].

        walk [B, 3] is the commanded displacement in world axes, of which the floor plan counts. Channel 0 holds points
        at body height, channel 1 points below (floor). Row 0 lies farthest ahead. A walk of no length has an empty
        view.
        """
        length = walk[:, 0::2].norm(dim=-1, keepdim=True)
        ahead = walk[:, 0::2] / length.clamp_min(STANDING)
        x, down, z = self._offset(position)
        forward = x * ahead[:, :1] + z * ahead[:, 1:]
        aside = z * ahead[:, :1] - x * ahead[:, 1:]
        row = CELLS - 1 - ((forward + BEHIND) / CELL).floor().long()
        column = (aside / CELL + CELLS / 2).floor().long()
        is_inside = (row >= 0) & (row < CELLS) & (column >= 0) & (column < CELLS) & self.known & (length > STANDING)
        is_floor = down >= body.below
        cell = is_floor.long() * CELLS**2 + row * CELLS + column
        cell = torch.where(is_inside & (is_floor | (down > -body.above)), cell, 2 * CELLS**2)
        counts = self.points.new_zeros(len(walk), 2 * CELLS**2 + 1)
        counts.scatter_add_(1, cell, torch.ones_like(forward))
        return counts[:, :-1].log1p().unflatten(1, (2, CELLS, CELLS))

    def _offset(self, position: Tensor) -> list[Tensor]:
        """The points seen from `position` [B, 3]: x, y, z [B, N] each, which is faster than all with an axis of 3."""
        return [points - at[:, None] for points, at in zip(self.points.unbind(-1), position.unbind(-1), strict=True)]


def every(stride: int) -> slice:
    """Rows (and columns) of a picture whose points stand for it."""
    return slice(stride // 2, None, stride)


def points_in(depth: Tensor, pose: Tensor, intrinsics: Tensor, size: int, stride: int = STRIDE) -> Tensor:
    """The points that pictures of size x size pixels show from poses [..., 4, 4], each axis apart: [..., 3, N].

    depth: metres at `every(stride)` row and column of them, [..., n, n]. intrinsics [..., 4] normalised.
    """
    points = _some_rays(intrinsics, size, stride) * depth.flatten(-2)[..., None, :]
    return pose[..., :3, :3] @ points + pose[..., :3, 3:]


def points_shown(rgbd: Tensor, pose: Tensor, intrinsics: Tensor, stride: int = STRIDE) -> Tensor:
    """The points, every stride-th pixel, that RGB-D pictures [B, 4, h, h] show from poses [B, 4, 4]: [B, 3, N]."""
    depth = decode_depth(rgbd[:, 3, every(stride), every(stride)])
    return points_in(depth, pose, intrinsics, rgbd.shape[-1], stride)


@kept_while_equal
def _some_rays(intrinsics: Tensor, size: int, stride: int) -> Tensor:
    """Rays, z = 1, through the pixels that stand for a picture, each axis apart: [..., 3, N]."""
    return camera_rays(intrinsics, size, every(stride)).flatten(-3, -2).mT.contiguous()


def surroundings_along(
    remembered: Surfaces, current: Surfaces, position: Tensor, walk: Tensor, body: BodyConfig
) -> Tensor:
    """What the motion head reads: the plan view of all that is remembered, then that of the current picture, which it
    shows more finely: [B, 4, CELLS, CELLS]. position and walk are those of `plan_view`."""
    return torch.cat([surfaces.plan_view(position, walk, body) for surfaces in (remembered, current)], 1)
