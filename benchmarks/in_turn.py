"""Environments on one machine, a step of each in turn: how many steps a second, set against the first one's.

    python benchmarks/in_turn.py --envs WorldScape-Nav-v0,WorldScape-Hand-v0

A machine's own speed drifts by a fifth within a minute, so what is measured in one process after another cannot be
compared closer than that (`env_steps.py`). Here all environments meet the same minute. Each is opened with every seed
in turn and acts at random. The last line is one JSON object, its names explained in docs/metrics.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it would not find its neighbours

from benchmarks.clock import wait_for
from benchmarks.env_steps import WARM_UP_STEPS, choose_draw, make_env, step_env
from benchmarks.sweep import Setting

COLUMNS = ("env_steps_per_second", "step_ms_p50", "speed_ratio")


def measure(envs: Sequence[Any], steps: int, seeds: Sequence[int], device: str) -> np.ndarray:
    """Seconds of the steps of each environment, WARM_UP_STEPS after each opening untimed: [seeds * steps, E]."""
    seconds = np.zeros((len(seeds), WARM_UP_STEPS + steps, len(envs)))
    draws = [choose_draw(env) for env in envs]
    for opening, seed in zip(seconds, seeds, strict=True):
        rngs = [np.random.default_rng(seed) for _ in envs]
        for env in envs:
            env.reset(seed=seed)
        for row in opening:
            for place, (env, draw, rng) in enumerate(zip(envs, draws, rngs, strict=True)):
                actions = draw(rng, 1)
                begin = time.perf_counter()
                _, _, terminated, truncated, _ = step_env(env, actions)
                wait_for(device)
                row[place] = time.perf_counter() - begin
                if terminated or truncated:
                    env.reset()
    return seconds[:, WARM_UP_STEPS:].reshape(-1, len(envs))


def summarise(names: Sequence[str], seconds: np.ndarray) -> dict[str, float]:
    """Of each environment, columns of `seconds`: steps a second, median step in ms, and its rate over the first's."""
    found, means = {}, seconds.mean(0)
    for name, own, mean in zip(names, seconds.T, means, strict=True):
        found[f"env_steps_per_second_{name}"] = float(1 / mean)
        found[f"step_ms_p50_{name}"] = 1000 * float(np.median(own))
        found[f"speed_ratio_{name}"] = float(means[0] / mean)
    return found


def short_name(env: str) -> str:
    """WorldScape-Nav-v0 -> nav."""
    return env.removeprefix("WorldScape-").rpartition("-")[0].lower()


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with a message for what is no count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", default="WorldScape-Nav-v0,WorldScape-Hand-v0", help="comma-separated ids")
    parser.add_argument("--weights", default="nano", help="a shipped name, or a directory")
    parser.add_argument("--steps", type=int, default=100, help="timed ones of each environment from each seed")
    parser.add_argument("--seeds", type=int, default=8, help="how many openings")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 for torch's own choice")
    options = parser.parse_args(arguments)
    if min(options.steps, options.seeds) < 1 or options.threads < 0:
        parser.error("--steps and --seeds are at least 1, and --threads cannot be negative")
    options.envs = options.envs.split(",")
    if len(set(options.envs)) != len(options.envs):
        parser.error("--envs names one of them twice")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, end with one JSON line."""
    begin, options = time.perf_counter(), read_options(arguments)
    import gymnasium as gym
    import torch

    from worldscape.evaluate.report import Table, print_report, report_on

    if options.threads:
        torch.set_num_threads(options.threads)
    plain = {"num_envs": 1, "horizon": 0, "ending": ""}
    shared = {name: getattr(options, name) for name in ("weights", "device", "steps", "threads")}
    try:
        envs = [make_env(Setting(env=env, **plain, **shared)) for env in options.envs]
    except (ValueError, gym.error.Error) as error:
        sys.exit(f"in_turn: error: {error}")
    names = [short_name(env) for env in options.envs]
    metrics = summarise(names, measure(envs, options.steps, range(options.seeds), options.device))
    rows = [[name, *(metrics[f"{what}_{name}"] for what in COLUMNS)] for name in names]
    report = report_on("in_turn", options.weights, options.device, time.perf_counter() - begin, metrics)
    print_report(report, [Table(title="environments, a step each in turn", columns=["", *COLUMNS], rows=rows)])


if __name__ == "__main__":
    main()
