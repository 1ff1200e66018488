"""What the goal head learns from: frames of walks, and where the goal is in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.walks import walk_store
from worldscape.conditioning.camera import pose_from_state
from worldscape.config import HeadsConfig
from worldscape.data.clips import FrameStore
from worldscape.heads import THING_CELL, Heads
from worldscape.train.goal_heads import find_sightings, goal_labels, goal_losses

GOAL = np.array([0.3, 3.0])
SIDE = 16


@pytest.fixture(scope="module")
def store() -> FrameStore:
    """Two episodes of 12 frames before a white wall 3 m away, the first with a goal on it, a red square of 8 pixels."""
    rng = np.random.default_rng(0)
    camera = np.zeros((24, 6), np.float32)
    camera[:, 0], camera[:, 1], camera[:, 2] = rng.uniform(-0.6, 0.6, 24), -0.4, rng.uniform(-0.6, 0.6, 24)
    camera[10:12, 3] = np.pi  # these look away
    frames = np.full((24, 64, 64, 3), 255, np.uint8)
    distance = np.linalg.norm(camera[:, [0, 2]] - GOAL, axis=1).astype(np.float32)
    for index in range(10):
        column = round(64 * (0.5 + 0.6 * (GOAL[0] - camera[index, 0]) / (GOAL[1] - camera[index, 2])))
        frames[index, 28:36, max(column - 4, 0) : column + 4] = (255, 0, 0)
    distance[12:] = np.nan
    depth = np.repeat((GOAL[1] - camera[:, 2]).astype(np.float16)[:, None], 64 * 64, 1).reshape(24, 64, 64)
    like = walk_store()
    zeros = np.zeros(24, np.float32)
    return replace(
        like,
        frames=frames,
        depth=depth,
        pose=pose_from_state(torch.from_numpy(camera)).numpy(),
        camera=camera,
        reward=zeros,
        success=zeros,
        terminated=zeros,
        goal_distance=distance,
        intrinsics=np.tile(np.array([0.6, 0.6, 0.5, 0.5], np.float32), (24, 1)),
        starts=np.array([0, 12, 24]),
    )


def test_sightings_are_of_episodes_that_say_how_far_their_goal_is(store):
    found = find_sightings(store, 2)
    assert found.seen.tolist() == list(range(10)) and found.unseen.tolist() == [10, 11]
    for frame, column, row in zip(found.seen, found.column, found.row, strict=True):
        patch = store.frames[frame, int(row * 64), int(column * 64)]
        assert patch.tolist() == [255, 0, 0]
    assert len(find_sightings(store, 0).seen) == 0


def test_labels_name_the_cell_also_in_a_mirror(store):
    labels = goal_labels(store, find_sightings(store, 2), 40, np.random.default_rng(0))
    assert labels["goal_seen"].tolist() == [1.0] * 20 + [0.0] * 20
    for picture, cell in zip(labels["goal_rgbd"][:20], labels["goal_cell"][:20], strict=True):
        row, column = (THING_CELL * int(place) for place in divmod(int(cell), SIDE))
        patch = picture[:3, row : row + THING_CELL, column : column + THING_CELL].mean((1, 2))
        assert patch[0] > 0.3 and patch[1] < 0.3 and patch[2] < 0.3
    assert goal_labels(store, find_sightings(store, 0), 40, np.random.default_rng(0)) == {}


def test_the_head_learns_to_find_the_square(store):
    torch.manual_seed(0)
    heads = Heads(HeadsConfig(width=32, goal=True), 8, 8, hands=False)
    assert heads.goal is not None
    optimizer, rng = torch.optim.Adam(heads.goal.parameters(), lr=3e-3), np.random.default_rng(1)
    sightings = find_sightings(store, 2)
    for _ in range(60):
        loss = goal_losses(heads, goal_labels(store, sightings, 16, rng))["goal"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = goal_losses(heads, goal_labels(store, sightings, 64, rng))
    assert found["goal_right"] > 0.95 and found["goal_off"] < 1.0
