"""Which frame of a clip sees which: a clip is sink, retrieved frames, local window and target, in order of time.

What MACO retrieves for the target is older than its local window and younger than the sink, so no frame of a clip is
shown what it is to predict when it sees what comes before it. Reasons for the rest are in docs/training.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sight(is_held: Tensor, num_sink: int, num_tail: int, is_causal: bool = True) -> Tensor:
    """Which frame of a clip sees which: bool [B, T, T], True where row may look at column, T = num_sink + R + num_tail.

    is_held: which of the R places for retrieved frames hold one, bool [B, R]; num_tail: frames from the local window to
    the target. Nobody sees an absent frame but itself. A retrieved frame sees the sink and itself: what a page holds
    does not depend on what is retrieved beside it. All others see what is there before them, and a teacher's frames
    (is_causal False) see all that is there.
    """
    is_there = torch.nn.functional.pad(is_held, (num_sink, num_tail), value=True)
    order = torch.arange(is_there.shape[1], device=is_held.device)
    itself = order[:, None] == order[None]
    is_retrieved = (order >= num_sink) & (order < num_sink + is_held.shape[1])
    may = (order[:, None] > order[None]) & ~(is_retrieved[:, None] & is_retrieved[None])
    may = may if is_causal else torch.ones_like(may)
    return (is_there[:, None] & may) | itself


def present(sees: Tensor) -> Tensor:
    """Which frames of a clip are there, bool [B, T]: those that its target sees, of bool [B, T, T]."""
    return sees[:, -1]
