"""What the motion head learns from: which walks count, and that recorded surroundings are those of a memory."""

import numpy as np
import pytest
import torch

from worldscape.config import BodyConfig
from worldscape.memory.surroundings import every, points_in
from worldscape.train import motion_heads
from worldscape.train.motion_heads import motion_labels, recorded_surroundings, walk_moments

BODY = BodyConfig()
MAX_PITCH = 0.5


class Corridor:
    """A store of two episodes of a walker who walks towards a wall 2.08 m ahead, 0.25 m a step, until it stops him."""

    starts = np.array([0, 9, 18])
    hands = None

    def __init__(self):
        steps = np.tile(np.arange(9), 2)
        walked = 0.25 * np.minimum(steps, 6)
        self.camera = np.zeros((18, 6), np.float32)
        self.camera[:, 2] = walked
        self.pose = np.tile(np.eye(4, dtype=np.float32), (18, 1, 1))
        self.pose[:, 2, 3] = walked
        self.depth = np.broadcast_to((2.08 - walked)[:, None, None], (18, 32, 32)).astype(np.float16)
        self.intrinsics = np.tile(np.array([0.6, 0.6, 0.5, 0.5], np.float32), (18, 1))
        self.controls = np.zeros((18, 6), np.float32)
        self.controls[steps > 0, 2] = 0.25
        self.realised = np.where((steps <= 6)[:, None], self.controls, 0.0).astype(np.float32)


@pytest.fixture
def corridor():
    return Corridor()


def test_moments_have_a_successor_and_repeated_refusals_do_not_count(corridor):
    assert walk_moments(corridor, 2).tolist() == [*range(7), *range(9, 16)]
    assert walk_moments(corridor, 1).tolist() == [*range(7)]
    told = motion_labels(corridor, np.array([5, 6, 7]))
    assert told["free"].tolist() == [1.0, 0.0, 0.0] and told["walks"].tolist() == [1.0, 1.0, 0.0]
    assert told["length"].tolist() == [0.25] * 3


def test_a_wall_ahead_comes_nearer_in_both_views(corridor, monkeypatch):
    """Without errors the wall lies in the rows of its distance, in memory's view and in the current picture's."""
    monkeypatch.setattr(motion_heads, "ROUGH", 0.0)
    near = recorded_surroundings(corridor, np.array([3, 6]), BODY, MAX_PITCH, np.random.default_rng(0))
    assert near.shape == (2, 4, 24, 24) and near.dtype == torch.float32
    for row, distance in ((0, 1.33), (1, 0.58)):
        for channel in (0, 2):
            where = near[row, channel].sum(1).nonzero()[:, 0]
            assert where.min().item() == where.max().item() == 23 - int((distance + 0.7) / 0.1)


def test_nothing_of_another_episode_and_nothing_later_is_remembered(corridor, monkeypatch):
    monkeypatch.setattr(motion_heads, "ROUGH", 0.0)
    corridor.depth = corridor.depth.copy()
    corridor.depth[[8, 10]] = 0.3  # the frame before the second episode, and one that comes later
    near = recorded_surroundings(corridor, np.array([9]), BODY, MAX_PITCH, np.random.default_rng(1))
    assert near[0, 0].sum(1).nonzero()[:, 0].unique().numel() == 0  # the wall lies beyond the view, 0.3 m would not


def test_draws_differ_and_are_repeatable(corridor):
    now = np.array([3, 4, 5, 6] * 8)
    one, two, again = (
        recorded_surroundings(corridor, now, BODY, MAX_PITCH, np.random.default_rng(seed)) for seed in (0, 1, 0)
    )
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_points_of_a_picture_lie_on_its_surfaces(corridor):
    found = points_in(
        torch.from_numpy(corridor.depth[:2, every(2), every(2)].astype(np.float32)),
        torch.from_numpy(corridor.pose[:2]),
        torch.from_numpy(corridor.intrinsics[:2]),
        size=32,
    )
    assert found.shape == (2, 3, 256)
    assert torch.allclose(found[:, 2], torch.full((2, 256), 2.08), atol=2e-3)
    assert found[0, 0].max().item() == pytest.approx(2.08 * (31.5 / 32 - 0.5) / 0.6, rel=1e-3)
