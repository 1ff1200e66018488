"""Keyframe memory: what is admitted, what is picked, what goes."""

import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import encode_depth
from worldscape.config import BodyConfig, MemoryConfig
from worldscape.memory.keyframes import KeyframeMemory
from worldscape.memory.surroundings import BEHIND, CELL, CELLS

INTRINSICS = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
CONFIG = MemoryConfig(num_keyframes=4, num_anchors=2, novelty=0.9)


def pose(yaw: float = 0.0, x: float = 0.0) -> torch.Tensor:
    return pose_from_state(torch.tensor([[x, 0.0, 0.0, yaw, 0.0, 0.0]]))


def picture(value: float) -> torch.Tensor:
    depth = encode_depth(torch.full((1, 1, 16, 16), 5.0))
    return torch.cat([torch.full((1, 3, 16, 16), value), depth], 1)


def admit(memory: KeyframeMemory, number: int, where: torch.Tensor, coverage: float = 0.0, active: bool = True) -> None:
    frame = torch.tensor([number])
    share, flag = torch.tensor([coverage]), torch.tensor([active])
    memory.admit(picture(number / 10), where, INTRINSICS, share, frame, flag)


def fresh() -> KeyframeMemory:
    return KeyframeMemory.empty(CONFIG, 1, 16, torch.zeros(()))


def test_empty_memory_shows_nothing():
    assert float(fresh().recall(pose(), INTRINSICS).mask.max()) == 0.0


def test_known_views_are_not_admitted_but_stay_as_the_latest():
    memory = fresh()
    admit(memory, 0, pose())
    admit(memory, 1, pose(x=0.1), coverage=0.95)
    assert memory.frames[0].tolist() == [0, -1, -1, -1, 1]


def test_inactive_slots_stay_as_they_are():
    memory = fresh()
    admit(memory, 0, pose(), active=False)
    assert memory.frames[0].tolist() == [-1] * 5


def test_picks_show_the_view_and_complement_each_other():
    """Looking between a picture to the left, one to the right and one behind, the picks are left and right."""
    memory = fresh()
    for number, yaw in enumerate((-0.7, 0.7, 3.1)):
        admit(memory, number, pose(yaw))
    picks = memory.select(pose(), INTRINSICS)
    assert memory.frames[0, picks.index[0]].tolist() == [0, 1]


def test_ties_go_to_the_older_picture():
    memory = fresh()
    for number in range(3):
        admit(memory, number, pose())
    picks = memory.select(pose(), INTRINSICS)
    assert int(memory.frames[0, picks.index[0, 0]]) == 0
    assert float(memory.recall(pose(), INTRINSICS).rgbd[0, 0].mean()) == 0.0


def test_over_budget_the_most_redundant_goes_and_the_sink_stays():
    memory = fresh()
    for number, yaw in enumerate((0.0, 1.0, 1.1, 2.5)):
        admit(memory, number, pose(yaw))
    admit(memory, 4, pose(-1.5))
    kept = sorted(memory.frames[0, :-1].tolist())
    assert 0 in kept and 4 in kept and len(kept) == 4
    assert not {1, 2} <= set(kept)


def test_the_sink_survives_any_number_of_frames():
    memory = fresh()
    for number in range(60):
        admit(memory, number, pose(yaw=number * 0.37, x=number * 0.1))
    assert int(memory.frames[0, 0]) == 0
    assert int(memory.frames[0, -1]) == 59


def test_a_wall_ahead_lies_across_the_surroundings():
    """The wall stands 5 m ahead: from 4 m on it is a row of cells 1 m ahead, and nothing behind it is known."""
    memory = fresh()
    walk, near = torch.tensor([[0.0, 0.0, 0.25]]), torch.tensor([[0.0, 0.0, 4.0]])
    assert not memory.surroundings(near, walk, BodyConfig()).any()
    admit(memory, 0, pose())
    rows = memory.surroundings(near, walk, BodyConfig(above=2.0, below=2.0))[0, 0].sum(1).nonzero()[:, 0]
    ahead = (CELLS - 0.5 - rows) * CELL - BEHIND
    torch.testing.assert_close(ahead, torch.ones_like(ahead), atol=0.1, rtol=0)


def test_clearance_is_the_way_to_the_nearest_surface_at_body_height():
    """The wall stands 5 m ahead; seen from 2 m on it is 3 m away, and what is out of body height does not count."""
    memory = fresh()
    assert float(memory.clearance(torch.zeros(1, 3), BodyConfig())) == float("inf")
    admit(memory, 0, pose())
    body = BodyConfig(radius=0.4, above=2.0, below=2.0)
    near = memory.clearance(torch.tensor([[0.0, 0.0, 2.0]]), body)
    torch.testing.assert_close(near, torch.tensor([3.0]), atol=0.05, rtol=0)
    assert float(memory.clearance(torch.tensor([[0.0, 50.0, 2.0]]), body)) == float("inf")
