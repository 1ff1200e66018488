"""What memory tells of itself: counts, ages, and how much of a frame goes back to real ones."""

from dataclasses import replace

import pytest
import torch

from tests.model.memory_worlds import INTRINSICS, append, empty, layers, picture, pose
from worldscape.config import MemoryConfig
from worldscape.memory.lineage import inherited_real
from worldscape.memory.pages import BLANK
from worldscape.memory.policy import CELLS
from worldscape.memory.report import report_memory, report_trust
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory

CONFIG = MemoryConfig(num_keyframes=4, num_anchors=2, novelty=0.9, local_window=3)
TURN = 0.5  # radians; the pictures are 90 degrees wide
BEHIND = torch.pi


def open_on(memory: WorldMemory, where: torch.Tensor) -> None:
    """Commit a real wall seen from `where`."""
    frame = Frame(layers(torch.tensor([0.0])), picture(0.0), where, INTRINSICS, is_real=True)
    memory.append(frame, memory.recall(where, INTRINSICS), torch.tensor([True]))


def walk(*yaws: float) -> WorldMemory:
    """Open on a real frame that looks ahead, then dream a frame for each direction."""
    memory = empty(CONFIG)
    open_on(memory, pose())
    for yaw in yaws:
        append(memory, 1.0, pose(yaw))
    return memory


def drifts(*yaws: float) -> list[float]:
    """Drift after each step of a walk."""
    return [float(report_trust(walk(*yaws[:length]).tables).drift) for length in range(1, len(yaws) + 1)]


def test_ages_and_counts_of_an_overflowing_memory():
    """One sink, a pool of 3 and a window of 3: of ten frames all around, the last 3 and the pool are held; a frame that
    lies in both is one page."""
    memory = walk(*(0.7 * number for number in range(1, 10)))
    report, frames = report_memory(memory.tables), memory.store.fields.frame
    held = frames[memory.tables.pages[0]].unique()
    assert int(report.frames_seen) == 10 and int(report.pool_size) == 3
    assert int(report.pages_used) == len(held[held >= 0]) == memory.store.num_used()
    assert report.anchor_ages.tolist() == (9 - memory.tables.anchors).tolist()
    assert report.retrieved_ages.shape == (1, 0)
    assert float(report.novelty) == float(memory.tables.novelty)


def test_nothing_is_older_than_the_start():
    report = report_memory(walk().tables)
    assert report.anchor_ages.tolist() == [[-1, -1]] and float(report.novelty) == 1.0
    assert report_memory(walk(0.0).tables).anchor_ages.tolist() == [[1, -1]]


def test_ages_of_retrieved_frames():
    memory = empty(replace(CONFIG, num_retrieved=1))
    for yaw in (0.0, 3.1, 3.1, 3.1, 3.1, 3.1, 0.0, 3.1, 3.1, 3.1):
        append(memory, 1.0, pose(yaw), coverage=0.0 if yaw == 0.0 else None)
    recalled = memory.store.fields.frame[memory.recall(pose(), INTRINSICS).retrieved]
    append(memory, 1.0, pose(), coverage=0.0)
    assert recalled.tolist() == [[6]]
    assert report_memory(memory.tables).retrieved_ages.tolist() == [[4]]


def test_real_frames_have_no_drift_and_what_no_frame_shows_is_all_drift():
    assert float(report_trust(walk().tables).drift) == 0.0
    assert drifts(BEHIND) == [1.0]


def test_standing_still_copies_what_is_real():
    assert drifts(0.0, 0.0) == pytest.approx([0.0, 0.0], abs=0.02)


def test_drift_grows_while_real_pixels_leave_the_view_and_is_gone_on_return():
    turning = drifts(*(TURN * number for number in range(1, 5)))
    assert turning == sorted(turning) and 0.2 < turning[0] < 0.7 and turning[-1] == 1.0
    assert drifts(TURN, 2 * TURN, TURN, 0.0)[-1] < 0.02


def test_seeing_a_dream_again_does_not_make_it_real():
    """Memory shows all of the view, and explains it, but what it shows was invented."""
    memory = walk(BEHIND, BEHIND, BEHIND)
    assert float(memory.recall(pose(BEHIND), INTRINSICS).coverage) > 0.9
    assert float(report_trust(memory.tables).drift) == 1.0 and float(report_memory(memory.tables).novelty) < 0.1


def test_a_dreamed_frame_hands_on_where_it_is_real():
    """After a turn to the right what is real lies on the left. Once only the dreamed frame is remembered, turning on
    keeps what was invented, and turning back what was real."""
    memory = walk(TURN)
    memory.tables.pages[:, 0] = BLANK  # forget the real frame
    further, back = (memory.recall(pose(yaw), INTRINSICS) for yaw in (3 * TURN, 0.0))
    real = [float(recall.real.sum()) / float(recall.coverage * CELLS**2) for recall in (further, back)]
    assert real[0] < 0.3 and real[1] > 0.85


def test_a_cell_is_as_real_as_the_first_picture_that_shows_it():
    """Of three probes of one picture two lie in cell 0; the other picture shows cells 0 and 1; a quarter of cell 2 was
    rebuilt though no probe lies in it; the rest was not."""
    outside = CELLS**2
    numbers = torch.tensor([[[0, 0, outside], [0, 1, outside]]])
    real = torch.tensor([[[1.0, 0.5, 1.0], [0.25, 0.35, 1.0]]])
    rebuilt = torch.zeros(1, CELLS**2)
    rebuilt[0, :3] = torch.tensor([1.0, 1.0, 0.25])
    found = inherited_real(numbers, real, rebuilt)[0]
    assert found[:4].tolist() == pytest.approx([0.75, 0.35, 0.25 * 0.55, 0.0])
    assert float(inherited_real(torch.full_like(numbers, outside), real, rebuilt).max()) == 0.0


def test_steps_since_a_real_frame_showed_something():
    ages = [int(report_trust(walk(*[BEHIND] * steps).tables).steps_since_real) for steps in range(4)]
    assert ages == [0, 1, 2, 3]
    assert int(report_trust(walk(BEHIND, BEHIND, 0.0).tables).steps_since_real) == 0


def test_reports_are_fresh():
    memory = walk(TURN)
    told = {**report_memory(memory.tables)._asdict(), **report_trust(memory.tables)._asdict()}
    kept = {name: value.clone() for name, value in told.items()}
    append(memory, 1.0, pose(BEHIND))
    assert all(torch.equal(told[name], kept[name]) for name in told)
    for value in told.values():
        value.zero_()
    assert int(report_memory(memory.tables).frames_seen) == 3
