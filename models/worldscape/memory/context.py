"""Context cache: keys and values of a slot's first frames (sink) and most recent ones (local window), static shapes.

Each slot has its own count of committed frames, so slots open and advance on their own. The local window is a ring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldscape.config import MemoryConfig
from worldscape.nn.blocks import KeysValues
from worldscape.transformer import History


@dataclass(slots=True)
class ContextCache:
    """keys and values [L, B, S, P, H, K] before temporal rotation; frames long [B, S], the number of the frame each
    place holds (-1: none); count long [B], frames committed so far. S = num_sink + local_window.
    """

    config: MemoryConfig
    keys: Tensor
    values: Tensor
    frames: Tensor
    count: Tensor

    @classmethod
    def empty(cls, config: MemoryConfig, slots: int, shape: tuple[int, int, int, int], like: Tensor) -> "ContextCache":
        """A cache for `slots` slots; shape = (L, P, H, K); device and dtype of `like`."""
        layers, tokens, heads, width = shape
        size = (layers, slots, config.num_context, tokens, heads, width)
        return cls(
            config=config,
            keys=like.new_zeros(size),
            values=like.new_zeros(size),
            frames=torch.full((slots, config.num_context), -1, dtype=torch.long, device=like.device),
            count=torch.zeros(slots, dtype=torch.long, device=like.device),
        )

    def read(self) -> History:
        """History for the next frame: positions are small and relative whatever the count."""
        shift = (self.count - self.config.num_context).clamp_min(0)[:, None]
        is_sink = torch.arange(self.config.num_context, device=self.frames.device) < self.config.num_sink
        positions = torch.where(is_sink, self.frames, self.frames - shift).clamp_min(0)
        return History(self.keys, self.values, positions, self.frames >= 0)

    def next_positions(self) -> Tensor:
        """Relative position of the frame about to be dreamed: long [B, 1]."""
        return self.count.clamp_max(self.config.num_context)[:, None]

    def append(self, layers: list[KeysValues], active: Tensor) -> None:
        """Commit one frame (a KeysValues [B, 1, P, H, K] per layer) to the slots where `active` [B]; others stay."""
        place = self._next_place()
        rows = torch.arange(len(place), device=place.device)
        for stored, new in ((self.keys, [x.keys for x in layers]), (self.values, [x.values for x in layers])):
            kept = stored[:, rows, place]
            fresh = torch.stack(new)[:, :, 0].to(stored.dtype)
            stored[:, rows, place] = torch.where(active[:, None, None, None], fresh, kept)
        self.frames[rows, place] = torch.where(active, self.count, self.frames[rows, place])
        self.count += active.long()

    def _next_place(self) -> Tensor:
        sink, window = self.config.num_sink, self.config.local_window
        return torch.where(self.count < sink, self.count, sink + (self.count - sink).remainder(window))
