"""Config of the aggregator and its presets, named like those of the world model that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregatorConfig:
    """A ViT of `num_layers` blocks (frame-wise and global in turn) and a head of `head_width` channels.

    cells: Gaussians along each side of a frame, a multiple of the token grid that divides the picture.
    degree: of the colours' spherical harmonics, 0 or 1.
    """

    width: int = 192
    num_layers: int = 4
    num_heads: int = 6
    mlp_width: int = 768
    head_width: int = 48
    cells: int = 32
    degree: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_width", "head_width", "cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"aggregator {name} {getattr(self, name)} is not allowed: it must be at least 1.")
        if self.width % self.num_heads:
            raise ValueError(f"aggregator width {self.width} is not allowed: {self.num_heads} heads must divide it.")
        if self.degree not in (0, 1):
            raise ValueError(f"aggregator degree {self.degree} is not allowed: it must be 0 or 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AggregatorConfig:
        """The inverse of to_dict. Raises ValueError for unknown keys and values that are not allowed."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"the aggregator's config has unknown keys {unknown}.")
        return cls(**values)


PRESETS: dict[str, AggregatorConfig] = {
    "debug": AggregatorConfig(width=16, num_layers=2, num_heads=2, mlp_width=32, head_width=8, cells=16),
    "nano": AggregatorConfig(),
    "small": AggregatorConfig(width=384, num_layers=6, num_heads=12, mlp_width=1536, head_width=64, cells=64),
}
