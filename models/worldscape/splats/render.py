"""A differentiable rasteriser of 3D Gaussians in plain PyTorch: depth-sorted, tiled, front-to-back alpha compositing.

Every tile draws only the Gaussians whose box of alpha >= 1/255 meets it, so the result equals drawing all of them at
every pixel. Tiles are drawn in groups of like numbers.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.splats import fast
from worldscape.splats.gaussians import Gaussians, check_gaussians
from worldscape.splats.project import SMALLEST_ALPHA, Footprints, project

TILE = 8  # pixels a side
LARGEST_ALPHA = 0.999  # of one Gaussian, so that what lies behind keeps a gradient
GROUP = 1 << 17  # products of Gaussians and pixels worked on at once: what fits a processor's cache
GROUP_ON_GPU = 1 << 24  # as many as keep a GPU busy; a group takes as many kernels, whatever its size
BACKENDS = ("auto", "torch", "gsplat")


class Rendering(NamedTuple):
    """Pictures of V views: rgb [B, V, 3, h, w] in front of black, 0 or more; depth [B, V, h, w] metres, the mean over
    what is seen, 0 where nothing is; alpha [B, V, h, w] in [0, 1], how much of the pixel is covered.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor


class _Tiles(NamedTuple):
    """For each of G tiles (all views, row by row) the Gaussians that meet it: flat numbers `index` [M] in order of
    tile and depth, `first` [G] and `count` [G].
    """

    index: Tensor
    first: Tensor
    count: Tensor


def render(
    gaussians: Gaussians,
    poses: Tensor,
    intrinsics: Tensor,
    size: int,
    *,
    max_per_tile: int | None = None,
    backend: str = "auto",
) -> Rendering:
    """Draw B scenes from V cameras each: poses [B, V, 4, 4] camera to world, intrinsics [B, V, 4] normalised, pictures
    of size x size pixels.

    C = sum_i c_i a_i prod_{j<i} (1 - a_j), nearest first, with a_i = opacity * exp(-d^T S^-1 d / 2), at most 0.999,
    and 0 below 1/255 (Kerbl et al. 2023, eq. 3). Gradients reach all parameters; see `project` for what is left out.
    max_per_tile: draw only so many of the nearest Gaussians of each 8x8 tile; None: all.
    backend: "torch", "gsplat" (CUDA, float32, no max_per_tile), or "auto", which takes gsplat where it can.
    Raises ValueError for shapes that do not fit and degenerate cameras, ImportError for a missing gsplat.
    """
    check_gaussians(gaussians)
    check_cameras(poses, intrinsics, len(gaussians.means))
    if size < 1 or (max_per_tile is not None and max_per_tile < 1):
        raise ValueError(f"size {size} and max_per_tile {max_per_tile} must be at least 1.")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown: choose one of {', '.join(BACKENDS)}.")
    can_use_gsplat = gaussians.means.is_cuda and gaussians.means.dtype == torch.float32 and max_per_tile is None
    if backend == "gsplat" or (backend == "auto" and can_use_gsplat and fast.is_installed()):
        if max_per_tile is not None:
            raise ValueError("max_per_tile is for backend='torch': gsplat always draws all.")
        return Rendering(*fast.rasterise(gaussians, poses, intrinsics, size))
    return composite(project(gaussians, poses, intrinsics, size), size, max_per_tile)


def check_cameras(poses: Tensor, intrinsics: Tensor, batch: int) -> None:
    """Raise ValueError unless poses [B, V, 4, 4] are rigid and intrinsics [B, V, 4] have positive focal lengths."""
    views = poses.shape[1] if poses.ndim == 4 else 0
    if tuple(poses.shape) != (batch, views, 4, 4) or tuple(intrinsics.shape) != (batch, views, 4) or views == 0:
        shapes = f"{tuple(poses.shape)} and {tuple(intrinsics.shape)}"
        raise ValueError(f"poses and intrinsics have shapes {shapes}; give [{batch}, V, 4, 4] and [{batch}, V, 4].")
    rotation = poses[..., :3, :3]
    error = (rotation @ rotation.transpose(-1, -2) - torch.eye(3, dtype=poses.dtype, device=poses.device)).abs()
    is_rigid = torch.isfinite(poses).all() & (error < 1e-2).all() & (torch.linalg.det(rotation) > 0).all()
    if not bool(is_rigid):
        raise ValueError("a camera pose is not rigid (or not finite); give camera-to-world rotation and position.")
    if not bool(torch.isfinite(intrinsics).all() & (intrinsics[..., :2] > 0).all()):
        raise ValueError("intrinsics need finite numbers and positive focal lengths, as shares of the picture's size.")


def composite(footprints: Footprints, size: int, max_per_tile: int | None = None) -> Rendering:
    """Footprints of N Gaussians in V views -> Rendering; the arguments as in `render`."""
    batch, views, _ = footprints.depth.shape
    side = -(-size // TILE)
    tiles = _sort_into_tiles(footprints, side, max_per_tile)
    rows = _draw_tiles(_pack(footprints), tiles, side)
    picture = rearrange(
        rows, "(b v r c) (i j) k -> b v k (r i) (c j)", b=batch, v=views, r=side, c=side, i=TILE, j=TILE
    )[..., :size, :size]
    rgb, depth, alpha = picture[:, :, :3], picture[:, :, 3], picture[:, :, 4]
    return Rendering(rgb, depth / alpha.clamp_min(1e-8), alpha)


def _sort_into_tiles(footprints: Footprints, side: int, max_per_tile: int | None) -> _Tiles:
    """Which Gaussians meet which tile, nearest first."""
    num, most = footprints.depth.shape[-1], int(footprints.visible.sum(-1).max()) if footprints.visible.numel() else 0
    hidden = footprints.depth.detach().masked_fill(~footprints.visible, torch.inf)
    order = rearrange(hidden, "b v n -> (b v) n").argsort(dim=-1, stable=True)[:, :most]
    where = repeat(order, "bv n -> bv n two", two=2)
    centre, reach = (
        rearrange(x.detach(), "b v n two -> (b v) n two").gather(1, where)
        for x in (footprints.centre, footprints.reach)
    )
    is_visible = rearrange(footprints.visible, "b v n -> (b v) n").gather(1, order)
    first = TILE * torch.arange(side, device=centre.device)[:, None] + 0.5  # centre of a tile's first pixel
    low, high = (rearrange(x, "bv n two -> two bv 1 n") for x in (centre - reach, centre + reach))
    column, row = ((low <= first + (TILE - 1)) & (high >= first)).unbind(0)
    meets = row[:, :, None] & column[:, None] & is_visible[:, None, None]
    meets = rearrange(meets, "bv r c n -> (bv r c) n")
    if max_per_tile is not None:
        meets = meets & (meets.cumsum(-1) <= max_per_tile)
    count = meets.sum(-1)
    tile, rank = meets.nonzero().unbind(-1)
    view = tile // side**2
    return _Tiles(order[view, rank] + view * num, count.cumsum(0) - count, count)


def _pack(footprints: Footprints) -> Tensor:
    """All that drawing needs of each Gaussian in each view, [B * V * N + 1, 10]; the last one draws nothing."""
    parts = [footprints.centre, footprints.conic, footprints.log_opacity[..., None], footprints.colour]
    packed = torch.cat([*parts, footprints.depth[..., None]], -1)
    packed = rearrange(packed, "b v n k -> (b v n) k")
    nothing = packed.new_zeros(1, packed.shape[-1])
    nothing[:, 5] = -torch.inf
    return torch.cat([packed, nothing])


def _draw_tiles(packed: Tensor, tiles: _Tiles, side: int) -> Tensor:
    """All tiles, G = B * V * side^2 -> [G, TILE^2, 5]: colour and depth weighted by visibility, and alpha."""
    order = tiles.count.argsort(descending=True)
    counts, at_once = tiles.count[order].tolist(), GROUP_ON_GPU if packed.is_cuda else GROUP
    done, drawn = 0, []
    while done < len(counts):
        most = max(counts[done], 1)
        group = order[done : done + max(at_once // (most * TILE**2), 1)]
        place = torch.arange(most, device=packed.device)
        is_filled = place < tiles.count[group, None]
        index = (tiles.first[group, None] + place).clamp_max(max(len(tiles.index) - 1, 0))
        numbers = tiles.index[index] if len(tiles.index) else torch.zeros_like(index)
        chosen = packed[torch.where(is_filled, numbers, len(packed) - 1)]
        drawn.append(_draw(chosen, group % side**2 % side, group % side**2 // side))
        done += len(group)
    return torch.cat(drawn)[order.argsort()]


def _draw(chosen: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Gaussians of some tiles [G, K, 10], nearest first, and the tiles' column and row [G] -> [G, TILE^2, 5]."""
    centre, conic, log_opacity, seen = chosen.split([2, 3, 1, 4], -1)
    xx, xy, yy = conic.unbind(-1)
    pixel = torch.arange(TILE, device=chosen.device, dtype=chosen.dtype) + 0.5
    dx = (pixel + TILE * column[:, None])[:, None] - centre[..., :1]
    dy = (pixel + TILE * row[:, None])[:, None] - centre[..., 1:]
    along_x = log_opacity - 0.5 * xx[..., None] * dx.square()
    along_y = -0.5 * yy[..., None] * dy.square()
    both = (-xy[..., None] * dx)[..., None, :] * dy[..., :, None]
    alpha = (both + along_x[..., None, :] + along_y[..., :, None]).exp()
    alpha = torch.where(alpha >= SMALLEST_ALPHA, alpha.clamp_max(LARGEST_ALPHA), 0.0)
    alpha = rearrange(alpha, "g k i j -> g (i j) k")
    let_through = torch.log1p(-alpha)
    weight = alpha * (let_through.cumsum(-1) - let_through).exp()
    return weight @ torch.nn.functional.pad(seen, (0, 1), value=1.0)
