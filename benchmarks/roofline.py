"""How far a step is from what the machine could do: its work, counted, against the machine's own peaks, measured.

Work is counted on the plain modules and put over the time of the fast ones; counts do not depend on weights' values.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import wait_for
from benchmarks.horizon import open_grey_room
from worldscape.config import WorldConfig
from worldscape.engine import WorldEngine
from worldscape.engines import open_engine
from worldscape.transformer import Levels, PlacedHistory
from worldscape.world import WorldModel

PEAK_SECONDS = 2.0  # for which each peak is looked for


class Work(NamedTuple):
    """Of one step: floating-point operations and bytes of keys and values for each world, bytes of weights for all."""

    flops: int
    history_bytes: int
    weight_bytes: int


class Peak(NamedTuple):
    """What the machine reaches: operations a second in a matrix product, bytes a second in a copy, float32 both."""

    flops_per_second: float
    bytes_per_second: float


def count_work(config: WorldConfig, num_calls: int, hands: str | None = None, sampler: str = "blockwise") -> Work:
    """The work of a step whose frames take num_calls model calls each to refine."""
    # Attention spelled out: the counter knows no fused kernel of a CPU.
    spelled = replace(config, transformer=replace(config.transformer, attention="reference"))
    with torch.random.fork_rng(devices=[]):
        model = WorldModel(spelled)
    engine = open_engine(model, 1, sampler=sampler, steps_per_frame=num_calls, use_fast=False, hands=hands)
    open_grey_room(engine)
    with FlopCounterMode(display=False) as counter, counted_bytes(engine) as read:
        engine.step(torch.zeros(1, 6))
    return Work(counter.get_total_flops(), read["history"], read["weights"])


@contextmanager
def counted_bytes(engine: WorldEngine) -> Iterator[Counter[str]]:
    """Bytes that the engine's plain modules read while the context lasts: a layer's `weights` each time it runs,
    the `history` of keys and values at each model call."""
    read: Counter[str] = Counter()

    def note_weights(layer: nn.Module, inputs: Any) -> None:
        read["weights"] += sum(parameter.nbytes for parameter in layer.parameters(recurse=False))

    refine = engine.generator.refine

    def note_history(latent: Tensor, level: Levels, view: Any, positions: Tensor, history: PlacedHistory) -> Any:
        read["history"] += history.keys.nbytes + history.values.nbytes
        return refine(latent, level, view, positions, history)

    handles = [layer.register_forward_pre_hook(note_weights) for layer in engine.model.modules()]
    try:
        with patch.object(engine.generator, "refine", note_history):
            yield read
    finally:
        for handle in handles:
            handle.remove()


def measure_peak(device: str, threads: int = 0, budget: float = PEAK_SECONDS) -> Peak:
    """The best of what fits into `budget` seconds each. threads 0 leaves torch's own choice."""
    if threads:
        torch.set_num_threads(threads)
    side, numbers = (8192, 2**28) if device.startswith("cuda") else (2048, 2**26)  # no cache holds so many numbers
    first, second = torch.rand(2, side, side, device=device)
    product, source = torch.empty_like(first), torch.rand(numbers, device=device)
    copy = torch.empty_like(source)
    return Peak(
        flops_per_second=2 * side**3 / best_seconds(lambda: torch.mm(first, second, out=product), device, budget),
        bytes_per_second=2 * source.nbytes / best_seconds(lambda: copy.copy_(source), device, budget),
    )


def best_seconds(work: Callable[[], Any], device: str, budget: float) -> float:
    """Least time that `work` takes, of as many times as fit into `budget` seconds (at least once), after a first."""
    work()
    wait_for(device)
    best, end = math.inf, time.perf_counter() + budget
    while best == math.inf or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return best


def place_under_roof(work: Work, peak: Peak, step_seconds: float, num_envs: int) -> dict[str, float]:
    """A step of num_envs worlds that takes step_seconds: its work, its rates, and the share of its time that the
    machine's peaks would let it take."""
    flops, read = num_envs * work.flops, work.weight_bytes + num_envs * work.history_bytes
    least = max(flops / peak.flops_per_second, read / peak.bytes_per_second)
    return {
        "step_gflop": flops / 1e9,
        "step_read_mb": read / 1e6,
        "gflop_per_second": flops / step_seconds / 1e9,
        "gb_per_second": read / step_seconds / 1e9,
        "roofline_share": least / step_seconds,
    }
