"""Reprojection: what the pictures in memory show of a view about to be dreamed.

All batched and of static shape. Stored depths are splatted into the new view (nearest wins); each pixel of the new view
then looks back into the stored pictures and takes the (bicubic) colour of the best one that truly sees that point.
Looking back keeps the result as sharp as its source, and refuses surfaces that are not there. What pictures show where
things move is sorted out before, in `believed` and in layers.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.shapes import is_static, row_by_row

NEARER = 0.85  # a wider surface replaces a finer one when it is nearer by at least this factor
FAR = 1.0e4  # metres; stands for "nothing here" while splatting
DEPTH_TOLERANCE = 0.06  # relative disagreement of depth up to which a stored picture sees the same point,
DEPTH_MARGIN = 0.05  # and metres more
BLUR_RATIO = 1.5  # a picture taken up to so many times farther away still counts as sharp
SAME = 0.08  # mean difference of colours, which go from -1 to 1, below which two pictures say the same
STILL = 1e-5  # metres and parts of a rotation by which cameras differ that stand in one place
SAME_SURFACE = 0.05  # relative difference of depth up to which two frames show the same surface
MIN_DEPTH = 0.05  # metres; nearer points are behind or inside the camera


class Anchor(NamedTuple):
    """A view rebuilt from memory: rgbd [B, 4, h, w] (RGB in [-1, 1], inverse depth in [-1, 1]), mask [B, 1, h, w]."""

    rgbd: Tensor
    mask: Tensor


def encode_depth(depth: Tensor) -> Tensor:
    """Metric depth z >= 0 -> inverse depth 2 / (1 + z) - 1 in [-1, 1]: 1 at the camera, -1 infinitely far."""
    return 2.0 / (1.0 + depth) - 1.0


def decode_depth(inverse: Tensor, max_depth: float = 50.0) -> Tensor:
    """The inverse of encode_depth, metres, limited to [0, max_depth]."""
    return 2.0 / (inverse + 1.0).clamp(2.0 / (1.0 + max_depth), 2.0) - 1.0


def same_surface(anchor: Anchor, depth: Tensor) -> Tensor:
    """Where a rebuilt view shows the surface that its depth [B, h, w], metres, says is there: bool [B, h, w]."""
    return (anchor.mask[:, 0] > 0.5) & ((decode_depth(anchor.rgbd[:, 3]) - depth).abs() < SAME_SURFACE * depth)


def reproject(rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor) -> Anchor:
    """Rebuild the view from `target` out of N stored pictures.

    rgbd [B, N, 4, h, h] (RGB and inverse depth in [-1, 1]), poses [B, N, 4, 4] and target [B, 4, 4] camera-to-world,
    valid bool [B, N] or, pixel by pixel, [B, N, h, h], intrinsics [B, 4] normalised, shared by all views of a row.
    Among pictures that show a point sharply the first wins, so order them best first. Uncovered pixels are 0 with
    mask 0.
    """
    valid = pixelwise(valid, rgbd)
    depth = decode_depth(rgbd[:, :, 3])
    rays = camera_rays(intrinsics, rgbd.shape[-1])
    fine = _splat_depth(depth, rays, invert_pose(target)[:, None] @ poses, valid, intrinsics)
    # Seen from where the pictures were taken nothing lands apart.
    is_still = stand_still(poses, target, valid)[:, None, None, None]
    surfaces = torch.where(is_still, fine[:, None], _candidates(fine))
    seen = _look_back(depth, surfaces, rays, invert_pose(poses) @ target[:, None], valid, intrinsics)
    return _gather(rgbd, _choose(seen))


def pixelwise(valid: Tensor, rgbd: Tensor) -> Tensor:
    """Which of N pictures [B, N, 4, h, w] count, bool [B, N] or [B, N, h, w] -> which of their pixels do."""
    return valid if valid.ndim == 4 else valid[..., None, None].expand(-1, -1, *rgbd.shape[-2:])


def believed(rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor, moves: Tensor) -> Tensor:
    """Which pixels of N pictures [B, N, 4, h, w] count in the view from `target` where things move: bool [B, N, h, w].

    There pictures contradict each other, and the first, the latest, decides: of the others only those of the `valid`
    pixels bool [B, N, h, w] count that lie out of its view or behind its surfaces. moves bool [B]: rows where things
    move; in others all valid pixels count. The other arguments are those of `reproject`.
    """
    if rgbd.shape[1] == 1:
        return valid
    parts = (rgbd, poses, valid, intrinsics, moves)
    if is_static(rgbd):
        return _believed_anywhere(*parts)
    return row_by_row(stand_still(poses, target, valid), _believed_here, _believed_anywhere, parts)


def stand_still(poses: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """In which rows all pictures that count were taken from the place of the view `target`: bool [B]. poses and valid
    are those of `reproject`. Such pictures need not be warped: their pixels are the view's."""
    is_there = (poses - target[:, None]).abs().flatten(2).amax(2) < STILL
    if not is_static(valid) and is_there.all():
        return is_there.all(1)
    counts = valid.flatten(2).any(2) if valid.ndim == 4 else valid
    return (is_there | ~counts).all(1)


def _believed_here(rgbd: Tensor, poses: Tensor, valid: Tensor, intrinsics: Tensor, moves: Tensor) -> Tensor:
    """`believed` of pictures that were all taken from the view's place: what lies behind the first one's surfaces would
    not be seen."""
    first, others = valid[:, :1], valid[:, 1:]
    return torch.cat([first, others & ~(first & moves[:, None, None, None])], 1)


def _believed_anywhere(rgbd: Tensor, poses: Tensor, valid: Tensor, intrinsics: Tensor, moves: Tensor) -> Tensor:
    depth = decode_depth(rgbd[:, :, 3])
    rays = camera_rays(intrinsics, depth.shape[-1])
    points = rearrange(rays[:, None] * depth[:, 1:, ..., None], "b n h w xyz -> b n (h w) xyz")
    to_first = invert_pose(poses[:, :1]) @ poses[:, 1:]
    x, y, z = (points @ to_first[..., :3, :3].mT + to_first[..., None, :3, 3]).unbind(-1)
    column, row = _project(x, y, z, intrinsics, depth.shape[-1])
    stored = _stored_at(depth[:, :1].masked_fill(~valid[:, :1], -FAR), column, row)
    is_known = _is_inside(column, row, depth.shape[-1]) & (z > MIN_DEPTH)
    is_known = is_known & (z - stored < DEPTH_TOLERANCE * z + DEPTH_MARGIN) & moves[:, None, None]
    return torch.cat([valid[:, :1], valid[:, 1:] & ~is_known.unflatten(2, depth.shape[2:])], 1)


def _stored_at(depth: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Depth [B, 1 or N, h, h] that pictures hold at pixels [B, N, p] (those at the edge for what is outside)."""
    size = depth.shape[-1]
    index = row.clamp(0, size - 1).long() * size + column.clamp(0, size - 1).long()
    return rearrange(depth, "b n h w -> b n (h w)").expand(-1, index.shape[1], -1).gather(2, index)


def _is_inside(column: Tensor, row: Tensor, size: int) -> Tensor:
    return (column >= 0) & (column < size) & (row >= 0) & (row < size)


def visible_from(
    rgbd: Tensor, poses: Tensor, valid: Tensor, depth: Tensor, target: Tensor, intrinsics: Tensor
) -> Tensor:
    """Which pixels of a view of known depth [B, h, w] (metres) each of N stored pictures sees: bool [B, N, h, w].

    The other arguments are those of `reproject`. A picture sees a point when it holds a surface there.
    """
    rays = camera_rays(intrinsics, rgbd.shape[-1])
    to_source = invert_pose(poses) @ target[:, None]
    stored = decode_depth(rgbd[:, :, 3])
    return _look_back(stored, depth[:, None], rays, to_source, pixelwise(valid, rgbd), intrinsics).sees[:, :, 0]


class LookBack(NamedTuple):
    """C supposed surfaces [B, C, h, w] (metres) in the target view: where in each of N stored pictures they fall (grid
    [B, N, C, h, w, 2] in [-1, 1]), at what depth (z [B, N, C, h, w]), and which pictures truly see them (sees, bool).
    """

    surface: Tensor
    grid: Tensor
    z: Tensor
    sees: Tensor


def _splat_depth(depth: Tensor, rays: Tensor, to_target: Tensor, valid: Tensor, intrinsics: Tensor) -> Tensor:
    """Nearest depth that lands in each pixel of the target view: [B, h, w] metres, FAR where nothing lands."""
    b, _, size, _ = depth.shape
    points = rearrange(rays[:, None] * depth[..., None], "b n h w c -> b n (h w) c")
    seen = points @ to_target[..., :3, :3].transpose(-1, -2) + to_target[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    column, row = _project(x, y, z, intrinsics, size)
    column, row = column.floor().long(), row.floor().long()
    is_inside = (z > MIN_DEPTH) & _is_inside(column, row, size) & valid.flatten(2)
    index = torch.where(is_inside, row * size + column, size * size)  # one extra cell takes what falls outside
    surface = torch.full((b, size * size + 1), FAR, dtype=depth.dtype, device=depth.device)
    surface.scatter_reduce_(1, rearrange(index, "b n p -> b (n p)"), rearrange(z, "b n p -> b (n p)"), "amin")
    return rearrange(surface[:, :-1], "b (h w) -> b h w", h=size)


def _candidates(fine: Tensor) -> Tensor:
    """Surfaces to try, [B, 3, h, w]: as splatted, and spread over wider neighbourhoods.

    What comes nearer is magnified: its points land apart, and the background shines through between them. The wider
    surfaces close those gaps; looking back refuses them where they spread too far.
    """
    near = -F.max_pool2d(-fine[:, None], 3, 1, 1)
    return torch.cat([fine[:, None], near, -F.max_pool2d(-near, 5, 1, 2)], 1)


def _look_back(
    depth: Tensor, surface: Tensor, rays: Tensor, to_source: Tensor, valid: Tensor, intrinsics: Tensor
) -> LookBack:
    """Test supposed surfaces [B, C, h, w] against the depth that the stored pictures [B, N, h, w] hold there."""
    size = depth.shape[-1]
    points = rearrange(rays[:, None] * surface[..., None], "b c h w xyz -> b 1 (c h w) xyz")
    seen = points @ to_source[..., :3, :3].transpose(-1, -2) + to_source[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    column, row = _project(x, y, z, intrinsics, size)
    agrees = (_stored_at(depth.masked_fill(~valid, -FAR), column, row) - z).abs() < DEPTH_TOLERANCE * z + DEPTH_MARGIN
    is_real = rearrange(surface < FAR, "b c h w -> b 1 (c h w)")
    sees = _is_inside(column, row, size) & agrees & (z > MIN_DEPTH) & is_real
    grid = torch.stack([column, row], -1) * (2.0 / size) - 1.0
    split = "b n (c h w) ... -> b n c h w ..."
    return LookBack(surface, *(rearrange(part, split, h=size, w=size) for part in (grid, z, sees)))


def _choose(seen: LookBack) -> LookBack:
    """Per pixel one surface (C = 1): the finest that is seen, unless a wider one is seen clearly in front of it."""
    is_seen = seen.sees.any(1)
    chosen, was_seen = seen.surface[:, 0], is_seen[:, 0]
    index = torch.zeros_like(chosen, dtype=torch.long)
    for number in range(1, seen.surface.shape[1]):
        surface = seen.surface[:, number]
        take = is_seen[:, number] & (~was_seen | (surface < NEARER * chosen))
        chosen, was_seen = torch.where(take, surface, chosen), was_seen | take
        index = torch.where(take, number, index)
    place = repeat(index, "b h w -> b n 1 h w", n=seen.z.shape[1])
    grid = seen.grid.gather(2, repeat(place, "b n c h w -> b n c h w two", two=2))
    return LookBack(chosen[:, None], grid, seen.z.gather(2, place), seen.sees.gather(2, place))


def _gather(rgbd: Tensor, view: LookBack) -> Anchor:
    """For each target pixel the colour of the best stored picture that sees its surface point."""
    n = rgbd.shape[1]
    colours = F.grid_sample(
        rearrange(rgbd[:, :, :3], "b n c h w -> (b n) c h w"),
        rearrange(view.grid, "b n 1 h w two -> (b n) h w two").clamp(-2.0, 2.0),
        mode="bicubic",  # bilinear costs a third of the sharpness within a few steps
        padding_mode="border",
        align_corners=False,
    ).clamp(-1.0, 1.0)
    best = _best_source(view)
    picked = reduce(rearrange(colours, "(b n) c h w -> b n c h w", n=n) * best, "b n c h w -> b c h w", "sum")
    mask = best.any(1).to(rgbd.dtype)
    return Anchor(torch.cat([picked, encode_depth(view.surface) * mask], 1), mask)


def _best_source(view: LookBack) -> Tensor:
    """One source per pixel, bool [B, N, 1, h, w]: the first that was close enough to show the surface sharply."""
    blur = (view.z / (BLUR_RATIO * view.surface[:, None])).clamp_min(1.0)
    order = torch.arange(blur.shape[1], device=blur.device)[:, None, None, None] * 1e-3
    cost = torch.where(view.sees, blur + order, torch.inf)
    return (cost == cost.amin(1, keepdim=True)) & view.sees


def _project(x: Tensor, y: Tensor, z: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Camera coordinates [B, N, p] -> pixel coordinates (column, row), 0 at the picture's left and upper edge."""
    fx, fy, cx, cy = (repeat(value, "b -> b 1 1") for value in intrinsics.unbind(-1))
    depth = z.clamp_min(MIN_DEPTH)
    return (x / depth * fx + cx) * size, (y / depth * fy + cy) * size


def settle(rgbd: Tensor, anchor: Anchor, rows: Tensor) -> Tensor:
    """A new picture [B, 4, h, w] with what memory shows of it, wherever the two say the same, in rows bool [B].

    Where the latest picture decides what is shown next, it is encoded and decoded at every step and becomes a little
    worse each time; so what did not change is taken from where it was first seen. Same: colours differ by less than
    SAME on average over the pixels around. Of no use to a walker, whose views change as a whole (docs/LOG.md).
    """
    difference = (rgbd[:, :3] - anchor.rgbd[:, :3]).abs().mean(1, keepdim=True) * anchor.mask
    around = F.avg_pool2d(torch.cat([difference, anchor.mask], 1), 5, 1, 2)
    is_same = (around[:, :1] < SAME * around[:, 1:]) & (anchor.mask > 0) & rows[:, None, None, None]
    return torch.where(is_same, anchor.rgbd, rgbd)


def spread(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Depth [B, h, w] -> the least of 3 x 3 and of 7 x 7 neighbours, where there are such: [B, h, w] each."""
    padded = F.pad(depth, (3, 3, 3, 3), value=FAR)
    near = _least(_least(padded, 1, 1), 2, 1)
    return near[:, 2:-2, 2:-2], _least(_least(near, 1, 2), 2, 2)


def _least(x: Tensor, axis: int, step: int) -> Tensor:
    """Minimum of three neighbours `step` apart along an axis, which gets shorter by 2 * step."""
    length = x.shape[axis] - 2 * step
    low, middle, high = (x.narrow(axis, start, length) for start in (0, step, 2 * step))
    return torch.minimum(torch.minimum(low, middle), high)
