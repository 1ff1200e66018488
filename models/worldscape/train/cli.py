"""`worldscape train STAGE` builds the model and the stage, then hands over to the loop; `train all` runs them in turn.

A stage module offers `DEFAULTS` (preset name -> TrainConfig) and
`build_stage(model_config, train_config, dataset_path, init) -> Stage`; those in TAUGHT take the teacher's weights too.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldscape.train.config import TrainConfig, override, parse_assignments

if TYPE_CHECKING:
    from worldscape.config import WorldConfig
    from worldscape.world import WorldModel

# What must come trained from --init before a stage makes sense.
NEEDS = {
    "codec": (),
    "teacher": ("codec",),
    "world": ("codec",),
    "ode": ("codec", "transformer"),
    "distill": ("codec", "transformer"),
    "spatial": ("codec", "transformer"),
    "decoder": ("codec", "transformer"),
    "heads": ("codec", "transformer"),
}


# Stages whose student learns from frozen weights.
TAUGHT = ("ode", "distill")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """One stage to train: its name, model and settings, the datasets, where it goes, and the weights it builds on."""

    stage: str
    preset: str
    model: WorldConfig
    config: TrainConfig
    data: tuple[str, ...]
    out: Path
    init: str | None
    teacher: str | None = None


def add_parser(subparsers: Any) -> None:
    """Add `train` and its stages to an argparse subparsers object; `args.func(args)` runs it, returns the exit code."""
    parser = subparsers.add_parser("train", help="train a codec, a world or heads on a recorded dataset")
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in NEEDS:
        stage = stages.add_parser(name, help=f"train the {name}")
        _add_common(stage)
        stage.add_argument("--init", help="weights to start from: a run, a weights directory or a shipped name")
        if name in TAUGHT:
            stage.add_argument(
                "--teacher",
                help="frozen weights to learn from: of world, or for distill of teacher (default: --init)",
            )
        stage.add_argument("--steps", type=int, help="optimiser steps in all")
        assignment = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
        stage.add_argument("--set", **assignment, help="any TrainConfig field: lr=3e-4")
        stage.add_argument("--model", **assignment, help="any WorldConfig field: transformer.anchor=false")
        stage.set_defaults(func=run)
    pipeline = stages.add_parser("all", help="train every stage in turn, each on the one before")
    _add_common(pipeline)
    pipeline.add_argument("--config", type=Path, help="JSON or TOML: order, model, stages (docs/training.md)")
    pipeline.add_argument("--init", help="weights that the first stage starts from, as for a single stage")
    pipeline.set_defaults(func=run_all)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="nano", help="model size: debug, nano (default), small")
    data = "dataset directory or Minari id (worldscape record makes one); give it again to train on several together"
    parser.add_argument("--data", required=True, action="append", help=data)
    parser.add_argument("--out", required=True, type=Path, help="run directory; a run found there goes on")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on")


def run(args: argparse.Namespace) -> int:
    """Train one stage as the command line says. Returns 0, or 128 + the number of the signal that stopped it."""
    module = importlib.import_module(f"worldscape.train.{args.stage}")
    return train_stage(
        StageRun(
            stage=args.stage,
            preset=args.preset,
            model=choose_model(args.preset, args.model),
            config=choose_config(module.DEFAULTS, args),
            data=tuple(args.data),
            out=args.out,
            init=args.init,
            teacher=args.teacher if args.stage in TAUGHT else None,
        )
    )


def run_all(args: argparse.Namespace) -> int:
    """Train every stage in turn. Returns as run does."""
    from worldscape.train.pipeline import run_pipeline

    return run_pipeline(args.preset, tuple(args.data), args.out, args.config, args.minutes or 0.0, args.init)


def train_stage(wanted: StageRun) -> int:
    """Train one stage. Returns 0, or 128 + the number of the signal that stopped it.

    Raises ValueError when what it builds on is missing or does not fit.
    """
    from worldscape.checkpoint import load_world
    from worldscape.train.loop import train

    module = importlib.import_module(f"worldscape.train.{wanted.stage}")
    model_config = module.adapt_model(wanted.model) if wanted.stage == "teacher" else wanted.model
    model, provenance = build_model(model_config, wanted.stage, wanted.init, wanted.config.seed)
    sources: list[Any] = [wanted.data, wanted.init]
    origin = began_with(wanted)
    facts: dict[str, Any] = {"preset": wanted.preset, "data": "+".join(Path(data).name for data in wanted.data)}
    if wanted.stage in TAUGHT:
        teacher = wanted.teacher or wanted.init
        assert teacher is not None
        check_teacher(load_world(teacher), model, teacher, may_see_ahead=wanted.stage == "distill")
        facts["teacher"] = origin["teacher"]
        sources.append(teacher)
    stage = module.build_stage(model_config, wanted.config, *sources)
    train(stage, model, wanted.config, wanted.out, provenance, facts, origin)
    return exit_code(wanted.out)


def began_with(run: StageRun) -> dict[str, str | None]:
    """Checksums of what a stage begins with: its recordings, the weights of --init, and those of its teacher."""
    from worldscape.checkpoint import load_world, weights_id
    from worldscape.data.clips import fingerprint

    teacher = (run.teacher or run.init) if run.stage in TAUGHT else None
    weights = {"init": run.init, "teacher": teacher}
    known = {role: None if path is None else weights_id(load_world(path)) for role, path in weights.items()}
    return {"data": fingerprint(run.data), **known}


def check_teacher(teacher: WorldModel, student: WorldModel, name: str, *, may_see_ahead: bool = False) -> None:
    """Raises ValueError unless the teacher reads as many retrieved frames as the student, and its latents mean to the
    student what they mean to itself; and unless it is causal, or may_see_ahead."""
    import torch

    if not (teacher.config.transformer.is_causal or may_see_ahead):
        raise ValueError(f"--teacher {name} sees whole clips: distil from a causal one (train world --init {name})")
    wanted, found = (model.config.memory.num_retrieved for model in (student, teacher))
    if found != wanted:
        raise ValueError(
            f"--teacher {name} reads {found} retrieved frames and the student {wanted}: give --model "
            f"memory.num_retrieved={found}, or train a teacher that reads {wanted}"
        )
    ours, theirs = student.codec.encoder.state_dict(), teacher.codec.encoder.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
        raise ValueError(f"--teacher {name} has another codec than the student: give the run that --init came from")


def choose_config(defaults: dict[str, TrainConfig], args: argparse.Namespace) -> TrainConfig:
    """The preset's default config with --steps, --minutes and --set put in. Raises ValueError for unknown keys."""
    if args.preset not in defaults:
        raise ValueError(f"stage {args.stage} has no preset {args.preset!r}: choose one of {', '.join(defaults)}")
    config = override(defaults[args.preset], parse_assignments(args.set))
    given = {key: getattr(args, key) for key in ("steps", "minutes") if getattr(args, key) is not None}
    return replace(config, **given)


def choose_model(name: str, assignments: list[str]) -> WorldConfig:
    """The preset with --model put in: "transformer.anchor=false". Raises ValueError for unknown keys and values."""
    from worldscape.config import WorldConfig, preset

    values = preset(name).to_dict()
    for key, text in parse_assignments(assignments, "--model").items():
        *sections, last = key.split(".")
        table = values
        for section in sections:
            table = table.get(section)
            if not isinstance(table, dict):
                raise ValueError(f"--model {key}: {section!r} is no section of the config: {', '.join(values)}")
        table[last] = read_json(text)
    return WorldConfig.from_dict(values)


def read_json(text: str) -> Any:
    """JSON where it reads as such (numbers, true, [1, 2]), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def build_model(
    model_config: WorldConfig, stage_name: str, init: str | None, seed: int
) -> tuple[WorldModel, dict[str, Any]]:
    """A freshly initialised model with the parts of `init` that fit, and the provenance of those.

    Raises ValueError when a part that the stage builds on is not there or does not fit.
    """
    import torch

    from worldscape.checkpoint import load_world, read_provenance
    from worldscape.world import WorldModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldModel(model_config)
    if init is None:
        if NEEDS[stage_name]:
            parts = " and ".join(NEEDS[stage_name])
            raise ValueError(f"train {stage_name} builds on a trained {parts}: give --init RUN_OR_WEIGHTS")
        return model, {}
    source = load_world(init)
    taken = copy_parts(source, model)
    for part in NEEDS[stage_name]:
        if taken[part] < 1.0:
            raise ValueError(f"the {part} of --init {init} does not fit this --preset: use the one of its training")
    words = [part if share == 1 else f"{share:.0%} of the {part}" for part, share in taken.items() if share]
    print(f"from {init}: {', '.join(words) or 'nothing fits'}", flush=True)
    if source.codec.hand_decoder is not None and model.codec.hand_decoder is None:
        print("its hand decoder is left out; keep it with --model codec.hand_decoder=true", flush=True)
    return model, copy.deepcopy(read_provenance(init))


LEFT_OUT = "hand_decoder."  # what a codec may go on without


def copy_parts(source: WorldModel, target: WorldModel) -> dict[str, float]:
    """Copy codec, transformer and heads, in place. Returns the share of each part's weights that were copied.

    A part of another architecture is copied tensor by tensor where names and shapes agree, so that a model with, say,
    more latent channels starts from what the smaller one learned; where less than half would fit, nothing is. What a
    generator or a decoder from before hands lacks does not count: it starts unnoticed. A hand decoder starts as the
    decoder is, and is left out where the target has none.
    """
    from worldscape.checkpoint import PARTS
    from worldscape.codec import HAND_WEIGHTS as HANDS_OF_CODEC
    from worldscape.transformer import HAND_WEIGHTS as HANDS_OF_GENERATOR

    shares, unnoticed = {}, {"codec": HANDS_OF_CODEC, "transformer": HANDS_OF_GENERATOR}
    for part in PARTS:
        tensors, module = getattr(source, part).state_dict(), getattr(target, part)
        wanted = module.state_dict()
        tensors = {k: v for k, v in tensors.items() if k in wanted or not k.startswith(LEFT_OUT)}
        fitting = {k: v for k, v in tensors.items() if k in wanted and v.shape == wanted[k].shape}
        needed = {k: v for k, v in wanted.items() if k in tensors or not k.startswith(unnoticed.get(part, ()))}
        total = max(sum(v.numel() for v in needed.values()), sum(v.numel() for v in tensors.values()))
        shares[part] = sum(v.numel() for v in fitting.values()) / total
        if shares[part] >= 0.5:
            module.load_state_dict(fitting, strict=False)
        else:
            shares[part] = 0.0
    if target.codec.hand_decoder is not None and source.codec.hand_decoder is None:
        target.codec.hand_decoder.load_state_dict(target.codec.decoder.state_dict())
    return shares


def exit_code(out: Path) -> int:
    """0 for a run that finished or used up its minutes, 128 + N after signal N."""
    from worldscape.train.log import STATUS_FILE

    why = json.loads((out / STATUS_FILE).read_text())["status"]
    return 128 + signal.Signals[why] if why.startswith("SIG") else 0
