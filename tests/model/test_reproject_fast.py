"""The inference-only reprojection against the plain one."""

import pytest
import torch

from worldscape.conditioning import reproject_fast as module
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import believed, encode_depth, reproject
from worldscape.conditioning.reproject_fast import reproject_fast

SIZE, PICTURES = 32, 3


def scene(seed: int, rows: int = 2, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Arguments of reproject: pictures of bumpy walls with pillars, poses and targets around the origin."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows * PICTURES, 4, 5, 5, generator=rng, dtype=dtype)
    smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    depth = 2.0 + 3.0 * smooth[:, 3]
    depth[:, :, 10:14] = 1.2
    pictures = torch.cat([2 * smooth[:, :3] - 1, encode_depth(depth)[:, None]], 1).unflatten(0, (rows, PICTURES))
    states = 0.4 * torch.randn(rows, PICTURES + 1, 6, generator=rng, dtype=dtype)
    poses = pose_from_state(states)
    valid = torch.tensor([[True, True, True], [True, False, True]])[:rows]
    intrinsics = torch.tensor([[0.6, 0.6, 0.5, 0.5], [0.5, 0.7, 0.45, 0.55]], dtype=dtype)[:rows]
    return pictures, poses[:, :-1], valid, poses[:, -1], intrinsics


@pytest.mark.parametrize("is_pixelwise", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_fast_anchor_is_the_plain_one(seed, is_pixelwise):
    """In double precision, where no point lies on an edge by rounding alone, they agree everywhere."""
    pictures, poses, valid, *view = scene(seed)
    if is_pixelwise:
        blocks = torch.rand(*valid.shape, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.7
        valid = valid[..., None, None] & blocks.repeat_interleave(SIZE // 8, 2).repeat_interleave(SIZE // 8, 3)
    arguments = (pictures, poses, valid, *view)
    fast, plain = reproject_fast(*arguments), reproject(*arguments)
    assert 0.1 < float(plain.mask.mean()) < 1.0
    assert torch.equal(fast.mask, plain.mask)
    torch.testing.assert_close(fast.rgbd, plain.rgbd, atol=1e-8, rtol=0)


def test_in_single_precision_hardly_a_pixel_falls_to_the_other_side_of_an_edge():
    differs = []
    for seed in range(8):
        arguments = scene(seed, dtype=torch.float32)
        fast, plain = reproject_fast(*arguments), reproject(*arguments)
        differs.append(((fast.rgbd - plain.rgbd).abs() > 1e-3).any(1))
    assert float(torch.stack(differs).float().mean()) < 1e-3


def test_no_picture_no_anchor():
    pictures, poses, valid, target, intrinsics = scene(0)
    fast = reproject_fast(pictures, poses, torch.zeros_like(valid), target, intrinsics)
    assert float(fast.mask.max()) == 0.0 and float(fast.rgbd.abs().max()) == 0.0


def standing_still(seed: int, dtype: torch.dtype, rows: tuple[int, ...] = (0, 1)) -> tuple[torch.Tensor, ...]:
    """The scene with all pictures that count taken from the view's place in these rows, holes in some of them."""
    pictures, poses, valid, target, intrinsics = scene(seed, dtype=dtype)
    for row in rows:
        poses[row, valid[row]] = target[row]
    blocks = torch.rand(*valid.shape, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.4
    valid = valid[..., None, None] & blocks.repeat_interleave(SIZE // 8, 2).repeat_interleave(SIZE // 8, 3)
    return pictures, poses, valid, target, intrinsics


@pytest.mark.parametrize("seed", range(8))
def test_pictures_from_the_views_own_place_are_laid_over_each_other(seed, monkeypatch):
    arguments = standing_still(seed, torch.float64)
    plain = reproject(*arguments)
    monkeypatch.setattr(module, "_warp", None)  # nothing is warped
    fast = reproject_fast(*arguments)
    assert 0.5 < float(plain.mask.mean()) < 1.0 and torch.equal(fast.mask, plain.mask)
    torch.testing.assert_close(fast.rgbd, plain.rgbd, atol=1e-6, rtol=0)


@pytest.mark.parametrize("still", [(), (0,), (0, 1)])
def test_a_row_of_a_batch_is_what_it_is_alone(still):
    arguments = standing_still(1, torch.float32, still)
    together = reproject_fast(*arguments)
    for row in range(2):
        alone = reproject_fast(*(part[row : row + 1] for part in arguments))
        torch.testing.assert_close(together.rgbd[row], alone.rgbd[0], atol=0, rtol=0)
        torch.testing.assert_close(together.mask[row], alone.mask[0], atol=0, rtol=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("still", [(0,), (0, 1)])
def test_what_is_believed_from_the_views_place_shows_what_is_believed_anywhere(seed, still, monkeypatch):
    """It may leave out what lies behind the first picture's surfaces, which nobody sees from there."""
    pictures, poses, valid, target, intrinsics = standing_still(seed, torch.float64, still)
    poses[still, 0] = target[still,]  # the first picture decides, whether it counts or not
    valid[:, 0] |= torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) < 0.8
    moves = torch.tensor([True, seed % 2 == 0])
    here = believed(pictures, poses, valid, target, intrinsics, moves)
    monkeypatch.setattr("worldscape.conditioning.reproject.is_static", lambda like: True)
    anywhere = believed(pictures, poses, valid, target, intrinsics, moves)
    assert not torch.equal(anywhere, valid) and not (here & ~anywhere).any()
    one, other = (reproject(pictures, poses, counts, target, intrinsics) for counts in (here, anywhere))
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.rgbd, other.rgbd, atol=1e-8, rtol=0)
