"""Goals of walkers: where one stands, whether it is in sight, and what being near it is worth.

Nearness is a potential (Ng et al. 1999): a reward of how much it grows sums up to where one ends, whatever the way, so
it shortens the search for the goal and cannot be earned twice.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.camera import invert_pose

FAR = 8.0  # metres from which on a goal is worth nothing yet
MIDDLE = 0.4  # metres above the floor, where the middle of a goal is
OFF = 0.7  # metres by which what a picture shows in a goal's place may lie before or behind its middle
LEAST_SPREAD = 0.3  # metres that a walker has to move both ways to tell from distances where something is
LARGEST_MISS = 0.1  # metres by which the distances may disagree about it


def nearness(distance: Tensor, is_known: Tensor) -> Tensor:
    """Metres to the goal and whether it was seen yet -> what that is worth, 0 to 1: 0 for what nobody has seen."""
    return (1.0 - distance / FAR).clamp(0.0, 1.0) * is_known


def floor_distance(goal: Tensor, camera: Tensor) -> Tensor:
    """Goals [..., 3] and cameras [..., 6], world axes -> metres between them on the floor plan [...]."""
    return (goal[..., [0, 2]] - camera[..., [0, 2]]).norm(dim=-1)


class Sight(NamedTuple):
    """Where goals are in pictures of N views: column and row [N], shares of the picture, and is_seen bool [N]: they
    are in the picture, and nothing stands before them."""

    column: Tensor
    row: Tensor
    is_seen: Tensor


def look_for(goal: Tensor, depth: Tensor, pose: Tensor, intrinsics: Tensor) -> Sight:
    """Goals [N, 3] on the floor (y = 0) in world axes, depth [N, h, w] metres, poses [N, 4, 4], intrinsics [N, 4] ->
    Sight."""
    middle = goal - goal.new_tensor([0.0, MIDDLE, 0.0])
    to_view = invert_pose(pose)
    x, y, z = ((to_view[:, :3, :3] @ middle[..., None])[..., 0] + to_view[:, :3, 3]).unbind(-1)
    fx, fy, cx, cy = intrinsics.unbind(-1)
    ahead = z.clamp_min(1e-3)
    column, row = x / ahead * fx + cx, y / ahead * fy + cy
    is_inside = (z > 0) & (column >= 0) & (column < 1) & (row >= 0) & (row < 1)
    height, width = depth.shape[1:]
    places = (row.clamp(0, 1) * height).long().clamp_max(height - 1), (column.clamp(0, 1) * width).long()
    shown = depth[torch.arange(len(depth)), places[0], places[1].clamp_max(width - 1)]
    return Sight(column, row, is_inside & ((shown - z).abs() < OFF))


def trilaterate(places: np.ndarray, distances: np.ndarray) -> np.ndarray | None:
    """Where walkers' places [T, 2] and their distances [T] from something say that it stands: [2] metres, or None where
    they went too little about to tell, or the distances do not agree."""
    middle = places.mean(0)
    away = places - middle
    if len(places) < 3 or np.linalg.svd(away, compute_uv=False)[-1] / np.sqrt(len(places)) < LEAST_SPREAD / 2:
        return None
    # |p - g|^2 = d^2 is linear in g and |g|^2.
    known = np.concatenate([2.0 * away, np.ones((len(away), 1))], 1)
    found = np.linalg.lstsq(known, (away**2).sum(1) - distances**2, rcond=None)[0][:2] + middle
    miss = np.abs(np.linalg.norm(places - found, axis=1) - distances)
    return found if np.median(miss) < LARGEST_MISS else None
