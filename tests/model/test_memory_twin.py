"""World memory against its naive twin, over random sequences of append, reset, fork, save and load."""

import copy
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.model.memory_worlds import INTRINSICS, SHAPE, SIZE, layers
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.layers import Limbs, Thing
from worldscape.config import MemoryConfig
from worldscape.memory.naive import NaiveMemory
from worldscape.memory.values import Frame, Recall
from worldscape.memory.world_memory import WorldMemory

SLOTS = 3
CONFIG = MemoryConfig(num_sink=1, local_window=3, num_keyframes=5, num_anchors=3, num_retrieved=2, novelty=0.8)
KINDS = {
    "maco": CONFIG,
    "maco without retrieved keys": replace(CONFIG, num_retrieved=0),
    "maco with residuals": replace(CONFIG, residual_weight=0.7),
    "maco with hands": CONFIG,
    "two sinks": replace(CONFIG, num_sink=2),
    "full": replace(CONFIG, policy="full"),
    "sink+local": replace(CONFIG, policy="sink+local"),
    "local": replace(CONFIG, policy="local"),
    "local with hands": replace(CONFIG, policy="local"),
}
ROWS = st.lists(st.integers(0, SLOTS - 1), unique=True, min_size=1)
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS)),
    st.tuples(st.just("append"), st.just([True] * SLOTS)),
    st.tuples(st.just("append"), st.just([True] * SLOTS)),
    st.tuples(st.just("clear"), ROWS),
    st.tuples(st.just("reopen"), ROWS),
    st.tuples(st.just("fork"), st.integers(0, SLOTS - 1), ROWS),
    st.tuples(st.just("save"), ROWS),
    st.tuples(st.just("load"), st.integers(0, 9), ROWS),
)


def draw_frame(slots: int, rng: torch.Generator) -> Frame:
    """Noise before a rough surface, somewhere in a room; keys are marked by a random number."""
    spread = torch.tensor([1.5, 0.2, 1.5, 3.1, 0.3, 0.5])
    poses = pose_from_state((2 * torch.rand(slots, 6, generator=rng) - 1) * spread)
    rgb = 2 * torch.rand(slots, 3, SIZE, SIZE, generator=rng) - 1
    depth = -0.6 + 0.3 * torch.rand(slots, 1, SIZE, SIZE, generator=rng)  # inverse depth: 2.3 to 4 metres
    marks = torch.rand(slots, generator=rng)
    return Frame(layers(marks), torch.cat([rgb, depth], 1), poses, INTRINSICS.repeat(slots, 1))


def row_of(frame: Frame, row: int) -> Frame:
    one = slice(row, row + 1)
    kept = [type(layer)(layer.keys[one], layer.values[one]) for layer in frame.layers]
    limbs = frame.limbs
    if limbs is not None:
        assert limbs.thing is not None
        thing = Thing(*(part[one] for part in limbs.thing))
        limbs = Limbs(limbs.parts[one], limbs.keypoints[one], limbs.present[one], limbs.rows, thing)
    return Frame(kept, frame.rgbd[one], frame.pose[one], frame.intrinsics[one], frame.is_real, limbs)


def draw_limbs(pose: torch.Tensor, rng: torch.Generator) -> Limbs:
    """Large hands somewhere in front of the surface with an object, one of them missing here and there."""
    slots = len(pose)
    wrists = pose_from_state(0.3 * torch.randn(slots * 2, 6, generator=rng)).unflatten(0, (slots, 2))
    wrists[..., 2, 3] += 2.5
    wrists = pose[:, None] @ wrists
    spread = 0.3 * torch.randn(slots, 2, 21, 3, generator=rng)
    keypoints = spread @ wrists[..., :3, :3].mT + wrists[..., None, :3, 3]
    present = torch.rand(slots, 2, generator=rng) < 0.8
    bent = pose_from_state(0.05 * torch.randn(slots * 32, 6, generator=rng)).unflatten(0, (slots, 2, 16))
    centre = keypoints[:, 1, 0] + 0.1 * torch.randn(slots, 3, generator=rng)
    moved = 0.2 * torch.randn(slots, 3, generator=rng) * (torch.rand(slots, 1, generator=rng) < 0.5)
    thing = Thing(centre, moved, centre[:, 1] + 0.1, torch.rand(slots, generator=rng) < 0.8)
    return Limbs(wrists[:, :, None] @ bent, keypoints, present, (0, 1), thing)


@dataclass
class Pair:
    """The memory, its twins, what was saved of both, and whether there are hands in the slots."""

    memory: WorldMemory
    twins: list[NaiveMemory]
    saved: list
    rng: torch.Generator
    has_hands: bool

    @classmethod
    def start(cls, config: MemoryConfig, has_hands: bool = False) -> "Pair":
        memory = WorldMemory.empty(config, SLOTS, SHAPE, torch.zeros(()))
        twins = [NaiveMemory(config, memory.tables.levels) for _ in range(SLOTS)]
        return cls(memory, twins, [], torch.Generator().manual_seed(0), has_hands)

    def draw(self, slots: int) -> Frame:
        frame = draw_frame(slots, self.rng)
        return frame._replace(limbs=draw_limbs(frame.pose, self.rng)) if self.has_hands else frame

    def recall(self, memory: WorldMemory, view: Frame) -> Recall:
        return memory.recall(view.pose, view.intrinsics, limbs=view.limbs)

    def append(self, active: list[bool]) -> None:
        is_real = not self.memory.count.any()
        frame = self.draw(SLOTS)._replace(is_real=is_real)
        self.memory.append(frame, self.recall(self.memory, frame), torch.tensor(active))
        for row in range(SLOTS):
            if active[row]:
                self.twins[row].append(*row_of(frame, row))

    def clear(self, rows: list[int]) -> None:
        self.memory.clear(torch.tensor(rows))
        for row in rows:
            self.twins[row] = NaiveMemory(self.memory.config, self.memory.tables.levels)

    def reopen(self, rows: list[int]) -> None:
        """As the engine opens slots: apart, then adopted."""
        self.memory.clear(torch.tensor(rows))
        frame = self.draw(len(rows))._replace(is_real=True)
        fresh = self.memory.empty_rows(len(rows))
        fresh.append(frame, self.recall(fresh, frame), torch.ones(len(rows), dtype=torch.bool))
        self.memory.adopt(fresh, torch.tensor(rows))
        for number, row in enumerate(rows):
            self.twins[row] = NaiveMemory(self.memory.config, self.memory.tables.levels)
            self.twins[row].append(*row_of(frame, number))

    def fork(self, row: int, rows: list[int]) -> None:
        used, source = self.memory.store.num_used(), copy.deepcopy(self.twins[row])
        self.memory.fork(row, torch.tensor(rows))
        assert self.memory.store.num_used() <= used
        for target in rows:
            self.twins[target] = copy.deepcopy(source)

    def save(self, rows: list[int]) -> None:
        self.saved.append((self.memory.save(torch.tensor(rows)), [copy.deepcopy(self.twins[row]) for row in rows]))

    def load(self, number: int, rows: list[int]) -> None:
        """Load an earlier save into as many rows as it has, if there is one."""
        if not self.saved:
            return
        tensors, twins = self.saved[number % len(self.saved)]
        rows = (rows + [row for row in range(SLOTS) if row not in rows])[: len(twins)]
        self.memory.load(tensors, torch.tensor(rows))
        for row, twin in zip(rows, twins, strict=True):
            self.twins[row] = copy.deepcopy(twin)

    def compare(self) -> None:
        """Everything that can be read of memory, for a new view of each slot."""
        self.memory.check()
        view = self.draw(SLOTS)
        recall = self.recall(self.memory, view)
        history, positions = self.memory.read(recall.retrieved), self.memory.next_positions()
        held = self.memory.store.fields.frame
        for row, twin in enumerate(self.twins):
            _, _, target, intrinsics, _, limbs = row_of(view, row)
            retrieved = twin.retrieved(target, intrinsics)
            assert int(self.memory.count[row]) == len(twin.frames)
            assert known(held[self.memory.tables.pool[row]]) == sorted(twin.pool())
            assert known(held[recall.anchors[row]]) == sorted(set(twin.anchors(target, intrinsics, limbs)))
            assert known(held[recall.retrieved[row]]) == retrieved
            assert torch.equal(positions[row], twin.next_positions()[0])
            assert recall.real[row].tolist() == pytest.approx(twin.real_shares(target, intrinsics, limbs), abs=1e-5)
            if not twin.frames:
                assert float(recall.coverage[row]) == 0
            else:
                torch.testing.assert_close(recall.anchor.rgbd[row], twin.recall(target, intrinsics, limbs).rgbd[0])
                assert bool(recall.is_real_shown[row]) == twin.is_real_shown(target, intrinsics, limbs)
                real = sum(twin.frames[-1].real) / len(twin.frames[-1].real)
                assert float(self.memory.tables.real[row]) == pytest.approx(real, abs=1e-5)
                compare_history(history, row, twin.read(retrieved))
                assert float(self.memory.tables.novelty[row]) == pytest.approx(1 - twin.frames[-1].explained, abs=1e-5)


def known(frames: torch.Tensor) -> list[int]:
    return sorted(set(frames.tolist()) - {-1})


def compare_history(history, row: int, expected) -> None:
    """The same frames at the same positions, bit for bit; the order in which they lie means nothing."""
    valid = history.valid[row]
    order = history.positions[row, valid].argsort()
    assert torch.equal(history.positions[row, valid][order], expected.positions[0])
    assert torch.equal(history.keys[:, row, valid][:, order], expected.keys[:, 0])
    assert torch.equal(history.values[:, row, valid][:, order], expected.values[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, min_size=6, max_size=16))
def test_memory_equals_its_naive_twin(kind, operations):
    pair = Pair.start(KINDS[kind], "hands" in kind)
    for name, *arguments in operations:
        getattr(pair, name)(*arguments)
        pair.compare()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_dream_equals_its_naive_twin(kind):
    """Thirty frames in three slots: every level overflows many times."""
    pair = Pair.start(KINDS[kind], "hands" in kind)
    for step in range(30):
        pair.append([True, step % 3 > 0, step % 2 > 0])
    pair.compare()


def test_operations_on_some_slots_leave_the_others_bit_for_bit():
    pair = Pair.start(CONFIG)
    for _ in range(8):
        pair.append([True] * SLOTS)
    still = torch.tensor([1])
    before = pair.memory.save(still)
    pair.save([0, 2])
    pair.clear([0])
    pair.reopen([2])
    pair.append([True, False, True])
    pair.fork(2, [0])
    pair.load(0, [0, 2])
    after = pair.memory.save(still)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_sequence_of_saves_and_clears_leaks_no_page():
    pair = Pair.start(CONFIG)
    for step in range(40):
        pair.append([True] * SLOTS)
        if step % 5 == 0:
            pair.save([step % SLOTS])
            pair.fork(step % SLOTS, [(step + 1) % SLOTS])
            pair.load(step, [(step + 2) % SLOTS])
    pair.clear([0, 1, 2])
    assert pair.memory.store.num_used() == 0
