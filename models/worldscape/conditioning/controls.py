"""Controls: what one step commands the camera to do, and the discrete actions that stand for them.

A camera control is (right, down, forward) in metres along the yaw-levelled axes and (yaw, pitch, roll) in radians.
"""

import math
from dataclasses import dataclass

import numpy as np

CONTROL_WIDTH = 6

DISCRETE_ACTIONS = (
    "no-op",
    "forward",
    "left",
    "back",
    "right",
    "turn left",
    "turn right",
    "look up",
    "look down",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlScale:
    """Size of one step: metres of travel, radians of yaw and pitch, and the pitch limit in radians."""

    move: float = 0.25
    yaw: float = math.radians(15.0)
    pitch: float = math.radians(10.0)
    max_pitch: float = math.radians(30.0)

    def __post_init__(self) -> None:
        for name in ("move", "yaw", "pitch", "max_pitch"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"ControlScale.{name} is {value}; it must be finite and positive.")


def discrete_controls(scale: ControlScale | None = None) -> np.ndarray:
    """Control of each discrete action -> float32 [9, 6], rows in the order of DISCRETE_ACTIONS; metres and radians."""
    scale = scale or ControlScale()
    table = np.zeros((len(DISCRETE_ACTIONS), CONTROL_WIDTH), dtype=np.float32)
    table[1, 2] = scale.move
    table[2, 0] = -scale.move
    table[3, 2] = -scale.move
    table[4, 0] = scale.move
    table[5, 3] = -scale.yaw
    table[6, 3] = scale.yaw
    table[7, 4] = scale.pitch
    table[8, 4] = -scale.pitch
    return table
