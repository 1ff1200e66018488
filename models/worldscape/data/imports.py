"""`worldscape import`: recordings of other projects become datasets like those of `worldscape record`.

What happens to whole frames stays (pictures, cameras, hands); actions are those of our own hands that come closest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from torch import Tensor

from worldscape.conditioning.camera import angle_difference, state_from_pose
from worldscape.conditioning.hands import HAND_ACTION_WIDTH, HandScale, action_between, state_from_vector
from worldscape.data.egodex import EgoDexConfig, EgoDexEpisode, find_episodes, read_episode
from worldscape.data.minari_writer import DatasetWriter, EpisodeWriter
from worldscape.progress import Progress

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

_FREE = HandScale(low=(-1e3, -1e3, -1e3), high=(1e3, 1e3, 1e3), max_tilt=3.0)
"""The simulator's step sizes without its box: people walk about."""


def import_egodex(source: Path, out: Path, config: EgoDexConfig, episodes: int = 0) -> int:
    """Write EgoDex episodes below `source` into the dataset `out` -> how many it holds; goes on where it stopped.

    Actions are `Box(-1, 1, (26,))`: thirteen numbers for the left and the right hand, as in `conditioning.hands`, zero
    while a hand is absent. Rewards are zero; there is no depth. episodes: at most so many, 0 for all.
    Raises ValueError for a file that cannot be used, and what `DatasetWriter` raises.
    """
    if episodes < 0:
        raise ValueError(f"episodes is {episodes}; give how many to import, or 0 for all")
    files = find_episodes(source)[: episodes or None]
    settings = {"env": "egodex", "env_kwargs": {"size": config.size, "stride": config.stride}, "policy": "people"}
    settings |= {"min_confidence": config.min_confidence, "max_frames": config.max_frames}
    writer = DatasetWriter(
        out,
        observation_space=spaces.Box(0, 255, (config.size, config.size, 3), np.uint8),
        action_space=spaces.Box(-1.0, 1.0, (2 * HAND_ACTION_WIDTH,), np.float32),
        spec=None,
        settings=settings,
    )
    missing = [index for index in range(len(files)) if not writer.is_done(index)]
    episode_writer = EpisodeWriter(out)
    try:
        with Progress("episodes", total=len(files), done=len(files) - len(missing)) as progress:
            for index in missing:
                episode_writer.write(index, as_buffer(read_episode(files[index], config), index))
                writer.adopt_pending()
                progress.update()
    finally:
        episode_writer.close()
    return writer.num_episodes


def as_buffer(episode: EgoDexEpisode, index: int) -> EpisodeBuffer:
    """An EgoDex episode of T frames -> T - 1 steps as the recorder writes them."""
    from minari.data_collector import EpisodeBuffer

    steps = len(episode.frames) - 1
    camera = state_from_pose(torch.from_numpy(episode.pose))
    motion = np.concatenate([np.zeros((1, 6), np.float32), camera_motion(camera).numpy()])
    names = ("pose", "hand_keypoints", "hand_present", "hand_pixels", "hand_visible", "hand_state")
    infos: dict[str, Any] = {name: getattr(episode, name) for name in names}
    infos |= {"camera": camera.numpy(), "control": motion, "realised": motion}
    infos["intrinsics"] = np.tile(episode.intrinsics, (steps + 1, 1))
    return EpisodeBuffer(
        id=index,
        observations=list(episode.frames),
        actions=list(hand_actions(episode).numpy()),
        rewards=[0.0] * steps,
        terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True],
        infos=infos,
    )


def camera_motion(camera: Tensor) -> Tensor:
    """Camera states [T, 6] -> the controls [T - 1, 6] between them, see `camera.apply_control` (metres, radians)."""
    turn = angle_difference(camera[1:], camera[:-1])
    x, down, z = (camera[1:, :3] - camera[:-1, :3]).unbind(-1)
    yaw = camera[1:, 3]
    right, forward = x * yaw.cos() - z * yaw.sin(), x * yaw.sin() + z * yaw.cos()
    return torch.cat([torch.stack([right, down, forward], -1), turn], -1)


def hand_actions(episode: EgoDexEpisode) -> Tensor:
    """The delta actions [T - 1, 26] that follow the hands, as far as one step goes; zero where a hand comes or goes."""
    rows = torch.from_numpy(episode.hand_state)
    present = torch.from_numpy(episode.hand_present)
    both = present[1:] & present[:-1]
    rest = torch.zeros(16)
    rest[[3, 7]] = 1.0  # no rotation: an absent hand's zeros are none
    states = state_from_vector(torch.where(present[..., None], rows, rest))
    before, after = (type(states)(*(part[cut] for part in states)) for cut in (slice(None, -1), slice(1, None)))
    actions = action_between(before, after, _FREE) * both[..., None]
    return rearrange(actions, "t hands a -> t (hands a)")


def add_parser(subparsers: Any) -> None:
    """Add the `import` command."""
    description = "Turn recordings of other projects into a dataset; run it again to go on after a stop."
    parser: argparse.ArgumentParser = subparsers.add_parser("import", description=description)
    parser.add_argument("format", choices=["egodex"], help="egodex: folders of N.hdf5 and N.mp4 files")
    parser.add_argument("--source", type=Path, required=True, help="a file, or a folder that is searched for files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset; continued when it exists")
    parser.add_argument("--episodes", type=int, default=0, help="at most so many (default 0: all)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels (default 64)")
    parser.add_argument("--stride", type=int, default=3, help="keep every so many video frames (default 3)")
    parser.add_argument("--min-confidence", type=float, default=0.1, help="below, a joint is not tracked (default 0.1)")
    parser.add_argument("--max-frames", type=int, default=0, help="frames of an episode (default 0: all)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    config = EgoDexConfig(
        size=args.size, stride=args.stride, min_confidence=args.min_confidence, max_frames=args.max_frames
    )
    count = import_egodex(args.source, args.out, config, args.episodes)
    print(f"{args.out}: {count} episodes")
    return 0
