"""What the goal head learns from: recorded frames, and where in them a walker's goal is.

Recordings say how far away the goal is; from several places that tells where it stands, and depth whether something
hides it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.data.clips import FrameStore
from worldscape.goals import look_for, trilaterate
from worldscape.heads import THING_CELL, Heads
from worldscape.train.hand_heads import dreamlike


class Sightings(NamedTuple):
    """Training frames that show a goal, long [N], and its column and row in them, float32 [N] shares of the picture;
    others of the same episodes, long [M]."""

    seen: np.ndarray
    column: np.ndarray
    row: np.ndarray
    unseen: np.ndarray


def find_sightings(store: FrameStore, num_episodes: int) -> Sightings:
    """Where the goals of the first episodes are seen; of those whose walkers went about enough to tell."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))]
    for first, after in itertools.islice(itertools.pairwise(store.starts.tolist()), num_episodes):
        frames = np.arange(first, after)
        if store.hands is not None and (store.hands.task[frames] >= 0).any():
            continue  # how far a hand is from what it shall do
        places, distances = store.camera[frames][:, [0, 2]], store.goal_distance[frames]
        goal = None if np.isnan(distances).any() else trilaterate(places.astype(float), distances.astype(float))
        if goal is None:
            continue
        standing = torch.tensor([goal[0], 0.0, goal[1]], dtype=torch.float32).expand(len(frames), 3)
        shown = (store.depth[frames].astype(np.float32), store.pose[frames], store.intrinsics[frames])
        sight = look_for(standing, *(torch.from_numpy(part) for part in shown))
        is_seen = sight.is_seen.numpy()
        parts.append((frames[is_seen], sight.column.numpy()[is_seen], sight.row.numpy()[is_seen], frames[~is_seen]))
    return Sightings(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def goal_labels(store: FrameStore, sightings: Sightings, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Frames, some in a mirror and as dreams are, half of which show a goal: goal_rgbd [N, 4, h, w], goal_seen [N] and
    goal_cell long [N], row by row, where it is seen. Nothing where nothing was sighted."""
    if not len(sightings.seen) or not len(sightings.unseen):
        return {}
    chosen = rng.integers(len(sightings.seen), size=max(count // 2, 1))
    frames = np.concatenate([sightings.seen[chosen], rng.choice(sightings.unseen, max(count - len(chosen), 1))])
    rgbd, is_mirrored = store.rgbd(frames), rng.random(len(frames)) < 0.5
    flipped = torch.where(torch.from_numpy(is_mirrored)[:, None, None, None], rgbd.flip(-1), rgbd)
    side = rgbd.shape[-1] // THING_CELL
    column = np.where(is_mirrored[: len(chosen)], 1.0 - sightings.column[chosen], sightings.column[chosen])
    cells = [(part * side).astype(np.int64).clip(0, side - 1) for part in (sightings.row[chosen], column)]
    cell = np.concatenate([cells[0] * side + cells[1], np.zeros(len(frames) - len(chosen), np.int64)])
    return {
        "goal_rgbd": dreamlike(flipped, rng),
        "goal_seen": torch.from_numpy((np.arange(len(frames)) < len(chosen)).astype(np.float32)),
        "goal_cell": torch.from_numpy(cell),
    }


def goal_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of whether a goal is seen and, where it is, of its cell; share of frames that are told right, and
    cells between where it is and where it is found (mean)."""
    assert heads.goal is not None
    is_seen = batch["goal_seen"]
    seen, heat = (part.float() for part in heads.goal.look(batch["goal_rgbd"]))
    missed = F.cross_entropy(heat, batch["goal_cell"], reduction="none")
    num_seen = is_seen.sum().clamp_min(1)
    side = round(heat.shape[1] ** 0.5)
    found, cell = heat.argmax(1), batch["goal_cell"]
    off = torch.stack([found % side - cell % side, found // side - cell // side]).float().norm(dim=0)
    return {
        "goal": F.binary_cross_entropy_with_logits(seen, is_seen) + (missed * is_seen).sum() / num_seen,
        "goal_right": ((seen > 0) == (is_seen > 0)).float().mean().detach(),
        "goal_off": ((off * is_seen).sum() / num_seen).detach(),
    }
