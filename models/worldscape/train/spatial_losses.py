"""L_depth and L_render: how far depth and rendered views are from what the simulator shows. Pure functions.

Both take masks for what does not count (no depth measured there, never seen from the other views) and are 0, not NaN,
where nothing does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.evaluate.metrics import ssim

DEPTH_KINDS = ("metric", "relative")
SSIM_WEIGHT = 0.2  # of 1 - SSIM beside L1, as in 3DGS
MIN_DEPTH = 0.01  # metres; predictions below count as this
HUBER = 0.05  # of log depth; what is nearer is nearly right, and pulled at less
MIN_SPREAD = 1e-6  # of inverse depth; what is flatter has no scale to align


def depth_loss(depth: Tensor, target: Tensor, *, kind: str = "metric", max_depth: float = 50.0) -> Tensor:
    """L_depth of each picture: depth and target [..., h, w] metres -> [...].

    "metric": mean Huber loss of log z - log z*, over its width: |log z - log z*| - HUBER / 2 where that is above HUBER,
    and less and less steep below. "relative": mean of |s / z + t - 1 / z*| over the target's own mean deviation,
    with the picture's best scale s and shift t (Ranftl et al. 2022): for depth known up to those only.
    Counted are pixels with finite 0 < z* < max_depth. Raises ValueError for another kind and for unlike shapes.
    """
    if depth.shape != target.shape:
        raise ValueError(f"depth {tuple(depth.shape)} and target {tuple(target.shape)} differ in shape.")
    valid = torch.isfinite(target) & (target > 0) & (target < max_depth) & torch.isfinite(depth)
    depth, target = torch.where(valid, depth, 1.0).clamp_min(MIN_DEPTH), torch.where(valid, target, 1.0)
    if kind == "metric":
        return _mean(F.huber_loss(depth.log(), target.log(), reduction="none", delta=HUBER) / HUBER, valid)
    if kind == "relative":
        return _aligned_error(1.0 / depth, 1.0 / target, valid)
    raise ValueError(f"depth kind {kind!r} is unknown: choose one of {', '.join(DEPTH_KINDS)}.")


def render_loss(rgb: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_render of each picture: (1 - w) L1 + w (1 - SSIM) over masked pixels, w = SSIM_WEIGHT (3DGS, eq. 7).

    rgb and target [..., 3, h, w] in [0, 1], mask bool [..., h, w] -> [...]; 0 where the mask is (nearly) empty.
    """
    rgb = torch.where(mask[..., None, :, :], rgb, target)
    difference = _mean((rgb - target).abs().mean(-3), mask)
    similarity = ssim(rgb, target, mask)
    dissimilarity = torch.where(torch.isfinite(similarity), 1.0 - similarity, 0.0)
    return (1.0 - SSIM_WEIGHT) * difference + SSIM_WEIGHT * dissimilarity


def _aligned_error(inverse: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Error of inverse depth after the least-squares scale and shift of each picture, over the target's spread."""
    offset = inverse - _mean(inverse, valid)[..., None, None]
    wanted = target - _mean(target, valid)[..., None, None]
    spread = _mean(offset.square(), valid)
    is_flat = spread < MIN_SPREAD
    scale = _mean(offset * wanted, valid) / torch.where(is_flat, 1.0, spread)
    scale = torch.where(is_flat, 0.0, scale)[..., None, None]
    deviation = _mean(wanted.abs(), valid).clamp_min(MIN_SPREAD**0.5)
    return _mean((scale * offset - wanted).abs(), valid) / deviation


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of each picture, 0 where there are none."""
    return torch.where(valid, values, 0.0).sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1)
