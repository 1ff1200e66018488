"""Cost of memory over a very long dream, by policy, and of worlds as values: forks, snapshots, restores.

    python benchmarks/horizon.py --steps 10000

One world wanders at random under each memory policy. Step time and bytes are compared between step 200 and the end; the
pages of the pool are drawn over the frames seen. Then one world of 500 steps is forked into 64 slots. The last line is
one JSON object, its names explained in docs/metrics.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it would not find its neighbours

from benchmarks.env_steps import AROUND, resident_bytes
from worldscape.checkpoint import load_world
from worldscape.conditioning.controls import discrete_controls
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.evaluate.memory import with_policy
from worldscape.evaluate.pictures import save_plot
from worldscape.evaluate.report import Table, print_report, report_on
from worldscape.memory import policy as decisions
from worldscape.progress import Progress
from worldscape.world import WorldModel

EARLY = 200  # the step that the end is compared with
FULL_LIMIT = 2000  # frames that the policy `full` keeps at most: it is an ablation and grows without bound
DECISIONS = (
    "cell_numbers",
    "shown_cells",
    "choose_covers",
    "explained_share",
    "most_redundant",
    "longest_held",
    "world_probes",
)


class LongDream(NamedTuple):
    """Of every step: seconds [S], of which the policy took deciding [S], pages in use [S]; resident bytes of the
    process at step EARLY and at the end.
    """

    seconds: np.ndarray
    deciding: np.ndarray
    pages: np.ndarray
    resident: tuple[int, int]


def dream_long(engine: WorldEngine, num_steps: int, seed: int = 0) -> LongDream:
    """One world that wanders with sticky random keys through a flat grey room, each step timed."""
    open_grey_room(engine)
    rng, table = np.random.default_rng(seed), discrete_controls(engine.config.controls)
    seconds, deciding, pages, early = np.zeros(num_steps), np.zeros(num_steps), np.zeros(num_steps, int), 0
    action = 0
    with clocked_decisions() as spent, Progress("steps dreamed", total=num_steps) as progress:
        for step in range(num_steps):
            action = int(rng.integers(9)) if rng.random() < 0.3 else action
            control = torch.from_numpy(table[action]).float()[None]
            begin = time.perf_counter()
            engine.step(control)
            seconds[step] = time.perf_counter() - begin
            deciding[step] = sum(spent)
            spent.clear()
            pages[step] = engine.state.memory.store.num_used()
            if step == EARLY:
                early = resident_bytes()
            progress.update()
    return LongDream(seconds, deciding, pages, (early, resident_bytes()))


@contextmanager
def clocked_decisions() -> Iterator[list[float]]:
    """The seconds of every call of the memory policy's functions, while the context lasts. On the CPU only: nothing
    waits for a GPU."""
    spent: list[float] = []

    def clocked(decide: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(decide)
        def run(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return decide(*arguments, **named)
            finally:
                spent.append(time.perf_counter() - begin)

        return run

    with ExitStack() as stack:
        for name in DECISIONS:
            stack.enter_context(patch.object(decisions, name, clocked(getattr(decisions, name))))
        yield spent


def open_grey_room(engine: WorldEngine) -> None:
    """Open every slot on the same start: a picture of coarse random colours on a wall 3 m ahead."""
    size, slots = engine.config.codec.size, engine.num_slots
    blocks = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frame = blocks.repeat_interleave(size // 8, 0).repeat_interleave(size // 8, 1)
    depth = torch.full((slots, 1, size, size), 3.0)
    engine.open(Start(frame.expand(slots, 1, -1, -1, -1), depth), torch.arange(slots))


def summarise(dream: LongDream) -> dict[str, float]:
    """Milliseconds a step, late over early; the policy's share of them; pages and bytes at the end; growth of resident
    memory."""
    return {
        "step_ms": 1000 * float(np.median(dream.seconds)),
        "policy_share": float(np.median(dream.deciding / dream.seconds)),
        "step_time_ratio": step_time_ratio(dream.seconds),
        "pages": float(dream.pages[-1]),
        "pages_ratio": float(dream.pages[-1] / dream.pages[EARLY]),
        "memory_growth_mb": (dream.resident[1] - dream.resident[0]) / 2**20,
    }


def step_time_ratio(seconds: np.ndarray) -> float:
    """Seconds of every step [S] -> median of the last 2 * AROUND over that of as many around step EARLY."""
    return float(np.median(seconds[-2 * AROUND :]) / np.median(seconds[EARLY - AROUND : EARLY + AROUND]))


def measure_forks(model: WorldModel, num_forks: int, num_steps: int, device: str) -> dict[str, float]:
    """Fork a world of num_steps into num_forks slots: milliseconds a slot, pages against as many copies."""
    alone = WorldEngine(model, 1, device=device)
    dream_long(alone, num_steps)
    begin = time.perf_counter()
    saved = alone.snapshot()
    snapshot_ms = 1000 * (time.perf_counter() - begin)
    begin = time.perf_counter()
    data = saved.to_bytes()
    bytes_ms = 1000 * (time.perf_counter() - begin)
    engine = WorldEngine(model, num_forks, device=device)
    begin = time.perf_counter()
    engine.restore(saved, torch.tensor([0]))
    restore_ms = 1000 * (time.perf_counter() - begin)
    rows = torch.arange(1, num_forks)
    engine.state.memory.fork(0, rows)  # once, so that nothing is timed that happens once
    begin = time.perf_counter()
    engine.fork(0, rows)
    fork_ms = 1000 * (time.perf_counter() - begin)
    store = engine.state.memory.store
    return {
        "fork_ms_per_slot": fork_ms / len(rows),
        "fork_pages_share": store.num_used() / (num_forks * alone.state.memory.store.num_used()),
        "snapshot_ms": snapshot_ms,
        "snapshot_to_bytes_ms": bytes_ms,
        "snapshot_mb": len(data) / 2**20,
        "restore_ms": restore_ms,
    }


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line. Exits with a message for counts that cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights")
    parser.add_argument("--policies", default="maco,local,sink+local", help="comma-separated; also full")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--forks", type=int, default=64)
    parser.add_argument("--fork-steps", type=int, default=500, help="age of the world that is forked")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, help="PNG of the pages in use over the frames seen")
    options = parser.parse_args(arguments)
    if options.steps < EARLY + 4 * AROUND or options.forks < 2 or options.fork_steps <= EARLY:
        parser.error(f"--steps is at least {EARLY + 4 * AROUND}, --forks 2, --fork-steps {EARLY + 1}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, end with one JSON line."""
    begin, options = time.perf_counter(), read_options(arguments)
    metrics: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}
    policies = options.policies.split(",")
    try:
        model = load_world(options.weights, options.device)
        for policy in policies:
            steps = min(options.steps, FULL_LIMIT) if policy == "full" else options.steps
            memory = with_policy(model.config.memory, policy, steps)
            dream = dream_long(WorldEngine(model, 1, device=options.device, memory=memory), steps)
            metrics |= {f"{name}_{policy}": value for name, value in summarise(dream).items()}
            curves[policy] = dream.pages
        metrics |= measure_forks(model, options.forks, options.fork_steps, options.device)
    except ValueError as error:
        sys.exit(f"horizon: error: {error}")
    if options.plot:
        save_plot(options.plot, curves, x="frames seen", y="pages in use")
        print(f"wrote {options.plot}", end="\n\n")
    names = ("step_ms", "policy_share", "step_time_ratio", "pages", "pages_ratio", "memory_growth_mb")
    rows = [[policy, *[metrics[f"{name}_{policy}"] for name in names]] for policy in policies]
    forks = [[name, value] for name, value in metrics.items() if name.startswith(("fork", "snapshot", "restore"))]
    tables = [
        Table(title=f"{options.steps} steps of one world", columns=["policy", *names], rows=rows),
        Table(title=f"{options.forks} forks of a world of {options.fork_steps} steps", columns=["", ""], rows=forks),
    ]
    report = report_on("horizon", options.weights, options.device, time.perf_counter() - begin, metrics)
    print_report(report, tables)


if __name__ == "__main__":
    main()
