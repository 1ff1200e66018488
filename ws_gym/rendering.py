"""What one world and many worlds share in what they render."""

from __future__ import annotations

import numpy as np

from ws_gym.pictures import resize

RENDER_FPS = 10
ARRAY_MODES = ("rgb_array", "depth_array")
RENDER_SIZE = 256
"""Pixels on the longer side of what `render()` returns: 64 pixels are enough to learn from, not to look at."""


def check_render_mode(mode: str | None, modes: tuple[str | None, ...]) -> str | None:
    """The mode; raises ValueError when it is none of `modes`."""
    if mode not in modes:
        raise ValueError(f"render_mode={mode!r} is not supported here; choose one of {modes}.")
    return mode


def enlarge(frame: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> a new array with a longer side of at least RENDER_SIZE pixels, to look at."""
    scale = max(1.0, RENDER_SIZE / max(frame.shape[:2]))
    return resize(frame, (round(frame.shape[0] * scale), round(frame.shape[1] * scale)))
