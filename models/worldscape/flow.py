"""Flow matching as pure functions: the noise path, the levels of a sampler, and one step of it.

A latent at level s is (1 - s) * clean + s * noise, so level 1 is pure noise. The network predicts `clean`; the velocity
along the path is (latent - clean) / s.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


def add_noise(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Clean and noise [B, T, P, C], level [B, T] in [0, 1] -> the latent at that level, [B, T, P, C]."""
    share = level[..., None, None].to(clean.dtype)
    return (1 - share) * clean + share * noise


def shift_level(level: Level, shift: float) -> Level:
    """Move levels in [0, 1] towards noise (shift > 1); 0 and 1 stay (SD3, eq. 23)."""
    return shift * level / (1.0 + (shift - 1.0) * level)


def sampling_levels(num_steps: int, shift: float = 1.0) -> list[float]:
    """Levels from 1 down to 0, num_steps + 1 of them; shift > 1 spends more of them near noise."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a sampler takes at least 1.")
    even = [1.0 - step / num_steps for step in range(num_steps + 1)]
    return [shift_level(level, shift) for level in even]


def euler_step(latent: Tensor, clean: Tensor, level: float, next_level: float) -> Tensor:
    """Move a latent [...] from `level` to `next_level` along the straight line to the predicted clean latent."""
    return clean + (next_level / level) * (latent - clean)


def draw_levels(
    shape: Sequence[int],
    context_share: float,
    context_level: float,
    generator: torch.Generator,
    context: slice = slice(0),
) -> Tensor:
    """Noise levels of training clips [B, T]: diffusion forcing with many frames left as clean as history is.

    A `context_share` of the frames is at a level uniform in [0, context_level]; of the others half are pure noise
    (where a sampler starts) and half uniform in (0, 1). The last frame of a clip is never context, those in the places
    `context` always are.
    """
    options = {"generator": generator, "device": generator.device}
    kind, uniform = torch.rand(shape, **options), torch.rand(shape, **options)
    target = torch.where(torch.rand(shape, **options) < 0.5, torch.ones_like(uniform), uniform)
    is_context = kind < context_share
    is_context[:, context] = True
    is_context[:, -1] = False
    return torch.where(is_context, context_level * uniform, target)


def follow_flow(
    estimate: Callable[[Tensor, float], Tensor], noise: Tensor, levels: Sequence[float], keep_every: int = 1
) -> Tensor:
    """Euler's path from noise [...] down the levels, of which every keep_every-th state is kept: [S + 1, ...].

    estimate(latent, level) gives the clean latent. The first state is the noise, the last one is at levels[-1].
    Raises ValueError when keep_every does not divide the number of steps.
    """
    num_steps = len(levels) - 1
    if num_steps % keep_every:
        raise ValueError(f"{num_steps} steps cannot be kept every {keep_every}: choose a divisor.")
    latent, kept = noise, [noise]
    for index, (level, next_level) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        latent = euler_step(latent, estimate(latent, level), level, next_level)
        if (index + 1) % keep_every == 0:
            kept.append(latent)
    return torch.stack(kept)
