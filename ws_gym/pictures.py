"""Users' pictures and videos -> frames of the size that a world dreams, and the resizing of frames for users."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

PICTURE_RULE = "give uint8 RGB [h, w, 3] with values 0 to 255, or the path of a picture file"
VIDEO_RULE = "give uint8 RGB [T, h, w, 3] with values 0 to 255, or the path of a video file"


def load_picture(source: Any, size: tuple[int, int]) -> np.ndarray:
    """Array uint8 [H, W, 3] or path -> uint8 [h, w, 3], centre-cropped to the aspect of `size` = (h, w).

    Raises ValueError for another type or shape, for sides below 16 pixels and for unreadable files.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _read_picture(Path(source))
    return fit(_checked(source, 3, "image", PICTURE_RULE), size)


def load_last_frame(source: Any, size: tuple[int, int]) -> np.ndarray:
    """Video, array uint8 [T, H, W, 3] or path -> its last frame, uint8 [h, w, 3]; raises like load_picture."""
    if isinstance(source, (str, os.PathLike)):
        return fit(_checked(_read_last_frame(Path(source)), 3, "video", VIDEO_RULE), size)
    return fit(_checked(source, 4, "video", VIDEO_RULE)[-1], size)


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3]: the largest centred crop of the right aspect, resized; always a new array."""
    height, width = size
    crop_height = min(picture.shape[0], round(picture.shape[1] * height / width))
    crop_width = min(picture.shape[1], round(picture.shape[0] * width / height))
    top, left = (picture.shape[0] - crop_height) // 2, (picture.shape[1] - crop_width) // 2
    return resize(picture[top : top + crop_height, left : left + crop_width], size)


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [h, w, C], averaging when smaller and cubic when larger; always a new array."""
    height, width = size
    if picture.shape[:2] == (height, width):
        return picture.copy()
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    picture = np.ascontiguousarray(picture)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _checked(source: Any, ndim: int, what: str, rule: str) -> np.ndarray:
    array = np.asarray(source)
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
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


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
