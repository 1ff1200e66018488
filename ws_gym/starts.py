"""Where worlds begin: shipped start frames, a dataset, a user's own picture or video, or simple drawn rooms.

A source is a numbered collection of starts; a slot draws a number from its own generator, so a seed means the same
start whatever the number of slots.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from worldscape.checkpoint import DEBUG, SHIPPED
from worldscape.conditioning.camera import square_intrinsics
from worldscape.conditioning.hands import HANDS
from worldscape.data.episode import EpisodeReader
from worldscape.data.starts import Starts, cut_start, load_starts, stack_starts
from worldscape.engine_frames import RecordedHands, Start
from worldscape.slot_hands import limit_to
from worldscape.snapshot import Snapshot, as_snapshot
from ws_gym.drawn_rooms import draw_room
from ws_gym.pictures import crop_shape, fit, is_picture, read_last_frame, read_picture, resize

START_OPTIONS = frozenset({"image", "video", "fov", "start", "snapshot"})
SPLITS = ("train", "heldout", "hands-train", "hands-heldout")
DRAWN = "drawn"
NUM_DRAWN = 1_000_000
MAX_DRAWS = 100
"""Episodes of a dataset that are looked at for one of the right task."""
VIEWS = (10.0, 150.0)
"""Degrees of a lens that shows a place without bending it: the least and the most."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEO_SUFFIXES = (".mp4", ".gif", ".avi", ".mov", ".mkv", ".webm")


class StartSource(ABC):
    """A numbered collection of starts for frames of `size` = (height, width)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    @abstractmethod
    def __len__(self) -> int:
        """Number of starts."""

    @abstractmethod
    def pick(self, numbers: Sequence[int]) -> Starts:
        """The starts with these numbers, all with the same number of frames."""

    def suiting(self, task_id: int | None) -> Sequence[int] | np.ndarray:
        """Numbers of the starts that were recorded of `task_id`, in order; of all where either is unknown."""
        return range(len(self))

    def draw(self, rngs: Sequence[np.random.Generator], number: int | None = None, task_id: int | None = None) -> Start:
        """One start per generator, of recordings of `task_id` where both are known, or the one with this number among
        them for all generators.

        Raises ValueError for a number that does not exist, and where nothing was recorded of the task.
        """
        chosen = None if number is None else self._choose(number, task_id)
        # Drawn even when not used, so that the rest of the slot's random numbers stay the same.
        drawn = [self._draw_number(rng, task_id if chosen is None else None) for rng in rngs]
        return to_start(self.pick(drawn if chosen is None else [chosen] * len(rngs)), self.size)

    def seen_through(self, degrees: float) -> StartSource:
        """The same places, taken with that horizontal field of view. Raises ValueError where that is known already."""
        raise ValueError(f"the reset option fov={degrees!r} is for a picture or video; these starts know their own.")

    def _draw_number(self, rng: np.random.Generator, task_id: int | None) -> int:
        return int(rng.integers(len(self)))

    def _choose(self, number: int, task_id: int | None) -> int:
        suiting = self._some(task_id)
        if not 0 <= number < len(suiting):
            task = "" if len(suiting) == len(self) else " of this task"
            many = f"there are {len(suiting)}{task}; choose from 0 to {len(suiting) - 1}."
            raise ValueError(f"start {number} does not exist: {many}")
        return int(suiting[number])

    def _some(self, task_id: int | None) -> Sequence[int] | np.ndarray:
        suiting = self.suiting(task_id)
        if not len(suiting):
            raise ValueError(f"none of the {len(self)} starts was recorded of task_id {task_id}; give others")
        return suiting


class CollectedStarts(StartSource):
    """A file of starts."""

    def __init__(self, starts: Starts, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def pick(self, numbers: Sequence[int]) -> Starts:
        return self.starts.rows(np.asarray(numbers))

    def suiting(self, task_id: int | None) -> Sequence[int] | np.ndarray:
        if task_id is None or self.starts.task_id is None:
            return super().suiting(task_id)
        return np.flatnonzero(self.starts.task_id[:, -1] == task_id)

    def _draw_number(self, rng: np.random.Generator, task_id: int | None) -> int:
        suiting = self._some(task_id)
        return int(suiting[int(rng.integers(len(suiting)))])


class PictureStarts(CollectedStarts):
    """One start, a user's picture uint8 [H, W, 3], of which nothing but the pixels is known."""

    def __init__(self, picture: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__(Starts(frames=fit(picture, size)[None, None], seeds=np.array([-1])), size)
        self.taken = picture.shape[:2]

    def seen_through(self, degrees: float) -> StartSource:
        """As StartSource.seen_through; degrees from edge to edge of the whole picture, before it is cropped."""
        is_number = isinstance(degrees, (int, float)) and not isinstance(degrees, bool)
        if not is_number or not VIEWS[0] <= degrees <= VIEWS[1]:
            raise ValueError(
                f"the reset option fov={degrees!r} is no field of view; give the picture's from edge to edge, "
                f"{VIEWS[0]:.0f} to {VIEWS[1]:.0f} degrees (a phone's main camera has about 65)."
            )
        crop_height, crop_width = crop_shape(self.taken, self.size)
        focal, middle = square_intrinsics(degrees)[1:3]
        cropped = [focal * self.taken[1] / crop_width, focal * self.taken[1] / crop_height, middle, middle]
        return CollectedStarts(replace(self.starts, intrinsics=np.array([cropped], np.float32)), self.size)


class DatasetStarts(StartSource):
    """Every frame of a recorded dataset, numbered through all episodes; read when picked, and all of them once for the
    numbers within a task."""

    def __init__(self, reader: EpisodeReader, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.reader = reader
        self.ends = np.cumsum(reader.lengths + 1)
        self._suiting: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def pick(self, numbers: Sequence[int]) -> Starts:
        return stack_starts([self._cut(number) for number in numbers], self.reader.path)

    def suiting(self, task_id: int | None) -> Sequence[int] | np.ndarray:
        if task_id is None:
            return super().suiting(task_id)
        if task_id not in self._suiting:
            kinds = ((episode.task_id, len(episode.frames)) for episode in self.reader)
            suits = [np.ones(length, bool) if kind is None else kind == task_id for kind, length in kinds]
            self._suiting[task_id] = np.flatnonzero(np.concatenate(suits))
        return self._suiting[task_id]

    def _draw_number(self, rng: np.random.Generator, task_id: int | None) -> int:
        for _ in range(MAX_DRAWS):
            number = super()._draw_number(rng, task_id)
            if task_id is None:
                return number
            recorded = self._cut(number).get("task_id")
            if recorded is None or recorded[0] == task_id:
                return number
        raise ValueError(f"{MAX_DRAWS} episodes of {self.reader.path} are of other tasks than task_id {task_id}")

    def _cut(self, number: int) -> dict[str, np.ndarray]:
        index = int(np.searchsorted(self.ends, number, side="right"))
        frame = number - int(self.ends[index] - self.reader.lengths[index] - 1)
        return cut_start(self.reader.episode(index), frame)


class DrawnStarts(StartSource):
    """Rooms of `drawn_rooms`, for weights without any files."""

    def __len__(self) -> int:
        return NUM_DRAWN

    def pick(self, numbers: Sequence[int]) -> Starts:
        rooms = [draw_room(number, self.size) for number in numbers]
        return Starts(
            frames=np.stack([room.frame[None] for room in rooms]),
            seeds=np.asarray(numbers, np.int64),
            depth=np.stack([room.depth[None] for room in rooms]),
            intrinsics=np.stack([room.intrinsics for room in rooms]),
        )


def open_starts(starts: Any, size: tuple[int, int], weights: str | os.PathLike[str]) -> StartSource:
    """The source that `starts=` names: "train", "heldout", "drawn", or a path: dataset, starts file, picture, video.

    Random weights ("debug") fall back to drawn rooms where no starts are shipped. Raises ValueError for anything else.
    """
    if starts in SPLITS:
        file = SHIPPED / f"starts-{starts}.safetensors"
        if weights == DEBUG and not file.is_file():
            return DrawnStarts(size)
        return CollectedStarts(_read_starts(file), size)
    if starts == DRAWN:
        return DrawnStarts(size)
    if not isinstance(starts, (str, os.PathLike)):
        raise ValueError(f"starts={starts!r} names no starts; give {', '.join(SPLITS)}, {DRAWN} or a path.")
    return _open_path(Path(starts), size)


def choose_starts(options: Mapping[str, Any], own: StartSource, size: tuple[int, int]) -> StartSource:
    """The source that reset options ask for with "image" or "video", else `own`; seen through "fov" where they have it.

    Raises ValueError for malformed options.
    """
    if "image" in options and "video" in options:
        raise ValueError("reset options have both 'image' and 'video'; give one of them.")
    if "image" in options:
        own = PictureStarts(read_picture(options["image"]), size)
    if "video" in options:
        own = PictureStarts(read_last_frame(options["video"]), size)
    return own.seen_through(options["fov"]) if options.get("fov") is not None else own


def lone_snapshot(options: Mapping[str, Any]) -> Snapshot | None:
    """The reset option "snapshot", or None. Raises ValueError for what is none, and for other options beside it."""
    if "snapshot" not in options:
        return None
    if len(options) > 1:
        rest = sorted(set(options) - {"snapshot"})
        raise ValueError(f"a snapshot is all that a world begins with; leave out the reset options {rest}.")
    return as_snapshot(options["snapshot"])


def start_number(options: Mapping[str, Any]) -> int | None:
    """The reset option "start", or None. Raises ValueError for what is no whole number."""
    number = options.get("start")
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise ValueError(f"the reset option start={number!r} is no whole number; give the number of a start.")
    return int(number)


def to_start(starts: Starts, size: tuple[int, int]) -> Start:
    """Starts of any picture size -> the engine's Start at `size`: centre-cropped to its aspect, resized."""
    if starts.pose is None:
        starts = _last_frames(starts)
    frames, depth, intrinsics = _crop(starts, size)
    rows = len(frames)
    flat = np.stack([resize(frame, size) for frame in rearrange(frames, "r f h w c -> (r f) h w c")])
    return Start(
        frames=torch.from_numpy(rearrange(flat, "(r f) h w c -> r f h w c", r=rows)),
        depth=None if depth is None else torch.from_numpy(_pick_pixels(depth, size).astype(np.float32)),
        pose=None if starts.pose is None else torch.from_numpy(starts.pose.astype(np.float32)),
        intrinsics=None if intrinsics is None else torch.from_numpy(intrinsics.astype(np.float32)),
        hands=_recorded_hands(starts),
        places=_recorded_places(starts),
    )


def fit_hands(start: Start, hands: str | None) -> Start:
    """The start with the hands of an option `hands=` and no others; one that its frames lack begins as the mirror image
    of the other. Frames without any leave it to the engine."""
    if start.hands is None or hands is None or start.pose is None:
        return replace(start, hands=None)
    (state, command, present), rows = start.hands, HANDS[hands]
    (state, wanted), (command, _) = (limit_to(rows, part, present, start.pose) for part in (state, command))
    return replace(start, hands=RecordedHands(state, command, wanted))


def _recorded_hands(starts: Starts) -> RecordedHands | None:
    if starts.hand_state is None or starts.hand_present is None or starts.pose is None:
        return None
    command = starts.hand_state if starts.hand_command is None else starts.hand_command
    state, command = (torch.from_numpy(part.astype(np.float32)) for part in (starts.hand_state, command))
    return RecordedHands(state, command, torch.from_numpy(starts.hand_present.astype(bool)))


def _recorded_places(starts: Starts) -> torch.Tensor | None:
    """Where object and target are, float32 [R, F, 2, 3]; None where the recording does not say."""
    if starts.pose is None or (starts.object_pose is None and starts.target is None):
        return None
    unknown = np.full((*starts.frames.shape[:2], 3), np.nan, np.float32)
    thing = unknown if starts.object_pose is None else starts.object_pose[..., :3, 3]
    target = unknown if starts.target is None else starts.target
    return torch.from_numpy(np.stack([thing, target], 2).astype(np.float32))


def _last_frames(starts: Starts) -> Starts:
    """Only the last frame of each start: where the earlier ones were taken is not known without poses."""
    depth = None if starts.depth is None else starts.depth[:, -1:]
    return replace(starts, frames=starts.frames[:, -1:], depth=depth)


def _crop(starts: Starts, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Frames, depth and intrinsics of the largest centred part with the aspect of `size`."""
    height, width = starts.frames.shape[2:4]
    crop_height, crop_width = crop_shape((height, width), size)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    window = (slice(None), slice(None), slice(top, top + crop_height), slice(left, left + crop_width))
    intrinsics = starts.intrinsics
    if intrinsics is not None:
        stretch = np.array([width / crop_width, height / crop_height] * 2, np.float32)
        intrinsics = intrinsics * stretch - np.array([0, 0, left / crop_width, top / crop_height], np.float32)
    depth = None if starts.depth is None else starts.depth[window]
    return starts.frames[window], depth, intrinsics


def _pick_pixels(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth [R, F, H, W] -> [R, F, h, w] by nearest pixel: a mean of two depths is on neither surface."""
    height, width = depth.shape[2:]
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    return depth[:, :, rows[:, None], columns]


def _open_path(path: Path, size: tuple[int, int]) -> StartSource:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return PictureStarts(read_last_frame(path), size)
    if suffix in PICTURE_SUFFIXES or is_picture(path):
        return PictureStarts(read_picture(path), size)
    if suffix == ".safetensors":
        return CollectedStarts(_read_starts(path), size)
    return DatasetStarts(EpisodeReader(path), size)


def _read_starts(path: Path) -> Starts:
    modified = path.stat().st_mtime_ns if path.is_file() else 0
    return _cached_starts(path.resolve(), modified)


@lru_cache(maxsize=4)
def _cached_starts(path: Path, modified: int) -> Starts:
    """Read once per process and version of the file: environments share it and only read it."""
    return load_starts(path)
