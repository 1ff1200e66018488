"""Distribution matching as pure functions: which way to move a sample so that its distribution becomes the teacher's.

Two networks estimate the clean latent behind a noised sample: the teacher knows the recorded world (real), the critic
knows what the student makes (fake). The difference of their estimates is, up to a factor of the level, the difference
of the two distributions' scores (DMD, Yin et al. 2024, https://arxiv.org/abs/2311.18828).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldscape.flow import shift_level

LEAST_LEVEL, GREATEST_LEVEL = 0.02, 0.98  # nearer to either end the estimates differ by rounding only
LEAST_DIVISOR = 0.1  # below this level the velocity's error is that of the estimate over 0.1


def draw_shared_levels(clips: int, shift: float, generator: torch.Generator, greatest: Tensor | float = 1.0) -> Tensor:
    """One noise level for all frames of each clip: [clips], shifted towards noise, in [LEAST_LEVEL, GREATEST_LEVEL];
    where `greatest` [clips] is below 1, uniform up to that instead.
    """
    uniform = torch.rand(clips, generator=generator, device=generator.device)
    greatest = torch.as_tensor(greatest, device=uniform.device)
    level = torch.where(greatest < 1, greatest * uniform, shift_level(uniform, shift))
    return level.clamp(LEAST_LEVEL, GREATEST_LEVEL)


def matching_gradient(sample: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Where the KL divergence from teacher to student grows, per sample: (fake - real) / mean |sample - real|.

    sample [B, ...], and the estimates of its clean latent by teacher and critic; the mean is one clip's (DMD, eq. 8).
    """
    sample, real, fake = (x.detach().float() for x in (sample, real, fake))
    scale = (sample - real).abs().mean(tuple(range(1, sample.ndim)), keepdim=True)
    return (fake - real) / scale.clamp_min(1e-6)


def matching_loss(sample: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `sample` is `gradient` over the number of elements."""
    target = (sample - gradient).detach()
    return 0.5 * (sample.float() - target.float()).square().mean()


def flow_matching_loss(estimate: Tensor, clean: Tensor, level: Tensor) -> Tensor:
    """Mean squared error of the velocity that an estimate [B, T, P, C] of the clean latent at level [B, T] means."""
    error = (estimate.float() - clean.float()).square().mean((2, 3))
    return (error / level.clamp_min(LEAST_DIVISOR).square()).mean()
