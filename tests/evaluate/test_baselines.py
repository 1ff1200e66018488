"""Warp-only: the same pose gives the same picture, a turn shifts it, holes take the colour around them."""

import math

import pytest
import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.engine_frames import Start
from worldscape.evaluate.baselines import fill_holes, warp_start


def wall_start(frames: torch.Tensor) -> Start:
    """A flat wall 3 m ahead, seen with 90 degrees of view."""
    b, f, h, w, _ = frames.shape
    return Start(
        frames=frames,
        depth=torch.full((b, f, h, w), 3.0),
        pose=torch.eye(4).expand(b, f, 4, 4).clone(),
        intrinsics=torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(b, 4).clone(),
    )


def test_the_start_pose_shows_the_start_frame():
    frames = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    warped = warp_start(wall_start(frames), torch.eye(4).expand(2, 4, 4))
    assert warped.covered.all()
    assert (warped.frame.int() - frames[:, 0].int()).abs().max() <= 1


def test_a_turn_uncovers_one_side_and_fills_it():
    frames = torch.full((1, 1, 32, 32, 3), 200, dtype=torch.uint8)
    pose = pose_from_state(torch.tensor([[0.0, 0, 0, math.radians(30), 0, 0]]))
    warped = warp_start(wall_start(frames), pose)
    columns = warped.covered[0, 16].float()
    assert columns[:16].mean() > 0.9 and columns[-6:].max() == 0
    assert (warped.frame.int() - 200).abs().max() <= 1


def test_the_newest_frame_wins():
    frames = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
    frames[:, 1] = 180
    assert (warp_start(wall_start(frames), torch.eye(4)[None]).frame.int() - 180).abs().max() <= 1


def test_holes_take_the_mean_around_them_and_an_empty_picture_the_fallback():
    picture, mask = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    picture[0, :, :, :4], mask[0, :, :, :4] = 0.8, 1
    filled = fill_holes(picture, mask, torch.tensor([[0.1], [0.3]]))
    assert torch.allclose(filled[0], torch.full((1, 8, 8), 0.8), atol=1e-6)
    assert torch.allclose(filled[1], torch.full((1, 8, 8), 0.3))


@pytest.mark.parametrize("size", [48, 80, 7])
def test_holes_are_filled_in_pictures_whose_halves_are_odd(size):
    """Sides that are no powers of two halve into odd ones, of which the last row was lost."""
    picture, mask = torch.zeros(1, 1, size, size), torch.zeros(1, 1, size, size)
    picture[..., -1], mask[..., -1] = 0.8, 1
    assert torch.allclose(fill_holes(picture, mask, torch.zeros(1, 1)), torch.full_like(picture, 0.8), atol=1e-6)


def test_a_start_without_geometry_is_refused():
    start = wall_start(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8))
    start.depth = None
    with pytest.raises(ValueError, match="needs starts with depth"):
        warp_start(start, torch.eye(4)[None])
