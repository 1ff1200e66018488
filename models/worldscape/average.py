"""`worldscape average`: the generator between two, for weights that one training stage made of the other.

What self-forcing gains (sharper, steadier long dreams) and what it costs (closeness to the simulator) both change
gradually along the line between the generator before and after it, so a share picks the compromise; the average of
fine-tuned weights and those before them often keeps most of both (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from worldscape.checkpoint import load_world, read_provenance, save_world, weights_id
from worldscape.world import WorldModel


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `average` to the command line."""
    parser = subparsers.add_parser("average", help="the generator between two", description=__doc__)
    parser.set_defaults(func=run)
    parser.add_argument("--weights", required=True, help="shipped name, or a directory of weights or of a run")
    parser.add_argument("--towards", required=True, help="weights whose generator is the other end")
    parser.add_argument("--share", type=float, required=True, help="how far towards it, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="new directory of weights; codec and heads: --weights'")


def run(args: argparse.Namespace) -> None:
    """Average, save, say where. Raises ValueError as average_generators does."""
    first, second = load_world(args.weights), load_world(args.towards)
    model = average_generators(first, second, args.share)
    note = {"weights": weights_id(second), "share": args.share, "provenance": read_provenance(args.towards)}
    save_world(model, args.out, {**read_provenance(args.weights), "averaged towards": note})
    print(f"wrote {args.out}")


def average_generators(first: WorldModel, second: WorldModel, share: float) -> WorldModel:
    """A copy of `first` whose transformer is (1 - share) of its own and share of the other's; neither is changed.

    Raises ValueError for a share outside [0, 1], and for generators or codecs that do not go together: an average means
    something only where both read the same latents and one was trained from the other.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share {share} is outside 0 to 1")
    if first.config.transformer != second.config.transformer or first.config.codec != second.config.codec:
        raise ValueError("the two weights have different configs of codec or transformer: only like ones are averaged")
    ours, theirs = first.codec.encoder.state_dict(), second.codec.encoder.state_dict()
    if any(not ours[name].equal(theirs[name]) for name in ours):
        raise ValueError("the two weights have different codecs, so their latents mean different things")
    made = copy.deepcopy(first)
    ours, theirs = first.transformer.state_dict(), second.transformer.state_dict()
    made.transformer.load_state_dict({name: ours[name].lerp(theirs[name], share) for name in ours})
    return made
