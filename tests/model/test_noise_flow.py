"""Counter-based noise and the flow-matching path, against closed forms."""

import math

import pytest
import torch

from worldscape.flow import add_noise, draw_levels, euler_step, sampling_levels
from worldscape.noise import slot_noise


def test_noise_is_a_function_of_seed_and_step_alone():
    seeds, steps = torch.tensor([3, 4, 5]), torch.tensor([7, 7, 9])
    together = slot_noise(seeds, steps, 33)
    for row in range(3):
        assert torch.equal(slot_noise(seeds[row : row + 1], steps[row : row + 1], 33)[0], together[row])
    assert torch.equal(slot_noise(seeds, steps, 10), together[:, :10])


def test_noise_differs_between_neighbouring_seeds_and_steps():
    seeds = torch.arange(64).repeat_interleave(64)
    noise = slot_noise(seeds, torch.arange(64).repeat(64), 64)
    correlation = torch.corrcoef(noise[:512]) - torch.eye(512)
    assert correlation.abs().max() < 0.75  # 64 samples: chance alone gives about 0.55 among 131k pairs
    assert len(torch.unique(noise[:, 0])) > 4000


def test_noise_is_standard_normal():
    noise = slot_noise(torch.arange(100), torch.arange(100), 10000)
    assert float(noise.mean()) == pytest.approx(0.0, abs=4e-3)
    assert float(noise.var()) == pytest.approx(1.0, abs=6e-3)
    assert float((noise.abs() < 1).float().mean()) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=2e-3)
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=0.05)


def test_path_ends_at_clean_and_at_noise():
    clean, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(add_noise(clean, noise, torch.zeros(2, 3)), clean)
    assert torch.equal(add_noise(clean, noise, torch.ones(2, 3)), noise)
    torch.testing.assert_close(add_noise(clean, noise, torch.full((2, 3), 0.25)), 0.75 * clean + 0.25 * noise)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_sampler_is_exact_where_the_prediction_is(steps):
    """On a straight path (a known clean latent) every number of steps lands on it."""
    clean, latent = torch.randn(3, 4), torch.randn(3, 4)
    levels = sampling_levels(steps, shift=3.0)
    for level, next_level in zip(levels[:-1], levels[1:], strict=True):
        latent = euler_step(latent, clean, level, next_level)
    torch.testing.assert_close(latent, clean)


def test_euler_step_follows_the_linear_field_of_a_gaussian():
    """Clean ~ N(0, s^2): the best prediction is linear, and many small steps carry noise to spread s."""
    spread, latent = 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64)
    start, levels = latent.clone(), sampling_levels(4000)
    for level, next_level in zip(levels[:-1], levels[1:], strict=True):
        gain = (1 - level) * spread**2 / ((1 - level) ** 2 * spread**2 + level**2)
        latent = euler_step(latent, gain * latent, level, next_level)
    torch.testing.assert_close(latent, spread * start, atol=2e-3, rtol=2e-3)


def test_sampling_levels_run_from_one_to_zero():
    assert sampling_levels(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert sampling_levels(2, shift=3.0) == [1.0, 0.75, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        sampling_levels(0)


def test_training_levels_keep_their_shares():
    levels = draw_levels((4000, 8), 0.5, 0.25, torch.Generator().manual_seed(0))
    assert float((levels[:, -1] == 1.0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((levels[:, :-1] == 1.0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((levels[:, :-1] <= 0.25).float().mean()) == pytest.approx(0.5 + 0.25 * 0.25, abs=0.02)


def test_chosen_places_are_always_history():
    shape, rng = (400, 5), torch.Generator()
    levels = draw_levels(shape, 0.2, 0.25, rng.manual_seed(0), slice(1, 3))
    assert float(levels[:, 1:3].max()) <= 0.25
    others = draw_levels(shape, 0.2, 0.25, rng.manual_seed(0))
    assert torch.equal(levels[:, [0, 3, 4]], others[:, [0, 3, 4]]) and (others[:, 1] == 1.0).any()
