"""Inference-only rewrites of a finished model: the same numbers to rounding, with far fewer operations.

At 16 tokens a frame the generator's time goes into launching operations, not into arithmetic. `FastTransformer` makes
all layers' modulation at once, norms and rotates q and k together as complex numbers, and keeps history laid out for
attention over all model calls of a step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.nn.attention import attend
from worldscape.nn.blocks import Block, KeysValues
from worldscape.nn.rope import space_angles, time_angles
from worldscape.transformer import (
    FrameInputs,
    History,
    PlacedHistory,
    Prediction,
    WorldTransformer,
    level_features,
    pack_rays,
)


class FastTransformer(nn.Module):
    """Drop-in for WorldTransformer that refines one new frame of each slot (T = 1), without gradients.

    Its keys pair neighbouring channels, so what it commits can be read by a FastTransformer only.
    """

    modulation: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    norm: Tensor

    def __init__(self, plain: WorldTransformer):
        super().__init__()
        self.plain, self.config, self.grid = plain, plain.config, plain.grid
        order = pair_neighbours(plain.config.head_width, plain.config.num_heads)
        blocks = [block for block in plain.blocks if isinstance(block, Block)]
        self.register_buffer(
            "modulation", torch.stack([block.modulation for block in blocks])[:, None], persistent=False
        )
        for name, tensors in {
            "qkv": [reorder_qkv(block.qkv.weight, order) for block in blocks],
            "qkv_bias": [reorder_qkv(block.qkv.bias, order) for block in blocks],
            "norm": [torch.stack([block.norm_q.weight[order], block.norm_k.weight[order]]) for block in blocks],
        }.items():
            self.register_buffer(name, torch.stack(tensors).contiguous(), persistent=False)
        self.requires_grad_(False)

    def place(self, history: History) -> PlacedHistory:
        """Rotate stored keys to their relative times and lay them out as [L, B, H, S * P, K]."""
        turn = turns(time_angles(history.positions, self.config.head_width, self.config.rope_base))
        keys = torch.view_as_real(as_complex(history.keys) * turn).flatten(-2)
        return PlacedHistory(self._for_attention(keys), self._for_attention(history.values), history.valid)

    def forward(self, frames: FrameInputs, positions: Tensor, history: PlacedHistory | None = None) -> Prediction:
        """As WorldTransformer.forward, for one new frame: latent [B, 1, P, C], positions [B, 1]."""
        plain, config = self.plain, self.config
        level = plain.embed_level(level_features(frames.level, config.width))
        modulation = plain.level_modulation(level)[:, 0].unflatten(-1, (6, config.width)) + self.modulation
        x = plain.embed_latent(frames.latent) + plain.embed_rays(pack_rays(frames.rays, self.grid))
        if config.anchor:
            x = x + plain.embed_anchor(torch.cat([frames.anchor, frames.coverage[..., None]], -1))
        space = space_angles(self.grid, config.head_width, config.rope_base, x.device)
        both = turns(space + time_angles(positions, config.head_width, config.rope_base)[:, 0])[:, :, None]
        mask = None if history is None else self._mask(history.valid)
        x, layers = x[:, 0], []
        for index, block in enumerate(plain.blocks):
            assert isinstance(block, Block)
            past = None if history is None else KeysValues(history.keys[index], history.values[index])
            x, new = self._block(index, block, x, modulation[index], past, (turns(space), both), mask)
            layers.append(new)
        x = x[:, None]
        return Prediction(plain.read_clean(x, level, frames), x, layers)

    def _block(self, index: int, block: Block, x: Tensor, modulation: Tensor, past, turn, mask) -> tuple:
        """x [B, P, D], modulation [B, 6, D]; turn = rotations in space and in space and time."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None].unbind(1)
        width = (self.config.width,)
        inner = torch.addcmul(shift1, F.layer_norm(x, width, eps=1e-6), 1 + scale1)
        queries_keys, v = self._project(index, inner)
        rotated = torch.view_as_real(queries_keys * turn[1]).flatten(-2)
        stored = torch.view_as_real(queries_keys[:, :, 1] * turn[0][None]).flatten(-2)
        q, k, values = (y.transpose(1, 2) for y in (rotated[:, :, 0], rotated[:, :, 1], v))
        keys = k if past is None else torch.cat([past.keys, k], 2)
        values = values if past is None else torch.cat([past.values, values], 2)
        mixed = attend(q, keys, values, mask, self.config.attention).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate1, block.out(mixed))
        inner = torch.addcmul(shift2, F.layer_norm(x, width, eps=1e-6), 1 + scale2)
        return torch.addcmul(x, gate2, block.mlp(inner)), KeysValues(stored[:, None], v[:, None])

    def _project(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, P, D] -> normed q and k as complex pairs [B, P, 2, H, K / 2], and v [B, P, H, K]."""
        heads = (self.config.num_heads, self.config.head_width)
        qkv = F.linear(x, self.qkv[index], self.qkv_bias[index]).unflatten(-1, (3, -1))
        qk = qkv[:, :, :2]
        scale = torch.rsqrt(qk.square().mean(-1, keepdim=True) + 1e-6)
        return as_complex((qk * scale * self.norm[index]).unflatten(-1, heads)), qkv[:, :, 2].unflatten(-1, heads)

    def _for_attention(self, x: Tensor) -> Tensor:
        return x.permute(0, 1, 4, 2, 3, 5).flatten(3, 4)

    def _mask(self, valid: Tensor) -> Tensor:
        seen = F.pad(valid, (0, 1), value=True).repeat_interleave(self.grid**2, 1)
        return seen[:, None, None]


def pair_neighbours(head_width: int, num_heads: int) -> Tensor:
    """Channel order [H * K] that puts channel i beside its rotary partner i + K / 2, head by head."""
    head = torch.arange(head_width).reshape(2, -1).T.flatten()
    return (torch.arange(num_heads)[:, None] * head_width + head).flatten()


def reorder_qkv(parameter: Tensor, order: Tensor) -> Tensor:
    """Reorder the outputs of q and k in a joint qkv weight [3 D, D] or bias [3 D]; v stays."""
    q, k, v = parameter.detach().chunk(3, 0)
    return torch.cat([q[order], k[order], v])


def as_complex(x: Tensor) -> Tensor:
    """Neighbouring channels [..., 2 n] as complex numbers [..., n]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def turns(angles: Tensor) -> Tensor:
    """Angles in radians -> unit complex numbers."""
    return torch.polar(torch.ones_like(angles), angles)
