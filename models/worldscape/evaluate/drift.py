"""Long dreams: do sharpness, colour and variety stay what they are in the simulator, under the same actions?

The simulator's spread holds the middle 95 % of its episode-windows (quantiles: sharpness is skewed, mean - 2 deviations
would let a blank picture pass). The dream's windows are held against it one by one and by their mean over the dreams.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worldscape.evaluate import metrics as scores
from worldscape.evaluate.dream import Dream, Engine, dream_episodes
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.pictures import save_film, save_grid
from worldscape.evaluate.report import Table

STATISTICS = ("sharpness", *scores.ColourStatistics._fields, *scores.RepeatStatistics._fields)
GUARDED = ("sharpness", *scores.ColourStatistics._fields)
"""Statistics that must stay within the simulator's spread; repeat statistics are reported."""
COMPARED = ("sharpness", "contrast", "change", "recurrence", "variety")
"""Statistics that are also reported as ratios, dream over simulator."""
SUMMARY = ("mean", "first", "last")
"""The ratios that have a standard error: their mean over the windows, in the first, in the last."""


class Windows(NamedTuple):
    """Each of STATISTICS by window of steps [N, W], of dreams and of the simulator under the same actions."""

    dreamed: dict[str, np.ndarray]
    true: dict[str, np.ndarray]


class Drift(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print, the dream that was measured, and its windows."""

    metrics: dict[str, float]
    tables: list[Table]
    dream: Dream
    windows: Windows


def judge_drift(engine: Engine, episodes: EpisodeBatch, *, window: int = 100) -> Drift:
    """Dream the whole episodes and compare window statistics. Raises ValueError for a window that does not fit."""
    check_window(window, episodes.num_steps)
    dream = dream_episodes(engine, episodes, num_steps=episodes.num_steps)
    moved = episodes.moves()
    dreamed = measure_windows(dream.frames, moved, window)
    true = measure_windows(episodes.frames[:, 1:], moved, window)
    found = compare_windows(dreamed, true)
    return Drift(found, [tabulate_windows(dreamed, true, window)], dream, Windows(dreamed, true))


def check_window(window: int, num_steps: int) -> None:
    """Raise ValueError for a window that does not fit into episodes of `num_steps`."""
    if not 2 <= window <= num_steps:
        raise ValueError(f"a window of {window} steps does not fit episodes of {num_steps}; choose 2 to {num_steps}")


def measure_windows(frames: np.ndarray, moved: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """uint8 frames after each step [N, T, h, w, 3], moved bool [N, T] -> each of STATISTICS as [N, W].

    A rest of steps shorter than the window is left out.
    """
    num_windows = frames.shape[1] // window
    found = {name: np.empty((len(frames), num_windows)) for name in STATISTICS}
    for row, column in np.ndindex(len(frames), num_windows):
        steps = slice(column * window, (column + 1) * window)
        statistics = _measure(torch.from_numpy(frames[row, steps]), torch.from_numpy(moved[row, steps][1:]))
        for name, value in statistics.items():
            found[name][row, column] = value
    return found


def simulator_spread(values: np.ndarray) -> tuple[float, float]:
    """The simulator's values of one statistic [N, W] -> its quantiles 0.025 and 0.975; NaN without numbers."""
    numbers = values[~np.isnan(values)]
    low, high = np.quantile(numbers, (0.025, 0.975)) if numbers.size else (math.nan, math.nan)
    return float(low), float(high)


def compare_windows(dreamed: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> dict[str, float]:
    """Window statistics of dream and simulator, [N, W] each -> flat metrics."""
    found: dict[str, float] = {}
    for name in STATISTICS:
        found[f"{name}_simulator"] = mean_of_numbers(true[name])
        found[f"{name}_dream_first"] = mean_of_numbers(dreamed[name][:, 0])
        found[f"{name}_dream_last"] = mean_of_numbers(dreamed[name][:, -1])
    for name in GUARDED:
        spread = simulator_spread(true[name])
        found[f"{name}_within"] = share_within(dreamed[name].mean(axis=0), spread)
        found[f"{name}_within_each"] = share_within(dreamed[name], spread)
    for kind in ("within", "within_each"):
        found[kind] = min(found[f"{name}_{kind}"] for name in GUARDED)
    for name in COMPARED:
        found |= {f"{name}_ratio_{kind}": value for kind, value in compare_ratios(dreamed[name], true[name]).items()}
    return found


def compare_ratios(dreamed: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """A statistic of dream and simulator [N, W] under the same actions -> their ratio, window by window the mean over
    the episodes in the one by that in the other: its mean over the windows, first, last, lowest and highest.

    mean_error, first_error, last_error: their standard errors (jackknife_errors over the episodes).
    """
    ratios = _window_ratios(dreamed, true)
    errors = jackknife_errors(len(dreamed), lambda kept: _summary(_window_ratios(dreamed[kept], true[kept])))
    found = dict(zip(SUMMARY, _summary(ratios), strict=True)) | {"min": ratios.min(), "max": ratios.max()}
    found |= {f"{kind}_error": error for kind, error in zip(SUMMARY, errors, strict=True)}
    return {kind: float(value) for kind, value in found.items()}


def compare_dreams(first: Windows, other: Windows) -> dict[str, float]:
    """By how much the ratios of `other` exceed those of `first`, dreams of the same episodes: S_ratio_K_gain of each of
    COMPARED and SUMMARY, and their standard errors S_ratio_K_gain_error, which are smaller than those of either, since
    what an episode does to both of them cancels.

    Raises ValueError for windows that are not of the same episodes.
    """
    if any(not np.array_equal(first.true[name], other.true[name], equal_nan=True) for name in COMPARED):
        raise ValueError("the dreams follow different episodes; only dreams of the same ones can be compared in pairs")
    found: dict[str, float] = {}
    for name in COMPARED:
        gains = partial(_gains, first.dreamed[name], other.dreamed[name], first.true[name])
        count = len(first.true[name])
        for kind, gain, error in zip(SUMMARY, gains(np.arange(count)), jackknife_errors(count, gains), strict=True):
            found |= {f"{name}_ratio_{kind}_gain": float(gain), f"{name}_ratio_{kind}_gain_error": float(error)}
    return found


def jackknife_errors(count: int, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Standard errors [K] of what `measure` finds [K] in the rows of 0 .. count - 1 that it is given, by leaving out
    each in turn (the jackknife; Efron and Stein 1981, https://doi.org/10.1214/aos/1176345462); NaN for a single row."""
    if count < 2:
        return np.full_like(measure(np.arange(count)), math.nan)
    left = np.stack([measure(np.delete(np.arange(count), row)) for row in range(count)])
    return left.std(axis=0) * math.sqrt(count - 1)


def share_within(values: np.ndarray, spread: tuple[float, float]) -> float:
    """Share of the values that lie within the spread, 0 to 1."""
    return float(((values >= spread[0]) & (values <= spread[1])).mean())


def mean_of_numbers(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN where all are."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


def _gains(before: np.ndarray, after: np.ndarray, true: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """By how much SUMMARY's ratios of `after` exceed those of `before`, [N, W] each, over the episodes `kept`."""
    ratios = (_window_ratios(dreamed[kept], true[kept]) for dreamed in (after, before))
    return np.subtract(*map(_summary, ratios))


def _summary(ratios: np.ndarray) -> np.ndarray:
    """Of ratios [W] those that SUMMARY names."""
    return np.array([ratios.mean(), ratios[0], ratios[-1]])


def _window_ratios(dreamed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """[N, W] each -> [W], of the episodes that have both numbers in a window; NaN where none has."""
    counted = ~np.isnan(dreamed + true)
    sums = [np.where(counted, values, 0.0).sum(axis=0) for values in (dreamed, true)]
    return np.where(counted.any(axis=0), sums[0] / np.maximum(sums[1], 1e-9), math.nan)


def tabulate_windows(dreamed: dict[str, np.ndarray], true: dict[str, np.ndarray], window: int) -> Table:
    """One row per window of the dream (mean over the dreams), then the simulator's mean and spread."""
    num_windows = dreamed["sharpness"].shape[1]
    rows: list[list[str | float]] = []
    for column in range(num_windows):
        steps = f"{column * window + 1}-{(column + 1) * window}"
        rows.append([steps, *[mean_of_numbers(dreamed[name][:, column]) for name in STATISTICS]])
    spreads = [simulator_spread(true[name]) for name in STATISTICS]
    rows.append(["simulator", *[mean_of_numbers(true[name]) for name in STATISTICS]])
    rows.append(["simulator low", *[low for low, _ in spreads]])
    rows.append(["simulator high", *[high for _, high in spreads]])
    return Table(title="dream, per window of steps", columns=["steps", *STATISTICS], rows=rows)


def save_pictures(out: Path, dream: Dream, episodes: EpisodeBatch, *, num_shown: int = 4) -> list[Path]:
    """Write a strip of frames of the first episodes (PNG) and a film of the first one (MP4); returns the paths."""
    chosen = np.linspace(0, episodes.num_steps - 1, 11).round().astype(int)
    rows: dict[str, list[np.ndarray]] = {}
    for index in range(min(num_shown, len(episodes))):
        rows[f"simulator {index}"] = list(episodes.frames[index, 1:][chosen])
        rows[f"dream {index}"] = list(dream.frames[index, chosen])
    strip, film = out / "drift.png", out / "drift.mp4"
    save_grid(strip, rows, [f"step {step + 1}" for step in chosen], scale=2)
    save_film(film, {"simulator": episodes.frames[0, 1:], "dream": dream.frames[0]}, fps=20)
    return [strip, film]


def _measure(frames: torch.Tensor, moved: torch.Tensor) -> dict[str, float]:
    images = scores.to_unit(frames)
    colours = {name: value.mean().item() for name, value in scores.colour_statistics(images)._asdict().items()}
    sharpness = scores.gradient_energy(images).mean().item()
    return {"sharpness": sharpness, **colours, **scores.repeat_statistics(images, moved)._asdict()}
