"""Does a policy that learned in the dream work in the simulator, and is the dream a fair judge of policies?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldscape.evaluate.arenas import Play
from worldscape.evaluate.counterparts import COUNTERPARTS
from worldscape.evaluate.kept_plays import Arena
from worldscape.evaluate.pictures import save_film
from worldscape.evaluate.ranks import spearman
from worldscape.evaluate.report import Table
from worldscape.policy import PixelPolicy, load_policy

TRAINED = ("dream", "simulator")
"""Where a policy was trained; beside them stands "random"."""
SCORES = {"success": "success", "return": "returns", "spl": "spl"}
"""Name of a metric -> field of a `Play`."""
NUM_RESAMPLES = 2000
POLICY_FOLDER = "policies"


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


class Transfer(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print, and what was walked: {policy: {arena: Play}}."""

    metrics: dict[str, float]
    tables: list[Table]
    plays: dict[str, dict[str, Play]]


class Trained(NamedTuple):
    """What a run of training left: its last policy, env steps it took, the policies it kept on the way, and what its
    actions of hands were, if it had any."""

    policy: PixelPolicy
    steps: int
    checkpoints: list[PixelPolicy]
    hand_actions: str | None = None


def load_run(folder: Path, trained_in: str, task: str) -> Trained:
    """A run folder of examples/ppo_nav.py or ppo_hand.py. Raises ValueError when it is none, or was trained somewhere
    else or for another task."""
    policy, facts = load_policy(folder)
    if facts.get("trained_in") != trained_in:
        raise ValueError(f"{folder} was trained in the {facts.get('trained_in')}, not in the {trained_in}")
    if facts.get("task") != task:
        raise ValueError(f"{folder} was trained for the task {facts.get('task')}, not for {task}; give --task")
    kept = sorted((folder / POLICY_FOLDER).glob("*.safetensors"))
    hand_actions = facts.get("hand_actions", COUNTERPARTS[task].usual_hand_actions)
    return Trained(policy, int(facts["steps"]), [load_policy(path)[0] for path in kept], hand_actions)


def check_runs(runs: Mapping[str, Trained]) -> None:
    """Raises ValueError unless all runs took the same number of steps, of the same actions: else the comparison says
    nothing."""
    steps = {name: run.steps for name, run in runs.items()}
    if len(set(steps.values())) > 1:
        raise ValueError(f"the policies took different numbers of steps, {steps}; train the shorter one for longer")
    acts = {name: run.hand_actions for name, run in runs.items()}
    if len(set(acts.values())) > 1:
        raise ValueError(f"the policies have different actions of hands, {acts}; train both with the same ones")


def judge_transfer(
    arenas: Arena, runs: Mapping[str, Trained], *, checkpoint_episodes: int = 50, num_filmed: int = 0
) -> Transfer:
    """Play every policy, and random actions, in both arenas; `runs` by where they were trained, "dream" among them.

    The dream's own checkpoints are played for `checkpoint_episodes` episodes in each arena, for the correlation.
    Raises ValueError for runs of different length.
    """
    check_runs(runs)
    policies = {**{name: run.policy for name, run in runs.items()}, "random": None}
    plays = play_everywhere(arenas, policies, num_filmed=num_filmed)
    found = measure_plays(plays)
    found["policy_steps"] = runs["dream"].steps
    judged, table = judge_checkpoints(arenas, runs["dream"].checkpoints, checkpoint_episodes)
    return Transfer(found | judged, [tabulate_plays(plays, arenas.task), table], plays)


def play_everywhere(
    arenas: Arena, policies: Mapping[str, PixelPolicy | None], *, num_filmed: int = 0
) -> dict[str, dict[str, Play]]:
    """Every policy (None: actions at random) played in both arenas -> {policy: {arena: Play}}."""
    return {
        name: {
            "simulator": arenas.play_simulator(policy, num_filmed=num_filmed),
            "dream": arenas.play_dream(policy, num_filmed=num_filmed),
        }
        for name, policy in policies.items()
    }


def measure_plays(plays: Mapping[str, Mapping[str, Play]]) -> dict[str, float]:
    """Plays by policy and arena -> flat metrics, with confidence intervals and ratios between policies."""
    found: dict[str, float] = {}
    for policy, arenas in plays.items():
        for arena, play in arenas.items():
            for score, field in SCORES.items():
                name = f"{score}_{policy}_policy_in_{arena}"
                found[name], found[f"{name}_low"], found[f"{name}_high"] = bootstrap_mean(getattr(play, field))
            found[f"length_{policy}_policy_in_{arena}"] = float(play.lengths.mean())
            found["num_episodes"] = len(play.success)
    dream = found["success_dream_policy_in_simulator"]
    for other in plays.keys() - {"dream"}:
        base = found[f"success_{other}_policy_in_simulator"]
        found[f"transfer_over_{other}"] = dream / base if base else math.nan
    return found


def judge_checkpoints(
    arenas: Arena, checkpoints: Sequence[PixelPolicy], num_episodes: int
) -> tuple[dict[str, float], Table]:
    """Mean return of each checkpoint in dream and simulator -> their rank correlation, and the table of them."""
    rows: list[list[str | float]] = []
    for index, policy in enumerate(checkpoints):
        plays = arenas.play_dream(policy, num_episodes), arenas.play_simulator(policy, num_episodes)
        rows.append([str(index), *[float(play.returns.mean()) for play in plays]])
    dreamed, true = ([float(row[column]) for row in rows] for column in (1, 2))
    found = {"num_checkpoints": len(rows), "spearman_checkpoints": spearman(dreamed, true)}
    return found, Table(title="mean return of checkpoints", columns=["checkpoint", "dream", "simulator"], rows=rows)


def bootstrap_mean(values: np.ndarray, *, seed: int = 0) -> Interval:
    """Values [N] -> their mean and its 95 % interval: quantiles of the means of 2,000 resamples (Efron 1979)."""
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def tabulate_plays(plays: Mapping[str, Mapping[str, Play]], task: str) -> Table:
    """One row a policy and arena: success with its interval, mean return, SPL and length."""
    rows: list[list[Any]] = []
    for policy, arenas in plays.items():
        for arena, play in arenas.items():
            success = bootstrap_mean(play.success)
            means = [float(values.mean()) for values in (play.returns, play.spl, play.lengths)]
            rows.append([policy, arena, success.mean, f"{success.low:.2f}..{success.high:.2f}", *means])
    columns = ["trained in", "scored in", "success", "95 %", "return", "Euclidean SPL", "steps"]
    return Table(title=f"{task}, held-out layouts", columns=columns, rows=rows)


def save_films(path: Path, plays: Mapping[str, Play]) -> Path:
    """The filmed episodes of one policy, each arena beside the other, one after another -> an MP4."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in plays}
    for films in zip(*[play.films for play in plays.values()], strict=True):
        longest = max(map(len, films))
        for name, film in zip(plays, films, strict=True):
            parts[name].append(_hold_last(film, longest))
    save_film(path, {name: np.concatenate(films) for name, films in parts.items()}, fps=10)
    return path


def _hold_last(film: np.ndarray, length: int) -> np.ndarray:
    """A film uint8 [T, h, w, 3] whose last frame stays until `length`."""
    return np.concatenate([film, film[-1:].repeat(length - len(film), axis=0)])
