"""Where a goal is: in sight, by distances, in a picture; and what being near it is worth."""

import math

import numpy as np
import pytest
import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import encode_depth
from worldscape.goals import FAR, MIDDLE, floor_distance, look_for, nearness, trilaterate
from worldscape.heads import GoalHead

INTRINSICS = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
EYES = -1.5  # y of a camera at eye level


def sight(goal: tuple[float, float], depth: float, yaw: float = 0.0):
    """Look from the origin at a goal (x, z) while the whole picture is `depth` metres away."""
    pose = pose_from_state(torch.tensor([[0.0, EYES, 0.0, yaw, 0.0, 0.0]]))
    standing = torch.tensor([[goal[0], 0.0, goal[1]]])
    return look_for(standing, torch.full((1, 32, 32), depth), pose, INTRINSICS)


def test_a_goal_is_in_sight_where_depth_shows_it():
    found = sight((1.0, 4.0), 4.0)
    assert found.is_seen and found.column.item() == pytest.approx(0.5 + 0.5 / 4)
    assert found.row.item() == pytest.approx(0.5 + 0.5 * (-EYES - MIDDLE) / 4)
    assert sight((1.0, 4.0), 4.5).is_seen and sight((1.0, 4.0), 3.5).is_seen  # its near side, or a little beyond it
    assert not sight((1.0, 4.0), 2.0).is_seen  # behind something
    assert not sight((1.0, 4.0), 9.0).is_seen  # gone
    assert not sight((9.0, 4.0), 4.0).is_seen and not sight((0.0, -4.0), 4.0).is_seen  # beside, behind
    turned = sight((4.0, 0.0), 4.0, yaw=math.pi / 2)
    assert turned.is_seen and turned.column.item() == pytest.approx(0.5, abs=1e-5)


def test_distances_tell_where_a_goal_is_if_one_walks_about():
    places = np.random.default_rng(0).uniform(-2, 2, (30, 2))
    goal = np.array([3.0, -1.0])
    distances = np.linalg.norm(places - goal, axis=1)
    found = trilaterate(places, distances)
    assert found is not None
    np.testing.assert_allclose(found, goal, atol=1e-6)
    line = np.stack([np.linspace(0, 3, 30), np.zeros(30)], 1)
    assert trilaterate(line, np.linalg.norm(line - goal, axis=1)) is None  # it may be on either side
    assert trilaterate(places[:2], distances[:2]) is None
    assert trilaterate(places, np.random.default_rng(1).uniform(1, 5, 30)) is None  # of different things


def test_nearness_is_nothing_until_the_goal_was_seen():
    distance, is_known = torch.tensor([0.0, FAR / 4, FAR, 2 * FAR, 1.0]), torch.tensor([True] * 4 + [False])
    assert nearness(distance, is_known).tolist() == [1.0, 0.75, 0.0, 0.0, 0.0]
    goal, camera = torch.tensor([[3.0, 0.0, 5.0]]), torch.tensor([[0.0, EYES, 1.0, 0.3, 0.0, 0.0]])
    assert floor_distance(goal, camera).item() == pytest.approx(5.0)


def test_the_head_places_a_goal_on_the_ray_through_its_cell(monkeypatch):
    """Told by hand which of 16 x 16 cells is hottest; the nearest surface in it says how far away the goal is."""
    head = GoalHead(8)
    depth = torch.full((2, 64, 64), 6.0)
    depth[1, 38:40, 40:42] = 3.0
    rgbd = torch.cat([torch.zeros(2, 3, 64, 64), encode_depth(depth)[:, None]], 1)
    heat = torch.full((2, 256), -5.0)
    heat[:, 9 * 16 + 10] = 5.0
    monkeypatch.setattr(head, "look", lambda rgbd: (torch.tensor([-1.0, 2.0]), heat))
    found = head(rgbd, INTRINSICS.expand(2, -1))
    assert found.seen.tolist() == [-1.0, 2.0]
    x, y = (10.5 / 16 - 0.5) / 0.5, (9.5 / 16 - 0.5) / 0.5
    torch.testing.assert_close(found.place, torch.tensor([[6 * x, 6 * y, 6.0], [3 * x, 3 * y, 3.0]]), atol=1e-4, rtol=0)
