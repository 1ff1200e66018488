"""`worldscape dream`: a recorded start and recorded motion, dreamed into a video with the recording beside it.

Students are stepped by the engine. A teacher refines clips instead, many calls each, and goes on from its own last
frames: nothing answers an action at once, which is why there is no environment around it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.checkpoint import load_world
from worldscape.codec import normalise_tokens, rgbd_to_frame, token_coverage
from worldscape.conditioning.camera import invert_pose, level_pose
from worldscape.data.clips import FrameStore, load_frames
from worldscape.engine import SAMPLER_SHIFT, WorldEngine
from worldscape.evaluate.pictures import save_film
from worldscape.flow import sampling_levels
from worldscape.memory.pages import PageShape
from worldscape.memory.world_memory import Frame, Recall, WorldMemory
from worldscape.noise import slot_noise
from worldscape.progress import Progress
from worldscape.train.rollouts import follow, hands_in, start_at
from worldscape.train.sight import sight
from worldscape.train.teacher import sample_clip
from worldscape.transformer import frame_rays
from worldscape.world import WorldModel

FPS = 8


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `dream` to the command line."""
    parser = subparsers.add_parser("dream", help="dream a recorded walk into a video", description=__doc__)
    parser.set_defaults(func=run)
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights or of a run")
    parser.add_argument("--data", required=True, help="dataset that the walk was recorded in")
    parser.add_argument("--episode", type=int, default=-1, help="episode of the walk; negative: from the end")
    parser.add_argument("--frames", type=int, default=64, help="frames of the video")
    parser.add_argument("--calls", type=int, default=16, help="model calls that refine a frame (or a teacher's clip)")
    parser.add_argument("--seed", type=int, default=0, help="noise seed")
    parser.add_argument("--out", type=Path, default=Path("dream.mp4"), help="the video")


def run(args: argparse.Namespace) -> None:
    """Dream one walk and write the video. Raises ValueError for an episode that is not there."""
    model = load_world(args.weights)
    store = load_frames(args.data, model.config.codec.size, hands=model.config.transformer.hands)
    if not -store.num_episodes <= args.episode < store.num_episodes or args.frames < 2 or args.calls < 1:
        raise ValueError(
            f"--episode {args.episode} must be one of {store.num_episodes}, --frames {args.frames} at least 2 and "
            f"--calls {args.calls} at least 1"
        )
    first, after = (int(edges[args.episode]) for edges in (store.starts[:-1], store.starts[1:]))
    walk = np.arange(first, min(after, first + args.frames))
    dream = dream_clips if not model.config.transformer.is_causal else dream_steps
    made = dream(model, store, walk, args.calls, args.seed)
    save_film(args.out, {"recorded": store.frames[walk], "dreamed": made}, fps=FPS)
    print(f"wrote {args.out}")


def dream_steps(model: WorldModel, store: FrameStore, walk: np.ndarray, calls: int, seed: int) -> np.ndarray:
    """Step a student along the recorded frames `walk` [F] from the first of them -> uint8 [F, h, w, 3]."""
    engine = WorldEngine(model, 1, steps_per_frame=calls, hands=hands_in(store))
    frames = [engine.open(start_at(store, walk[:1]), torch.tensor([seed])).frame]
    with Progress("frames dreamed", total=len(walk) - 1) as progress:
        for index in range(1, len(walk)):
            frames.append(follow(engine, store, walk[[index]]).frame)
            progress.update()
    return torch.cat(frames).numpy()


class Finished(NamedTuple):
    """A dreamed frame as later clips see it: latent and guess [1, P, C], coverage [1, P], rays [1, 6, R, R], and its
    picture rgbd [1, 4, h, w].
    """

    latent: Tensor
    guess: Tensor
    coverage: Tensor
    rays: Tensor
    rgbd: Tensor


class ClipDreamer:
    """Dreams one walk with a teacher: a memory, and the frames finished so far."""

    def __init__(self, model: WorldModel, store: FrameStore, walk: np.ndarray):
        size = model.config.codec.size
        shape = PageShape(layers=0, tokens=0, heads=0, head_width=0, size=size)
        self.model, self.store, self.walk = model, store, walk
        self.intrinsics = torch.from_numpy(store.intrinsics[walk[:1]])
        self.poses = torch.from_numpy(store.pose[walk])
        self.memory = WorldMemory.empty(model.config.memory, 1, shape, torch.zeros(()))
        self.frames: list[Finished] = []

    def rays(self, place: int) -> Tensor:
        """Rays [1, 6, R, R] of the frame at a place of the walk."""
        reference = invert_pose(level_pose(self.poses[max(place - 1, 0)][None]))
        return frame_rays(self.poses[place][None], reference, self.intrinsics, self.model.config.codec.grid)

    def recall(self, place: int) -> Recall:
        """What memory shows of that view now."""
        return self.memory.recall(self.poses[place][None], self.intrinsics)

    def finish(self, latent: Tensor | None) -> None:
        """Decode the next frame from its latent [1, P, C] (None: take the recorded one) and remember it."""
        codec, place = self.model.codec, len(self.frames)
        recall = self.recall(place)
        guess = codec.encode_anchor(recall.anchor)
        if latent is None:
            rgbd = self.store.rgbd(self.walk[place : place + 1])
            latent = codec.encode(rgbd)
        else:
            rgbd = codec.decode(latent, recall.anchor, guess.skips).clamp(-1.0, 1.0)
        frame = Frame([], rgbd, self.poses[place][None], self.intrinsics)
        self.memory.append(frame, recall, torch.ones(1, dtype=torch.bool))
        coverage = token_coverage(recall.anchor.mask, codec.config.grid)
        self.frames.append(Finished(latent, guess.latent, coverage, self.rays(place), rgbd))

    @property
    def clip_length(self) -> int:
        """Frames of a clip without retrieved ones."""
        return self.model.config.memory.num_sink + self.model.config.memory.local_window + 1

    def clip(self, num_new: int) -> dict[str, Tensor]:
        """The clip that the next frames are refined in: sink, frames retrieved for the last of the new ones, last
        finished frames, and num_new blank ones."""
        num_sink, length = self.model.config.memory.num_sink, self.clip_length
        opening, place = self.frames, len(self.frames)
        if place + num_new > length:
            opening = self.frames[:num_sink] + self.frames[num_sink + num_new - length :]
        recall = self.recall(place)
        guess = self.model.codec.encode_anchor(recall.anchor).latent
        coverage = token_coverage(recall.anchor.mask, self.model.config.codec.grid)
        blank = opening[0]._replace(latent=torch.zeros_like(guess), guess=guess, coverage=coverage)
        parts = [*opening, *[blank._replace(rays=self.rays(place + index)) for index in range(num_new)]]
        chosen = self.retrieve(place + num_new - 1)
        parts[num_sink:num_sink] = [self.frames[max(number, 0)] for number in chosen]
        clip = {name: torch.stack([getattr(part, name) for part in parts], 1) for name in Finished._fields[:-1]}
        if not chosen:
            return clip
        is_held = torch.tensor([chosen]) >= 0
        return clip | {"sees": sight(is_held, num_sink, len(parts) - num_sink - len(chosen), is_causal=False)}

    def retrieve(self, place: int) -> list[int]:
        """Numbers of the finished frames that memory chooses for the frame at a place of the walk, -1 for none."""
        recall = self.memory.recall(self.poses[place][None], self.intrinsics, use_anchor=False)
        return self.memory.store.fields.frame[recall.retrieved[0]].tolist()


@torch.inference_mode()
def dream_clips(model: WorldModel, store: FrameStore, walk: np.ndarray, calls: int, seed: int) -> np.ndarray:
    """Refine clips of a teacher along the recorded frames `walk` [F], the first of them given -> uint8 [F, h, w, 3].

    A clip holds sink, local window and target: first one recorded frame and all others new, then half of them new.
    """
    dreamer = ClipDreamer(model, store, walk)
    length = dreamer.clip_length
    dreamer.finish(None)
    codec, levels = model.config.codec, sampling_levels(calls, SAMPLER_SHIFT)
    shape = (codec.num_tokens, codec.latent_channels)
    with Progress("frames dreamed", total=len(walk) - 1) as progress:
        while (place := len(dreamer.frames)) < len(walk):
            num_new = min(length - 1 if place == 1 else length // 2, len(walk) - place)
            noise = slot_noise(torch.tensor([seed]), torch.tensor([place]), num_new * shape[0] * shape[1])
            made = sample_clip(model, dreamer.clip(num_new), noise.reshape(1, num_new, *shape), levels)
            for latent in normalise_tokens(made).unbind(1):
                dreamer.finish(latent)
            progress.update(num_new)
    return np.concatenate([rgbd_to_frame(frame.rgbd).numpy() for frame in dreamer.frames])
