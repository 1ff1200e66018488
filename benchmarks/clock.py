"""Time on a device: waiting for it, and dividing it among the parts of a program. Imports torch for CUDA only."""

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

OUTSIDE = ""  # of all parts


def wait_for(device: str) -> None:
    """Return when the device has done all that it was told; a CPU has."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


class Clock:
    """Divides time among named parts. A part that begins within another interrupts it, so that parts add up.

    A mark is a time on a CPU and an event in the stream on CUDA, where the seconds are therefore the device's: nothing
    waits between marks, and what the device waits for the host counts for the part in which it does.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._now: Callable[[], Any] = self._mark_stream if device.startswith("cuda") else time.perf_counter
        self._open: list[str] = []
        self._marks: list[tuple[str, Any]] = []

    @property
    def is_running(self) -> bool:
        """Whether any part has begun and not ended."""
        return bool(self._open)

    def begin(self, part: str) -> None:
        """From now on time belongs to `part`."""
        self._open.append(part)
        self._marks.append((part, self._now()))

    def end(self) -> None:
        """The part that began last is over; time belongs to the one that it interrupted."""
        self._open.pop()
        self._marks.append((self._open[-1] if self._open else OUTSIDE, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading; on CUDA it waits until they are over."""
        wait_for(self.device)
        seconds: dict[str, float] = defaultdict(float)
        for (part, begin), (_, end) in pairwise(self._marks):
            if part != OUTSIDE:
                seconds[part] += self._between(begin, end)
        self._marks.clear()
        return dict(seconds)

    def _mark_stream(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1000 if self.device.startswith("cuda") else end - begin
