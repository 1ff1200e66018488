"""A progress bar with the time left on a terminal, and a plain line now and then where output goes to a file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_LINE_EVERY = 10.0  # seconds


class Progress:
    """Counts things that get done, as a context manager.

    Args:
        unit: what is counted, in the plural.
        total: how many there will be.
        done: how many were there before; they do not count towards the speed.
    """

    def __init__(self, unit: str, *, total: int, done: int = 0) -> None:
        self.unit, self.total, self.done = unit, total, done
        self._initial = done
        self._start = self._last_line = time.monotonic()
        self._bar = _make_bar(unit, total, done)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY or self.done == self.total:
            self._last_line = now
            left = (now - self._start) / (self.done - self._initial) * (self.total - self.done)
            print(f"{self.done}/{self.total} {self.unit}, {left:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _make_bar(unit: str, total: int, done: int):
    """tqdm's bar on a terminal; None elsewhere, and where tqdm is not installed."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, unit=f" {unit}", dynamic_ncols=True)
