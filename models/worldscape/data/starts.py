"""Start frames: the real frames that open worlds, collected from a dataset into one small safetensors file.

A start is F consecutive frames of an episode, the last one being where the dream begins. Starts look into open space
with something to see in it, are level and away from the goal (with hands: a hand is in view, and nothing was touched
yet), and come from as many different layouts as possible.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worldscape.atomic import whole_file
from worldscape.conditioning.hand_model import FINGER_STATE, hand_keypoints, is_left_of_both
from worldscape.conditioning.hand_poses import state_from_keypoints
from worldscape.conditioning.hands import state_from_vector
from worldscape.data.episode import Episode, EpisodeReader

FORMAT = "worldscape-starts"
FORMAT_VERSION = 1
WALL_DISTANCE = 0.7
"""Metres; pixels nearer than this are in the face of the agent."""
MAX_WALL_SHARE = 0.1
MIN_GOAL_DISTANCE = 1.5
"""Metres; a start beside the goal is no task."""
WINDOWED = (
    "depth",
    "pose",
    "camera",
    "hand_state",
    "hand_command",
    "hand_present",
    "object_pose",
    "target",
    "task_id",
)
"""What a start has of each of its frames, where the dataset offers it."""
HELD = 0.015
"""Metres between where a keypoint was told to be and where it is, from which on fingers count as held back."""
LEVEL = 1e-3
"""Radians of pitch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Starts:
    """R starts of F frames: frames uint8 [R, F, h, w, 3]; seeds int64 [R] of their layouts, -1 where unknown.

    None where the dataset had none: depth float16 [R, F, h, w] metres; pose float32 [R, F, 4, 4] camera to world;
    intrinsics float32 [R, 4] over the picture size; camera float32 [R, F, 6] (x, y, z, yaw, pitch, roll); hands as in
    `Episode`: hand_state (as seen, see `hands_as_seen`) and hand_command float32 [R, F, 2, 16], hand_present bool
    [R, F, 2]; object_pose float32 [R, F, 4, 4] and target [R, F, 3]; task_id int64 [R, F] of the recorded task.
    """

    frames: np.ndarray
    seeds: np.ndarray
    depth: np.ndarray | None = None
    pose: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    camera: np.ndarray | None = None
    hand_state: np.ndarray | None = None
    hand_command: np.ndarray | None = None
    hand_present: np.ndarray | None = None
    object_pose: np.ndarray | None = None
    target: np.ndarray | None = None
    task_id: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of starts R."""
        return len(self.frames)

    def rows(self, selection: np.ndarray) -> Starts:
        """The starts at these indices, or where this mask [R] is True."""
        return Starts(**{name: value[selection] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class StartsConfig:
    """Which frames become starts: `num` of `frames` consecutive frames; the last one has at least `min_depth` metres
    of median depth and little in its face (0 switches both off, for datasets without depth).

    reaches_within: only frames from which the recording reached its goal in so many steps, which is a curriculum for
    agents (0: any frame).
    """

    num: int
    frames: int = 1
    min_depth: float = 2.5
    reaches_within: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num", 1), ("frames", 1), ("min_depth", 0), ("reaches_within", 0), ("seed", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}, and finite")


def collect_starts(reader: EpisodeReader, config: StartsConfig) -> Starts:
    """Draw starts from the dataset, one per episode before any episode gives a second one.

    Raises ValueError when the dataset has no depth or success to judge by, or too few frames qualify.
    """
    if config.min_depth > 0:
        reader.require("depth")
    if config.reaches_within > 0 and all(reader.episode(index).success is None for index in range(len(reader))):
        reader.require("success")
    found = [
        cut_start(reader.episode(index), frame, config.frames)
        for index, frame in itertools.islice(_places(reader, config), config.num)
    ]
    if len(found) < config.num:
        raise ValueError(
            f"only {len(found)} of {config.num} starts found in {reader.path}; lower --num or --min-depth, "
            "allow more steps to the goal, or record more episodes"
        )
    return stack_starts(found, reader.path)


def stack_starts(found: Sequence[dict[str, np.ndarray]], path: str | os.PathLike[str]) -> Starts:
    """Starts from the dataset at `path`, each by the names of `Starts` -> all of them in one.

    Raises ValueError where some have what others lack.
    """
    differing = set[str]().union(*found) - set(found[0]).intersection(*found)
    if differing:
        raise ValueError(
            f"only some episodes of {path} have {', '.join(sorted(differing))}; leave the others out, or record them "
            "again from an env whose info always offers it"
        )
    return Starts(**{name: np.stack([start[name] for start in found]) for name in found[0]})


def _places(reader: EpisodeReader, config: StartsConfig) -> Iterator[tuple[int, int]]:
    """Pairs (episode, frame): one of each episode in random order, then a second one of each, and so on."""
    rng = np.random.default_rng(config.seed)
    waiting: list[tuple[int, list[int]]] = []
    for index in rng.permutation(len(reader)).tolist():
        frames = rng.permutation(_candidates(reader.episode(index), config)).tolist()
        if frames:
            yield index, frames.pop()
            waiting.append((index, frames))
    while waiting := [(index, frames) for index, frames in waiting if frames]:
        for index, frames in waiting:
            yield index, frames.pop()


def _candidates(episode: Episode, config: StartsConfig) -> np.ndarray:
    """Frames of the episode that a world can open with -> indices, ascending; the plainer half is left out."""
    suits = np.arange(len(episode.frames)) >= config.frames - 1
    if config.reaches_within > 0 and episode.success is None:
        return np.arange(0)
    if config.reaches_within > 0:
        suits &= is_near_success(episode, config.reaches_within)
    if episode.hand_state is not None:
        return np.flatnonzero(suits & is_untouched(episode) & is_hand_in_view(episode))
    if config.min_depth > 0 and episode.depth is not None:
        depth = episode.depth.reshape(len(episode.depth), -1)
        suits &= np.median(depth, axis=1) >= config.min_depth
        suits &= (depth < WALL_DISTANCE).mean(axis=1) <= MAX_WALL_SHARE
    if episode.camera is not None:
        suits &= np.abs(episode.camera[:, 4]) < LEVEL
    if episode.goal_distance is not None:
        suits &= episode.goal_distance >= MIN_GOAL_DISTANCE
    frames = np.flatnonzero(suits)
    if len(frames) < 2:
        return frames
    detail = _detail(episode.frames[frames])
    return frames[detail >= np.median(detail)]


def is_near_success(episode: Episode, num_steps: int) -> np.ndarray:
    """Frames [T+1] from which the recording succeeds in at most so many steps."""
    assert episode.success is not None
    reached = np.flatnonzero(episode.success) + 1  # frames that show it
    later = np.searchsorted(reached, np.arange(len(episode.frames)), side="right")
    steps = np.append(reached, np.iinfo(np.int64).max)[later] - np.arange(len(episode.frames))
    return steps <= num_steps


def is_untouched(episode: Episode) -> np.ndarray:
    """Frames [T+1] before anything was touched or reached: where an episode of a hand can begin."""
    suits = np.ones(len(episode.frames), dtype=bool)
    if episode.contact is not None:
        suits &= np.cumsum(episode.contact) == 0
    if episode.success is not None:
        suits[1:] &= np.cumsum(episode.success) == 0
    return suits


def is_hand_in_view(episode: Episode) -> np.ndarray:
    """Frames [T+1] that show at least half of a hand's keypoints; all of them where the recording does not say."""
    if episode.hand_visible is None:
        return np.ones(len(episode.frames), dtype=bool)
    return (episode.hand_visible.mean(axis=-1) >= 0.5).any(axis=-1)


def _detail(frames: np.ndarray) -> np.ndarray:
    """Mean difference between neighbouring pixels, uint8 [N, h, w, 3] -> [N]."""
    grey = frames.mean(axis=-1)
    return np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))


def cut_start(episode: Episode, last: int, num_frames: int = 1) -> dict[str, np.ndarray]:
    """The fields of a start, without the dimension of starts: `num_frames` frames of the episode up to `last`."""
    window = slice(last - num_frames + 1, last + 1)
    seed = -1 if episode.seed is None else episode.seed % 2**63  # Minari draws seeds of 64 bits
    start = {"frames": episode.frames[window], "seeds": np.array(seed, np.int64)}
    for name in WINDOWED:
        if getattr(episode, name) is not None:
            start[name] = getattr(episode, name)[window]
    if episode.hand_keypoints is not None and {"hand_state", "hand_present"} <= start.keys():
        start["hand_state"] = hands_as_seen(start["hand_state"], episode.hand_keypoints[window], start["hand_present"])
    if episode.intrinsics is not None:
        start["intrinsics"] = episode.intrinsics
    return start


def hands_as_seen(state: np.ndarray, keypoints: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Hand states float32 [F, 2, 16] with the fingers where recorded keypoints [F, 2, 21, 3] are, of hands that are
    present [F, 2] and have a keypoint farther than `HELD` from its place.

    A recording tells fingers as they were told to be. Where a table holds them back a dream would take what it shows of
    them for the table, and they would stay there.
    """
    told, seen = state_from_vector(torch.tensor(state, dtype=torch.float32)), torch.tensor(keypoints).float()
    is_left = is_left_of_both(seen).expand(present.shape)
    distance = (hand_keypoints(told, is_left) - seen).norm(dim=-1).amax(-1)
    held = (distance > HELD) & torch.tensor(present, dtype=torch.bool)
    shown = state.copy()
    if held.any():
        shown[held.numpy(), -len(FINGER_STATE) :] = state_from_keypoints(seen[held], is_left[held]).fingers.numpy()
    return shown


def save_starts(starts: Starts, path: str | os.PathLike[str], source: dict[str, Any] | None = None) -> None:
    """Write starts to `path`, all of it or nothing; `source` (plain JSON) says where they come from."""
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "source": json.dumps(source or {})}
    contiguous = {name: np.ascontiguousarray(value) for name, value in starts.arrays().items()}
    with whole_file(path) as partial:
        partial.write_bytes(save(contiguous, metadata))


def load_starts(path: str | os.PathLike[str]) -> Starts:
    """Read a file of starts; raises ValueError when it is missing, damaged or something else."""
    if not Path(path).is_file():
        raise ValueError(f"the starts file {path} does not exist; write one with `worldscape starts`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"the starts file {path} is damaged ({error}); write it again") from error
    if metadata.get("format") != FORMAT or metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} is not a starts file of version {FORMAT_VERSION} (its metadata says {metadata.get('format')!r}, "
            f"{metadata.get('format_version')!r}); write one with `worldscape starts`"
        )
    return Starts(**arrays)


def add_parser(subparsers: Any) -> None:
    """Add the `starts` command."""
    description = "Collect start frames from a dataset into one file."
    parser: argparse.ArgumentParser = subparsers.add_parser("starts", description=description)
    parser.add_argument("--data", required=True, help="folder or Minari id of the dataset")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--num", type=int, required=True, help="number of starts")
    parser.add_argument("--frames", type=int, default=1, help="consecutive frames per start (default 1)")
    parser.add_argument(
        "--min-depth", type=float, default=2.5, help="median metres in front of the camera (default 2.5; 0: any)"
    )
    parser.add_argument(
        "--reaches-within", type=int, default=0, help="steps in which the recording reached its goal (default 0: any)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default 0)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    config = StartsConfig(
        num=args.num,
        frames=args.frames,
        min_depth=args.min_depth,
        reaches_within=args.reaches_within,
        seed=args.seed,
    )
    reader = EpisodeReader(args.data)
    starts = collect_starts(reader, config)
    chosen = {"min_depth": config.min_depth, "reaches_within": config.reaches_within}
    save_starts(starts, args.out, source={"recorded": reader.settings, **chosen})
    layouts = len(np.unique(starts.seeds))
    print(f"{args.out}: {len(starts)} starts from {layouts} layouts, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0
