"""A window that shows frames and tells which keys are held; made with pygame, which is only imported here."""

from __future__ import annotations

import os
import sys

import numpy as np

HEADLESS_REMEDY = "without a window, write a video: --keys W4L6W4 --out walk.mp4"

UNSEEN = ("offscreen", "dummy")
"""Drivers that SDL falls back to where a display does not answer: nobody sees what they draw."""


class KeyWindow:
    """Window at a fixed frame rate. `held`: which of the letters in `keys` are pressed or held; `wants_reset`: `reset`.

    Arrow keys stand for J, L, I and K. Raises ImportError without pygame and OSError without a display.
    """

    def __init__(self, fps: int, keys: str = "WASDJLIK", reset: str = "R") -> None:
        if sys.platform.startswith("linux") and not any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        ):
            raise OSError(f"there is no display to open a window on; {HEADLESS_REMEDY}")
        try:
            import pygame
        except ImportError as error:
            raise ImportError(
                f"a window needs pygame; install it with `pip install 'worldscape[play]'`, or, {HEADLESS_REMEDY}"
            ) from error
        self._pygame, self._fps = pygame, fps
        self._keys = {getattr(pygame, f"K_{letter.lower()}"): letter for letter in keys}
        arrows = {pygame.K_LEFT: "J", pygame.K_RIGHT: "L", pygame.K_UP: "I", pygame.K_DOWN: "K"}
        self._keys |= {arrow: letter for arrow, letter in arrows.items() if letter in keys}
        self._reset = getattr(pygame, f"K_{reset.lower()}")
        pygame.display.init()
        driver = pygame.display.get_driver()
        if driver in UNSEEN and driver not in os.environ.get("SDL_VIDEODRIVER", ""):
            pygame.display.quit()
            raise OSError(f"no window can be seen here: SDL draws {driver}; {HEADLESS_REMEDY}")
        self._clock = pygame.time.Clock()
        self.held: list[str] = []
        self.wants_reset = False
        self.is_open = True

    def show(self, frame: np.ndarray, caption: str) -> None:
        """Show uint8 [h, w, 3], wait for the next frame's time, then read the keyboard."""
        surface, size = self._pygame.display.get_surface(), (frame.shape[1], frame.shape[0])
        if surface is None or surface.get_size() != size:  # also when another window, which pygame shares, was closed
            self._pygame.display.init()
            self._pygame.display.set_mode(size)
        picture = self._pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._pygame.display.get_surface().blit(picture, (0, 0))
        self._pygame.display.set_caption(caption)
        self._pygame.display.flip()
        self._clock.tick(self._fps)
        self._read_keyboard()

    def close(self) -> None:
        """Close the window."""
        self.is_open = False
        self._pygame.display.quit()

    def _read_keyboard(self) -> None:
        """A key counts when it is down now, or went down since the last frame however briefly."""
        pygame = self._pygame
        events = pygame.event.get()
        tapped = {event.key for event in events if event.type == pygame.KEYDOWN}
        pressed = pygame.key.get_pressed()
        self.held = sorted({name for key, name in self._keys.items() if key in tapped or pressed[key]})
        self.wants_reset = self._reset in tapped
        if pygame.K_ESCAPE in tapped or any(event.type == pygame.QUIT for event in events):
            self.is_open = False
