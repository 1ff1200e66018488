"""Do actions do in the dream what they do in the simulator? An inverse-dynamics model reads them back.

Dreams are opened from a real frame every few steps, so that dream and simulator stand in the same place. A step that
the simulator refused (wall ahead, pitch at its limit) counts as a no-op, for dream and simulator alike: a dream that
walks through the wall is wrong, and one that stops for no reason is wrong too. The share read correctly on steps that
were not refused is reported beside it.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.controls import DISCRETE_ACTIONS
from worldscape.evaluate.dream import Engine, dream_episodes
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.inverse_dynamics import InverseDynamics, Pairs, Reading, make_pairs, pair_frames, read_actions
from worldscape.evaluate.pictures import save_film
from worldscape.evaluate.report import Table


class ActionAccuracy(NamedTuple):
    """Flat metrics (docs/metrics.md) and the tables to print."""

    metrics: dict[str, float]
    tables: list[Table]


def judge_actions(engine: Engine, episodes: EpisodeBatch, reader: InverseDynamics) -> ActionAccuracy:
    """Dream the episodes (short segments, opened from their first frame) and read the actions back from both."""
    dream = dream_episodes(engine, episodes, num_steps=episodes.num_steps)
    before = np.concatenate([episodes.frames[:, :1], dream.frames[:, :-1]], axis=1)
    dreamed, real = pair_frames(before, dream.frames, episodes), make_pairs(episodes)
    free = torch.from_numpy(episodes.effective_actions() == episodes.actions).flatten()
    readings = {"dream": read_actions(reader, dreamed), "simulator": read_actions(reader, real)}
    found: dict[str, float] = {}
    for name, reading in readings.items():
        found |= {f"{score}_{name}": value for score, value in score_reading(reading, real, free).items()}
    for score in ("action_accuracy", "action_accuracy_balanced", "action_accuracy_free"):
        simulator = found[f"{score}_simulator"]
        found[f"{score}_ratio"] = found[f"{score}_dream"] / simulator if simulator else math.nan
    found["num_pairs"], found["refused_share"] = len(real.action), 1 - free.float().mean().item()
    return ActionAccuracy(found, [_tabulate_scores(found), tabulate_classes(readings, real.action)])


def score_reading(reading: Reading, truth: Pairs, free: Tensor) -> dict[str, float]:
    """Reading of M pairs, their truth, and which steps were not refused (bool [M]) -> accuracies and motion errors."""
    hit = reading.action == truth.action
    right, forward, yaw, pitch = (reading.motion - truth.motion).unbind(dim=-1)
    return {
        "action_accuracy": _mean(hit),
        "action_accuracy_balanced": float(np.nanmean(class_accuracy(reading.action, truth.action))),
        "action_accuracy_free": _mean(hit[free]),
        "action_accuracy_refused": _mean(hit[~free]),
        "distance_error": torch.hypot(right, forward).mean().item(),
        "yaw_error": yaw.abs().rad2deg().mean().item(),
        "pitch_error": pitch.abs().rad2deg().mean().item(),
    }


def class_accuracy(read: Tensor, truth: Tensor) -> list[float]:
    """Actions read and true [M] -> share read correctly for each of the nine actions, NaN for one that never occurs."""
    return [_mean((read == truth)[truth == action]) for action in range(len(DISCRETE_ACTIONS))]


def tabulate_classes(readings: dict[str, Reading], truth: Tensor) -> Table:
    """Accuracy per action in dream and simulator."""
    accuracies = [class_accuracy(reading.action, truth) for reading in readings.values()]
    counts = torch.bincount(truth, minlength=len(DISCRETE_ACTIONS)).tolist()
    rows = [list(row) for row in zip(DISCRETE_ACTIONS, counts, *accuracies, strict=True)]
    return Table(title="accuracy per effective action", columns=["action", "steps", *readings], rows=rows)


def save_pictures(out: Path, engine: Engine, episodes: EpisodeBatch) -> list[Path]:
    """Write a film of a few segments, simulator beside dream; returns its path."""
    shown = episodes.rows(slice(0, 8))
    dream = dream_episodes(engine, shown, num_steps=shown.num_steps)
    films = {"simulator": shown.frames[:, 1:], "dream": dream.frames}
    path = out / "actions.mp4"
    save_film(path, {name: np.concatenate(list(frames)) for name, frames in films.items()}, fps=5)
    return [path]


def _tabulate_scores(found: dict[str, float]) -> Table:
    names = [name.removesuffix("_dream") for name in found if name.endswith("_dream")]
    rows = [[name, found[f"{name}_dream"], found[f"{name}_simulator"]] for name in names]
    return Table(title="actions read back", columns=["score", "dream", "simulator"], rows=rows)


def _mean(values: Tensor) -> float:
    return values.float().mean().item() if len(values) else math.nan
