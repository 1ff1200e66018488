"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str], *, ending: str = ".partial") -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends: a reader, or a power cut, finds the old file or the new.

    ending: of the name that the block writes to, for writers that look at it. Folders are made; a block that fails
    leaves nothing behind. Raises OSError where the disk is full or forbidden.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
