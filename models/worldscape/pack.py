"""`worldscape pack`: the same weights in other files, of 8 bits a weight (half the size) or of 16.

Eight bits change each weight by about 0.8 % of its layer's, and a dream by less than other noise does (docs/LOG.md,
2026-11-29). Train on weights of 16 bits and pack what is finished.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from worldscape.checkpoint import BITS, load_aggregator, load_world, read_provenance, save_world, weights_id


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `pack` to the command line."""
    parser = subparsers.add_parser("pack", help="the same weights in smaller files", description=__doc__)
    parser.set_defaults(func=run)
    parser.add_argument("--weights", required=True, help="shipped name, or a directory of weights or of a run")
    parser.add_argument("--bits", type=int, choices=BITS, default=8, help="how many a weight takes in the files")
    parser.add_argument("--out", type=Path, required=True, help="new directory of weights")


def run(args: argparse.Namespace) -> None:
    """Load, save, say where and how large. Raises ValueError as load_world and save_world do."""
    model = copy.deepcopy(load_world(args.weights))
    model.aggregator = load_aggregator(args.weights)
    save_world(model, args.out, read_provenance(args.weights), args.bits)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"wrote {args.out}: {weights_id(load_world(args.out))}, {size / 2**20:.1f} MiB")
