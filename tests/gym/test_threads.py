"""Worlds in threads: any one at a time, and a clear error where two meet."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.error import Error

from tests.gym.helpers import assert_same, make_env, make_vec
from ws_gym.tasks import Task, TaskResult

ENTERED, GO_ON = threading.Event(), threading.Event()


class Slow(Task):
    """Its step lasts until it is told to go on."""

    def step(self, frame, elapsed, active) -> TaskResult:
        if active.any():
            ENTERED.set()
            assert GO_ON.wait(60)
        return TaskResult(reward=torch.zeros(self.num_slots), terminated=self.none(), success=self.none())


def test_another_thread_dreams_the_same():
    env, twin = make_env(), make_env()
    env.reset(seed=1)
    twin.reset(seed=1)
    with ThreadPoolExecutor(1) as pool:
        for action in (1, 5, 1):
            assert_same(pool.submit(env.step, action).result(), twin.step(action))
        pool.submit(env.close).result()


def test_two_threads_at_once_are_told_what_to_do():
    """And the step that was there first ends as if nothing had happened."""
    envs = make_vec(2, task=Slow())
    envs.reset(seed=0)
    step = partial(envs.step, np.zeros(2, int))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(step)
        assert ENTERED.wait(60)
        for use in (step, envs.reset, envs.snapshot, envs.draw_map, envs.close):
            with pytest.raises(Error, match="another thread is using these worlds; give each thread"):
                use()
        GO_ON.set()
        assert first.result()[0].shape == (2, 64, 64, 3)
    envs.step(np.zeros(2, int))


def test_each_thread_with_an_environment_of_its_own():
    def walk(seed: int) -> np.ndarray:
        env = make_env()
        env.reset(seed=seed)
        frames = [env.step(1)[0] for _ in range(4)]
        env.close()
        return np.stack(frames)

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(walk, (1, 2, 3)))
    for seed, frames in zip((1, 2, 3), together, strict=True):
        np.testing.assert_array_equal(frames, walk(seed))
