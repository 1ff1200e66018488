"""Reprojection: what the pictures in memory show of a view about to be dreamed.

All batched and of static shape. Stored depths are splatted into the new view (nearest wins); each pixel of the new view
then looks back into the stored pictures and takes the (bicubic) colour of the best one that truly sees that point.
Looking back keeps the result as sharp as its source, and refuses surfaces that are not there. Where things move, the
latest picture is believed about all that it shows: older ones add what it does not see.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose

NEARER = 0.85  # a wider surface replaces a finer one when it is nearer by at least this factor
FAR = 1.0e4  # metres; stands for "nothing here" while splatting
DEPTH_TOLERANCE = 0.06  # relative disagreement of depth up to which a stored picture sees the same point,
DEPTH_MARGIN = 0.05  # and metres more
BLUR_RATIO = 1.5  # a picture taken up to so many times farther away still counts as sharp
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
    return (2.0 / (inverse + 1.0).clamp_min(2.0 / (1.0 + max_depth)) - 1.0).clamp_min(0.0)


def reproject(
    rgbd: Tensor, poses: Tensor, valid: Tensor, target: Tensor, intrinsics: Tensor, moves: Tensor | None = None
) -> Anchor:
    """Rebuild the view from `target` out of N stored pictures.

    rgbd [B, N, 4, h, h] (RGB and inverse depth in [-1, 1]), poses [B, N, 4, 4] and target [B, 4, 4] camera-to-world,
    valid bool [B, N], intrinsics [B, 4] normalised, shared by all views of a row. Among pictures that show a point
    sharply the first wins, so order them best first. Uncovered pixels are 0 with mask 0. moves bool [B]: rows in which
    things move, so that pictures contradict each other: there the first picture, the latest, decides about every place
    that it sees or sees through.
    """
    depth = decode_depth(rgbd[:, :, 3])
    rays = camera_rays(intrinsics, rgbd.shape[-1])
    counts = believed(depth, rays, poses, valid, intrinsics, moves)
    fine = _splat_depth(depth, rays, invert_pose(target)[:, None] @ poses, counts, intrinsics)
    seen = _look_back(depth, _candidates(fine), rays, invert_pose(poses) @ target[:, None], valid, intrinsics, moves)
    return _gather(rgbd, _choose(seen))


def believed(
    depth: Tensor, rays: Tensor, poses: Tensor, valid: Tensor, intrinsics: Tensor, moves: Tensor | None
) -> Tensor:
    """Which points of N pictures of depth [B, N, h, w] (metres) count, bool [B, N, h * w].

    All points of valid pictures do; in rows where things move, of the pictures after the first only those that lie out
    of its view or behind its surfaces. The other arguments are those of `reproject`.
    """
    counts = valid[..., None].expand(-1, -1, depth.shape[-1] ** 2)
    if moves is None or depth.shape[1] == 1:
        return counts
    points = rearrange(rays[:, None] * depth[:, 1:, ..., None], "b n h w xyz -> b n (h w) xyz")
    to_first = invert_pose(poses[:, :1]) @ poses[:, 1:]
    seen = points @ to_first[..., :3, :3].transpose(-1, -2) + to_first[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    column, row = _project(x, y, z, intrinsics, depth.shape[-1])
    is_known = _sees_through(_stored_at(depth[:, :1], column, row), column, row, z, depth.shape[-1])
    is_outdated = is_known & (moves & valid[:, 0])[:, None, None]
    return torch.cat([counts[:, :1], counts[:, 1:] & ~is_outdated], 1)


def _stored_at(depth: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Depth [B, 1 or N, h, h] that pictures hold at pixels [B, N, p] (those at the edge for what is outside)."""
    size = depth.shape[-1]
    index = row.clamp(0, size - 1).long() * size + column.clamp(0, size - 1).long()
    return rearrange(depth, "b n h w -> b n (h w)").expand(-1, index.shape[1], -1).gather(2, index)


def _sees_through(stored: Tensor, column: Tensor, row: Tensor, z: Tensor, size: int) -> Tensor:
    """Whether a picture that holds depth `stored` at these pixels sees a point at depth z there, or sees through it."""
    is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    return is_inside & (z > MIN_DEPTH) & (z - stored < DEPTH_TOLERANCE * z + DEPTH_MARGIN)


def visible_from(
    rgbd: Tensor, poses: Tensor, valid: Tensor, depth: Tensor, target: Tensor, intrinsics: Tensor
) -> Tensor:
    """Which pixels of a view of known depth [B, h, w] (metres) each of N stored pictures sees: bool [B, N, h, w].

    The other arguments are those of `reproject`. A picture sees a point when it holds a surface there.
    """
    rays = camera_rays(intrinsics, rgbd.shape[-1])
    to_source = invert_pose(poses) @ target[:, None]
    stored = decode_depth(rgbd[:, :, 3])
    return _look_back(stored, depth[:, None], rays, to_source, valid, intrinsics).sees[:, :, 0]


class LookBack(NamedTuple):
    """C supposed surfaces [B, C, h, w] (metres) in the target view: where in each of N stored pictures they fall (grid
    [B, N, C, h, w, 2] in [-1, 1]), at what depth (z [B, N, C, h, w]), and which pictures truly see them (sees, bool).
    """

    surface: Tensor
    grid: Tensor
    z: Tensor
    sees: Tensor


def _splat_depth(depth: Tensor, rays: Tensor, to_target: Tensor, counts: Tensor, intrinsics: Tensor) -> Tensor:
    """Nearest depth of the points that count (bool [B, N, p]) in each pixel of the target view: [B, h, w] metres, FAR
    where nothing lands."""
    b, _, size, _ = depth.shape
    points = rearrange(rays[:, None] * depth[..., None], "b n h w c -> b n (h w) c")
    seen = points @ to_target[..., :3, :3].transpose(-1, -2) + to_target[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    column, row = _project(x, y, z, intrinsics, size)
    column, row = column.floor().long(), row.floor().long()
    is_inside = (z > MIN_DEPTH) & (column >= 0) & (column < size) & (row >= 0) & (row < size) & counts
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
    depth: Tensor,
    surface: Tensor,
    rays: Tensor,
    to_source: Tensor,
    valid: Tensor,
    intrinsics: Tensor,
    moves: Tensor | None = None,
) -> LookBack:
    """Test supposed surfaces [B, C, h, w] against the depth that the stored pictures [B, N, h, w] hold there."""
    size = depth.shape[-1]
    points = rearrange(rays[:, None] * surface[..., None], "b c h w xyz -> b 1 (c h w) xyz")
    seen = points @ to_source[..., :3, :3].transpose(-1, -2) + to_source[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    column, row = _project(x, y, z, intrinsics, size)
    is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    stored = _stored_at(depth, column, row)
    agrees = (stored - z).abs() < DEPTH_TOLERANCE * z + DEPTH_MARGIN
    is_real = rearrange(surface < FAR, "b c h w -> b 1 (c h w)")
    sees = is_inside & agrees & (z > MIN_DEPTH) & valid[..., None] & is_real
    if moves is not None:
        known = _sees_through(stored[:, :1], column[:, :1], row[:, :1], z[:, :1], size)
        sees = only_first(sees, known & (moves & valid[:, 0])[:, None, None])
    grid = torch.stack([column, row], -1) * (2.0 / size) - 1.0
    split = "b n (c h w) ... -> b n c h w ..."
    return LookBack(surface, *(rearrange(part, split, h=size, w=size) for part in (grid, z, sees)))


def only_first(sees: Tensor, is_known: Tensor) -> Tensor:
    """Which of N pictures see points, bool [B, N, ...], when the first decides alone about those known to it, bool
    [B, 1, ...]."""
    return torch.cat([sees[:, :1], sees[:, 1:] & ~is_known], 1)


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
