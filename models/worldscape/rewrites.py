"""The inference-only rewrites of a model, made once for all its engines: sixteen worlds in a process need one copy."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from worldscape.codec import Codec
from worldscape.fast import FastTransformer
from worldscape.fast_codec import FastCodec, HalfCodec
from worldscape.transformer import Levels
from worldscape.world import WorldModel

Made = TypeVar("Made")
_made: WeakKeyDictionary[WorldModel, dict[Any, tuple[tuple[Any, ...], Any]]] = WeakKeyDictionary()


def fast_generator(model: WorldModel, levels: Sequence[Levels], dtype: torch.dtype) -> FastTransformer:
    """The model's generator for these noise levels (FastTransformer's)."""
    return _shared(model, ("generator", *levels, dtype), lambda: FastTransformer(model.transformer, levels, dtype))


def fast_codec(model: WorldModel, dtype: torch.dtype, *, hands: bool = False) -> FastCodec | HalfCodec | Codec:
    """The model's codec, or the one for worlds with hands; where there is no rewrite for its device, itself."""
    codec, key = (model.codec.for_hands() if hands else model.codec), ("codec", dtype, hands)
    device = next(codec.parameters()).device
    if device.type == "cuda" and dtype != torch.float32:
        return _shared(model, key, lambda: HalfCodec(codec, dtype))
    if not FastCodec.runs_on(device):
        return codec
    return _shared(model, key, lambda: FastCodec(codec, dtype))


def _shared(model: WorldModel, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """What was made of the model before under this key, unless its weights have changed since."""
    weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    known = _made.setdefault(model, {})
    if key not in known or known[key][0] != weights:
        known[key] = weights, make()
    return known[key][1]
