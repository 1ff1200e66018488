"""Retrieval: of what the remembered frames truly show of the next view, how much do the chosen ones show?

Recorded frames are replayed through memory, so everything is known: the simulator's depth tells for every pixel of the
next view which remembered frame sees that very point. The choice of memory is compared with a greedy choice that knows
this (the oracle), and with choices at random, of the latest frames, and by camera pose alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.camera import pose_distance
from worldscape.conditioning.reproject import encode_depth, visible_from
from worldscape.config import MemoryConfig
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.report import Table
from worldscape.memory.pages import BLANK, PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory

METHODS = ("memory", "oracle", "random", "recent", "pose")


class View(NamedTuple):
    """A view to be shown: sees bool [B, N, p], which of its pixels each remembered frame truly shows; frames long
    [B, N], their numbers, -1 for places that hold none; distance [B, N] from the view's camera to theirs.
    """

    sees: Tensor
    frames: Tensor
    distance: Tensor


class Retrieval(NamedTuple):
    """Flat metrics (docs/metrics.md) and the table to print."""

    metrics: dict[str, float]
    tables: list[Table]


def judge_retrieval(config: MemoryConfig, episodes: EpisodeBatch, *, every: int = 4) -> Retrieval:
    """Replay the episodes and score every `every`-th view. Raises ValueError when there is none to score."""
    if not 1 <= every <= episodes.num_steps:
        raise ValueError(f"every is {every}; give a number of steps from 1 to {episodes.num_steps}")
    memory = WorldMemory.empty(config, len(episodes), PageShape(0, 0, 0, 0, episodes.frames.shape[2]), torch.zeros(()))
    intrinsics = torch.from_numpy(episodes.intrinsics)
    active = torch.ones(len(episodes), dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    shares: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for step in range(episodes.num_steps + 1):
        depth, pose = torch.from_numpy(episodes.depth[:, step]), torch.from_numpy(episodes.pose[:, step])
        rgbd = frame_to_rgbd(torch.from_numpy(episodes.frames[:, step]), encode_depth(depth))
        recall = memory.recall(pose, intrinsics)
        if step > config.num_anchors and step % every == 0:
            for method, share in compare(memory, recall.anchors, depth, pose, intrinsics, rng).items():
                shares[method].append(share)
        memory.append(Frame([], rgbd, pose, intrinsics), recall, active)
    if not shares["oracle"]:
        raise ValueError("no view was scored; walk longer or choose a smaller `every`")
    return summarise({method: torch.cat(parts) for method, parts in shares.items()})


def compare(
    memory: WorldMemory, chosen: Tensor, depth: Tensor, pose: Tensor, intrinsics: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """Of the pixels that memory truly shows of a view, the share [B] that each method's choice shows; NaN without any.

    chosen long [B, A]: the pages that memory chose; depth [B, h, w] metres and pose [B, 4, 4] of the view.
    """
    pages, fields = memory.tables.shown(), memory.store.fields
    sees = visible_from(fields.rgbd[pages], fields.pose[pages], pages != BLANK, depth, pose, intrinsics)
    frames = fields.frame[pages]
    distance = pose_distance(pose[:, None], fields.pose[pages])[:, 0]
    view = View(rearrange(sees, "b n h w -> b n (h w)"), frames, distance)
    num_picks = chosen.shape[1]
    is_chosen = (pages[:, :, None] == chosen[:, None]).any(2) & (pages != BLANK)
    noise = torch.rand(frames.shape, generator=rng)
    picked = {
        "memory": is_chosen,
        "oracle": choose_greedily(view, num_picks),
        "random": choose_highest(noise, frames, num_picks),
        "recent": choose_highest(frames.float(), frames, num_picks),
        "pose": choose_highest(-view.distance, frames, num_picks),
    }
    shown = view.sees.any(1).float().sum(1)
    covered = {method: (view.sees & mask[..., None]).any(1).float().sum(1) for method, mask in picked.items()}
    return {method: torch.where(shown > 0, pixels / shown, torch.nan) for method, pixels in covered.items()}


def choose_greedily(view: View, num_picks: int) -> Tensor:
    """The frames that, one after another, show most pixels not shown yet: bool [B, N]."""
    sees, chosen = view.sees.float(), torch.zeros_like(view.frames, dtype=torch.bool)
    for _ in range(num_picks):
        gain = torch.where(chosen | (view.frames < 0), -1.0, sees.sum(2))
        best = gain.argmax(1, keepdim=True)
        chosen = chosen.scatter(1, best, gain.gather(1, best) >= 0)
        sees = sees * (1 - sees.gather(1, best[..., None].expand(-1, -1, sees.shape[2])))
    return chosen


def choose_highest(score: Tensor, frames: Tensor, num_picks: int) -> Tensor:
    """The num_picks frames of the highest score [B, N], never a place that holds none: bool [B, N]."""
    best = torch.where(frames < 0, -torch.inf, score).topk(min(num_picks, score.shape[1]), 1).indices
    return torch.zeros_like(frames, dtype=torch.bool).scatter(1, best, True) & (frames >= 0)


def summarise(shares: Mapping[str, Tensor]) -> Retrieval:
    """Shares [V] of each method -> means over the views that memory shows anything of, and ratios to the oracle's."""
    means = {method: values.nanmean().item() for method, values in shares.items()}
    found = {f"covered_{method}": value for method, value in means.items()}
    found |= {f"ratio_{method}": means[method] / means["oracle"] for method in METHODS if method != "oracle"}
    found["num_views"] = float((~shares["oracle"].isnan()).sum())
    rows = [[method, means[method], means[method] / means["oracle"]] for method in METHODS]
    return Retrieval(found, [Table(title="retrieval", columns=["choice", "covered", "/ oracle"], rows=rows)])
