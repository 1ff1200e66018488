"""What may go into the engine: rows, starts, controls and hands, each checked once, where it enters."""

import math

import torch
from torch import Tensor

from worldscape.conditioning.hands import HAND_STATE_WIDTH, HANDS
from worldscape.config import TransformerConfig
from worldscape.engine_frames import RecordedHands, Start


def checked_device(device: str | torch.device) -> torch.device:
    """A torch device by name. Raises ValueError for what is none, and for CUDA where there is none."""
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a torch device ({error}); give 'cpu' or 'cuda'.") from error
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} but torch finds no CUDA device; give device='cpu'.")
    return checked


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


def check_start(start: Start, size: int, num_seeds: int, num_rows: int, hands: str | None) -> None:
    """Raises ValueError for frames that are not `size` pixels a side, for shapes that disagree, for NaN, for depth
    below 0 and focal lengths not above it, and for hands where the engine's option `hands` says that it has none."""
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
    if start.depth is not None and (start.depth < 0).any():
        raise ValueError("start depth has numbers below 0; give metres, 0 where nothing was measured.")
    if start.intrinsics is not None and (start.intrinsics[:, :2] <= 0).any():
        raise ValueError("start intrinsics have a focal length that is not above 0; give fx, fy in picture sizes.")
    if start.places is not None and (start.places.shape != (*frames.shape[:2], 2, 3) or start.places.isinf().any()):
        raise ValueError(
            f"start places have shape {tuple(start.places.shape)}; give {(*frames.shape[:2], 2, 3)}: object and target "
            "in metres, NaN where it is not known."
        )
    if start.hands is not None:
        _check_recorded(start.hands, frames.shape[:2], hands)


def _check_recorded(recorded: RecordedHands, shape: torch.Size, hands: str | None) -> None:
    if hands is None:
        raise ValueError("the start has hands and this engine has none: make it with hands=.")
    wanted = ((*shape, 2, HAND_STATE_WIDTH), (*shape, 2, HAND_STATE_WIDTH), (*shape, 2))
    given = tuple(tuple(part.shape) for part in recorded)
    if given != wanted or not (torch.isfinite(recorded.state).all() and torch.isfinite(recorded.command).all()):
        raise ValueError(f"start hands have shapes {given}; give finite states and commands, and present: {wanted}.")


def check_controls(controls: Tensor, active: Tensor, is_open: Tensor) -> bool:
    """Whether any of controls [B, 6] walks; True where that is not known, since nobody waits for a GPU to tell.

    Raises ValueError unless they are finite, active is bool [B], and every active slot is open.
    """
    num_slots = len(is_open)
    if controls.shape != (num_slots, 6):
        raise ValueError(f"controls have shape {tuple(controls.shape)}; give [{num_slots}, 6].")
    if active.shape != (num_slots,) or active.dtype != torch.bool:
        raise ValueError(f"active is {active.dtype} of shape {tuple(active.shape)}; give bool [{num_slots}].")
    # Lists, of which few slots make short ones, are searched in a quarter of the time that a reduction takes.
    if is_open.device.type == "cpu" and False in is_open.tolist() and (active & ~is_open).any():
        raise ValueError("a slot was stepped that holds no world; call open() first.")
    if controls.device.type != "cpu":
        return True
    motions = controls.tolist()
    if not math.isfinite(sum(map(sum, motions))):  # what is not finite stays so in a sum
        raise ValueError("controls hold NaN or infinity; give finite metres and radians.")
    return any(right or down or forward for right, down, forward, *_ in motions)


def check_hands(commanded: Tensor, width: int, is_open: Tensor, hands: str | None) -> None:
    """Raises ValueError unless these are finite actions or states [B, 2, width], and the engine has hands at all."""
    num_slots = len(is_open)
    if hands is None:
        raise ValueError("hands were commanded in an engine that has none: make it with hands=.")
    if commanded.shape != (num_slots, 2, width):
        raise ValueError(f"hands have shape {tuple(commanded.shape)}; give [{num_slots}, 2, {width}].")
    if is_open.device.type == "cpu" and not torch.isfinite(commanded).all():
        raise ValueError("hands hold NaN or infinity; give finite numbers.")


def check_hands_option(hands: str, config: TransformerConfig) -> None:
    """Raises ValueError for a name that is none of `hands.HANDS`, and for weights that know no hands."""
    if hands not in HANDS:
        raise ValueError(f"hands is {hands!r}; choose one of {', '.join(HANDS)}, or None.")
    if not config.hands:
        raise ValueError("these weights know no hands: use others, or train some (--model transformer.hands=true).")
