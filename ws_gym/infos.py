"""What an environment tells beside the picture: motion, hands, depth; at the size that the user asked for."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldscape.engine_frames import EngineFrame, HandFrame

BLOCKED_SHARE = 0.5
"""A step is a collision when less than this share of the commanded distance was realised."""

NEAREST = 1e-3
"""Metres in front of the eyes at which points nearer than that, or behind, are drawn."""


def describe_motion(frame: EngineFrame) -> dict[str, Any]:
    """The camera, what was commanded of it and what took place."""
    walks = torch.stack([frame.commanded, frame.realised])[..., :3]
    commanded, realised = walks.square().sum(-1).unbind()
    return {
        "pose": frame.pose,
        "camera": frame.camera,
        "control": frame.commanded,
        "realised": frame.realised,
        "collision": realised < BLOCKED_SHARE**2 * commanded,
        "coverage": frame.coverage,
    }


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, H, W, 3] -> uint8 [B, h, w, 3]."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    pixels = rearrange(frames, "b h w c -> b c h w").float()
    pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "b c h w -> b h w c").contiguous()


def resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Metres [B, H, W] -> metres [B, h, w]: nearest, because a mean of two depths is on neither surface."""
    if tuple(depth.shape[1:3]) == size:
        return depth
    return torch.nn.functional.interpolate(depth[:, None], size, mode="nearest-exact")[:, 0]


def describe_hands(hands: HandFrame, pose: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Hands, and what they act on, as the tabletop's simulator reports them; pixels (x right, y down) in a picture of
    `size` = (h, w)."""
    centre, rotation = pose[:, None, None, :3, 3], pose[:, None, :3, :3]
    x, y, z = ((hands.keypoints - centre) @ rotation).unbind(-1)
    fx, fy, cx, cy = (value[:, None, None] for value in intrinsics.unbind(-1))
    z = z.clamp_min(NEAREST)
    return {
        "hand_present": hands.present,
        "hand_keypoints": hands.keypoints,
        "hand_pixels": torch.stack([size[1] * (fx * x / z + cx), size[0] * (fy * y / z + cy)], -1),
        "hand_state": hands.state,
        "hand_command": hands.command,
        "object_position": hands.object,
        "target": hands.target,
        **dict(zip(("contact", "grasped", "lifted"), (hands.touch > 0.5).unbind(1), strict=True)),
    }
