"""Gives edges back what resampling took from them.

Each step shows again what memory holds, resampled and re-encoded, so a place gets a little softer every time it is
seen; what was dreamed there began soft. An unsharp mask (Gaussian of one pixel) steepens what is left of an edge. It
stays within the range of the neighbouring pixels, so no halo is drawn, and leaves alone what is no edge: faint ripples,
sharpened again in every step of the loop, grew into patterns.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT, EDGE = 0.05, 0.1
"""Range of the 3 x 3 pixels around one, from black to white 1: up to FLAT nothing is changed, from EDGE on all that was
asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharpenConfig:
    """How much of what resampling took from edges a walker's frames are given back: where they were dreamed, and where
    they go back to real frames. 0: nothing."""

    dreamed: float = 0.0
    real: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dreamed", "real"):
            value = getattr(self, name)
            if not 0 <= value <= 10:
                raise ValueError(f"sharpen.{name} is {value!r}: it lies in [0, 10].")

    @property
    def is_on(self) -> bool:
        """Whether any frame is changed at all."""
        return any(astuple(self))


def sharpen(rgbd: Tensor, real: Tensor, config: SharpenConfig) -> Tensor:
    """RGB-D [B, 4, h, w], its colours steepened by how much of each cell goes back to real frames, real [B, cells]
    (`memory.lineage`, a square grid in rows); depth stays."""
    side, size = round(real.shape[1] ** 0.5), rgbd.shape[-2:]
    share = F.interpolate(real.unflatten(1, (1, side, side)), size, mode="bilinear", align_corners=False)
    strength = config.dreamed + (config.real - config.dreamed) * share
    colours = blurred = low = high = rgbd[:, :3]
    # Slices and not convolutions: a row is then the same in every batch, and on a CPU it takes a quarter of the time.
    for axis in (2, 3):
        low, high = _extreme(torch.minimum, low, axis), _extreme(torch.maximum, high, axis)
        for _ in range(2):  # twice (1 2 1) / 4 is close to a Gaussian of one pixel
            before, after = _beside(blurred, axis)
            blurred = (before + after).add_(blurred, alpha=2.0)
    around = (high - low).mean(1, keepdim=True) / 2.0  # colours go from -1 to 1
    steeper = torch.addcmul(colours, strength, colours - blurred.mul_(1.0 / 256.0)).clamp_(low, high)
    is_edge = ((around - FLAT) / (EDGE - FLAT)).clamp(0.0, 1.0)
    return torch.cat([colours.lerp(steeper, is_edge), rgbd[:, 3:]], 1)


def _extreme(either: Callable[[Tensor, Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """The least or the largest of each element of [B, C, h, w] and its neighbours along an axis."""
    before, after = _beside(x, axis)
    return either(either(before, after), x)


def _beside(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Each element's neighbours before and after it along an axis of [B, C, h, w], those at the edge repeated."""
    padded = F.pad(x, (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1), mode="replicate")
    return padded.narrow(axis, 0, x.shape[axis]), padded.narrow(axis, 2, x.shape[axis])
