"""World memory: what is admitted, what is shown again, what goes, and what it may cost."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from tests.model.memory_worlds import INTRINSICS, SHAPE, append, append_recalled, empty, layers, numbers, picture, pose
from worldscape.conditioning.reproject import Anchor
from worldscape.config import BodyConfig, MemoryConfig
from worldscape.memory.pages import FIRST, Levels, page_bytes
from worldscape.memory.policy import explained_share
from worldscape.memory.surroundings import BEHIND, CELL, CELLS
from worldscape.memory.values import Frame

CONFIG = MemoryConfig(num_keyframes=4, num_anchors=2, novelty=0.9, local_window=3)
PAGE = page_bytes(SHAPE, torch.zeros(()))


def test_empty_memory_shows_nothing():
    assert float(empty(CONFIG).recall(pose(), INTRINSICS).anchor.mask.max()) == 0.0


def test_known_views_are_not_admitted_but_shown_while_they_are_the_latest():
    memory = empty(CONFIG)
    append(memory, 0, pose(), coverage=0.0)
    append(memory, 1, pose(x=0.1), coverage=0.95)
    assert numbers(memory, memory.tables.shown()) == [[0, -1, -1, -1, 1]]
    assert memory.tables.novelty.tolist() == pytest.approx([0.05])


def test_slots_that_stand_still_stay_as_they_are():
    memory = empty(CONFIG, 2)
    where, intrinsics = pose().repeat(2, 1, 1), INTRINSICS.repeat(2, 1)
    for value in (1.0, 2.0):
        frame = Frame(layers(torch.full((2,), value)), picture(0.3).repeat(2, 1, 1, 1), where, intrinsics)
        memory.append(frame, memory.recall(where, intrinsics), torch.tensor([True, False]))
    assert memory.count.tolist() == [2, 0] and not memory.tables.pages[1].any()
    memory.check()


def test_picks_show_the_view_and_complement_each_other():
    """Looking between a picture to the left, one to the right and one behind, the picks are left and right."""
    memory = empty(CONFIG)
    for number, yaw in enumerate((-0.7, 0.7, 3.1)):
        append(memory, number, pose(yaw), coverage=0.0)
    assert numbers(memory, memory.recall(pose(), INTRINSICS).anchors) == [[0, 1]]


def test_a_turned_head_sees_the_same_place():
    """Co-visibility counts roll: after a quarter turn about the axis of view all of the wall is still in view."""
    memory = empty(CONFIG)
    append(memory, 0, pose())
    assert float(memory.recall(pose(roll=torch.pi / 2), INTRINSICS).coverage) > 0.9
    assert float(memory.recall(pose(yaw=torch.pi), INTRINSICS).coverage) == 0.0


def test_ties_go_to_the_older_picture():
    memory = empty(CONFIG)
    for number in range(3):
        append(memory, number, pose(), coverage=0.0)
    recall = memory.recall(pose(), INTRINSICS)
    assert numbers(memory, recall.anchors)[0][0] == 0
    assert float(recall.anchor.rgbd[0, 0].mean()) == 0.0


def test_over_budget_the_most_redundant_goes_and_the_sink_stays():
    memory = empty(CONFIG)
    for number, yaw in enumerate((0.0, 1.0, 1.1, 2.5, -1.5)):
        append(memory, number, pose(yaw), coverage=0.0)
    kept = sorted(numbers(memory, memory.tables.keyframes)[0])
    assert 0 in kept and 4 in kept and len(kept) == 4
    assert not {1, 2} <= set(kept)


def test_the_sink_survives_any_number_of_frames():
    memory = empty(CONFIG)
    for number in range(60):
        append(memory, number, pose(yaw=number * 0.37, x=number * 0.1), coverage=0.0)
    shown = numbers(memory, memory.tables.shown())[0]
    assert shown[0] == 0 and shown[-1] == 59


def test_a_changed_picture_is_admitted_once_residuals_count():
    """The same wall in another colour: geometry says it is known, its description length says it is not."""
    known = {}
    for weight in (0.0, 1.0):
        memory = empty(replace(CONFIG, residual_weight=weight))
        append(memory, 0, pose())
        recall = memory.recall(pose(), INTRINSICS)
        assert float(recall.coverage) > CONFIG.novelty
        append_recalled(memory, 8, pose(), recall)
        known[weight] = numbers(memory, memory.tables.pool)[0][0]
    assert known == {0.0: -1, 1.0: 1}


def test_what_a_frame_costs_to_describe_grows_with_error_and_with_what_is_not_covered():
    """An exact reference explains all, a wholly wrong colour nothing; half a cover explains half as much."""
    mask = torch.ones(1, 1, 16, 16)
    errors = torch.tensor([0.0, 0.02, 0.2, 1.0])
    costs = [explained_share(picture(0.0) + e, Anchor(picture(0.0), mask), torch.ones(1), 1.0) for e in errors]
    shares = torch.cat(costs)
    torch.testing.assert_close(shares[[0, 3]], torch.tensor([1.0, 0.0]))
    assert (shares.diff() < 0).all() and shares[1] > 0.98
    half = mask * (torch.arange(16) < 8)
    share = explained_share(picture(0.2), Anchor(picture(0.0) * half, half), half.mean((1, 2, 3)), 1.0)
    whole = explained_share(picture(0.2), Anchor(picture(0.0), mask), torch.ones(1), 1.0)
    torch.testing.assert_close(share, whole / 2)


@pytest.mark.parametrize(
    ("policy", "shown", "read"),
    [
        ("maco", [0, 1, 2, 3, 9], [0, 7, 8, 9]),
        ("full", [0, 7, 8, 9, 9], [0, 7, 8, 9]),
        ("sink+local", [0, 7, 8, 9], [0, 7, 8, 9]),
        ("local", [7, 8, 9], [7, 8, 9]),
    ],
)
def test_what_each_policy_holds(policy, shown, read):
    """Ten frames of which the first four were new: MACO keeps those, the others only what is recent."""
    memory = empty(replace(CONFIG, policy=policy))
    for number in range(10):
        append(memory, number, pose(yaw=0.6 * number), coverage=0.0 if number < 4 else 1.0)
    assert sorted(numbers(memory, memory.tables.shown())[0]) == shown
    history = memory.read(memory.recall(pose(), INTRINSICS).retrieved)
    order = history.positions[0].argsort()
    assert rearrange(history.keys[0, 0, :, 0, 0], "s k -> s k")[order, 0].tolist() == read
    assert history.positions[0, order].tolist() == list(range(len(read)))
    assert memory.next_positions().tolist() == [[len(read)]]
    memory.check()


def test_retrieved_pages_join_the_history_between_sink_and_local_and_never_twice():
    """Looking left again: frame 1 was taken there; frames 2 to 4, also left, are read as local anyway."""
    memory = empty(replace(CONFIG, num_retrieved=2))
    for number, yaw in enumerate((0.0, -1.4, 1.5, 1.6, 1.7)):
        append(memory, number, pose(yaw), coverage=0.0)
    recall = memory.recall(pose(-1.3), INTRINSICS)
    assert numbers(memory, recall.retrieved) == [[1, -1]]
    history = memory.read(recall.retrieved)
    valid = history.valid[0]
    assert history.keys[0, 0, valid, 0, 0, 0].tolist() == [0, 1, 4, 2, 3]
    assert history.positions[0, valid].tolist() == [0, 1, 5, 3, 4]
    assert memory.next_positions().tolist() == [[6]]
    assert numbers(memory, memory.recall(pose(1.6), INTRINSICS).retrieved)[0][0] not in (2, 3, 4)


def test_what_a_frame_was_shown_is_named_even_if_it_takes_the_place_of_that():
    """Frame 5 is like frame 1, which it drops from the pool and whose page it gets. The tables then said that frame 5
    had been shown itself."""
    memory = empty(replace(CONFIG, num_keyframes=3, num_retrieved=1))
    for number, yaw in enumerate((0.0, -1.4, 1.6, 1.6, 1.6)):
        append(memory, number, pose(yaw), coverage=0.0 if number < 3 else 1.0)
    page = memory.tables.pool[0, 0]
    append(memory, 5, pose(-1.4), coverage=0.0)
    assert numbers(memory, memory.tables.pool) == [[5, 2]] and memory.tables.pool[0, 0] == page
    assert memory.tables.retrieved.tolist() == [[1]]
    assert memory.tables.anchors.tolist() == [[0, 1]]


def test_a_budget_makes_the_pool_smaller_and_is_never_exceeded():
    memory = empty(CONFIG, 2, budget=(2 * 6 + FIRST) * PAGE + 1)
    assert memory.tables.levels == Levels(1, 2, 3)
    assert memory.store.num_bytes <= (2 * 6 + FIRST) * PAGE + 1
    fields = (*memory.store.fields, memory.store.references)
    assert sum(field.numel() * field.element_size() for field in fields) == memory.store.num_bytes
    assert empty(CONFIG, 2, budget=10**9).tables.levels == Levels(1, 3, 3)


def test_a_budget_too_small_for_sink_and_local_names_what_is_needed():
    needed = (2 * 4 + FIRST) * PAGE
    with pytest.raises(ValueError, match=rf"memory_budget is {needed - 1} bytes; .* take {needed}: give at least"):
        empty(CONFIG, 2, budget=needed - 1)
    assert empty(CONFIG, 2, budget=needed).tables.levels == Levels(1, 0, 3)


def test_a_wall_ahead_lies_across_the_surroundings():
    """The wall stands 5 m ahead: from 4 m on it is a row of cells 1 m ahead, and nothing behind it is known."""
    memory = empty(CONFIG)
    walk, near = torch.tensor([[0.0, 0.0, 0.25]]), torch.tensor([[0.0, 0.0, 4.0]])
    assert not memory.surfaces().plan_view(near, walk, BodyConfig()).any()
    append(memory, 0, pose())
    rows = memory.surfaces().plan_view(near, walk, BodyConfig(above=2.0, below=2.0))[0, 0].sum(1).nonzero()[:, 0]
    ahead = (CELLS - 0.5 - rows) * CELL - BEHIND
    torch.testing.assert_close(ahead, torch.ones_like(ahead), atol=0.1, rtol=0)


def test_clearance_is_the_way_to_the_nearest_surface_at_body_height():
    """The wall stands 5 m ahead; seen from 2 m on it is 3 m away, and what is out of body height does not count."""
    memory = empty(CONFIG)
    assert float(memory.surfaces().clearance(torch.zeros(1, 3), BodyConfig())) == float("inf")
    append(memory, 0, pose())
    body = BodyConfig(radius=0.4, above=2.0, below=2.0)
    near = memory.surfaces().clearance(torch.tensor([[0.0, 0.0, 2.0]]), body)
    torch.testing.assert_close(near, torch.tensor([3.0]), atol=0.05, rtol=0)
    assert float(memory.surfaces().clearance(torch.tensor([[0.0, 50.0, 2.0]]), body)) == float("inf")
