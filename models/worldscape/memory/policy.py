"""MACO's decisions, batched over slots and of static shape: what to show again, what to admit, what to drop.

Retrieval is a greedy set cover of the new view by depth-aware frustum overlap. Admission weighs the description length
of a frame given memory against that of a reference. Over budget, farthest-point sampling over position and direction.
"""

import math

import torch
from torch import Tensor

from worldscape.conditioning.camera import camera_matrices, invert_pose, pose_distance
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.reproject import MIN_DEPTH, Anchor
from worldscape.memory.pages import BLANK, probe_stride
from worldscape.memory.surroundings import surfaces_shown

CELLS = 8  # cells a side of the new view that the picks shall cover
ANY, ONE_CELL = 0.0, 1.0  # least gain of a pick
CODING_NOISE = 0.1  # standard deviation of colours (range 2) below which a difference costs nothing to speak of
FULL_COST = math.log1p(1 / CODING_NOISE**2)  # nats that an uncovered pixel costs
OLDEST_LAST = torch.iinfo(torch.long).max


def shown_cells(numbers: Tensor) -> Tensor:
    """Which cells of a view pictures show whose probes fall into `numbers` (cell_numbers): float [B, N, CELLS ** 2] of
    0 and 1."""
    cells = numbers.new_zeros(*numbers.shape[:2], CELLS**2 + 1, dtype=torch.float32)
    return cells.scatter_(2, numbers, 1.0)[..., :-1]


def cell_numbers(probes: Tensor, target: Tensor, intrinsics: Tensor) -> Tensor:
    """The cell of the view from `target` [B, 4, 4] that each of pictures' probes [B, N, M, 3] falls into.

    Returns long [B, N, M], row by row, CELLS ** 2 for what is out of view. intrinsics [B, 4] normalised.
    """
    to_cells, _ = camera_matrices(intrinsics, CELLS)
    turn, shift = (to_cells @ invert_pose(target)[:, :3]).split([3, 1], -1)
    seen = torch.baddbmm(shift.mT, probes.flatten(1, 2), turn.mT).view_as(probes)
    z = seen[..., 2]
    column, row = (seen[..., :2] / z.clamp_min(MIN_DEPTH)[..., None]).floor_().clamp_(-1, CELLS).unbind(-1)
    place = torch.add(column, row, alpha=CELLS + 2).add_(CELLS + 3).long()
    return _bordered_numbers(probes.device)[place.masked_fill_(z <= MIN_DEPTH, 0)]


@made_once
def _bordered_numbers(device: torch.device) -> Tensor:
    """Numbers of cells, long, row by row, within a border of cells that are out of view: [(CELLS + 2) ** 2]."""
    numbers = torch.arange(CELLS**2, device=device).view(CELLS, CELLS)
    return torch.nn.functional.pad(numbers, (1, 1, 1, 1), value=CELLS**2).flatten()


def choose_cover(shown: Tensor, pages: Tensor, frames: Tensor, num_picks: int, least: float) -> Tensor:
    """Greedy set cover: up to num_picks of N pictures that together show most cells, each at least `least` new ones.

    shown [B, N, C] (shown_cells), pages and frames long [B, N] (frame -1: not to be chosen). Ties go to the older
    picture, which lies nearer to a real one. Returns pages long [B, num_picks], oldest first, then BLANK.
    """
    older = torch.where(frames < 0, -torch.inf, 0.5 / (frames.clamp_min(0) + 1))
    picks, gains, is_open = [], [], torch.ones_like(shown[:, 0])
    for number in range(num_picks):
        gain, best = ((shown @ is_open[..., None])[..., 0] + older).max(1, keepdim=True)
        picks.append(best)
        gains.append(gain)
        if number < num_picks - 1:
            older = older.scatter(1, best, -torch.inf)
            is_open = is_open - is_open * shown.gather(1, best[..., None].expand(-1, -1, shown.shape[-1]))[:, 0]
    index, is_worth = torch.cat(picks, 1), torch.cat(gains, 1) >= least
    order = torch.where(is_worth, frames.gather(1, index), OLDEST_LAST).argsort(dim=1, stable=True)
    return torch.where(is_worth, pages.gather(1, index), BLANK).gather(1, order)


def explained_share(rgbd: Tensor, anchor: Anchor, coverage: Tensor, residual_weight: float) -> Tensor:
    """Share of a frame's description that a reference to memory saves: [B], 1 = all of it.

    rgbd [B, 4, h, w], anchor what memory showed of it, coverage [B] the covered share of its pixels. An uncovered
    pixel saves nothing. A covered pixel that is off by e (root mean square over channels) still costs, of what an
    uncovered one costs, log(1 + e^2 / s^2) / log(1 + 1 / s^2) with s = CODING_NOISE: the bits of a Gaussian residual,
    monotone in e. residual_weight scales that cost; at 0 only geometry counts.
    """
    if residual_weight == 0:
        return coverage
    error = (rgbd - anchor.rgbd).square().mean(1, keepdim=True) / CODING_NOISE**2
    cost = torch.log1p(error).clamp_max(FULL_COST) / FULL_COST * anchor.mask
    return coverage - residual_weight * cost.mean((1, 2, 3))


def most_redundant(pages: Tensor, poses: Tensor, num_sink: int) -> Tensor:
    """Place in the pool for a new keyframe: the first free one, else that of the keyframe nearest to another one.

    pages long [B, S + G], sink first, with poses [B, S + G, 4, 4]. Returns long [B] in [0, G); the sink stays.
    """
    to_itself = torch.diag(torch.full((pages.shape[1],), torch.inf, device=pages.device))
    distance = pose_distance(poses, poses) + to_itself
    return torch.where(pages == BLANK, -1.0, distance.amin(2))[:, num_sink:].argmin(1)


def longest_held(frames: Tensor) -> Tensor:
    """Place in the pool for a new frame: the first free one, else that of the oldest. frames long [B, G] -> [B]."""
    return frames.argmin(1)


def world_probes(rgbd: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """A regular sample of a picture's surface points in world axes: [B, M, 3] metres, M as in a page."""
    return surfaces_shown(rgbd, pose, intrinsics, probe_stride(rgbd.shape[-1])).points
