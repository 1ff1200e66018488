"""What the engine's public entrances refuse, each in one sentence, and on what device the rest goes on."""

import torch
from torch import Tensor

from worldscape.conditioning.hands import HAND_ACTION_WIDTH, HANDS
from worldscape.config import TransformerConfig
from worldscape.slots import SlotState


def check_rows(rows: Tensor | None, num_slots: int, device: torch.device) -> Tensor:
    """Slot numbers on the device; None: all. Raises ValueError for numbers that are out of range or come twice."""
    if rows is None:
        return torch.arange(num_slots, device=device)
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"rows are {rows.dtype} of shape {tuple(rows.shape)}; give slot numbers, long [R].")
    numbers = rows.tolist()
    if len(set(numbers)) < len(numbers) or not all(0 <= number < num_slots for number in numbers):
        raise ValueError(f"rows are {numbers}; give different slot numbers from 0 to {num_slots - 1}.")
    return rows.to(device, torch.long)


def check_controls(controls: Tensor, active: Tensor, state: SlotState) -> Tensor:
    """Controls [B, 6] on the device. Raises ValueError for wrong shapes and, on a CPU, for numbers that are not finite
    and slots that hold no world."""
    slots, device = len(state.steps), state.steps.device
    if controls.shape != (slots, 6):
        raise ValueError(f"controls have shape {tuple(controls.shape)}; give [{slots}, 6].")
    if active.shape != (slots,):
        raise ValueError(f"active has shape {tuple(active.shape)}; give bool [{slots}].")
    if device.type == "cpu":  # reading a flag back would stall a GPU
        if not torch.isfinite(controls).all():
            raise ValueError("controls hold NaN or infinity; give finite metres and radians.")
        if (active & ~state.is_open).any():
            raise ValueError("a slot was stepped that holds no world; call open() first.")
    return controls.to(device, torch.float32)


def check_hands(hands: Tensor, width: int, state: SlotState, option: str | None) -> Tensor:
    """Actions or states [B, 2, width] of both hands on the device, actions clipped.

    Raises ValueError for an engine without hands, for another shape and, on a CPU, for numbers that are not finite.
    """
    slots, device = len(state.steps), state.steps.device
    if option is None:
        raise ValueError("hands were commanded in an engine that has none: make it with hands=.")
    if hands.shape != (slots, 2, width):
        raise ValueError(f"hands have shape {tuple(hands.shape)}; give [{slots}, 2, {width}].")
    if device.type == "cpu" and not torch.isfinite(hands).all():
        raise ValueError("hands hold NaN or infinity; give finite numbers.")
    hands = hands.to(device, torch.float32)
    return hands.clamp(-1.0, 1.0) if width == HAND_ACTION_WIDTH else hands


def check_hands_option(hands: str, config: TransformerConfig) -> None:
    """Raises ValueError for a name that is none of `hands.HANDS`, and for weights that know no hands."""
    if hands not in HANDS:
        raise ValueError(f"hands is {hands!r}; choose one of {', '.join(HANDS)}, or None.")
    if not config.hands:
        raise ValueError("these weights know no hands: use others, or train some (--model transformer.hands=true).")
