"""Pictures of things with joints, shown as they are now: each part of what is seen moves on its own.

Like `reproject`: depth is splatted into the view (nearest wins), then each pixel of the view looks back into its
picture, along the way of the part that landed there, and takes the bicubic colour of what it truly sees.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import pixel_centres, pixel_motions
from worldscape.conditioning.reproject import FAR, MIN_DEPTH, NEARER, decode_depth, encode_depth, spread
from worldscape.conditioning.shapes import is_static

AGREEMENT = 0.025  # metres between what a picture holds and what was supposed: less than a finger is thick, twice
NOTHING = 0.9 * FAR  # metres, and more: no surface
PART_BITS = 6  # low bits of a depth that hold the number of a part while depths are compared


class Reposed(NamedTuple):
    """A view out of pictures: rgbd [B, 4, h, w], mask bool [B, 1, h, w]; 0 where they show nothing. is_last bool
    [B, 1, h, w]: it shows something of the last part."""

    rgbd: Tensor
    mask: Tensor
    is_last: Tensor


def repose(rgbd: Tensor, part: Tensor, own: Tensor, to_view: Tensor, joined: Tensor, intrinsics: Tensor) -> Reposed:
    """Show the `own` pixels of N pictures in a view, part by part; each pixel as the first of them that shows it.

    rgbd [B, N, 4, h, h] (RGB and inverse depth in [-1, 1]), part int32 [B, N, h, h] below Q <= 64, own bool
    [B, N, h, h], to_view [B, N, Q, 4, 4] from the camera of each picture to that of the view, by way of what each part
    did in between; joined bool [Q, Q]: parts that go on into each other; intrinsics [B, 4] normalised, shared by
    pictures and view.
    """
    slots, pictures, size = *rgbd.shape[:2], rgbd.shape[-1]
    there, back = torch.cat(pixel_motions(to_view[..., :3, :], intrinsics, size), -1).mT.flatten(4).flatten(1, 3)
    depth, part = decode_depth(rgbd[:, :, 3]).flatten(), part.flatten()
    moving = _Moving(size, to_view.shape[2], pixel_centres(size, rgbd.device, rgbd.dtype).flatten(0, 1))
    fine = _splat(moving, depth, part, own.flatten(), there)
    stored = pack(depth.masked_fill(~own.flatten(), -FAR), part)
    found = _look_back(moving, _candidates(fine), stored, back, joined).of_first((slots, pictures, size**2))
    colours = _sample(rgbd[:, :, :3].flatten(0, 1), found)
    flags = torch.stack([found.is_seen, found.is_seen & (unpack(found.surface) == len(joined) - 1)])
    shown = torch.cat([colours, encode_depth(found.surface)[None]]) * found.is_seen
    place = found.picture.div(pictures, rounding_mode="floor") * size**2 + found.pixel
    whole = rgbd.new_zeros(6, slots * size**2)
    whole.index_add_(1, place, torch.cat([shown, flags.to(shown)]))
    rgbd, flags = whole.view(6, -1, size, size).transpose(0, 1).split([4, 2], 1)
    mask, is_last = (flags > 0.0).split(1, 1)
    return Reposed(rgbd, mask, is_last)


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


class _Moving(NamedTuple):
    """M pictures of size x size pixels, one after another, of `parts` parts each that move on their own; centres
    [size ** 2, 2] of the pixels: column, row."""

    size: int
    parts: int
    centres: Tensor

    def carry(self, pixel: Tensor, depth: Tensor, picture: Tensor, part: Tensor, ways: Tensor) -> tuple[Tensor, Tensor]:
        """Where points at pixels long [N] (of one picture) and depths [C, N] go as parts [C, N] of pictures long [N]
        do, by ways [M Q, 12] (`pixel_motions`, transposed): places [2, C, N] (column, row) and depths [C, N]."""
        number = (part + picture * self.parts).flatten()
        of_column, of_row, of_one, shift = ways.index_select(0, number).mT.contiguous().view(4, 3, *depth.shape)
        column, row = self.centres.index_select(0, pixel).unbind(1)
        turned = torch.addcmul(torch.addcmul(of_one, of_column, column), of_row, row)
        *_, z = moved = torch.addcmul(shift, turned, depth)
        return moved[:2] / z.clamp_min(MIN_DEPTH), z

    def cell(self, place: Tensor, picture: Tensor) -> Tensor:
        """Where places [2, C, N] fall on maps of pictures long [N] with a border of one cell (`bordered`): long
        [C, N]."""
        column, row = place.clamp(-1, self.size).floor_()
        side = self.size + 2
        return torch.add(column, row, alpha=side).long() + (picture * side**2 + side + 1)

    def bordered(self, maps: Tensor, value: float) -> Tensor:
        """Maps [M P] with a border of one cell of this value, as long as they get."""
        return F.pad(maps.view(-1, self.size, self.size), (1, 1, 1, 1), value=value).flatten()


def _chosen(mask: Tensor) -> Tensor:
    """Positions long [N] of what a mask [M P] holds; of everything, where shapes are to be static."""
    if is_static(mask):
        return torch.arange(len(mask), device=mask.device)
    return mask.nonzero()[:, 0]


def _splat(moving: _Moving, depth: Tensor, part: Tensor, own: Tensor, there: Tensor) -> Tensor:
    """Nearest depth that lands in each pixel of the view with the number of its part (`pack`): [M, h, w]."""
    num, side = moving.size**2, moving.size + 2
    which = _chosen(own)
    picture, part = which.div(num, rounding_mode="floor"), part[which]
    place, z = moving.carry(which % num, depth[which][None], picture, part[None], there)
    is_there = (z[0] > MIN_DEPTH) & own[which]
    surface = z.new_full((len(depth) // num * side**2,), FAR)
    landed = torch.where(is_there, pack(z[0], part), FAR)
    surface.scatter_reduce_(0, moving.cell(place, picture)[0], landed, "amin")
    return surface.view(-1, side, side)[:, 1:-1, 1:-1]


def _candidates(fine: Tensor) -> Tensor:
    """Surfaces to try, [3, M P]: as splatted, and the nearest of 3 x 3 and 7 x 7 neighbours (see reproject)."""
    return torch.stack([fine, *spread(fine)]).flatten(1)


class _Found(NamedTuple):
    """What may be seen of pictures long [N] in pixels of the view long [N]: the surface that is there, in metres (its
    part packed in), its place in the picture [2, N], and whether it truly is there, bool [N]."""

    picture: Tensor
    pixel: Tensor
    surface: Tensor
    place: Tensor
    is_seen: Tensor

    def of_first(self, shape: tuple[int, int, int]) -> "_Found":
        """The same, in each pixel only of the first picture that shows it; shape [B, N, P] of pictures and pixels."""
        where = self.picture * shape[2] + self.pixel
        shown = self.is_seen.new_zeros(math.prod(shape)).index_put_((where,), self.is_seen)
        taken, *others = shown.view(shape).unbind(1)
        for other in others:
            other.logical_and_(~taken)
            taken = taken | other
        is_first = shown[where]
        if is_static(is_first):
            return self._replace(is_seen=is_first)
        rows = is_first.nonzero()[:, 0]
        return _Found(*(part[..., rows] for part in self))


def _look_back(moving: _Moving, surfaces: Tensor, stored: Tensor, back: Tensor, joined: Tensor) -> _Found:
    """Supposed surfaces [C, M P] with their parts, the widest last -> those that really are there. stored [M P]: depth
    that the picture holds, with its part."""
    num = moving.size**2
    which = _chosen(surfaces[-1] < NOTHING)
    surface, picture, pixel = surfaces.index_select(1, which), which.div(num, rounding_mode="floor"), which % num
    supposed = unpack(surface)
    place, z = moving.carry(pixel, surface, picture, supposed, back)
    held = moving.bordered(stored, -FAR)[moving.cell(place, picture)]
    is_joined = joined.flatten()[supposed * len(joined) + unpack(held)]
    sees = is_joined & ((held - z).abs() < AGREEMENT) & (z > MIN_DEPTH) & (surface < NOTHING)
    chosen, chosen_place, seen = surface[0], place[:, 0], sees[0]
    for number in range(1, len(surface)):
        take = sees[number] & (~seen | (surface[number] < NEARER * chosen))
        chosen, seen = torch.where(take, surface[number], chosen), seen | take
        chosen_place = torch.where(take, place[:, number], chosen_place)
    return _Found(picture, pixel, chosen, chosen_place, seen)


def _sample(pictures: Tensor, found: _Found) -> Tensor:
    """Bicubic colours [3, N] of pictures [M, 3, h, h] at the places that were found, which are in the order of the
    pictures; edges repeated beyond."""
    grid = (found.place.mT * (2.0 / pictures.shape[-1]) - 1.0).clamp(-2.0, 2.0)
    if is_static(pictures):
        filled, padded = slice(None), grid.view(len(pictures), -1, 1, 2)
    else:
        counts = found.picture.bincount(minlength=len(pictures))
        filled = torch.arange(max(int(counts.max()), 1)) < counts[:, None]
        padded = grid.new_zeros(*filled.shape, 1, 2)
        padded[filled] = grid[:, None]
    colours = F.grid_sample(pictures, padded, "bicubic", "border", align_corners=False)
    return colours[..., 0].transpose(0, 1)[:, filled].flatten(1).clamp_(-1.0, 1.0)
