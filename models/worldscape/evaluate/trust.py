"""Trust: does what memory says of a dreamed frame go with its error against the simulator?

Rank correlations, over all steps, and among the frames of one step (so that nothing is won by counting steps). Along
the simulator's own motion the error is of looks alone; under commanded actions it is also of standing elsewhere.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame, Start
from worldscape.evaluate import metrics as scores
from worldscape.evaluate.dream import Dream, dream_episodes
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.ranks import spearman
from worldscape.evaluate.report import Table
from worldscape.memory.report import report_memory, report_trust

SIGNALS = ("drift", "steps_since_real", "novelty", "steps")
"""What is known of a frame without a simulator; `steps` is what the others must beat."""
MOTIONS = ("commanded", "realised")
LOW, HIGH = 0.25, 0.5  # drift below and above which frames are scored apart


class Trust(NamedTuple):
    """Flat metrics (docs/metrics.md) and the tables to print."""

    metrics: dict[str, float]
    tables: list[Table]


class WatchedEngine:
    """A WorldEngine whose SIGNALS are noted with every dreamed frame, one list of [B, signals] for each time it was
    opened."""

    def __init__(self, engine: WorldEngine) -> None:
        self.engine, self.num_slots = engine, engine.num_slots
        self.action_latency, self._waiting = engine.action_latency, 0
        self.groups: list[list[Tensor]] = []

    def open(self, start: Start, seeds: Tensor, rows: Tensor | None = None) -> EngineFrame:
        self.groups.append([])
        self._waiting = self.action_latency
        return self.engine.open(start, seeds, rows)

    def step(
        self,
        controls: Tensor,
        active: Tensor | None = None,
        *,
        hands: Tensor | None = None,
        is_realised: bool = False,
    ) -> EngineFrame:
        frame = self.engine.step(controls, active, hands=hands, is_realised=is_realised)
        if self._waiting:  # it still shows the start
            self._waiting -= 1
            return frame
        tables = self.engine.state.memory.tables
        drift, since_real = report_trust(tables)
        told = (drift, since_real.float(), report_memory(tables).novelty, frame.steps.float())
        self.groups[-1].append(torch.stack(told, 1))
        return frame

    def signals(self, num_episodes: int) -> dict[str, np.ndarray]:
        """Each of SIGNALS as [N, S]."""
        noted = torch.cat([torch.stack(steps, 1) for steps in self.groups])[:num_episodes].cpu().numpy()
        return {name: noted[..., index] for index, name in enumerate(SIGNALS)}


def judge_trust(engine: WorldEngine, episodes: EpisodeBatch) -> Trust:
    """Dream the whole episodes, by the commands and along the simulator's motion, and correlate signals with errors."""
    found: dict[str, float] = {}
    tables = []
    for motion in MOTIONS:
        watched = WatchedEngine(engine)
        is_realised = motion == "realised"
        dream = dream_episodes(watched, episodes, num_steps=episodes.num_steps, is_realised=is_realised)
        psnr, ssim = score_steps(dream, episodes)
        signals = watched.signals(len(episodes))
        scored = score_signals(signals, psnr, ssim)
        found |= {f"{name}_{motion}": value for name, value in scored.items()}
        tables += [tabulate_signals(scored, motion), tabulate_drift(signals["drift"], psnr, ssim, motion)]
    return Trust(found, tables)


def score_steps(dream: Dream, episodes: EpisodeBatch) -> tuple[np.ndarray, np.ndarray]:
    """PSNR (dB) and SSIM of each dreamed frame against the simulator's, [N, S]."""
    psnr, ssim = [], []
    for shown, truth in zip(dream.frames, episodes.frames[:, 1:], strict=True):
        pair = [scores.to_unit(torch.from_numpy(frames)) for frames in (shown, truth)]
        psnr.append(scores.psnr(*pair).numpy())
        ssim.append(scores.ssim(*pair).numpy())
    return np.stack(psnr), np.stack(ssim)


def score_signals(signals: Mapping[str, np.ndarray], psnr: np.ndarray, ssim: np.ndarray) -> dict[str, float]:
    """Signals, PSNR and SSIM, [N, S] each -> rank correlations, and the PSNR of frames of low and of high drift."""
    found: dict[str, float] = {}
    for name, values in signals.items():
        found[f"{name}_psnr"], found[f"{name}_ssim"] = spearman(values, psnr), spearman(values, ssim)
        by_step = [spearman(*pair) for pair in zip(values.T, psnr.T, strict=True)]
        numbers = [number for number in by_step if not math.isnan(number)]
        found[f"{name}_psnr_same_step"] = float(np.mean(numbers)) if numbers else math.nan
    for name, is_counted in (("low", signals["drift"] < LOW), ("high", signals["drift"] >= HIGH)):
        found[f"psnr_{name}_drift"] = float(psnr[is_counted].mean()) if is_counted.any() else math.nan
        found[f"share_{name}_drift"] = float(is_counted.mean())
    return found


def tabulate_signals(scored: Mapping[str, float], motion: str) -> Table:
    """One row per signal: its rank correlations."""
    columns = ("psnr", "ssim", "psnr_same_step")
    rows = [[name, *[scored[f"{name}_{column}"] for column in columns]] for name in SIGNALS]
    return Table(title=f"rank correlation, {motion} motion", columns=["signal", *columns], rows=rows)


def tabulate_drift(drift: np.ndarray, psnr: np.ndarray, ssim: np.ndarray, motion: str) -> Table:
    """What drift means: frames, PSNR and SSIM by drift."""
    rows: list[list[str | float]] = []
    for low, high in ((0, 0.1), (0.1, LOW), (LOW, HIGH), (HIGH, 0.75), (0.75, 0.9), (0.9, 1)):
        is_in = (drift >= low) & ((drift < high) | (high == 1))
        means = [float(score[is_in].mean()) if is_in.any() else math.nan for score in (psnr, ssim)]
        rows.append([f"{low:g} to {high:g}", float(is_in.sum()), *means])
    return Table(title=f"frames by drift, {motion} motion", columns=["drift", "frames", "psnr", "ssim"], rows=rows)
