"""The inference-only reprojection against the plain one."""

import pytest
import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import encode_depth, reproject
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


def test_a_row_of_a_batch_is_what_it_is_alone():
    arguments = scene(1, dtype=torch.float32)
    together = reproject_fast(*arguments)
    for row in range(2):
        alone = reproject_fast(*(part[row : row + 1] for part in arguments))
        torch.testing.assert_close(together.rgbd[row], alone.rgbd[0], atol=0, rtol=0)
