"""Stage `heads`: motion, reward and termination read off the finished generator; depth guessed from a single picture.

The generator runs over recorded clips exactly as it does when it commits frames. A step is blocked where the simulator
let less happen than was commanded; a frame earns the reward where the simulator paid or reported success.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldscape.config import WorldConfig
from worldscape.data.clips import FrameStore
from worldscape.train.codec import picture_rows
from worldscape.train.config import TrainConfig
from worldscape.train.world import WorldStage, WorldTrainConfig
from worldscape.train.world import build_stage as build_world_stage
from worldscape.transformer import FrameInputs
from worldscape.world import WorldModel

DEFAULTS: dict[str, TrainConfig] = {
    "debug": WorldTrainConfig(
        steps=20, batch_size=4, lr=1e-3, warmup=2, sample_every=20, checkpoint_every=10, log_every=5, dream_frames=16
    ),
    "nano": WorldTrainConfig(
        steps=2000, batch_size=32, lr=1e-3, warmup=100, ema=0.998, precision="bf16", threads=2, sample_every=1000
    ),
    "small": WorldTrainConfig(steps=8000, batch_size=64, lr=5e-4, warmup=200, precision="bf16", sample_every=2000),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsStage:
    """Trains the heads on the clips of the world stage."""

    clips: WorldStage
    name: str = "heads"

    @property
    def store(self) -> FrameStore:
        """The recorded frames."""
        return self.clips.store

    def trainable(self, model: WorldModel) -> nn.Module:
        """The heads."""
        return model.heads

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """The world stage's clips, and what followed: controls, whether they were free, rewards, ends; pictures."""
        batch = self.clips.batch(step, rank, world_size)
        after = batch["frames"].numpy() + 1
        last = self.store.starts[np.searchsorted(self.store.starts, after - 1, side="right")] - 1
        after_or_last = np.minimum(after, last)
        now = batch["frames"].numpy()
        control, realised = self.store.controls[after_or_last], self.store.realised[after_or_last]
        blocked = np.abs(control[..., :3] - realised[..., :3]).max(-1) > 1e-3
        walks = (np.abs(control[..., :3]).max(-1) > 1e-6) & (after <= last)
        batch["control"] = torch.from_numpy(control)
        batch["free"] = torch.from_numpy((~blocked).astype(np.float32))
        batch["walks"] = torch.from_numpy(walks.astype(np.float32))
        batch["reward"] = torch.from_numpy(np.maximum(self.store.reward[now] > 0, self.store.success[now] > 0)).float()
        batch["end"] = torch.from_numpy(np.maximum(self.store.terminated[now], self.store.success[now]))
        batch["picture"] = self.store.rgbd(now[:, -1])
        return batch

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Binary cross-entropy of motion, reward and end; L1 of inverse depth."""
        with torch.no_grad():
            features = clip_features(model, batch)[:, 1:]
        flat = "b t ... -> (b t) ..."
        latent = rearrange(batch["latent"][:, 1:], flat)
        features = rearrange(features, flat)
        control, free, walks, reward, end = (
            rearrange(batch[name][:, 1:], flat) for name in ("control", "free", "walks", "reward", "end")
        )
        motion = model.heads.motion(features, latent, control).float()
        events = model.heads.events(features, latent)
        motion_loss = F.binary_cross_entropy_with_logits(motion, free, walks, reduction="sum") / walks.sum().clamp_min(
            1
        )
        reward_loss = F.binary_cross_entropy_with_logits(events.reward.float(), reward)
        end_loss = F.binary_cross_entropy_with_logits(events.end.float(), end)
        depth = model.heads.depth(batch["picture"][:, :3]).float()
        depth_loss = (depth - batch["picture"][:, 3]).abs().mean()
        right = ((motion > 0).float() == free).float()
        return {
            "loss": motion_loss + reward_loss + end_loss + 4.0 * depth_loss,
            "motion": motion_loss.detach(),
            "motion_accuracy": ((right * walks).sum() / walks.sum().clamp_min(1)).detach(),
            "blocked_recall": share(right, walks * (1 - free)),
            "reward_recall": share((events.reward > 0).float(), reward),
            "reward_precision": share(reward, (events.reward > 0).float()),
            "depth": depth_loss.detach(),
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Pictures of episodes left out of training, their inverse depth, and the guess."""
        index = self.clips.prepared.frames[-8:, -1].numpy()
        picture = self.store.rgbd(index).to(next(model.parameters()).device)
        guess = model.heads.depth(picture[:, :3])
        grey = [((depth + 1) * 127.5).round().to(torch.uint8) for depth in (picture[:, 3], guess)]
        rows = [depth[..., None].expand(-1, -1, -1, 3).cpu().numpy() for depth in grey]
        return {"depth": picture_rows([self.store.frames[index], *rows])}


def clip_features(model: WorldModel, batch: dict[str, Tensor]) -> Tensor:
    """The generator's features of clean clips, as when frames are committed: [B, T, P, D]."""
    latent = batch["latent"]
    inputs = FrameInputs(
        latent=latent,
        level=torch.full(latent.shape[:2], model.config.context_level, device=latent.device),
        rays=batch["rays"],
        anchor=batch["guess"],
        coverage=batch["coverage"],
    )
    positions = torch.arange(latent.shape[1], device=latent.device).expand(len(latent), -1)
    return model.transformer(inputs, positions).features.float()


def share(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of values, 0 where the weights are."""
    return ((values * weight).sum() / weight.sum().clamp_min(1)).detach()


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: str | Path, init: str | None
) -> HeadsStage:
    """The stage for a dataset, over the codec and generator of `init`."""
    return HeadsStage(clips=build_world_stage(model_config, train_config, dataset, init))
