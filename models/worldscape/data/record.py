"""`worldscape record`: run an env in worker processes and write its episodes into a Minari dataset.

Episode i depends on the settings and on seed + i alone, so the number of workers, and stopping and resuming, change
nothing in the dataset. Workers are spawned, never forked: graphics contexts do not survive a fork.
"""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from worldscape.data.episode import HELD_OUT_SEED
from worldscape.data.minari_writer import DatasetWriter, EpisodeWriter
from worldscape.data.rollout import load_policy, make_env, roll_episode
from worldscape.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """What to record, and where.

    env: Gymnasium id, also as "MODULE:ID". out: folder of the dataset. policy: random, MODULE:FUNC, or a name
    that the env knows (explore and mixed are always among them). Episode i is reset with `seed + i`.
    """

    env: str
    out: Path
    episodes: int
    workers: int = 1
    policy: str = "explore"
    steps_per_episode: int = 160
    seed: int = 0
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "steps_per_episode"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if self.seed < HELD_OUT_SEED < self.seed + self.episodes:
            raise ValueError(
                f"the seeds {self.seed} to {self.seed + self.episodes - 1} mix training seeds with the held-out ones "
                f"from {HELD_OUT_SEED} on; choose a smaller --seed or fewer episodes"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the content of each episode; a dataset is only continued with the same."""
        names = ("env", "env_kwargs", "policy", "steps_per_episode", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What the dataset holds after recording, and what this run took."""

    episodes: int
    steps: int
    megabytes: float
    seconds: float


def record(config: RecordConfig) -> RecordSummary:
    """Record the episodes that the dataset lacks.

    Raises ValueError for an unsuitable env, policy or folder, OSError when the disk is full, RuntimeError when a worker
    dies; the dataset then holds every episode finished so far, and calling this again goes on.
    """
    start = time.monotonic()
    env = make_env(config.env, config.env_kwargs)
    load_policy(config.policy, env)
    writer = DatasetWriter(
        config.out,
        observation_space=env.observation_space,
        action_space=env.action_space,
        spec=env.spec,
        settings=config.settings,
    )
    env.close()
    missing = [index for index in range(config.episodes) if not writer.is_done(index)]
    with Progress("episodes", total=config.episodes, done=config.episodes - len(missing)) as progress:
        _record_missing(config, writer, missing, progress)
    return RecordSummary(
        writer.num_episodes, writer.num_steps, round(writer.num_bytes / 1e6, 1), round(time.monotonic() - start, 1)
    )


def _record_missing(config: RecordConfig, writer: DatasetWriter, missing: list[int], progress: Progress) -> None:
    num_workers = min(config.workers, len(missing))
    workers = [_start_worker(config, missing[rank::num_workers]) for rank in range(num_workers)]
    try:
        _collect(workers, config, writer, progress)
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    messages: Connection


@dataclass(frozen=True, slots=True)
class _Finished:
    index: int


def _start_worker(config: RecordConfig, indices: list[int]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, config, indices), daemon=True)
    process.start()
    sender.close()
    return _Worker(process, receiver)


def _work(messages: Connection, config: RecordConfig, indices: list[int]) -> None:
    """Body of a worker process: sends a `_Finished` per episode, or the error that stopped it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: one thread per worker is twice as fast
    try:
        env = make_env(config.env, config.env_kwargs)
        policy = load_policy(config.policy, env)
        writer = EpisodeWriter(config.out)
        for index in indices:
            seed = config.seed + index
            writer.write(index, roll_episode(env, policy, seed=seed, num_steps=config.steps_per_episode, index=index))
            messages.send(_Finished(index))
        writer.close()
        env.close()
    except BrokenPipeError:
        return  # the recorder was killed; the episodes written so far wait for the next run
    except (ValueError, OSError) as error:
        messages.send(error)


def _collect(workers: list[_Worker], config: RecordConfig, writer: DatasetWriter, progress: Progress) -> None:
    """Adopt episodes as the workers finish them, until all have; raises what stopped a worker."""
    running = {worker.messages: worker for worker in workers}
    while running:
        for messages in wait(list(running)):
            assert isinstance(messages, Connection)
            try:
                message = messages.recv()
            except EOFError:
                _check_exit(running.pop(messages))
                continue
            if isinstance(message, OSError):
                raise _explain(message, config.out) from message
            if isinstance(message, ValueError):
                raise message
            writer.adopt_pending()
            progress.update()
            _check_space(writer, config)


def _check_exit(worker: _Worker) -> None:
    worker.process.join()
    if worker.process.exitcode != 0:
        raise RuntimeError(
            f"a worker stopped with exit code {worker.process.exitcode} (its error is printed above, if it had time); "
            "the finished episodes are kept: run the same command again to go on"
        )


def _explain(error: OSError, out: Path) -> OSError:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return OSError(
            errno.ENOSPC,
            f"the disk is full; the episodes finished in {out} stay: free some space and run the same command again",
        )
    return error


def _check_space(writer: DatasetWriter, config: RecordConfig) -> None:
    """Say early that the disk will not hold the rest, by the size of the episodes so far."""
    remaining = config.episodes - writer.num_episodes
    if writer.num_episodes == 0 or remaining <= 0:
        return
    needed = remaining * writer.num_bytes // writer.num_episodes
    free = shutil.disk_usage(config.out).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the remaining {remaining} episodes need about {needed / 1e6:.0f} MB but the disk of {config.out} has "
            f"{free / 1e6:.0f} MB; free some space and run the same command again, or record fewer episodes",
        )


def add_parser(subparsers: Any) -> None:
    """Add the `record` command."""
    description = "Record episodes of a simulator into a Minari dataset; run it again to go on after a stop."
    parser: argparse.ArgumentParser = subparsers.add_parser("record", description=description)
    parser.add_argument("--env", required=True, help="Gymnasium id, or MODULE:ID to import MODULE first")
    parser.add_argument("--episodes", type=int, required=True, help="episodes the dataset shall hold in the end")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset; continued when it exists")
    parser.add_argument("--workers", type=int, default=1, help="processes that step the env (default 1)")
    parser.add_argument(
        "--policy",
        default="explore",
        help="random, MODULE:FUNC, or a name that the env knows: explore (default) or mixed; for rooms also goal, for "
        "tabletop also expert, perturbed, failing",
    )
    parser.add_argument("--steps-per-episode", type=int, default=160, help="default 160")
    parser.add_argument("--seed", type=int, default=0, help="episode i resets the env with SEED + i (default 0)")
    parser.add_argument("--env-kwargs", default="{}", help='JSON, for instance {"goal_terminates": false}')
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    sys.path.insert(0, os.getcwd())  # so that MODULE may lie in the current folder, as with `python -m`
    config = RecordConfig(
        env=args.env,
        out=args.out,
        episodes=args.episodes,
        workers=args.workers,
        policy=args.policy,
        steps_per_episode=args.steps_per_episode,
        seed=args.seed,
        env_kwargs=_parse_kwargs(args.env_kwargs),
    )
    summary = record(config)
    print(
        f"{config.out}: {summary.episodes} episodes, {summary.steps} steps, {summary.megabytes} MB "
        f"({summary.seconds:.0f} s)"
    )
    return 0


def _parse_kwargs(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--env-kwargs {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f'--env-kwargs {text!r} must be a JSON object such as {{"size": 64}}')
    return value
