"""What of recorded frames is known from other frames of their episode: there is one right answer there, and many where
nothing has been seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.codec import token_coverage
from worldscape.conditioning.layers import NOBODY
from worldscape.conditioning.reproject import Anchor, decode_depth, reproject, same_surface
from worldscape.data.clips import FrameStore
from worldscape.train.rollouts import owners_at


def find_still(store: FrameStore, frames: np.ndarray) -> Tensor:
    """Which pixels of recorded frames [R, F] show what stays where it is, all but hands and their object: bool
    [R, F, h, w]."""
    still = torch.ones(*frames.shape, *store.depth.shape[1:], dtype=torch.bool)
    if store.hands is not None:
        moves = store.hands.moves(frames)
        if moves.any():
            still[moves] = owners_at(store, frames[moves.numpy()]) == NOBODY
    return still


class Recorded(NamedTuple):
    """Recorded frames of R clips: rgbd [R, F, 4, h, w], poses [R, F, 4, 4], still bool [R, F, h, w] (find_still)."""

    rgbd: Tensor
    poses: Tensor
    still: Tensor


def find_known(shown: Recorded, wanted: Recorded, intrinsics: Tensor) -> Tensor:
    """Which pixels of the `wanted` frames [R, V] the `shown` ones [R, N] show, by the recorded depth, of what stays
    where it is: bool [R, V, h, w], all False where views do not overlap. intrinsics [R, 4] normalised.
    """
    return known_in(rebuild(shown, wanted.poses, intrinsics), wanted)


def rebuild(shown: Recorded, poses: Tensor, intrinsics: Tensor) -> Anchor:
    """What the `shown` frames [R, N] show, of what stays where it is, from poses [R, V, 4, 4]: R V rows."""
    sources = torch.nan_to_num(shown.rgbd, nan=-1.0)  # unmeasured depth is infinitely far
    views = [reproject(sources, shown.poses, shown.still, pose, intrinsics) for pose in poses.unbind(1)]
    return Anchor(*(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*views, strict=True)))


def known_in(anchor: Anchor, wanted: Recorded) -> Tensor:
    """Where rebuilt views (R V rows) of the `wanted` frames [R, V] show the recorded surface: bool [R, V, h, w]."""
    depth = decode_depth(torch.nan_to_num(wanted.rgbd[:, :, 3], nan=-1.0))
    return same_surface(anchor, depth.flatten(0, 1)).view_as(wanted.still) & wanted.still


def known_share(shown: Recorded, wanted: Recorded, intrinsics: Tensor, grid: int) -> Tensor:
    """The share of each token's pixels that is known (find_known): [R, V, P]."""
    known = find_known(shown, wanted, intrinsics)
    return token_coverage(known.flatten(0, 1)[:, None].float(), grid).unflatten(0, known.shape[:2])
