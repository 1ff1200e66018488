"""L_depth and L_render: values by hand, invariances, masks, and no NaN where nothing counts."""

import math

import pytest
import torch

from worldscape.evaluate.metrics import ssim
from worldscape.train.spatial_losses import HUBER, depth_loss, render_loss


def random_depth(*shape: int) -> torch.Tensor:
    return 1.0 + 4.0 * torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_metric_depth_is_the_mean_log_ratio_and_flat_where_it_is_right():
    """Huber: half of HUBER less than the log ratio above HUBER, a parabola below."""
    target = random_depth(3, 16, 16)
    depth = target * torch.tensor([1.1, 0.5, 1.01], dtype=torch.float64)[:, None, None]
    expected = [math.log(1.1) - HUBER / 2, math.log(2) - HUBER / 2, math.log(1.01) ** 2 / (2 * HUBER)]
    torch.testing.assert_close(depth_loss(depth, target), torch.tensor(expected).double())


def test_relative_depth_ignores_scale_and_shift_and_sees_the_rest():
    target = random_depth(3, 16, 16)
    alike = 1.0 / (0.3 / target + 0.2)
    assert depth_loss(alike, target, kind="relative").max() < 1e-9 and depth_loss(alike, target).min() > 0.1
    flat = torch.full_like(target, 2.0)
    torch.testing.assert_close(depth_loss(flat, target, kind="relative"), torch.ones(3).double())
    shuffled = target.flip(-1)
    assert depth_loss(shuffled, target, kind="relative").min() > 0.9
    torch.testing.assert_close(
        depth_loss(shuffled, 10 * target, kind="relative"), depth_loss(shuffled, target, kind="relative")
    )


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_pixels_without_depth_do_not_count(kind):
    """NaN, infinite, zero and far targets, and predictions that are not finite: as if they were not there."""
    target = random_depth(1, 8, 8)
    depth = (target + 0.3 * random_depth(1, 8, 8)).requires_grad_(True)
    expected = depth_loss(depth[:, 1:], target[:, 1:], kind=kind)
    holes = target.clone()
    holes[0, 0] = torch.tensor([math.nan, math.inf, 0.0, -1.0, 60.0, math.nan, 50.0, -math.inf])
    found = depth_loss(depth, holes, kind=kind)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert depth.grad is not None and torch.isfinite(depth.grad).all() and not depth.grad[0, 0].any()
    wrong = depth.detach().clone()
    wrong[0, 0, :] = math.nan
    torch.testing.assert_close(depth_loss(wrong, target, kind=kind), expected.detach())


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_a_picture_without_any_depth_is_zero(kind):
    depth = random_depth(1, 8, 8).requires_grad_(True)
    loss = depth_loss(depth, torch.full((1, 8, 8), math.nan).double(), kind=kind)
    loss.sum().backward()
    assert loss == 0 and depth.grad is not None and not depth.grad.any()


def test_render_loss_is_l1_and_ssim():
    target = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.8
    rgb, mask = target + 0.1, torch.ones(2, 24, 24, dtype=torch.bool)
    torch.testing.assert_close(render_loss(rgb, target, mask), 0.8 * 0.1 + 0.2 * (1 - ssim(rgb, target)))
    torch.testing.assert_close(render_loss(target, target, mask), torch.zeros(2))


def test_pixels_outside_the_mask_do_not_count_at_all():
    """Not even in the windows of SSIM that reach over the mask's edge; an empty mask is 0."""
    target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rgb = (target * 0.9).requires_grad_(True)
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 4:24, 4:24] = True
    spoiled = torch.where(mask[:, None], rgb.detach(), 5.0).requires_grad_(True)
    torch.testing.assert_close(render_loss(spoiled, target, mask), render_loss(rgb, target, mask))
    render_loss(spoiled, target, mask).sum().backward()
    assert spoiled.grad is not None and not spoiled.grad[(~mask[:, None]).expand_as(spoiled)].any()
    assert spoiled.grad.any()
    nothing = render_loss(rgb, target, torch.zeros_like(mask))
    nothing.sum().backward()
    assert nothing == 0 and rgb.grad is not None and torch.isfinite(rgb.grad).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="differ in shape"):
        depth_loss(torch.ones(1, 8, 8), torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="choose one of metric, relative"):
        depth_loss(torch.ones(1, 8, 8), torch.ones(1, 8, 8), kind="odd")
