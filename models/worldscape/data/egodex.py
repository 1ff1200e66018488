"""EgoDex episodes (pairs of N.hdf5 and N.mp4) into the project's own dataset format.

EgoDex poses are ARKit's: world axes x right, y up, z backward; 25 joints a hand, the wrist called leftHand and
rightHand. Ours are y down, z forward, and 21 keypoints: the four metacarpals of the fingers are left out. The wrist's
rotation is taken from the palm's keypoints, so ARKit's axes of a hand do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from worldscape.conditioning.hand_model import NUM_KEYPOINTS, keypoints_in_hand
from worldscape.conditioning.hand_poses import state_from_keypoints
from worldscape.conditioning.hands import state_to_vector

SIDES = ("left", "right")
MIN_CONFIDENCE = 0.1
"""Joints below are not tracked: ARKit gives them about 0.003, tracked ones 0.2 and more."""

_THUMB = ("ThumbKnuckle", "ThumbIntermediateBase", "ThumbIntermediateTip", "ThumbTip")
_FINGER = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
JOINTS = ("Hand", *_THUMB) + tuple(
    f"{finger}Finger{joint}" for finger in ("Index", "Middle", "Ring", "Little") for joint in _FINGER
)
"""EgoDex's names of the 21 keypoints in our order (MediaPipe's), without the side."""

_FLIP = np.diag([1.0, -1.0, -1.0])  # y up, z backward <-> y down, z forward
_PALM = [0, 1, 5, 9, 13, 17]


@dataclass(frozen=True, kw_only=True, slots=True)
class EgoDexConfig:
    """How episodes are read. size: side of the square pictures, cut from the middle of the video (pixels). stride:
    every how many video frames one is kept; 3 of 30 a second give the simulator's ten. min_confidence: see
    `MIN_CONFIDENCE`. max_frames: of an episode; 0 for all."""

    size: int = 64
    stride: int = 3
    min_confidence: float = MIN_CONFIDENCE
    max_frames: int = 0

    def __post_init__(self) -> None:
        if self.size < 16 or self.stride < 1 or self.max_frames < 0:
            raise ValueError(f"{self} is not possible; size is at least 16, stride 1, max_frames 0.")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f"min_confidence is {self.min_confidence}; it must be between 0 and 1.")


class EgoDexEpisode(NamedTuple):
    """T frames. frames uint8 [T, size, size, 3]; pose [T, 4, 4] camera to world; intrinsics [4] over the picture size;
    the hands' fields as in `episode.Episode`, with T rows. Rows of absent hands are zero."""

    frames: np.ndarray
    pose: np.ndarray
    intrinsics: np.ndarray
    hand_keypoints: np.ndarray
    hand_present: np.ndarray
    hand_pixels: np.ndarray
    hand_visible: np.ndarray
    hand_state: np.ndarray


class _Tracks(NamedTuple):
    """camera [T, 4, 4], keypoints [T, 2, 21, 3] and confidences [T, 2, 21] as in the file; intrinsics [3, 3]."""

    camera: np.ndarray
    keypoints: np.ndarray
    confidences: np.ndarray
    intrinsics: np.ndarray


def find_episodes(source: Path) -> list[Path]:
    """The HDF5 files below `source` (or itself) that have a video beside them, in order.

    Raises ValueError when there is none, or when a video is missing.
    """
    files = [source] if source.is_file() else sorted(source.rglob("*.hdf5"))
    if not files:
        raise ValueError(f"{source} holds no EgoDex episode; give a folder of N.hdf5 and N.mp4 files.")
    alone = [str(file) for file in files if not file.with_suffix(".mp4").is_file()]
    if alone:
        raise ValueError(f"{alone[0]} has no video beside it ({len(alone)} such files); copy the .mp4 files too.")
    return files


def read_episode(path: Path, config: EgoDexConfig) -> EgoDexEpisode:
    """One episode in our axes and units.

    A hand is present in a frame when its palm (wrist, knuckles, thumb's root) is tracked; a joint is visible when it is
    tracked, in front of the camera and in the picture. Raises ValueError when the file is damaged, joints are missing,
    the video is shorter than the tracks, or fewer than two frames are left.
    """
    tracks = _read_tracks(path)
    count = min(len(tracks.camera), config.max_frames * config.stride or len(tracks.camera))
    kept = np.arange(0, count, config.stride)
    if len(kept) < 2:
        raise ValueError(f"{path} has {len(kept)} frames at stride {config.stride}; an episode needs two or more.")
    frames, (height, width) = _read_video(path.with_suffix(".mp4"), kept, config.size)
    pose = _camera_poses(tracks, config)[kept]
    intrinsics = _square_intrinsics(tracks.intrinsics, height, width)
    tracked = tracks.confidences[kept] >= config.min_confidence
    finite = np.isfinite(tracks.keypoints[kept]).all((-1, -2))
    present = np.logical_and(np.all(tracked[..., _PALM], axis=-1, keepdims=True)[..., 0], finite)
    keypoints = np.where(present[..., None, None], tracks.keypoints[kept] @ _FLIP, 0.0).astype(np.float32)
    pixels, inside = _project(keypoints, pose, intrinsics, config.size)
    shown = present[..., None]
    return EgoDexEpisode(
        frames=frames,
        pose=pose,
        intrinsics=intrinsics,
        hand_keypoints=keypoints,
        hand_present=present,
        hand_pixels=np.where(shown[..., None], pixels, 0.0).astype(np.float32),
        hand_visible=tracked & inside & shown,
        hand_state=np.where(shown, _states(keypoints), 0.0).astype(np.float32),
    )


def _read_tracks(path: Path) -> _Tracks:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("EgoDex files need h5py; install it with `pip install 'worldscape[sim]'`") from error
    names = [f"{side}{joint}" for side in SIDES for joint in JOINTS]
    try:
        with h5py.File(path) as file:
            wanted = ["camera/intrinsic", "transforms/camera", *(f"transforms/{name}" for name in names)]
            missing = [name for name in wanted if name not in file]
            if missing:
                shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
                raise ValueError(f"{path} lacks {len(missing)} of EgoDex's datasets ({shown}); leave this file out.")
            read = lambda name: np.asarray(file[name], np.float64)  # noqa: E731
            camera = read("transforms/camera")
            joints = np.stack([read(f"transforms/{name}")[:, :3, 3] for name in names], 1)
            whole = np.ones(len(camera))  # older files have no confidences: everything counts as tracked
            trust = [read(f"confidences/{name}") if f"confidences/{name}" in file else whole for name in names]
            intrinsics = read("camera/intrinsic")
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again or leave it out.") from error
    if not np.isfinite(camera).all():
        raise ValueError(f"{path} has camera poses that are not finite; leave this file out.")
    shape = (len(camera), 2, NUM_KEYPOINTS)
    return _Tracks(camera, joints.reshape(*shape, 3), np.stack(trust, 1).reshape(shape), intrinsics)


def _camera_poses(tracks: _Tracks, config: EgoDexConfig) -> np.ndarray:
    """Camera-to-world poses float32 [T, 4, 4] in our axes.

    Files differ in the camera's own axes (OpenCV's or ARKit's, which looks along -z): the tracked hands lie in front.
    """
    rotation, place = tracks.camera[:, :3, :3], tracks.camera[:, :3, 3]
    tracked = (tracks.confidences >= config.min_confidence) & np.isfinite(tracks.keypoints).all(-1)
    ahead = np.einsum("t...c,tc->t...", tracks.keypoints - place[:, None, None], rotation[..., 2])[tracked]
    if len(ahead) and np.median(ahead) < 0:
        rotation = rotation @ _FLIP
    pose = np.tile(np.eye(4, dtype=np.float32), (len(place), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = _FLIP @ rotation, place @ _FLIP
    return pose


def _square_intrinsics(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Camera matrix [3, 3] of a video -> float32 [4] of the square in its middle, over the square's side."""
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    values = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2] - left, matrix[1, 2] - top])
    return (values / side).astype(np.float32)


def _read_video(path: Path, kept: np.ndarray, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The kept frames, cut to a square and resized -> uint8 [len(kept), size, size, 3], and the video's (h, w)."""
    video, wanted, frames, shape = cv2.VideoCapture(str(path)), set(kept.tolist()), [], (0, 0)
    for index in range(int(kept[-1]) + 1):
        found, picture = video.read()
        if not found:
            video.release()
            raise ValueError(f"{path} ends after {index} frames, but its tracks go on; copy the video again.")
        if index in wanted:
            shape = (picture.shape[0], picture.shape[1])
            frames.append(_cut_square(picture, size))
    video.release()
    return np.stack(frames), shape


def _cut_square(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side, ::-1]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def _project(
    keypoints: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> pixels [T, 2, 21, 2] (x right, y down) and whether they are in the picture, bool [T, 2, 21]."""
    offset = keypoints - pose[:, None, None, :3, 3]
    x, y, z = np.moveaxis(np.einsum("thkc,tcd->thkd", offset, pose[:, :3, :3]), -1, 0)
    fx, fy, cx, cy = intrinsics
    depth = np.maximum(z, 1e-3)
    pixels = size * np.stack([fx * x / depth + cx, fy * y / depth + cy], -1)
    return pixels, ((pixels >= 0) & (pixels < size)).all(-1) & (z > 0)


def _states(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints [T, 2, 21, 3] of left and right hands -> state vectors [T, 2, 16]."""
    points = torch.from_numpy(keypoints)
    absent = (points == 0).flatten(-2).all(-1)[..., None, None]
    points = torch.where(absent, keypoints_in_hand(torch.zeros(7)), points)  # any hand will do: its row is not used
    is_left = torch.tensor([True, False]).expand(points.shape[:2])
    return state_to_vector(state_from_keypoints(points, is_left)).numpy()
