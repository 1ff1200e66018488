"""Rotary positions in time, row and column, split over a head's channel pairs as in Wan 2.1.

Rows and columns never change and are rotated in before keys are stored; time is rotated in when keys are read, because
a stored frame's relative time changes with every step. Channel i is paired with channel i + K / 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of one angle per channel pair, broadcastable to [..., K / 2]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angles: Tensor) -> "Rotation":
        """Rotation by angles in radians."""
        return cls(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate the channel pairs of x [..., K]."""
    first, second = x.chunk(2, -1)
    cos, sin = by.cos.to(x.dtype), by.sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def split_pairs(head_width: int) -> tuple[int, int, int]:
    """Channel pairs of a head that carry time, row and column: Wan 2.1 gives row and column a third each."""
    side = head_width // 6
    return head_width // 2 - 2 * side, side, side


def space_angles(grid: int, head_width: int, base: float, device: torch.device) -> Tensor:
    """Row and column angles of the tokens of a frame, row by row: [P, 1, K / 2], zero for the pairs that carry time."""
    time, row, column = split_pairs(head_width)
    place = torch.arange(grid, device=device, dtype=torch.float32)
    rows = place.repeat_interleave(grid)[:, None] * frequencies(row, base, device)
    columns = place.repeat(grid)[:, None] * frequencies(column, base, device)
    return torch.cat([rows.new_zeros(grid**2, time), rows, columns], -1)[:, None]


def time_angles(positions: Tensor, head_width: int, base: float) -> Tensor:
    """Time angles of frames at positions [B, T]: [B, T, 1, 1, K / 2], zero for the pairs that carry space."""
    time, row, column = split_pairs(head_width)
    angles = positions.float()[..., None] * frequencies(time, base, positions.device)
    return torch.nn.functional.pad(angles, (0, row + column))[:, :, None, None]


def frequencies(pairs: int, base: float, device: torch.device) -> Tensor:
    """Angular frequencies [pairs] of rotary positions, radians per unit of position."""
    return base ** -(torch.arange(pairs, device=device, dtype=torch.float32) / max(pairs, 1))
