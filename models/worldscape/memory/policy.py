"""MACO's decisions, batched over slots and of static shape: what to show again, what to admit, what to drop.

Retrieval is a greedy set cover of the new view by depth-aware frustum overlap. Admission weighs the description length
of a frame given memory against that of a reference. Over budget, farthest-point sampling over position and direction.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_matrices, pose_distance
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.reproject import MIN_DEPTH, Anchor
from worldscape.memory.pages import BLANK, probe_stride
from worldscape.memory.surroundings import points_shown

CELLS = 8  # cells a side of the new view that the picks shall cover
ALL_CELLS = (1 << CELLS**2) - 1  # as the bits of an integer
ANY, ONE_CELL = 0.0, 1.0  # least gain of a pick
CODING_NOISE = 0.1  # standard deviation of colours (range 2) below which a difference costs nothing to speak of
FULL_COST = math.log1p(1 / CODING_NOISE**2)  # nats that an uncovered pixel costs
OLDEST_LAST = torch.iinfo(torch.long).max
FEW_SLOTS = 4  # up to which Python's integers choose covers faster than tensors do


def shown_cells(numbers: Tensor) -> Tensor:
    """Which cells of a view pictures show whose probes fall into `numbers` (cell_numbers): bool [B, N, CELLS ** 2]."""
    cells = numbers.new_zeros(*numbers.shape[:2], CELLS**2 + 1, dtype=torch.bool)
    return cells.scatter_(2, numbers, True)[..., :-1]


def cell_numbers(probes: Tensor, target: Tensor, intrinsics: Tensor) -> Tensor:
    """The cell of the view from `target` [B, 4, 4] that each of pictures' probes [3, B, N, M] falls into.

    Returns long [B, N, M], row by row, CELLS ** 2 for what is out of view. intrinsics [B, 4] normalised.
    """
    to_cells, _ = camera_matrices(intrinsics, CELLS)
    turn = to_cells @ target[:, :3, :3].mT
    seen = torch.baddbmm(turn @ target[:, :3, 3:], turn, probes.flatten(2).transpose(0, 1), beta=-1)
    depth = F.threshold(seen[:, 2:], MIN_DEPTH, 1e-30)  # what is not in front is projected far out of view
    column, row = (seen[:, :2] / depth).floor_().clamp_(-1, CELLS).unbind(1)
    place = torch.add(column, row, alpha=CELLS + 2).add_(CELLS + 3).long()
    return _bordered_numbers(probes.device).index_select(0, place.view(-1)).view(probes.shape[1:])


@made_once
def _bordered_numbers(device: torch.device) -> Tensor:
    """Numbers of cells, long, row by row, within a border of cells that are out of view: [(CELLS + 2) ** 2]."""
    numbers = torch.arange(CELLS**2, device=device).view(CELLS, CELLS)
    return F.pad(numbers, (1, 1, 1, 1), value=CELLS**2).flatten()


class Wish(NamedTuple):
    """Of N pictures up to num_picks shall be chosen that together show most cells of those that count, `is_open` bool
    [B, CELLS ** 2] (None: all), each at least `least` new ones; only frames whose numbers are from `first` on and below
    `end`, long [B]."""

    first: int
    end: Tensor
    num_picks: int
    least: float
    is_open: Tensor | None = None


def choose_covers(shown: Tensor, frames: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """Greedy set cover for several wishes at once: places long [B, sum of num_picks], wish by wish, in each the oldest
    picture first, then N - 1, where nothing may lie.

    shown [B, N, CELLS ** 2] (shown_cells), frames long [B, N]: their numbers. Ties go to the older picture, which lies
    nearer to a real one.
    """
    is_few = shown.device.type == "cpu" and len(shown) <= FEW_SLOTS
    return (_covers_of_few if is_few else _covers_of_many)(shown, frames, wishes)


def _covers_of_few(shown: Tensor, frames: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """choose_covers slot by slot, a set of cells as the bits of an integer: for few slots faster than small tensors."""
    ends = [wish.end.tolist() for wish in wishes]
    opens = [[ALL_CELLS] * len(shown) if wish.is_open is None else _as_bits(wish.is_open) for wish in wishes]
    chosen: list[list[int]] = []
    for slot, (bits, numbers) in enumerate(zip(_as_bits(shown), frames.tolist(), strict=True)):
        by_age = sorted(range(len(bits)), key=numbers.__getitem__)
        picks: list[int] = []
        for wish, end, left in zip(wishes, ends, opens, strict=True):
            places = [place for place in by_age if wish.first <= numbers[place] < end[slot]]
            found = _greedy_cover(places, [bits[place] for place in places], left[slot], wish.num_picks, wish.least)
            picks += sorted(found, key=numbers.__getitem__) + [len(bits) - 1] * (wish.num_picks - len(found))
        chosen.append(picks)
    return torch.from_numpy(np.array(chosen, np.int64))  # a third of the time of torch.tensor


def _greedy_cover(places: list[int], sets: list[int], left: int, num_picks: int, least: float) -> list[int]:
    """Up to num_picks of `places`, whose sets of cells are bits, that together hold most of `left`, each at least
    `least` new ones; ties go to the first. places and sets are used up."""
    found: list[int] = []
    while places and len(found) < num_picks:
        gains = [(cells & left).bit_count() for cells in sets]
        best = gains.index(max(gains))
        if gains[best] < least:
            break
        found.append(places.pop(best))
        left &= ~sets.pop(best)
    return found


def _as_bits(cells: Tensor) -> list[Any]:
    """Sets of cells, bool [..., CELLS ** 2] -> the bits of each as an integer, in lists."""
    return np.packbits(cells.numpy(), -1).view(np.uint64)[..., 0].tolist()


def _covers_of_many(shown: Tensor, frames: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """choose_covers in a few operations for all slots and wishes, whatever the device."""
    may = torch.stack([(frames >= wish.first) & (frames < wish.end[:, None]) for wish in wishes], 1)
    every = torch.ones_like(shown[:, 0])
    is_open = torch.stack([every if wish.is_open is None else wish.is_open for wish in wishes], 1).float()
    sizes = tuple((wish.num_picks, wish.least) for wish in wishes)
    num_younger = (frames[:, :, None] < frames[:, None]).sum(2)  # less than a cell, but told apart: older ones first
    older = torch.where(may, (num_younger / (2 * frames.shape[1]))[:, None], -torch.inf)
    shown = shown.float()
    hidden, least = 1.0 - shown, _least_gains(sizes, shown.device)
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
    return torch.cat([chosen[:, number, : wish.num_picks] for number, wish in enumerate(wishes)], 1)


@made_once
def _least_gains(sizes: tuple[tuple[int, float], ...], device: torch.device) -> Tensor:
    """Wishes of (num_picks, least) -> what each of their picks must gain, inf beyond num_picks: [W, most picks]."""
    most = max(num_picks for num_picks, _ in sizes)
    gains = [[least] * num_picks + [math.inf] * (most - num_picks) for num_picks, least in sizes]
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
    return points_shown(rgbd, pose, intrinsics, probe_stride(rgbd.shape[-1])).transpose(0, 1)
