"""A stand-in world and stage that train in milliseconds; also the script that the kill and torchrun tests start."""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from worldscape.train.config import TrainConfig, override, parse_assignments
from worldscape.train.loop import train
from worldscape.train.run_state import detach

WIDTH = 8


@dataclass(frozen=True)
class ToyConfig:
    name: str = "toy"

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name}


class ToyTransformer(nn.Module):
    """Everything the optimiser split must tell apart: embedding, input matrix, block matrices, conv, norm, buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, WIDTH)
        self.project_in = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.conv.weight = nn.Parameter(self.conv.weight.detach().contiguous(memory_format=torch.channels_last))
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        x = self.project_in(x) + self.embedding.weight.sum(0)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        picture = self.conv(rearrange(x, "b (c h w) -> b c h w", c=2, h=2))
        return self.dropout(rearrange(picture, "b c h w -> b (c h w)"))


class ToyWorld(nn.Module):
    aggregator = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.config = ToyConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.codec = nn.Sequential(OrderedDict(encoder=nn.Linear(4, 4)))
            self.transformer, self.heads = ToyTransformer(), nn.Linear(WIDTH, 1)


class ToyStage:
    """Regression on noisy targets. With `kill_at` the process dies (or is told to stop) while drawing that batch."""

    name = "toy"

    def __init__(
        self, batch_size: int = 4, noise: float = 0.1, kill_at: int = -1, signal_number: int = signal.SIGKILL
    ) -> None:
        self.batch_size, self.noise, self.kill_at, self.signal_number = batch_size, noise, kill_at, signal_number

    def trainable(self, model: ToyWorld) -> nn.Module:
        return model.transformer

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        if step == self.kill_at:
            os.kill(os.getpid(), self.signal_number)
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(self.batch_size * world_size, 4, generator=generator)
        return {"x": x[rank * self.batch_size : (rank + 1) * self.batch_size]}

    def loss(self, model: ToyWorld, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        target = batch["x"].sum(1, keepdim=True)
        target = target + self.noise * torch.randn(target.shape, generator=generator)
        error = (model.transformer(model.codec(batch["x"])) - target).square().mean()
        return {"loss": error, "error": error}

    def samples(self, model: ToyWorld, step: int) -> dict[str, np.ndarray]:
        torch.rand(3)  # samples may draw random numbers: training must not notice
        grid = np.full((16, 16, 3), step % 256, np.uint8)
        return {"grid": grid, "rollout": np.stack([grid] * 2)}


def toy_config(**changes: object) -> TrainConfig:
    """Ten quick steps with a checkpoint at 4 and 8."""
    base = {"steps": 10, "batch_size": 4, "lr": 0.01, "warmup": 2, "checkpoint_every": 4, "sample_every": 0}
    return TrainConfig(**{**base, "log_every": 3, "device": "cpu", "tensorboard": False, **changes})


def train_toy(
    stage: ToyStage, model: ToyWorld, config: TrainConfig, out: Path, provenance: dict[str, Any] | None = None
) -> ToyWorld:
    """train() for the stand-ins, which are no WorldModel to the type checker."""
    return cast(Any, train)(stage, model, config, out, provenance)


def main() -> None:
    """toys.py OUT KILL_AT SIGNAL NOISE DROPOUT [key=value ...]"""
    out, kill_at, number, noise, dropout = sys.argv[1:6]
    model = ToyWorld()
    model.transformer.dropout.p = float(dropout)
    stage = ToyStage(noise=float(noise), kill_at=int(kill_at), signal_number=int(number))
    average = train_toy(stage, model, override(toy_config(), parse_assignments(sys.argv[6:])), Path(out))
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    left = [name for name in threads if "gloo" in name]
    assert not left, f"a process group outlives its run; Python may be aborted at its end: {left}"
    save_file(detach(average.state_dict()), Path(out) / f"rank_{os.environ.get('RANK', 0)}.safetensors")


if __name__ == "__main__":
    main()
