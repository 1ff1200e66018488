"""Pictures of things with joints, shown as they are now: each part of what is seen moves on its own.

Like `reproject`: depth is splatted into the view (nearest wins), then each pixel of the view looks back into its
picture, along the way of the part that landed there, and takes the bicubic colour of what it truly sees.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.reproject import FAR, MIN_DEPTH, NEARER, decode_depth, encode_depth, spread
from worldscape.conditioning.shapes import is_static

AGREEMENT = 0.025  # metres between what a picture holds and what was supposed: less than a finger is thick, twice
NOTHING = 0.9 * FAR  # metres, and more: no surface
PART_BITS = 6  # low bits of a depth that hold the number of a part while depths are compared


class Reposed(NamedTuple):
    """The view as each of N pictures shows it: rgbd [B, N, 4, h, w], mask bool [B, N, h, w]; 0 where it shows none.
    is_last bool [B, N, h, w]: what it supposes there is of the last part."""

    rgbd: Tensor
    mask: Tensor
    is_last: Tensor


def repose(rgbd: Tensor, part: Tensor, own: Tensor, to_view: Tensor, joined: Tensor, intrinsics: Tensor) -> Reposed:
    """Show the `own` pixels of N pictures in a view, part by part.

    rgbd [B, N, 4, h, h] (RGB and inverse depth in [-1, 1]), part long [B, N, h, h] below Q <= 64, own bool
    [B, N, h, h], to_view [B, N, Q, 4, 4] from the camera of each picture to that of the view, by way of what each part
    did in between; joined bool [Q, Q]: parts that go on into each other; intrinsics [B, 4] normalised, shared by
    pictures and view.
    """
    shape, size = rgbd.shape[:2], rgbd.shape[-1]
    view = _Views(
        rays=camera_rays(intrinsics, size).flatten(1, 2).repeat_interleave(shape[1], 0).flatten(0, 1),
        pixels=(intrinsics * size).repeat_interleave(shape[1], 0),
        size=size,
    )
    there, back = to_view.flatten(0, 1), invert_pose(to_view).flatten(0, 1)
    depth = decode_depth(rgbd[:, :, 3]).flatten()
    part, own = part.flatten(), own.flatten()
    fine = _splat(view, depth, part, own, there)
    stored = pack(depth.masked_fill(~own, -FAR), part.to(torch.int32))
    found = _look_back(view, _candidates(fine), stored, back, joined)
    is_last = unpack(found.surface) == len(joined) - 1
    flags = torch.stack([torch.ones_like(is_last), is_last], 1).to(rgbd)
    columns = [_sample(rgbd[:, :, :3].flatten(0, 1), found), encode_depth(found.surface)[:, None], flags]
    whole = rgbd.new_zeros(len(depth), 6)
    whole[found.pixel] = torch.where(found.is_seen[:, None], torch.cat(columns, 1), 0.0)
    shown, flags = whole.view(*shape, -1, 6).mT.unflatten(-1, (size, size)).split([4, 2], 2)
    mask, is_last = (flags > 0.0).unbind(2)
    return Reposed(shown, mask, is_last)


def least_with_number(values: Tensor, number: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The least of float32 `values` along an axis, and the number (int32 below 64, broadcastable to values) beside it.

    The numbers travel in the last bits of the values, which lose 2^-17 of their size: an `argmin` takes twenty times as
    long on a CPU.
    """
    least = pack(values, number).amin(axis)
    return least, unpack(least)


def pack(values: Tensor, number: Tensor) -> Tensor:
    """float32 values with a number (int32 below 64) each in their last bits."""
    kept = values.view(torch.int32).bitwise_and(-(1 << PART_BITS))
    return kept.bitwise_or_(number).view(torch.float32)


def unpack(values: Tensor) -> Tensor:
    """The numbers in packed values, long."""
    return values.view(torch.int32).bitwise_and((1 << PART_BITS) - 1).long()


class _Views(NamedTuple):
    """M pictures of P pixels each, one after another: rays [M P, 3] through all pixels, and fx, fy, cx, cy in pixels
    [M, 4]; size: height and width."""

    rays: Tensor
    pixels: Tensor
    size: int

    def project(self, points: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, 3] in the axes of the cameras of pictures long [N] -> places [N, 2] (column, row; 0 at the left
        and upper edge), and depths."""
        z, pixels = points[:, 2], self.pixels[picture]
        return points[:, :2] / z.clamp_min(MIN_DEPTH)[:, None] * pixels[:, :2] + pixels[:, 2:], z

    def cell(self, place: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The pixel in its picture that places [N, 2] fall on (any, outside), and whether it is one."""
        cell = place.floor()
        is_inside = ((cell >= 0) & (cell < self.size)).all(-1) & (z > MIN_DEPTH)
        cell = cell.clamp(0, self.size - 1).long()
        return cell[:, 1] * self.size + cell[:, 0], is_inside


def _chosen(mask: Tensor) -> Tensor:
    """Positions long [N] of what a mask [M P] holds; of everything, where shapes are to be static."""
    if is_static(mask):
        return torch.arange(len(mask), device=mask.device)
    return mask.nonzero()[:, 0]


def _carry(points: Tensor, part: Tensor, picture: Tensor, matrices: Tensor) -> Tensor:
    """Points [N, 3] of parts long [N] of pictures long [N], moved by matrices [M, Q, 4, 4]: [N, 3]."""
    rows = matrices[:, :, :3].flatten(2).flatten(0, 1).index_select(0, part + picture * matrices.shape[1])
    x, y, z, shift = rows.view(-1, 3, 4).unbind(2)
    moved = torch.addcmul(torch.addcmul(shift, x, points[:, :1]), y, points[:, 1:2])
    return moved.addcmul_(z, points[:, 2:])


def _splat(view: _Views, depth: Tensor, part: Tensor, own: Tensor, there: Tensor) -> Tensor:
    """Nearest depth that lands in each pixel of the view with the number of its part (`pack`): [M, h, w]."""
    num = view.size**2
    which = _chosen(own)
    picture = which.div(num, rounding_mode="floor")
    points = _carry(view.rays[which] * depth[which, None], part[which], picture, there)
    place, z = view.project(points, picture)
    cell, is_inside = view.cell(place, z)
    is_inside = is_inside & own[which]
    index = torch.where(is_inside, picture * num + cell, len(depth))  # one more takes what falls outside
    surface = z.new_full((len(depth) + 1,), FAR)
    surface.scatter_reduce_(0, index, pack(z, part[which].to(torch.int32)), "amin")
    return surface[:-1].view(-1, view.size, view.size)


def _candidates(fine: Tensor) -> Tensor:
    """Surfaces to try, [M P, 3]: as splatted, and the nearest of 3 x 3 and 7 x 7 neighbours (see reproject)."""
    return torch.stack([fine, *spread(fine)], -1).flatten(0, 2)


class _Found(NamedTuple):
    """Pixels of the views that may show something, long [N] (of M P), each with the surface that is there, in metres
    (its part packed in), its place in the picture [N, 2], and whether it truly is there, bool [N]."""

    pixel: Tensor
    surface: Tensor
    place: Tensor
    is_seen: Tensor


def _look_back(view: _Views, surfaces: Tensor, stored: Tensor, back: Tensor, joined: Tensor) -> _Found:
    """Supposed surfaces [M P, C] with their parts, the widest last -> those that really are there. stored [M P]: depth
    that the picture holds, with its part."""
    num, tried = view.size**2, surfaces.shape[1]
    which = _chosen(surfaces[:, -1] < NOTHING)
    surface = surfaces[which]
    picture = which.div(num, rounding_mode="floor").repeat_interleave(tried)
    points, supposed = (view.rays[which, None] * surface[..., None]).flatten(0, 1), unpack(surface).flatten()
    place, z = view.project(_carry(points, supposed, picture, back), picture)
    cell, is_inside = view.cell(place, z)
    held = stored[picture * num + cell]
    is_joined = joined.flatten()[supposed * len(joined) + unpack(held)]
    sees = (is_inside & is_joined & ((held - z).abs() < AGREEMENT)).view(-1, tried) & (surface < NOTHING)
    place = place.view(-1, tried, 2)
    chosen, chosen_place, seen = surface[:, 0], place[:, 0], sees[:, 0]
    for number in range(1, tried):
        take = sees[:, number] & (~seen | (surface[:, number] < NEARER * chosen))
        chosen, seen = torch.where(take, surface[:, number], chosen), seen | take
        chosen_place = torch.where(take[:, None], place[:, number], chosen_place)
    return _Found(which, chosen, chosen_place, seen)


def _sample(pictures: Tensor, found: _Found) -> Tensor:
    """Bicubic colours [N, 3] of pictures [M, 3, h, h] at the places that were found, edges repeated beyond."""
    num, size = len(pictures), pictures.shape[-1]
    picture = found.pixel.div(size**2, rounding_mode="floor")
    if is_static(pictures):
        order, most = found.pixel % size**2, size**2
    else:
        counts = picture.bincount(minlength=num)
        order, most = torch.arange(len(picture)) - (counts.cumsum(0) - counts)[picture], max(int(counts.max()), 1)
    grid = found.place.new_zeros(num, most, 1, 2)
    grid[picture, order, 0] = (found.place * (2.0 / size) - 1.0).clamp(-2.0, 2.0)
    colours = F.grid_sample(pictures, grid, "bicubic", "border", align_corners=False)
    return colours[picture, :, order, 0].clamp(-1.0, 1.0)
