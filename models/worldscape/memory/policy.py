"""MACO's decisions, batched over slots and of static shape: what to show again, what to admit, what to drop.

Retrieval is a greedy set cover of the new view by depth-aware frustum overlap. Admission weighs the description length
of a frame given memory against that of a reference. Over budget, farthest-point sampling over position and direction.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.camera import camera_matrices, pose_distance
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
    """The cell of the view from `target` [B, 4, 4] that each of pictures' probes [3, B, N, M] falls into.

    Returns long [B, N, M], row by row, CELLS ** 2 for what is out of view. intrinsics [B, 4] normalised.
    """
    to_cells, _ = camera_matrices(intrinsics, CELLS)
    turn = to_cells @ target[:, :3, :3].mT
    shift = -(turn @ target[:, :3, 3:])
    seen = torch.baddbmm(shift, turn, probes.flatten(2).transpose(0, 1))
    z = seen[:, 2]
    column, row = (seen[:, :2] / z.clamp_min(MIN_DEPTH)[:, None]).floor_().clamp_(-1, CELLS).unbind(1)
    place = torch.add(column, row, alpha=CELLS + 2).add_(CELLS + 3).masked_fill_(z <= MIN_DEPTH, 0).long()
    return _bordered_numbers(probes.device).index_select(0, place.view(-1)).view(probes.shape[1:])


@made_once
def _bordered_numbers(device: torch.device) -> Tensor:
    """Numbers of cells, long, row by row, within a border of cells that are out of view: [(CELLS + 2) ** 2]."""
    numbers = torch.arange(CELLS**2, device=device).view(CELLS, CELLS)
    return torch.nn.functional.pad(numbers, (1, 1, 1, 1), value=CELLS**2).flatten()


class Wish(NamedTuple):
    """Of N pictures up to num_picks shall be chosen that together show most cells of `is_open` [B, CELLS ** 2] (1 for a
    cell that counts), each at least `least` new ones; only those that `may` be, bool [B, N]."""

    may: Tensor
    is_open: Tensor
    num_picks: int
    least: float


def choose_covers(shown: Tensor, frames: Tensor, wishes: Sequence[Wish]) -> list[Tensor]:
    """Greedy set cover for several wishes at once: places long [B, num_picks] each, oldest picture first, then N - 1,
    where nothing may lie.

    shown [B, N, CELLS ** 2] (shown_cells), frames long [B, N]: their numbers. Ties go to the older picture, which lies
    nearer to a real one.
    """
    hidden, is_open = 1.0 - shown, torch.stack([wish.is_open for wish in wishes], 1)
    may = torch.stack([wish.may for wish in wishes], 1)
    older = torch.where(may, (0.5 / (frames + 1))[:, None], -torch.inf)
    least = _least_gains(tuple((wish.num_picks, wish.least) for wish in wishes), shown.device)
    picks, gains = [], []
    for number in range(least.shape[1]):
        gain, best = (torch.bmm(is_open, shown.mT) + older).max(2, keepdim=True)
        picks.append(best)
        gains.append(gain)
        if number < least.shape[1] - 1:
            older.scatter_(2, best, -torch.inf)
            is_open = is_open * hidden.gather(1, best.expand(-1, -1, shown.shape[2]))
    places, is_worth = torch.cat(picks, 2), torch.cat(gains, 2) >= least
    numbers = frames.gather(1, places.flatten(1)).view_as(places)
    order = torch.where(is_worth, numbers, OLDEST_LAST).argsort(stable=True)
    chosen = torch.where(is_worth, places, frames.shape[1] - 1).gather(2, order)
    return [chosen[:, number, : wish.num_picks] for number, wish in enumerate(wishes)]


@made_once
def _least_gains(wishes: tuple[tuple[int, float], ...], device: torch.device) -> Tensor:
    """Wishes of (num_picks, least) -> what each of their picks must gain, inf beyond num_picks: [W, most picks]."""
    most = max(num_picks for num_picks, _ in wishes)
    gains = [[least] * num_picks + [math.inf] * (most - num_picks) for num_picks, least in wishes]
    return torch.tensor(gains, device=device)


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
    distance = pose_distance(poses, poses) + _to_itself(pages.shape[1], pages.device)
    return torch.where(pages == BLANK, -1.0, distance.amin(2))[:, num_sink:].argmin(1)


@made_once
def _to_itself(count: int, device: torch.device) -> Tensor:
    """What keeps each of `count` cameras from being the nearest to itself: [count, count]."""
    return torch.diag(torch.full((count,), torch.inf, device=device))


def longest_held(frames: Tensor) -> Tensor:
    """Place in the pool for a new frame: the first free one, else that of the oldest. frames long [B, G] -> [B]."""
    return frames.argmin(1)


def world_probes(rgbd: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """A regular sample of the points that pictures [B, 4, h, h] show, in world axes: [3, B, M] metres, as in a page."""
    return surfaces_shown(rgbd, pose, intrinsics, probe_stride(rgbd.shape[-1])).points.permute(2, 0, 1)
