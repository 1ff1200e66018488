"""Which pictures are chosen to cover a view, by tensors and by integers; pictures that show made-up cells."""

import pytest
import torch

from worldscape.memory import policy
from worldscape.memory.policy import CELLS, Wish, cell_numbers, choose_covers

INTRINSICS = torch.tensor([[0.6, 0.6, 0.5, 0.5]])


def pictures(cells: list[set[int]]) -> torch.Tensor:
    """One slot's pictures of these cells, and a last place where nothing lies: bool [1, N, CELLS ** 2]."""
    shown = torch.zeros(1, len(cells) + 1, CELLS**2, dtype=torch.bool)
    for number, some in enumerate(cells):
        shown[0, number, list(some)] = True
    return shown


@pytest.fixture(params=["integers", "tensors"])
def way(request, monkeypatch):
    monkeypatch.setattr(policy, "FEW_SLOTS", 1000 if request.param == "integers" else 0)


def test_integers_choose_what_tensors_choose(monkeypatch):
    """At random, with all there is: several wishes, pictures that lie in two places, cells that do not count."""
    rng = torch.Generator().manual_seed(0)
    for slots, places in ((1, 2), (1, 34), (3, 34), (5, 9)):
        for _ in range(40):
            dense = torch.rand(slots, places, 1, generator=rng) * 0.5
            shown = torch.rand(slots, places, CELLS**2, generator=rng) < dense
            frames = torch.randint(0, 2 * places, (slots, places), generator=rng)
            shown[:, -1], frames[:, -1] = False, -1
            count = torch.randint(0, 2 * places, (slots,), generator=rng)
            left = torch.rand(slots, CELLS**2, generator=rng) < 0.5
            wishes = [Wish(0, count, 4, policy.ANY), Wish(1, count - 6, 2, policy.ONE_CELL)]
            wishes.append(Wish(0, count, 3, policy.ANY, left))
            chosen = []
            for few in (0, slots):
                monkeypatch.setattr(policy, "FEW_SLOTS", few)
                chosen.append(choose_covers(shown, frames, wishes))
            assert chosen[0].shape == (slots, 9)
            assert torch.equal(*chosen)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("first", [0, 1_000_000])
def test_ties_go_to_the_older_picture_however_long_the_dream_is(first):
    shown = pictures([{1, 2}, {3, 4}, {1, 2}, {3}])
    frames = torch.tensor([[3, 2, 0, 1, -1]]) + first
    frames[0, -1] = -1
    chosen = choose_covers(shown, frames, [Wish(0, torch.tensor([first + 4]), 2, policy.ONE_CELL)])
    assert chosen.tolist() == [[2, 1]]  # frames 0 and 2


@pytest.mark.usefixtures("way")
def test_a_pick_must_show_something_new_where_that_is_asked_for():
    shown, frames = pictures([{1, 2}, {2}, {1}]), torch.tensor([[0, 1, 2, -1]])
    every = torch.tensor([3])
    wishes = [Wish(0, every, 3, policy.ONE_CELL), Wish(0, every, 3, policy.ANY), Wish(1, every, 3, policy.ONE_CELL)]
    assert choose_covers(shown, frames, wishes).tolist() == [[0, 3, 3, 0, 1, 2, 1, 2, 3]]


def test_what_is_behind_or_beside_the_camera_is_in_no_cell():
    points = [(0.0, 0.0, 2.0), (0.0, 0.0, -2.0), (0.3, -0.2, 0.0), (50.0, 0.0, 2.0), (0.0, -50.0, 2.0), (0.9, 0.9, 1.2)]
    numbers = cell_numbers(torch.tensor(points).T[:, None, None], torch.eye(4)[None], INTRINSICS)
    middle, out = CELLS // 2 * CELLS + CELLS // 2, CELLS**2
    assert numbers.tolist() == [[[middle, out, out, out, out, CELLS**2 - 1]]]
