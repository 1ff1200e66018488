"""What the object head learns from recordings: how an object moves while hands move around it.

It learns as it is used, from what it said itself a step before, on stretches in which a hand is near. Stretches are
turned about the vertical at random, which changes nothing on a table; and where the object is at first is a little
wrong, as what is found in pictures is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.hand_model import rotation_about
from worldscape.conditioning.layers import Thing
from worldscape.data.clips import FrameStore
from worldscape.heads import Heads

STRETCH = 12  # steps
NEAR = 0.25  # metres between wrist and object, in some frame of a stretch
FALLEN = 0.02  # metres below the table: what falls off it is gone
MISPLACED = 0.006  # metres, standard deviation of where the object is taken to be at first
MOVES = 0.002  # metres a step: less is standing still
MISSED = 0.02  # metres of error that count as one
CHANCE_WEIGHT = 0.2  # of whether it moves, and of touch


def object_stretches(store: FrameStore, episodes: int) -> np.ndarray:
    """First frames, long [N], of stretches of STRETCH + 2 frames inside one of the first `episodes` episodes, with a
    hand that comes near an object which stays on the table."""
    tracks, length = store.hands, STRETCH + 2
    count = store.starts[episodes]
    if tracks is None or count < length:
        return np.zeros(0, np.int64)
    place, present = tracks.places[:count, 0], tracks.present[:count]
    away = np.linalg.norm(tracks.state[:count, :, :3] - place[:, None], axis=-1)
    is_near = np.any(np.where(present, away, np.inf) < NEAR, axis=1)  # NaN, where nothing is known, is not near
    is_good = np.isfinite(place).all(-1) & present.any(1) & (place[:, 1] < FALLEN)
    episode: np.ndarray = np.searchsorted(store.starts, np.arange(count), side="right")
    first = np.arange(count - length + 1)
    frames = first[:, None] + np.arange(length)
    is_one = episode[first] == episode[first + length - 1]
    return first[is_one & np.all(is_good[frames], axis=1) & np.any(is_near[frames], axis=1)]


def object_labels(store: FrameStore, stretches: np.ndarray, num: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """`num` of the stretches, turned at random, in axes with y from the table down, metres: object_points
    [N, S + 1, 2, 21, 3] and object_hands bool [N, S + 1, 2], object_places [N, S + 1, 3], object_guess [N, 3] (where it
    is taken to be at first), object_shift [N, 3] (what the step before did), object_touch [N, S + 1, 3]. Nothing where
    there are no stretches."""
    tracks = store.hands
    if tracks is None or not len(stretches) or not num:
        return {}
    index = rng.choice(stretches, num)[:, None] + np.arange(STRETCH + 2)
    flat = index[:, 1:].reshape(-1)
    limbs = tracks.limbs(flat, torch.from_numpy(store.pose[flat]))
    places = torch.from_numpy(tracks.places[index, 0])
    below = places[:, 1:2] * torch.tensor([1.0, 0.0, 1.0])
    angles = torch.from_numpy(rng.uniform(-np.pi, np.pi, num).astype(np.float32))
    turn = rotation_about(torch.tensor([0.0, 1.0, 0.0]).expand(num, 3), angles)
    points = limbs.keypoints.unflatten(0, index[:, 1:].shape) - below[:, :, None, None]
    places = (places - below) @ turn.mT
    wrong = MISPLACED * torch.from_numpy(rng.standard_normal((num, 3), np.float32))
    return {
        "object_points": points @ turn[:, None, None].mT,
        "object_hands": limbs.present.unflatten(0, index[:, 1:].shape),
        "object_places": places[:, 1:],
        "object_guess": places[:, 1] + wrong,
        "object_shift": places[:, 1] - places[:, 0],
        "object_touch": torch.from_numpy(tracks.touch[index[:, 1:]]),
    }


def object_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss of the object head: where the object is after each step of a stretch, whether it moves, and touch; and
    beside it object_miss (metres at the end, of those that moved), object_recall and object_precision (of having moved
    by 2 cm then) and touch_miss (share of wrong flags)."""
    assert heads.object is not None
    points, present, true = batch["object_points"], batch["object_hands"], batch["object_places"]
    offset = batch["object_guess"] - true[:, 0]
    place, shift = batch["object_guess"], batch["object_shift"]
    misses, chances, wrong = [], [], []
    for step in range(1, points.shape[1]):
        thing = Thing(place, place, torch.zeros_like(place[:, 0]), present[:, step].any(1))
        found = heads.object(points[:, step - 1], points[:, step], present[:, step], thing, shift)
        shift = found.shift.float() * found.moves.float().sigmoid()[:, None]
        place = place + shift
        misses.append(F.smooth_l1_loss((place - offset) / MISSED, true[:, step] / MISSED))
        moves = ((true[:, step] - true[:, step - 1]).norm(dim=-1) > MOVES).float()
        flags = torch.cat([moves[:, None], batch["object_touch"][:, step]], 1)
        logits = torch.cat([found.moves[:, None], found.touch], 1).float()
        chances.append(F.binary_cross_entropy_with_logits(logits, flags, reduction="none").mean(0).sum())
        wrong.append(((logits > 0) != (flags > 0.5)).float().mean())
    moved, says = ((end - true[:, 0]).norm(dim=-1) > MISSED for end in (true[:, -1], place.detach() - offset))
    miss = (place.detach() - offset - true[:, -1]).norm(dim=-1)
    return {
        "object": torch.stack(misses).mean() + CHANCE_WEIGHT * torch.stack(chances).mean(),
        "object_miss": (miss * moved).sum() / moved.sum().clamp_min(1),
        "object_recall": (moved & says).sum() / moved.sum().clamp_min(1),
        "object_precision": (moved & says).sum() / says.sum().clamp_min(1),
        "touch_miss": torch.stack(wrong).mean(),
    }
