"""The plan view around a walker: what lies where, seen along the commanded walk."""

import math

import pytest
import torch

from worldscape.config import BodyConfig
from worldscape.memory.surroundings import BEHIND, CELL, CELLS, Surfaces

BODY = BodyConfig(above=0.3, below=1.2)


def view(point, walk, position=(0.0, 0.0, 0.0), known=True):
    """Plan view [2, G, G] of one point."""
    surfaces = Surfaces(torch.tensor([[point]], dtype=torch.float32), torch.tensor([[known]]))
    return surfaces.plan_view(torch.tensor([position]), torch.tensor([walk]), BODY)[0]


def cell_of(forward: float, aside: float) -> tuple[int, int]:
    return CELLS - 1 - math.floor((forward + BEHIND) / CELL), math.floor(aside / CELL + CELLS / 2)


@pytest.mark.parametrize("turn", [0.0, 0.7, 2.0, -3.0])
def test_a_point_lies_where_the_walk_sees_it(turn):
    """1.05 m ahead and 0.35 m aside, whichever way the walk leads."""
    ahead, aside = (math.sin(turn), math.cos(turn)), (-math.cos(turn), math.sin(turn))
    x, z = (1.05 * a + 0.35 * b for a, b in zip(ahead, aside, strict=True))
    seen = view((5.0 + x, 0.0, z), (0.25 * ahead[0], 0.0, 0.25 * ahead[1]), position=(5.0, 0.0, 0.0))
    assert seen.sum().item() == pytest.approx(math.log(2.0))
    assert [tuple(place) for place in (seen[0] > 0).nonzero().tolist()] in (
        [cell_of(1.05, 0.35)],
        [cell_of(1.05, -0.35)],
    )
    mirrored = view((5.0 + x, 0.0, z), (-0.25 * ahead[0], 0.0, -0.25 * ahead[1]), position=(5.0, 0.0, 0.0))
    assert not mirrored.any()  # 1.05 m behind lies outside


@pytest.mark.parametrize(
    ("down", "channel"),
    [(0.0, 0), (1.1, 0), (1.3, 1), (-0.2, 0), (-0.4, None)],
    ids=["eye", "low", "floor", "brow", "over"],
)
def test_height_tells_obstacle_from_floor_and_ceiling(down, channel):
    seen = view((0.0, down, 1.0), (0.0, 0.0, 0.25))
    assert [bool(part.any()) for part in seen] == [channel == 0, channel == 1]


def test_unknown_and_distant_points_are_left_out_and_standing_sees_nothing():
    assert not view((0.0, 0.0, 1.0), (0.0, 0.0, 0.25), known=False).any()
    assert not view((0.0, 0.0, 9.0), (0.0, 0.0, 0.25)).any()
    assert not view((0.0, 0.0, 1.0), (0.0, 0.0, 0.0)).any()


def test_counts_are_logarithmic_and_rows_are_independent():
    points = torch.tensor([[[0.0, 0.0, 1.0]] * 3, [[0.0, 0.0, 9.0]] * 3])
    walks = torch.tensor([[0.0, 0.0, 0.25]]).repeat(2, 1)
    seen = Surfaces(points, torch.ones(2, 3, dtype=torch.bool)).plan_view(torch.zeros(2, 3), walks, BODY)
    assert seen[0].sum().item() == pytest.approx(math.log(4.0)) and not seen[1].any()
