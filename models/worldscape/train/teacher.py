"""Stage `teacher`: the same transformer without the causal mask refines a whole clip at once, given its first frames.

Of each clip some frames are clean (sink and retrieved ones at least, so every clip is conditioned on its start, and a
long dream can go on from its own last frames), the next few (`MemoryConfig.num_refined`) stand at one level, as they do
while a sampler refines them together, and what would follow is not there. Of the noised frames memory shows what it
knows before the first of them: later it would already hold the frames that are to be refined. `train world --init RUN`
makes the causal student out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.config import WorldConfig
from worldscape.data.clips import Datasets
from worldscape.flow import shift_level
from worldscape.train.config import TrainConfig
from worldscape.train.prepare import PreparedFrames
from worldscape.train.world import DEFAULTS as WORLD_DEFAULTS
from worldscape.train.world import WorldStage, WorldTrainConfig
from worldscape.train.world import build_stage as build_world_stage
from worldscape.world import WorldModel

DEFAULTS: dict[str, TrainConfig] = WORLD_DEFAULTS
LEVEL_SHIFT = 3.0


def draw_clip_levels(opening: Tensor, times: int, generator: torch.Generator) -> Tensor:
    """Levels [B, T] of clips of T frames: 0 for the clean ones that open each, long [B]; one level for the others, in a
    fifth of the clips 1."""
    options = {"generator": generator, "device": generator.device}
    level = shift_level(torch.rand(len(opening), 1, **options), LEVEL_SHIFT)
    level = torch.where(torch.rand(len(opening), 1, **options) < 0.2, torch.ones_like(level), level)
    return torch.where(torch.arange(times, device=generator.device) < opening[:, None], 0.0, level)


def as_known_before(
    batch: dict[str, Tensor], prepared: PreparedFrames, dreams: np.ndarray, places: np.ndarray, opening: np.ndarray
) -> dict[str, Tensor]:
    """guess, coverage and sees of clips (WorldStage.gather) whose frames from place `opening` [B] on are to be refined.

    Of the first of them memory shows what it always does, of the A next ones what it knew before the first; those
    after these are absent.
    """
    guess, coverage, times = prepared.ahead_guess, prepared.ahead_coverage, places.shape[1]
    num_ahead = 0 if coverage is None else coverage.shape[2]
    lag = torch.arange(times) - torch.from_numpy(opening)[:, None]
    is_later, is_there = lag > 0, lag <= num_ahead
    everyone = torch.ones(len(places), times, times, dtype=torch.bool)
    sees = (batch.get("sees", everyone) & is_there[:, None]) | torch.eye(times, dtype=torch.bool)
    sees[:, -1] &= is_there  # what the last one sees tells which are there (sight.present)
    if guess is None or coverage is None:
        return {"sees": sees}
    first = np.take_along_axis(places, opening[:, None], 1)
    ahead = (torch.from_numpy(dreams)[:, None], torch.from_numpy(first), (lag - 1).clamp(0, num_ahead - 1))
    return {
        "guess": torch.where(is_later[..., None, None], guess[ahead].float(), batch["guess"]),
        "coverage": torch.where(is_later[..., None], coverage[ahead].float(), batch["coverage"]),
        "sees": sees,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherStage:
    """Trains the transformer on clips of the world stage."""

    clips: WorldStage
    name: str = "teacher"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The transformer."""
        return model.transformer

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """As the world stage's, of memory as_known_before the frames that are to be refined; opening long [B]: how many
        frames come before them."""
        clips, size = self.clips, self.clips.config.batch_size
        rng = np.random.default_rng([clips.config.seed, step, rank, 4])
        dreams, places = clips.draw_clips(rng, size, is_one_kind=True)
        opening = rng.integers(clips.retrieved.stop, places.shape[1], size=size)
        batch = clips.gather(dreams, places)
        return {
            **batch,
            **as_known_before(batch, clips.prepared, dreams, np.maximum(places, 0), opening),
            "has_anchor": torch.from_numpy(rng.random(size) >= clips.config.anchor_dropout),
            "opening": torch.from_numpy(opening),
        }

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The world stage's loss at the levels of whole clips."""
        clean = batch["latent"]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        level = draw_clip_levels(batch["opening"], clean.shape[1], generator)
        return self.clips.flow_loss(batch, self.clips.refine_at(model, batch, noise, level))

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Nothing: the engine steps causal models only."""
        return {}


def adapt_model(config: WorldConfig) -> WorldConfig:
    """The preset without its causal mask."""
    return replace(config, transformer=replace(config.transformer, is_causal=False))


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> TeacherStage:
    """The stage for a dataset, with memory replayed through the codec of `init`."""
    assert isinstance(train_config, WorldTrainConfig)
    num_ahead = model_config.memory.num_refined - 1
    return TeacherStage(clips=build_world_stage(model_config, train_config, dataset, init, num_ahead=num_ahead))
