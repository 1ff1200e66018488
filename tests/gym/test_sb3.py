"""Stable-Baselines3 on top of the vector environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecFrameStack, VecMonitor, VecVideoRecorder

from tests.gym.helpers import DREAM, LENGTHS, NAV, EndAt, assert_close, make_env, make_vec
from ws_gym.sb3 import WorldScapeVecEnv, make_vec_env
from ws_gym.tasks import Task, TaskResult


def make(n_envs: int, **options) -> WorldScapeVecEnv:
    return make_vec_env(n_envs=n_envs, **{**DREAM, **options})


def step(vec_env, num_steps: int = 1) -> tuple:
    for _ in range(num_steps):
        result = vec_env.step(np.zeros(vec_env.num_envs, int))
    return result


@pytest.mark.parametrize("limit", [5, 300])
def test_it_is_what_sb3_makes_of_single_environments(limit):
    """The same observations, rewards, ends and infos as SB3's own DummyVecEnv, through two ends of episodes."""
    ours = make(2, task=EndAt([[4], [4]]), max_episode_steps=limit, seed=5)
    fns = [lambda: make_env(task=EndAt([[4]]), max_episode_steps=limit)] * 2
    theirs = DummyVecEnv(fns)
    theirs.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for action in ([1, 5], [6, 1], [2, 2], [0, 8], [1, 1], [5, 5], [1, 1], [3, 4], [6, 6]):
        mine, other = ours.step(np.array(action)), theirs.step(np.array(action))
        assert_close(mine, other)
        assert_close(ours.reset_infos, theirs.reset_infos)


def test_the_last_observation_and_the_time_limit_are_told():
    vec_env = make(2, task=EndAt([[2], [99]]), max_episode_steps=3, seed=0)
    vec_env.reset()
    observations, _, dones, infos = step(vec_env, 2)
    np.testing.assert_array_equal(dones, [True, False])
    assert not infos[0]["TimeLimit.truncated"] and infos[0]["success"]
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])
    assert "terminal_observation" not in infos[1]
    _, _, dones, infos = step(vec_env)
    np.testing.assert_array_equal(dones, [False, True])
    assert infos[1]["TimeLimit.truncated"] and "terminal_observation" in infos[1]


class Named(Task):
    """Its info terms have names that look like Gymnasium's own."""

    def step(self, frame, elapsed, active) -> TaskResult:
        terms = {"final_distance": elapsed * 2.0, "_hidden": elapsed * 3.0}
        return TaskResult(reward=elapsed.float(), terminated=elapsed >= 2, success=self.none(), terms=terms)


def test_only_gymnasiums_own_names_are_left_out():
    vec_env = make(2, task=Named(), seed=0)
    vec_env.reset()
    for count in (1, 2):
        _, _, dones, infos = step(vec_env)
        assert (infos[1]["final_distance"], infos[1]["_hidden"]) == (2.0 * count, 3.0 * count)
    assert dones.all() and vec_env.reset_infos[0]["final_distance"] == 0.0
    ours = {"final_distance", "_hidden", "terminal_observation", "TimeLimit.truncated"}
    assert not [name for name in infos[0] if name.startswith(("_", "final")) and name not in ours]


def test_observations_are_not_reused():
    """SB3's collectors store the last observation after they have stepped again."""
    vec_env = make(2, seed=0)
    first = vec_env.reset()
    copy = first.copy()
    step(vec_env, 2)
    np.testing.assert_array_equal(first, copy)


def test_seeds_and_options_are_used_once():
    vec_env = make(2, seed=3)
    first = vec_env.reset()
    assert not np.array_equal(vec_env.reset(), first)
    vec_env.seed(3)
    np.testing.assert_array_equal(vec_env.reset(), first)
    vec_env.seed(3)
    vec_env.set_options([{"start": 8}, {"start": 9}])
    chosen = vec_env.reset()
    alone = make_env()
    np.testing.assert_array_equal(chosen[0], alone.reset(seed=3, options={"start": 8})[0])
    np.testing.assert_array_equal(chosen[1], alone.reset(seed=4, options={"start": 9})[0])
    vec_env.seed(3)
    np.testing.assert_array_equal(vec_env.reset(), first)


def test_monitor_counts_episodes():
    vec_env = VecMonitor(make(3, task=EndAt(LENGTHS), seed=0))
    vec_env.reset()
    episodes = [info["episode"] for _ in range(6) for info in step(vec_env)[3] if "episode" in info]
    assert [(episode["r"], episode["l"]) for episode in episodes] == [(3, 2), (6, 3), (6, 3), (6, 3)]


def test_frames_stack():
    vec_env = VecFrameStack(make(2, seed=0), 3)
    first = vec_env.reset()
    assert isinstance(first, np.ndarray) and first.shape == (2, 64, 64, 9)
    second = step(vec_env)[0]
    np.testing.assert_array_equal(second[..., 3:6], first[..., 6:9])


@pytest.mark.parametrize("actions", ["discrete", "multi_discrete", "continuous"])
def test_ppo_learns_a_few_steps(actions):
    vec_env = VecCheckNan(VecMonitor(make(2, actions=actions, task="coverage", max_episode_steps=6, seed=0)))
    vec_env = VecFrameStack(vec_env, 2)
    model = PPO("CnnPolicy", vec_env, n_steps=8, batch_size=8, n_epochs=1, seed=0, policy_kwargs={"net_arch": [8]})
    model.learn(16)
    assert model.num_timesteps == 16
    vec_env.close()


def test_dqn_stores_the_last_observation_and_not_the_next_episodes_first():
    vec_env = VecMonitor(make(2, task=EndAt([[4], [99]]), max_episode_steps=6, seed=0))
    memory: dict[str, Any] = {"buffer_size": 32, "learning_starts": 4, "batch_size": 4, "train_freq": 2}
    model = DQN("CnnPolicy", vec_env, seed=0, policy_kwargs={"net_arch": [8]}, **memory)
    model.learn(24)
    buffer = model.replay_buffer
    assert buffer is not None and buffer.pos == 12
    np.testing.assert_array_equal(np.flatnonzero(buffer.dones[:12, 0]), [3, 7, 11])
    np.testing.assert_array_equal(np.flatnonzero(buffer.dones[:12, 1]), [5, 11])
    np.testing.assert_array_equal(buffer.timeouts[:12], buffer.dones[:12] * [0, 1])
    for row in range(2):
        for step in range(11):
            is_same = np.array_equal(buffer.next_observations[step, row], buffer.observations[step + 1, row])
            assert is_same != bool(buffer.dones[step, row])


def test_a_policy_is_evaluated_over_whole_episodes():
    vec_env = VecMonitor(make(2, task=EndAt([[2], [3]]), seed=0))
    model = PPO("CnnPolicy", vec_env, n_steps=4, batch_size=4, policy_kwargs={"net_arch": [8]})
    returns, lengths = map(np.sort, evaluate_policy(model, vec_env, n_eval_episodes=4, return_episode_rewards=True))
    np.testing.assert_array_equal([lengths, returns], [[2, 2, 3, 3], [3, 3, 6, 6]])


def test_videos_have_the_environments_speed(clips, tmp_path):
    vec_env = make(2, render_mode="rgb_array", task=EndAt([[3], [99]]), seed=0)
    vec_env = VecVideoRecorder(vec_env, str(tmp_path), lambda step: step == 0, video_length=4)
    vec_env.reset()
    step(vec_env, 5)
    (frames, fps), *others = clips
    assert len(frames) == 5 and fps == 10 and not others
    assert frames[0].shape == (512, 256, 3) and not np.array_equal(frames[0], frames[3])


def test_pictures_are_tiled():
    vec_env = make(4, render_mode="rgb_array", seed=0)
    vec_env.reset()
    picture = vec_env.render("rgb_array")
    assert isinstance(picture, np.ndarray) and picture.shape == (512, 512, 3) and picture.std() > 5
    assert make(1).get_images() == [None]


def test_attributes_reach_the_shared_environment():
    vec_env = make(3)
    assert vec_env.get_attr("render_mode") == [None] * 3
    assert vec_env.get_attr("observation_space", 1) == [vec_env.observation_space]
    assert vec_env.env_is_wrapped(Monitor) == [False] * 3 and vec_env.env_is_wrapped(Monitor, [0]) == [False]
    keys = vec_env.env_method("get_keys_to_action", indices=[0, 2])
    assert len(keys) == 2 and keys[0][(ord("w"),)] == 1
    vec_env.set_attr("label", "mine")
    assert vec_env.get_attr("label") == ["mine"] * 3
    with pytest.raises(ValueError, match="belongs to all slots together"):
        vec_env.set_attr("label", "part", indices=0)
    with pytest.raises(AttributeError):
        vec_env.get_attr("no_such_thing")


def test_closing_twice():
    vec_env = make(1)
    vec_env.close()
    vec_env.close()


def test_other_environments_and_fixed_options_are_refused():
    with pytest.raises(ValueError, match="autoreset_mode cannot be chosen here"):
        make(2, autoreset_mode="NEXT_STEP")
    with pytest.raises(ValueError, match="needs autoreset_mode='SAME_STEP'"):
        WorldScapeVecEnv(make_vec(2))
    with pytest.raises(ValueError, match="is no WorldScapeVectorEnv"):
        WorldScapeVecEnv(gym.make_vec(NAV, num_envs=1, vectorization_mode="sync", weights="debug"))


def test_a_missing_stable_baselines_names_the_extra(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "ws_gym.sb3")
    with pytest.raises(ImportError, match=r"pip install 'worldscape\[sb3\]'"):
        importlib.import_module("ws_gym.sb3")
