"""Films: frames written one by one into an MP4 (or .mov, .mkv, .avi) or an endless GIF, whole or not at all.

All commands and examples that write films do it here; the name is checked before any work, with `check_film`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worldscape.atomic import whole_file

SUFFIXES = (".mp4", ".gif", ".mov", ".mkv", ".avi")


def check_film(path: Path) -> Path:
    """The path; raises ValueError unless a film can have that name."""
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise ValueError(f"{path} is no name of a film; give a file that ends in one of {', '.join(SUFFIXES)}")
    return path


@contextmanager
def open_film(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """What takes the frames of a film one after another, uint8 [h, w, 3] of one size; the file is there in the end.

    Of an odd number of rows or columns the last is left out. Raises ValueError for a name that is none of a film,
    OSError when it cannot be written, or no frame came.
    """
    import imageio.v2 as imageio

    suffix = check_film(path).suffix.lower()
    options: dict[str, Any] = {"format": "FFMPEG", "fps": fps, "macro_block_size": 2, "quality": 8}
    if suffix == ".gif":
        options = {"format": "GIF", "duration": 1000 / fps, "loop": 0}
    with whole_file(path, ending=suffix) as partial:
        with imageio.get_writer(partial, **options) as writer:
            yield lambda frame: writer.append_data(_make_even(frame))  # type: ignore[attr-defined]
        if not partial.is_file() or not partial.stat().st_size:
            raise OSError(f"could not write {path}; is the disk full?")


def write_film(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames uint8 [h, w, 3], drawn one by one, as a film. Raises as `open_film` does."""
    with open_film(path, fps) as add_frame:
        for frame in frames:
            add_frame(frame)


def _make_even(frame: np.ndarray) -> np.ndarray:
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
