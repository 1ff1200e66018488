"""The aggregator: starts as unprojection, keeps to its cameras, and leaves out what is not finite."""

import math
from dataclasses import replace

import pytest
import torch
from einops import repeat

from tests.splats.scenes import views
from worldscape.conditioning.reproject import encode_depth
from worldscape.config import preset
from worldscape.splats.aggregator import Aggregator, Context, block_median
from worldscape.splats.config import PRESETS, AggregatorConfig
from worldscape.splats.gaussians import is_drawable
from worldscape.splats.render import render
from worldscape.splats.unproject import unproject

DEBUG = preset("debug")


def make_aggregator(*, is_trained: bool, **changes) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = replace(PRESETS["debug"], **changes)
        aggregator = Aggregator(config, DEBUG.codec, DEBUG.transformer.width).eval()
        if is_trained:
            torch.nn.init.normal_(aggregator.to_gaussians.weight, std=0.1)
    return aggregator


def make_context(batch: int = 2, frames: int = 3) -> Context:
    """Frames of a wall 3 m away, coloured by column."""
    generator = torch.Generator().manual_seed(0)
    poses, intrinsics = views(batch, frames, dtype=torch.float32)
    ramp = torch.linspace(-0.9, 0.9, 64)
    rgb = torch.stack([ramp.expand(64, 64), -ramp.expand(64, 64), ramp[:, None].expand(64, 64)])
    rgbd = torch.cat([rgb, encode_depth(torch.full((1, 64, 64), 3.0))])
    return Context(
        features=torch.randn(batch, frames, 16, DEBUG.transformer.width, generator=generator),
        rgbd=repeat(rgbd, "k h w -> b t k h w", b=batch, t=frames).clone(),
        has_picture=torch.ones(batch, dtype=torch.bool),
        poses=poses,
        intrinsics=intrinsics[:, 0],
    )


def test_untrained_it_shows_the_frames_it_was_given():
    context = make_context(1, 1)
    found = make_aggregator(is_trained=False)(context)
    torch.testing.assert_close(found.depth, torch.full((1, 1, 16, 16), 3.0))
    assert found.gaussians.harmonics.shape == (1, 256, 4, 3)
    picture = render(found.gaussians, context.poses, context.intrinsics[:, None], 64)
    inner = (slice(None), slice(None), slice(8, 56), slice(8, 56))
    torch.testing.assert_close(picture.depth[:, :, 8:56, 8:56], torch.full((1, 1, 48, 48), 3.0))
    assert (picture.rgb[0] - (context.rgbd[0, :, :3] / 2 + 0.5))[inner].abs().mean() < 0.03  # opacity 0.95


def test_cells_lie_on_the_rays_through_their_pixels():
    """Projected back into its frame each Gaussian falls into the middle of its cell; cells run row by row."""
    context = make_context(1, 2)
    means = make_aggregator(is_trained=False)(context).gaussians.means[0, 256:]
    pose, (fx, fy, cx, cy) = context.poses[0, 1], context.intrinsics[0]
    x, y, z = ((means - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
    place = torch.stack([x / z * fx + cx, y / z * fy + cy], -1).reshape(16, 16, 2) * 16
    expected = torch.stack(torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="xy"), -1)
    torch.testing.assert_close(place, expected, atol=1e-4, rtol=0)


def test_moving_the_world_moves_the_gaussians_along():
    """Pictures from moved cameras stay the same, colours that depend on the direction included."""
    aggregator, context = make_aggregator(is_trained=True), make_context()
    rigid = views(1, 2, seed=9, dtype=torch.float32)[0][0, 1]
    moved = context._replace(poses=rigid @ context.poses)
    intrinsics = repeat(context.intrinsics, "b k -> b t k", t=3)
    still = render(aggregator(context).gaussians, context.poses, intrinsics, 64)
    after = render(aggregator(moved).gaussians, moved.poses, intrinsics, 64)
    torch.testing.assert_close(still.rgb, after.rgb, atol=2e-2, rtol=0)
    assert (still.rgb - after.rgb).abs().mean() < 1e-4
    assert (still.rgb - render(aggregator(context).gaussians, moved.poses, intrinsics, 64).rgb).abs().mean() > 0.01


def test_frames_inform_each_other_and_scenes_do_not():
    aggregator, context = make_aggregator(is_trained=True), make_context()
    features = context.features.clone()
    features[0, 2] = features[0, 2].flip(-1)
    before, after = aggregator(context), aggregator(context._replace(features=features))
    assert (before.depth[0, 0] - after.depth[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(before.depth[1], after.depth[1])


def test_withheld_pictures_are_not_looked_at():
    aggregator, context = make_aggregator(is_trained=True), make_context()
    blind = context._replace(has_picture=torch.tensor([True, False]))
    other = blind._replace(rgbd=torch.cat([blind.rgbd[:1], torch.rand_like(blind.rgbd[1:])]))
    for part, expected in zip(aggregator(other).gaussians, aggregator(blind).gaussians, strict=True):
        torch.testing.assert_close(part, expected)
    assert (aggregator(blind).depth[1] - aggregator(context).depth[1]).abs().max() > 0.01


def test_cells_that_are_not_finite_are_left_out():
    aggregator, context = make_aggregator(is_trained=True), make_context(1, 2)
    context.rgbd[0, 1, 3, 5, 9] = math.nan
    found = aggregator(context)
    drawable = is_drawable(found.gaussians)[0].reshape(2, 16, 16)
    assert not drawable[1, 1, 2] and drawable.sum() == 2 * 256 - 1
    picture = render(found.gaussians, context.poses, repeat(context.intrinsics, "b k -> b t k", t=2), 64)
    (picture.rgb.mean() + picture.depth.mean() + found.depth.mean()).backward()
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_gradients_reach_features_pictures_and_every_parameter():
    aggregator, context = make_aggregator(is_trained=True), make_context(1, 2)
    context = context._replace(features=context.features.requires_grad_(), rgbd=context.rgbd.requires_grad_())
    found = aggregator(context)
    render(found.gaussians, context.poses, repeat(context.intrinsics, "b k -> b t k", t=2), 64).rgb.mean().backward()
    for tensor in (context.features, context.rgbd, *aggregator.parameters()):
        assert tensor.grad is not None and tensor.grad.any()


def test_a_block_with_an_edge_takes_one_of_its_surfaces():
    values = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 9.0, 5.0, 2.0]])[None, None]
    assert block_median(values, 2).tolist() == [[[[1.0, 5.0]]]]


def test_unprojection_leaves_out_nan():
    context = make_context(1, 1)
    context.rgbd[0, 0, 3, 0, 0] = math.nan
    scene = unproject(context.rgbd, context.poses, context.intrinsics)
    assert is_drawable(scene).sum() == 64 * 64 - 1 and scene.means.shape == (1, 64 * 64, 3)
    picture = render(scene, context.poses[:, :1], context.intrinsics[:, None], 64)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert (picture.rgb[0, 0] - (context.rgbd[0, 0, :3] / 2 + 0.5))[inner].abs().mean() < 0.02
    assert torch.isfinite(picture.rgb).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": 6}, "do not fit"),
        ({"cells": 128}, "do not fit"),
        ({"degree": 2}, "0 or 1"),
        ({"num_heads": 3}, "heads must divide"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_bad_configs_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_aggregator(is_trained=False, **changes)


def test_bad_contexts_are_named():
    with pytest.raises(ValueError, match=r"context features has shape \(2, 3, 9, 24\)"):
        make_aggregator(is_trained=False)(make_context()._replace(features=torch.zeros(2, 3, 9, 24)))


def test_configs_come_back_from_json():
    for name, config in PRESETS.items():
        assert AggregatorConfig.from_dict(config.to_dict()) == config
        Aggregator(config, preset(name).codec, preset(name).transformer.width)
    with pytest.raises(ValueError, match="wings"):
        AggregatorConfig.from_dict({"wings": 2})
