"""Speed and memory of the learned world as an environment, from `gym.make` to a 2,000-step dream.

    python benchmarks/env_steps.py --num-envs 1,4,16 --device cpu

Each number of environments runs in a fresh process. Steps are timed one by one after a warm-up; resets are timed apart.
An env step makes one frame per environment; a model call is one transformer forward for all of them, counted apart.
The last line is one JSON object, its names explained in docs/metrics.md.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

WARM_UP_STEPS = 20
EARLY_STEP = 100  # the step that the end of the long dream is compared with
AROUND = 50  # steps on either side of the step whose time is a median


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What one process measures. threads 0 leaves torch's own choice; horizon 0 skips the long dream."""

    num_envs: int
    weights: str
    device: str
    steps: int
    horizon: int
    threads: int
    starts: str = "train"
    steps_per_frame: int | None = None
    env: str = "WorldScape-Nav-v0"

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of gym.make and gym.make_vec."""
        shared = {"weights": self.weights, "device": self.device, "starts": self.starts}
        return {**shared, "steps_per_frame": self.steps_per_frame}


class Timing(NamedTuple):
    """Seconds of every step and reset, and model calls made by the steps."""

    steps: np.ndarray
    resets: np.ndarray
    model_calls: int


def measure(setting: Setting) -> dict[str, float]:
    """All metrics of one number of environments, their names ending in _n<num_envs>."""
    begin = time.perf_counter()
    import torch

    import ws_gym  # noqa: F401  (registers the ids)
    from worldscape.checkpoint import load_world

    if setting.threads:
        torch.set_num_threads(setting.threads)
    imported = time.perf_counter()
    model = load_world(setting.weights, setting.device)
    loaded, bytes_loaded = time.perf_counter(), resident_bytes()
    env = make_env(setting)
    env.reset(seed=0)
    first_frame = time.perf_counter()
    found = {"import_seconds": imported - begin, "load_seconds": loaded - imported}
    found["first_frame_seconds"] = first_frame - imported
    timing = time_steps(env, setting.steps, setting.num_envs, draw=choose_draw(setting, env))
    found |= summarise(timing, setting.num_envs)
    found["memory_mb_loaded"] = bytes_loaded / 2**20
    found["memory_mb_per_env"] = (resident_bytes() - bytes_loaded) / 2**20 / setting.num_envs
    env.close()
    if setting.horizon:
        found |= measure_long_dream(setting)
    del model
    return {f"{name}_n{setting.num_envs}": value for name, value in found.items()}


def make_env(setting: Setting, **keywords: Any) -> Any:
    """The environment as users make it: gym.make for one, gym.make_vec (resetting when asked) for more."""
    import gymnasium as gym

    if setting.num_envs == 1:
        return gym.make(setting.env, **setting.keywords, **keywords)
    return gym.make_vec(
        setting.env, num_envs=setting.num_envs, autoreset_mode="DISABLED", **setting.keywords, **keywords
    )


Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Random generator, number of environments -> an action for each."""


def draw_keys(rng: np.random.Generator, num_envs: int) -> np.ndarray:
    """Any of the nine keys."""
    return rng.integers(9, size=num_envs)


def choose_draw(setting: Setting, env: Any) -> Draw:
    """Random actions for an environment: keys, or numbers in [-1, 1]."""
    space = env.action_space if setting.num_envs == 1 else env.single_action_space
    if not space.shape:
        return draw_keys
    return lambda rng, num_envs: rng.uniform(-1.0, 1.0, (num_envs, *space.shape)).astype(np.float32)


def time_steps(
    env: Any, num_steps: int, num_envs: int, after: Callable[[int], None] | None = None, draw: Draw = draw_keys
) -> Timing:
    """Step random actions in a reset env, WARM_UP_STEPS untimed first; `after(step)` runs between timed steps."""
    rng = np.random.default_rng(0)
    steps, resets, model_calls = [], [], 0
    for step in range(-WARM_UP_STEPS, num_steps):
        action = draw(rng, num_envs)
        begin = time.perf_counter()
        _, _, terminated, truncated, info = env.step(action[0] if num_envs == 1 else action)
        seconds = time.perf_counter() - begin
        if step >= 0:
            steps.append(seconds)
            model_calls += int(np.max(info["model_calls"]))
        ended = np.logical_or(terminated, truncated)
        if np.any(ended):
            begin = time.perf_counter()
            env.reset(options=None if num_envs == 1 else {"reset_mask": ended})
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
        return torch.zeros(setting.num_envs)

    def open_env() -> Any:
        env = make_env(setting, task=no_reward, max_episode_steps=setting.horizon + WARM_UP_STEPS + 2 * AROUND + 1)
        env.reset(seed=0)
        return env

    memory: dict[int, int] = {}

    def note_memory(step: int) -> None:
        if step in (EARLY_STEP, setting.horizon - 1):
            memory[step] = resident_bytes()

    old = open_env()
    draw = choose_draw(setting, old)
    time_steps(old, setting.horizon, setting.num_envs, note_memory, draw)
    young = open_env()
    time_steps(young, EARLY_STEP - AROUND, setting.num_envs, draw=draw)
    late, early = np.median(take_turns([old, young], setting.num_envs, draw), axis=0)
    old.close()
    young.close()
    return {
        "horizon": setting.horizon,
        "step_time_ratio": float(late / early),
        "memory_growth_mb": (memory[setting.horizon - 1] - memory[EARLY_STEP]) / 2**20,
    }


def take_turns(envs: Sequence[Any], num_envs: int, draw: Draw) -> np.ndarray:
    """Seconds of 2 * AROUND steps of each environment, one step after the other: [2 * AROUND, E]."""
    rng, seconds = np.random.default_rng(1), np.zeros((2 * AROUND, len(envs)))
    for row in seconds:
        action = draw(rng, num_envs)
        for place, env in enumerate(envs):
            begin = time.perf_counter()
            env.step(action[0] if num_envs == 1 else action)
            row[place] = time.perf_counter() - begin
    return seconds


def resident_bytes() -> int:
    """Memory that this process holds now; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def measure_apart(setting: Setting) -> dict[str, float]:
    """`measure` in a fresh process, so that load time and memory are its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, setting).result()


def read_settings(arguments: list[str] | None = None) -> list[Setting]:
    """Command line -> one Setting per number of environments; the long dream belongs to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="WorldScape-Nav-v0", help="id of a dreamed environment")
    parser.add_argument("--num-envs", default="1,4,16", help="comma-separated numbers of environments")
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=300, help="timed steps")
    parser.add_argument("--horizon", type=int, default=0, help="steps of the long dream, 200 or more; 0 for none")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 for torch's own choice")
    parser.add_argument("--starts", default="train", help="the environment's option: train, heldout, drawn or a path")
    parser.add_argument("--steps-per-frame", type=int, help="denoising model calls a frame; default: the weights' own")
    options = parser.parse_args(arguments)
    counts = [int(count) for count in options.num_envs.split(",") if count.isdigit() and int(count) > 0]
    if not counts or len(counts) != len(options.num_envs.split(",")):
        parser.error(f"--num-envs {options.num_envs} must be whole numbers of at least 1, such as 1,4,16")
    if options.steps < 1 or options.threads < 0 or (options.horizon and options.horizon < 2 * EARLY_STEP):
        parser.error(f"--steps and --threads cannot be negative, and --horizon is 0 or at least {2 * EARLY_STEP}")
    shared = {
        name: vars(options)[name]
        for name in ("weights", "device", "steps", "threads", "starts", "steps_per_frame", "env")
    }
    horizons = [options.horizon] + [0] * (len(counts) - 1)
    return [Setting(num_envs=n, horizon=horizon, **shared) for n, horizon in zip(counts, horizons, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, end with one JSON line."""
    import torch

    from worldscape.evaluate.report import Table, print_report, report_on

    begin, settings = time.perf_counter(), read_settings(arguments)
    metrics: dict[str, float] = {}
    for setting in settings:
        try:
            metrics |= measure_apart(setting)
        except ValueError as error:
            sys.exit(f"env_steps: error: {error}")
        print(f"{setting.num_envs} environments measured", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(name.rsplit("_n", 1)[0] for name in metrics))
    columns = ["", *[f"n={setting.num_envs}" for setting in settings]]
    rows = [[name, *[metrics.get(f"{name}_n{s.num_envs}", float("nan")) for s in settings]] for name in names]
    if settings[0].threads:
        torch.set_num_threads(settings[0].threads)  # what the report names is what the measuring processes had
    report = report_on("env_steps", settings[0].weights, settings[0].device, time.perf_counter() - begin, metrics)
    print_report(report, [Table(title="environment steps", columns=columns, rows=rows)])


if __name__ == "__main__":
    main()
