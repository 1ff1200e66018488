"""`worldscape dream`: a recorded start and recorded motion, dreamed into a video with the recording beside it.

Students are stepped by the engine. A teacher refines clips instead, many calls each, and goes on from its own last
frames: nothing answers an action at once, which is why there is no environment around it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from worldscape.checkpoint import load_world
from worldscape.clip_engine import ClipEngine
from worldscape.data.clips import FrameStore, load_frames
from worldscape.engines import open_engine
from worldscape.evaluate.pictures import save_film
from worldscape.films import check_film
from worldscape.progress import Progress
from worldscape.train.rollouts import follow, hands_in, start_at
from worldscape.world import WorldModel


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `dream` to the command line."""
    parser = subparsers.add_parser("dream", help="dream a recorded walk into a video", description=__doc__)
    parser.set_defaults(func=run)
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights or of a run")
    parser.add_argument("--data", required=True, help="dataset that the walk was recorded in")
    parser.add_argument("--episode", type=int, default=-1, help="episode of the walk; negative: from the end")
    parser.add_argument("--frames", type=int, default=64, help="frames of the video")
    parser.add_argument(
        "--calls", type=int, help="model calls that refine a frame (default: as trained), or a teacher's clip (16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="noise seed")
    parser.add_argument("--temperature", type=float, default=1.0, help="of that noise; above 1 places hold more things")
    parser.add_argument("--fps", type=int, default=8, help="frames a second of the video")
    parser.add_argument("--scale", type=int, default=3, help="how many times frames are enlarged")
    parser.add_argument("--out", type=Path, default=Path("dream.mp4"), help="the video, .mp4 or .gif")


def run(args: argparse.Namespace) -> None:
    """Dream one walk and write the video.

    Raises ValueError for an episode that is not there, numbers too small, and a name that is none of a film.
    """
    check_film(args.out)
    model = load_world(args.weights)
    told = {"frames": (args.frames, 2), "calls": (args.calls, 1), "fps": (args.fps, 1), "scale": (args.scale, 1)}
    for name, (value, least) in told.items():
        if value is not None and value < least:
            raise ValueError(f"--{name} {value} must be at least {least}")
    store = load_frames(args.data, model.config.codec.size, hands=model.config.transformer.hands, trains=False)
    if not -store.num_episodes <= args.episode < store.num_episodes:
        raise ValueError(f"--episode {args.episode} must be one of {store.num_episodes}")
    first, after = (int(edges[args.episode]) for edges in (store.starts[:-1], store.starts[1:]))
    walk = np.arange(first, min(after, first + args.frames))
    made = dream_walk(model, store, walk, args.calls, args.seed, args.temperature)
    save_film(args.out, {"recorded": store.frames[walk], "dreamed": made}, fps=args.fps, scale=args.scale)
    print(f"wrote {args.out}")


@torch.inference_mode()
def dream_walk(
    model: WorldModel, store: FrameStore, walk: np.ndarray, calls: int | None, seed: int, temperature: float = 1.0
) -> np.ndarray:
    """Dream along the motion between the recorded frames `walk` [F], from the first of them -> uint8 [F, h, w, 3].

    calls: that refine a frame, or a teacher's clip; None for what the engine takes by itself. temperature: as
    WorldEngine's.
    """
    engine = open_engine(model, 1, steps_per_frame=calls, hands=hands_in(store), temperature=temperature)
    frames = [engine.open(start_at(store, walk[:1]), torch.tensor([seed])).frame]
    if isinstance(engine, ClipEngine):
        controls = torch.from_numpy(store.realised[walk[1:]])[None]
        hands = None if store.hands is None else store.hands.at(walk[1:]).state[None]
        engine.foresee(controls, hands=hands, is_realised=True)
    with Progress("frames dreamed", total=len(walk) - 1) as progress:
        for index in range(1, len(walk)):
            frames.append(follow(engine, store, walk[[index]]).frame)
            progress.update()
    return torch.cat(frames).numpy()
