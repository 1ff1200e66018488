"""The rasteriser against closed forms, its naive twin and finite differences; what cannot be drawn is left out."""

import math

import numpy as np
import pytest
import torch

from tests.splats.scenes import INTRINSICS, draw_naively, join, one_gaussian, random_scene, views
from worldscape.splats import render as rasteriser
from worldscape.splats.gaussians import Gaussians, multiply_quaternions, quaternion_from_rotation
from worldscape.splats.render import render

SIZE = 32
IDENTITY = torch.eye(4, dtype=torch.float64)[None, None]
CAMERA = torch.tensor([[[0.6, 0.6, 0.5, 0.5]]], dtype=torch.float64)


def pixel_centres() -> torch.Tensor:
    place = torch.arange(SIZE, dtype=torch.float64) + 0.5
    return torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)


def test_one_gaussian_leaves_an_analytic_footprint():
    """On the optical axis a ball of s metres at z is a 2-D Gaussian of variance (f s / z)^2 + 0.3 pixels^2."""
    picture = render(one_gaussian(scale=(0.1, 0.3, 0.2)), IDENTITY, CAMERA, SIZE)
    focal = 0.6 * SIZE
    variance = torch.tensor([focal * 0.1 / 2, focal * 0.3 / 2], dtype=torch.float64).square() + 0.3
    distance = ((pixel_centres() - SIZE / 2).square() / variance).sum(-1)
    alpha = 0.8 * torch.exp(-0.5 * distance)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    torch.testing.assert_close(picture.alpha[0, 0], alpha, atol=1e-12, rtol=0)
    shade = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(picture.rgb[0, 0], alpha * shade, atol=1e-12, rtol=0)
    assert torch.equal(picture.depth[0, 0] > 0, alpha > 0)
    torch.testing.assert_close(picture.depth[0, 0][alpha > 0], torch.full_like(alpha[alpha > 0], 2.0))


def test_a_turned_gaussian_is_turned_in_the_picture():
    half = math.pi / 8  # 45 degrees about the optical axis, from x (right) to y (down)
    scene = one_gaussian(scale=(0.4, 0.05, 0.05), quaternion=(math.cos(half), 0, 0, math.sin(half)))
    alpha = render(scene, IDENTITY, CAMERA, SIZE).alpha[0, 0]
    offset, weight = pixel_centres() - SIZE / 2, alpha / alpha.sum()
    moments = torch.einsum("hw,hwi,hwj->ij", weight, offset, offset)
    torch.testing.assert_close(moments[0, 0], moments[1, 1], rtol=1e-6, atol=0)
    assert moments[0, 1] > 0.5 * moments[0, 0]


def test_the_nearer_one_hides_the_farther_whatever_their_order():
    near = one_gaussian(mean=(0, 0, 1.5), opacity=0.9, colour=(1, 0, 0))
    far = one_gaussian(mean=(0, 0, 3.0), scale=(1, 1, 1), opacity=0.6, colour=(0, 1, 0))
    pictures = [render(join(*pair), IDENTITY, CAMERA, SIZE + 1) for pair in ((near, far), (far, near))]
    for part, other in zip(*pictures, strict=True):
        torch.testing.assert_close(part, other, atol=1e-14, rtol=0)
    middle = pictures[0].rgb[0, 0, :, SIZE // 2, SIZE // 2]
    torch.testing.assert_close(middle, torch.tensor([0.9, 0.1 * 0.6, 0.0]).double())
    assert pictures[0].alpha[0, 0, SIZE // 2, SIZE // 2] == pytest.approx(1 - 0.1 * 0.4)
    expected = (0.9 * 1.5 + 0.1 * 0.6 * 3.0) / (0.9 + 0.06)
    assert pictures[0].depth[0, 0, SIZE // 2, SIZE // 2] == pytest.approx(expected)


def test_a_plane_of_gaussians_has_the_planes_depth():
    """Facing the camera the depth is the plane's everywhere. Slanted, the nearer neighbours whose footprints reach over
    come first: the depth is the plane's less what that changes within two pixels."""
    grid = torch.linspace(-6, 6, 97, dtype=torch.float64)
    x, y = (part.reshape(1, -1) for part in torch.meshgrid(grid, grid, indexing="xy"))
    for slant in (0.0, 0.5):
        z = 4.0 + slant * x
        angle = math.atan(slant) / -2
        turn = torch.tensor([math.cos(angle), 0.0, math.sin(angle), 0.0], dtype=torch.float64)
        scene = Gaussians(
            means=torch.stack([x, y, z], -1),
            quaternions=turn.expand(1, x.shape[1], 4),
            log_scales=torch.tensor([0.08, 0.08, 1e-4]).double().log().expand(1, x.shape[1], 3),
            opacity_logits=torch.full_like(x, 3.0),
            harmonics=torch.zeros(1, x.shape[1], 1, 3, dtype=torch.float64),
        )
        picture = render(scene, IDENTITY, CAMERA, SIZE)
        ray = (pixel_centres()[..., 0] / SIZE - 0.5) / 0.6
        expected = 4.0 / (1.0 - slant * ray)
        assert picture.alpha.min() > 0.99
        error, within_pixel = expected - picture.depth[0, 0], expected[:, 1:] - expected[:, :-1]
        assert error.min() > -1e-9 and (error[:, 1:] <= 2 * within_pixel + 1e-9).all()


@pytest.mark.parametrize("degree", [0, 1])
def test_pictures_equal_the_naive_twins(degree):
    """Tiles, groups and boxes are only bookkeeping; 20 pixels a side do not fill the tiles of the last row."""
    scene = random_scene(1, 40, degree=degree)
    poses, intrinsics = views(1, 3)
    picture = render(scene, poses, intrinsics, 20)
    for view in range(3):
        expected = torch.from_numpy(draw_naively(scene, poses[0, view], intrinsics[0, view], 20))
        torch.testing.assert_close(picture.rgb[0, view], expected[..., :3].permute(2, 0, 1), atol=1e-9, rtol=0)
        torch.testing.assert_close(picture.depth[0, view], expected[..., 3], atol=1e-8, rtol=0)
        torch.testing.assert_close(picture.alpha[0, view], expected[..., 4], atol=1e-9, rtol=0)
    assert picture.alpha.max() > 0.9 and picture.alpha.min() < 0.5, "the scene must show gaps and solid parts"


def test_float32_pictures_are_close_to_float64():
    scene, (poses, intrinsics) = random_scene(1, 300), views(1, 2)
    exact = render(scene, poses, intrinsics, SIZE)
    single = render(Gaussians(*(part.float() for part in scene)), poses.float(), intrinsics.float(), SIZE)
    assert (single.rgb - exact.rgb).abs().max() < 5e-3  # a footprint's edge at alpha = 1/255 may fall either way
    assert (single.rgb - exact.rgb).abs().mean() < 1e-5


def test_small_groups_of_tiles_draw_the_same(monkeypatch):
    scene, (poses, intrinsics) = random_scene(2, 60), views(2, 2)
    whole = render(scene, poses, intrinsics, SIZE)
    monkeypatch.setattr(rasteriser, "GROUP", 1)
    for part, other in zip(whole, render(scene, poses, intrinsics, SIZE), strict=True):
        torch.testing.assert_close(part, other, atol=1e-12, rtol=0)


def test_a_limit_per_tile_keeps_the_nearest():
    near = one_gaussian(mean=(0, 0, 1.5), scale=(1, 1, 1), opacity=0.5, colour=(1, 0, 0))
    far = one_gaussian(mean=(0, 0, 3.0), scale=(1, 1, 1), colour=(0, 1, 0))
    limited = render(join(far, near), IDENTITY, CAMERA, SIZE, max_per_tile=1)
    for part, other in zip(limited, render(near, IDENTITY, CAMERA, SIZE), strict=True):
        torch.testing.assert_close(part, other)


def test_views_and_scenes_do_not_touch_each_other():
    scene, (poses, intrinsics) = random_scene(3, 50), views(3, 2)
    together = render(scene, poses, intrinsics, SIZE)
    for b in range(3):
        for v in range(2):
            alone = render(
                scene.rows(slice(b, b + 1)), poses[b : b + 1, v : v + 1], intrinsics[b : b + 1, v : v + 1], SIZE
            )
            for part, other in zip(together, alone, strict=True):
                torch.testing.assert_close(part[b, v], other[0, 0], atol=1e-12, rtol=0)


def test_moving_world_and_cameras_alike_changes_nothing():
    """Without degree 1 of the harmonics, which stands in world axes."""
    scene, (poses, intrinsics) = random_scene(1, 60, degree=0), views(1, 2)
    motion, _ = views(1, 2, seed=5)
    rigid = motion[0, 1]
    turn = quaternion_from_rotation(rigid[:3, :3])
    moved = scene._replace(
        means=scene.means @ rigid[:3, :3].T + rigid[:3, 3],
        quaternions=multiply_quaternions(turn.expand_as(scene.quaternions), scene.quaternions),
    )
    for part, other in zip(
        render(scene, poses, intrinsics, SIZE), render(moved, rigid @ poses, intrinsics, SIZE), strict=True
    ):
        torch.testing.assert_close(part, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", Gaussians._fields)
def test_gradients_equal_finite_differences(name):
    """For every number of every parameter; the weights make each pixel, channel and depth count differently."""
    scene, (poses, intrinsics) = random_scene(1, 5, seed=3), views(1, 2)
    scene = scene._replace(means=scene.means.clone())
    scene.means[..., 2] = scene.means[..., 2].abs() + 1.0
    generator = torch.Generator().manual_seed(7)
    shapes = [(1, 2, 3, 12, 12), (1, 2, 12, 12), (1, 2, 12, 12)]
    weights = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def score(values: torch.Tensor) -> torch.Tensor:
        picture = render(scene._replace(**{name: values}), poses, intrinsics, 12)
        solid = picture.alpha.detach() > 0.05  # depth's own scale is 1 / alpha: faint edges jump at alpha = 1/255
        parts = (picture.rgb, picture.depth * solid, picture.alpha)
        return sum(((part * weight).sum() for part, weight in zip(parts, weights, strict=True)), torch.zeros(()))

    values = getattr(scene, name).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(values), values)
    flat, step = values.detach().flatten(), 1e-6
    for index in range(flat.numel()):
        change = torch.zeros_like(flat)
        change[index] = step
        high, low = (score((flat + sign * change).reshape(values.shape)) for sign in (1, -1))
        expected = ((high - low) / (2 * step)).item()
        assert gradient.flatten()[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-5), index
    assert gradient.abs().max() > 1e-3


def bad_scenes() -> dict[str, Gaussians]:
    nan, inf = math.nan, math.inf
    good = one_gaussian()
    return {
        "nan mean": good._replace(means=torch.full_like(good.means, nan)),
        "infinite mean": good._replace(means=torch.full_like(good.means, inf)),
        "far, far away": good._replace(means=torch.full_like(good.means, 1e30)),
        "no rotation": good._replace(quaternions=torch.zeros_like(good.quaternions)),
        "nan rotation": good._replace(quaternions=torch.full_like(good.quaternions, nan)),
        "endless rotation": good._replace(quaternions=torch.full_like(good.quaternions, 1e200)),
        "no area": good._replace(log_scales=torch.tensor([[[-1.0, -99.0, -99.0]]]).double()),
        "zero scale": good._replace(log_scales=torch.full_like(good.log_scales, -inf)),
        "endless scale": good._replace(log_scales=torch.full_like(good.log_scales, 800.0)),
        "nan opacity": good._replace(opacity_logits=torch.full_like(good.opacity_logits, nan)),
        "nan colour": good._replace(harmonics=torch.full_like(good.harmonics, nan)),
        "behind": one_gaussian(mean=(0, 0, -2.0)),
        "in the camera": one_gaussian(mean=(0, 0, 0.0)),
        "beside": one_gaussian(mean=(50.0, 0, 2.0)),
        "invisible": one_gaussian(opacity=0.003),
    }


@pytest.mark.parametrize("name", bad_scenes())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cannot_be_drawn_is_left_out_and_gets_no_gradient(name, dtype):
    """Beside a good Gaussian: picture and gradients of the good one as if it were alone, and no NaN anywhere."""
    good, bad = (Gaussians(*(part.to(dtype) for part in scene)) for scene in (one_gaussian(), bad_scenes()[name]))
    both = Gaussians(*(part.clone().requires_grad_(True) for part in join(bad, good)))
    alone = Gaussians(*(part.clone().requires_grad_(True) for part in good))
    pictures = [render(scene, IDENTITY.to(dtype), CAMERA.to(dtype), SIZE) for scene in (both, alone)]
    for part, other in zip(*pictures, strict=True):
        torch.testing.assert_close(part, other)
    for picture in pictures:
        (picture.rgb.square().sum() + picture.depth.sum() + picture.alpha.square().sum()).backward()
    for found, expected in zip(both, alone, strict=True):
        assert found.grad is not None and expected.grad is not None
        assert not found.grad[:, 0].any(), "the bad one has gradient"
        torch.testing.assert_close(found.grad[:, 1:], expected.grad)


def test_an_empty_picture_still_has_a_graph():
    scene = Gaussians(*(part.requires_grad_(True) for part in one_gaussian(mean=(0, 0, -2))))
    picture = render(scene, IDENTITY, CAMERA, SIZE)
    assert not picture.rgb.any() and not picture.depth.any() and not picture.alpha.any()
    picture.rgb.sum().backward()
    assert scene.means.grad is not None and not scene.means.grad.any()


def test_no_gaussians_at_all_are_an_empty_picture():
    nothing = Gaussians(*(part[:, :0] for part in one_gaussian()))
    assert not any(part.any() for part in render(nothing, IDENTITY, CAMERA, SIZE))


def test_a_hundred_opaque_layers_stay_finite():
    scene = join(*(one_gaussian(mean=(0, 0, 2 + 0.01 * i), scale=(1, 1, 1), opacity=1 - 1e-12) for i in range(100)))
    scene = Gaussians(*(part.float().requires_grad_(True) for part in scene))
    picture = render(scene, IDENTITY.float(), CAMERA.float(), SIZE)
    (picture.rgb.sum() + picture.depth.sum()).backward()
    assert picture.alpha.max() <= 1.0 + 1e-6
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in scene)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": torch.full((1, 1, 4, 4), math.nan).double()}, "not rigid"),
        ({"poses": torch.zeros(1, 1, 4, 4).double()}, "not rigid"),
        ({"poses": IDENTITY * torch.tensor([-1.0, 1, 1, 1]).double()}, "not rigid"),
        ({"poses": IDENTITY[0]}, r"give \[1, V, 4, 4\]"),
        ({"intrinsics": torch.tensor([[[0.0, 0.6, 0.5, 0.5]]]).double()}, "positive focal"),
        ({"intrinsics": torch.tensor([[[math.inf, 0.6, 0.5, 0.5]]]).double()}, "positive focal"),
        ({"size": 0}, "at least 1"),
        ({"max_per_tile": 0}, "at least 1"),
        ({"backend": "gsplat", "max_per_tile": 9}, "gsplat always draws all"),
        ({"backend": "cuda"}, "choose one of auto, torch, gsplat"),
        ({"gaussians": one_gaussian()._replace(opacity_logits=torch.zeros(1, 2))}, "opacity_logits has shape"),
        ({"gaussians": one_gaussian()._replace(harmonics=torch.zeros(1, 1, 2, 3))}, "degree 0 or 1"),
    ],
)
def test_bad_input_is_named(change, message):
    options = {"gaussians": one_gaussian(), "poses": IDENTITY, "intrinsics": CAMERA, "size": SIZE, **change}
    with pytest.raises(ValueError, match=message):
        render(**options)


def test_gsplat_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="backend 'gsplat' needs gsplat"):
        render(one_gaussian(), IDENTITY, CAMERA, SIZE, backend="gsplat")


@pytest.mark.gpu
def test_gsplat_draws_the_same():
    """Values to a footprint's faint edge and to its early end at a transmittance of 1e-4; gradients to a percent."""
    pytest.importorskip("gsplat")
    scene = random_scene(2, 400, dtype=torch.float32)
    poses, intrinsics = (part.cuda() for part in views(2, 3, dtype=torch.float32))
    pictures, gradients = [], []
    for backend in ("torch", "gsplat"):
        parameters = Gaussians(*(part.cuda().requires_grad_(True) for part in scene))
        picture = render(parameters, poses, intrinsics, 64, backend=backend)
        pictures.append(picture)
        gradients.append(torch.autograd.grad(picture.rgb.square().mean() + picture.alpha.mean(), parameters))
    for part, other in zip(*pictures, strict=True):
        assert (part - other).abs().mean() < 2e-3 and np.isfinite(float(other.sum()))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 0.02 * ours.norm()


def test_the_intrinsics_of_these_tests_are_not_symmetric():
    assert len(set(INTRINSICS)) == 4
