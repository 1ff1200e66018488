"""The simulator behind the shipped world, as an environment like any other."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from tests.gym.helpers import make_env
from worldscape.data.explore import goal


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


@pytest.mark.parametrize("action", [1, 1.0, np.uint8(1), np.float32(1), np.array(1), torch.tensor(1)])
def test_both_take_the_same_numbers(rooms, action):
    for env in (rooms, make_env()):
        env.reset(seed=0)
        control = env.step(action)[4]["realised"]
        np.testing.assert_allclose(control[:3], [0, 0, 0.25], atol=1e-3)


@pytest.mark.parametrize("action", [9, -1, 0.5, np.nan, np.inf, True, "w", None, [1], np.array([1]), torch.tensor([1])])
def test_both_refuse_the_same_numbers(rooms, action):
    for env in (rooms, make_env()):
        env.reset(seed=0)
        with pytest.raises(ValueError, match="(?i)action"):
            env.unwrapped.step(action)


def test_a_dense_reward_sums_up_to_how_near_the_box_is():
    """Walked to the red box by the recorder's policy: what was paid beside the box is the nearness at the end."""
    sparse, dense = (gym.make("WorldScape-Rooms-v0", dense=choice) for choice in (False, True))
    for seed in range(3):
        (observation, info), (_, told) = sparse.reset(seed=seed), dense.reset(seed=seed)
        act, paid = goal(sparse, np.random.default_rng(seed)), [told["goal_nearness"]]
        was_seen = told["goal_nearness"] > 0
        while True:
            action = act(observation, info)
            observation, reward, ended, _, info = sparse.step(action)
            _, more, _, _, told = dense.step(action)
            paid.append(float(more) - float(reward))
            assert sum(paid) == pytest.approx(told["goal_nearness"], abs=1e-6)
            if was_seen:
                assert told["goal_nearness"] == pytest.approx(max(1 - info["goal_distance"] / 8, 0), abs=1e-6)
            was_seen = was_seen or told["goal_nearness"] > 0
            if ended or len(paid) > 120:
                break
        assert was_seen
