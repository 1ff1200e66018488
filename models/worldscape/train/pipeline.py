"""`worldscape train all`: every stage in turn, each in OUT/<stage> on the weights of the one before; then OUT/weights.

The same command goes on wherever it was stopped: finished stages are kept, the one that was stopped resumes, bit for
bit as if nothing had happened. A stage whose beginnings have changed since, because an earlier one went on or another
share of it is taken, begins again, and its old run is set aside; so does one that had finished with other settings. A
config file says what differs from the preset:

    {"order": ["codec", "world", ...], "model": {"steps_per_frame": 2}, "stages": {"world": {"steps": 20000}},
     "teachers": {"distill": "teacher"}, "shares": {"distill": 0.3},
     "builds_on": {"world": "init"}, "models": {"decoder-hands": {"codec": {"hand_decoder": true}}}, "bits": 8}

A stage may come again under a name of its own: "decoder-hands" is stage `decoder` in a run of that name.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from worldscape.atomic import whole_file
from worldscape.average import average_worlds
from worldscape.checkpoint import BITS, load_world, read_provenance, save_world, weights_id
from worldscape.config import WorldConfig, preset
from worldscape.data.clips import load_frames
from worldscape.train.cli import NEEDS, TAUGHT, StageRun, began_with, train_stage
from worldscape.train.config import TrainConfig, override
from worldscape.train.log import STATUS_FILE

ORDER = ("codec", "world", "ode", "distill", "decoder", "heads")
TABLES = ("model", "models", "stages", "teachers", "shares", "builds_on")
SECTIONS = ("order", *TABLES, "bits")
INIT = "init"
"""Name in a config file of the weights that the first stage starts from."""
SHARED = {**dict.fromkeys(("world", "spatial", "ode", "distill"), "generator"), "decoder": "decoder"}
"""Stages that may be taken in part, and the part of the weights that they change."""
GENERATORS = ("teacher", "world", "spatial", "ode", "distill")
"""Stages that train the generator."""
ORIGIN = "origin.json"
"""File in a stage's run: the checksums of the weights that it began with, its data, model and settings."""
INCIDENTAL = {"device", "threads", "loaders", "compile", "tensorboard", "log_every", "sample_every", "checkpoint_every"}
"""Settings that do not change, but for rounding, what a run ends with."""
DURATION = {"steps", "lease", "minutes"}
"""Settings whose change lets a run go on (is_finished)."""
TAKEN = "taken"
"""Folder in a stage's run, of what later stages build on where that is a share of the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a config file may say. order: stages, first to last, those that come again as STAGE-LABEL; model:
    WorldConfig by section, stages: TrainConfig by stage; both hold only what differs from the preset. models: what else
    changes of the model from a stage on. teachers: earlier stage whose weights teach a student, by the student's stage.
    shares: how far later stages follow one, from what it began with (0) to what it ended with (1). builds_on: an
    earlier stage, or "init", whose weights a stage starts from instead of the stage before it. bits: of a weight in the
    files of the finished model (save_world)."""

    order: tuple[str, ...] = ORDER
    model: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    builds_on: Mapping[str, str] = field(default_factory=dict)
    bits: int = BITS[0]

    def __post_init__(self) -> None:
        self._check_types()
        for name in (*self.order, *self.stages):
            if stage_of(name) not in NEEDS:
                raise ValueError(f"unknown stage {name!r} in the config file: choose of {', '.join(NEEDS)}")
        if not self.order or len(set(self.order)) < len(self.order):
            raise ValueError(f"order {list(self.order)} must name stages, each once")
        for section, names in (("models", self.models), ("stages", self.stages)):
            for name in names:
                if name not in self.order:
                    raise ValueError(f"{section} has {name!r}, which is no stage in order {list(self.order)}")
        for student, teacher in self.teachers.items():
            if stage_of(student) not in TAUGHT or teacher not in self.order[: self._place(student)]:
                raise ValueError(
                    f"teachers says that {teacher!r} teaches {student!r}: name a student, {' or '.join(TAUGHT)}, and a "
                    f"stage before it in order {list(self.order)}"
                )
        for stage, before in self.builds_on.items():
            if stage not in self.order or before not in (INIT, *self.order[: self._place(stage)]):
                raise ValueError(
                    f"builds_on says that {stage!r} builds on {before!r}: name stages in order {list(self.order)}, "
                    f"each with one before it or {INIT!r}"
                )
        for stage, share in self.shares.items():
            if stage_of(stage) not in SHARED or stage not in self.order or not _is_share(share):
                raise ValueError(
                    f"shares has {stage!r}: {share!r}; name stages in order {list(self.order)}, "
                    f"of {', '.join(SHARED)}, each with a number from 0 to 1"
                )

    def _check_types(self) -> None:
        if not isinstance(self.order, tuple) or not all(isinstance(name, str) for name in self.order):
            raise ValueError(f"order is {self.order!r}; give a list of stages such as {json.dumps(ORDER[:2])}")
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; a weight takes {' or '.join(map(str, BITS))}")
        for section in TABLES:
            table = getattr(self, section)
            if not isinstance(table, Mapping):
                raise ValueError(f"{section} is {table!r}; give a table, as in docs/training.md")
        for section in ("models", "stages"):
            for name, table in getattr(self, section).items():
                if not isinstance(table, Mapping):
                    raise ValueError(f"{section} has {table!r} for {name!r}; give a table of settings")

    def _place(self, stage: str) -> int:
        return self.order.index(stage) if stage in self.order else 0


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def stage_of(name: str) -> str:
    """The stage that a name in a plan stands for: "decoder-hands" is `decoder`."""
    return name.partition("-")[0]


def read_plan(path: Path | None) -> Plan:
    """A plan from JSON or TOML; None gives the default. Raises ValueError for unknown sections and stages."""
    if path is None:
        return Plan()
    values = _read_table(path)
    unknown = sorted(values.keys() - set(SECTIONS))
    if unknown:
        raise ValueError(f"{path} has unknown sections {unknown}; known are {', '.join(SECTIONS)}")
    order = values.get("order", ORDER)
    return Plan(**{**values, "order": tuple(order) if isinstance(order, list) else order})


def _read_table(path: Path) -> dict[str, Any]:
    text = path.read_text()
    try:
        values = _parse_toml(text, path) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not readable ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no table of settings")
    return values


def _parse_toml(text: str, path: Path) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise ValueError(f"TOML needs Python 3.11 or newer: write {path.with_suffix('.json').name} instead")
    import tomllib

    return tomllib.loads(text)


def run_pipeline(
    size: str, data: tuple[str, ...], out: Path, config_file: Path | None, minutes: float, init: str | None = None
) -> int:
    """Train all stages of a preset. minutes: stop after so many (0: no limit); init: weights that the first stage
    starts from. Returns as train_stage does.

    Raises ValueError for a config file that is not understood, and under torchrun, before anything is trained.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("train all runs in one process: under torchrun train its stages one by one")
    plan, started = read_plan(config_file), time.perf_counter()
    runs = plan_runs(size, data, out, plan, init)
    check_episodes([run for run in runs if not is_finished(run)])
    for wanted in runs:
        begin(wanted)
        if is_finished(wanted):
            print(f"{wanted.out.name}: finished before, kept", flush=True)
        else:
            print(f"{wanted.out.name}: training in {wanted.out}", flush=True)
            left = minutes - (time.perf_counter() - started) / 60
            limit = max(left, 1e-9) if minutes else wanted.config.minutes
            code = train_stage(replace(wanted, config=replace(wanted.config, minutes=limit)))
            if not is_finished(wanted):
                return code
        take_share(wanted, plan)
    last = result_of(plan.order[-1], out, plan)
    save_world(load_world(last), out / "weights", read_provenance(last), plan.bits)
    return 0


def check_episodes(runs: list[StageRun]) -> None:
    """Raise ValueError, which names the stage, where the episodes are too short for one of these stages."""
    for run in runs:
        store = load_frames(run.data, run.model.codec.size, hands=run.model.transformer.hands)
        try:
            run.config.check_episodes(store, run.model.memory)
        except ValueError as error:
            raise ValueError(f"stage {run.out.name}: {error}") from error


def begin(run: StageRun) -> None:
    """Note what a stage begins with. Set its run aside, as <stage>.before-N, when that was something else, or when it
    had finished with other settings; one that was stopped goes on with new settings, and says so."""
    now, note = origin_of(run), run.out / ORIGIN
    known = json.loads(note.read_text()) if note.is_file() else {}
    changed = {key for key, value in now.items() if known.get(key, value) != value}
    if not has_ended(run):
        changed.discard("settings")
    if changed:
        aside = next(path for n in count(1) if not (path := run.out.with_name(f"{run.out.name}.before-{n}")).exists())
        run.out.rename(aside)
        what = ", ".join(sorted(changed))
        print(f"{run.out.name}: what it began with has changed ({what}); the old run is {aside}", flush=True)
    with whole_file(note) as path:
        path.write_text(json.dumps(now))


def origin_of(run: StageRun) -> dict[str, Any]:
    """All that a stage's result depends on, but for how long it is trained, as JSON reads it back."""
    settings = {k: v for k, v in run.config.to_dict().items() if k not in INCIDENTAL | DURATION}
    return json.loads(json.dumps({**began_with(run), "model": run.model.to_dict(), "settings": settings}))


def result_of(name: str, out: Path, plan: Plan) -> Path:
    """The weights that stages after this one build on."""
    return out / name / TAKEN if name in plan.shares else out / name


def take_share(run: StageRun, plan: Plan) -> None:
    """Write what is taken of a finished stage, where the plan takes a share only."""
    name = run.out.name
    if name not in plan.shares:
        return
    if run.init is None:
        raise ValueError(f"shares: {name!r} began with nothing, so there is no way from there to be followed")
    part = "hand_decoder" if getattr(run.config, "hands_only", False) else SHARED[run.stage]
    share, known = plan.shares[name], dict(read_provenance(run.out))
    taken = average_worlds(load_world(run.init), load_world(run.out), share, part)
    if not (run.out / TAKEN).exists() or weights_id(load_world(run.out / TAKEN)) != weights_id(taken):
        save_world(taken, run.out / TAKEN, known | {f"{name} taken": share})


def plan_runs(size: str, data: tuple[str, ...], out: Path, plan: Plan, init: str | None = None) -> list[StageRun]:
    """The stages of a preset in order, each built on the one before, the first on `init`; students learn from whom the
    plan says, or else from the last causal generator that was trained on recorded frames, or from `init`.

    Raises ValueError for a student without a teacher, and for a stage that needs a generator before there is one."""
    taught_by: str | None = None
    model = merge_model(preset(size), plan.model)
    runs: list[StageRun] = []
    first = init
    for name in plan.order:
        stage, before = stage_of(name), plan.builds_on.get(name)
        model = merge_model(model, plan.models.get(name, {}))
        has_generator = first is not None or any(run.stage in GENERATORS for run in runs)
        if "transformer" in NEEDS[stage] and not has_generator:
            raise ValueError(
                f"{name!r} builds on a trained generator, which nothing before it in order {list(plan.order)} makes: "
                "put 'world' before it, or give --init"
            )
        if before is not None:
            init = first if before == INIT else str(result_of(before, out, plan))
        runs.append(
            StageRun(
                stage=stage,
                preset=size,
                model=model,
                config=stage_config(stage, size, plan.stages.get(name, {})),
                data=data,
                out=out / name,
                init=init,
                teacher=_teacher_of(name, taught_by, out, plan, first) if stage in TAUGHT else None,
            )
        )
        init = str(result_of(name, out, plan))
        if stage in ("world", "spatial"):
            taught_by = name
    return runs


def _teacher_of(name: str, taught_by: str | None, out: Path, plan: Plan, init: str | None) -> str:
    """The weights that teach a student: of the stage that the plan names, or of `taught_by`, or `init` where the plan
    trains no codec of its own before."""
    teacher = plan.teachers.get(name, taught_by)
    if teacher is not None:
        return str(result_of(teacher, out, plan))
    before = {stage_of(stage) for stage in plan.order[: plan.order.index(name)]}
    if init is None or "codec" in before:
        raise ValueError(
            f"{name!r} has nothing to learn from in order {list(plan.order)}: put 'world' before it, name a stage in "
            "teachers, or begin after the codec with --init"
        )
    return init


def merge_model(config: WorldConfig, changes: Mapping[str, Any]) -> WorldConfig:
    """A model config with the sections of a config file put in. Raises ValueError for unknown keys."""
    values = config.to_dict()
    for key, value in changes.items():
        is_part = isinstance(values.get(key), dict) and isinstance(value, Mapping)
        values[key] = {**values[key], **value} if is_part else value
    return WorldConfig.from_dict(values)


def stage_config(stage: str, name: str, changes: Mapping[str, Any]) -> TrainConfig:
    """The preset's settings of a stage with those of a config file put in. Raises ValueError for unknown keys."""
    defaults = importlib.import_module(f"worldscape.train.{stage}").DEFAULTS
    try:
        return override(defaults[name], changes)
    except ValueError as error:
        raise ValueError(f"stage {stage}: {error}") from error


def is_finished(wanted: StageRun) -> bool:
    """Whether a stage has made all the steps that are wanted of it, or used up the lease that it is to have."""
    found = _status(wanted)
    is_spent = wanted.config.lease > 0 and found.get("lease") == wanted.config.lease
    return has_ended(wanted) and (found["step"] == wanted.config.steps or is_spent)


def has_ended(wanted: StageRun) -> bool:
    """Whether a stage's run had come to its end, whatever is wanted of it now."""
    return _status(wanted).get("status") == "finished"


def _status(wanted: StageRun) -> dict[str, Any]:
    """What a stage's run said of itself last; nothing where there is none."""
    file = wanted.out / STATUS_FILE
    return json.loads(file.read_text()) if file.is_file() else {}
