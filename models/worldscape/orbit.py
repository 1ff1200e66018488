"""`worldscape orbit`: walk through a world, rebuild the place as 3D Gaussians, fly through them into a video.

A camera turns once around itself on a small circle, so that near and far things move against each other.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import pose_from_state, square_intrinsics
from worldscape.films import check_film, write_film
from worldscape.play import add_world_options, keys_to_action, make_world, parse_keys, reset_options
from worldscape.splats.gaussians import Gaussians
from worldscape.splats.ply import save_ply
from worldscape.splats.render import render

FULL_TURN = "L24"  # 24 turns of 15 degrees


class Place(NamedTuple):
    """Gaussians of a world (B = 1) and where one stands in it, [3] metres."""

    scene: Gaussians
    position: Tensor


def walk_and_rebuild(env: gym.Env, seed: int, keys: list[str], options: dict[str, Any] | None = None) -> Place:
    """Walk a world, reset with `options`, along `keys` -> the place that it remembers, on the CPU."""
    _, info = env.reset(seed=seed, options=options)
    for key in keys:
        info = env.step(keys_to_action([key]))[-1]
    world: Any = env.unwrapped
    return Place(Gaussians(*(part.cpu() for part in world.reconstruct())), torch.from_numpy(info["pose"][:3, 3]))


def orbit_poses(centre: Tensor, radius: float, num_frames: int) -> Tensor:
    """Cameras on a level circle around `centre` [3] (metres), each looking outwards -> poses [V, 4, 4]."""
    yaw = torch.arange(num_frames) * (2 * math.pi / num_frames)
    state = torch.zeros(num_frames, 6)
    state[:, :3] = centre + radius * torch.stack([yaw.sin(), torch.zeros_like(yaw), yaw.cos()], -1)
    state[:, 3] = yaw
    return pose_from_state(state)


@torch.inference_mode()
def render_film(scene: Gaussians, poses: Tensor, field_of_view: float, size: int) -> np.ndarray:
    """One scene from poses [V, 4, 4], view of so many degrees -> film uint8 [V, size, size, 3], black where empty."""
    intrinsics = torch.from_numpy(square_intrinsics(field_of_view))[None, None]
    frames = [render(scene, pose[None, None], intrinsics, size).rgb[0, 0] for pose in poses]
    film = rearrange(torch.stack(frames).clamp(0, 1), "v k h w -> v h w k")
    return (255 * film).round().to(torch.uint8).numpy()


def add_parser(subparsers: Any) -> None:
    """Add the `orbit` command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "orbit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_world_options(parser)
    parser.add_argument("--keys", default=FULL_TURN, help=f"walk along these first (default {FULL_TURN}: a full turn)")
    parser.add_argument("--out", type=Path, required=True, help="film to write (.mp4, .gif)")
    parser.add_argument("--ply", type=Path, help="write the Gaussians here too, as a 3DGS .ply")
    parser.add_argument("--radius", type=float, default=0.4, help="of the circle, metres (default 0.4)")
    parser.add_argument("--view", type=float, default=80.0, help="field of view, degrees (default 80)")
    parser.add_argument("--frames", type=int, default=96, help="frames of the video (default 96)")
    parser.add_argument("--size", type=int, default=192, help="pixels a side, even (default 192)")
    parser.add_argument("--fps", type=int, default=24, help="frames per second (default 24)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    check_film(args.out)
    for name in ("frames", "size", "fps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if not 0 < args.view < 180:
        raise ValueError(f"--view is {args.view}; give degrees between 0 and 180")
    if args.seed < 0 or args.radius < 0 or args.size % 2:
        raise ValueError(f"--seed {args.seed} and --radius {args.radius} must be 0 or more, --size {args.size} even")
    keys = parse_keys(args.keys)
    env = make_world(args)
    place = walk_and_rebuild(env, args.seed, keys, reset_options(args))
    env.close()
    if args.ply is not None:
        print(f"{args.ply}: {save_ply(place.scene, args.ply)} Gaussians")
    film = render_film(place.scene, orbit_poses(place.position, args.radius, args.frames), args.view, args.size)
    write_film(args.out, film, args.fps)
    print(f"{args.out}: {len(film)} frames")
    return 0
