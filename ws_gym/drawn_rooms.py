"""Simple rooms drawn by a few lines of geometry: start frames with depth for machines that have no files at all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

FIELD_OF_VIEW = math.radians(80.0)
EYE_HEIGHT = 1.2  # metres above the floor


class DrawnRoom(NamedTuple):
    """frame uint8 [h, w, 3], depth float32 [h, w] metres along the view axis, intrinsics float32 [4]."""

    frame: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray


def draw_room(index: int, size: tuple[int, int]) -> DrawnRoom:
    """View into an empty box of a room with tiled, coloured sides; everything follows from `index`."""
    rng = np.random.default_rng(index)
    walls = rng.uniform(1.5, 4.0, 2)  # metres to the walls at both sides
    ahead, ceiling = rng.uniform(3.0, 7.0), rng.uniform(1.2, 2.5)
    focal = 0.5 / math.tan(FIELD_OF_VIEW / 2)
    height, width = size
    y, x = np.meshgrid(_centres(height) / focal, _centres(width) / focal, indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], -1)
    # Along a ray with z = 1, the depth at which each side of the box is met.
    sides = np.stack([_meet(x, -walls[0]), _meet(x, walls[1]), _meet(y, EYE_HEIGHT), _meet(y, -ceiling), 0 * x + ahead])
    side, depth = sides.argmin(0), sides.min(0)
    tiles = np.floor(rays * depth[..., None] / rng.uniform(0.4, 0.9)).sum(-1) % 2
    colours = rng.uniform(40, 230, (len(sides), 3))
    light = (0.6 + 0.4 * np.exp(-depth / 6.0)) * (0.8 + 0.2 * tiles)
    frame = (colours[side] * light[..., None]).astype(np.uint8)
    return DrawnRoom(frame, depth.astype(np.float32), np.array([focal, focal, 0.5, 0.5], np.float32))


def _centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count - 0.5


def _meet(slope: np.ndarray, plane: float) -> np.ndarray:
    """Depth at which rays of this slope reach the plane; infinite for those that point away from it."""
    with np.errstate(divide="ignore"):
        depth = plane / slope
    return np.where(depth > 0, depth, np.inf)
