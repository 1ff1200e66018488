"""Pictures for people: labelled grids as PNG and side-by-side films."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from worldscape.films import open_film

LABEL_HEIGHT = 14  # pixels
BACKGROUND = 24  # grey value
FONT = 0  # cv2.FONT_HERSHEY_SIMPLEX, without importing cv2 here


def save_grid(path: Path, rows: Mapping[str, Sequence[np.ndarray]], columns: Sequence[str], *, scale: int = 3) -> None:
    """Rows of uint8 frames [h, w, 3], named, with column titles -> a PNG, frames enlarged `scale` times."""
    import cv2

    lines = [_label_row(columns, scale * next(iter(rows.values()))[0].shape[1])]
    lines += [add_label(np.hstack([enlarge(frame, scale) for frame in frames]), name) for name, frames in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack(lines)[..., ::-1]):
        raise OSError(f"could not write {path}; is the disk full?")


def save_film(path: Path, films: Mapping[str, np.ndarray], *, fps: int = 10, scale: int = 3) -> None:
    """Named films uint8 [T, h, w, 3] of equal length -> one film, of those that `worldscape.films` writes, that shows
    them side by side."""
    with open_film(path, fps) as add_frame:
        for frames in zip(*films.values(), strict=True):
            panels = [add_label(enlarge(frame, scale), name) for name, frame in zip(films, frames, strict=True)]
            add_frame(np.hstack(panels))


def save_plot(path: Path, curves: Mapping[str, np.ndarray], *, x: str, y: str, ticks: Sequence[str] = ()) -> None:
    """Named curves, each [S] over 0 .. S - 1, from zero upwards -> a PNG of 640 x 400 with both axes' ends labelled.

    ticks: what the S places are called, for few of them: each is labelled and marked.
    """
    import cv2

    width, height, margin = 640, 400, 50
    picture = np.full((height, width, 3), 255, np.uint8)
    longest, highest = max(map(len, curves.values())), max(float(curve.max()) for curve in curves.values())
    colours = ((200, 80, 30), (40, 140, 40), (40, 40, 210), (180, 40, 160), (20, 160, 200))
    corner = (width - margin, height - margin)
    cv2.polylines(picture, [np.array([(margin, margin), (margin, corner[1]), corner], np.int32)], False, (0, 0, 0))
    for index, (name, curve) in enumerate(curves.items()):
        across = margin + np.arange(len(curve)) / max(longest - 1, 1) * (width - 2 * margin)
        up = corner[1] - curve / max(highest, 1e-9) * (height - 2 * margin)
        points = np.stack([across, up], -1).round().astype(np.int32)
        colour = colours[index % len(colours)]
        cv2.polylines(picture, [points], False, colour, 1, cv2.LINE_AA)
        for point in points[: len(ticks)]:
            cv2.circle(picture, (int(point[0]), int(point[1])), 3, colour, -1, cv2.LINE_AA)
        cv2.putText(picture, name, (margin + 10, margin + 16 * (index + 1)), FONT, 0.45, colour, 1, cv2.LINE_AA)
    step = (width - 2 * margin) // max(longest - 1, 1)
    named = [(tick, (margin + step * place - 6, height - 30)) for place, tick in enumerate(ticks)]
    for text, place in (
        (y, (8, margin - 14)),
        (f"{highest:.5g}", (8, margin + 5)),
        (x, (width // 2 - 40, height - 15)),
        *(named or [(str(longest), (width - margin - 20, height - 30))]),
    ):
        cv2.putText(picture, text, place, FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"could not write {path}; is the disk full?")


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [scale * h, scale * w, 3], every pixel repeated."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def add_label(picture: np.ndarray, text: str) -> np.ndarray:
    """uint8 [h, w, 3] -> [h + LABEL_HEIGHT, w, 3] with a line of text above."""
    return np.vstack([_draw_text(text, picture.shape[1]), picture])


def _label_row(texts: Sequence[str], width: int) -> np.ndarray:
    return np.hstack([_draw_text(text, width) for text in texts])


def _draw_text(text: str, width: int) -> np.ndarray:
    import cv2

    bar = np.full((LABEL_HEIGHT, width, 3), BACKGROUND, np.uint8)
    return cv2.putText(
        bar, text, (3, LABEL_HEIGHT - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (230, 230, 230), 1, cv2.LINE_AA
    )
