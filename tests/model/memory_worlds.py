"""Tiny worlds to remember: pictures of walls, poses and keys of one number, for memory tests."""

import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import encode_depth
from worldscape.config import MemoryConfig
from worldscape.memory.pages import PageShape
from worldscape.memory.values import Frame, Recall
from worldscape.memory.world_memory import WorldMemory
from worldscape.nn.blocks import KeysValues

SIZE = 16
SHAPE = PageShape(layers=2, tokens=1, heads=1, head_width=2, size=SIZE)
INTRINSICS = torch.tensor([[0.5, 0.5, 0.5, 0.5]])


def pose(yaw: float = 0.0, x: float = 0.0, roll: float = 0.0) -> torch.Tensor:
    return pose_from_state(torch.tensor([[x, 0.0, 0.0, yaw, 0.0, roll]]))


def picture(value: float, depth: float = 5.0) -> torch.Tensor:
    """A wall of one colour [1, 4, h, w] at `depth` metres."""
    inverse = encode_depth(torch.full((1, 1, SIZE, SIZE), depth))
    return torch.cat([torch.full((1, 3, SIZE, SIZE), value), inverse], 1)


def layers(values: torch.Tensor) -> list[KeysValues]:
    """Keys and values of frames marked by `values` [B], for each layer of SHAPE."""
    keys = values.reshape(-1, 1, 1, 1, 1).expand(-1, 1, 1, 1, 2)
    return [KeysValues(keys + layer, -keys - layer) for layer in range(SHAPE.layers)]


def empty(config: MemoryConfig, slots: int = 1, budget: int | None = None) -> WorldMemory:
    return WorldMemory.empty(config, slots, SHAPE, torch.zeros(()), budget)


def append(memory: WorldMemory, value: float, where: torch.Tensor, coverage: float | None = None) -> None:
    """Commit a wall of colour `value` / 10 seen from `where` to the only slot; coverage: as if so much was known."""
    recall = memory.recall(where, INTRINSICS)
    if coverage is not None:
        recall = recall._replace(coverage=torch.tensor([coverage]))
    append_recalled(memory, value, where, recall)


def append_recalled(memory: WorldMemory, value: float, where: torch.Tensor, recall: Recall) -> None:
    frame = Frame(layers(torch.tensor([value])), picture(value / 10), where, INTRINSICS)
    memory.append(frame, recall, torch.tensor([True]))


def numbers(memory: WorldMemory, pages: torch.Tensor) -> list[list[int]]:
    """Frames that pages [B, N] hold, -1 for none."""
    return memory.store.fields.frame[pages].tolist()
