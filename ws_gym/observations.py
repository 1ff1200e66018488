"""What an agent observes of its world: pictures, or the latents that the world is dreamed in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from torch import Tensor

from worldscape.config import CodecConfig
from worldscape.engine_frames import EngineFrame
from ws_gym.infos import resize_depth, resize_frames


class Observation(ABC):
    """One kind of observation: its space for one slot, and how it is made of what the engine shows."""

    name: ClassVar[str]
    space: spaces.Box

    def __init__(self, codec: CodecConfig, size: tuple[int, int]) -> None:
        self.codec, self.size = codec, size

    @abstractmethod
    def observe(self, frame: EngineFrame) -> Tensor:
        """What all slots observe: [B, ...] of the space's shape and type."""

    @abstractmethod
    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        """What `info` tells at the observation's own resolution, by name."""


class Pixels(Observation):
    """uint8 [h, w, 3]: the picture from the agent's eyes; `info` holds its depth."""

    name = "pixels"

    def __init__(self, codec: CodecConfig, size: tuple[int, int]) -> None:
        super().__init__(codec, size)
        self.space = spaces.Box(0, 255, (*size, 3), np.uint8)

    def observe(self, frame: EngineFrame) -> Tensor:
        return resize_frames(frame.frame, self.size)

    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        return {"depth": resize_depth(frame.depth, self.size)}


class Latent(Observation):
    """float32 [P * C]: the frame's tokens row by row, C numbers each. No picture is made for it, nor a depth map.

    Tokens have unit root mean square (`codec.normalise_tokens`), so no number is larger than sqrt(C).
    """

    name = "latent"

    def __init__(self, codec: CodecConfig, size: tuple[int, int]) -> None:
        super().__init__(codec, size)
        self.bound = math.sqrt(codec.latent_channels)
        self.space = spaces.Box(-self.bound, self.bound, (codec.num_tokens * codec.latent_channels,), np.float32)

    def observe(self, frame: EngineFrame) -> Tensor:
        return frame.latent.flatten(1).clamp(-self.bound, self.bound)  # rounding may pass the bound

    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        return {}


OBSERVATIONS: dict[str, type[Observation]] = {kind.name: kind for kind in (Pixels, Latent)}
