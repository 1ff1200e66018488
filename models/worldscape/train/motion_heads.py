"""What the motion head learns from: walks in recordings, whose surroundings are put together from recorded depth, and
in dreams, where they are what memory holds.

A few hundred dreams are learned by heart within a thousand steps; recordings hold a hundred thousand walks, and each is
seen from another part of its past, and with other errors of depth, whenever it is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import apply_control
from worldscape.config import BodyConfig
from worldscape.data.clips import FrameStore
from worldscape.heads import Heads
from worldscape.memory.pages import probe_stride
from worldscape.memory.surroundings import STRIDE, Surfaces, every, points_in, surroundings_along
from worldscape.train.rollouts import Moment

AGES = np.concatenate([np.arange(8), np.arange(9, 130, 4)])  # of the frames that stand for what memory keeps, in steps
LONGEST_PAST = 70  # steps; a walk is seen as by somebody who came into the place so long ago, or less
ROUGH = 0.1  # largest relative error of depth, one standard deviation: smooth over the picture
ROUGH_CELLS = 5  # of that error along each side


def is_walk(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether a walk was commanded in the steps that led to these frames [...]."""
    return np.abs(store.controls[index, :3]).max(-1) > 1e-6


def is_refused(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether less motion took place than was commanded in the steps that led to these frames [...]."""
    return np.abs(store.controls[index, :3] - store.realised[index, :3]).max(-1) > 1e-3


def is_repeated_refusal(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether these steps were refused just like the same command before them.

    A recording walker that pushes against a wall says the same thing many times: two refusals of three were repeats,
    and heads trained on them refuse a third of all walks.
    """
    before = np.maximum(index - 1, 0)
    is_same = np.abs(store.controls[index] - store.controls[before]).max(-1) < 1e-6
    return is_same & is_refused(store, index) & is_refused(store, before)


def is_told(store: FrameStore, now: np.ndarray) -> np.ndarray:
    """Whether something can be learned from what followed these frames [...]: a walk that was not refused again."""
    return is_walk(store, now + 1) & ~is_repeated_refusal(store, now + 1)


def walk_moments(store: FrameStore, num_episodes: int) -> np.ndarray:
    """Positions of the frames of the first episodes that a walk follows (is_told)."""
    now = np.arange(store.starts[num_episodes])
    is_last = np.isin(now, store.starts[1:] - 1)
    now = now[~is_last]
    return now[is_told(store, now)]


def motion_labels(store: FrameStore, now: np.ndarray) -> dict[str, Tensor]:
    """What followed these frames [B]: length of the commanded walk, whether it was free, and whether it counts."""
    length = np.linalg.norm(store.controls[now + 1, :3], axis=-1)
    return {
        "length": torch.from_numpy(length.astype(np.float32)),
        "free": torch.from_numpy((~is_refused(store, now + 1)).astype(np.float32)),
        "walks": torch.from_numpy(is_told(store, now).astype(np.float32)),
    }


def dreamed_surroundings(store: FrameStore, moment: Moment) -> Tensor:
    """The surroundings of rollouts, along the recorded controls that follow: [E, 4, G, G]."""
    engine, state = moment.engine, moment.engine.state
    following = torch.from_numpy(store.controls[moment.index + 1]).to(engine.device)
    here = state.camera[:, :3]
    there = apply_control(state.camera, following, engine.config.controls.max_pitch)[:, :3]
    return surroundings_along(state.memory.surfaces(), state.surfaces(), here, there - here, engine.config.body)


def recorded_surroundings(
    store: FrameStore, now: np.ndarray, body: BodyConfig, max_pitch: float, rng: np.random.Generator
) -> Tensor:
    """The surroundings of recorded frames [B] along the controls that follow: [B, 4, G, G].

    Memory is put together from earlier frames of the episode, of a past of random length; half of the rows have depth
    as wrong as a dream's, and part of what they remember is missing.
    """
    size = store.depth.shape[-1]
    first = store.starts[np.searchsorted(store.starts, now, "right") - 1]
    first = np.maximum(first, now - rng.integers(LONGEST_PAST, size=len(now)))
    frames = now[:, None] - AGES
    is_past = torch.from_numpy(frames >= first[:, None])
    is_hurt = rng.random(len(now)) < 0.5
    rough = torch.from_numpy(np.where(is_hurt, ROUGH * rng.random(len(now)), 0.0).astype(np.float32))
    past = _surfaces_at(store, np.maximum(frames, first[:, None]), probe_stride(size), rough, rng)
    current = _surfaces_at(store, now, STRIDE, rough, rng)
    kept = np.where(is_hurt, 0.5 + 0.5 * rng.random(len(now)), 1.0)[:, None, None]
    is_kept = torch.from_numpy(rng.random(past.points.shape[:3]) < kept)
    remembered = Surfaces(past.points.flatten(1, 2), (is_past[..., None] & is_kept).flatten(1, 2))
    camera, control = (torch.from_numpy(part) for part in (store.camera[now], store.controls[now + 1]))
    here = camera[:, :3]
    walk = apply_control(camera, control, max_pitch)[:, :3] - here
    return surroundings_along(remembered, current, here, walk, body)


def _surfaces_at(
    store: FrameStore, index: np.ndarray, stride: int, rough: Tensor, rng: np.random.Generator
) -> Surfaces:
    """Points of the recorded frames [B, ...] with errors of depth of relative size `rough` [B]."""
    depth = torch.from_numpy(store.depth[:, every(stride), every(stride)][index].astype(np.float32))
    error = torch.from_numpy(rng.standard_normal((depth[..., 0, 0].numel(), 1, ROUGH_CELLS, ROUGH_CELLS), np.float32))
    smooth = F.interpolate(error, depth.shape[-2:], mode="bilinear", align_corners=True).reshape(depth.shape)
    depth = depth * (1.0 + rough.reshape(-1, *[1] * (depth.ndim - 1)) * smooth).clamp_min(0.1)
    size, pose = store.depth.shape[-1], torch.from_numpy(store.pose[index])
    return Surfaces.of(points_in(depth, pose, torch.from_numpy(store.intrinsics[index]), size, stride))


def mirror_some(views: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the plan views or pictures [B, C, h, w] with left and right exchanged: a walker's body is symmetric."""
    is_mirrored = torch.from_numpy(rng.random(len(views)) < 0.5)
    return torch.where(is_mirrored[:, None, None, None], views.flip(-1), views)


def motion_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy of free walks; share of blocked ones, recall and precision of refusals."""
    free, walks = batch["free"], batch["walks"]
    motion = heads.motion(batch["near"], batch["length"]).float()
    loss = F.binary_cross_entropy_with_logits(motion, free, walks, reduction="sum") / walks.sum().clamp_min(1)
    refused = (motion <= 0).float()
    return {
        "motion": loss,
        "blocked_share": share(1 - free, walks),
        "blocked_recall": share(refused, walks * (1 - free)),
        "blocked_precision": share(1 - free, walks * refused),
    }


def share(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of values, 0 where the weights are."""
    return ((values * weight).sum() / weight.sum().clamp_min(1)).detach()
