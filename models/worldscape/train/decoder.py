"""Stage `decoder`: the finished codec's decoder learns to be sharp, on latents of recorded frames and of dreamed ones.

A decoder trained on pixels alone paints the mean of all textures that fit its latent, which is grey; a critic asks for
more. Encoder and generator stay as they are, so latents keep their meaning. Half of each batch decodes what the
generator makes of noise in one call; there the pixels count less where memory shows nothing, since a dream need not
repeat them. A quarter of those remember pictures that the decoder itself made, as a long dream does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.codec import Encoded, normalise_tokens
from worldscape.conditioning.reproject import Anchor
from worldscape.config import WorldConfig
from worldscape.data.clips import FrameStore, corrupt_sources, draw_sources
from worldscape.engine import token_coverage
from worldscape.train.codec import (
    decode_blind,
    disturb_latent,
    gather_targets,
    picture_grid,
    picture_loss,
    psnr,
    recall_targets,
    sharpness_ratio,
)
from worldscape.train.config import TrainConfig
from worldscape.train.critic import Critic, critic_losses
from worldscape.train.world import WorldStage, WorldTrainConfig
from worldscape.train.world import build_stage as build_world_stage
from worldscape.transformer import FrameInputs
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderTrainConfig(WorldTrainConfig):
    """WorldTrainConfig of the decoder stage.

    adversarial: weight of the critic's opinion beside the pixel losses. unseen_weight: of dreamed pixels that memory
    does not show. blind_share: share of rows without memory. critic_width: channels of the critic's first layer.
    """

    adversarial: float = 0.08
    unseen_weight: float = 0.25
    blind_share: float = 0.3
    critic_width: int = 64


DEFAULTS: dict[str, TrainConfig] = {
    "debug": DecoderTrainConfig(
        steps=20,
        batch_size=4,
        lr=1e-3,
        warmup=2,
        sample_every=20,
        checkpoint_every=10,
        log_every=5,
        dream_frames=16,
        critic_width=8,
    ),
    "nano": DecoderTrainConfig(
        steps=2000, batch_size=32, lr=4e-4, warmup=100, betas=(0.5, 0.95), ema=0.998, precision="bf16", threads=2
    ),
    "small": DecoderTrainConfig(
        steps=10000, batch_size=64, lr=3e-4, warmup=200, betas=(0.5, 0.95), ema=0.999, precision="bf16"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderStage:
    """Trains the decoder, and a critic beside it that is thrown away in the end."""

    clips: WorldStage
    config: DecoderTrainConfig
    critic: Critic
    name: str = "decoder"

    @property
    def store(self) -> FrameStore:
        """The recorded frames."""
        return self.clips.store

    def trainable(self, model: WorldModel) -> nn.Module:
        """The decoder and the critic."""
        return nn.ModuleDict({"decoder": model.codec.decoder, "critic": self.critic})

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """The world stage's clips; of their last frames the picture, and earlier pictures to remember it by."""
        rng = np.random.default_rng([self.config.seed, step, rank, 5])
        return self._with_sources(self.clips.batch(step, rank, world_size), rng)

    def _with_sources(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        targets, num_anchors = batch["frames"][:, -1].numpy(), self.clips.model_config.memory.num_anchors
        first = self.store.starts[np.searchsorted(self.store.starts, targets, side="right") - 1]
        sources = draw_sources(rng, targets, first, num_anchors)
        count = rng.integers(1, num_anchors + 1, size=len(targets))
        count = np.where(rng.random(len(targets)) < self.config.blind_share, 0, count)
        return batch | gather_targets(self.store, targets, sources, count)

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Pixels, edges and the critic's opinion of the rebuilt pictures, plus the critic's own loss."""
        target, num_dreamed = batch["target"], len(batch["target"]) // 2
        with torch.no_grad():
            anchor, guess = self._remember(model, batch, generator)
            dreamed = dream_last(model, batch, anchor, guess, num_dreamed, generator)
            latent = torch.cat([dreamed, disturb_latent(batch["latent"][num_dreamed:, -1], generator)])
        rebuilt = model.codec.decode(latent, anchor, guess.skips).float()
        weight = torch.ones_like(anchor.mask)
        weight[:num_dreamed] = anchor.mask[:num_dreamed].lerp(weight[:num_dreamed], self.config.unseen_weight)
        pixels = picture_loss(rebuilt, target, weight)
        opinion = critic_losses(self.critic, target, rebuilt, generator)
        return {
            "loss": pixels + self.config.adversarial * opinion.maker + opinion.critic,
            "pixels": pixels.detach(),
            "margin": opinion.margin,
            "critic": opinion.critic.detach(),
            "psnr_dreamed": psnr(rebuilt[:num_dreamed], target[:num_dreamed]),
            "psnr": psnr(rebuilt[num_dreamed:], target[num_dreamed:]),
            "sharpness_dreamed": sharpness_ratio(rebuilt[:num_dreamed], target[:num_dreamed]),
            "sharpness": sharpness_ratio(rebuilt[num_dreamed:], target[num_dreamed:]),
        }

    def _remember(
        self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Anchor, Encoded]:
        """What memory shows of the last frames, and its encoding."""
        num_own = (len(batch["sources"]) + 7) // 8
        own = rebuild_sources(model, batch["sources"][:num_own], generator)
        with torch.autocast(batch["target"].device.type, enabled=False):
            sources = torch.cat([own, corrupt_sources(batch["sources"][num_own:], generator)])
            anchor = recall_targets(sources, batch)
        return anchor, model.codec.encode_anchor(anchor)

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Rows: frames, anchors, rebuilt from their own latents, dreamed from noise in one call."""
        rng, device = np.random.default_rng([self.config.seed, 6]), next(model.parameters()).device
        batch = self._with_sources(self.clips.batch(0, 0, 1), rng)
        batch = {name: tensor[:12].to(device) for name, tensor in batch.items()}
        generator = torch.Generator(device).manual_seed(self.config.seed)
        anchor, guess = self._remember(model, batch, generator)
        dreamed = dream_last(model, batch, anchor, guess, len(batch["target"]), generator)
        pictures = [
            model.codec.decode(latent.float(), anchor, guess.skips) for latent in (batch["latent"][:, -1], dreamed)
        ]
        return {"decoder": picture_grid([batch["target"], anchor.rgbd, *pictures])}


def rebuild_sources(model: WorldModel, sources: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, N, 4, h, w] as the decoder makes them from their own, disturbed latents, without memory."""
    latent = disturb_latent(model.codec.encode(sources.flatten(0, 1)).float(), generator)
    return decode_blind(model, latent).clamp(-1.0, 1.0).unflatten(0, sources.shape[:2])


def dream_last(
    model: WorldModel, batch: dict[str, Tensor], anchor: Anchor, guess: Encoded, rows: int, generator: torch.Generator
) -> Tensor:
    """The generator's estimate of the first rows' last latents from noise, after clean history: [rows, P, C]."""
    latent, suggested, coverage = (batch[name][:rows].clone() for name in ("latent", "guess", "coverage"))
    latent[:, -1] = torch.randn(latent[:, -1].shape, generator=generator, device=latent.device)
    suggested[:, -1] = guess.latent[:rows].float()
    coverage[:, -1] = token_coverage(anchor.mask[:rows], model.config.codec.grid)
    level = torch.zeros(latent.shape[:2], device=latent.device)
    level[:, -1] = 1.0
    positions = torch.arange(latent.shape[1], device=latent.device).expand(rows, -1)
    inputs = FrameInputs(latent, level, batch["rays"][:rows], suggested, coverage)
    return normalise_tokens(model.transformer(inputs, positions).latent[:, -1].float())


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: str | Path, init: str | None
) -> DecoderStage:
    """The stage for a dataset, over the codec and generator of `init`."""
    assert isinstance(train_config, DecoderTrainConfig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train_config.seed)
        critic = Critic(train_config.critic_width)
    clips = build_world_stage(model_config, train_config, dataset, init)
    return DecoderStage(clips=clips, config=train_config, critic=critic)
