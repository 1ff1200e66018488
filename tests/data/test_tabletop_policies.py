"""Scripted hands: they mostly do what their task asks, badly where they should, and what they do is kept."""

import gymnasium as gym
import numpy as np
import pytest

from worldscape.data.episode import EpisodeReader
from worldscape.data.record import RecordConfig, record
from worldscape.data.rollout import load_policy, make_env
from worldscape.data.tabletop import TabletopEnv
from worldscape.data.tabletop_policies import POLICIES

STEPS = 6


def play(env: TabletopEnv, policy, seed: int, steps: int = 110) -> list[dict]:
    """One episode -> its infos."""
    observation, info = env.reset(seed=seed)
    act = policy(env, np.random.default_rng((seed, 1)))
    infos = [info]
    for _ in range(steps):
        observation, _, terminated, _, info = env.step(act(observation, info))
        infos.append(info)
        if terminated:
            break
    return infos


@pytest.mark.parametrize(("task", "fewest"), [("reach", 4), ("push", 3), ("pick_place", 3)])
def test_experts_mostly_succeed(task, fewest):
    """Of four worlds; the rates over a hundred are in the log."""
    env = TabletopEnv(task=task, size=16)
    episodes = [play(env, POLICIES["expert"], seed) for seed in range(100, 104)]
    env.close()
    assert sum(infos[-1]["success"] for infos in episodes) >= fewest
    if task == "pick_place":
        lifted = [infos for infos in episodes if any(info["lifted"] and info["grasped"] for info in infos)]
        assert len(lifted) >= fewest


def test_a_failing_hand_fails_and_one_that_plays_about_moves_on():
    env = TabletopEnv(task="pick_place", size=16)
    failed = [not play(env, POLICIES["failing"], seed, 60)[-1]["success"] for seed in range(3)]
    wandering = play(env, POLICIES["explore"], 4, 40)
    env.close()
    assert sum(failed) >= 2
    places = np.stack([info["hand_state"][1, :3] for info in wandering])
    assert (np.ptp(places, axis=0) > 0.05).all()


def test_a_policy_is_a_function_of_its_seed():
    env = TabletopEnv(task="push", size=16)
    runs = [play(env, POLICIES["mixed"], 7, 12)[-1]["hand_keypoints"] for _ in range(2)]
    env.close()
    np.testing.assert_array_equal(*runs)


def test_names_are_those_of_the_env():
    env = make_env("ws_gym:WorldScape-Tabletop-v0", {"size": 16})
    assert load_policy("mixed", env) is POLICIES["mixed"]
    with pytest.raises(ValueError, match="unknown policy 'goal'; choose expert, perturbed, failing, explore, mixed"):
        load_policy("goal", env)
    env.close()
    with pytest.raises(ValueError, match="Scripted hands need WorldScape-Tabletop"):
        POLICIES["expert"](gym.make("CartPole-v1"), np.random.default_rng(0))


def test_recordings_keep_hands_objects_and_cameras(tmp_path):
    """What is stored is what a second run of the env shows."""
    kwargs = {"task": "any", "goal_terminates": False, "size": 32}
    tabletop = {"env": "ws_gym:WorldScape-Tabletop-v0", "policy": "mixed", "env_kwargs": kwargs}
    record(RecordConfig(out=tmp_path / "d", episodes=1, seed=3, steps_per_episode=STEPS, **tabletop))
    reader = EpisodeReader(tmp_path / "d")
    kept = ("hand_keypoints", "hand_present", "hand_pixels", "hand_visible", "hand_state", "hand_command")
    kept += ("object_pose", "target", "contact", "grasped", "lifted", "task_id", "goal_distance", "camera", "pose")
    reader.require("depth", "intrinsics", "controls", "realised", "collision", "success", *kept)
    episode = reader.episode(0)
    env = make_env(tabletop["env"], kwargs)
    observation, info = env.reset(seed=3)
    for step, action in enumerate([None, *episode.actions]):
        if action is not None:
            observation, reward, _, _, info = env.step(action)
            assert episode.rewards[step - 1] == pytest.approx(reward)
        np.testing.assert_array_equal(episode.frames[step], observation)
        for name in kept:
            np.testing.assert_allclose(getattr(episode, name)[step], info[name], atol=1e-6, err_msg=name)
    env.close()
    assert episode.hand_visible is not None and episode.hand_visible.dtype == bool
    assert episode.task_id is not None and episode.task_id.dtype == np.int64
