"""Users' pictures and videos -> frames of the size that a world dreams, and the resizing of frames for users."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

PICTURE_RULE = "give uint8 RGB [h, w, 3] with values 0 to 255, or the path of a picture file"
JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xd9"
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
"""What begins a segment; inside a picture's data 0xff is followed by other bytes."""
VIDEO_RULE = "give uint8 RGB [T, h, w, 3] with values 0 to 255, or the path of a video file"


def load_picture(source: Any, size: tuple[int, int]) -> np.ndarray:
    """Picture -> uint8 [h, w, 3], centre-cropped to the aspect of `size` = (h, w); raises like read_picture."""
    return fit(read_picture(source), size)


def read_picture(source: Any) -> np.ndarray:
    """Array uint8 [H, W, 3] or path -> uint8 [H, W, 3]; what a file leaves transparent shows white.

    Raises ValueError for another type or shape, for sides below 16 pixels and for files that are unreadable or cut
    short.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _read_picture(Path(source))
    return _checked(source, 3, "image", PICTURE_RULE)


def read_last_frame(source: Any) -> np.ndarray:
    """Video, array uint8 [T, H, W, 3] or path -> its last frame, uint8 [H, W, 3]; raises like read_picture."""
    if isinstance(source, (str, os.PathLike)):
        return _checked(_read_last_frame(Path(source)), 3, "video", VIDEO_RULE)
    return _checked(source, 4, "video", VIDEO_RULE)[-1]


def is_picture(path: Path) -> bool:
    """Whether there is a file in a format that OpenCV reads, whatever its name."""
    return path.is_file() and cv2.haveImageReader(str(path))


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3]: the largest centred crop of the right aspect, resized; always a new array."""
    crop_height, crop_width = crop_shape(picture.shape[:2], size)
    top, left = (picture.shape[0] - crop_height) // 2, (picture.shape[1] - crop_width) // 2
    return resize(picture[top : top + crop_height, left : left + crop_width], size)


def crop_shape(taken: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture -> those of its largest part with the aspect of `size` = (h, w)."""
    (height, width), (wanted_height, wanted_width) = taken, size
    return (
        min(height, round(width * wanted_height / wanted_width)),
        min(width, round(height * wanted_width / wanted_height)),
    )


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [h, w, C], averaging when smaller and cubic when larger; always a new array."""
    height, width = size
    if picture.shape[:2] == (height, width):
        return picture.copy()
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    picture = np.ascontiguousarray(picture)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _checked(source: Any, ndim: int, what: str, rule: str) -> np.ndarray:
    given = source.detach().cpu() if hasattr(source, "detach") else source
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {what} is {type(source).__name__} that is no array ({error}); {rule}.") from error
    if array.dtype != np.uint8:
        raise ValueError(f"the {what} is {type(source).__name__} of {array.dtype}; {rule}.")
    if array.ndim != ndim or array.shape[-1] != 3 or len(array) == 0:
        raise ValueError(f"the {what} has shape {array.shape}; {rule}.")
    if min(array.shape[-3:-1]) < 16:
        raise ValueError(
            f"the {what} is {array.shape[-2]}x{array.shape[-3]} pixels; 16x16 is the least that shows a place."
        )
    return array


def _read_picture(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"the image {path} does not exist; {PICTURE_RULE}.")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"the image {path} is not a picture that OpenCV reads; {PICTURE_RULE}.")
    if _is_cut_short(path.read_bytes()):
        raise ValueError(f"the image {path} is cut short, and OpenCV paints grey what is missing; fetch it again.")
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.ndim == 3 and stored.shape[2] == 4 and stored.dtype in (np.uint8, np.uint16):
        picture = _put_on_white(picture, stored)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _is_cut_short(data: bytes) -> bool:
    """Whether these bytes are a JPEG whose end is missing; OpenCV refuses other formats without theirs itself."""
    if not data.startswith(JPEG_BEGIN):
        return False
    place = len(JPEG_BEGIN)
    while (marker := JPEG_MARKER.search(data, place)) is not None:
        if marker[1] == JPEG_END:
            return False
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def _put_on_white(picture: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Picture uint8 [H, W, 3] and the same with alpha [..., 4], as its file stores it -> uint8 [H, W, 3].

    A file may say that its picture is to be turned. Which way it was OpenCV does not tell, so it is found by looking.
    """
    scale = np.iinfo(stored.dtype).max / 255
    for mirrored in (stored, stored[:, ::-1]):
        for turns in range(4):
            view = np.rot90(mirrored, turns) / scale
            if view.shape[:2] == picture.shape[:2] and np.abs(view[..., :3] - picture).max() <= 1:
                share = view[..., 3:] / 255
                return (share * picture + (1 - share) * 255).round().astype(np.uint8)
    return picture


def _read_last_frame(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"the video {path} does not exist; {VIDEO_RULE}.")
    capture, last = cv2.VideoCapture(str(path)), None
    while (read := capture.read())[0]:
        last = read[1]
    capture.release()
    if last is None:
        raise ValueError(f"the video {path} is not one that OpenCV reads, or has no frames; {VIDEO_RULE}.")
    return cv2.cvtColor(last, cv2.COLOR_BGR2RGB)
