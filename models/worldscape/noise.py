"""Counter-based noise: a pure function of (slot seed, step, element), the same whatever the batch or the call order.

The hash is splitmix64 (Steele et al. 2014) on int64 tensors; two 32-bit halves make two normals by Box-Muller.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def slot_noise(seeds: Tensor, steps: Tensor, num_elements: int) -> Tensor:
    """Seeds and steps, both long [B] -> standard normal noise float32 [B, num_elements]."""
    pairs = (num_elements + 1) // 2
    key = _mix(_mix(seeds) + steps * _GAMMA)
    counters = torch.arange(pairs, device=seeds.device, dtype=torch.int64)
    bits = _mix(key[:, None] + counters * _GAMMA)
    high, low = _shift(bits, 32), bits & 0xFFFFFFFF
    radius = (-2.0 * torch.log((high.double() + 0.5) / 2**32)).sqrt()
    angle = low.double() * (2.0 * math.pi / 2**32)
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return rearrange(normals, "b n two -> b (n two)")[:, :num_elements].float()


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift right of int64."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    return bits ^ _shift(bits, 31)
