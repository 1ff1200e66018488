"""A window that shows frames, through pygame or, where it was built with windows, OpenCV."""

from __future__ import annotations

import importlib.util
import os
import sys

import cv2
import numpy as np
from gymnasium.error import DependencyNotInstalled

from worldscape.window import KeyWindow
from ws_gym.pictures import resize

WINDOW_HELP = (
    "no window can be opened: install pygame (pip install 'worldscape[play]') and run where there is a display, or use "
    "render_mode='rgb_array'."
)
WINDOW_SIZE = 512


def can_open_window() -> bool:
    """Whether a window toolkit and a display are there."""
    has_display = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    )
    return has_display and (_has_pygame() or _has_opencv_windows())


class Viewer:
    """Shows frames in a window; raises DependencyNotInstalled where there is none."""

    def __init__(self, title: str, fps: int) -> None:
        if not can_open_window():
            raise DependencyNotInstalled(WINDOW_HELP)
        self._title = title
        try:
            self._window = KeyWindow(fps) if _has_pygame() else _OpenCvWindow(fps)
        except OSError as error:
            raise DependencyNotInstalled(WINDOW_HELP) from error

    def show(self, frame: np.ndarray) -> None:
        """Show uint8 [h, w, 3] and wait until the frame rate allows the next one."""
        scale = WINDOW_SIZE / max(frame.shape[:2])
        self._window.show(resize(frame, (round(frame.shape[0] * scale), round(frame.shape[1] * scale))), self._title)

    def close(self) -> None:
        """Close the window."""
        self._window.close()


class _OpenCvWindow:
    def __init__(self, fps: int) -> None:
        self._wait = max(1, 1000 // fps)

    def show(self, frame: np.ndarray, caption: str) -> None:
        cv2.imshow(caption, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        cv2.waitKey(self._wait)

    def close(self) -> None:
        cv2.destroyAllWindows()


def _has_pygame() -> bool:
    return importlib.util.find_spec("pygame") is not None


def _has_opencv_windows() -> bool:
    return bool(cv2.currentUIFramework())
