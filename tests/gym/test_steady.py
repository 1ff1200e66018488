"""A world dreams the same alone as beside others, to the last bit: dreams make large differences of small ones."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import ws_gym  # noqa: F401  (registers the ids)
from worldscape import steady
from worldscape.fast_linear import Packer

STEPS = 10
NAV, BOTH = "WorldScape-Nav-v0", "WorldScape-Universal-v0"


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 40])
@torch.inference_mode()
def test_a_row_has_the_same_numbers_whatever_stands_beside_it(rows):
    torch.manual_seed(rows)
    x = torch.randn(rows, 33)
    layers = nn.Sequential(steady.Linear(33, 24), steady.SiLU(), steady.Linear(24, 1))
    for function in (layers, steady.sigmoid, lambda part: steady.sigmoid(part[:, 7:8])):
        together = function(x)
        for row in range(rows):
            assert torch.equal(function(x[row : row + 1].clone())[0], together[row])


@pytest.mark.parametrize("side", [3, 6, 24, 64])
@torch.inference_mode()
def test_a_picture_has_the_same_features_whatever_stands_beside_it(side):
    torch.manual_seed(side)
    pictures, layer = torch.randn(5, 4, side, side), steady.Conv2d(4, 8, 3, stride=2, padding=1)
    together = layer(pictures)
    for row in range(5):
        assert torch.equal(layer(pictures[row : row + 1].clone())[0], together[row])
    usual = nn.functional.conv2d(pictures, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(together, usual, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_long_sums_are_the_same_in_any_number_of_rows():
    """As the generator's layers hand them out, 16 rows a world."""
    torch.manual_seed(0)
    linear = Packer(torch.float32).pack(torch.randn(256, 1024) / 32, torch.randn(256))
    rows = torch.randn(512, 1024)
    alone = linear(rows[:16])
    for count in range(32, 513, 16):
        assert torch.equal(linear(rows[:count])[:16], alone), count


def test_they_are_the_usual_functions_and_learn():
    x = torch.randn(2, 3, 33, requires_grad=True, generator=torch.Generator().manual_seed(0))
    for ours, usual in (
        (linear := steady.Linear(33, 24), lambda y: nn.functional.linear(y, linear.weight, linear.bias)),
        (steady.SiLU(), nn.functional.silu),
        (steady.sigmoid, torch.sigmoid),
    ):
        with torch.no_grad():
            torch.testing.assert_close(ours(100.0 * x), usual(100.0 * x), atol=1e-5, rtol=1e-5)
        (slope,) = torch.autograd.grad(ours(x).sum(), x)
        (expected,) = torch.autograd.grad(usual(x).sum(), x)
        assert torch.equal(slope, expected)


@pytest.mark.parametrize("env_id", [NAV, BOTH])
@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "bf16"}, {"sampler": "rolling"}], ids=str)
def test_a_world_dreams_the_same_alone_as_beside_others(env_id, options):
    alone = dream(env_id, 1, **options)
    for num_envs in (2, 5):
        assert np.array_equal(dream(env_id, num_envs, **options), alone)


def dream(env_id: str, num_envs: int, **options: Any) -> np.ndarray:
    """What slot 0 shows; the others do something else."""
    task = {"task": "coverage"} if env_id == NAV else {"task": "push", "task_options": {"threshold": 0.999}}
    envs: Any = gym.make_vec(env_id, num_envs=num_envs, **task, **options)
    envs.single_action_space.seed(0)
    plan = [[envs.single_action_space.sample() for _ in range(num_envs)] for _ in range(STEPS)]
    envs.single_action_space.seed(1)
    shown = [envs.reset(seed=[5, *range(50, 49 + num_envs)])[0][0]]
    for actions in plan:
        own = envs.single_action_space.sample()
        shown.append(envs.step(np.stack([own, *actions[1:]]))[0][0])
    envs.close()
    return np.stack(shown)
