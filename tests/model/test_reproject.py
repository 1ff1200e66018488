"""Reprojection against scenes whose answer is known."""

import pytest
import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import believed, decode_depth, encode_depth, pixelwise, reproject

INTRINSICS = torch.tensor([[0.5, 0.5, 0.5, 0.5]])  # 90 degrees
SIZE = 32


def wall(depth: float, seed: int = 0) -> torch.Tensor:
    """A frontal wall at a constant depth with smooth random colours, [1, 1, 4, h, w]."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    colour = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True).clamp(-1, 1)
    return torch.cat([colour, encode_depth(torch.full((1, 1, SIZE, SIZE), depth))], 1)[:, None]


def pose(**values: float) -> torch.Tensor:
    names = ("x", "y", "z", "yaw", "pitch", "roll")
    return pose_from_state(torch.tensor([[values.get(name, 0.0) for name in names]]))


def rebuild(pictures: torch.Tensor, poses: list[torch.Tensor], target: torch.Tensor, valid=None, moves=None):
    stacked = torch.stack(poses, 1)
    valid = torch.ones(1, pictures.shape[1], dtype=torch.bool) if valid is None else valid
    if moves is not None:
        valid = believed(pictures, stacked, pixelwise(valid, pictures), target, INTRINSICS, torch.tensor([moves]))
    return reproject(pictures, stacked, valid, target, INTRINSICS)


def with_block(picture: torch.Tensor, columns: slice, depth: float, colour: float) -> torch.Tensor:
    """The picture with a block of one colour in front of it, in some columns of the middle rows."""
    picture = picture.clone()
    picture[..., :3, 8:24, columns] = colour
    picture[..., 3, 8:24, columns] = encode_depth(torch.tensor(depth))
    return picture


def test_inverse_depth_round_trip():
    depth = torch.tensor([0.0, 0.5, 3.0, 49.0])
    torch.testing.assert_close(decode_depth(encode_depth(depth)), depth, atol=1e-4, rtol=1e-4)
    assert float(decode_depth(torch.tensor(-1.0))) == pytest.approx(50.0, rel=1e-5)


def test_the_same_camera_sees_the_same_picture():
    picture = wall(3.0)
    anchor = rebuild(picture, [pose()], pose())
    assert float(anchor.mask.min()) == 1.0
    torch.testing.assert_close(anchor.rgbd, picture[:, 0], atol=2e-3, rtol=0)


def test_a_sideways_step_shifts_a_wall_by_whole_pixels():
    """At depth 4 and 90 degrees a pixel is 0.25 m wide: a step of 1 m to the right shifts the wall 4 pixels left."""
    picture = wall(4.0)
    anchor = rebuild(picture, [pose()], pose(x=1.0))
    torch.testing.assert_close(anchor.rgbd[..., : SIZE - 4], picture[:, 0, :, :, 4:], atol=2e-3, rtol=0)
    assert float(anchor.mask[..., : SIZE - 4].min()) == 1.0
    assert float(anchor.mask[..., SIZE - 4 :].max()) == 0.0
    assert float(anchor.rgbd[..., SIZE - 4 :].abs().max()) == 0.0


def test_walking_closer_leaves_no_holes_and_gives_the_new_depth():
    anchor = rebuild(wall(4.0), [pose()], pose(z=2.5))
    assert float(anchor.mask.min()) == 1.0
    torch.testing.assert_close(decode_depth(anchor.rgbd[:, 3]), torch.full((1, SIZE, SIZE), 1.5), atol=1e-3, rtol=0)


def test_a_near_object_hides_the_wall_behind_it_even_when_magnified():
    """A bug's story: a pillar that came near let the wall shine through the gaps between its magnified points."""
    picture = wall(6.0)
    pillar = slice(12, 20)
    picture[:, :, :3, :, pillar] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    picture[:, :, 3, :, pillar] = encode_depth(torch.tensor(2.0))
    anchor = rebuild(picture, [pose()], pose(z=1.0))
    centre = anchor.rgbd[:, :, :, 9:23]  # the pillar is twice as wide now: 16 pixels from 8 to 24
    assert float(centre[:, 0].min()) > 0.95
    assert float(centre[:, 1].max()) < -0.95


def test_what_was_hidden_is_not_invented():
    picture = wall(6.0)
    picture[:, :, 3, :, 12:20] = encode_depth(torch.tensor(2.0))
    anchor = rebuild(picture, [pose()], pose(x=1.0))
    shown = anchor.mask[0, 0, SIZE // 2]
    shift_near, shift_far = 8, 16 / 6
    hidden = slice(int(20 - shift_near) + 2, int(20 - shift_far) - 1)  # behind the pillar before, free now
    assert float(shown[hidden].max()) == 0.0


def test_a_second_picture_fills_what_the_first_does_not_show():
    left, right = wall(4.0, seed=1), wall(4.0, seed=2)
    anchor = rebuild(torch.cat([left, right], 1), [pose(), pose(x=2.0)], pose(x=1.0))
    assert float(anchor.mask.min()) == 1.0
    torch.testing.assert_close(anchor.rgbd[..., : SIZE - 4], left[:, 0, :, :, 4:], atol=2e-3, rtol=0)
    torch.testing.assert_close(anchor.rgbd[..., SIZE - 4 :], right[:, 0, :, :, SIZE - 8 : SIZE - 4], atol=2e-3, rtol=0)


def test_invalid_pictures_count_for_nothing():
    anchor = rebuild(wall(4.0), [pose()], pose(), valid=torch.zeros(1, 1, dtype=torch.bool))
    assert float(anchor.mask.max()) == 0.0


def test_a_camera_turned_away_sees_nothing_of_the_wall():
    anchor = rebuild(wall(4.0), [pose()], pose(yaw=3.1))
    assert float(anchor.mask.max()) == 0.0


def test_where_things_move_the_latest_picture_decides():
    """A bug's story: a hand that had moved on stood in every later anchor, in front of the table, for good."""
    table = wall(2.0)
    before, now = with_block(table, slice(4, 12), 1.0, 0.9), with_block(table, slice(20, 28), 1.0, 0.9)
    pictures, poses = torch.cat([now, before], 1), [pose(), pose()]
    ghost = rebuild(pictures, poses, pose())
    torch.testing.assert_close(ghost.rgbd[0, :3, 12:20, 6:10], torch.full((3, 8, 4), 0.9), atol=2e-3, rtol=0)
    anchor = rebuild(pictures, poses, pose(), moves=True)
    assert float(anchor.mask.min()) == 1.0
    torch.testing.assert_close(anchor.rgbd, now[:, 0], atol=2e-3, rtol=0)


def test_where_things_move_older_pictures_still_show_what_the_latest_cannot_see():
    """Behind the block, and outside of the latest view."""
    table = wall(2.0)
    now = with_block(table, slice(12, 20), 1.0, 0.9)
    aside = rebuild(torch.cat([now, table], 1), [pose(), pose()], pose(x=0.5), moves=True)
    alone = rebuild(now, [pose()], pose(x=0.5), moves=True)
    assert float(alone.mask[..., 8:24, : SIZE - 4].min()) == 0.0 and float(aside.mask[..., : SIZE - 4].min()) == 1.0
    turned = rebuild(torch.cat([table, table], 1), [pose(), pose(x=1.0)], pose(x=1.0), moves=True)
    assert float(turned.mask.min()) == 1.0


def test_rows_in_which_nothing_moves_are_as_before():
    pictures = torch.cat([with_block(wall(2.0), slice(4, 12), 1.0, 0.9), wall(2.0)], 1)
    plain, still = (rebuild(pictures, [pose(), pose(x=0.3)], pose(), moves=moves) for moves in (None, False))
    assert torch.equal(plain.rgbd, still.rgbd) and torch.equal(plain.mask, still.mask)


def test_a_latest_picture_that_is_not_there_decides_nothing():
    pictures, valid = torch.cat([wall(5.0), wall(2.0)], 1), torch.tensor([[False, True]])
    anchor = rebuild(pictures, [pose(), pose()], pose(), valid=valid, moves=True)
    torch.testing.assert_close(anchor.rgbd, wall(2.0)[:, 0], atol=2e-3, rtol=0)


def test_pixels_that_do_not_count_are_neither_splatted_nor_looked_at():
    pictures = torch.cat([with_block(wall(2.0), slice(4, 12), 1.0, 0.9), wall(2.0, seed=1)], 1)
    valid = torch.ones(1, 2, SIZE, SIZE, dtype=torch.bool)
    valid[0, 0, :, :16] = False
    anchor = rebuild(pictures, [pose(), pose()], pose(), valid=valid)
    torch.testing.assert_close(anchor.rgbd[..., :14], pictures[:, 1, :, :, :14], atol=2e-3, rtol=0)
    torch.testing.assert_close(anchor.rgbd[..., 18:], pictures[:, 0, :, :, 18:], atol=2e-3, rtol=0)
