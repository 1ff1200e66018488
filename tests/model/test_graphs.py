"""Recorded steps: the same dream as without, whatever happens to the slots between steps.

On a CPU nothing can be recorded; there a recording is the step itself, done again in the same places, which is all that
a graph does but for its speed. What forbids recording, reading the device back or sending it something, is looked for
on the device `meta`, which has no memory at all.
"""

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldscape.checkpoint import load_world
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.engines import SAMPLERS
from worldscape.graphs import WARM_UPS, StepGraphs
from worldscape.world import debug_world

NUM_SLOTS = 3


@pytest.fixture(scope="module")
def model():
    return debug_world()


def open_both(model, sampler: str, device: str = "cpu", **options) -> tuple[WorldEngine, WorldEngine]:
    """An engine that records its steps and one that does not, opened on the same starts."""
    engines = tuple(
        SAMPLERS[sampler](model, NUM_SLOTS, device=device, **options, use_graphs=use) for use in (True, False)
    )
    if device == "cpu":
        engines[0].graphs = StepGraphs(engines[0].state, record=lambda work: work)
    for engine in engines:
        engine.open(start(0), torch.arange(NUM_SLOTS))
    return engines[0], engines[1]


def start(seed: int, rows: int = NUM_SLOTS) -> Start:
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (rows, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)
    depth = 1.0 + 4.0 * torch.rand(rows, 1, 1, 1, generator=rng).expand(-1, -1, 64, 64)
    return Start(pictures, depth.contiguous(), torch.eye(4).repeat(rows, 1, 1, 1))


def drawn(step: int, hands: bool) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(step)
    active = torch.rand(NUM_SLOTS, generator=rng) < 0.8
    moves = 0.2 * torch.randn(NUM_SLOTS, 6, generator=rng)
    actions = torch.rand(NUM_SLOTS, 2, 13, generator=rng) * 2 - 1 if hands else None
    return {"controls": moves, "active": active, "hands": actions}


def shown(frame) -> dict[str, Tensor]:
    tensors = {name: value for name, value in vars(frame).items() if isinstance(value, Tensor)}
    hands = {} if frame.hands is None else {f"hands.{name}": value for name, value in frame.hands._asdict().items()}
    goal = {} if frame.goal is None else {"goal": frame.goal.place}
    return {name: value.cpu().clone() for name, value in {**tensors, **hands, **goal}.items()}


def reopen(engine: WorldEngine) -> None:
    engine.open(start(5, 1), torch.tensor([9]), torch.tensor([1]))


def rewind(engine: WorldEngine) -> None:
    past = engine.snapshot()
    engine.step(torch.zeros(NUM_SLOTS, 6))
    engine.restore(past)


BETWEEN: dict[int, Callable[[WorldEngine], object]] = {
    4: reopen,
    6: rewind,
    8: lambda engine: engine.fork(0, torch.tensor([2])),
}
"""What is done to the slots before the steps of these numbers, all of which are after the first recording."""


def assert_same_dreams(recording: WorldEngine, plain: WorldEngine, hands: bool, tolerance: float = 0.0) -> None:
    kept = []
    for step in range(10):
        if step in BETWEEN:
            BETWEEN[step](recording)
            BETWEEN[step](plain)
        frame, expected = recording.step(**drawn(step, hands)), plain.step(**drawn(step, hands))
        kept.append((frame, shown(frame)))
        for name, value in shown(expected).items():
            torch.testing.assert_close(kept[-1][1][name], value, rtol=tolerance, atol=tolerance, msg=f"{name}, {step}")
    assert recording.graphs is not None and recording.graphs.is_replaying
    for frame, before in kept:  # frames are values: later steps leave them alone
        for name, value in shown(frame).items():
            assert torch.equal(value, before[name]), name
    recording.state.memory.check()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("hands", [None, "right"])
def test_recorded_steps_make_the_same_dream(model, sampler, hands):
    assert_same_dreams(*open_both(model, sampler, hands=hands), hands is not None)


def test_each_kind_of_step_is_recorded_by_itself(model):
    recording, plain = open_both(model, "blockwise", hands="right")
    for step in range(4 * (WARM_UPS + 2)):
        told = drawn(step, step % 2 == 0)
        frame, expected = recording.step(**told), plain.step(**told)
        assert torch.equal(frame.rgbd, expected.rgbd)
    moves: dict[str, Any] = {**drawn(0, False), "is_realised": True}
    for _ in range(WARM_UPS + 2):
        assert torch.equal(recording.step(**moves).rgbd, plain.step(**moves).rgbd)


def test_walks_are_asked_for_where_only_turns_were_recorded(model):
    """Controls that lie on the host say who walks, and steps without a walk leave the walls out."""
    recording, plain = open_both(model, "blockwise")
    turn, walk = (torch.eye(6)[axis].expand(NUM_SLOTS, -1) for axis in (3, 2))
    is_refused = torch.zeros(NUM_SLOTS, dtype=torch.bool)
    for controls in [0.01 * turn] * (WARM_UPS + 2) + [0.5 * walk] * 9 + [0.01 * turn]:
        frame, expected = recording.step(controls), plain.step(controls)
        assert torch.equal(frame.realised, expected.realised) and torch.equal(frame.rgbd, expected.rgbd)
        is_refused |= expected.realised[:, 2] < controls[:, 2]
    assert is_refused.any()


def test_a_step_that_cannot_be_recorded_goes_on_as_before_and_says_so(model):
    recording, plain = open_both(model, "blockwise")

    def refuse(work: Callable[[], None]) -> Callable[[], object]:
        recording.state.latent = torch.zeros(0)  # a step that broke off leaves what it had got to
        raise RuntimeError("operation not permitted when stream is capturing")

    recording.graphs = StepGraphs(recording.state, refuse)
    for step in range(6):
        if step == WARM_UPS:
            with pytest.warns(UserWarning, match="not recorded as CUDA graphs.*capturing"):
                frame = recording.step(**drawn(step, False))
        else:
            frame = recording.step(**drawn(step, False))
        assert torch.equal(frame.rgbd, plain.step(**drawn(step, False)).rgbd)
    assert not recording.graphs.is_replaying


HOST_CALLS = [
    *((torch, name) for name in ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor")),
    *((Tensor, name) for name in ("new_tensor", "tolist", "item", "numpy", "cpu", "nonzero")),
]
"""What makes a tensor of values of the host, or values of the host of a tensor."""


def is_told_by_host(key: object) -> bool:
    """Whether an index names places in a list, which goes to the device as a tensor."""
    if isinstance(key, tuple):
        return any(is_told_by_host(part) for part in key)
    return isinstance(key, (list, range, np.ndarray)) or (isinstance(key, Tensor) and key.device.type == "cpu")


def has_tensor(key: object) -> bool:
    return any(isinstance(part, Tensor) for part in (key if isinstance(key, tuple) else (key,)))


class Crossings(TorchDispatchMode):
    """Where tensors of the host are used, or values sent to the device, which a recorded step must not.

    On `meta` no dispatch tells of values that are sent, so the calls that send them are watched too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self._watch = ExitStack()

    def __enter__(self) -> "Crossings":
        for owner, name in HOST_CALLS:
            self._watch.enter_context(patch.object(owner, name, self._told(getattr(owner, name), name)))
        self._watch.enter_context(_Indices(self))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._watch.close()

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/worldscape/" in frame.filename]
        self.places.append(f"{what} in {ours[-1].filename}:{ours[-1].lineno}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves((args, kwargs, made))):
            self.note(str(func))
        return made

    def _told(self, call: Callable, name: str) -> Callable:
        def noted(*args, **kwargs):
            self.note(name)
            return call(*args, **kwargs)

        return noted


class _Indices(TorchFunctionMode):
    """Tells `crossings` of indices that are lists, and of numbers written to places that a tensor names."""

    def __init__(self, crossings: Crossings) -> None:
        super().__init__()
        self._crossings = crossings

    def __torch_function__(self, func, types, args=(), kwargs=None):
        is_set, is_got = func is Tensor.__setitem__, func is Tensor.__getitem__
        is_scattered = is_set and has_tensor(args[1]) and not isinstance(args[2], Tensor)
        if is_scattered or ((is_set or is_got) and is_told_by_host(args[1])):
            self._crossings.note(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("hands", [None, "right", "both"])
def test_no_step_waits_for_the_device(sampler, hands):
    """On `meta`, asking for a value is an error, and so a read-back would be."""
    engine = SAMPLERS[sampler](load_world("nano"), NUM_SLOTS, device="meta", precision="bf16", hands=hands)
    told = {name: None if value is None else value.to("meta") for name, value in drawn(0, hands is not None).items()}
    for is_realised in (False, True):
        if is_realised and hands is not None:
            told["hands"] = torch.zeros(NUM_SLOTS, 2, 16, device="meta")
        engine.step(**told, is_realised=is_realised)  # constants are made ready
        with Crossings() as crossings:
            engine.step(**told, is_realised=is_realised)
        assert not crossings.places, "\n".join(sorted(set(crossings.places)))


@pytest.mark.parametrize(
    "crosses",
    [
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.tensor([1.0, 2.0]).to(x),
        lambda x: x[..., [0, 1]],
        lambda x: x.new_tensor([1.0]),
        lambda x: x.__setitem__(torch.ones(2, dtype=torch.long, device=x.device), 1.0),
    ],
)
def test_values_sent_to_the_device_are_noticed(crosses, monkeypatch):
    monkeypatch.setattr(Crossings, "note", lambda self, what: self.places.append(what))
    with Crossings() as crossings:
        crosses(torch.zeros(2, 3, device="meta"))
    assert crossings.places


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("hands", [None, "right"])
def test_on_a_gpu_graphs_make_the_same_dream(sampler, hands):
    recording, plain = open_both(load_world("nano", "cuda"), sampler, "cuda", hands=hands)
    assert_same_dreams(recording, plain, hands is not None, tolerance=1e-4)
