"""The dream's judge of hands against the simulator's, and the head that finds what it judges."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldscape.conditioning.hand_model import NUM_KEYPOINTS
from worldscape.data import tabletop_tasks
from worldscape.hand_heads import ThingsHead
from worldscape.hand_tasks import HAND_TASKS, PLACE_RADIUS, REACH_RADIUS, Facts, Touch, fingertip_and_palm, judge
from worldscape.heads import THING_CELL
from worldscape.train.hand_heads import _cells, thing_losses

NUM = 4000


def draw_facts(seed: int) -> tuple[Facts, list[tabletop_tasks.Facts]]:
    """Facts near the edges of all stages, as batches and one by one; what nothing touches stands still."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.02, 0.05, 0.3], (NUM, 1))
    target = rng.normal(0, 0.1, (NUM, 3))
    thing, tip, palm = (target + rng.normal(0, scale, (NUM, 3)) for _ in range(3))
    flags = rng.random((4, NUM)) < 0.5
    contact, grasped, lifted, before = flags
    single = [
        tabletop_tasks.Facts(
            fingertip=tip[row],
            palm=palm[row],
            object=thing[row],
            target=target[row],
            object_speed=1.0 if contact[row] else 0.0,
            contact=bool(contact[row]),
            grasped=bool(grasped[row]),
            lifted=bool(lifted[row]),
            was_lifted=bool(before[row]),
        )
        for row in range(NUM)
    ]
    points = [torch.from_numpy(part.astype(np.float32)) for part in (tip, palm, thing, target)]
    touch = Touch(*(torch.from_numpy(flag.astype(np.float32)) for flag in (contact, grasped, lifted)))
    was_lifted = torch.from_numpy(before.astype(np.float32))
    return Facts(points[0], points[1], points[2], points[3], touch, was_lifted), single


def test_the_radii_are_the_simulators():
    assert (REACH_RADIUS, PLACE_RADIUS) == (tabletop_tasks.REACH_RADIUS, tabletop_tasks.PLACE_RADIUS)


@pytest.mark.parametrize("place", range(len(HAND_TASKS)))
def test_dream_and_simulator_judge_alike(place):
    facts, single = draw_facts(place)
    worth = judge(facts)
    verdicts = [tabletop_tasks.TASKS[HAND_TASKS[place]](fact) for fact in single]
    success = torch.tensor([verdict.success for verdict in verdicts])
    reward = torch.tensor([verdict.reward for verdict in verdicts])
    assert 0.02 < success.float().mean() < 0.98
    assert torch.equal(worth.success[:, place] > 0.5, success)
    torch.testing.assert_close(worth.reward[:, place], reward, atol=1e-5, rtol=0)


def test_the_right_hand_is_judged_or_the_only_one():
    keypoints = torch.zeros(3, 2, NUM_KEYPOINTS, 3)
    keypoints[:, 0], keypoints[:, 1] = 1.0, 2.0
    tip, palm = fingertip_and_palm(keypoints, torch.tensor([[True, True], [True, False], [False, True]]))
    assert tip[:, 0].tolist() == palm[:, 0].tolist() == [2.0, 1.0, 2.0]


def draw_tables(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A white object and a green target on a dark table: pictures [N, 4, 32, 32] and places [N, 2, 3]."""
    rgbd, pixels = torch.full((count, 4, 32, 32), -0.8), rng.uniform(4, 28, (count, 2, 2))
    depth = rng.uniform(0.5, 1.0, count).astype(np.float32)
    rgbd[:, 3] = torch.from_numpy(2.0 / (1.0 + depth) - 1.0)[:, None, None]
    for row, (thing, target) in enumerate(pixels.round().astype(int)):
        rgbd[row, :3, thing[1] - 2 : thing[1] + 2, thing[0] - 2 : thing[0] + 2] = 0.9
        rgbd[row, 1, target[1] - 2 : target[1] + 2, target[0] - 2 : target[0] + 2] = 0.5
    rays = torch.from_numpy(pixels.round() / 32 - 0.5).float()
    return rgbd, torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * torch.from_numpy(depth)[:, None, None]


def test_things_are_found_where_they_are():
    """In pictures that training never drew."""
    torch.manual_seed(0)
    rng, intrinsics = np.random.default_rng(0), torch.tensor([[1.0, 1.0, 0.5, 0.5]]).expand(64, -1)
    heads: Any = SimpleNamespace(things=ThingsHead(16))
    absent = (torch.zeros(64, 2, NUM_KEYPOINTS, 3), torch.zeros(64, 2, dtype=torch.bool))
    optimizer = torch.optim.Adam(heads.things.parameters(), 1e-2)
    miss = []
    for step in range(301):
        rgbd, places = draw_tables(rng, 64)
        cell, seen = _cells(places, intrinsics, 32 // THING_CELL)
        assert seen.all()
        batch = {"thing_rgbd": rgbd, "thing_points": absent[0], "thing_hands": absent[1], "thing_places": places}
        batch |= {"thing_intrinsics": intrinsics, "thing_cell": cell, "thing_seen": seen}
        batch |= {"thing_touch": torch.zeros(64, 3), "task": torch.zeros(64, dtype=torch.long)}
        losses = thing_losses(heads, {**batch, "task_reward": torch.zeros(64), "task_success": torch.zeros(64)})
        optimizer.zero_grad()
        losses["things"].backward()
        optimizer.step()
        if step % 300 == 0:
            miss.append((float(losses["object_error"]), float(losses["target_error"])))
    assert min(miss[0]) > 0.1 and max(miss[1]) < 0.05
    things = heads.things(rgbd, *absent, intrinsics)
    assert (things.spread > 0).all() and (things.touch < 0).all()
