"""What the map of a world shows, gathered from the engine's state."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import state_from_pose
from worldscape.conditioning.reproject import decode_depth
from worldscape.config import BodyConfig
from worldscape.memory.report import report_memory, report_trust
from worldscape.slots import SlotState
from worldscape.splats.unproject import place_on_rays
from ws_gym.maps import Place

TRAIL_STEPS = 512
"""Steps of the path that are kept, so that memory does not grow with the horizon."""


def describe_place(state: SlotState, trail: Tensor, elapsed: int, slot: int, body: BodyConfig) -> Place:
    """What `slot` remembers. trail [K, 2]: (x, z) of its last steps, metres, step t of the episode in place t mod K;
    elapsed: steps that the episode has taken, of which those in flight are not shown yet."""
    rgbd, poses, valid, frames = (part[slot] for part in state.memory.remembered())
    rgbd, poses, frames = rgbd[valid], poses[valid], frames[valid]
    tables = state.memory.tables
    points = _unproject(rgbd, poses, state.intrinsics[slot])
    below_eyes = points[:, 1] - state.camera[slot, 1]
    is_kept = below_eyes > -body.above  # the ceiling would hide the place
    colours = rearrange((rgbd[:, :3] + 1) * 127.5, "n c h w -> (n h w) c")
    order = torch.arange(max(0, elapsed + 1 - len(trail)), elapsed + 1, device=trail.device) % len(trail)
    return Place(
        points=_array(points[is_kept]),
        colours=_array(colours[is_kept].round().to(torch.uint8)),
        is_floor=_array(below_eyes[is_kept] >= body.below),
        cameras=_array(_on_plan(state_from_pose(poses))),
        is_real=_array(frames < tables.num_real[slot]),
        is_anchored=_array(torch.isin(frames, tables.anchors[slot])),
        is_retrieved=_array(torch.isin(frames, tables.retrieved[slot])),
        path=_array(trail[order]),
        here=_array(_on_plan(state.camera[slot])),
        field_of_view=2 * math.atan(0.5 / float(state.intrinsics[slot, 0])),
        caption=_caption(state, slot),
    )


def _caption(state: SlotState, slot: int) -> str:
    memory, trust = report_memory(state.memory.tables), report_trust(state.memory.tables)
    held, seen = int(memory.pages_used[slot]), int(memory.frames_seen[slot])
    drift, age = float(trust.drift[slot]), int(trust.steps_since_real[slot])
    return f"step {int(state.steps[slot])}: {held} of {seen} frames held, drift {drift:.2f}, {age} steps since real"


def _unproject(rgbd: Tensor, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Pictures [N, 4, h, w] from poses [N, 4, 4] -> their points in world axes [N * h * w, 3], metres."""
    depth = decode_depth(rgbd[:, 3])
    centred = torch.zeros_like(depth)[..., None].expand(*depth.shape, 2)
    points = place_on_rays(depth[None], centred[None], poses[None], intrinsics[None])
    return rearrange(points, "1 n h w xyz -> (n h w) xyz")


def _on_plan(camera: Tensor) -> Tensor:
    """Camera states [..., 6] -> (x, z, yaw) [..., 3]."""
    return camera[..., [0, 2, 3]]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
