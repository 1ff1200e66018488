"""Inverse dynamics: a small network that reads action and motion back from two consecutive frames.

It is trained on simulator frames only, so it is a judge that no dream has ever pleased.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from worldscape.conditioning.controls import DISCRETE_ACTIONS, ControlScale
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.kept import JudgeConfig, fingerprint_of, fit, load_or_make
from worldscape.evaluate.metrics import to_unit

MOTION = (0, 2, 3, 4)
"""The control components that are read back: right, forward (metres), yaw, pitch (radians)."""
REVERSED = (0, 3, 4, 1, 2, 6, 5, 8, 7)
"""Action that undoes each action: the label of a pair shown backwards."""
MIRRORED = (0, 1, 4, 3, 2, 6, 5, 7, 8)
"""Action that each action becomes in a mirror: the label of a pair flipped left to right."""
MIRRORED_MOTION = (-1.0, 1.0, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseDynamicsConfig(JudgeConfig):
    """JudgeConfig of inverse dynamics."""

    name: ClassVar[str] = "inverse dynamics"


class Pairs(NamedTuple):
    """M frame pairs: first and second uint8 [M, h, w, 3], effective action int64 [M], motion float32 [M, 4]."""

    first: Tensor
    second: Tensor
    action: Tensor
    motion: Tensor


class Reading(NamedTuple):
    """What was read back from M pairs: action int64 [M], motion float32 [M, 4] in metres and radians (MOTION)."""

    action: Tensor
    motion: Tensor


class InverseDynamics(nn.Module):
    """Frame pairs, two pictures [B, 3, h, w] in [0, 1] -> action logits [B, 9] and motion [B, 4] in units of a step."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (9, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.read = nn.Sequential(nn.Linear(16 * widths[-1], 4 * width), nn.SiLU())
        self.action = nn.Linear(4 * width, len(DISCRETE_ACTIONS))
        self.motion = nn.Linear(4 * width, len(MOTION))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.read(self.trunk(torch.cat([first - 0.5, second - 0.5, second - first], dim=1)))
        return self.action(hidden), self.motion(hidden)


def make_pairs(episodes: EpisodeBatch) -> Pairs:
    """All consecutive frames of the episodes, with what the simulator let happen between them -> Pairs."""
    return pair_frames(episodes.frames[:, :-1], episodes.frames[:, 1:], episodes)


def pair_frames(first: np.ndarray, second: np.ndarray, episodes: EpisodeBatch) -> Pairs:
    """Frames before and after each step, uint8 [N, T, h, w, 3] each, labelled by the simulator -> Pairs of M = N T."""
    return Pairs(
        rearrange(torch.from_numpy(first), "n t h w c -> (n t) h w c"),
        rearrange(torch.from_numpy(second), "n t h w c -> (n t) h w c"),
        rearrange(torch.from_numpy(episodes.effective_actions()), "n t -> (n t)"),
        rearrange(torch.from_numpy(episodes.realised[..., MOTION]), "n t c -> (n t) c"),
    )


def train_inverse_dynamics(pairs: Pairs, config: InverseDynamicsConfig) -> InverseDynamics:
    """Fit the reader to pairs; every action that occurs is drawn equally often. Raises ValueError without pairs."""
    if len(pairs.action) == 0:
        raise ValueError("no frame pairs to learn inverse dynamics from; walk at least one step")
    generator = torch.Generator().manual_seed(config.seed)
    weights = 1.0 / torch.bincount(pairs.action, minlength=len(DISCRETE_ACTIONS)).clamp(min=1)[pairs.action]

    def draw_loss(model: InverseDynamics) -> Tensor:
        rows = torch.multinomial(weights, config.batch_size, replacement=True, generator=generator)
        return _loss(model, augment_pairs(Pairs(*(column[rows] for column in pairs)), generator))

    return fit(InverseDynamics, config, draw_loss)


def augment_pairs(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """Show each pair backwards with probability 1/2 and mirrored with probability 1/2, labels adjusted."""
    backwards, mirrored = torch.rand(2, len(pairs.action), generator=generator) < 0.5
    swap = rearrange(backwards, "m -> m 1 1 1")
    first, second = torch.where(swap, pairs.second, pairs.first), torch.where(swap, pairs.first, pairs.second)
    flip = rearrange(mirrored, "m -> m 1 1 1")
    first, second = (torch.where(flip, frames.flip(dims=[2]), frames) for frames in (first, second))
    action = torch.where(backwards, torch.tensor(REVERSED)[pairs.action], pairs.action)
    action = torch.where(mirrored, torch.tensor(MIRRORED)[action], action)
    motion = torch.where(backwards[:, None], -pairs.motion, pairs.motion)
    return Pairs(first, second, action, torch.where(mirrored[:, None], motion * torch.tensor(MIRRORED_MOTION), motion))


@torch.no_grad()
def read_actions(model: InverseDynamics, pairs: Pairs, *, batch_size: int = 256) -> Reading:
    """Read action and motion back from every pair; the pairs' labels are not looked at."""
    actions, motions = [], []
    for first, second in zip(pairs.first.split(batch_size), pairs.second.split(batch_size), strict=True):
        logits, motion = model(to_unit(first), to_unit(second))
        actions.append(logits.argmax(dim=-1))
        motions.append(motion * _unit())
    return Reading(torch.cat(actions), torch.cat(motions))


def load_or_train(
    path: Path | None, config: InverseDynamicsConfig, walk: Callable[[], EpisodeBatch]
) -> InverseDynamics:
    """The reader kept at `path` when it was trained with this config, else a newly trained one, kept there.

    `walk` collects the training episodes, only when needed. Without a path nothing is read or written.
    """
    return load_or_make(
        path,
        InverseDynamics(config.width),
        fingerprint_of(config, __file__),
        lambda: train_inverse_dynamics(make_pairs(walk()), config),
    )


def _loss(model: InverseDynamics, pairs: Pairs) -> Tensor:
    logits, motion = model(to_unit(pairs.first), to_unit(pairs.second))
    return functional.cross_entropy(logits, pairs.action) + functional.smooth_l1_loss(motion, pairs.motion / _unit())


def _unit() -> Tensor:
    scale = ControlScale()
    return torch.tensor([scale.move, scale.move, scale.yaw, scale.pitch])
