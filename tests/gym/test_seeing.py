"""Learning to see: shifts that move pictures and nothing else, openings kept aside, and facts that nobody knows."""

from typing import Any

import pytest
import torch

from worldscape.policy import PixelPolicy, PolicyConfig, open_stack
from ws_gym.ppo import Present
from ws_gym.seeing import Looks, Views, facts_loss, learn_to_see, look_again, look_around, shifted


def test_all_frames_of_a_stack_are_moved_by_the_same_pixels_and_edges_repeat():
    size, most = 16, 3
    across, down = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy")
    picture = torch.stack([across, down, torch.zeros_like(down)], -1).to(torch.uint8)
    stacks = picture.expand(50, 2, -1, -1, -1).clone()
    stacks[:, 1, ..., 2] = 7  # tells the second frame from the first
    moved = shifted(stacks, torch.Generator().manual_seed(0), most)
    assert (moved[:, 1, ..., 2] == 7).all() and (moved[:, 0, ..., 2] == 0).all()
    assert torch.equal(moved[:, 0, ..., :2], moved[:, 1, ..., :2])
    by = moved[:, 0, most, most, :2].long() - most
    assert by.abs().max() <= most and by.unique(dim=0).shape[0] > 20
    for row, (right, below) in zip(moved[:, 0], by, strict=True):
        assert torch.equal(row[..., 0], (across + right).clamp(0, size - 1).to(torch.uint8))
        assert torch.equal(row[..., 1], (down + below).clamp(0, size - 1).to(torch.uint8))


def test_the_same_generator_gives_the_same_shifts():
    stacks = torch.randint(0, 256, (4, 1, 8, 8, 3), dtype=torch.uint8)
    one, same, other = (shifted(stacks, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


class Numbered:
    """Five worlds whose openings are shaded and told of by the seed, one each."""

    def open(self, seed: int, num_frames: int) -> Present:
        shade = seed + torch.arange(5)
        frames = shade.to(torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)
        told = shade[:, None].float()
        return Present(open_stack(frames, num_frames), torch.zeros(5, dtype=torch.bool), -told, told)


NUMBERED: Any = Numbered()


def test_looking_around_opens_as_many_episodes_as_are_asked_for_each_with_its_own_seed():
    looks = look_around(NUMBERED, 12, seed=30)
    assert looks.frames[:, 0, 0, 0].tolist() == list(range(30, 42)) and looks.facts[:, 0].tolist() == list(
        range(30, 42)
    )
    stacks, told, facts = looks.draw(100, 2, torch.Generator().manual_seed(0))
    assert torch.equal(told, -facts)
    assert stacks.shape == (100, 2, 4, 4, 3)
    assert torch.equal(stacks[:, 1, 2, 2, 1].float(), facts[:, 0])
    assert len(facts.unique()) == 12


def test_facts_that_nobody_knows_count_for_nothing():
    seen = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    known = facts_loss(seen, torch.tensor([[1.5, torch.nan], [torch.nan, torch.nan]]))
    torch.testing.assert_close(known, torch.tensor(0.5 * 0.5**2))
    known.backward()
    assert seen.grad is not None and seen.grad.tolist() == [[-0.5, 0.0], [0.0, 0.0]]
    assert facts_loss(seen, torch.full((2, 2), torch.nan)) == 0


def spots(count: int, seed: int) -> Looks:
    """A bright spot on a dark ground whose shade says nothing: the facts are the spot's place from the middle."""
    rng = torch.Generator().manual_seed(seed)
    place = torch.randint(8, 22, (count, 2), generator=rng)
    frames = torch.randint(0, 80, (count, 1, 1, 1), generator=rng).expand(-1, 32, 32, 3).to(torch.uint8).clone()
    for row, (x, y) in enumerate(place.tolist()):
        frames[row, y : y + 3, x : x + 3] = 255
        frames[row, 15:17, 15:17] = torch.tensor([255, 0, 0], dtype=torch.uint8)  # from where ways are told
    return Looks(frames, torch.zeros(count, 0), (place - 14.5) / 6.5)


def test_a_policy_learns_to_see_before_its_first_step_and_nothing_else_of_it_changes():
    """The spot's place is told from the mark in the middle; shifts move both, so the way between them stays."""
    torch.manual_seed(0)
    policy = PixelPolicy(
        PolicyConfig(num_actions=2, num_facts=2, size=32, frames=2, channels=(8, 8), stride=2, hidden=32)
    )
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    new = spots(64, seed=1)

    def error() -> float:
        return float((policy.see(open_stack(new.frames, 2)) - new.facts).detach().abs().mean())

    blind = error()
    learn_to_see(policy, spots(600, seed=0), 25, torch.Generator().manual_seed(0))
    assert error() < 0.4 * blind
    for name, value in policy.state_dict().items():
        teaches_to_act = name.split(".")[0] in ("will", "worth", "actor", "critic", "spread")
        assert torch.equal(value, before[name]) == teaches_to_act, name


@pytest.mark.parametrize("num_looks", [0, 5])
def test_views_are_a_batchs_own_and_as_many_looks(num_looks):
    looks = look_around(NUMBERED, num_looks, seed=100) if num_looks else None
    own = Views(torch.zeros(3, 2, 4, 4, 3, dtype=torch.uint8), torch.zeros(3, 1), torch.zeros(3, 1))
    views = look_again(own, looks, torch.Generator().manual_seed(0))
    shades = views.stacks[:, 0, 0, 0, 0].float()
    assert len(shades) == len(views.facts) == (6 if num_looks else 3)
    assert torch.equal(shades, views.facts[:, 0]) and (shades[3:] >= 100).all()
    assert torch.equal(views.told, -views.facts)
