"""A step of all slots as one CUDA graph: recorded once, then started as a whole.

A step of small networks is more than a thousand kernels of a few microseconds, and starting them one by one from Python
takes ten times as long as they run. What a graph reads and writes must lie where it lay when it was recorded, so the
slots' tensors get fixed places: a step takes its inputs from such places and leaves its results there.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.slots import SlotState

WARM_UPS = 2  # steps of each kind that are not recorded: constants and libraries are made ready in them
MEMORY = "memory."  # begins the names of memory's tables

Step = Callable[..., None]
Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Takes what a step does, without doing it -> what does it from then on."""


class _Recorded(NamedTuple):
    inputs: list[Tensor | None]
    replay: Callable[[], object]


def record_graph(work: Callable[[], None]) -> Callable[[], object]:
    """`work` as a CUDA graph. Raises RuntimeError for work that waits for the device, or asks for more memory than
    there is."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class StepGraphs:
    """Steps of one engine's slots, each kind (hands or none, say) recorded once it has been made WARM_UPS times.

    Between steps the slots may be changed in any way. Where a step cannot be recorded, a warning says so, and steps go
    on one kernel after the other.
    """

    def __init__(self, state: SlotState, record: Record = record_graph):
        self._state, self._record = state, record
        self._kept: dict[str, Tensor] = {}
        self._recorded: dict[Hashable, _Recorded] = {}
        self._made: Counter[Hashable] = Counter()
        self._is_off = False

    @property
    def is_replaying(self) -> bool:
        """Whether some step has been recorded, so that later ones may overwrite the slots' tensors in place."""
        return bool(self._recorded)

    def run(self, kind: Hashable, step: Step, inputs: Sequence[Tensor | None]) -> None:
        """Do `step(*inputs)`, which changes the slots' tensors and nothing else; of one kind, inputs have one shape."""
        if kind not in self._recorded and not self._is_off and self._made[kind] >= WARM_UPS:
            self._try_to_record(kind, step, inputs)
        known = self._recorded.get(kind)
        if known is None:
            self._made[kind] += 1
            step(*inputs)
            return
        self._put_in_place()
        for place, given in zip(known.inputs, inputs, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        known.replay()

    def _try_to_record(self, kind: Hashable, step: Step, inputs: Sequence[Tensor | None]) -> None:
        self._put_in_place()
        places = [None if given is None else given.clone() for given in inputs]
        try:
            self._recorded[kind] = _Recorded(places, self._record(lambda: self._step_in_place(step, places)))
        except RuntimeError as error:
            self._is_off = True
            warnings.warn(f"steps are not recorded as CUDA graphs, which would be faster: {error}", stacklevel=4)
        finally:
            self._put(self._kept)

    def _step_in_place(self, step: Step, inputs: Sequence[Tensor | None]) -> None:
        """The step, with what it makes of the slots in the places where they were before."""
        step(*inputs)
        taken = {place.data_ptr() for place in self._kept.values()}
        made = {name: new for name, new in self._tensors().items() if new is not self._kept[name]}
        made = {name: new.clone() if new.data_ptr() in taken else new for name, new in made.items()}
        for name, new in made.items():
            self._kept[name].copy_(new)
        self._put(self._kept)

    def _put_in_place(self) -> None:
        """Bring what has become of the slots between steps to where graphs look for it."""
        now = self._tensors()
        for name, tensor in now.items():
            if name not in self._kept:
                self._kept[name] = tensor.clone()
            elif tensor is not self._kept[name]:
                self._kept[name].copy_(tensor)
        self._put(self._kept)

    def _tensors(self) -> dict[str, Tensor]:
        tables = self._state.memory.tables.tensors()
        return {**self._state.tensors(), **{f"{MEMORY}{name}": tensor for name, tensor in tables.items()}}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        tables = {name: tensor for name, tensor in tensors.items() if name.startswith(MEMORY)}
        self._state.put({name: tensor for name, tensor in tensors.items() if name not in tables})
        self._state.memory.tables.put({name.removeprefix(MEMORY): tensor for name, tensor in tables.items()})
