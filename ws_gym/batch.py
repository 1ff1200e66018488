"""What one step shows of all slots, and its info: names to tensors, some of them grouped under a name of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Batch:
    """What one step shows: observation [B, ...] or a dict of such, reward float32 [B], terminated and truncated bool
    [B], info {name: [B, ...] or a dict of such}; all on one device, the core's or the CPU."""

    observation: Tensor | dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]

    def with_rows(self, rows: np.ndarray, other: Batch) -> Batch:
        """This batch with `rows` bool [B] taken from `other`, as new tensors."""
        mask = torch.as_tensor(rows, device=self.reward.device)

        def choose(chosen: Tensor, kept: Tensor) -> Tensor:
            return torch.where(rearrange(mask, f"b -> b {' '.join(['1'] * (kept.ndim - 1))}"), chosen, kept)

        return Batch(**map_info(choose, other._parts(), self._parts()))

    def on_cpu(self) -> Batch:
        """This batch on the CPU, fetched from another device with one copy per type and one wait for them all."""
        if self.reward.device.type == "cpu":
            return self
        found: list[Tensor] = []
        map_info(found.append, self._parts())
        fetched = iter(fetch(found))
        return Batch(**map_info(lambda _: next(fetched), self._parts()))

    def _parts(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values on the CPU, in the same order; those of one type share their memory, but no element of it."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(place)
    packs = [torch.cat([tensors[place].reshape(-1) for place in group]) for group in places.values()]
    packs = [pack.to("cpu", non_blocking=pack.is_cuda) for pack in packs]  # from CUDA into pinned memory
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    fetched = list(tensors)
    for group, pack in zip(places.values(), packs, strict=True):
        parts = pack.split([tensors[place].numel() for place in group])
        for place, part in zip(group, parts, strict=True):
            fetched[place] = part.view(tensors[place].shape)
    return fetched


def map_observation(function: Callable[[Any], Any], observation: Any) -> Any:
    """`function` of an observation, or of each part of one that has parts."""
    return map_info(function, observation) if isinstance(observation, dict) else function(observation)


def map_info(function: Callable[..., Any], info: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """`function` of each value of infos with the same names, groups and all."""
    mapped = {}
    for name, value in info.items():
        rest = (other[name] for other in others)
        mapped[name] = map_info(function, value, *rest) if isinstance(value, dict) else function(value, *rest)
    return mapped
