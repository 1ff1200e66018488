"""A world is a value: saved, restored, branched, with its task and its clock, single and in rows of a batch."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

import ws_gym  # noqa: F401  (registers the ids)
from tests.gym.helpers import EndAt, core_of, engine_of, make_env, make_vec
from worldscape.snapshot import Snapshot
from ws_gym.env import WorldScapeEnv
from ws_gym.tasks import Task, TaskResult
from ws_gym.vector_env import WorldScapeVectorEnv

OPTIONS = {"weights": "debug", "starts": "drawn"}
WALK = [1, 5, 1, 1, 6, 2]


def walk(env, actions=WALK) -> list:
    """Everything that steps return, but for infos."""
    return [env.step(action)[:4] for action in actions]


def assert_same(one: list, other: list) -> None:
    for first, second in zip(one, other, strict=True):
        for value, twin in zip(first, second, strict=True):
            np.testing.assert_array_equal(value, twin)


@pytest.mark.parametrize("task", ["coverage", "goal_pose", "goal_image", "goal_object"])
def test_the_same_actions_give_the_same_frames_and_rewards_again(task):
    env = WorldScapeEnv(task=task, **OPTIONS)
    env.reset(seed=3)
    walk(env)
    saved = env.snapshot()
    first = walk(env)
    observation, info = env.restore(Snapshot.from_bytes(saved.to_bytes()))
    assert_same(walk(env), first)
    other = WorldScapeEnv(task=task, **OPTIONS)
    shown, told = other.restore(saved)  # never reset
    np.testing.assert_array_equal(shown, observation)
    np.testing.assert_array_equal(told["camera"], info["camera"])
    assert_same(walk(other), first)


@pytest.mark.parametrize("is_bytes", [False, True])
def test_a_reset_goes_on_with_a_snapshot_through_wrappers(is_bytes):
    env, other = (make_env(max_episode_steps=7) for _ in range(2))
    env.reset(seed=3)
    walk(env)
    saved = env.unwrapped.snapshot()
    expected, told = env.unwrapped.restore(saved)
    shown, info = other.reset(options={"snapshot": saved.to_bytes() if is_bytes else saved})
    np.testing.assert_array_equal(shown, expected)
    assert info["visited"] == told["visited"] > 1
    assert_same(walk(other), walk(env.unwrapped))


def test_rows_are_reset_to_snapshots():
    envs, twin = (WorldScapeVectorEnv(3, **OPTIONS) for _ in range(2))
    before = envs.reset(seed=3)[0]
    saved, pair = envs.snapshot([1]), envs.snapshot([0, 2])
    mask = np.array([True, False, True])
    observation, info = twin.reset(options={"snapshot": saved})
    np.testing.assert_array_equal(observation, before[[1, 1, 1]])
    observation, info = twin.reset(options={"snapshot": pair.to_bytes(), "reset_mask": mask})
    np.testing.assert_array_equal(observation, before)
    np.testing.assert_array_equal(info["_pose"], mask)
    with pytest.raises(ValueError, match="holds 2 worlds; give as many rows, not 3"):
        twin.reset(options={"snapshot": pair})


@pytest.mark.parametrize("wrong", [None, "world.bin", Path("world.bin"), {}, b"world"])
def test_what_is_no_snapshot_is_refused(wrong):
    message = "bytes are not a snapshot" if wrong == b"world" else "is no snapshot; give what snapshot\\(\\) returned"
    env, envs = WorldScapeEnv(**OPTIONS), WorldScapeVectorEnv(2, **OPTIONS)
    for world in (env, envs):
        with pytest.raises(ValueError, match=message):
            world.restore(wrong)
        with pytest.raises(ValueError, match=message):
            world.reset(options={"snapshot": wrong})
        with pytest.raises(ValueError, match=r"leave out the reset options \['start'\]"):
            world.reset(options={"snapshot": wrong, "start": 1})


def test_the_clock_and_the_end_are_part_of_it():
    env = WorldScapeEnv(max_episode_steps=3, **OPTIONS)
    env.reset(seed=0)
    env.step(0)
    before = env.snapshot()
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    ended = env.snapshot()
    env.restore(before)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    env.reset(seed=1)
    env.restore(ended)
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_rows_are_restored_alone():
    envs = WorldScapeVectorEnv(4, task="coverage", **OPTIONS)
    twin = WorldScapeVectorEnv(4, task="coverage", **OPTIONS)
    for vector in (envs, twin):
        vector.reset(seed=5)
        vector.step(np.array([1, 5, 6, 2]))
    saved = envs.snapshot([1])
    for vector in (envs, twin):
        vector.step(np.array([1, 1, 6, 2]))
    observation, info = envs.restore(saved, [0, 2])
    assert info["_camera"].tolist() == [True, False, True, False]
    np.testing.assert_array_equal(observation[0], observation[2])
    ours, theirs = envs.step(np.array([1, 1, 1, 1])), twin.step(np.array([1, 1, 1, 1]))
    for value, expected in zip(ours[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(value[[1, 3]], expected[[1, 3]])
        np.testing.assert_array_equal(value[0], value[2])
    assert ours[4]["visited"][0] == ours[4]["visited"][2] < ours[4]["visited"][1] + 2


def test_forks_go_on_from_where_their_source_stands():
    env = WorldScapeEnv(task="goal_pose", **OPTIONS)
    env.reset(seed=7)
    walk(env)
    copies = env.fork(3)
    assert copies.autoreset_mode is gym.vector.AutoresetMode.DISABLED
    alone = env.step(1)
    together = copies.step(np.array([1, 5, 1]))
    assert np.abs(together[0][0].astype(int) - alone[0].astype(int)).max() <= 1
    np.testing.assert_array_equal(together[0][0], together[0][2])
    assert (together[0][0] != together[0][1]).any()
    assert together[1][0] == pytest.approx(alone[1], abs=1e-5)
    copies.fork(1, [0])
    parted = copies.step(np.array([1, 1, 1]))
    np.testing.assert_array_equal(parted[0][0], parted[0][1])
    assert (parted[0][0] != parted[0][2]).any()
    copies.close()


class Far(Task):
    """Rewards the distance to a fixed place, less what it was at first."""

    per_slot = ("first",)

    def bind(self, num_slots, device) -> None:
        super().bind(num_slots, device)
        self.place = torch.tensor([1.0, 2.0, 3.0])
        self.first = torch.zeros(num_slots)

    def reset(self, frame, rows, rngs, options) -> None:
        self.first = torch.where(rows, self._distance(frame), self.first)

    def step(self, frame, elapsed, active) -> TaskResult:
        reward = self._distance(frame) - self.first
        return TaskResult(reward=reward, terminated=self.none(), success=self.none())

    def _distance(self, frame) -> torch.Tensor:
        return (frame.camera[:, :3] - self.place).norm(dim=1)


def test_what_a_task_keeps_of_each_slot_is_what_it_names():
    """A goal of three numbers was taken for the state of three slots."""
    envs = WorldScapeVectorEnv(3, task=Far(), **OPTIONS)
    envs.reset(seed=0)
    for action in (1, 5, 1):
        envs.step(np.full(3, action))
    envs.fork(0, [1, 2])
    task: Any = core_of(envs).task
    assert task.place.tolist() == [1.0, 2.0, 3.0]
    alone = WorldScapeEnv(task=Far(), **OPTIONS)
    alone.restore(envs.snapshot([1]))
    rewards = envs.step(np.ones(3, int))[1]
    assert rewards[0] == rewards[1] == pytest.approx(alone.step(1)[1]) and rewards[0] != 0


def test_what_a_task_names_must_have_a_row_per_slot():
    class Wrong(Far):
        per_slot = ("first", "place")

    env = WorldScapeEnv(task=Wrong(), **OPTIONS)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'place', named in per_slot, has shape \(3,\); return one per slot, \(1,\)"):
        env.snapshot()


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
class TestCopies:
    def test_a_copy_goes_on_alone_wrappers_and_all(self, make_copy):
        env = make_env(max_episode_steps=9)
        env.reset(seed=3)
        walk(env)
        twin = make_copy(env)
        assert engine_of(twin).model is engine_of(env).model
        first = walk(twin, [1, 5, 1])
        assert [step[3] for step in first] == [False, False, True]
        assert_same(walk(env, [1, 5, 1]), first)
        np.testing.assert_array_equal(twin.reset()[0], env.reset()[0])

    def test_what_was_never_opened_or_was_closed_stays_so(self, make_copy):
        env = make_env()
        with pytest.raises(ResetNeeded):
            make_copy(env).unwrapped.step(0)
        env.reset(seed=0)
        env.close()
        twin = make_copy(env)
        with pytest.raises(ClosedEnvironmentError):
            twin.step(0)
        np.testing.assert_array_equal(twin.reset(seed=0)[0], env.reset(seed=0)[0])

    def test_many_worlds_with_a_task_that_counts_for_itself(self, make_copy):
        envs = make_vec(2, task=EndAt([[2, 4], [4]]))
        envs.reset(seed=0)
        envs.step(np.array([1, 5]))
        twin = make_copy(envs)
        actions = [np.array([1, 1])] * 6
        assert_same(walk(twin, actions), walk(envs, actions))

    def test_slots_that_are_not_open_stay_closed(self, make_copy):
        envs = make_vec(3)
        envs.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
        twin = make_copy(envs)
        np.testing.assert_array_equal(core_of(twin).needs_reset, [True, False, True])
        np.testing.assert_array_equal(twin.snapshot([1]).tensors["rgbd"], envs.snapshot([1]).tensors["rgbd"])


def test_forks_end_where_their_environment_does():
    """Its limit is a wrapper's, which forks do not have."""
    env = make_env(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(0)
    for max_episode_steps, limit in ((None, 300), (2, 2)):
        copies = env.unwrapped.fork(1, max_episode_steps=max_episode_steps)
        assert core_of(copies).max_episode_steps == limit
        assert copies.step(np.array([0]))[3].all() == (limit == 2)
        np.testing.assert_array_equal(copies.render()[0].shape, (256, 256, 3))
        with pytest.raises(ValueError, match="max_episode_steps=0 is no count"):
            env.unwrapped.fork(1, max_episode_steps=0)
    hand: Any = gym.make("WorldScape-Hand-v0", weights="debug", starts="drawn")
    hand.reset(seed=0)
    assert core_of(hand.unwrapped.fork(1)).max_episode_steps == 150
    own = WorldScapeEnv(max_episode_steps=9, **OPTIONS)
    own.reset(seed=0)
    assert core_of(own.fork(1)).max_episode_steps == 9 and own.fork(1).render_mode is None


def test_what_does_not_fit_is_refused():
    env = WorldScapeEnv(task="goal_pose", **OPTIONS)
    with pytest.raises(ResetNeeded, match="hold no world yet"):
        env.snapshot()
    env.reset(seed=0)
    saved = env.snapshot()
    with pytest.raises(ValueError, match="other task state"):
        WorldScapeEnv(task="coverage", **OPTIONS).restore(saved)
    envs = WorldScapeVectorEnv(3, task="goal_pose", **OPTIONS)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="2 worlds; give as many rows"):
        envs.restore(envs.snapshot([0, 1]))
    malformed: list = [[3], [-1], [0, 0], [], [0.5]]
    for rows in malformed:
        with pytest.raises(ValueError, match="no choice of slots"):
            envs.snapshot(rows)
    with pytest.raises(ValueError, match="num_envs=0"):
        env.fork(0)
