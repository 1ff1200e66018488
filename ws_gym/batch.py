"""What one step shows of all slots, and its info: names to tensors, some of them grouped under a name of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Batch:
    """What one step shows: observation [B, ...], reward float32 [B], terminated and truncated bool [B],
    info {name: [B, ...] or a dict of such}; all on the core's device."""

    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]

    def with_rows(self, rows: np.ndarray, other: Batch) -> Batch:
        """This batch with `rows` bool [B] taken from `other`, as new tensors."""
        mask = torch.as_tensor(rows, device=self.reward.device)

        def choose(chosen: Tensor, kept: Tensor) -> Tensor:
            return torch.where(rearrange(mask, f"b -> b {' '.join(['1'] * (kept.ndim - 1))}"), chosen, kept)

        return Batch(
            observation=choose(other.observation, self.observation),
            reward=choose(other.reward, self.reward),
            terminated=choose(other.terminated, self.terminated),
            truncated=choose(other.truncated, self.truncated),
            info=map_info(choose, other.info, self.info),
        )


def map_info(function: Callable[..., Any], info: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """`function` of each value of infos with the same names, groups and all."""
    mapped = {}
    for name, value in info.items():
        rest = [other[name] for other in others]
        mapped[name] = map_info(function, value, *rest) if isinstance(value, Mapping) else function(value, *rest)
    return mapped
