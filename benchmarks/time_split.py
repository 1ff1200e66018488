"""Where the time of an environment's step goes: timers around what the engine calls.

They are put on for a run of their own and taken off again, so that no throughput is measured through them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from benchmarks.clock import Clock
from worldscape import frame_maker
from worldscape.memory import world_memory
from worldscape.memory.world_memory import WorldMemory
from worldscape.rolling import RollingEngine
from ws_gym.core import WorldCore

MODEL = ("heads", "conditioning", "reprojection", "encode", "history", "denoise", "decode", "commit")
OUTSIDE_MODEL = ("memory", "task", "host")
PARTS: tuple[str, ...] = (*MODEL, *OUTSIDE_MODEL)
NETWORKS = ("encode", "denoise", "decode", "commit")
"""Parts of a step, as docs/metrics.md explains them; `host` is what no timer is around. NETWORKS: generator, codec."""

Around = Callable[[], AbstractContextManager[None]]


def split_time(core: WorldCore, run: Callable[[Around], Any], device: str) -> dict[str, float]:
    """Milliseconds of each part of a step, and the share outside the model. `run` steps the core's environment, each
    step within the context that it is given."""
    clock, seconds, steps = Clock(device), dict.fromkeys(PARTS, 0.0), 0

    @contextmanager
    def around() -> Iterator[None]:
        nonlocal steps
        clock.begin("host")
        yield
        clock.end()
        for part, spent in clock.read().items():
            seconds[part] += spent
        steps += 1

    with clocked(core, clock):
        run(around)
    return summarise_split(seconds, steps)


def summarise_split(seconds: Mapping[str, float], num_steps: int) -> dict[str, float]:
    """Seconds of each part in num_steps steps -> its mean milliseconds, their sum, and the shares outside the model
    and, stricter, outside generator and codec."""
    total = sum(seconds.values())
    found = {f"split_ms_{part}": 1000 * seconds[part] / num_steps for part in PARTS}
    return {
        **found,
        "split_ms_step": 1000 * total / num_steps,
        "outside_model_share": sum(seconds[part] for part in OUTSIDE_MODEL) / total,
        "outside_networks_share": sum(seconds[part] for part in PARTS if part not in NETWORKS) / total,
    }


@contextmanager
def clocked(core: WorldCore, clock: Clock) -> Iterator[None]:
    """Timers on all parts of the core's steps, while the context lasts."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(core.engine, "graphs", None))  # a graph is one call, with no parts
        for owner, name, part in timed_calls(core):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), part, clock)))
        yield


def timed_calls(core: WorldCore) -> list[tuple[Any, str, str]]:
    """Owner, name of its function, and the part of a step that the function is; inner ones interrupt outer ones."""
    engine = core.engine
    assert engine is not None
    heads = engine.model.heads
    calls = [
        (engine, "realise", "heads"),
        (engine, "realise_hands", "heads"),
        (heads.events, "forward", "heads"),
        (engine, "look", "conditioning"),
        (WorldMemory, "recall", "memory"),
        (engine, "rebuild", "reprojection"),
        (world_memory, "split_layers", "reprojection"),
        (world_memory, "owned_by", "reprojection"),
        (engine.codec, "encode_anchor", "encode"),
        (engine, "read", "history"),
        (engine, "denoise", "denoise"),
        (engine.codec, "decode", "decode"),
        (frame_maker, "sharpen", "reprojection"),
        (frame_maker, "settle", "reprojection"),
        (engine, "commit", "commit"),
        (WorldMemory, "append", "memory"),
        (core.task, "step", "task"),
    ]
    if isinstance(engine, RollingEngine):  # its call commits the frame of the step before as well
        calls += [(engine, "refine", "denoise"), (WorldMemory, "read_pending", "history")]
        calls += [(WorldMemory, "take_in", "memory")]
    return calls if heads.things is None else [*calls, (heads.things, "forward", "heads")]


def timed(function: Callable[..., Any], part: str, clock: Clock) -> Callable[..., Any]:
    """The function, its time given to `part` when it is called within a step."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        if not clock.is_running:
            return function(*arguments, **named)
        clock.begin(part)
        try:
            return function(*arguments, **named)
        finally:
            clock.end()

    return run
