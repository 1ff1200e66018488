"""The simulator behind the shipped world, as an environment like any other."""

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from tests.gym.helpers import make_env


@pytest.fixture(scope="module")
def rooms():
    env = gym.make("WorldScape-Rooms-v0", render_mode="rgb_array")
    yield env
    env.close()


def test_gymnasium_accepts_it(rooms):
    check_env(rooms.unwrapped)


def test_stable_baselines3_accepts_it(rooms):
    check_env_sb3(rooms)


def test_the_dream_has_its_spaces_and_infos(rooms):
    """Any agent runs in either."""
    dream = make_env()
    assert dream.observation_space == rooms.observation_space
    assert dream.action_space == rooms.action_space
    real, dreamed = rooms.reset(seed=0)[1], dream.reset(seed=0)[1]
    for name in ("depth", "pose", "camera", "realised", "collision", "success"):
        assert type(real[name]) is type(dreamed[name])
        assert getattr(real[name], "shape", None) == getattr(dreamed[name], "shape", None)
        assert getattr(real[name], "dtype", None) == getattr(dreamed[name], "dtype", None)
