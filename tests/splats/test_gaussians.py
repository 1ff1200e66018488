"""Quaternions, covariance directions and harmonics against closed forms."""

import math

import numpy as np
import torch

from tests.splats.scenes import rotation
from worldscape.splats.gaussians import (
    colour_to_harmonics,
    harmonics_to_colour,
    multiply_quaternions,
    quaternion_from_rotation,
    rotate_harmonics,
    rotation_from_quaternion,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rotations_are_rodrigues():
    quaternions = random(20, 4)
    expected = np.stack([rotation(q) for q in quaternions.numpy()])
    torch.testing.assert_close(rotation_from_quaternion(quaternions), torch.from_numpy(expected))


def test_quaternions_come_back_up_to_sign():
    turns = torch.cat([random(50, 4), torch.eye(4).double(), torch.tensor([[0.0, 0.7, 0.7, 0.0]]).double()])
    turns = torch.nn.functional.normalize(turns, dim=-1)
    found = quaternion_from_rotation(rotation_from_quaternion(turns))
    torch.testing.assert_close((found * turns).sum(-1).abs(), torch.ones(len(turns)).double())


def test_products_of_quaternions_are_products_of_rotations():
    left, right = random(2, 10, 4)
    product = rotation_from_quaternion(multiply_quaternions(left, right))
    torch.testing.assert_close(product, rotation_from_quaternion(left) @ rotation_from_quaternion(right))


def test_harmonics_are_the_closed_form():
    """Y_0 = 1/2 sqrt(1/pi), Y_1 = sqrt(3 / 4pi) (-y, z, -x), the signs of 3DGS; negative light is black."""
    harmonics, direction = random(9, 4, 3), torch.nn.functional.normalize(random(9, 3), dim=-1)
    y0, y1 = 0.5 / math.sqrt(math.pi), math.sqrt(3 / (4 * math.pi))
    x, y, z = direction[:, None].unbind(-1)
    value = y0 * harmonics[:, 0] + y1 * (-y * harmonics[:, 1] + z * harmonics[:, 2] - x * harmonics[:, 3])
    torch.testing.assert_close(harmonics_to_colour(harmonics, direction), (0.5 + value).clamp_min(0))
    assert (harmonics_to_colour(harmonics, direction) == 0).any()


def test_a_colour_is_the_same_from_everywhere():
    colour = torch.tensor([[0.2, 0.5, 0.9]])
    for direction in torch.eye(3):
        torch.testing.assert_close(harmonics_to_colour(colour_to_harmonics(colour), direction[None]), colour)


def test_turned_harmonics_look_the_same_from_turned_directions():
    harmonics, direction = random(6, 4, 3), torch.nn.functional.normalize(random(6, 3), dim=-1)
    turn = rotation_from_quaternion(random(6, 4))
    turned = harmonics_to_colour(rotate_harmonics(harmonics, turn), (turn @ direction[..., None])[..., 0])
    torch.testing.assert_close(turned, harmonics_to_colour(harmonics, direction))
