"""One process at a time in a folder: the lock is the operating system's, so it ends with the process."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = "lock"
"""File in the folder that is locked; it stays there, with the number of the process that last held it."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made where it is missing, until the block ends. Without effect where there are no such locks
    (Windows, some network drives). Raises ValueError when another process, or block, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by process {file.read().strip()}; wait until it ends, or choose another --out"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the file."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
