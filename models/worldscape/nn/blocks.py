"""The Wan 2.1 block: adaLN-modulated self-attention with q/k RMSNorm and rope, then a GELU MLP."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from worldscape.config import TransformerConfig
from worldscape.nn.attention import attend
from worldscape.nn.rope import rotate_space, rotate_time


class KeysValues(NamedTuple):
    """Keys (before temporal rotation) and values of frames: each [B, T, P, H, K]."""

    keys: Tensor
    values: Tensor


class Layout(NamedTuple):
    """Where the tokens of a call stand: grid side, positions [B, S + T] of history and new frames, mask or None."""

    grid: int
    positions: Tensor
    mask: Tensor | None


class Block(nn.Module):
    """One transformer block over the tokens of T new frames and S frames of history."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.modulation = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width, eps=1e-6)
        self.norm_k = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_width), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_width, width)
        )

    def forward(
        self, x: Tensor, level: Tensor, history: KeysValues | None, layout: Layout
    ) -> tuple[Tensor, KeysValues]:
        """x [B, T, P, D], level modulation [B, T, 6, D] -> x, and the new frames' own keys and values."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (level + self.modulation)[:, :, :, None].unbind(2)
        update, new = self._attention(self.norm1(x) * (1 + scale1) + shift1, history, layout)
        x = x + gate1 * update
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2), new

    def _attention(self, x: Tensor, history: KeysValues | None, layout: Layout) -> tuple[Tensor, KeysValues]:
        q, k, v = self.qkv(x).chunk(3, -1)
        split = "b t p (h k) -> b t p h k"
        heads = self.config.num_heads
        q = rotate_space(rearrange(self.norm_q(q), split, h=heads), layout.grid, self.config.rope_base)
        k = rotate_space(rearrange(self.norm_k(k), split, h=heads), layout.grid, self.config.rope_base)
        new = KeysValues(k, rearrange(v, split, h=heads))
        keys = new.keys if history is None else torch.cat([history.keys.to(k.dtype), new.keys], 1)
        values = new.values if history is None else torch.cat([history.values.to(v.dtype), new.values], 1)
        num_new = x.shape[1]
        q = rotate_time(q, layout.positions[:, -num_new:], self.config.rope_base)
        keys = rotate_time(keys, layout.positions, self.config.rope_base)
        q, keys, values = (rearrange(y, "b t p h k -> b h (t p) k") for y in (q, keys, values))
        mixed = attend(q, keys.to(q.dtype), values.to(q.dtype), layout.mask, self.config.attention)
        return self.out(rearrange(mixed, "b h (t p) k -> b t p (h k)", t=num_new)), new
