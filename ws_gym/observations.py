"""What an agent observes of its world: pictures, alone or with where its hands are, or the latents of the dream."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from einops import rearrange
from gymnasium import spaces
from torch import Tensor

from worldscape.conditioning.hands import HANDS, state_bound
from worldscape.config import WorldConfig
from worldscape.data.simulator import PIXELS_AND_HANDS, space_with_hands
from worldscape.engine_frames import EngineFrame
from ws_gym.infos import resize_depth, resize_frames


class Observation(ABC):
    """One kind of observation: its space for one slot, and how it is made of what the engine shows.

    size: height and width of pictures; hands: which act, a name of HANDS, or None.
    """

    name: ClassVar[str]
    space: spaces.Space

    def __init__(self, config: WorldConfig, size: tuple[int, int], hands: str | None = None) -> None:
        self.codec, self.size = config.codec, size

    @abstractmethod
    def observe(self, frame: EngineFrame) -> Tensor | dict[str, Tensor]:
        """What all slots observe: [B, ...] of the space's shape and type."""

    @abstractmethod
    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        """What `info` tells at the observation's own resolution, by name."""


class Pixels(Observation):
    """uint8 [h, w, 3]: the picture from the agent's eyes; `info` holds its depth."""

    name = "pixels"

    def __init__(self, config: WorldConfig, size: tuple[int, int], hands: str | None = None) -> None:
        super().__init__(config, size)
        self.space = spaces.Box(0, 255, (*size, 3), np.uint8)

    def observe(self, frame: EngineFrame) -> Tensor:
        return resize_frames(frame.frame, self.size)

    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        return {"depth": resize_depth(frame.depth, self.size)}


class PixelsAndHands(Pixels):
    """A dict of `pixels`, as above, and `hands` float32 [16 * N]: where the N hands that act are, the left one first
    (`hands.state_to_vector`, in the axes that actions move them along), as a robot knows of itself."""

    name = PIXELS_AND_HANDS

    def __init__(self, config: WorldConfig, size: tuple[int, int], hands: str | None = None) -> None:
        super().__init__(config, size)
        if hands is None:
            raise ValueError(f"obs={self.name!r} tells of hands, and there are none; make WorldScape-Hand-v0.")
        self.rows, self.bound = list(HANDS[hands]), state_bound(config.hands)
        self.space = space_with_hands(self.space, config.hands, len(self.rows))

    def observe(self, frame: EngineFrame) -> dict[str, Tensor]:
        assert frame.hands is not None
        hands = rearrange(frame.hands.state[:, self.rows], "b hands n -> b (hands n)").float()
        return {"pixels": super().observe(frame), "hands": hands.clamp(-self.bound, self.bound)}


class Latent(Observation):
    """float32 [P * C]: the frame's tokens row by row, C numbers each. No picture is made for it, nor a depth map.

    Tokens have unit root mean square (`codec.normalise_tokens`), so no number is larger than sqrt(C).
    """

    name = "latent"

    def __init__(self, config: WorldConfig, size: tuple[int, int], hands: str | None = None) -> None:
        super().__init__(config, size)
        codec = self.codec
        self.bound = math.sqrt(codec.latent_channels)
        self.space = spaces.Box(-self.bound, self.bound, (codec.num_tokens * codec.latent_channels,), np.float32)

    def observe(self, frame: EngineFrame) -> Tensor:
        return frame.latent.flatten(1).clamp(-self.bound, self.bound)  # rounding may pass the bound

    def describe(self, frame: EngineFrame) -> dict[str, Any]:
        return {}


OBSERVATIONS: dict[str, type[Observation]] = {kind.name: kind for kind in (Pixels, PixelsAndHands, Latent)}
