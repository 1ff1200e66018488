"""The `worldscape` command: one module per subcommand, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "record": ("worldscape.data.record", "record episodes of a simulator into a Minari dataset"),
    "check": ("worldscape.data.check", "tell whether a dataset is fit to be trained on"),
    "import": ("worldscape.data.imports", "turn recordings of other projects (EgoDex) into a dataset"),
    "starts": ("worldscape.data.starts", "collect start frames from a dataset into one file"),
    "train": ("worldscape.train.cli", "train the codec, the world, its sense of space or its heads"),
    "average": ("worldscape.average", "the generator between two: how much of what self-forcing changed"),
    "pack": ("worldscape.pack", "the same weights in files of half the size"),
    "eval": ("worldscape.evaluate.cli", "measure a world against its simulator"),
    "dream": ("worldscape.dream", "dream a recorded walk into a video"),
    "play": ("worldscape.play", "walk through a world, in a window or into a video"),
    "orbit": ("worldscape.orbit", "fly through the 3D Gaussians of a world that was walked"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Parser with the options of `command`; the other commands are listed by name and purpose only."""
    parser = argparse.ArgumentParser(prog="worldscape", description="Worlds to step into: record, train, play.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        if name == command:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=purpose)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Expected errors are printed in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(arguments[0] if arguments else None).parse_args(arguments)
        return args.func(args) or 0
    except KeyboardInterrupt:
        print("worldscape: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
        print(f"worldscape: error: {message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
