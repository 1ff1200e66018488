"""`make demo`: a scripted walk through the shipped world, as a video and a contact sheet.

Run as `python -m ws_gym.demo`; needs neither a display nor OpenGL. The walk looks around, goes out and comes back, so
that the pictures show whether the world is still there when the agent returns.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import gymnasium as gym
import imageio.v3 as iio
import numpy as np
from einops import rearrange

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.conditioning.controls import DISCRETE_ACTIONS
from worldscape.films import write_film

LOOK_AROUND = (("turn left", 3), ("turn right", 6), ("turn left", 3))
OUT_AND_BACK = (("forward", 8), ("turn right", 12), ("forward", 8), ("turn right", 12))
SIDE_STEPS = (("right", 3), ("left", 6), ("right", 3), ("look up", 2), ("look down", 4), ("look up", 2))
FULL_CIRCLE = (("turn left", 24),)
NEW_HEADING = (("turn left", 6), ("forward", 4))
WALK = LOOK_AROUND + OUT_AND_BACK + SIDE_STEPS + FULL_CIRCLE + NEW_HEADING

VIDEO_PIXELS = 320
TILE_PIXELS = 160
SHEET_COLUMNS, SHEET_ROWS = 8, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A walk: captioned frames are frames[t] after action_names[t]; seconds is the time spent in `env.step`."""

    frames: list[np.ndarray]
    action_names: list[str]
    seconds: float
    num_episodes: int


def scripted_actions() -> Iterator[int]:
    """The walk as action numbers, for ever."""
    for name, times in itertools.cycle(WALK):
        yield from itertools.repeat(DISCRETE_ACTIONS.index(name), times)


def record_walk(env: gym.Env, num_steps: int, seed: int) -> Recording:
    """Step `env` along the script; a finished episode is followed by the next, which starts the script anew."""
    frames, names, seconds, num_episodes = [], [], 0.0, 1
    env.reset(seed=seed)
    actions = scripted_actions()
    for _ in range(num_steps):
        action = next(actions)
        begin = time.perf_counter()
        observation, _, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - begin
        frames.append(observation)
        names.append(DISCRETE_ACTIONS[action])
        if (terminated or truncated) and len(frames) < num_steps:
            env.reset()
            actions, num_episodes = scripted_actions(), num_episodes + 1
    return Recording(frames=frames, action_names=names, seconds=seconds, num_episodes=num_episodes)


def captioned(frame: np.ndarray, text: str, pixels: int) -> np.ndarray:
    """Enlarge a frame, uint8 [h, w, 3] -> [pixels, pixels, 3], and write `text` along its lower edge."""
    picture = cv2.resize(frame, (pixels, pixels), interpolation=cv2.INTER_CUBIC)
    place, scale = (pixels // 40 + 2, pixels - pixels // 40 - 2), pixels / 420
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return picture


def write_video(recording: Recording, path: Path, fps: int) -> None:
    captions = zip(recording.frames, recording.action_names, strict=True)
    write_film(path, (captioned(frame, name, VIDEO_PIXELS) for frame, name in captions), fps)


def write_contact_sheet(recording: Recording, path: Path) -> None:
    """Evenly spaced frames as one PNG, row by row, each with its step and action."""
    num_tiles = min(SHEET_COLUMNS * SHEET_ROWS, len(recording.frames))
    steps = np.linspace(0, len(recording.frames) - 1, num_tiles).round().astype(int)
    tiles = [captioned(recording.frames[t], f"{t + 1} {recording.action_names[t]}", TILE_PIXELS) for t in steps]
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-num_tiles % SHEET_COLUMNS)
    iio.imwrite(path, rearrange(np.stack(tiles), "(row col) h w c -> (row h) (col w) c", col=SHEET_COLUMNS))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Walk through a dreamed world; write a video and a contact sheet.")
    parser.add_argument("--weights", default="nano", help="name or path of the weights (default: the shipped nano)")
    parser.add_argument("--steps", type=int, default=300, help="number of env steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first reset (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="output folder (default %(default)s)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; at least 1 is needed.")
    return args


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    env = gym.make("WorldScape-Nav-v0", weights=args.weights)
    env.reset(seed=args.seed)
    loading = time.perf_counter() - begin
    recording = record_walk(env, args.steps, args.seed)
    video, sheet = args.out / "walk.mp4", args.out / "contact_sheet.png"
    write_video(recording, video, env.metadata["render_fps"])
    write_contact_sheet(recording, sheet)
    env.close()
    rate = args.steps / recording.seconds
    print(f"speed          {rate:.1f} steps/s ({args.steps} steps, {recording.seconds:.1f} s)")
    print(f"first frame    after {loading:.1f} s, loading included")
    print(f"episodes       {recording.num_episodes}")
    print(f"video          {video.resolve()}")
    print(f"contact sheet  {sheet.resolve()}")


if __name__ == "__main__":
    main()
