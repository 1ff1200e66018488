"""What the evaluations of the command line share: engine and episodes that are judged, and how a result is told."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from worldscape.data.episode import HELD_OUT_SEED
from worldscape.evaluate.episodes import SOURCES, EpisodeBatch, Judge
from worldscape.evaluate.options import engine_options
from worldscape.evaluate.recorded import recorded_episodes
from worldscape.evaluate.report import Table, print_report, report_on

if TYPE_CHECKING:
    from worldscape.data.rollout import Policy
    from worldscape.engine import WorldEngine
    from worldscape.evaluate.inverse_dynamics import InverseDynamicsConfig
    from worldscape.world import WorldModel

OpenEngine = Callable[[int, str, str], "WorldEngine"]
"""Number of slots, device, precision -> engine."""


def prepare(
    args: argparse.Namespace,
    num_steps: int,
    open_engine: OpenEngine | None = None,
    kept: dict[tuple, EpisodeBatch] | None = None,
):
    """The engine and the judged episodes that the options ask for; open_engine(slots, device) makes another engine.

    kept: where walks are left and found again, for several models that are judged by the same ones.
    Raises ValueError for --oracle with frames that are not finished one by one.
    """
    from worldscape.engines import open_engine as make_engine
    from worldscape.evaluate.oracle import OracleEngine

    model = checked_model(args)
    num_slots = min(args.batch, args.episodes)
    if open_engine is None:
        hands = "right" if args.source == "tabletop" else None
        options = engine_options(args)
        if not getattr(args, "oracle", False):
            engine = make_engine(model, num_slots, hands=hands, **options)
        elif (sampler := options.pop("sampler")) == "blockwise":
            engine = OracleEngine(model, num_slots, hands=hands, **options)
        else:
            raise ValueError(f"--sampler {sampler} has frames in the making; --oracle finishes one a step.")
    else:
        engine = open_engine(num_slots, args.device, args.precision)
    kept, key = {} if kept is None else kept, (args.policy, args.episodes, num_steps, model.config.codec.size)
    if key not in kept:
        kept[key] = walk(args, model, args.policy, num_steps)
    return engine, kept[key]


def walk(args: argparse.Namespace, model: WorldModel, policy: str | Policy, num_steps: int) -> EpisodeBatch:
    """The episodes that the options ask for, in the model's picture size: walked by `policy` through the simulator, or
    those of the dataset that --data names."""
    if args.data is not None:
        return recorded_episodes(args.data, model.config.codec.size, args.episodes, num_steps)
    judge = Judge(args.source, policy, model.config.codec.size)
    return judge.episodes(args.episodes, num_steps, first_seed=args.first_seed)


def checked_model(args: argparse.Namespace) -> WorldModel:
    """The world model, after the options that all evaluations share were checked."""
    from worldscape.checkpoint import load_world
    from worldscape.checks import checked_device

    if args.batch < 1 or args.episodes < 1:
        raise ValueError(f"--batch {args.batch} and --episodes {args.episodes} must be at least 1")
    if args.data is not None and args.source != SOURCES[0]:
        raise ValueError(f"--data and --source {args.source} both say who judges; leave one out")
    if args.first_seed < HELD_OUT_SEED:
        raise ValueError(f"--first-seed {args.first_seed} may be a training layout; give {HELD_OUT_SEED} or more")
    return load_world(args.weights, checked_device(args.device))


def finish(name: str, args: argparse.Namespace, begin: float, metrics: dict[str, float], tables: list[Table]) -> None:
    """Print the tables and the JSON line of an evaluation that began at `begin` (time.perf_counter)."""
    print_report(report_on(name, args.weights, args.device, time.perf_counter() - begin, metrics), tables)


def name_files(paths: list[Path]) -> None:
    """Say which files were written."""
    print("\n".join(f"wrote {path}" for path in paths), end="\n\n")


def name_of(name: str, args: argparse.Namespace) -> str:
    """A result's name, with the simulator that judged where it is not the first one, or the dataset."""
    if args.data is not None:
        return f"{name}_data_{Path(args.data).name}"
    return name if args.source == SOURCES[0] else f"{name}_{args.source}"


def check_segment(args: argparse.Namespace) -> None:
    """Raises ValueError unless a segment fits into the episodes."""
    if not 1 <= args.segment <= args.steps:
        raise ValueError(f"--segment {args.segment} must lie between 1 and --steps {args.steps}")


def asked_of_judge(args: argparse.Namespace) -> dict[str, int]:
    """Settings of a judge's training that the command line names."""
    asked = {"updates": args.updates, "num_episodes": args.training_episodes}
    return {name: value for name, value in asked.items() if value is not None}


def load_reader(path: Path | None, config: InverseDynamicsConfig, size: int, source: str):
    """The network that reads actions back, trained on walks through the simulator unless it lies at `path`."""
    from worldscape.evaluate import inverse_dynamics as inverse

    judge = Judge(source, "restless", size)

    def lessons() -> EpisodeBatch:
        return judge.episodes(config.num_episodes, config.num_steps, first_seed=config.first_seed)

    return inverse.load_or_train(path, config, lessons)
