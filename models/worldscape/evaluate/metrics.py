"""Picture metrics as batched torch functions: PSNR, SSIM, gradient energy, colour and repeat statistics.

Pictures are float RGB in [0, 1], channels first; `to_unit` makes them from uint8 frames. A mask chooses the pixels
that count, so that pixels the memory covers and pixels the model had to invent are scored apart.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

PSNR_CEILING = 60.0
"""dB of a (nearly) identical pair, so that means stay finite: 12 dB above an error of one uint8 step everywhere."""
MIN_MASK_PIXELS = 16
"""A masked score over fewer pixels than this is NaN: it would be noise."""
LUMA_WEIGHTS = (0.299, 0.587, 0.114)
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03


class ColourStatistics(NamedTuple):
    """Per picture, all [...]: mean and spread of luma, mean saturation (max - min of RGB), mean of each channel."""

    luma: Tensor
    contrast: Tensor
    saturation: Tensor
    red: Tensor
    green: Tensor
    blue: Tensor


class RepeatStatistics(NamedTuple):
    """Of one sequence of frames: does it stand still, does it come back to what it showed before.

    freeze: share of the moving steps whose picture changed by less than half a uint8 step per value.
    change: mean absolute change per step over the moving steps, in uint8 steps.
    recurrence: median over frames of the distance to the nearest frame at least `gap` steps earlier, in uint8 steps.
    variety: mean distance between two frames of the sequence, in uint8 steps.
    """

    freeze: float
    change: float
    recurrence: float
    variety: float


def to_unit(frames: Tensor) -> Tensor:
    """uint8 frames [..., h, w, 3] -> float32 pictures [..., 3, h, w] in [0, 1]. Raises ValueError on another dtype."""
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(
            f"got frames of dtype {frames.dtype} and shape {tuple(frames.shape)}, frames are uint8 [..., h, w, 3]; "
            "convert them before scoring"
        )
    return rearrange(frames.float() / 255, "... h w c -> ... c h w")


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values [N]; NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """values [..., h, w], bool mask [..., h, w] -> mean over the masked pixels [...].

    NaN where the mask holds fewer than MIN_MASK_PIXELS pixels.
    """
    if mask is None:
        return values.mean(dim=(-2, -1))
    if mask.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit values {tuple(values.shape)}; pass a mask [..., h, w]")
    count = mask.sum(dim=(-2, -1))
    mean = torch.where(mask, values, 0).sum(dim=(-2, -1)) / count.clamp(min=1)
    return torch.where(count >= MIN_MASK_PIXELS, mean, math.nan)


def squared_error(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pictures [..., 3, h, w] in [0, 1], mask [..., h, w] -> mean squared error [...], NaN for too small a mask."""
    _check_pair(image, target)
    return masked_mean((image - target).square().mean(dim=-3), mask)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pictures [..., 3, h, w] in [0, 1], mask [..., h, w] -> peak signal-to-noise ratio [...] in dB.

    PSNR = -10 log10(MSE) with peak 1, at most PSNR_CEILING; NaN for too small a mask.
    """
    return error_to_psnr(squared_error(image, target, mask))


def error_to_psnr(error: Tensor) -> Tensor:
    """Mean squared error [...] of pictures in [0, 1] -> PSNR [...] in dB, at most PSNR_CEILING."""
    return -10 * torch.log10(error.clamp(min=10 ** (-PSNR_CEILING / 10)))


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pictures [..., 3, h, w] in [0, 1], mask [..., h, w] -> structural similarity [...] in [-1, 1].

    Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13: Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, windows
    that lie fully inside the picture, biased (co)variances, mean over RGB. A mask chooses window centres.
    Raises ValueError for pictures smaller than the window.
    """
    _check_pair(image, target)
    similarity = _ssim_map(image, target).mean(dim=-3)
    border = SSIM_WINDOW // 2
    return masked_mean(similarity, None if mask is None else mask[..., border:-border, border:-border])


def luma(image: Tensor) -> Tensor:
    """Pictures [..., 3, h, w] -> Rec. 601 luma [..., h, w]."""
    return torch.einsum("...chw,c->...hw", image, image.new_tensor(LUMA_WEIGHTS))


def gradient_energy(image: Tensor) -> Tensor:
    """Pictures [..., 3, h, w] in [0, 1] -> sharpness [...]: mean of squared luma differences between neighbours.

    Mean of (Y[i, j+1] - Y[i, j])^2 plus mean of (Y[i+1, j] - Y[i, j])^2: the "energy of gradient" focus measure
    (Subbarao, Choi, Nikzad 1993). Blur lowers it, noise and ringing raise it.
    """
    y = luma(image)
    across, down = y.diff(dim=-1), y.diff(dim=-2)
    return across.square().mean(dim=(-2, -1)) + down.square().mean(dim=(-2, -1))


def colour_statistics(image: Tensor) -> ColourStatistics:
    """Pictures [..., 3, h, w] in [0, 1] -> ColourStatistics, each [...] in [0, 1]."""
    y = luma(image)
    saturation = (image.amax(dim=-3) - image.amin(dim=-3)).mean(dim=(-2, -1))
    channels = image.mean(dim=(-2, -1)).unbind(dim=-1)
    return ColourStatistics(y.mean(dim=(-2, -1)), y.std(dim=(-2, -1), correction=0), saturation, *channels)


def repeat_statistics(images: Tensor, moved: Tensor, *, gap: int = 16) -> RepeatStatistics:
    """Pictures [T+1, 3, h, w] in [0, 1], moved [T] bool (the step should change the picture) -> RepeatStatistics.

    Distances between frames are mean absolute differences of pictures shrunk to 16x16, in uint8 steps (0..255).
    `recurrence` is NaN for sequences no longer than `gap`, `freeze` and `change` where nothing moved.
    """
    if moved.shape != (images.shape[0] - 1,):
        raise ValueError(f"moved has shape {tuple(moved.shape)}, {images.shape[0]} frames need [{images.shape[0] - 1}]")
    change = 255 * images.diff(dim=0).abs().mean(dim=(-3, -2, -1))[moved]
    distance = _frame_distances(images)
    later, earlier = torch.tril_indices(*distance.shape, offset=-1)
    nearest = distance.masked_fill(torch.ones_like(distance).triu(1 - gap).bool(), math.inf)[gap:].amin(dim=1)
    return RepeatStatistics(
        freeze=(change < 0.5).float().mean().item(),
        change=change.mean().item(),
        recurrence=nearest.median().item() if len(nearest) else math.nan,
        variety=distance[later, earlier].mean().item(),
    )


def depth_error(depth: Tensor, target: Tensor, *, max_depth: float, mask: Tensor | None = None) -> Tensor:
    """Depth and target [..., h, w] in metres -> absolute relative error [...]: mean of |z - z*| / z*.

    Eigen, Puhrsch, Fergus 2014 ("abs relative difference"), over pixels with 0 < z* < max_depth (no sky), of bool
    `mask` [..., h, w] where one is given; NaN where fewer than MIN_MASK_PIXELS of those exist.
    """
    valid = (target > 0) & (target < max_depth)
    relative = (depth.clamp(max=max_depth) - target).abs() / target.clamp(min=1e-6)
    return masked_mean(relative, valid if mask is None else valid & mask)


def depth_accuracy(depth: Tensor, target: Tensor, *, max_depth: float) -> Tensor:
    """Depth and target [..., h, w] in metres -> share [...] of pixels with max(z / z*, z* / z) < 1.25.

    Eigen et al. 2014 ("delta < 1.25"), over the pixels that `depth_error` counts; NaN likewise.
    """
    valid = (target > 0) & (target < max_depth)
    depth, target = depth.clamp(min=1e-6, max=max_depth), target.clamp(min=1e-6)
    return masked_mean((torch.maximum(depth / target, target / depth) < 1.25).to(target.dtype), valid)


def _check_pair(image: Tensor, target: Tensor) -> None:
    if image.shape != target.shape or image.shape[-3] != 3:
        raise ValueError(
            f"got pictures {tuple(image.shape)} and {tuple(target.shape)}; compare two of one shape [..., 3, h, w]"
        )


def _ssim_map(image: Tensor, target: Tensor) -> Tensor:
    mean_a, mean_b = _gaussian_filter(image), _gaussian_filter(target)
    variance_a = _gaussian_filter(image.square()) - mean_a.square()
    variance_b = _gaussian_filter(target.square()) - mean_b.square()
    covariance = _gaussian_filter(image * target) - mean_a * mean_b
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return structure * (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)


def _gaussian_filter(image: Tensor) -> Tensor:
    if min(image.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW} pixels a side, got {tuple(image.shape)}")
    offsets = torch.arange(SSIM_WINDOW, dtype=image.dtype, device=image.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    flat = rearrange(image.flatten(end_dim=-3), "n h w -> n 1 h w")
    filtered = functional.conv2d(flat, rearrange(window, "k -> 1 1 k 1"))
    filtered = functional.conv2d(filtered, rearrange(window, "k -> 1 1 1 k"))
    return filtered.unflatten(0, image.shape[:-2]).squeeze(-3)


def _frame_distances(images: Tensor) -> Tensor:
    small = functional.adaptive_avg_pool2d(images, 16).flatten(start_dim=1)
    return 255 * torch.cdist(small, small, p=1) / small.shape[1]
