"""Pictures of things with joints, shown as they are now: each part of what is seen moves on its own.

Like `reproject`: depth is splatted into the view (nearest wins), then each pixel of the view looks back into its
picture, along the way of the part that landed there, and takes the bicubic colour of what it truly sees.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.reproject import FAR, MIN_DEPTH, NEARER, decode_depth, encode_depth

AGREEMENT = 0.025  # metres between what a picture holds and what was supposed: less than a finger is thick, twice
NOTHING = 0.9 * FAR  # metres, and more: no surface
PART_BITS = 5  # low bits of a depth that hold the number of a part while depths are compared


class Reposed(NamedTuple):
    """The view as each of N pictures shows it: rgbd [B, N, 4, h, w], mask bool [B, N, h, w]; 0 where it shows none."""

    rgbd: Tensor
    mask: Tensor


def repose(rgbd: Tensor, part: Tensor, own: Tensor, to_view: Tensor, joined: Tensor, intrinsics: Tensor) -> Reposed:
    """Show the `own` pixels of N pictures in a view, part by part.

    rgbd [B, N, 4, h, h] (RGB and inverse depth in [-1, 1]), part long [B, N, h, h] below Q <= 32, own bool
    [B, N, h, h], to_view [B, N, Q, 4, 4] from the camera of each picture to that of the view, by way of what each part
    did in between; joined bool [Q, Q]: parts that go on into each other; intrinsics [B, 4] normalised, shared by
    pictures and view.
    """
    shape, size = rgbd.shape[:2], rgbd.shape[-1]
    pixels = (intrinsics * size).repeat_interleave(shape[1], 0)
    rays = camera_rays(intrinsics, size).flatten(1, 2).repeat_interleave(shape[1], 0)
    there, back = to_view.flatten(0, 1), invert_pose(to_view).flatten(0, 1)
    depth = decode_depth(rgbd[:, :, 3]).flatten(0, 1).flatten(1)
    part, own = part.flatten(0, 1).flatten(1), own.flatten(0, 1).flatten(1)
    fine = _splat(rays * depth[..., None], part, own, there, pixels, size)
    stored = pack(depth.masked_fill(~own, -FAR), part.to(torch.int32))
    surface, place, mask = _look_back(_candidates(fine), rays, stored, back, joined, pixels, size)
    grid = (place * (2.0 / size) - 1.0).clamp(-2.0, 2.0).unflatten(1, (size, size))
    rgb = F.grid_sample(rgbd[:, :, :3].flatten(0, 1), grid, "bicubic", "border", align_corners=False).clamp(-1.0, 1.0)
    shown = torch.cat([rgb, encode_depth(surface).unflatten(1, (1, size, size))], 1)
    mask = mask.unflatten(1, (size, size))
    shown = shown.masked_fill(~mask[:, None], 0.0)
    return Reposed(shown.unflatten(0, shape), mask.unflatten(0, shape))


def least_with_number(values: Tensor, number: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The least of float32 `values` along an axis, and the number (int32 below 32, broadcastable to values) beside it.

    The numbers travel in the last bits of the values, which lose 2^-18 of their size: an `argmin` takes twenty times as
    long on a CPU.
    """
    least = pack(values, number).amin(axis)
    return least, unpack(least)


def pack(values: Tensor, number: Tensor) -> Tensor:
    """float32 values with a number (int32 below 32) each in their last bits."""
    kept = values.view(torch.int32).bitwise_and(-(1 << PART_BITS))
    return kept.bitwise_or(number).view(torch.float32)


def unpack(values: Tensor) -> Tensor:
    """The numbers in packed values, long."""
    return values.view(torch.int32).bitwise_and((1 << PART_BITS) - 1).long()


def _carry(points: Tensor, part: Tensor, matrices: Tensor) -> Tensor:
    """Points [M, P, 3] of parts long [M, P], moved by matrices [M, Q, 4, 4]: [M, P, 3]."""
    first = torch.arange(len(matrices), device=part.device)[:, None] * matrices.shape[1]
    rows = matrices[:, :, :3].flatten(2).flatten(0, 1).index_select(0, (part + first).flatten())
    rows = rows.view(*part.shape, 3, 4)
    return (rows[..., :3] * points[..., None, :]).sum(-1) + rows[..., 3]


def _project(points: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Camera coordinates [M, P, 3] -> places [M, P, 2] (column, row; 0 at the left and upper edge), and depths."""
    z = points[..., 2]
    return points[..., :2] / z.clamp_min(MIN_DEPTH)[..., None] * pixels[:, None, :2] + pixels[:, None, 2:], z


def _splat(points: Tensor, part: Tensor, own: Tensor, there: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Nearest depth that lands in each pixel of the view with the number of its part (`pack`): [M, h, w]."""
    place, z = _project(_carry(points, part, there), pixels)
    cell = place.floor().long()
    is_inside = (z > MIN_DEPTH) & ((cell >= 0) & (cell < size)).all(-1) & own
    index = torch.where(is_inside, cell[..., 1] * size + cell[..., 0], size * size)  # one more takes what falls outside
    surface = z.new_full((len(z), size * size + 1), FAR)
    surface.scatter_reduce_(1, index, pack(z, part.to(torch.int32)), "amin")
    return surface[:, :-1].unflatten(1, (size, size))


def _candidates(fine: Tensor) -> Tensor:
    """Surfaces to try, [M, 3, P]: as splatted, and the nearest of 3 x 3 and 7 x 7 neighbours (see reproject)."""
    near = -F.max_pool2d(-fine[:, None], 3, 1, 1)
    return torch.cat([fine[:, None], near, -F.max_pool2d(-near, 5, 1, 2)], 1).flatten(2)


def _look_back(
    surfaces: Tensor, rays: Tensor, stored: Tensor, back: Tensor, joined: Tensor, pixels: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Supposed surfaces [M, C, P] with their parts -> the one that is really there, [M, P], its place in the picture
    [M, P, 2], and whether there is one, bool [M, P]. stored [M, P]: depth that the picture holds, with its part."""
    num = surfaces.shape[1]
    points = (rays[:, None] * surfaces[..., None]).flatten(1, 2)
    supposed = unpack(surfaces).flatten(1)
    place, z = _project(_carry(points, supposed, back), pixels)
    cell = place.floor()
    is_inside = ((cell >= 0) & (cell < size)).all(-1) & (z > MIN_DEPTH)
    cell = cell.clamp(0, size - 1).long()
    held = stored.gather(1, cell[..., 1] * size + cell[..., 0])
    is_joined = joined.flatten()[supposed * len(joined) + unpack(held)]
    sees = (is_inside & is_joined & ((held - z).abs() < AGREEMENT)).unflatten(1, (num, -1)) & (surfaces < NOTHING)
    place = place.unflatten(1, (num, -1))
    chosen, chosen_place, seen = surfaces[:, 0], place[:, 0], sees[:, 0]
    for number in range(1, num):
        surface = surfaces[:, number]
        take = sees[:, number] & (~seen | (surface < NEARER * chosen))
        chosen, seen = torch.where(take, surface, chosen), seen | take
        chosen_place = torch.where(take[..., None], place[:, number], chosen_place)
    return chosen, chosen_place, seen
