"""Options of `worldscape eval` that its evaluations share, and how lists read on its command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from worldscape.data.episode import HELD_OUT_SEED
from worldscape.engines import SAMPLERS
from worldscape.evaluate.episodes import SOURCES
from worldscape.precision import PRECISIONS

ENGINE_OPTIONS = ("device", "steps_per_frame", "sampler", "precision", "temperature")
"""Options of every evaluation that are those of the engine."""


def add_evaluation(
    evaluations,
    name: str,
    run,
    *,
    episodes: int,
    policy: str | None,
    sources: tuple[str, ...] = SOURCES,
) -> argparse.ArgumentParser:
    """Add an evaluation with the options that all share; `policy` None: nobody walks; sources: simulators to choose."""
    parser = evaluations.add_parser(name, help=run.__doc__, description=run.__doc__)
    parser.set_defaults(func=run, data=None)
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights or of a run")
    if sources:
        parser.add_argument("--source", choices=sources, default=sources[0], help="the simulator that judges")
    parser.add_argument("--episodes", type=int, default=episodes, help="number of held-out layouts")
    parser.add_argument("--first-seed", type=int, default=HELD_OUT_SEED, help="first layout; the others follow")
    if policy is not None:
        parser.add_argument("--policy", default=policy, help="who walks, or moves the hand: one of the recorder's")
    parser.add_argument("--batch", type=int, default=16, help="dreams that run side by side")
    parser.add_argument("--steps-per-frame", type=int, help="denoising model calls a frame; default: the weights' own")
    parser.add_argument("--sampler", choices=SAMPLERS, default="blockwise", help="how frames are sampled")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="what the networks compute in")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the noise where memory shows nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for pictures (and what is worth keeping for the next run)")
    return parser


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of the engine, by name (ENGINE_OPTIONS)."""
    return {name: getattr(args, name) for name in ENGINE_OPTIONS}


def read_names(text: str) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b")."""
    return tuple(text.split(","))


def read_counts(text: str) -> tuple[int, ...]:
    """ "1,4" -> (1, 4). Raises argparse's error for what are no whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of step counts such as 1,4,16,64") from error
