"""Speed and memory of the learned world as an environment, from `gym.make` to a 2,000-step dream.

    python benchmarks/env_steps.py --num-envs 1,4,16 --steps-per-frame 1,2 --device cpu --out runs/speed

Each setting runs in a fresh process. Steps are timed one by one after a warm-up, resets apart; then the same steps are
divided among their parts by timers, and their work is set against the machine's peaks. The last line is one JSON
object, its names explained in docs/metrics.md.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it would not find its neighbours

from benchmarks.clock import wait_for
from benchmarks.sweep import (
    EARLY_STEP,
    Setting,
    metric_rows,
    name_metrics,
    read_sweep,
    save_csv,
    throughput_curves,
)

WARM_UP_STEPS = 20
AROUND = 50  # steps on either side of the step whose time is a median


class Timing(NamedTuple):
    """Seconds of every step and reset, and model calls made by the steps."""

    steps: np.ndarray
    resets: np.ndarray
    model_calls: int


def measure(setting: Setting) -> dict[str, float]:
    """All metrics of one setting, and what `add_roofline` needs."""
    begin = time.perf_counter()
    import torch

    from worldscape.checkpoint import load_world

    if setting.threads:
        torch.set_num_threads(setting.threads)
    imported = time.perf_counter()
    model = load_world(setting.weights, setting.device)
    loaded, bytes_loaded = time.perf_counter(), held_bytes(setting.device)
    env = make_env(setting)
    env.reset(seed=0)
    wait_for(setting.device)
    first_frame = time.perf_counter()
    found = {"import_seconds": imported - begin, "load_seconds": loaded - imported}
    found["first_frame_seconds"] = first_frame - imported
    draw = choose_draw(env)
    timing = time_steps(env, setting.steps, setting.num_envs, draw=draw, device=setting.device)
    found |= summarise(timing, setting.num_envs)
    found["memory_mb_loaded"] = bytes_loaded / 2**20
    found["memory_mb_per_env"] = (held_bytes(setting.device) - bytes_loaded) / 2**20 / setting.num_envs
    if setting.split_steps:
        found |= explain(setting, env, draw)
    env.close()
    if setting.horizon:
        found |= measure_long_dream(setting)
    del model
    return found


def explain(setting: Setting, env: Any, draw: "Draw") -> dict[str, float]:
    """Where the time of a step of this environment goes, and the work that is done in it."""
    from benchmarks.roofline import count_work
    from benchmarks.time_split import split_time

    core, num_steps = env.unwrapped._core, min(setting.steps, setting.split_steps)
    work = count_work(core.engine.config, len(core.engine.levels) - 1, core.engine.hands, setting.sampler)

    def run(around: Callable[[], AbstractContextManager[None]]) -> None:
        time_steps(env, num_steps, setting.num_envs, draw=draw, device=setting.device, around=around)

    return {**work._asdict(), **split_time(core, run, setting.device)}


def make_env(setting: Setting, **keywords: Any) -> Any:
    """The environment as users make it: gym.make for one, gym.make_vec (resetting when asked) for more and tensors."""
    import gymnasium as gym

    import ws_gym  # noqa: F401  (registers the ids)

    options = {**setting.keywords, **keywords}
    if not setting.is_vector:
        return gym.make(setting.env, **options)
    vector = {"num_envs": setting.num_envs, "autoreset_mode": "DISABLED", "output": setting.output}
    return gym.make_vec(setting.env, **vector, **options)


def step_env(env: Any, actions: np.ndarray) -> tuple[Any, ...]:
    """Step with one action for each environment; a single environment takes the first."""
    return env.step(actions if hasattr(env, "num_envs") else actions[0])


def as_array(value: Any) -> np.ndarray:
    """A number, an array or a tensor of any device -> an array."""
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Random generator, number of environments -> an action for each."""


def draw_keys(rng: np.random.Generator, num_envs: int) -> np.ndarray:
    """Any of the nine keys."""
    return rng.integers(9, size=num_envs)


def choose_draw(env: Any) -> Draw:
    """Random actions for an environment: keys, or numbers in [-1, 1]."""
    space = env.single_action_space if hasattr(env, "num_envs") else env.action_space
    if not space.shape:
        return draw_keys
    return lambda rng, num_envs: rng.uniform(-1.0, 1.0, (num_envs, *space.shape)).astype(np.float32)


def time_steps(
    env: Any,
    num_steps: int,
    num_envs: int,
    after: Callable[[int], None] | None = None,
    draw: Draw = draw_keys,
    *,
    device: str = "cpu",
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Timing:
    """Step random actions in a reset env, WARM_UP_STEPS untimed first; `after(step)` runs between timed steps.

    device: a step lasts until it is done. around: makes a context for each step, the warm-up's included.
    """
    rng = np.random.default_rng(0)
    steps, resets, model_calls = [], [], 0
    for step in range(-WARM_UP_STEPS, num_steps):
        actions = draw(rng, num_envs)
        with around():
            begin = time.perf_counter()
            _, _, terminated, truncated, info = step_env(env, actions)
            wait_for(device)
            seconds = time.perf_counter() - begin
        if step >= 0:
            steps.append(seconds)
            model_calls += int(as_array(info["model_calls"]).max())
        ended = as_array(terminated) | as_array(truncated)
        if ended.any():
            begin = time.perf_counter()
            env.reset(options={"reset_mask": ended} if hasattr(env, "num_envs") else None)
            wait_for(device)
            resets.append(time.perf_counter() - begin)
        if after is not None:
            after(step)
    return Timing(np.array(steps), np.array(resets), model_calls)


def summarise(timing: Timing, num_envs: int) -> dict[str, float]:
    """Throughput, latency percentiles in milliseconds, and counts of steps, frames and model calls."""
    frames = len(timing.steps) * num_envs
    found = {"env_steps_per_second": frames / timing.steps.sum()}
    for percent in (50, 95, 99):
        found[f"step_ms_p{percent}"] = 1000 * float(np.percentile(timing.steps, percent))
    found["reset_ms"] = 1000 * float(np.median(timing.resets)) if len(timing.resets) else float("nan")
    counts = {"steps": len(timing.steps), "frames": frames, "model_calls": timing.model_calls}
    return {**found, **counts, "model_calls_per_step": timing.model_calls / len(timing.steps)}


def measure_long_dream(setting: Setting) -> dict[str, float]:
    """One dream of `horizon` steps without an end: growth of resident memory, and its step time over that of a young
    one. The two take turns, since the machine's own speed drifts by more than is asked for within a minute."""
    import torch

    def no_reward(frame: Any, elapsed: Any) -> Any:
        return torch.zeros(setting.num_envs, device=setting.device)

    def open_env() -> Any:
        env = make_env(setting, task=no_reward, max_episode_steps=setting.horizon + WARM_UP_STEPS + 2 * AROUND + 1)
        env.reset(seed=0)
        return env

    memory: dict[int, int] = {}

    def note_memory(step: int) -> None:
        if step in (EARLY_STEP, setting.horizon - 1):
            memory[step] = held_bytes(setting.device)

    old = open_env()
    draw = choose_draw(old)
    time_steps(old, setting.horizon, setting.num_envs, note_memory, draw)
    young = open_env()
    time_steps(young, EARLY_STEP - AROUND, setting.num_envs, draw=draw)
    late, early = np.median(take_turns([old, young], setting.num_envs, draw, setting.device), axis=0)
    old.close()
    young.close()
    return {
        "horizon": setting.horizon,
        "step_time_ratio": float(late / early),
        "memory_growth_mb": (memory[setting.horizon - 1] - memory[EARLY_STEP]) / 2**20,
    }


def take_turns(envs: Sequence[Any], num_envs: int, draw: Draw, device: str = "cpu") -> np.ndarray:
    """Seconds of 2 * AROUND steps of each environment, one step after the other: [2 * AROUND, E]."""
    rng, seconds = np.random.default_rng(1), np.zeros((2 * AROUND, len(envs)))
    for row in seconds:
        actions = draw(rng, num_envs)
        for place, env in enumerate(envs):
            begin = time.perf_counter()
            step_env(env, actions)
            wait_for(device)
            row[place] = time.perf_counter() - begin
    return seconds


def held_bytes(device: str) -> int:
    """Memory that is held now: by torch on a CUDA device, else by this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device)
    return resident_bytes()


def resident_bytes() -> int:
    """Memory that this process holds now; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result in a fresh process, so that load time and memory are its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def add_roofline(results: Sequence[dict[str, float]], settings: Sequence[Setting]) -> None:
    """Replace the work that each result has counted by what it says against the machine's peaks, measured here."""
    from benchmarks.roofline import Peak, Work, measure_peak, place_under_roof

    peak: Peak = run_apart(measure_peak, settings[0].device, settings[0].threads)
    for setting, found in zip(settings, results, strict=True):
        work = Work(*(int(found.pop(name)) for name in Work._fields))
        found |= place_under_roof(work, peak, found["step_ms_p50"] / 1000, setting.num_envs)
        found["peak_gflop_per_second"] = peak.flops_per_second / 1e9
        found["peak_gb_per_second"] = peak.bytes_per_second / 1e9


def save_sweep(out: Path, settings: Sequence[Setting], results: Sequence[dict[str, float]]) -> None:
    """Write the sweep to env_steps.csv, and its throughput to env_steps.png."""
    from worldscape.evaluate.pictures import save_plot

    save_csv(out / "env_steps.csv", settings, results)
    ticks, curves = throughput_curves(settings, results)
    save_plot(out / "env_steps.png", curves, x="environments", y="env steps/s", ticks=ticks)
    print(f"wrote {out / 'env_steps.csv'} and {out / 'env_steps.png'}", end="\n\n")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, end with one JSON line."""
    begin, (settings, out) = time.perf_counter(), read_sweep(arguments)
    import torch

    from worldscape.evaluate.report import Table, print_report, report_on

    results: list[dict[str, float]] = []
    for setting in settings:
        try:
            results.append(run_apart(measure, setting))
        except ValueError as error:
            sys.exit(f"env_steps: error: {error}")
        print(f"{setting.title} measured", file=sys.stderr, flush=True)
    if settings[0].split_steps:
        add_roofline(results, settings)
    if out is not None:
        save_sweep(out, settings, results)
    columns, first = ["", *[setting.title for setting in settings]], settings[0]
    if first.threads:
        torch.set_num_threads(first.threads)  # what the report names is what the measuring processes had
    metrics = name_metrics(settings, results)
    report = report_on("env_steps", first.weights, first.device, time.perf_counter() - begin, metrics)
    print_report(report, [Table(title="environment steps", columns=columns, rows=metric_rows(results))])


if __name__ == "__main__":
    main()
