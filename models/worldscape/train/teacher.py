"""Stage `teacher`: the same transformer without the causal mask refines a whole clip at once, given its first frames.

Of each clip some frames are clean (sink and retrieved ones at least, so every clip is conditioned on its start, and a
long dream can go on from its own last frames) and all others stand at one level, as they do while a sampler refines the
clip. Memory shows no frame after the first noised one: its picture there would already hold the frames that are to be
refined. `train world --init RUN` makes the causal student out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.config import WorldConfig
from worldscape.data.clips import Datasets
from worldscape.flow import shift_level
from worldscape.train.config import TrainConfig
from worldscape.train.world import DEFAULTS as WORLD_DEFAULTS
from worldscape.train.world import WorldStage, WorldTrainConfig
from worldscape.train.world import build_stage as build_world_stage
from worldscape.world import WorldModel

DEFAULTS: dict[str, TrainConfig] = WORLD_DEFAULTS
LEVEL_SHIFT = 3.0


class ClipLevels(NamedTuple):
    """level [B, T] of a clip's frames, 0 for its clean opening; is_shown bool [B, T]: whether memory may show it."""

    level: Tensor
    is_shown: Tensor


def draw_clip_levels(clips: int, times: int, least: int, generator: torch.Generator) -> ClipLevels:
    """Openings of `least` to times - 1 clean frames; the others at one level, in a fifth of the clips at 1."""
    options = {"generator": generator, "device": generator.device}
    opening = torch.randint(least, times, (clips, 1), **options)
    level = shift_level(torch.rand(clips, 1, **options), LEVEL_SHIFT)
    level = torch.where(torch.rand(clips, 1, **options) < 0.2, torch.ones_like(level), level)
    order = torch.arange(times, device=generator.device)
    return ClipLevels(torch.where(order < opening, 0.0, level), order <= opening)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherStage:
    """Trains the transformer on clips of the world stage."""

    clips: WorldStage
    name: str = "teacher"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The transformer."""
        return model.transformer

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """As the world stage's."""
        return self.clips.batch(step, rank, world_size)

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The world stage's loss at the levels of whole clips."""
        clean = batch["latent"]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        clips, times = clean.shape[:2]
        drawn = draw_clip_levels(clips, times, self.clips.retrieved.stop, generator)
        shown = batch["has_anchor"][:, None] & drawn.is_shown
        refined = self.clips.refine_at(model, batch | {"has_anchor": shown}, noise, drawn.level)
        return self.clips.flow_loss(batch, refined)

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
    return TeacherStage(clips=build_world_stage(model_config, train_config, dataset, init))
