"""What a start leaves unsaid: depth, pose and intrinsics of the real frames that open worlds."""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.hands import HAND_STATE_WIDTH
from worldscape.conditioning.reproject import decode_depth
from worldscape.slots import RecordedHands, Start
from worldscape.world import WorldModel


def complete_start(start: Start, model: WorldModel, num_seeds: int, num_rows: int, device: torch.device) -> Start:
    """The start with frames, depth, pose and intrinsics filled in and on the device.

    Raises ValueError for wrong shapes, and unless there are as many worlds as seeds and rows.
    """
    size, frames = model.config.codec.size, start.frames.to(device)
    if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2:] != (size, size, 3):
        raise ValueError(f"start frames have shape {tuple(frames.shape)}; give uint8 [R, F, {size}, {size}, 3].")
    if frames.dtype != torch.uint8:
        raise ValueError(f"start frames are {frames.dtype}; give uint8.")
    if not len(frames) == num_seeds == num_rows:
        raise ValueError(f"{len(frames)} starts, {num_seeds} seeds, {num_rows} rows; the three must agree.")
    count = frames.shape[1]
    if start.pose is None and count > 1:
        raise ValueError(f"{count} start frames came without poses; give poses, or one frame.")
    pose = torch.eye(4).repeat(len(frames), count, 1, 1) if start.pose is None else start.pose
    depth = _guess_depth(frames, model) if start.depth is None else start.depth
    intrinsics = _default_intrinsics(len(frames), model.config.field_of_view)
    intrinsics = intrinsics if start.intrinsics is None else start.intrinsics
    for name, tensor, shape in (
        ("depth", depth, frames.shape[:4]),
        ("pose", pose, (*frames.shape[:2], 4, 4)),
        ("intrinsics", intrinsics, (len(frames), 4)),
    ):
        if tensor.shape != shape or not torch.isfinite(tensor).all():
            raise ValueError(f"start {name} has shape {tuple(tensor.shape)}; give finite numbers {tuple(shape)}.")
    depth, pose, intrinsics = (x.to(device, torch.float32) for x in (depth, pose, intrinsics))
    hands = None if start.hands is None else _checked_hands(start.hands, frames.shape[:2], device)
    return replace(start, frames=frames, depth=depth, pose=pose, intrinsics=intrinsics, hands=hands)


def _checked_hands(hands: RecordedHands, shape: torch.Size, device: torch.device) -> RecordedHands:
    wanted = ((*shape, 2, HAND_STATE_WIDTH), (*shape, 2, HAND_STATE_WIDTH), (*shape, 2))
    given = tuple(tuple(part.shape) for part in hands)
    if given != wanted or not (torch.isfinite(hands.state).all() and torch.isfinite(hands.command).all()):
        raise ValueError(f"start hands have shapes {given}; give finite states and commands, and present: {wanted}.")
    state, command = (part.to(device, torch.float32) for part in hands[:2])
    return RecordedHands(state, command, hands.present.to(device, torch.bool))


def _guess_depth(frames: Tensor, model: WorldModel) -> Tensor:
    rgb = rearrange(frames, "r f h w c -> (r f) c h w").float() / 127.5 - 1.0
    depth = decode_depth(model.heads.depth(rgb))
    return rearrange(depth, "(r f) h w -> r f h w", f=frames.shape[1])


def _default_intrinsics(rows: int, field_of_view: float) -> Tensor:
    focal = 0.5 / torch.tan(torch.deg2rad(torch.tensor(field_of_view / 2)))
    return torch.stack([focal, focal, torch.tensor(0.5), torch.tensor(0.5)]).repeat(rows, 1)
