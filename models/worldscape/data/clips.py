"""Recorded frames in memory, and the draws that training makes from them: pure functions of (seed, step, rank)."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.reproject import encode_depth
from worldscape.data import minari_io
from worldscape.data.episode import HELD_OUT_SEED, Episode, EpisodeReader
from worldscape.data.hand_tracks import HandTracks, read_tracks

Datasets: TypeAlias = str | Path | Sequence[str | Path]
"""One dataset, or several to be trained on together."""

END_BYTES = 1 << 16
"""Of either end of a file, that tell it from others (`fingerprint`)."""

NEEDED = ("depth", "pose", "camera", "intrinsics", "controls", "realised")
"""What every episode that is trained on must have."""

STILL = 1e-6  # metres or radians
CONTROL_TOLERANCE = 0.25  # of a step


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameStore:
    """All episodes of one or more datasets, one after another; episode e holds the frames starts[e] : starts[e + 1].

    frames uint8 [N, h, w, 3], depth float16 [N, h, w] metres, pose float32 [N, 4, 4], camera float32 [N, 6],
    controls and realised float32 [N, 6] (what led *to* the frame; zero in an episode's first), reward, success and
    terminated [N] (likewise), goal_distance [N] metres (NaN where unknown), intrinsics float32 [N, 4]; hands, where a
    dataset has any. recording: `fingerprint` of what was read.
    """

    frames: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    camera: np.ndarray
    controls: np.ndarray
    realised: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    goal_distance: np.ndarray
    intrinsics: np.ndarray
    starts: np.ndarray
    hands: HandTracks | None = None
    recording: str = ""

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.starts) - 1

    def rgbd(self, index: np.ndarray) -> Tensor:
        """Frames at these positions [...] -> RGB-D [..., 4, h, w], RGB and inverse depth in [-1, 1]."""
        return to_rgbd(*self.recorded(index))

    def recorded(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frames at these positions [...] as they were recorded, a sixth of the bytes (`to_rgbd`): colours uint8
        [..., h, w, 3], depth float16 [..., h, w]."""
        return torch.from_numpy(self.frames[index]), torch.from_numpy(self.depth[index])


def to_rgbd(frames: Tensor, depth: Tensor) -> Tensor:
    """Colours uint8 [..., h, w, 3] and depth [..., h, w] in metres -> RGB-D [..., 4, h, w], all in [-1, 1]."""
    rgbd = frame_to_rgbd(frames.flatten(0, -4), encode_depth(depth.flatten(0, -3).float()))
    return rgbd.reshape(*depth.shape[:-2], *rgbd.shape[1:])


def load_frames(data: Datasets, size: int, *, hands: bool = False, trains: bool = True) -> FrameStore:
    """Read recorded datasets into memory; episodes of several are spread evenly among each other.

    hands: keep what they know of hands, for a generator that takes them. trains: something will learn from them. Raises
    ValueError when depth, pose or realised motion is missing, pictures are not size x size, or something would learn
    from a held-out layout. Asked for the same again, and nothing was recorded since, it gives the same object: do not
    change it.
    """
    paths = [minari_io.resolve_dataset(dataset) for dataset in dataset_paths(data)]
    written = ((path / minari_io.METADATA).stat().st_mtime_ns for path in paths)  # with every episode
    return _load_frames(tuple(zip(paths, written, strict=True)), size, hands, trains)


@lru_cache(maxsize=1)  # the stages of a pipeline read the same recordings one after another
def _load_frames(datasets: tuple[tuple[Path, int], ...], size: int, hands: bool, trains: bool) -> FrameStore:
    episodes = interleave([read_episodes(path, size, trains=trains) for path, _ in datasets])
    counts = [len(episode) + 1 for episode in episodes]
    return FrameStore(
        frames=np.concatenate([e.frames for e in episodes]),
        depth=_of_frames(episodes, "depth"),
        pose=_of_frames(episodes, "pose"),
        camera=_of_frames(episodes, "camera"),
        controls=_after_reset(episodes, "controls"),
        realised=_after_reset(episodes, "realised"),
        reward=_after_reset(episodes, "rewards"),
        success=_after_reset(episodes, "success"),
        terminated=_after_reset(episodes, "terminations"),
        goal_distance=np.concatenate([_goal_distance(e) for e in episodes]),
        intrinsics=np.repeat([np.array(e.intrinsics, np.float32) for e in episodes], counts, axis=0),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        hands=read_tracks(episodes) if hands else None,
        recording=fingerprint([path for path, _ in datasets]),
    )


def fingerprint(data: Datasets) -> str:
    """Digest of what was recorded, in one dataset or several, wherever it lies: of each file its name, its size and the
    first and last 64 KiB (metadata.json of the whole left out, which tells how, not what)."""
    paths = [minari_io.resolve_dataset(dataset) for dataset in dataset_paths(data)]
    return hashlib.sha256("".join(map(_fingerprint, paths)).encode()).hexdigest()[:16]


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    files = [Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names]
    for file in sorted(files):
        name = file.relative_to(path)
        if str(name) == minari_io.METADATA or any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        digest.update(f"{name.as_posix()} {size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(END_BYTES))
            stream.seek(max(END_BYTES, size - END_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def dataset_paths(data: Datasets) -> list[str | Path]:
    """One dataset or several -> a list of them."""
    return [data] if isinstance(data, (str, Path)) else list(data)


def interleave(groups: list[list[Episode]]) -> list[Episode]:
    """Lists of episodes -> one list, in which any stretch has its share of each."""
    shares = [(index + 0.5) / len(group) for group in groups for index in range(len(group))]
    episodes = [episode for group in groups for episode in group]
    return [episodes[index] for index in np.argsort(shares, kind="stable")]


def read_episodes(dataset: str | Path, size: int, *, trains: bool = True) -> list[Episode]:
    """All episodes of a dataset, checked: raises what load_frames does."""
    reader = EpisodeReader(dataset)
    reader.require(*NEEDED)
    held_out = [seed for seed in reader.seeds if seed is not None and seed >= HELD_OUT_SEED]
    if held_out and trains and reader.settings is not None:  # seeds of datasets made by others mean something else
        raise ValueError(
            f"{dataset} holds {len(held_out)} held-out layouts (seed {held_out[0]}); "
            f"train on seeds below {HELD_OUT_SEED}."
        )
    episodes = [reader.checked(index, *NEEDED) for index in range(len(reader))]
    shape = episodes[0].frames.shape[1:]
    if shape != (size, size, 3):
        raise ValueError(f"{dataset} has pictures of shape {shape}; this preset takes {(size, size, 3)}.")
    if reader.takes_actions_for_keys and share_off_control(episodes) > 0.5:
        raise ValueError(
            f"{dataset} has no info 'control', and on most steps its 'realised' is not what the nine keys of "
            "WorldScape-Nav-v0 do (0.25 m, 15 and 10 degrees); record it from an env whose info offers the motion that "
            "each action commands as 'control'"
        )
    return episodes


def share_off_control(episodes: list[Episode]) -> float:
    """Share of the steps that moved, and did not collide, whose motion was not about what their control says."""
    off = []
    for episode in episodes:
        assert episode.controls is not None and episode.realised is not None
        moved = np.abs(episode.realised).max(1) > STILL
        if episode.collision is not None:
            moved &= ~episode.collision.astype(bool)
        miss = np.abs(episode.realised - episode.controls).max(1)
        off.append((miss > CONTROL_TOLERANCE * np.abs(episode.controls).max(1))[moved])
    return float(np.concatenate(off).mean()) if any(map(len, off)) else 0.0


def _of_frames(episodes: list[Episode], name: str) -> np.ndarray:
    return np.concatenate([getattr(episode, name) for episode in episodes])


def _goal_distance(episode: Episode) -> np.ndarray:
    known = episode.goal_distance
    return np.asarray(np.full(len(episode) + 1, np.nan) if known is None else known, np.float32)


def _after_reset(episodes: list[Episode], name: str) -> np.ndarray:
    """Step quantities aligned with the frame they led to; zeros where the simulator did not report them."""
    rows = []
    for episode in episodes:
        values = getattr(episode, name)
        values = np.zeros(len(episode)) if values is None else np.asarray(values)
        rows.append(np.concatenate([np.zeros_like(values[:1]), values]).astype(np.float32))
    return np.concatenate(rows)


def draw_targets(
    store: FrameStore, rng: np.random.Generator, batch: int, history: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random frames with `history` frames or more before them -> their positions and episodes' starts, each [batch]."""
    episodes = rng.integers(store.num_episodes, size=batch)
    first, after = store.starts[episodes], store.starts[episodes + 1]
    low = np.minimum(first + history, after - 1)
    return rng.integers(low, after), first


def draw_sources(
    rng: np.random.Generator, targets: np.ndarray, first: np.ndarray, num: int, moves: np.ndarray | None = None
) -> np.ndarray:
    """For each target `num` earlier frames of its episode [batch, num]: half of them recent, the rest from anywhere.

    moves bool [batch]: targets for which memory begins with the frame before them, as it does where things move.
    """
    age = (targets - first)[:, None].clip(1)
    recent = rng.integers(1, 9, size=(len(targets), num))
    anywhere = 1 + (rng.random((len(targets), num)) * age).astype(int)
    back = np.where(rng.random((len(targets), num)) < 0.5, recent, anywhere)
    if moves is not None:
        back[:, 0] = np.where(moves, 1, back[:, 0])
    return np.maximum(targets[:, None] - np.minimum(back, age), first[:, None])


def corrupt_sources(rgbd: Tensor, generator: torch.Generator) -> Tensor:
    """Stored pictures as a dream would have made them: [B, N, 4, h, w] with colour casts, blur and wrong depth.

    Half of the rows stay as they are. Depth errors are smooth and relative (about 3 %), colour casts about 2 %.
    """
    b, n, _, h, w = rgbd.shape
    options = {"generator": generator, "device": rgbd.device, "dtype": rgbd.dtype}
    is_hurt = (torch.rand(b, 1, 1, 1, 1, **options) < 0.5).to(rgbd.dtype)
    cast = 0.04 * torch.randn(b, n, 3, 1, 1, **options) + 0.02 * torch.randn(b, n, 3, h, w, **options)
    rough = torch.randn(b * n, 1, 5, 5, **options)
    smooth = torch.nn.functional.interpolate(rough, (h, w), mode="bilinear", align_corners=True)
    error = 0.03 * rearrange(smooth, "(b n) 1 h w -> b n 1 h w", n=n) * (rgbd[:, :, 3:] + 1.0)
    blurred = torch.nn.functional.avg_pool2d(rearrange(rgbd[:, :, :3], "b n c h w -> (b n) c h w"), 3, 1, 1)
    blurred = rearrange(blurred, "(b n) c h w -> b n c h w", n=n)
    blur = 0.5 * torch.rand(b, n, 1, 1, 1, **options) * is_hurt
    colour = (1 - blur) * rgbd[:, :, :3] + blur * blurred + is_hurt * cast
    return torch.cat([colour, rgbd[:, :, 3:] + is_hurt * error], 2).clamp(-1.0, 1.0)
