"""The inference-only rewrites of a model, made once for all its engines: sixteen worlds in a process need one copy."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from worldscape.codec import Codec
from worldscape.fast import FastTransformer
from worldscape.fast_codec import FastCodec, HalfCodec
from worldscape.transformer import Levels
from worldscape.world import WorldModel

Made = TypeVar("Made")
_made: WeakKeyDictionary[WorldModel, dict[Any, tuple[tuple[Any, ...], Any]]] = WeakKeyDictionary()

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
"""Integers as wide as the numbers that so many bytes hold."""


def fast_generator(model: WorldModel, levels: Sequence[Levels], dtype: torch.dtype) -> FastTransformer:
    """The model's generator, for these noise levels (FastTransformer's) among others."""
    plain = model.transformer
    fast = _shared(model, plain, ("generator", dtype), lambda: FastTransformer(plain, (), dtype))
    fast.prepare(plain, levels)
    return fast


def fast_codec(model: WorldModel, dtype: torch.dtype, *, hands: bool = False) -> FastCodec | HalfCodec | Codec:
    """The model's codec, or the one for worlds with hands; where there is no rewrite for its device, itself."""
    codec = model.codec.for_hands() if hands else model.codec
    key = ("codec", dtype, codec is not model.codec)
    device = next(codec.parameters()).device
    if device.type == "cuda" and dtype != torch.float32:
        return _shared(model, codec, key, lambda: HalfCodec(codec, dtype))
    if not FastCodec.runs_on(device):
        return codec
    return _shared(model, codec, key, lambda: FastCodec(codec, dtype))


def _shared(model: WorldModel, part: nn.Module, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """What was made of this part of the model before under this key, unless its weights have changed since."""
    weights = _fingerprint(part)
    known = _made.setdefault(model, {})
    if key not in known or known[key][0] != weights:
        known[key] = weights, make()
    return known[key][1]


def _fingerprint(part: nn.Module) -> tuple[Any, ...]:
    """Where the weights lie and a checksum of what they are. Their version counters would not do: fused optimisers
    write weights without counting."""
    parameters = [p.detach() for p in part.parameters()]
    sums = [p.view(_BITS[p.element_size()]).sum(dtype=torch.int64) for p in parameters if not p.is_meta]
    return (*(p.data_ptr() for p in parameters), *(torch.stack(sums).tolist() if sums else ()))
