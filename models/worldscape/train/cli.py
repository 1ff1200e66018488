"""`worldscape train codec|world|spatial|decoder|heads`: builds the model and the stage, then hands over to the loop.

A stage module offers `DEFAULTS` (preset name -> TrainConfig) and
`build_stage(model_config, train_config, dataset_path, init) -> Stage`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldscape.train.config import TrainConfig, override, parse_assignments

if TYPE_CHECKING:
    from worldscape.config import WorldConfig
    from worldscape.world import WorldModel

# What must come trained from --init before a stage makes sense.
NEEDS = {
    "codec": (),
    "world": ("codec",),
    "spatial": ("codec", "transformer"),
    "decoder": ("codec", "transformer"),
    "heads": ("codec", "transformer"),
}


def add_parser(subparsers: Any) -> None:
    """Add `train` and its stages to an argparse subparsers object; `args.func(args)` runs it, returns the exit code."""
    parser = subparsers.add_parser("train", help="train a codec, a world or heads on a recorded dataset")
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in NEEDS:
        stage = stages.add_parser(name, help=f"train the {name}")
        stage.add_argument("--preset", default="nano", help="model size: debug, nano (default), small")
        stage.add_argument("--data", required=True, help="dataset directory or Minari id (worldscape record makes one)")
        stage.add_argument("--out", required=True, type=Path, help="run directory; a run found there goes on")
        stage.add_argument("--init", help="weights to start from: a run, a weights directory or a shipped name")
        stage.add_argument("--steps", type=int, help="optimiser steps in all")
        stage.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on")
        assignment = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
        stage.add_argument("--set", **assignment, help="any TrainConfig field: lr=3e-4")
        stage.add_argument("--model", **assignment, help="any WorldConfig field: transformer.anchor=false")
        stage.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train one stage as the command line says. Returns 0, or 128 + the number of the signal that stopped it."""
    from worldscape.train.loop import train

    module = importlib.import_module(f"worldscape.train.{args.stage}")
    model_config = choose_model(args.preset, args.model)
    config = choose_config(module.DEFAULTS, args)
    model, provenance = build_model(model_config, args.stage, args.init, config.seed)
    stage = module.build_stage(model_config, config, args.data, args.init)
    provenance[args.stage] = {"preset": args.preset, "data": Path(args.data).name}
    train(stage, model, config, args.out, provenance)
    return exit_code(args.out)


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
    taken = copy_parts(load_world(init), model)
    for part in NEEDS[stage_name]:
        if taken[part] < 1.0:
            raise ValueError(f"the {part} of --init {init} does not fit this --preset: use the one of its training")
    words = [part if share == 1 else f"{share:.0%} of the {part}" for part, share in taken.items() if share]
    print(f"from {init}: {', '.join(words) or 'nothing fits'}", flush=True)
    return model, copy.deepcopy(read_provenance(init))


def copy_parts(source: WorldModel, target: WorldModel) -> dict[str, float]:
    """Copy codec, transformer and heads, in place. Returns the share of each part's weights that were copied.

    A part of another architecture is copied tensor by tensor where names and shapes agree, so that a model with, say,
    more latent channels starts from what the smaller one learned; where less than half would fit, nothing is.
    """
    from worldscape.checkpoint import PARTS

    shares = {}
    for part in PARTS:
        tensors, module = getattr(source, part).state_dict(), getattr(target, part)
        wanted = module.state_dict()
        fitting = {k: v for k, v in tensors.items() if k in wanted and v.shape == wanted[k].shape}
        total = max(sum(v.numel() for v in wanted.values()), sum(v.numel() for v in tensors.values()))
        shares[part] = sum(v.numel() for v in fitting.values()) / total
        if shares[part] >= 0.5:
            module.load_state_dict(fitting, strict=False)
        else:
            shares[part] = 0.0
    return shares


def exit_code(out: Path) -> int:
    """0 for a run that finished or used up its minutes, 128 + N after signal N."""
    from worldscape.train.log import STATUS_FILE

    why = json.loads((out / STATUS_FILE).read_text())["status"]
    return 128 + signal.Signals[why] if why.startswith("SIG") else 0
