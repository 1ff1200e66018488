"""Cameras: conventions, motion, rays, against hand-computed values."""

import math

import numpy as np
import pytest
import torch

from worldscape.conditioning.camera import (
    apply_control,
    camera_rays,
    invert_pose,
    level_pose,
    plucker_map,
    pose_distance,
    pose_from_state,
    square_intrinsics,
    state_from_pose,
)
from worldscape.conditioning.controls import ControlScale, discrete_controls


def state(x=0.0, y=0.0, z=0.0, yaw=0.0, pitch=0.0, roll=0.0) -> torch.Tensor:
    return torch.tensor([[x, y, z, yaw, pitch, roll]], dtype=torch.float64)


def test_turning_right_looks_towards_positive_x_and_up_towards_negative_y():
    right = pose_from_state(state(yaw=math.pi / 2))[0, :3, 2]
    up = pose_from_state(state(pitch=math.pi / 2 - 1e-9))[0, :3, 2]
    torch.testing.assert_close(right, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(up, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_state_and_pose_are_inverse():
    rng = np.random.default_rng(0)
    states = torch.tensor(rng.uniform([-5, -5, -5, -3, -1.4, -3], [5, 5, 5, 3, 1.4, 3], (50, 6)))
    torch.testing.assert_close(state_from_pose(pose_from_state(states)), states)
    product = pose_from_state(states) @ invert_pose(pose_from_state(states))
    torch.testing.assert_close(product, torch.eye(4, dtype=torch.float64).expand(50, -1, -1), atol=1e-9, rtol=0)


def test_the_nearest_camera_counts_turn_and_distance():
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[0, 1, 0, 3] = 1.0
    poses[0, 2, :3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # a quarter turn: as far as 3.1 m
    wanted = poses.clone()
    wanted[0, 0, 0, 3] = 0.4
    wanted[0, 1, 0, 3] = 0.6
    distance, index = pose_distance(wanted, poses).min(-1)
    assert index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(distance, torch.tensor([[0.2, 0.2, 0.0]]), atol=1e-3, rtol=0)


def test_a_levelled_camera_keeps_its_place_and_heading():
    rng = np.random.default_rng(0)
    states = torch.tensor(rng.uniform([-5, -5, -5, -3, -1.4, -3], [5, 5, 5, 3, 1.4, 3], (50, 6)))
    level = states * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(level_pose(pose_from_state(states)), pose_from_state(level))


def test_walking_follows_the_new_heading_and_ignores_pitch():
    control = torch.tensor([[0.0, 0.0, 2.0, math.pi / 2, 0.3, 0.0]], dtype=torch.float64)
    moved = apply_control(state(x=1.0, pitch=0.1), control, max_pitch=1.0)
    torch.testing.assert_close(moved, state(x=3.0, yaw=math.pi / 2, pitch=0.4), atol=1e-9, rtol=0)


def test_strafing_right_is_along_the_camera_x_axis():
    start = state(yaw=0.7)
    moved = apply_control(start, torch.tensor([[1.5, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64), max_pitch=1.0)
    torch.testing.assert_close(moved[0, :3] - start[0, :3], 1.5 * pose_from_state(start)[0, :3, 0])


def test_pitch_is_limited_and_yaw_wraps():
    control = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    moved = apply_control(state(yaw=3.0), control, max_pitch=0.5)
    assert float(moved[0, 4]) == 0.5
    assert float(moved[0, 3]) == pytest.approx(5.0 - 2 * math.pi)


def test_a_camera_that_looks_steeply_down_stays_so():
    """A bug's story: eyes over a table look 47 degrees down; the first step of a dream lifted them to a walker's 30."""
    steep, limit = state(pitch=-0.8), 0.5
    pitches = [
        float(apply_control(steep, torch.tensor([[0.0, 0.0, 0.0, 0.0, change, 0.0]]).to(steep), limit)[0, 4])
        for change in (0.0, -0.1, 0.1, 1.0, 2.0)
    ]
    assert pitches == pytest.approx([-0.8, -0.8, -0.7, 0.2, 0.5])


def test_twenty_four_turns_come_full_circle():
    control = torch.tensor(discrete_controls()[6:7], dtype=torch.float64)
    camera = state()
    for _ in range(24):
        camera = apply_control(camera, control, max_pitch=1.0)
    torch.testing.assert_close(pose_from_state(camera), pose_from_state(state()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("degrees", "focal"), [(90.0, 0.5), (60.0, 3**0.5 / 2)])
def test_a_narrower_view_has_a_longer_focal_length(degrees, focal):
    np.testing.assert_allclose(square_intrinsics(degrees), [focal, focal, 0.5, 0.5], rtol=1e-6)


def test_rays_of_a_ninety_degree_camera():
    rays = camera_rays(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), 4)
    torch.testing.assert_close(rays[0, 0, 0], torch.tensor([-0.75, -0.75, 1.0]))
    torch.testing.assert_close(rays[0, 3, 2], torch.tensor([0.25, 0.75, 1.0]))


def test_plucker_moment_does_not_change_when_the_camera_slides_along_the_ray():
    intrinsics = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    pose = pose_from_state(state(x=0.3, y=-0.2, z=1.0, yaw=0.4, pitch=-0.2))
    rays = plucker_map(pose, intrinsics, 8)
    direction = rays[0, :3, 2, 5]
    slid = pose.clone()
    slid[0, :3, 3] += 1.7 * direction
    torch.testing.assert_close(plucker_map(slid, intrinsics, 8)[0, :, 2, 5], rays[0, :, 2, 5])
    torch.testing.assert_close(rays[:, :3].norm(dim=1), torch.ones(1, 8, 8, dtype=torch.float64))


def test_control_scale_refuses_nonsense():
    with pytest.raises(ValueError, match="finite and positive"):
        ControlScale(move=-1.0)
