"""The Wan 2.1 block: adaLN-modulated self-attention with q/k RMSNorm and rope, then a GELU MLP."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from worldscape.config import TransformerConfig
from worldscape.nn.attention import attend
from worldscape.nn.rope import Rotation, rotate


class KeysValues(NamedTuple):
    """Keys and values of frames: each [B, T, P, H, K]. Keys that are stored carry no temporal rotation yet."""

    keys: Tensor
    values: Tensor


class Layout(NamedTuple):
    """Where the tokens of a call stand: rotations in space and time of the T new frames, and who sees whom.

    Each new frame has N tokens, each of history P. space broadcasts to [N, 1, K / 2], time to [B, T, 1, 1, K / 2], both
    to [B, T, N, 1, K / 2]; mask bool to [B, 1, T * N, S * P + T * N], or None where all see all.
    """

    space: Rotation
    time: Rotation
    both: Rotation
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
        """x [B, T, N, D], level modulation [B, T, 6, D] -> x, and the new frames' own keys and values."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (level + self.modulation)[:, :, :, None].unbind(2)
        update, new = self._attention(self.norm1(x) * (1 + scale1) + shift1, history, layout)
        x = x + gate1 * update
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2), new

    def _attention(self, x: Tensor, history: KeysValues | None, layout: Layout) -> tuple[Tensor, KeysValues]:
        q, k, v = (rearrange(y, "b t p (h k) -> b t p h k", h=self.config.num_heads) for y in self._project(x))
        stored = KeysValues(rotate(k, layout.space), v)
        queries, keys, values = (
            rearrange(y, "b t p h k -> b (t p) h k")
            for y in (rotate(q, layout.both), rotate(stored.keys, layout.time), v)
        )
        if history is not None:
            past = KeysValues(*(rearrange(y, "b t p h k -> b (t p) h k") for y in history))
            keys = torch.cat([past.keys.to(k.dtype), keys], 1)
            values = torch.cat([past.values.to(v.dtype), values], 1)
        q, keys, values = (rearrange(y, "b n h k -> b h n k") for y in (queries, keys, values))
        mixed = attend(q, keys.to(q.dtype), values.to(q.dtype), layout.mask, self.config.attention)
        return self.out(rearrange(mixed, "b h (t p) k -> b t p (h k)", t=x.shape[1])), stored

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.norm_q(q), self.norm_k(k), v
