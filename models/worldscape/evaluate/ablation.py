"""Several weights side by side: the same evaluations on the same layouts, one row each, and how fast they step.

A variant is weights, and what its engine does otherwise than they say: `student=runs/distill`,
`teacher=runs/world,steps_per_frame=8`, `without pool=runs/distill,policy=sink+local`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from worldscape.checkpoint import load_world
from worldscape.clip_engine import ClipEngine
from worldscape.engine import WorldEngine
from worldscape.engines import open_engine
from worldscape.evaluate.dream import Engine, make_start
from worldscape.evaluate.drift import COMPARED
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.report import Report, Table

HORIZONS = ("h4", "h16", "h64")
CLOSENESS = tuple(f"psnr_model_{horizon}" for horizon in HORIZONS)
DRIFTS = tuple(f"drift_{name}_ratio_{kind}" for name in COMPARED for kind in ("mean", "last"))
MEASURES = (
    *CLOSENESS,
    *(f"psnr_gain_copy_{horizon}" for horizon in HORIZONS),
    "sharpness_ratio_h64",
    "action_accuracy_ratio",
    "memory_symmetry_psnr",
    "memory_return_psnr",
    *DRIFTS,
    "drift_within_each",
    "model_calls_per_frame",
    "env_steps_per_second",
)
"""What the table shows of each variant; the report's line holds more."""
WARM_UP = 5
NUMBERS = {"steps_per_frame": int, "temperature": float}  # options of a row that are numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row: its name, weights, and where the engine departs from them (None: nowhere)."""

    name: str
    weights: str
    steps_per_frame: int | None = None
    sampler: str = "blockwise"
    policy: str | None = None
    temperature: float = 1.0

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
            temperature=self.temperature,
        )


def read_variant(text: str) -> Variant:
    """ "NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P][,temperature=T]" -> Variant. Raises ValueError for
    anything else."""
    name, equals, rest = text.partition("=")
    weights, *options = rest.split(",")
    pairs: dict[str, Any] = {key: value for key, _, value in (option.partition("=") for option in options)}
    if not (name and equals and weights) or not pairs.keys() <= {"sampler", "policy", *NUMBERS}:
        form = "NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P][,temperature=T]"
        raise ValueError(f"--row {text!r} does not read as {form}")
    pairs |= {key: NUMBERS[key](value) for key, value in pairs.items() if key in NUMBERS}
    return Variant(name=name.strip(), weights=weights, **pairs)


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
    """One column a variant; below their weights those of MEASURES that were measured, standard errors in brackets."""
    named = ["weights", *[report.weights for _, report in reports]]
    rows = [[name, *[_tell(report, name) for _, report in reports]] for name in _measured(reports, MEASURES)]
    return Table(title="ablation", columns=["", *[variant.name for variant, _ in reports]], rows=[named, *rows])


def tabulate_gains(reports: Sequence[tuple[Variant, Report]]) -> Table:
    """By how much PSNR and drift of each further variant exceed the first one's, in pairs, with standard errors; no
    rows where there is only one."""
    others, (first, _) = reports[1:], reports[0]
    names = _measured(others, [_derived(name, "gain") for name in (*CLOSENESS, *DRIFTS)])
    rows = [[name, *[_tell(report, name, "+") for _, report in others]] for name in names]
    return Table(title=f"over {first.name!r}, in pairs", columns=["", *[v.name for v, _ in others]], rows=rows)


def save_ablation(out: Path, command: str, reports: Sequence[tuple[Variant, Report]]) -> list[Path]:
    """Write out/ablation.md (the tables, the command above them) and out/ablation.json (every metric); their paths."""
    out.mkdir(parents=True, exist_ok=True)
    gains, text = tabulate_gains(reports), out / "ablation.md"
    parts = [
        "# Ablation",
        f"`{command}`",
        f"{reports[0][1].device}. Names: docs/metrics.md; in brackets standard errors.",
        tabulate_variants(reports).to_markdown(),
    ]
    if gains.rows:
        parts += [f"Gains {gains.title}:", gains.to_markdown()]
    text.write_text("\n\n".join(parts) + "\n")
    data = out / "ablation.json"
    data.write_text(json.dumps({variant.name: json.loads(report.to_json()) for variant, report in reports}, indent=1))
    return [text, data]


def _measured(reports: Sequence[tuple[Variant, Report]], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(name in report.metrics for _, report in reports)]


def _derived(name: str, what: str) -> str:
    """The name of a metric's "gain" or "error": a horizon stays at the end."""
    return re.sub(r"((?:_h\d+)?)$", rf"_{what}\1", name, count=1)


def _tell(report: Report, name: str, sign: str = "") -> str:
    """A metric with two decimals, its standard error in brackets where there is one; a dash where it was not taken."""
    value, error = (report.metrics.get(key, math.nan) for key in (name, _derived(name, "error")))
    told = "-" if math.isnan(value) else f"{value:{sign}.2f}"
    return told if math.isnan(error) else f"{told} ({error:.2f})"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
