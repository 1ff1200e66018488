"""What a slot remembers, and how far the last frame may be trusted: numbers for people and agents, read off the tables.

Drift is lineage, not looks: sharpness, colour and disagreement with memory say little about the error of a frame; how
much of it goes back to real pixels says most (docs/LOG.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.made_once import made_once
from worldscape.memory.pages import BLANK
from worldscape.memory.tables import SlotTables


class MemoryReport(NamedTuple):
    """Fresh tensors. pages_used long [B]: frames that are held in memory, of which pool_size long [B] lie in the pool;
    frames_seen long [B]: frames committed, start frames included. Of the last frame: anchor_ages long [B, A] and
    retrieved_ages long [B, R], how many steps earlier each frame was committed whose pixels were reprojected, or whose
    keys were read (-1: none); novelty [B], the share of it, 0 to 1, that memory did not explain.
    """

    pages_used: Tensor
    pool_size: Tensor
    frames_seen: Tensor
    anchor_ages: Tensor
    retrieved_ages: Tensor
    novelty: Tensor


class TrustReport(NamedTuple):
    """Fresh tensors, of the last frame. drift [B]: the share of it, 0 to 1, that does not go back to real frames,
    neither straight nor through reprojected dreams; steps_since_real long [B]: steps since a real frame itself last
    showed at least a sixteenth of the view.
    """

    drift: Tensor
    steps_since_real: Tensor


def report_memory(tables: SlotTables) -> MemoryReport:
    """What each slot remembers, and what of it showed the last frame."""
    pool, is_used, sink = tables.pool, tables.pages != BLANK, tables.levels.num_sink
    is_in_pool = is_used[:, sink : sink + tables.levels.num_pool]
    ages = _ages(tables.chosen, tables.num_anchors, tables.count)
    is_twice = (pool[:, :, None] == tables.local[:, None]).any(2) & is_in_pool
    return MemoryReport(
        pages_used=is_used.sum(1) - is_twice.sum(1),
        pool_size=is_in_pool.sum(1),
        frames_seen=tables.count.clone(),
        anchor_ages=ages[:, : tables.num_anchors],
        retrieved_ages=ages[:, tables.num_anchors :],
        novelty=tables.novelty.clone(),
    )


def report_trust(tables: SlotTables) -> TrustReport:
    """How far each slot's last frame is from what was real."""
    return TrustReport(1.0 - tables.real, tables.since_real.clone())


def _ages(frames: Tensor, num_anchors: int, count: Tensor) -> Tensor:
    """Numbers of frames [B, A + R] -> how many steps before the last one they were committed; -1 for none, and for one
    that anchors, or those after them, named before (it lay in two places).
    """
    is_again = ((frames[:, :, None] == frames[:, None]) & _earlier(num_anchors, frames.shape[1], frames.device)).any(2)
    return (count[:, None] - 1 - frames).masked_fill_((frames < 0) | is_again, -1)


@made_once
def _earlier(num_anchors: int, count: int, device: torch.device) -> Tensor:
    """Which of `count` places come before which among the first num_anchors, and among the others: [count, count]."""
    sizes = num_anchors, count - num_anchors
    return torch.block_diag(*(torch.ones(size, size, device=device).tril(-1) for size in sizes)).bool()
