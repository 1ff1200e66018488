"""Attention backends with one signature; `reference` spells the formula out, the others must agree with it."""

import math

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """Softmax attention: q [B, H, N, K], k and v [B, H, M, K], mask bool (True = may look) to [B, H, N, M] -> as q.

    backend: "reference", or "sdpa" (PyTorch's fastest kernel for the device). Raises ValueError for another.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if backend == "reference":
        return _reference(q, k, v, mask)
    raise ValueError(f"attention backend {backend!r} is unknown: choose reference or sdpa.")


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v
