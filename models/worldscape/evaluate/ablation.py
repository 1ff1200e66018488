"""Several weights side by side: the same evaluations on the same layouts, one row each, and how fast they step.

A variant is weights, and what its engine does otherwise than they say: `student=runs/distill`,
`teacher=runs/world,steps_per_frame=8`, `without pool=runs/distill,policy=sink+local`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from worldscape.checkpoint import load_world
from worldscape.clip_engine import ClipEngine
from worldscape.engine import WorldEngine
from worldscape.engines import open_engine
from worldscape.evaluate.dream import Engine, make_start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.report import Report, Table

COLUMNS = (
    "psnr_model_h4",
    "psnr_model_h16",
    "psnr_model_h64",
    "sharpness_ratio_h64",
    "action_accuracy_dream",
    "action_accuracy_ratio",
    "memory_symmetry_psnr",
    "memory_return_psnr",
    "drift_within",
    "drift_sharpness_ratio_mean",
    "drift_contrast_ratio_mean",
    "drift_contrast_ratio_last",
    "drift_change_ratio_mean",
    "drift_variety_ratio_mean",
    "drift_recurrence_ratio_mean",
    "model_calls_per_frame",
    "env_steps_per_second",
)
WARM_UP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row: its name, weights, and where the engine departs from them (None: nowhere)."""

    name: str
    weights: str
    steps_per_frame: int | None = None
    sampler: str = "blockwise"
    policy: str | None = None

    def open_engine(self, slots: int, device: str, precision: str = "auto") -> WorldEngine:
        """The variant's engine."""
        model = load_world(self.weights, device)
        memory = None if self.policy is None else replace(model.config.memory, policy=self.policy)
        return open_engine(
            model,
            slots,
            sampler=self.sampler,
            device=device,
            steps_per_frame=self.steps_per_frame,
            memory=memory,
            precision=precision,
        )


def read_variant(text: str) -> Variant:
    """ "NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P]" -> Variant. Raises ValueError for anything else."""
    name, equals, rest = text.partition("=")
    weights, *options = rest.split(",")
    pairs = {key: value for key, _, value in (option.partition("=") for option in options)}
    if not (name and equals and weights) or not pairs.keys() <= {"steps_per_frame", "sampler", "policy"}:
        raise ValueError(f"--row {text!r} does not read as NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P]")
    steps = int(pairs.pop("steps_per_frame")) if "steps_per_frame" in pairs else None
    return Variant(name=name.strip(), weights=weights, steps_per_frame=steps, **pairs)


class TimedEngine(Engine, Protocol):
    """An engine that says where it computes."""

    device: torch.device


def measure_speed(
    engine: TimedEngine, episodes: EpisodeBatch, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Steps of all slots together per second, after a warm-up, and model calls a frame; the episodes repeat to fill
    the slots.

    Raises ValueError for episodes too short to measure anything.
    """
    if episodes.num_steps <= WARM_UP:
        raise ValueError(f"episodes have {episodes.num_steps} steps; the speed takes more than {WARM_UP}")
    batch = episodes.rows([slot % len(episodes) for slot in range(engine.num_slots)])
    engine.open(make_start(batch, 1), torch.from_numpy(batch.seeds))
    controls = torch.from_numpy(batch.controls)
    if isinstance(engine, ClipEngine):
        engine.foresee(controls)
    begin = calls = 0
    for step in range(episodes.num_steps):
        if step == WARM_UP:
            _wait(engine.device)
            begin, calls = clock(), 0
        calls += engine.step(controls[:, step]).model_calls
    _wait(engine.device)
    measured = episodes.num_steps - WARM_UP
    per_second = measured * engine.num_slots / (clock() - begin)
    return {"env_steps_per_second": per_second, "model_calls_per_frame": calls / measured}


def tabulate_variants(reports: Sequence[tuple[Variant, Report]]) -> Table:
    """One row a variant, of the metrics in COLUMNS that were measured."""
    columns = [name for name in COLUMNS if any(name in report.metrics for _, report in reports)]
    rows = [[v.name, r.weights, *[r.metrics.get(name, math.nan) for name in columns]] for v, r in reports]
    return Table(title="ablation", columns=["variant", "weights", *columns], rows=rows)


def save_ablation(out: Path, command: str, reports: Sequence[tuple[Variant, Report]]) -> list[Path]:
    """Write out/ablation.md (the table, the command beside it) and out/ablation.json (every metric); their paths."""
    out.mkdir(parents=True, exist_ok=True)
    table, text = tabulate_variants(reports), out / "ablation.md"
    device = reports[0][1].device
    text.write_text(f"# Ablation\n\n`{command}`\n\n{device}. Columns: docs/metrics.md.\n\n{table.to_markdown()}\n")
    data = out / "ablation.json"
    data.write_text(json.dumps({variant.name: json.loads(report.to_json()) for variant, report in reports}, indent=1))
    return [text, data]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
