"""What a policy sees, what it draws actions from, and its file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldscape.policy import (
    FORMAT,
    STD_RANGE,
    Choice,
    Gaussian,
    PixelPolicy,
    PolicyConfig,
    load_policy,
    open_stack,
    push_frames,
    save_policy,
    save_tensors,
)

CONFIG = PolicyConfig(num_actions=3, size=8, frames=3, channels=(4, 4), hidden=8)


def grey(*shades: int) -> torch.Tensor:
    """One frame of each shade, uint8 [B, 8, 8, 3]."""
    return torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)


def test_frames_are_stacked_oldest_first_and_a_new_episode_forgets():
    stacks = open_stack(grey(1, 10), 3)
    later = push_frames(
        push_frames(stacks, grey(2, 20), torch.tensor([False, False])), grey(3, 30), torch.tensor([0, 1]) > 0
    )
    np.testing.assert_array_equal(later[..., 0, 0, 0], [[1, 2, 3], [30, 30, 30]])
    np.testing.assert_array_equal(stacks[..., 0, 0, 0], [[1, 1, 1], [10, 10, 10]])


def test_rows_do_not_depend_on_each_other_and_frames_matter():
    policy = PixelPolicy(CONFIG)
    stacks = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)
    odds, values, _ = policy(stacks)
    assert isinstance(odds, Choice) and odds.logits.shape == (4, 3) and values.shape == (4,)
    torch.testing.assert_close(policy(stacks[2:3]).value, values[2:3])
    assert not torch.allclose(policy(stacks.flip(1)).value, values)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_choices_are_drawn_as_often_as_their_odds_say():
    odds = Choice(torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3))
    drawn = odds.draw(uniform(20_000, 3))
    shares = drawn.bincount(minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.01)
    known = torch.distributions.Categorical(logits=odds.logits)
    torch.testing.assert_close(odds.log_prob(drawn), known.log_prob(drawn))
    torch.testing.assert_close(odds.entropy(), known.entropy())


def test_numbers_are_drawn_around_their_means():
    odds = Gaussian(torch.tensor([[-0.9, 0.4]]).expand(20_000, 2), torch.tensor([0.5, 0.1]))
    drawn = odds.draw(uniform(20_000, 2))
    np.testing.assert_allclose(drawn.mean(0), [-0.9, 0.4], atol=0.01)
    np.testing.assert_allclose(drawn.std(0), [0.5, 0.1], rtol=0.02)
    known = torch.distributions.Independent(torch.distributions.Normal(odds.mean, odds.std), 1)
    torch.testing.assert_close(odds.log_prob(drawn), known.log_prob(drawn))
    torch.testing.assert_close(odds.entropy(), known.entropy())


def test_no_noise_draws_an_infinite_number():
    """float32 noise may be 0 once in 17 million; an environment takes no infinity."""
    odds = Gaussian(torch.zeros(1, 2), torch.ones(2))
    drawn = odds.draw(torch.tensor([[0.0, 1.0]]))
    assert drawn.isfinite().all() and drawn[0, 0] < -4 and drawn[0, 1] > 4
    assert Choice(torch.zeros(1, 2)).draw(torch.tensor([[0.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize("push", [-1e4, 1e4])
def test_a_continuous_policy_keeps_its_bounds(push):
    """Whatever training does to it: means in the box of actions, widths between the bounds, gradients finite."""
    policy = PixelPolicy(replace(CONFIG, is_continuous=True))
    assert policy.spread is not None
    policy.actor.bias.data += push
    policy.spread.data += push
    stacks = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)
    odds, *_ = policy(stacks)
    assert isinstance(odds, Gaussian) and odds.mean.shape == (4, 3) and odds.std.shape == (3,)
    assert (odds.mean.abs() <= 1).all()
    torch.testing.assert_close(odds.std, torch.full((3,), STD_RANGE[push > 0]))
    odds.log_prob(torch.zeros(4, 3)).sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in policy.parameters())


def test_a_policy_draws_as_widely_as_it_is_told():
    policy = PixelPolicy(replace(CONFIG, is_continuous=True))
    policy.widen(0.6)
    odds, *_ = policy(torch.zeros(1, 3, 8, 8, 3, dtype=torch.uint8))
    assert isinstance(odds, Gaussian)
    torch.testing.assert_close(odds.std.detach(), torch.full((3,), 0.6))
    PixelPolicy(CONFIG).widen(0.6)  # choices have no width
    for std in (0.05, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0.05 and 1.0"):
            policy.widen(std)


def test_widths_do_not_depend_on_the_picture_and_learn():
    policy = PixelPolicy(replace(CONFIG, is_continuous=True))
    odds, *_ = policy(torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8))
    odds.log_prob(odds.mean.detach()).sum().backward()
    assert policy.spread is not None and policy.spread.grad is not None
    assert (policy.spread.grad < 0).all()  # the density of the mean grows as the widths shrink


def test_a_policy_with_facts_goes_by_them_and_does_not_bend_them():
    """Actor and critic want nothing of the eye, and the eye is taught by facts alone."""
    policy = PixelPolicy(replace(CONFIG, is_continuous=True, num_facts=5))
    eye = {name for name, _ in policy.named_parameters() if name.startswith(("trunk.", "hidden.", "facts."))}
    stacks = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)

    def taught_by(part: torch.Tensor) -> set[str]:
        policy.zero_grad()
        part.sum().backward()
        return {name for name, weight in policy.named_parameters() if weight.grad is not None}

    odds, values, facts = policy(stacks)
    assert facts.shape == (4, 5) and isinstance(odds, Gaussian)
    assert taught_by(facts.square()) == eye
    odds, values, _ = policy(stacks)
    assert not eye & taught_by(odds.mean + values[:, None])
    assert {name.partition(".")[0] for name in taught_by(policy(stacks).value)} == {"worth", "critic"}


@pytest.mark.parametrize("num_facts", [0, 3])
def test_a_policy_hears_what_it_is_told(num_facts):
    policy = PixelPolicy(replace(CONFIG, num_facts=num_facts, num_told=2))
    stacks = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)
    one, other = (policy(stacks, torch.full((4, 2), value)) for value in (0.0, 1.0))
    assert not torch.allclose(one.value, other.value) and not torch.allclose(one.actions[0], other.actions[0])
    if num_facts:
        assert not torch.allclose(one.facts, other.facts)
        torch.testing.assert_close(policy.decide(one.facts, torch.zeros(4, 2))[1], one.value)
    with pytest.raises(ValueError, match="is told 2 numbers beside the pictures, not 0"):
        policy(stacks)
    with pytest.raises(ValueError, match="is told 0 numbers beside the pictures, not 2"):
        PixelPolicy(CONFIG)(stacks, torch.zeros(4, 2))


@pytest.mark.parametrize("is_continuous", [False, True])
def test_a_file_gives_the_same_policy_back(is_continuous, tmp_path):
    config = replace(CONFIG, is_continuous=is_continuous, num_facts=4 * is_continuous)
    policy = PixelPolicy(config)
    save_policy(policy, tmp_path / "policy.safetensors", {"steps": 5})
    state = torch.get_rng_state()
    loaded, facts = load_policy(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert facts == {"steps": 5} and loaded.config == config and not loaded.training
    stacks = open_stack(grey(7), 3)
    for known, wanted in zip(loaded(stacks).actions, policy(stacks).actions, strict=True):
        torch.testing.assert_close(known, wanted.detach(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(ValueError, match="there is no file"):
        load_policy(tmp_path)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged or another kind of file"):
        load_policy(path)
    save_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="holds no policy"):
        load_policy(path)


@pytest.mark.parametrize("header", [{}, {"policy": {"speed": 1}, "facts": {}}, {"policy": [], "facts": {}}], ids=str)
def test_a_policy_that_does_not_say_what_it_is_is_refused(header, tmp_path):
    path = tmp_path / "policy.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"format": FORMAT, **header})
    with pytest.raises(ValueError, match="does not fit its own description"):
        load_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames 0: it must be at least 1"),
        ({"size": 10}, "divide pictures of 10 pixels"),
        ({"channels": ()}, "divide"),
        ({"num_facts": -1}, "sees -1 facts"),
        ({"num_told": -1}, "is told -1"),
    ],
)
def test_impossible_policies_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**{"num_actions": 3, "size": 8, "channels": (4, 4), **changes})
