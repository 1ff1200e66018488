"""A sweep of the environment benchmark: the command line's settings, and their results as a table, CSV and a plot."""

import argparse
import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EARLY_STEP = 100  # the step that the end of the long dream is compared with
SWEPT = ("num_envs", "steps_per_frame", "size")
SHARED = ("weights", "device", "steps", "threads", "starts", "env", "obs", "output", "sampler", "split_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What one process measures. threads 0 leaves torch's own choice; horizon 0 skips the long dream; steps_per_frame
    and size None are the weights' own, starts None the environment's; at most split_steps are divided among their
    parts, 0: none. Names of metrics end in `ending`."""

    num_envs: int
    weights: str
    device: str
    steps: int
    horizon: int
    threads: int
    ending: str
    starts: str | None = None
    steps_per_frame: int | None = None
    size: int | None = None
    sampler: str = "blockwise"
    obs: str = "pixels"
    output: str = "numpy"
    env: str = "WorldScape-Nav-v0"
    split_steps: int = 100

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of gym.make and gym.make_vec."""
        names = ("weights", "device", "steps_per_frame", "sampler", "size", "obs")
        told = {} if self.starts is None else {"starts": self.starts}
        return {name: getattr(self, name) for name in names} | told

    @property
    def is_vector(self) -> bool:
        """Whether the environment is made by gym.make_vec."""
        return self.num_envs > 1 or self.output != "numpy"

    @property
    def title(self) -> str:
        """Its name in tables: n16, and what else is swept."""
        return self.ending.strip("_").replace("_", " ")


class Sweep(NamedTuple):
    """All settings, in the order in which they are measured, and the folder of CSV and plot (None: neither)."""

    settings: list[Setting]
    out: Path | None


def read_sweep(arguments: list[str] | None = None) -> Sweep:
    """Command line -> settings; the long dream belongs to the first. Exits with a message for what is no count."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    counts = read_counts(parser, "--num-envs", options.num_envs)
    calls = read_counts(parser, "--steps-per-frame", options.steps_per_frame)
    sizes = read_counts(parser, "--size", options.size)
    if (
        options.steps < 1
        or min(options.threads, options.split_steps) < 0
        or (options.horizon and options.horizon < 2 * EARLY_STEP)
    ):
        parser.error(
            f"--steps, --split-steps and --threads cannot be negative, and --horizon is 0 or at least {2 * EARLY_STEP}"
        )
    if options.obs == "latent" and options.size:
        parser.error("--size is a picture's: leave it out with --obs latent")
    shared = {name: vars(options)[name] for name in SHARED}
    settings = []
    for size, num_calls, num_envs in itertools.product(sizes or [None], calls or [None], counts):
        ending = f"_n{num_envs}" + f"_k{num_calls}" * (len(calls) > 1) + f"_s{size}" * (len(sizes) > 1)
        swept: dict[str, Any] = dict(zip(SWEPT, (num_envs, num_calls, size), strict=True))
        settings.append(Setting(ending=ending, horizon=0 if settings else options.horizon, **swept, **shared))
    return Sweep(settings, options.out)


def make_parser() -> argparse.ArgumentParser:
    """The options of benchmarks/env_steps.py."""
    parser = argparse.ArgumentParser(description="Speed and memory of the learned world as an environment.")
    parser.add_argument("--env", default="WorldScape-Nav-v0", help="id of a dreamed environment")
    parser.add_argument("--num-envs", default="1,4,16", help="comma-separated numbers of environments")
    parser.add_argument(
        "--steps-per-frame", default="", help="comma-separated denoising model calls a frame; default: the weights' own"
    )
    parser.add_argument(
        "--sampler", default="blockwise", choices=("blockwise", "rolling"), help="how frames are sampled"
    )
    parser.add_argument("--size", default="", help="comma-separated sides of the observed picture; default: as above")
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--obs", default="pixels", choices=("pixels", "latent"), help="what is observed")
    parser.add_argument("--output", default="numpy", choices=("numpy", "torch"), help="torch: tensors on the device")
    parser.add_argument("--steps", type=int, default=300, help="timed steps")
    split = "at most so many steps are timed part by part; 0: none, and no roofline"
    parser.add_argument("--split-steps", type=int, default=100, help=split)
    parser.add_argument("--horizon", type=int, default=0, help="steps of the long dream, 200 or more; 0 for none")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 for torch's own choice")
    parser.add_argument("--starts", help="where dreams begin: train, heldout, drawn, a path; default: the env's own")
    parser.add_argument("--out", type=Path, help="folder for the sweep as env_steps.csv and env_steps.png")
    return parser


def read_counts(parser: argparse.ArgumentParser, option: str, text: str) -> list[int]:
    """A comma-separated list of counts; none where the text is empty."""
    parts = text.split(",") if text else []
    counts = [int(part) for part in parts if part.isdigit() and int(part) > 0]
    if len(counts) != len(parts) or (option == "--num-envs" and not counts):
        parser.error(f"{option} {text} must be whole numbers of at least 1, such as 1,4,16")
    return counts


def name_metrics(settings: Sequence[Setting], results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Results of the settings, in one, by names with their endings."""
    pairs = zip(settings, results, strict=True)
    return {f"{name}{setting.ending}": value for setting, found in pairs for name, value in found.items()}


def metric_rows(results: Sequence[Mapping[str, float]]) -> list[list[str | float]]:
    """One row a metric: its name, and its value in each result, NaN where it has none."""
    names = list(dict.fromkeys(name for found in results for name in found))
    return [[name, *[found.get(name, float("nan")) for found in results]] for name in names]


def save_csv(path: Path, settings: Sequence[Setting], results: Sequence[Mapping[str, float]]) -> None:
    """One line a setting: what was swept (empty: the weights' own), then its metrics."""
    rows = metric_rows(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*SWEPT, *[row[0] for row in rows]])
        for index, setting in enumerate(settings, start=1):
            writer.writerow([*[getattr(setting, name) for name in SWEPT], *[row[index] for row in rows]])


def throughput_curves(
    settings: Sequence[Setting], results: Sequence[Mapping[str, float]]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Numbers of environments, and steps/s over them: a curve for each steps_per_frame and size, by their ending."""
    ticks = list(dict.fromkeys(str(setting.num_envs) for setting in settings))
    curves: dict[str, list[float]] = {}
    for setting, found in zip(settings, results, strict=True):
        name = setting.title.partition(" ")[2] or "env steps/s"
        curves.setdefault(name, []).append(found["env_steps_per_second"])
    return ticks, {name: np.array(values) for name, values in curves.items()}
