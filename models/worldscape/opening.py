"""What a start may leave out: a level camera at the origin, the config's field of view, depth as a head guesses it.

The head takes every picture for one of the config's field of view; what a longer lens shows as large is farther away.
"""

import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import square_intrinsics
from worldscape.conditioning.reproject import decode_depth
from worldscape.engine_frames import RecordedHands, Start
from worldscape.world import WorldModel


def complete_start(start: Start, model: WorldModel, device: torch.device) -> Start:
    """The start with every field but hands and places filled in, on the device."""
    frames = start.frames.to(device)
    num_rows, num_frames = frames.shape[:2]
    pose = torch.eye(4).repeat(num_rows, num_frames, 1, 1) if start.pose is None else start.pose
    usual = torch.from_numpy(square_intrinsics(model.config.field_of_view)).repeat(num_rows, 1)
    intrinsics = usual if start.intrinsics is None else start.intrinsics
    depth = start.depth
    if depth is None:
        longer = intrinsics[:, 0].to(device, torch.float32) / usual[:, 0].to(device)
        depth = guess_depth(frames, model) * longer[:, None, None, None]
    depth, pose, intrinsics = (part.to(device, torch.float32) for part in (depth, pose, intrinsics))
    hands = None if start.hands is None else RecordedHands(*(part.to(device) for part in start.hands))
    places = None if start.places is None else start.places.to(device, torch.float32)
    return Start(frames, depth, pose, intrinsics, hands, places)


def guess_depth(frames: Tensor, model: WorldModel) -> Tensor:
    """Frames uint8 [R, F, h, w, 3] -> depth [R, F, h, w] in metres, by the head that learned from single pictures."""
    rgb = rearrange(frames, "r f h w c -> (r f) c h w").float() / 127.5 - 1.0
    depth = decode_depth(model.heads.depth(rgb))
    return rearrange(depth, "(r f) h w -> r f h w", f=frames.shape[1])
