"""What the generator trains on: latents of recorded frames and what memory would have shown of each view.

Episodes are replayed through the engine's own keyframe memory, as a dream whose generator never errs: each frame is
encoded, disturbed a little, decoded with its anchor, and that picture is what memory keeps. The result lies beside the
dataset, under a name made of everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldscape.checkpoint import weights_id
from worldscape.codec import normalise_tokens
from worldscape.data.clips import FrameStore
from worldscape.engine import token_coverage
from worldscape.memory.keyframes import KeyframeMemory
from worldscape.progress import Progress
from worldscape.world import WorldModel

EPISODES_AT_ONCE = 64
LARGEST_DISTURBANCE = 0.35  # of latents before decoding, as a generator's errors would


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedFrames:
    """E dreams of F frames each. latent and guess [E, F, P, C], coverage [E, F, P] (float16), frames long [E, F]:
    positions in the FrameStore. The first frame of each dream opens it: memory shows nothing of it.
    """

    latent: Tensor
    guess: Tensor
    coverage: Tensor
    frames: Tensor


def prepare(model: WorldModel, store: FrameStore, dataset: str | Path, length: int, seed: int) -> PreparedFrames:
    """Replay every episode through memory, or read the result of an earlier call with the same inputs.

    length: frames of each dream, cut from a random place of its episode.
    """
    path = _cache_path(model, store, dataset, length, seed)
    if not path.exists():
        tensors = _replay_all(model, store, length, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial)
        partial.replace(path)
    return PreparedFrames(**load_file(path))


def _cache_path(model: WorldModel, store: FrameStore, dataset: str | Path, length: int, seed: int) -> Path:
    settings = [weights_id(model), len(store.frames), store.num_episodes, length, seed, LARGEST_DISTURBANCE]
    settings.append(model.config.to_dict()["memory"])
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    folder = Path(dataset)
    return folder.parent / f".{folder.name}-prepared" / f"{key}.safetensors"


def _replay_all(model: WorldModel, store: FrameStore, length: int, seed: int) -> dict[str, Tensor]:
    rng = np.random.default_rng([seed, 3])
    sizes = np.diff(store.starts)
    length = min(length, int(sizes.min()))
    offsets = store.starts[:-1] + rng.integers(0, sizes - length + 1)
    frames = torch.from_numpy(offsets[:, None] + np.arange(length)[None])
    parts = []
    with Progress("episodes prepared", total=len(frames)) as progress:
        for rows in frames.split(EPISODES_AT_ONCE):
            parts.append(_replay(model, store, rows, seed))
            progress.update(len(rows))
    return {"frames": frames, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}


@torch.inference_mode()
def _replay(model: WorldModel, store: FrameStore, frames: Tensor, seed: int) -> dict[str, Tensor]:
    """One batch of dreams, frames long [E, F] -> latent, guess, coverage."""
    device = next(model.parameters()).device
    memory = KeyframeMemory.empty(
        model.config.memory, len(frames), model.config.codec.size, torch.zeros((), device=device)
    )
    intrinsics = torch.from_numpy(store.intrinsics).to(device).expand(len(frames), -1)
    active = torch.ones(len(frames), dtype=torch.bool, device=device)
    strength = LARGEST_DISTURBANCE * torch.rand(
        len(frames), 1, 1, generator=torch.Generator().manual_seed(seed + int(frames[0, 0]))
    ).to(device)
    steps: dict[str, list[Tensor]] = {"latent": [], "guess": [], "coverage": []}
    for step in range(frames.shape[1]):
        index = frames[:, step].numpy()
        rgbd, pose = store.rgbd(index).to(device), torch.from_numpy(store.pose[index]).to(device)
        anchor = memory.recall(pose, intrinsics)
        with torch.autocast(device.type, torch.bfloat16):
            latent, guess = model.codec.encode(rgbd).float(), model.codec.encode_anchor(anchor)
            kept = rgbd
            if step > 0:
                disturbed = normalise_tokens(latent + strength * torch.randn_like(latent))
                kept = model.codec.decode(disturbed, anchor, guess.skips).float().clamp(-1.0, 1.0)
        number = torch.full((len(frames),), step, device=device)
        memory.admit(kept, pose, intrinsics, anchor.mask.mean((1, 2, 3)), number, active)
        coverage = token_coverage(anchor.mask, model.config.codec.grid)
        for name, value in (("latent", latent), ("guess", guess.latent), ("coverage", coverage)):
            steps[name].append(value.to("cpu", torch.float16))
    return {name: torch.stack(values, 1) for name, values in steps.items()}
