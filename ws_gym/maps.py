"""A map of what one world remembers, seen from above: surfaces, cameras of the remembered frames, and the path.

Metres are metres all over the picture; up is the forward direction of world axes (z), right is x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

MIN_PIXELS = 256
CELL = 0.05  # metres a cell of the drawn surfaces
REACH = 8.0  # metres from the nearest camera beyond which surfaces are left out: dreamed depth is vague there
MARGIN = 0.5  # metres around what is drawn
LEAST_SPAN = 4.0  # metres that the map shows at least
HEADER, FOOTER = 0.06, 0.13  # shares of the picture's height for the caption, and for scale and legend
SHIFT = 4  # fractional bits of the coordinates that OpenCV draws with

Colour = tuple[int, int, int]

PAPER, UNKNOWN, INK = (250, 250, 248), (226, 228, 232), (40, 40, 46)
PATH, HERE = (40, 90, 220), (215, 30, 40)
KEYFRAME, REAL, ANCHORED, RETRIEVED = (120, 120, 130), (20, 140, 70), (240, 140, 20), (170, 40, 190)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What one world remembers, in world axes (x right, y down, z forward), metres and radians.

    points float [M, 3] on remembered surfaces with colours uint8 [M, 3] and is_floor bool [M]; cameras [N, 3] = (x, z,
    yaw) of the remembered frames with is_real, is_anchored, is_retrieved bool [N] (of the last two: by the last step);
    path [T, 2] = (x, z), oldest first; here [3] = (x, z, yaw); field_of_view across; caption: a line to write above.
    """

    points: np.ndarray
    colours: np.ndarray
    is_floor: np.ndarray
    cameras: np.ndarray
    is_real: np.ndarray
    is_anchored: np.ndarray
    is_retrieved: np.ndarray
    path: np.ndarray
    here: np.ndarray
    field_of_view: float
    caption: str


class Sheet(NamedTuple):
    """Where the map lies: its upper left corner (x, z) in metres, pixels per metre, its height and width in pixels."""

    corner: np.ndarray
    scale: float
    height: int
    width: int

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """(x, z) [..., 2] in metres -> (column, row) [..., 2] in pixels."""
        return (places - self.corner) * (self.scale, -self.scale)


def draw_map(place: Place, pixels: int = 512) -> np.ndarray:
    """A map of the place, uint8 [pixels, pixels, 3]. Raises ValueError for fewer than MIN_PIXELS pixels."""
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < MIN_PIXELS:
        raise ValueError(f"a map of {pixels!r} pixels cannot be read; give a whole number of at least {MIN_PIXELS}.")
    header, footer = round(HEADER * pixels), round(FOOTER * pixels)
    near = _near_cameras(place)
    sheet = _fit(place, near, pixels - header - footer, pixels)
    canvas = _draw_surfaces(place, near, sheet)
    is_marked = place.is_real | place.is_anchored | place.is_retrieved
    _draw_cameras(canvas, place, sheet, np.flatnonzero(~is_marked))
    _draw_path(canvas, place, sheet)
    _draw_cameras(canvas, place, sheet, np.flatnonzero(is_marked))
    _draw_here(canvas, place, sheet)
    return np.concatenate([_draw_header(place.caption, header, pixels), canvas, _draw_footer(sheet, footer, pixels)])


def _near_cameras(place: Place) -> np.ndarray:
    """Which points lie within reach of a camera, bool [M]."""
    viewpoints = np.concatenate([place.cameras[:, :2], place.here[None, :2]])
    near = np.zeros(len(place.points), dtype=bool)
    for viewpoint in viewpoints:
        near |= np.square(place.points[:, 0::2] - viewpoint).sum(1) < REACH**2
    return near


def _fit(place: Place, near: np.ndarray, height: int, width: int) -> Sheet:
    """The sheet on which all that is drawn lies, but for the outermost hundredth of the points."""
    known = np.concatenate([place.path, place.cameras[:, :2], place.here[None, :2]])
    surfaces = place.points[near][:, 0::2]
    if len(surfaces):
        known = np.concatenate([known, np.quantile(surfaces, (0.01, 0.99), axis=0)])
    low, high = known.min(0) - MARGIN, known.max(0) + MARGIN
    span = np.maximum(high - low, LEAST_SPAN)
    scale = min(width / span[0], height / span[1])
    middle = (low + high) / 2
    corner = middle + np.array([-width, height]) / (2 * scale)
    return Sheet(corner, float(scale), height, width)


def _draw_surfaces(place: Place, near: np.ndarray, sheet: Sheet) -> np.ndarray:
    """Floor in pale colours, what stands on it in its own, and grey where nothing is remembered."""
    shape = math.ceil(sheet.height / sheet.scale / CELL), math.ceil(sheet.width / sheet.scale / CELL)
    canvas = np.full((*shape, 3), UNKNOWN, np.float32)
    for is_kept, paleness in ((place.is_floor & near, 0.6), (~place.is_floor & near, 0.0)):
        colours, share = _mean_colours(place.points[is_kept], place.colours[is_kept], sheet, shape)
        pale = paleness * np.array(PAPER) + (1 - paleness) * colours
        canvas += share * (pale - canvas)
    size = round(shape[1] * CELL * sheet.scale), round(shape[0] * CELL * sheet.scale)
    enlarged = cv2.resize(canvas, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(enlarged[: sheet.height, : sheet.width].round().astype(np.uint8))


def _mean_colours(
    points: np.ndarray, colours: np.ndarray, sheet: Sheet, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the points in each cell, float32 [rows, columns, 3], and how sure it is, [rows, columns, 1]."""
    column, row = np.floor(sheet.pixels(points[:, 0::2]) / (sheet.scale * CELL)).astype(int).T
    inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
    sums = np.zeros((*shape, 4), np.float32)
    marked = np.concatenate([colours, np.ones((len(colours), 1))], 1)
    np.add.at(sums, (row[inside], column[inside]), marked[inside])
    sums /= np.maximum(sums[..., 3:], 1)
    sums = cv2.GaussianBlur(sums, (0, 0), 0.8)  # closes the gaps between the points of a surface
    return sums[..., :3] / np.maximum(sums[..., 3:], 1e-3), np.clip(4 * sums[..., 3:] - 0.5, 0, 1)


def _draw_path(canvas: np.ndarray, place: Place, sheet: Sheet) -> None:
    line = sheet.pixels(place.path)
    width = max(1, sheet.width // 300)
    cv2.polylines(canvas, [_fixed(line)], False, PAPER, width + 2, cv2.LINE_AA, SHIFT)
    cv2.polylines(canvas, [_fixed(line)], False, PATH, width, cv2.LINE_AA, SHIFT)


def _draw_cameras(canvas: np.ndarray, place: Place, sheet: Sheet, chosen: np.ndarray) -> None:
    """An arrow head for each of the remembered frames chosen long [n], real ones in a ring."""
    for index in chosen:
        centre, colour, rim = sheet.pixels(place.cameras[index, :2]), KEYFRAME, KEYFRAME
        if place.is_anchored[index] or place.is_retrieved[index]:
            colour, rim = RETRIEVED if place.is_retrieved[index] else ANCHORED, PAPER
        _draw_arrow_head(canvas, centre, place.cameras[index, 2], sheet.width / 38, colour, rim)
        if place.is_real[index]:
            cv2.circle(canvas, *_dot(centre, sheet.width / 40), REAL, 2, cv2.LINE_AA, SHIFT)


def _draw_here(canvas: np.ndarray, place: Place, sheet: Sheet) -> None:
    """The camera of the last frame, with its field of view."""
    centre, yaw, length = sheet.pixels(place.here[:2]), float(place.here[2]), sheet.width / 6
    across = yaw + np.linspace(-0.5, 0.5, 25) * place.field_of_view
    rim = centre + length * np.stack([np.sin(across), -np.cos(across)], 1)
    wedge = _fixed(np.concatenate([centre[None], rim]))
    shade = canvas.copy()
    cv2.fillPoly(shade, [wedge], HERE, cv2.LINE_AA, SHIFT)
    cv2.addWeighted(shade, 0.22, canvas, 0.78, 0, dst=canvas)
    cv2.polylines(canvas, [wedge], True, HERE, 1, cv2.LINE_AA, SHIFT)
    _draw_arrow_head(canvas, centre, yaw, sheet.width / 30, HERE, PAPER)


def _draw_arrow_head(
    canvas: np.ndarray, centre: np.ndarray, yaw: float, size: float, colour: Colour, rim: Colour
) -> None:
    ahead, aside = np.array([math.sin(yaw), -math.cos(yaw)]), np.array([math.cos(yaw), math.sin(yaw)])
    shape = _fixed(centre + size * np.stack([0.6 * ahead, 0.4 * (aside - ahead), -0.4 * (aside + ahead)]))
    cv2.fillPoly(canvas, [shape], colour, cv2.LINE_AA, SHIFT)
    cv2.polylines(canvas, [shape], True, rim, 1, cv2.LINE_AA, SHIFT)


def _draw_header(caption: str, height: int, width: int) -> np.ndarray:
    header = np.full((height, width, 3), PAPER, np.uint8)
    _write(header, caption, (0.03 * width, 0.7 * height), width)
    return header


def _draw_footer(sheet: Sheet, height: int, width: int) -> np.ndarray:
    """A scale bar of a round number of metres, and what the colours mean."""
    footer = np.full((height, width, 3), PAPER, np.uint8)
    metres = max(length for length in (0.5, 1, 2, 5, 10, 20, 50) if length * sheet.scale < 0.3 * width or length == 0.5)
    left, row, bar = round(0.03 * width), round(0.34 * height), round(metres * sheet.scale)
    cv2.rectangle(footer, (left, row), (left + bar, row + max(2, height // 16)), INK, -1)
    _write(footer, f"{metres:g} m", (left + bar + 0.015 * width, row + 0.11 * height), width)
    names = (("you", HERE), ("path", PATH), ("real", REAL), ("remembered", KEYFRAME))
    names += (("anchors", ANCHORED), ("retrieved", RETRIEVED))
    place = 0.03 * width
    for name, colour in names:
        cv2.circle(footer, *_dot(np.array([place, 0.75 * height]), 0.009 * width), colour, -1, cv2.LINE_AA, SHIFT)
        place = _write(footer, name, (place + 0.016 * width, 0.83 * height), width) + 0.025 * width
    return footer


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixels -> OpenCV's fixed-point numbers."""
    return np.round(points * (1 << SHIFT)).astype(np.int32)


def _dot(centre: np.ndarray, radius: float) -> tuple[tuple[int, int], int]:
    column, row = _fixed(centre).tolist()
    return (column, row), round(radius * (1 << SHIFT))


def _write(canvas: np.ndarray, text: str, place: tuple[float, float], pixels: int) -> float:
    """Write with the lower left corner at `place` -> the column where the text ends."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, pixels / 1150
    corner = round(place[0]), round(place[1])
    cv2.putText(canvas, text, corner, font, scale, INK, 1, cv2.LINE_AA)
    return place[0] + cv2.getTextSize(text, font, scale, 1)[0][0]
