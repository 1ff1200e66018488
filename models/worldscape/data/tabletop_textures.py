"""Procedural textures of the tabletop worlds: a surface of a plan -> uint8 pixels, a pure function of the surface."""

from collections.abc import Callable

import cv2
import numpy as np

from worldscape.data.tabletop_layout import Surface

PIXELS = 128


def paint(surface: Surface) -> np.ndarray:
    """-> uint8 [128, 128, 3]; the pattern blends from the surface's first colour to its second."""
    rng = np.random.default_rng(surface.detail)
    blend = np.clip(PATTERNS[surface.pattern](rng), 0.0, 1.0)[..., None]
    grain = 1.0 + 0.06 * (_noise(rng, 32, 32)[..., None] - 0.5)
    colour = (1 - blend) * np.array(surface.first) + blend * np.array(surface.second)
    return (255 * np.clip(colour * grain, 0.0, 1.0)).astype(np.uint8)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:PIXELS, 0:PIXELS] / PIXELS
    return rows, columns


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in [0, 1] with this many bumps, without a seam."""
    coarse = rng.random((rows, columns)).astype(np.float32)
    padded = np.pad(coarse, 2, mode="wrap")
    scale = (PIXELS // columns * padded.shape[1], PIXELS // rows * padded.shape[0])
    fine = cv2.resize(padded, scale, interpolation=cv2.INTER_CUBIC)
    top, left = 2 * (PIXELS // rows), 2 * (PIXELS // columns)
    return fine[top : top + PIXELS, left : left + PIXELS]


def _plain(rng: np.random.Generator) -> np.ndarray:
    return 0.3 * _noise(rng, 4, 4)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    count = int(rng.integers(2, 6))
    return ((rows if rng.random() < 0.5 else columns) * count % 1.0 < 0.5).astype(np.float32)


def _checker(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    count = int(rng.integers(1, 4)) * 2
    return ((rows * count).astype(int) + (columns * count).astype(int)) % 2


def _dots(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    count, radius = int(rng.integers(3, 6)), rng.uniform(0.22, 0.36)
    return (np.hypot(rows * count % 1.0 - 0.5, columns * count % 1.0 - 0.5) < radius).astype(np.float32)


def _marble(rng: np.random.Generator) -> np.ndarray:
    return np.abs(_noise(rng, 4, 4) + 0.5 * _noise(rng, 8, 8) + 0.25 * _noise(rng, 16, 16) - 0.85) * 2.2


def _wood(rng: np.random.Generator) -> np.ndarray:
    rows, _ = _grid()
    return 0.5 + 0.5 * np.sin(2 * np.pi * (int(rng.integers(4, 9)) * rows + 1.2 * _noise(rng, 4, 2)))


def _planks(rng: np.random.Generator) -> np.ndarray:
    rows, _ = _grid()
    count = 4
    shade = rng.random(count)[(rows * count).astype(int)]
    return np.where(rows * count % 1.0 < 0.06, 1.0, 0.55 * shade + 0.3 * _noise(rng, 32, 2))


def _bricks(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    course = (rows * 8).astype(int)
    along = columns * 4 + 0.5 * (course % 2)
    mortar = (rows * 8 % 1.0 < 0.14) | (along % 1.0 < 0.07)
    return np.where(mortar, 1.0, 0.4 * _noise(rng, 8, 4))


def _cloth(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    threads = 0.25 * (np.sin(rows * 2 * np.pi * 16) + np.sin(columns * 2 * np.pi * 16))
    return 0.5 + threads + 0.3 * (_noise(rng, 8, 8) - 0.5)


PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "marble": _marble,
    "wood": _wood,
    "planks": _planks,
    "bricks": _bricks,
    "cloth": _cloth,
}
