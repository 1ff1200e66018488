"""Attention backends with one signature; `reference` spells the formula out, the others must agree with it."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """Softmax attention: q [B, H, N, K], k and v [B, H, M, K], mask bool (True = may look) to [B, H, N, M] -> as q.

    backend: "reference", "sdpa", or "flash" (flash-attn on CUDA; needs no mask). Raises ValueError for another.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if backend == "reference":
        return _reference(q, k, v, mask)
    if backend == "flash":
        return _flash(q, k, v, mask)
    raise ValueError(f"attention backend {backend!r} is unknown: choose reference, sdpa or flash.")


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """flash-attn takes half precision and no mask; with a mask PyTorch's own kernel is the fast path on CUDA."""
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("The flash backend needs flash-attn on CUDA: `pip install worldscape[flash]`.") from error
    q, k, v = (rearrange(x, "b h n k -> b n h k").to(torch.bfloat16) for x in (q, k, v))
    return rearrange(flash_attn_func(q, k, v), "b n h k -> b h n k").to(q.dtype)
