"""A recording that needs no simulator: a walk with true poses, whose pictures and depth are noise."""

from __future__ import annotations

import numpy as np
import torch

from worldscape.conditioning.camera import apply_control, pose_from_state
from worldscape.data.clips import FrameStore

FRAMES, SIZE = 24, 64
TURN_AND_WALK = torch.tensor([[0.1, 0.0, 0.05, 0.2, 0.0, 0.0]])


def walk_store(frames: int = FRAMES) -> FrameStore:
    """One episode of so many frames that turns and walks, every picture noise."""
    rng, camera, cameras = np.random.default_rng(0), torch.zeros(1, 6), []
    for _ in range(frames):
        cameras.append(camera)
        camera = apply_control(camera, TURN_AND_WALK, 0.5)
    states = torch.cat(cameras)
    motion = np.concatenate([np.zeros((1, 6)), np.repeat(TURN_AND_WALK.numpy(), frames - 1, 0)]).astype(np.float32)
    zeros = np.zeros(frames, np.float32)
    return FrameStore(
        frames=rng.integers(0, 256, (frames, SIZE, SIZE, 3), np.uint8),
        depth=rng.uniform(1.0, 4.0, (frames, SIZE, SIZE)).astype(np.float16),
        pose=pose_from_state(states).numpy(),
        camera=states.numpy(),
        controls=motion,
        realised=motion,
        reward=zeros,
        success=zeros,
        terminated=zeros,
        goal_distance=np.full(frames, np.nan, np.float32),
        intrinsics=np.tile(np.array([0.6, 0.6, 0.5, 0.5], np.float32), (frames, 1)),
        starts=np.array([0, frames]),
    )
