"""Worlds as values: saved, restored and forked worlds go on bit for bit, and foreign ones are refused."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from worldscape import rewrites
from worldscape.config import preset
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.fast import FastTransformer
from worldscape.snapshot import FORMAT, LENGTH_BYTES, Snapshot
from worldscape.world import WorldModel, debug_world

FRAME = ("frame", "depth", "pose", "camera", "realised", "reward", "end", "coverage", "latent", "steps")


@pytest.fixture(scope="module")
def model():
    return debug_world()


def opened(model, slots: int, steps: int = 0, **options) -> WorldEngine:
    """An engine whose slots have dreamed `steps` frames; long enough and the pool has overflowed."""
    engine, rng = WorldEngine(model, slots, **options), torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (slots, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)
    start = Start(frames, torch.full((slots, 1, 64, 64), 3.0), torch.eye(4).repeat(slots, 1, 1, 1))
    engine.open(start, torch.arange(slots))
    for move in moves(slots, steps):
        engine.step(move)
    return engine


def moves(slots: int, steps: int, seed: int = 1) -> torch.Tensor:
    """Controls [steps, slots, 6] that turn a good deal, so that much is new."""
    controls = 0.2 * torch.randn(steps, slots, 6, generator=torch.Generator().manual_seed(seed))
    controls[..., 3] += 0.4
    return controls


def same(one, other, rows: int | slice = slice(None)) -> bool:
    return all(torch.equal(getattr(one, name)[rows], getattr(other, name)[rows]) for name in FRAME)


def test_a_restored_world_repeats_itself_bit_for_bit(model):
    engine = opened(model, 2, steps=9)
    snapshot = engine.snapshot()
    future = moves(2, 6, seed=2)
    first = [engine.step(move) for move in future]
    shown = engine.restore(snapshot)
    assert shown.steps.tolist() == [9, 9]
    engine.state.memory.check()
    assert all(same(engine.step(move), frame) for move, frame in zip(future, first, strict=True))


def test_a_snapshot_goes_through_bytes_into_another_engine(model):
    engine = opened(model, 2, steps=9)
    data = engine.snapshot().to_bytes()
    other = WorldEngine(debug_world(), 2)
    other.restore(Snapshot.from_bytes(data))
    assert all(same(engine.step(move), other.step(move)) for move in moves(2, 6, seed=2))


def test_restoring_some_slots_leaves_the_others_untouched(model):
    """Worlds 0 and 2 of three go into slots 2 and 0; slot 1 dreams on as if nothing had happened.

    In another place of a batch a pixel may round differently, by one level of 255.
    """
    engine, plain = opened(model, 3, steps=4), opened(model, 3, steps=4)
    snapshot = engine.snapshot(torch.tensor([0, 2]))
    for move in moves(3, 3, seed=3):
        engine.step(move)
        plain.step(move)
    engine.restore(snapshot, torch.tensor([2, 0]))
    engine.state.memory.check()
    back = opened(model, 3, steps=4)
    for move in moves(3, 3, seed=4):
        ours, untouched, swapped = engine.step(move), plain.step(move), back.step(move.flip(0))
        assert same(ours, untouched, 1)
        assert int((ours.frame[[2, 0]].int() - swapped.frame[[0, 2]].int()).abs().max()) <= 1


def test_one_world_goes_into_an_engine_of_another_size(model):
    snapshot = opened(model, 2, steps=6).snapshot(torch.tensor([1]))
    assert snapshot.num_worlds == 1
    engine = WorldEngine(model, 3)
    frame = engine.restore(snapshot)
    assert frame.steps.tolist() == [6, 6, 6] and engine.state.memory.store.num_used() == snapshot.num_pages
    move = moves(1, 1)[0].expand(3, 6)
    frame = engine.step(move)
    # As above: in another place of a batch a pixel may round differently.
    assert int((frame.frame[0].int() - frame.frame[2].int()).abs().max()) <= 1
    with pytest.raises(ValueError, match="holds 2 worlds; give as many rows, not 3"):
        engine.restore(opened(model, 2).snapshot())


def test_forks_dream_what_their_source_dreams_until_they_part(model):
    engine, alone = opened(model, 4, steps=7), opened(model, 4, steps=7)
    engine.fork(1, torch.tensor([0, 3]))
    for index, move in enumerate(moves(4, 6, seed=5)):
        move[[0, 3]] = move[1].clone()
        if index > 2:
            move[3, 3] += 0.3
        ours, untouched = engine.step(move), alone.step(move)
        assert same(ours, untouched, 1) and same(ours, untouched, 2)
        assert torch.equal(ours.frame[0], ours.frame[1])
        assert torch.equal(ours.frame[3], ours.frame[1]) == (index <= 2)
    engine.state.memory.check()


def test_64_forks_of_a_long_world_take_one_tenth_of_the_pages_of_64_copies(model):
    engine, snapshot = WorldEngine(model, 64), opened(model, 1, steps=40).snapshot()
    engine.restore(snapshot, torch.tensor([5]))
    engine.fork(5, torch.arange(64))
    store, pages = engine.state.memory.store, snapshot.num_pages
    assert store.num_used() == pages < 0.1 * 64 * pages
    for move in moves(64, 2, seed=6):
        engine.step(move)
    assert 64 * 2 <= store.num_used() <= 64 * 2 + pages
    engine.state.memory.check()


def test_reopened_worlds_give_their_pages_back(model):
    engine = opened(model, 2, steps=12)
    start = Start(torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8), torch.ones(1, 1, 64, 64))
    for row in (0, 1):
        engine.open(start, torch.tensor([3]), torch.tensor([row]))
    assert engine.state.memory.store.num_used() == 2
    engine.state.memory.check()


def test_a_small_budget_and_another_policy_still_dream(model):
    """The pool has room for nothing: memory is sink and local, and shows what those show."""
    page = WorldEngine(model, 1).state.memory.store.num_bytes // (6 + 3 + 2)
    small = opened(model, 1, steps=8, memory_budget=page * (1 + 3 + 2))
    ablated = opened(model, 1, steps=8, memory=replace(model.config.memory, policy="sink+local"))
    for move in moves(1, 4, seed=7):
        assert same(small.step(move), ablated.step(move))
    with pytest.raises(ValueError, match="memory_budget is 1000 bytes"):
        WorldEngine(model, 1, memory_budget=1000)


def test_retrieved_keys_change_the_dream_and_replay(model):
    engine = opened(model, 2, steps=9, memory=replace(model.config.memory, num_retrieved=2))
    plain = opened(model, 2, steps=9)
    move = torch.tensor([[0.0, 0.0, 0.0, -2.0, 0.0, 0.0]]).repeat(2, 1)
    snapshot = engine.snapshot()
    frame = engine.step(move)
    assert (engine.state.memory.tables.retrieved >= 0).any()
    assert not torch.equal(frame.latent, plain.step(move).latent)
    engine.restore(snapshot)
    assert same(engine.step(move), frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_fast": False}, "other generator .*'FastTransformer' instead of 'WorldTransformer'"),
        (
            {"memory": replace(preset("debug").memory, novelty=0.5)},
            r"other config .*memory.novelty 0.97 instead of 0.5",
        ),
        ({"memory_budget": 10**6}, "other levels .*num_pool 5 instead of"),
    ],
)
def test_another_engine_is_refused(model, options, message):
    snapshot = opened(model, 1).snapshot()
    with pytest.raises(ValueError, match=message):
        WorldEngine(model, 2, **options).restore(snapshot, torch.tensor([0]))


def test_other_weights_are_refused(model):
    torch.manual_seed(1)
    other = WorldEngine(WorldModel(preset("debug")), 1)
    with pytest.raises(ValueError, match="taken with other weights than this engine has"):
        other.restore(opened(model, 1).snapshot())


def test_bytes_that_are_no_snapshot_are_refused(model):
    data = opened(model, 1, steps=1).snapshot().to_bytes()
    flipped = bytearray(data)
    flipped[-100] ^= 1
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    for damaged, message in (
        (b"", "truncated, or something else"),
        (b"some text that is no snapshot at all", "truncated, or something else"),
        (data[:40], "truncated, or something else"),
        (len(deep := b"[" * 100_000).to_bytes(LENGTH_BYTES, "little") + deep, "truncated, or something else"),
        (data[:-100], "truncated or corrupt"),
        (bytes(flipped), "does not match its own checksum"),
        (with_header(data, header, {"format": "other"}), f"no {FORMAT}"),
        (with_header(data, header, {"format_version": 99}), "format version 99, this version reads 2"),
        (with_header(data, header, {"sha256": ""}), "checksum"),
    ):
        with pytest.raises(ValueError, match=message):
            Snapshot.from_bytes(damaged)


def with_header(data: bytes, header: dict, changes: dict) -> bytes:
    """A snapshot's bytes with changed metadata."""
    inner = json.loads(header["__metadata__"][FORMAT]) | changes
    text = json.dumps({**header, "__metadata__": {FORMAT: json.dumps(inner)}}).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data[LENGTH_BYTES + int.from_bytes(data[:8], "little") :]


def test_tensors_that_do_not_fit_are_refused(model):
    engine = opened(model, 1, steps=1)
    good = engine.snapshot()
    for name, wrong, message in (
        ("camera", torch.zeros(1, 5), r"camera is torch.float32 \(1, 5\), not torch.float32 \(1, 6\)"),
        ("steps", torch.zeros(1), "steps is torch.float32"),
        ("table.pages", good.tensors["table.pages"] + 99, "table.pages names pages that it does not hold"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.restore(Snapshot(good.kind, {**good.tensors, name: wrong}))
    with pytest.raises(ValueError, match=r"other fields than this version's: \['camera'\]"):
        engine.restore(Snapshot(good.kind, {name: t for name, t in good.tensors.items() if name != "camera"}))


@pytest.mark.parametrize("rows", [[0, 0], [2], [-1]])
def test_bad_rows_are_refused(model, rows):
    engine = opened(model, 2)
    for call in (engine.snapshot, lambda r: engine.fork(0, r), lambda r: engine.restore(engine.snapshot(), r)):
        with pytest.raises(ValueError, match="give different slot numbers from 0 to 1"):
            call(torch.tensor(rows))


def test_keys_in_half_precision_go_on_in_full(monkeypatch):
    """As memory on a GPU keeps them, in half the bytes: nearly the same dream, and its worlds go on elsewhere."""
    full = opened(debug_world(), 2, steps=9)
    monkeypatch.setattr(rewrites, "FastTransformer", partial(FastTransformer, keys_dtype=torch.bfloat16))
    half = opened(debug_world(), 2, steps=9)
    kept = [engine.state.memory.store.fields.keys_values for engine in (half, full)]
    assert [keys.dtype for keys in kept] == [torch.bfloat16, torch.float32]
    one, other = (engine.state.rgbd for engine in (half, full))
    assert 0 < float((one - other).abs().max()) and float((one - other).abs().mean()) < 0.02
    shown = full.restore(Snapshot.from_bytes(half.snapshot().to_bytes()))
    assert torch.equal(shown.latent, half.state.latent)
    move = moves(2, 1, seed=3)[0]
    torch.testing.assert_close(full.step(move).latent, half.step(move).latent, atol=0.1, rtol=0.1)
