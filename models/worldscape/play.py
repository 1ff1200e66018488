"""`worldscape play`: walk through a world with the keyboard, in a window or, without a display, into a video.

W A S D walk, J L turn, I K look up and down (in the window the arrow keys too); R opens another world, Esc ends.
The world is made through Gymnasium, like any other env: starts, pictures and random weights work as they do there.
--map draws what it remembers in the end, seen from above.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from worldscape.data.rollout import make_env
from worldscape.window import KeyWindow

WORLD = "ws_gym:WorldScape-Nav-v0"
AXES = (("W", "S"), ("D", "A"), ("L", "J"), ("I", "K"))
"""Opposed keys of each axis of the world's combined actions: walk, strafe, turn, look."""
VIDEO_PIXELS = 384
WINDOW_PIXELS = 640
MAP_PIXELS = 768


def parse_keys(text: str) -> list[str]:
    """Keys with optional counts ("W3L12.") -> one key per step, "." for none; raises ValueError for unknown ones."""
    compact = re.sub(r"\s", "", text).upper()
    if not re.fullmatch(r"([WASDJLIK.]\d*)+", compact):
        raise ValueError(
            f"--keys {text!r} is not understood; write W A S D to walk, J L to turn, I K to look up and down, a dot to "
            "wait, each with an optional count, such as W4L6W"
        )
    pairs = re.findall(r"([WASDJLIK.])(\d*)", compact)
    return [key for key, count in pairs for _ in range(int(count or 1))]


def keys_to_action(held: Iterable[str]) -> np.ndarray:
    """Keys held together -> int64 [4], per axis 0 none, 1 the first key, 2 the opposite; opposite keys cancel out."""
    held = set(held)
    signs = [(first in held) - (second in held) for first, second in AXES]
    return np.array(signs, np.int64) % 3


class Walk:
    """One world after another, stepped by keys; an episode that ends is followed by the next world.

    Args:
        env: with the world's combined actions.
        seed: of the first world; the next ones follow from it.
    """

    def __init__(self, env: gym.Env, seed: int) -> None:
        self._env = env
        self.frame: np.ndarray = env.reset(seed=seed)[0]
        self.num_steps = 0
        self.num_worlds = 1

    def open(self) -> None:
        """Go to the next world."""
        self.frame = self._env.reset()[0]
        self.num_steps = 0
        self.num_worlds += 1

    def step(self, held: Iterable[str]) -> None:
        """Step with these keys held."""
        self.frame, _, terminated, truncated, _ = self._env.step(keys_to_action(held))
        self.num_steps += 1
        if terminated or truncated:
            self.open()


def write_walk(walk: Walk, keys: list[str], out: Path, fps: int) -> int:
    """Walk along `keys` and write a video -> number of frames. Raises OSError when it cannot be written."""
    frames = [enlarge(walk.frame, VIDEO_PIXELS)]
    for key in keys:
        walk.step(key)
        frames.append(enlarge(walk.frame, VIDEO_PIXELS))
    write_film(np.stack(frames), out, fps)
    return len(frames)


def write_film(film: np.ndarray, out: Path, fps: int) -> None:
    """Write uint8 [T, h, w, 3] as a video. Raises OSError when it cannot be written."""
    import imageio.v3 as iio

    out.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(out, film, plugin="FFMPEG", fps=fps)


def write_map(env: gym.Env, out: Path) -> None:
    """Write the map of what the env's world remembers as a picture. Raises OSError when it cannot be written."""
    world: Any = env.unwrapped
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(world.draw_map(MAP_PIXELS), cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {out}; is the disk full?")


def enlarge(frame: np.ndarray, pixels: int) -> np.ndarray:
    """Frame uint8 [h, w, 3] -> uint8 [pixels, pixels, 3]."""
    return cv2.resize(frame, (pixels, pixels), interpolation=cv2.INTER_CUBIC)


def play_in_window(walk: Walk, window: KeyWindow) -> None:
    """Step the world while keys are held, until the window is closed."""
    while window.is_open:
        window.show(enlarge(walk.frame, WINDOW_PIXELS), f"WorldScape: world {walk.num_worlds}, step {walk.num_steps}")
        if window.wants_reset:
            walk.open()
        elif window.held:
            walk.step(window.held)


def add_world_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which world is walked through; `make_world` reads them."""
    parser.add_argument("--weights", help="name or folder of the weights (default: the shipped ones)")
    parser.add_argument("--starts", help='"train", "heldout", "drawn", or a dataset, starts file, picture or video')
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the world (default 0)")


def make_world(args: argparse.Namespace) -> gym.Env:
    """The world of these options, with combined actions; the seed is for its reset."""
    options = {name: getattr(args, name) for name in ("weights", "starts", "device") if getattr(args, name) is not None}
    return make_env(WORLD, {"actions": "multi_discrete", **options})


def add_parser(subparsers: Any) -> None:
    """Add the `play` command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_world_options(parser)
    parser.add_argument("--fps", type=int, default=15, help="frames per second (default 15)")
    parser.add_argument("--keys", help='walk along these instead of opening a window, for instance "W4L6W4"')
    parser.add_argument("--out", type=Path, help="video to write, with --keys")
    parser.add_argument("--map", type=Path, help="picture (.png) to write in the end: the remembered place from above")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    if (args.keys is None) != (args.out is None):
        raise ValueError("--keys and --out belong together: the keys to press and the video to write")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; it must not be negative")
    if args.map is not None and not cv2.haveImageWriter(str(args.map)):
        raise ValueError(f"--map {args.map} is no name of a picture; end it in .png")
    if args.fps < 1:
        raise ValueError(f"--fps is {args.fps}; it must be at least 1 frame per second")
    keys = None if args.keys is None else parse_keys(args.keys)
    window = KeyWindow(args.fps) if keys is None else None
    env = make_world(args)
    walk = Walk(env, args.seed)
    if keys is not None:
        print(f"{args.out}: {write_walk(walk, keys, args.out, args.fps)} frames")
    elif window is not None:
        play_in_window(walk, window)
        window.close()
    if args.map is not None:
        write_map(env, args.map)
        print(f"{args.map}: what the world remembers")
    env.close()
    return 0
