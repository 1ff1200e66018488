"""The naive twin of the context cache: every frame is kept in a list, history is picked anew. Tests trust this one."""

from collections.abc import Sequence

import torch

from worldscape.config import MemoryConfig
from worldscape.nn.blocks import KeysValues
from worldscape.transformer import History


class NaiveContext:
    """One slot: all committed frames, growing without bound."""

    def __init__(self, config: MemoryConfig):
        self.config = config
        self.frames: list[list[KeysValues]] = []

    def append(self, layers: Sequence[KeysValues]) -> None:
        """Keep a committed frame: a KeysValues [1, 1, P, H, K] per layer."""
        self.frames.append(list(layers))

    def read(self) -> History:
        """The first num_sink frames and the last local_window, oldest first, numbered 0, 1, 2, ..."""
        sink, window = self.config.num_sink, self.config.local_window
        chosen = self.frames[:sink] + self.frames[sink:][-window:]
        layers = list(zip(*chosen, strict=True))
        keys = torch.stack([torch.cat([frame.keys for frame in layer], 1) for layer in layers])
        values = torch.stack([torch.cat([frame.values for frame in layer], 1) for layer in layers])
        positions = torch.arange(len(chosen))[None]
        return History(keys, values, positions, torch.ones_like(positions, dtype=torch.bool))

    def next_positions(self) -> torch.Tensor:
        """Relative position of the next frame, long [1, 1]."""
        return torch.tensor([[min(len(self.frames), self.config.num_context)]])
