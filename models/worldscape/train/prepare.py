"""What the generator trains on: latents of recorded frames and what memory would have shown of each view.

Episodes are replayed through the engine's own memory, as a dream whose generator never errs: each frame is
encoded, disturbed a little, decoded with its anchor, and that picture is what memory keeps. The result lies beside the
dataset, under a name made of everything it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldscape.codec import normalise_tokens
from worldscape.config import MemoryConfig
from worldscape.data.clips import FrameStore
from worldscape.engine import token_coverage
from worldscape.memory.pages import PageShape
from worldscape.memory.world_memory import Frame, WorldMemory
from worldscape.progress import Progress
from worldscape.train.cache import cached
from worldscape.world import WorldModel

EPISODES_AT_ONCE = 64
LARGEST_DISTURBANCE = 0.25  # of latents before decoding, as a generator's errors would


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedFrames:
    """E dreams of F frames each. latent and guess [E, F, P, C], coverage [E, F, P] (float16), frames long [E, F]:
    positions in the FrameStore; retrieved long [E, F, R]: places in the dream of the earlier frames whose keys and
    values MACO chose for this one, oldest first, then -1. The first frame of each dream opens it: memory shows nothing
    of it.
    """

    latent: Tensor
    guess: Tensor
    coverage: Tensor
    frames: Tensor
    retrieved: Tensor


def prepare(
    model: WorldModel, memory: MemoryConfig, store: FrameStore, dataset: str | Path, length: int, seed: int
) -> PreparedFrames:
    """Replay every episode through memory, or read the result of an earlier call with the same inputs.

    length: frames of each dream, cut from a random place of its episode. memory: the policy of the dreams.
    """
    config = replace(model.config, memory=memory).to_dict()
    settings = [config["codec"], config["memory"], len(store.frames), store.num_episodes, length, seed]
    tensors = cached(
        dataset,
        [*settings, LARGEST_DISTURBANCE],
        [model.codec],
        lambda: _replay_all(model, memory, store, length, seed),
    )
    nothing = tensors["frames"].new_empty(*tensors["frames"].shape, 0)  # not kept where nothing can be retrieved
    return PreparedFrames(**{"retrieved": nothing, **tensors})


def _replay_all(
    model: WorldModel, memory: MemoryConfig, store: FrameStore, length: int, seed: int
) -> dict[str, Tensor]:
    rng = np.random.default_rng([seed, 3])
    sizes = np.diff(store.starts)
    length = min(length, int(sizes.min()))
    offsets = store.starts[:-1] + rng.integers(0, sizes - length + 1)
    frames = torch.from_numpy(offsets[:, None] + np.arange(length)[None])
    parts = []
    with Progress("episodes prepared", total=len(frames)) as progress:
        for rows in frames.split(EPISODES_AT_ONCE):
            parts.append(_replay(model, memory, store, rows, torch.Generator().manual_seed(seed + int(rows[0, 0]))))
            progress.update(len(rows))
    return {"frames": frames, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}


@torch.inference_mode()
def _replay(
    model: WorldModel, policy: MemoryConfig, store: FrameStore, frames: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """One batch of dreams, frames long [E, F] -> latent, guess, coverage, and retrieved where anything can be."""
    device = next(model.parameters()).device
    shape = PageShape(layers=0, tokens=0, heads=0, head_width=0, size=model.config.codec.size)
    memory = WorldMemory.empty(policy, len(frames), shape, torch.zeros((), device=device))
    intrinsics = torch.from_numpy(store.intrinsics).to(device).expand(len(frames), -1)
    active = torch.ones(len(frames), dtype=torch.bool, device=device)
    strength = LARGEST_DISTURBANCE * torch.rand(len(frames), 1, 1, generator=generator).to(device)
    steps: dict[str, list[Tensor]] = {"latent": [], "guess": [], "coverage": []}
    retrieved: list[Tensor] = []
    for step in range(frames.shape[1]):
        index = frames[:, step].numpy()
        rgbd, pose = store.rgbd(index).to(device), torch.from_numpy(store.pose[index]).to(device)
        recall = memory.recall(pose, intrinsics)
        anchor = recall.anchor
        with torch.autocast(device.type, torch.bfloat16):
            latent, guess = model.codec.encode(rgbd).float(), model.codec.encode_anchor(anchor)
            kept = rgbd
            if step > 0:
                noise = torch.randn(latent.shape, generator=generator).to(device)
                disturbed = normalise_tokens(latent + strength * noise)
                kept = model.codec.decode(disturbed, anchor, guess.skips).float().clamp(-1.0, 1.0)
        memory.append(Frame([], kept, pose, intrinsics), recall, active)
        coverage = token_coverage(anchor.mask, model.config.codec.grid)
        for name, value in (("latent", latent), ("guess", guess.latent), ("coverage", coverage)):
            steps[name].append(value.to("cpu", torch.float16))
        retrieved.append(memory.tables.retrieved.cpu())
    if retrieved[0].shape[1] > 0:
        steps["retrieved"] = retrieved
    return {name: torch.stack(values, 1) for name, values in steps.items()}
