"""Reading back the videos that commands and examples write."""

from pathlib import Path

import cv2
import numpy as np


def read_video(path: Path) -> np.ndarray:
    """All frames, uint8 [T, h, w, 3] in RGB; through OpenCV, because imageio leaves ffmpeg's pipes open."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (picture := video.read()[1]) is not None:
        frames.append(picture)
    video.release()
    return np.stack(frames)[..., ::-1]
