"""Sharpening: steeper edges, nothing beyond what is there, and only where it is asked for."""

import pytest
import torch
import torch.nn.functional as F

from worldscape.conditioning.sharpen import SharpenConfig, sharpen
from worldscape.evaluate.metrics import gradient_energy

BOTH = SharpenConfig(dreamed=1.0, real=0.2)


def blurred(seed: int = 0, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of blocks [B, 4, 64, 64], as they are and blurred."""
    rng = torch.Generator().manual_seed(seed)
    blocks = F.interpolate(torch.rand(rows, 4, 8, 8, generator=rng) * 2 - 1, scale_factor=8, mode="nearest")
    soft = F.avg_pool2d(F.pad(blocks, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return blocks, soft


def energy(rgbd: torch.Tensor) -> torch.Tensor:
    return gradient_energy((rgbd[:, :3] + 1) / 2)


def test_edges_get_steeper_and_nearer_to_what_they_were():
    sharp, soft = blurred()
    made = sharpen(soft, torch.zeros(2, 64), BOTH)
    assert bool((energy(made) > 1.05 * energy(soft)).all()) and bool((energy(made) < energy(sharp)).all())
    assert float((made - sharp).square().mean()) < float((soft - sharp).square().mean())
    assert torch.equal(made[:, 3], soft[:, 3])  # depth stays


def test_no_halo():
    """Each pixel stays within the range of its neighbours, however strong."""
    _, soft = blurred()
    padded = F.pad(soft[:, :3], (1, 1, 1, 1), mode="replicate")
    made = sharpen(soft, torch.zeros(2, 64), SharpenConfig(dreamed=10.0))[:, :3]
    assert bool((made <= F.max_pool2d(padded, 3, 1)).all()) and bool((made >= -F.max_pool2d(-padded, 3, 1)).all())


def test_strength_goes_by_what_is_real():
    _, soft = blurred()
    real = torch.zeros(2, 8, 8)
    real[:, :, 4:] = 1.0
    made = sharpen(soft, real.flatten(1), SharpenConfig(dreamed=1.0))
    changed = (made - soft).abs().amax((0, 1))
    assert float(changed[:, 38:].max()) == 0.0 and float(changed[:, :26].max()) > 0.05
    everywhere = sharpen(soft, torch.ones(2, 64), BOTH)
    torch.testing.assert_close(everywhere, sharpen(soft, torch.zeros(2, 64), SharpenConfig(dreamed=0.2)))


def test_a_row_is_the_same_in_every_batch():
    _, soft = blurred(rows=4)
    real = torch.rand(4, 64, generator=torch.Generator().manual_seed(1))
    whole = sharpen(soft, real, BOTH)
    for row in range(4):
        assert torch.equal(whole[row], sharpen(soft[row : row + 1], real[row : row + 1], BOTH)[0])


def test_bad_settings_are_refused():
    assert BOTH.is_on and not SharpenConfig().is_on
    with pytest.raises(ValueError, match=r"sharpen\.real"):
        SharpenConfig(real=-1.0)
    with pytest.raises(ValueError, match=r"sharpen\.dreamed"):
        SharpenConfig(dreamed=float("nan"))
