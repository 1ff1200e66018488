"""TorchRL on top of the environments: its own checker, and the same worlds as without it.

Vector environments in DISABLED, as TorchRL prefers: in SAME_STEP it cannot read infos that are grouped, as ours are.
"""

# TorchRL may be missing where types are checked.
# pyright: reportMissingImports=false

import numpy as np
import pytest
import torch

from tests.gym.helpers import DREAM, NAV, EndAt, make_vec

pytest.importorskip("torchrl")
# What TorchRL and tensordict warn of at import and in their own calls is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def wrap(**options):
    from torchrl.envs import GymWrapper

    return GymWrapper(make_vec(2, autoreset_mode="DISABLED", **options), categorical_action_encoding=True)


def test_one_world_passes_the_checker():
    from torchrl.envs import GymEnv, check_env_specs

    env = GymEnv(NAV, **DREAM)
    check_env_specs(env)
    env.close()


def test_worlds_pass_the_checker():
    from torchrl.envs import check_env_specs

    envs = wrap(max_episode_steps=4)
    check_env_specs(envs)
    envs.close()


def test_a_rollout_is_that_of_the_vector_environment():
    """Pictures, rewards and ends through two ends of episodes; "next" holds the last picture of an episode."""
    options = {"task": EndAt([[2], [3]])}
    envs, twin = wrap(**options), make_vec(2, autoreset_mode="SAME_STEP", **options)
    envs.set_seed(7)  # opens worlds with this seed; the rollout then opens the next ones
    twin.reset(seed=7)
    twin.reset()
    given = iter(torch.tensor([[1, 5], [6, 1], [2, 2], [0, 8], [1, 1], [5, 5]]))
    rollout = envs.rollout(6, lambda *seen: next(given), break_when_any_done=False)
    for step in range(6):
        pictures, rewards, terminated, truncated, infos = twin.step(rollout["action"][:, step])
        ended = terminated | truncated
        if ended.any():
            for row in np.flatnonzero(ended):
                pictures[row] = infos["final_obs"][row]
        shown = rollout["next"][:, step]
        np.testing.assert_array_equal(shown["done"][:, 0], ended)
        np.testing.assert_array_equal(shown["reward"][:, 0], rewards)
        np.testing.assert_array_equal(shown["observation"], pictures)
    envs.close()
    twin.close()
