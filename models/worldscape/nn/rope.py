"""Rotary positions in time, row and column, split over a head's channels as in Wan 2.1.

Rows and columns never change and are rotated in before keys are stored; time is rotated in when keys are read, because
a stored frame's relative time changes with every step.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class RopeSplit(NamedTuple):
    """Channels of a head that carry time, row and column; all even."""

    time: int
    row: int
    column: int


def split_channels(head_width: int) -> RopeSplit:
    """Wan 2.1's split: a third each for row and column (rounded down to even), the rest for time."""
    side = 2 * (head_width // 6)
    return RopeSplit(head_width - 2 * side, side, side)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channel pairs of x [..., 2n] by angles broadcastable to [..., n] radians."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def frequencies(channels: int, base: float, device: torch.device) -> Tensor:
    """Angular frequencies [channels / 2] of rotary positions, radians per unit of position."""
    exponents = torch.arange(0, channels, 2, device=device, dtype=torch.float32) / max(channels, 1)
    return base**-exponents


def rotate_space(x: Tensor, grid: int, base: float) -> Tensor:
    """Rotate row and column channels of x [..., P, H, K], P = grid * grid tokens row by row."""
    split = split_channels(x.shape[-1])
    place = torch.arange(grid, device=x.device, dtype=torch.float32)
    row = place.repeat_interleave(grid)[:, None, None] * frequencies(split.row, base, x.device)
    column = place.repeat(grid)[:, None, None] * frequencies(split.column, base, x.device)
    time_part, row_part, column_part = x.split(list(split), -1)
    return torch.cat([time_part, rotate(row_part, row), rotate(column_part, column)], -1)


def rotate_time(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate the time channels of x [B, T, P, H, K] by frame positions [B, T] (small relative indices)."""
    split = split_channels(x.shape[-1])
    angles = positions.float()[..., None, None, None] * frequencies(split.time, base, x.device)
    time_part, rest = x.split([split.time, split.row + split.column], -1)
    return torch.cat([rotate(time_part, angles), rest], -1)
