"""Distribution matching: closed forms on Gaussians, and a student that must choose between two modes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from worldscape.flow import add_noise, follow_flow, sampling_levels, shift_level
from worldscape.train.matching import (
    GREATEST_LEVEL,
    LEAST_LEVEL,
    draw_shared_levels,
    flow_matching_loss,
    matching_gradient,
    matching_loss,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_estimate(latent: Tensor, level: float, mean: float, std: float) -> Tensor:
    """E[clean | latent] for clean ~ N(mean, std^2)."""
    variance = (1 - level) ** 2 * std**2 + level**2
    return mean + (1 - level) * std**2 / variance * (latent - (1 - level) * mean)


def gaussian_score(latent: Tensor, level: float, mean: float, std: float) -> Tensor:
    """d log p_level(latent) / d latent for clean ~ N(mean, std^2)."""
    return -(latent - (1 - level) * mean) / ((1 - level) ** 2 * std**2 + level**2)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_gradient_is_the_difference_of_scores_on_gaussians(level):
    """fake - real = level^2 / (1 - level) * (score_fake - score_real): up to that factor the gradient of the KL."""
    sample = 2.0 + 0.5 * torch.randn(3, 2, 4, 5, generator=rng())
    latent = (1 - level) * sample + level * torch.randn(sample.shape, generator=rng(1))
    real, fake = (gaussian_estimate(latent, level, mean, std) for mean, std in ((-1.0, 1.5), (2.0, 0.5)))
    scores = gaussian_score(latent, level, 2.0, 0.5) - gaussian_score(latent, level, -1.0, 1.5)
    scale = (sample - real).abs().mean((1, 2, 3), keepdim=True)
    expected = level**2 / (1 - level) * scores / scale
    torch.testing.assert_close(matching_gradient(sample, real, fake), expected)
    assert torch.equal(matching_gradient(sample, real, real), torch.zeros_like(sample))


def test_each_clip_has_its_own_scale():
    sample, real = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert matching_gradient(sample, real, torch.zeros_like(real)).flatten(1)[:, 0].tolist() == [-1.0, -1.0]


def test_the_loss_has_just_that_gradient():
    sample = torch.randn(2, 3, generator=rng()).requires_grad_()
    gradient = torch.randn(2, 3, generator=rng(1))
    (found,) = torch.autograd.grad(matching_loss(sample * 1.0, gradient), sample)
    torch.testing.assert_close(found, gradient / 6)


def test_the_flow_matching_loss_is_the_error_of_the_velocity():
    clean, noise, estimate = (torch.randn(2, 3, 4, 5, generator=rng(seed)) for seed in (0, 1, 2))
    level = torch.rand(2, 3, generator=rng(3)).clamp_min(0.1)
    latent = add_noise(clean, noise, level)
    expected = ((latent - estimate) / level[..., None, None] - (noise - clean)).square().mean()
    torch.testing.assert_close(flow_matching_loss(estimate, clean, level), expected)


def test_shared_levels_are_shifted_and_clamped():
    level = draw_shared_levels(20_000, 3.0, rng())
    assert float(level.min()) == pytest.approx(LEAST_LEVEL) and float(level.max()) == pytest.approx(GREATEST_LEVEL)
    assert float(level.median()) == pytest.approx(shift_level(0.5, 3.0), abs=0.01)
    assert torch.equal(level, draw_shared_levels(20_000, 3.0, rng()))


def test_where_a_greatest_level_is_named_levels_lie_evenly_below_it():
    level = draw_shared_levels(20_000, 3.0, rng(), torch.tensor([0.6, 1.0]).repeat(10_000))
    assert torch.equal(level[1::2], draw_shared_levels(20_000, 3.0, rng())[1::2])
    assert float(level[::2].max()) == pytest.approx(0.6, abs=0.001)
    assert float(level[::2].median()) == pytest.approx(0.3, abs=0.01)


def test_the_flow_of_a_gaussian_ends_where_its_quantile_lies():
    """The flow is x = mean + std * noise in one dimension; Euler nears it with the number of steps."""
    noise = torch.randn(100, generator=rng())
    errors = []
    for num_steps in (8, 64):
        levels = sampling_levels(num_steps)
        path = follow_flow(lambda latent, level: gaussian_estimate(latent, level, 2.0, 0.5), noise, levels)
        assert torch.equal(path[0], noise) and len(path) == num_steps + 1
        errors.append(float((path[-1] - (2.0 + 0.5 * noise)).abs().mean()))
    assert errors[1] < 0.02 < errors[0] < 0.2


def test_kept_states_lie_at_the_levels_of_fewer_steps():
    """A path of 8 steps, every second kept, passes the levels at which a sampler of 4 steps asks."""
    assert sampling_levels(8, 3.0)[::2] == pytest.approx(sampling_levels(4, 3.0))
    path = follow_flow(lambda latent, level: torch.zeros(3), torch.ones(3), sampling_levels(8, 3.0), keep_every=2)
    torch.testing.assert_close(path[:, 0], torch.tensor(sampling_levels(4, 3.0)))
    with pytest.raises(ValueError, match="8 steps cannot be kept every 3"):
        follow_flow(lambda latent, level: latent, torch.ones(3), sampling_levels(8), keep_every=3)


class TwoInputs(nn.Sequential):
    """Small network of a sample and a level, both [B, 1]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def ask(self, latent: Tensor, level: Tensor) -> Tensor:
        return self(torch.cat([latent, level], 1))


def two_modes(latent: Tensor, level: Tensor) -> Tensor:
    """The perfect teacher of a world that is -1 or 1 with equal odds."""
    return torch.tanh((1 - level) * latent / level.square())


def train_student(steps: int) -> tuple[nn.Module, nn.Module]:
    """A student of one call after so many turns, and how it was before any."""
    generator = rng()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, critic = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 1)), TwoInputs()
    before = copy.deepcopy(student)
    optimizers = [torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.0, 0.99)) for net in (student, critic)]
    for step in range(steps):
        sample = student(torch.randn(256, 1, generator=generator))
        level, noise = draw_shared_levels(256, 1.0, generator)[:, None], torch.randn(256, 1, generator=generator)
        latent = (1 - level) * sample.detach() + level * noise
        estimate = critic.ask(latent, level)
        loss = flow_matching_loss(estimate[..., None, None], sample.detach()[..., None, None], level)
        if step % 3 == 0:  # the batch is one clip: one number alone has no scale of its own
            gradient = matching_gradient(sample[None], two_modes(latent, level)[None], estimate[None])
            loss = loss + matching_loss(sample[None], gradient)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return student, before


def test_a_student_of_one_call_ends_at_the_modes_instead_of_their_mean():
    """Regression on pure noise would answer 0, the mean; matching makes the student choose, and choose both."""
    noise = torch.randn(2000, 1, generator=rng(1))
    made, before = (net(noise).detach() for net in train_student(1200))
    assert float((before.abs() < 0.5).float().mean()) > 0.6
    assert 0.3 < float((made > 0).float().mean()) < 0.7
    assert float((made.abs() - 1).abs().median()) < 0.25
    assert float((made.abs() < 0.5).float().mean()) < 0.15
