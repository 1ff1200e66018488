"""What may go into the engine: rows, starts and controls, each checked once, where it enters."""

import torch
from torch import Tensor

from worldscape.slots import Start


def checked_rows(rows: Tensor | None, num_slots: int, device: torch.device) -> Tensor:
    """Slot numbers long [R] on the device; None: all. Raises ValueError for numbers out of range or given twice."""
    if rows is None:
        return torch.arange(num_slots, device=device)
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"rows are {rows.dtype} of shape {tuple(rows.shape)}; give slot numbers, long [R].")
    numbers = rows.tolist()
    if len(set(numbers)) < len(numbers) or not all(0 <= number < num_slots for number in numbers):
        raise ValueError(f"rows are {numbers}; give different slot numbers from 0 to {num_slots - 1}.")
    return rows.to(device, torch.long)


def check_start(start: Start, size: int, num_seeds: int, num_rows: int) -> None:
    """Raises ValueError for frames that are not `size` pixels a side, for shapes that disagree and for NaN."""
    frames = start.frames
    if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2:] != (size, size, 3):
        raise ValueError(f"start frames have shape {tuple(frames.shape)}; give uint8 [R, F, {size}, {size}, 3].")
    if frames.dtype != torch.uint8:
        raise ValueError(f"start frames are {frames.dtype}; give uint8.")
    if not len(frames) == num_seeds == num_rows:
        raise ValueError(f"{len(frames)} starts, {num_seeds} seeds, {num_rows} rows; the three must agree.")
    if start.pose is None and frames.shape[1] > 1:
        raise ValueError(f"{frames.shape[1]} start frames came without poses; give poses, or one frame.")
    for name, tensor, shape in (
        ("depth", start.depth, frames.shape[:4]),
        ("pose", start.pose, (*frames.shape[:2], 4, 4)),
        ("intrinsics", start.intrinsics, (num_rows, 4)),
    ):
        if tensor is not None and (tensor.shape != shape or not torch.isfinite(tensor).all()):
            raise ValueError(f"start {name} has shape {tuple(tensor.shape)}; give finite numbers {tuple(shape)}.")


def check_controls(controls: Tensor, active: Tensor, is_open: Tensor) -> None:
    """Raises ValueError unless controls are finite [B, 6] and active bool [B], and every active slot is open."""
    num_slots = len(is_open)
    if controls.shape != (num_slots, 6):
        raise ValueError(f"controls have shape {tuple(controls.shape)}; give [{num_slots}, 6].")
    if active.shape != (num_slots,):
        raise ValueError(f"active has shape {tuple(active.shape)}; give bool [{num_slots}].")
    if is_open.device.type == "cpu":  # reading a flag back would stall a GPU
        if not torch.isfinite(controls).all():
            raise ValueError("controls hold NaN or infinity; give finite metres and radians.")
        if (active & ~is_open).any():
            raise ValueError("a slot was stepped that holds no world; call open() first.")
