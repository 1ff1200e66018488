"""Picture metrics against closed forms and naive float64 references."""

import math

import numpy as np
import pytest
import torch

from worldscape.evaluate import metrics


def _noise(seed: int = 0, size: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _naive_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang 2004 by explicit loops over windows, float64. [3, h, w] x 2 -> similarity map [h - 10, w - 10]."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    out = np.zeros((3, a.shape[1] - 10, a.shape[2] - 10))
    for c, i, j in np.ndindex(*out.shape):
        x, y = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        out[c, i, j] = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return out.mean(axis=0)


def test_psnr_of_a_constant_error_is_its_closed_form():
    image = torch.full((1, 3, 16, 16), 0.5)
    assert metrics.psnr(image + 0.1, image).item() == pytest.approx(20.0, abs=1e-4)


def test_psnr_of_gaussian_noise():
    image = torch.full((1, 3, 256, 256), 0.5)
    noise = 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    assert metrics.psnr(image + noise, image).item() == pytest.approx(-20 * math.log10(0.05), abs=0.05)


def test_psnr_of_equal_pictures_is_the_ceiling():
    assert metrics.psnr(_noise(), _noise()).tolist() == [metrics.PSNR_CEILING] * 2


def test_masks_split_covered_from_uncovered_pixels():
    target = torch.full((1, 3, 16, 16), 0.5)
    image, mask = target.clone(), torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    image[..., :8] += 0.1
    image[..., 8:] -= 0.01
    assert metrics.psnr(image, target, mask).item() == pytest.approx(20, abs=1e-3)
    assert metrics.psnr(image, target, ~mask).item() == pytest.approx(40, abs=1e-2)


def test_a_tiny_mask_gives_nan_only_for_its_picture():
    mask = torch.ones(2, 24, 24, dtype=torch.bool)
    mask[1] = False
    scores = metrics.psnr(_noise(0), _noise(1), mask)
    assert scores[0].isfinite() and scores[1].isnan()


def test_ssim_equals_a_naive_float64_reference():
    a, b = _noise(0), 0.7 * _noise(0) + 0.3 * _noise(1)
    expected = [_naive_ssim(x, y).mean() for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert metrics.ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_masked_ssim_takes_window_centres():
    a, b = _noise(0)[:1], _noise(1)[:1]
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, 5:12, 5:19] = True
    expected = _naive_ssim(a[0].double().numpy(), b[0].double().numpy())[:7].mean()
    assert metrics.ssim(a, b, mask).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_identical_pictures_is_one_and_of_a_constant_shift_its_closed_form():
    flat = torch.full((1, 3, 16, 16), 0.4)
    assert metrics.ssim(_noise(), _noise()).tolist() == pytest.approx([1, 1], abs=1e-6)
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert metrics.ssim(flat, flat + 0.2).item() == pytest.approx(expected, abs=1e-4)


def test_gradient_energy_of_a_ramp_and_of_blur():
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 11, 11)
    assert metrics.gradient_energy(ramp).item() == pytest.approx(0.01, rel=1e-4)
    sharp = _noise()
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    assert (metrics.gradient_energy(blurred) < 0.3 * metrics.gradient_energy(sharp)).all()


def test_colour_statistics_of_pure_red_and_of_a_half_white_picture():
    red = torch.zeros(3, 8, 8)
    red[0] = 1
    statistics = metrics.colour_statistics(red)
    assert [value.item() for value in statistics] == pytest.approx([0.299, 0, 1, 1, 0, 0], abs=1e-6)
    half = torch.zeros(3, 8, 8)
    half[..., :4] = 1
    assert metrics.colour_statistics(half).contrast.item() == pytest.approx(0.5)


def test_repeat_statistics_see_a_frozen_and_a_looping_dream():
    still = _noise(0)[:1].repeat(41, 1, 1, 1)
    moved = torch.ones(40, dtype=torch.bool)
    frozen = metrics.repeat_statistics(still, moved)
    assert frozen == (1.0, 0.0, 0.0, 0.0)
    fresh = torch.rand(41, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    loop = torch.cat([fresh[:20], fresh[:20]])
    looping = metrics.repeat_statistics(loop, moved[:39])
    assert looping.freeze == 0 and looping.change > 50
    assert looping.recurrence < metrics.repeat_statistics(fresh, moved).recurrence


def test_recurrence_is_the_distance_to_the_nearest_old_frame():
    levels = torch.tensor([0.0, 0.1, 0.2, 0.7]).reshape(4, 1, 1, 1).expand(4, 3, 16, 16)
    statistics = metrics.repeat_statistics(levels, torch.tensor([True, False, True]), gap=2)
    assert statistics.recurrence == pytest.approx(255 * 0.2, rel=1e-4)  # lower median of 0.2 (2 -> 0) and 0.6 (3 -> 1)
    assert statistics.change == pytest.approx(255 * (0.1 + 0.5) / 2, rel=1e-4)
    assert statistics.variety == pytest.approx(255 * (0.1 + 0.2 + 0.7 + 0.1 + 0.6 + 0.5) / 6, rel=1e-4)


def test_depth_error_ignores_the_sky():
    target = torch.full((1, 8, 8), 4.0)
    target[:, :4] = 50
    assert metrics.depth_error(torch.full((1, 8, 8), 5.0), target, max_depth=50).item() == pytest.approx(0.25)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="uint8"):
        metrics.to_unit(torch.zeros(4, 4, 3))
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(_noise(), _noise()[:1])
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(_noise(size=8), _noise(size=8))
    with pytest.raises(ValueError, match="does not fit"):
        metrics.psnr(_noise(), _noise(), torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="moved"):
        metrics.repeat_statistics(_noise(), torch.ones(5, dtype=torch.bool))
