"""What goes into a world's memory and what comes out: plain values with a leading B."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.layers import Limbs
from worldscape.conditioning.reproject import Anchor
from worldscape.nn.blocks import KeysValues


class Recall(NamedTuple):
    """What memory shows of a view: pages long [B, A] that were reprojected, the anchor made of them, coverage [B]
    (share of the pixels shown), real [B, CELLS ** 2] (share of each cell that goes back to real frames, through however
    many dreamed ones), is_real_shown bool [B] (a real frame itself shows a good part of the view), pages long [B, R]
    whose keys and values join the history, and frames long [B, A + R], the numbers of the frames in both; BLANK and -1
    where none.
    """

    anchors: Tensor
    anchor: Anchor
    coverage: Tensor
    real: Tensor
    is_real_shown: Tensor
    retrieved: Tensor
    frames: Tensor

    def retrieving(self, other: Recall) -> Recall:
        """The same, but that the keys and values of what `other` retrieved join the history."""
        num_anchors = self.anchors.shape[1]
        frames = torch.cat([self.frames[:, :num_anchors], other.frames[:, num_anchors:]], 1)
        return self._replace(retrieved=other.retrieved, frames=frames)


class Remembered(NamedTuple):
    """Pictures in memory: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N], frames long
    [B, N] (numbers of the frames in their dream).
    """

    rgbd: Tensor
    poses: Tensor
    valid: Tensor
    frames: Tensor


class Frame(NamedTuple):
    """A finished frame: keys and values [B, 1, P, H, K] per layer (none: geometry only, or taken in later), rgbd
    [B, 4, h, w], pose [B, 4, 4] camera to world, intrinsics [B, 4] normalised. is_real: a recorded frame, not a dreamed
    one. limbs: the hands in it, None where there can be none.
    """

    layers: list[KeysValues]
    rgbd: Tensor
    pose: Tensor
    intrinsics: Tensor
    is_real: bool = False
    limbs: Limbs | None = None
