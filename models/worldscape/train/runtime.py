"""The process around a run: ranks, device, threads, random state and stop signals, all put back afterwards."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from worldscape.train.config import TrainConfig


@dataclass(frozen=True)
class Place:
    """Where this process stands: rank of world_size (torchrun), and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """True on all ranks when it is true on one."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared)

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over ranks of scalar tensors; the same keys on all ranks."""
        if self.world_size == 1 or not values:
            return values
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.world_size, strict=True))


@contextmanager
def occupy(config: TrainConfig) -> Iterator[Place]:
    """Set up ranks, device, threads and random state for a run; put all of it back at the end."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device(config.device)
    starts_group = world_size > 1 and not dist.is_initialized()
    threads = torch.get_num_threads()
    if starts_group:
        # Imported while there is no group: the defaults of its functions would keep one for ever.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield Place(rank, world_size, device)
        if starts_group:
            dist.barrier()  # who leaves while another is still saving is now and then aborted by gloo
    finally:
        torch.set_num_threads(threads)
        if starts_group:
            # A group that is still there when Python ends has threads, which are now and then aborted then: its
            # last holders (DistributedDataParallel is in a cycle) must be gone before.
            dist.destroy_process_group()
            gc.collect()


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" -> the device of this rank. Raises ValueError when there is no GPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device = 'cuda' but torch sees no GPU: use device=cpu or device=auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def rows_at_once(device: torch.device) -> int:
    """How many recordings, clips or frames are handled together there: a GPU takes as long for many as for few."""
    return 512 if device.type == "cuda" else 64


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that is a pure function of (seed, step, rank), well mixed."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class StopSignals:
    """Within this context SIGTERM and SIGINT ask for a stop (`name` is set); a second one acts as before."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread only; elsewhere they keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
