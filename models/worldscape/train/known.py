"""What of recorded frames is known from other frames of their episode: there is one right answer there, and many where
nothing has been seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.layers import NOBODY
from worldscape.conditioning.reproject import decode_depth, reproject
from worldscape.data.clips import FrameStore
from worldscape.train.rollouts import owners_at

SAME_SURFACE = 0.05  # relative difference of depth up to which two frames show the same surface


def find_still(store: FrameStore, frames: np.ndarray) -> Tensor:
    """Which pixels of recorded frames [R, F] show what stays where it is, all but hands and their object: bool
    [R, F, h, w]."""
    still = torch.ones(*frames.shape, *store.depth.shape[1:], dtype=torch.bool)
    if store.hands is not None:
        moves = store.hands.moves(frames)
        if moves.any():
            still[moves] = owners_at(store, frames[moves.numpy()]) == NOBODY
    return still


def find_known(shown: Tensor, poses: Tensor, still: Tensor, rgbd: Tensor, target: Tensor, intrinsics: Tensor) -> Tensor:
    """Which pixels of recorded frames rgbd [R, V, 4, h, w] at poses `target` [R, V, 4, 4] other recorded frames `shown`
    [R, N, 4, h, w] at `poses` [R, N, 4, 4] show, of their pixels bool `still` [R, N, h, w], by the recorded depth:
    bool [R, V, h, w], all False where views do not overlap. intrinsics [R, 4] normalised.
    """
    shown = torch.nan_to_num(shown, nan=-1.0)  # unmeasured depth is infinitely far
    known = []
    for there, pose in zip(rgbd.unbind(1), target.unbind(1), strict=True):
        anchor = reproject(shown, poses, still, pose, intrinsics)
        found, true = decode_depth(anchor.rgbd[:, 3]), decode_depth(torch.nan_to_num(there[:, 3], nan=-1.0))
        known.append((anchor.mask[:, 0] > 0.5) & ((found - true).abs() < SAME_SURFACE * true))
    return torch.stack(known, 1)
