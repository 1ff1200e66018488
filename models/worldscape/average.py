"""`worldscape average`: one part between two, for weights that one training stage made of the other; or what a stage
has learned, added to other weights.

What self-forcing gains (sharper, steadier long dreams) and what it costs (closeness to the simulator) both change
gradually along the line between the generator before and after it, so a share picks the compromise; the average of
fine-tuned weights and those before them often keeps most of both (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903). So it does with a decoder that learned hands and became softer elsewhere. What two
stages learned from the same weights adds up as well (task arithmetic, Ilharco et al. 2023,
https://arxiv.org/abs/2212.04089).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from torch import nn

from worldscape.checkpoint import load_world, read_provenance, save_world, weights_id
from worldscape.world import WorldModel

PARTS = ("generator", "decoder", "hand_decoder")
"""What can be averaged."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `average` to the command line."""
    parser = subparsers.add_parser("average", help="one part between two", description=__doc__)
    parser.set_defaults(func=run)
    parser.add_argument("--weights", required=True, help="shipped name, or a directory of weights or of a run")
    parser.add_argument("--towards", required=True, help="weights whose part is the other end")
    parser.add_argument("--share", type=float, required=True, help="how far towards it, 0 to 1")
    parser.add_argument(
        "--since", help="weights that --towards was trained from: add so much of what it has learned to --weights"
    )
    parser.add_argument("--part", choices=PARTS, default="generator", help="what lies between the two")
    parser.add_argument("--out", type=Path, required=True, help="new directory of weights; other parts: --weights'")


def run(args: argparse.Namespace) -> None:
    """Average, save, say where. Raises ValueError as average_worlds does."""
    first, second = load_world(args.weights), load_world(args.towards)
    since = None if args.since is None else load_world(args.since)
    model = average_worlds(first, second, args.share, args.part, since)
    own, other = read_provenance(args.weights), read_provenance(args.towards)
    news = {name: entry for name, entry in other.items() if entry != own.get(name)}
    key = f"{args.part} averaged towards"
    note = {"weights": weights_id(second), "share": args.share, "provenance": news}
    if since is not None:
        key, note["since"] = f"{args.part} learned besides", weights_id(since)
    earlier = {"before": own[key]} if key in own else {}
    save_world(model, args.out, {**own, key: {**note, **earlier}})
    print(f"wrote {args.out}")


def average_worlds(
    first: WorldModel, second: WorldModel, share: float, part: str = "generator", since: WorldModel | None = None
) -> WorldModel:
    """A copy of `first` of which one of PARTS is (1 - share) of its own and share of the other's; none is changed.

    With `since` its own and share of what lies between that and the other's. Raises ValueError for a share outside
    [0, 1], and for generators or codecs that do not go together: an average means something only where all read the
    same latents and one was trained from the other.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share {share} is outside 0 to 1")
    for other in (second, since):
        if other is not None:
            _check_pair(first, other)
    ours, end = _part(first, part).state_dict(), _part(second, part).state_dict()
    if since is not None:
        before = _part(since, part).state_dict()
        end = {name: ours[name] + (end[name] - before[name]) for name in ours}
    made = copy.deepcopy(first)
    _part(made, part).load_state_dict({name: ours[name].lerp(end[name], share) for name in ours})
    return made


def _check_pair(first: WorldModel, second: WorldModel) -> None:
    if first.config.transformer != second.config.transformer or first.config.codec != second.config.codec:
        raise ValueError("the weights have different configs of codec or transformer: only like ones are averaged")
    ours, theirs = first.codec.encoder.state_dict(), second.codec.encoder.state_dict()
    if any(not ours[name].equal(theirs[name]) for name in ours):
        raise ValueError("the weights have different codecs, so their latents mean different things")


def _part(model: WorldModel, name: str) -> nn.Module:
    codec = model.codec
    found = {"generator": model.transformer, "decoder": codec.decoder, "hand_decoder": codec.hand_decoder}[name]
    if found is None:
        raise ValueError("these weights have no hand decoder that could be averaged.")
    return found
