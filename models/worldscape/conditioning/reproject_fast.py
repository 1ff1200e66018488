"""Inference-only twin of `reproject`: the same anchor to rounding, with a third of the operations.

Pictures taken from the view's own place are laid over each other. Elsewhere pixels go from picture to view by one 3x3
matrix and one offset per pair, both in pixel units. Maps carry a border that stands for "outside", so that nothing is
asked about edges, and only the chosen source is sampled, from one atlas.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import centres_along, pixel_motions
from worldscape.conditioning.reproject import (
    BLUR_RATIO,
    DEPTH_MARGIN,
    DEPTH_TOLERANCE,
    FAR,
    MIN_DEPTH,
    NEARER,
    Anchor,
    decode_depth,
    encode_depth,
    pixelwise,
    spread,
    stand_still,
)
from worldscape.conditioning.shapes import is_static, row_by_row

MARGIN = 2  # rows repeated around each picture of the atlas: what a bicubic kernel reaches


class Warp(NamedTuple):
    """How pixels travel: a point at pixel p and depth d goes to turn(p) * d + shift = (column * z, row * z, z).

    turn [B, N, 3, P] of every pixel, shift [B, N, 3, 1].
    """

    turn: Tensor
    shift: Tensor


def reproject_fast(rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor) -> Anchor:
    """Exactly the arguments and, to rounding, the result of `reproject`."""
    parts = (rgbd, poses, pixelwise(valid, rgbd), target, intrinsics)
    if is_static(rgbd):
        both = _warp(*parts)
    else:
        both = row_by_row(stand_still(poses, target, valid), _overlay, _warp, parts)
    return Anchor(*both.split([rgbd.shape[2], 1], 1))


def _overlay(rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor) -> Tensor:
    """The anchor with its mask [B, 5, h, w] from pictures that were all taken from the view's place."""
    depth = decode_depth(rgbd[:, :, 3])
    counts = valid & (depth > MIN_DEPTH)
    surface = depth.masked_fill(~counts, FAR).amin(1, keepdim=True)
    sees = counts & (depth - surface < DEPTH_TOLERANCE * surface + DEPTH_MARGIN)
    colours = rgbd[:, -1, :3]
    for number in range(rgbd.shape[1] - 2, -1, -1):
        colours = torch.where(sees[:, number : number + 1], rgbd[:, number, :3], colours)
    return _anchored(colours, surface.flatten(2), (surface < FAR).flatten(1))


def _warp(rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor) -> Tensor:
    """The anchor with its mask [B, 5, h, w], from pictures taken anywhere."""
    size, invalid = rgbd.shape[-1], ~valid.flatten(2)
    depth = decode_depth(rgbd[:, :, 3]).flatten(2)
    to_target, to_source = _warps(poses, target, intrinsics, size)
    surfaces = _candidates(_splat_depth(depth, to_target, invalid, size))
    if is_static(depth):  # else pictures from the view's place are laid over each other
        surfaces = torch.where(stand_still(poses, target, valid)[:, None, None], surfaces[:, :1], surfaces)
    index, mask, sees = _choose(surfaces, _look_back(depth, surfaces, to_source, invalid, size))
    surface = surfaces.gather(1, index)
    colours = _sample_best(rgbd[:, :, :3], surface, sees, to_source)
    return _anchored(colours, surface, mask)


def _anchored(colours: Tensor, surface: Tensor, mask: Tensor) -> Tensor:
    """Colours [B, 3, h, w] and surfaces [B, 1, P] where the mask bool [B, P] holds, and the mask: [B, 5, h, w]."""
    shown = torch.cat([colours, encode_depth(surface).unflatten(2, colours.shape[2:])], 1)
    mask = mask.to(colours.dtype).view_as(shown[:, :1])
    return torch.cat([shown * mask, mask], 1)


def _warps(poses: Tensor, target: Tensor, intrinsics: Tensor, size: int) -> tuple[Warp, Warp]:
    """Pictures -> view and view -> pictures, of poses [B, N, 4, 4] and target [B, 4, 4]."""
    relative = poses[:, :, :3] - F.pad(target[:, None, :3, 3:], (3, 0))
    turns, shifts = pixel_motions(target[:, None, :3, :3].mT @ relative, intrinsics, size)
    along = centres_along(size, poses.device, poses.dtype)
    # Pixels stand in rows and columns: the sum of what a column and what a row contribute is a third of a product.
    columns, rows = turns[..., :1] * along, torch.addcmul(turns[..., 2:], turns[..., 1:2], along)
    seen = (rows[..., None] + columns[..., None, :]).flatten(-2)
    return Warp(seen[0], shifts[0]), Warp(seen[1], shifts[1])


def _splat_depth(depth: Tensor, warp: Warp, invalid: Tensor, size: int) -> Tensor:
    """Nearest depth that lands in each pixel of the target view: [B, h, w] metres, FAR where nothing lands."""
    seen = torch.addcmul(warp.shift, warp.turn, depth[:, :, None])
    z = seen[:, :, 2]
    cell = _bordered_cell(seen[:, :, :2], z, size)
    z = z.masked_fill((z <= MIN_DEPTH) | invalid, FAR)
    surface = depth.new_full((len(depth), (size + 2) ** 2), FAR)
    surface.scatter_reduce_(1, cell.flatten(1), z.flatten(1), "amin")
    return surface.unflatten(1, (size + 2, size + 2))[:, 1:-1, 1:-1]


def _bordered_cell(scaled: Tensor, z: Tensor, size: int) -> Tensor:
    """Where (column * z, row * z) [B, N, 2, ...] with z [B, N, ...] falls on a map with a border of one cell: long."""
    place = (scaled / z.clamp_min(MIN_DEPTH)[:, :, None]).clamp_(-1, size).floor_()
    return torch.add(place[:, :, 0], place[:, :, 1], alpha=size + 2).add_(size + 3).long()


def _candidates(fine: Tensor) -> Tensor:
    """Surfaces to try, [B, 3, P]: as splatted, least of 3x3 and least of 7x7 neighbours (see reproject)."""
    return torch.stack([fine, *spread(fine)], 1).flatten(2)


def _look_back(depth: Tensor, surfaces: Tensor, warp: Warp, invalid: Tensor, size: int) -> Tensor:
    """Which of the N pictures truly see the supposed surfaces [B, C, P]: bool [B, N, C, P]."""
    seen = torch.addcmul(warp.shift[..., None], warp.turn[:, :, :, None], surfaces[:, None, None])
    z = seen[:, :, 2]
    cell = _bordered_cell(seen[:, :, :2], z, size).flatten(2)
    known = depth.masked_fill(invalid, -FAR).unflatten(2, (size, size))
    stored = F.pad(known, (1, 1, 1, 1), value=-FAR).flatten(2).gather(2, cell).view_as(z)
    disagreement = (stored - z).abs_().sub_(z, alpha=DEPTH_TOLERANCE)
    return (disagreement < DEPTH_MARGIN) & (z > MIN_DEPTH)


def _choose(surfaces: Tensor, sees: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per pixel the finest surface that is seen, unless a wider one is seen clearly in front of it.

    Returns its number long [B, 1, P], whether it is seen bool [B, P], and by which pictures bool [B, N, P].
    """
    fine, near, wide = surfaces.unbind(1)
    first, second, third = sees.any(1).unbind(1)
    take_near = second & (~first | (near < NEARER * fine))
    seen = first | take_near
    take_wide = third & (~seen | (wide < NEARER * torch.where(take_near, near, fine)))
    index = torch.maximum(take_near.long(), 2 * take_wide.long())[:, None]
    chosen = sees.gather(2, index[:, :, None].expand(-1, sees.shape[1], -1, -1))
    return index, seen | take_wide, chosen[:, :, 0]


def _sample_best(rgb: Tensor, surface: Tensor, sees: Tensor, warp: Warp) -> Tensor:
    """Colours [B, 3, h, w] of the surface [B, 1, P] in the first picture that shows it sharply, of rgb [B, N, 3, h, w].

    Where no picture sees the surface the colours mean nothing.
    """
    n, size = rgb.shape[1], rgb.shape[-1]
    seen = torch.addcmul(warp.shift, warp.turn, surface[:, :, None])
    order = torch.arange(n, device=rgb.device, dtype=rgb.dtype)[:, None] * 1e-3
    cost = (seen[:, :, 2] / (BLUR_RATIO * surface)).clamp_min_(1.0).add_(order)
    best = _first_least(cost.masked_fill_(~sees, torch.inf))
    x, y, z = seen.gather(1, best[:, None, None].expand(-1, -1, 3, -1))[:, 0].unbind(1)
    z, height = z.clamp_min(MIN_DEPTH), size + 2 * MARGIN
    row = (y / z).clamp_(-1, size + 1).add_(best, alpha=height)
    grid = torch.stack([x / z * (2 / size) - 1, (row + MARGIN) * (2 / (n * height)) - 1], -1).clamp_(-2, 2)
    pictures = _atlas(rgb)
    colours = F.grid_sample(pictures, grid.unflatten(1, (size, size)), "bicubic", "border", align_corners=False)
    return colours.clamp_(-1.0, 1.0)


def _first_least(cost: Tensor) -> Tensor:
    """cost.argmin(1) of [B, N, P] for a small N, which on a CPU takes several times as long."""
    least, best = cost[:, 0], torch.zeros_like(cost[:, 0], dtype=torch.long)
    for number in range(1, cost.shape[1]):
        best = torch.where(cost[:, number] < least, number, best)
        least = torch.minimum(least, cost[:, number])
    return best


def _atlas(rgb: Tensor) -> Tensor:
    """Pictures [B, N, 3, h, w] one below the other, edge rows repeated: [B, 3, N * (h + 2 * MARGIN), w]."""
    pictures = rgb.transpose(1, 2)
    first, last = pictures[:, :, :, :1], pictures[:, :, :, -1:]
    return torch.cat([first] * MARGIN + [pictures] + [last] * MARGIN, 3).flatten(2, 3)
