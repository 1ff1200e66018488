"""Many worlds in one model: seeds, autoreset modes, masks, wrappers."""

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode

from tests.gym.helpers import (
    LENGTHS,
    EndAt,
    assert_close,
    assert_same,
    core_of,
    drop_calls,
    make_env,
    make_vec,
    row_of,
    walk,
)
from ws_gym.actions import ACTION_MODES
from ws_gym.tasks import TASKS


def roll(envs, actions) -> list:
    return [envs.reset(seed=3), *(envs.step(action) for action in actions)]


def sample_actions(envs, num_steps: int) -> list:
    envs.action_space.seed(1)
    return [envs.action_space.sample() for _ in range(num_steps)]


class TestSlots:
    @pytest.mark.parametrize(
        "options",
        [*({"actions": mode} for mode in ACTION_MODES), *({"task": task} for task in TASKS), {"size": (40, 56)}],
        ids=str,
    )
    def test_each_slot_is_the_single_environment_with_its_seed(self, options):
        envs = make_vec(3, **options)
        actions = sample_actions(envs, 6)
        together = roll(envs, actions)
        for row in range(3):
            env = make_env(**options)
            observation, info = env.reset(seed=3 + row)
            assert_close((together[0][0][row], row_of(together[0][1], row)), (observation, info))
            for result, action in zip(together[1:], actions, strict=True):
                observations, rewards, terminations, truncations, infos = result
                if core_of(env).needs_reset[0]:
                    break
                observation, reward, terminated, truncated, info = env.step(action[row])
                assert_close((observations[row], row_of(infos, row)), (observation, info))
                assert rewards[row] == pytest.approx(reward, rel=1e-4, abs=1e-5)
                assert (terminations[row], truncations[row]) == (terminated, truncated)

    def test_twins_agree_for_50_steps(self):
        first, second = make_vec(3, max_episode_steps=20), make_vec(3, max_episode_steps=20)
        actions = sample_actions(first, 50)
        for one, other in zip(roll(first, actions), roll(second, actions), strict=True):
            assert_same(one, other)

    def test_results_suit_the_spaces(self):
        envs = make_vec(3)
        assert envs.observation_space == gym.vector.utils.batch_space(envs.single_observation_space, 3)
        observations, infos = envs.reset()
        assert observations in envs.observation_space
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert rewards.dtype == np.float32 and terminations.dtype == truncations.dtype == bool
        assert rewards.shape == terminations.shape == truncations.shape == (3,)
        for name, value in infos.items():
            assert isinstance(value, dict) or len(value) == 3
            assert name.startswith("_") or infos[f"_{name}"].all()

    def test_results_are_the_users_to_change(self):
        envs, twin = make_vec(2), make_vec(2)
        for results in zip(roll(envs, sample_actions(envs, 4)), roll(twin, sample_actions(envs, 4)), strict=True):
            assert_same(*results)
        kept = envs.step(np.array([1, 5]))
        copies = [value.copy() for value in kept[:4]]
        envs.step(np.array([5, 1]))
        for value, copy in zip(kept[:4], copies, strict=True):
            np.testing.assert_array_equal(value, copy)
        kept[0][:] = 0
        assert envs.reset(options={"reset_mask": np.array([True, False])})[0][1].any()

    def test_seeds_may_be_given_one_by_one(self):
        envs = make_vec(3)
        by_number, one_by_one = envs.reset(seed=7)[0], envs.reset(seed=[9, 8, 7])[0]
        np.testing.assert_array_equal(by_number, one_by_one[::-1])

    def test_a_slot_without_a_seed_goes_on_with_its_own(self):
        envs = make_vec(2)
        envs.reset(seed=0)
        expected = envs.reset()[0][1]
        envs.reset(seed=0)
        np.testing.assert_array_equal(envs.reset(seed=[5, None])[0][1], expected)


class TestNextStep:
    def test_the_row_after_the_end_is_reset_and_ignores_its_action(self):
        envs = make_vec(3, task=EndAt(LENGTHS))
        assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is AutoresetMode.NEXT_STEP
        results = walk(envs, 2)
        np.testing.assert_array_equal(results[1][2], [True, False, False])
        observations, rewards, terminations, truncations, infos = envs.step(np.array([77, 0, 0]))
        np.testing.assert_array_equal(rewards, [0, 3, 3])
        np.testing.assert_array_equal(terminations, [False, True, False])
        assert not truncations.any()
        np.testing.assert_array_equal(infos["number"], [1, 0, 0])
        assert not np.array_equal(observations[0], results[1][0][0])
        _, rewards, *_ = envs.step(np.zeros(3, int))
        np.testing.assert_array_equal(rewards, [1, 0, 4])

    def test_the_new_episode_is_the_one_that_a_manual_reset_opens(self):
        env = make_env(task=EndAt(LENGTHS[:1]))
        env.reset(seed=3)
        expected = env.reset()[0]
        results = walk(make_vec(3, task=EndAt(LENGTHS)), 3)
        np.testing.assert_array_equal(results[2][0][0], expected)

    def test_all_rows_may_end_together(self):
        results = walk(make_vec(2, max_episode_steps=2), 3)
        assert results[1][3].all() and not results[2][3].any()
        np.testing.assert_array_equal(results[2][1], [0, 0])

    def test_other_rows_dream_on_as_if_nothing_had_happened(self):
        reset_beside = walk(make_vec(3, task=EndAt(LENGTHS)), 5)
        undisturbed = walk(make_vec(3, task=EndAt([[99]] * 3)), 5)
        for one, other in zip(reset_beside, undisturbed, strict=True):
            np.testing.assert_array_equal(one[0][2], other[0][2])
            assert_same(drop_calls(row_of(one[4], 2)), drop_calls(row_of(other[4], 2)))


class TestSameStep:
    def test_the_end_is_told_beside_the_new_beginning(self):
        envs, next_step = (
            make_vec(3, task=EndAt(LENGTHS), autoreset_mode=mode) for mode in ("SAME_STEP", AutoresetMode.NEXT_STEP)
        )
        same, following = walk(envs, 2), walk(next_step, 3)
        observations, rewards, terminations, _, infos = same[1]
        np.testing.assert_array_equal(terminations, [True, False, False])
        np.testing.assert_array_equal(rewards, [2, 2, 2])
        np.testing.assert_array_equal(infos["final_obs"][0], following[1][0][0])
        assert infos["final_obs"][1] is None and infos["final_obs"].dtype == object
        np.testing.assert_array_equal(infos["_final_obs"], [True, False, False])
        np.testing.assert_array_equal(infos["_final_info"], [True, False, False])
        np.testing.assert_array_equal(observations[0], following[2][0][0])
        np.testing.assert_array_equal(infos["number"], [1, 0, 0])
        final = infos["final_info"]
        assert final["number"][0] == 0 and final["success"][0]
        np.testing.assert_array_equal(final["_success"], [True, False, False])
        np.testing.assert_array_equal(final["camera"][0], following[1][4]["camera"][0])
        assert "final_obs" not in same[0][4]

    def test_no_step_is_lost(self):
        envs = make_vec(3, task=EndAt(LENGTHS), autoreset_mode="SAME_STEP")
        rewards = np.stack([result[1] for result in walk(envs, 5)])
        np.testing.assert_array_equal(rewards[:, 0], [1, 2, 1, 2, 3])


class TestDisabled:
    def test_a_row_whose_episode_ended_must_be_reset_by_its_mask(self):
        envs = make_vec(3, task=EndAt(LENGTHS), autoreset_mode=AutoresetMode.DISABLED)
        results = walk(envs, 2)
        with pytest.raises(ResetNeeded, match=r"slots \[0\] have no running episode"):
            envs.step(np.zeros(3, int))
        mask, options = np.array([True, False, False]), {}
        options["reset_mask"] = mask
        observations, infos = envs.reset(options=options)
        assert options == {"reset_mask": mask}
        np.testing.assert_array_equal(observations[1:], results[1][0][1:])
        assert not np.array_equal(observations[0], results[1][0][0])
        np.testing.assert_array_equal(infos["_pose"], mask)
        _, rewards, *_ = envs.step(np.zeros(3, int))
        np.testing.assert_array_equal(rewards, [1, 3, 3])

    def test_rows_reset_by_mask_equal_fresh_rows_and_leave_the_others_untouched(self):
        envs, fresh, undisturbed = make_vec(3), make_vec(3), make_vec(3)
        actions = sample_actions(envs, 8)
        roll(envs, actions[:4])
        roll(undisturbed, actions[:4])
        envs.reset(seed=[0, 41, 0], options={"reset_mask": np.array([False, True, False])})
        fresh.reset(seed=40)
        for action in actions[4:]:
            one, new, other = envs.step(action), fresh.step(action), undisturbed.step(action)
            # Opened in a batch of one instead of three.
            assert_close((one[0][1], row_of(one[4], 1)), (new[0][1], row_of(new[4], 1)))
            for row in (0, 2):
                np.testing.assert_array_equal(one[0][row], other[0][row])
                assert_same(row_of(one[4], row), row_of(other[4], row))

    def test_a_picture_may_open_one_row(self):
        envs = make_vec(2)
        before = envs.reset(seed=0)[0]
        red = np.zeros((64, 64, 3), np.uint8)
        red[..., 0] = 255
        after = envs.reset(options={"image": red, "reset_mask": np.array([False, True])})[0]
        np.testing.assert_array_equal(after[0], before[0])
        assert np.abs(after[1].astype(int) - [255, 0, 0]).mean() < 1

    @pytest.mark.parametrize(
        "mask", [np.ones(3), [True, False], np.zeros(3, bool), np.ones((3, 1), bool), np.array([0, 1, 2]), "all"]
    )
    def test_malformed_masks_are_refused(self, mask):
        envs = make_vec(3)
        envs.reset()
        with pytest.raises(ValueError, match="(?s)reset_mask .* is no choice of slots; give a bool array of shape"):
            envs.reset(options={"reset_mask": mask})


class TestTorchOutput:
    @pytest.mark.parametrize("mode", list(AutoresetMode))
    def test_tensors_hold_what_arrays_hold(self, mode):
        options = {"autoreset_mode": mode, "task": EndAt(LENGTHS)}
        arrays, tensors = make_vec(3, **options), make_vec(3, output="torch", **options)
        steps = 2 if mode is AutoresetMode.DISABLED else 4
        for one, other in zip(walk(arrays, steps), walk(tensors, steps), strict=True):
            for array, tensor in zip(one[:4], other[:4], strict=True):
                assert isinstance(tensor, torch.Tensor)
                np.testing.assert_array_equal(array, tensor.numpy())
            assert one[4].keys() == other[4].keys()
            np.testing.assert_array_equal(one[4]["pose"], other[4]["pose"].numpy())
            if "final_obs" in one[4]:
                for row in np.flatnonzero(one[4]["_final_obs"]):
                    np.testing.assert_array_equal(one[4]["final_obs"][row], other[4]["final_obs"][row].numpy())

    def test_actions_and_masks_may_be_tensors(self):
        envs = make_vec(2, output="torch")
        envs.reset(seed=0)
        envs.step(torch.tensor([1, 5]))
        envs.reset(options={"reset_mask": torch.tensor([True, False])})

    def test_kept_tensors_do_not_change(self):
        envs = make_vec(2, output="torch")
        kept = envs.reset(seed=0)[0]
        copy = kept.clone()
        kept_step = envs.step(np.array([1, 1]))[0]
        kept_step[:] = 0
        torch.testing.assert_close(kept, copy, rtol=0, atol=0)
        masked = envs.reset(options={"reset_mask": np.array([True, False])})[0]
        assert masked[1].any()


class TestRender:
    def test_one_frame_per_slot(self):
        envs = make_vec(2, render_mode="rgb_array")
        observations, _ = envs.reset(seed=0)
        frames = envs.render()
        assert isinstance(frames, tuple) and [frame.shape for frame in frames] == [(256, 256, 3)] * 2
        for frame, observation in zip(frames, observations, strict=True):
            assert abs(frame.mean() - observation.mean()) < 2
        assert make_vec(1).render() is None

    def test_depth_is_that_of_each_slots_info(self):
        envs = make_vec(2, render_mode="depth_array")
        assert "depth_array" in envs.metadata["render_modes"]
        info = envs.reset(seed=0)[1]
        for _ in range(2):
            depths = envs.render()
            assert isinstance(depths, tuple)
            np.testing.assert_array_equal(depths, info["depth"])
            info = envs.step(np.array([1, 5]))[4]


class TestSpec:
    def test_round_trip_through_json(self):
        envs = make_vec(2, autoreset_mode="SAME_STEP", task="coverage", max_episode_steps=7)
        spec = EnvSpec.from_json(envs.spec.to_json())
        twin: Any = gym.make_vec(spec)
        assert twin.num_envs == 2 and twin.autoreset_mode is AutoresetMode.SAME_STEP
        actions = sample_actions(envs, 9)
        assert_same(roll(envs, actions)[-1][:4], roll(twin, actions)[-1][:4])

    def test_making_with_a_mode_leaves_the_class_alone(self):
        make_vec(1, autoreset_mode="DISABLED")
        assert type(make_vec(1)).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP

    def test_the_time_limit_is_gymnasiums(self):
        envs = gym.make_vec("WorldScape-Nav-v0", num_envs=1, weights="debug")
        assert core_of(envs).max_episode_steps == 300

    @pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.slow)])
    def test_gymnasiums_own_vectorisers_work_too(self, mode):
        context = {"context": "spawn"} if mode == "async" else {}
        own = make_vec(1)
        other = make_vec(1, vectorization_mode=mode, vector_kwargs=context)
        np.testing.assert_array_equal(own.reset(seed=0)[0], other.reset(seed=0)[0])
        np.testing.assert_array_equal(own.step(np.array([1]))[0], other.step(np.array([1]))[0])
        other.close()


FORKING = """
import gymnasium as gym, numpy as np, torch, ws_gym
torch.set_num_threads(2)
options = {"weights": "debug", "starts": "drawn", "task": "coverage"}
env = gym.make("WorldScape-Nav-v0", **options)
env.reset(seed=0), env.step(1)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
forked = {"vectorization_mode": "async", "vector_kwargs": {"context": "fork"}}
envs = gym.make_vec("WorldScape-Nav-v0", num_envs=2, **forked, **options)
envs.reset(seed=0)
print(envs.step(np.array([1, 5]))[0].mean() > 0)
envs.close()
"""


LEARNING_FIRST = """
import multiprocessing, sys
import gymnasium as gym, torch, ws_gym
torch.set_num_threads(2)
torch.nn.functional.relu(torch.ones(2_000_000)).sum()
assert "ws_gym.core" not in sys.modules
def work():
    env = gym.make("WorldScape-Nav-v0", weights="debug", starts="drawn")
    env.reset(seed=0), env.step(1)
worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
worker.start(), worker.join(60)
print(worker.exitcode)
"""


def run_script(script: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def test_a_worker_forked_by_a_learner_does_not_wait_for_its_threads():
    """The first world was made in the worker, as SB3's SubprocVecEnv does it, beside a policy that had computed with
    two threads: the worker took itself for the process that had begun it all, and hung."""
    assert run_script(LEARNING_FIRST) == "0\n"


@pytest.mark.slow
def test_forked_processes_do_not_wait_for_their_parents_threads():
    """A child forked after torch had computed with two threads hung in its first parallel loop."""
    assert run_script(FORKING) == "True\n"


@pytest.fixture(scope="module")
def running() -> tuple[Any, Any]:
    """Twins that have been reset with the same seed."""
    twins = make_vec(2), make_vec(2)
    for envs in twins:
        envs.reset(seed=0)
    return twins


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_envs": 0}, "num_envs=0 is no count"),
            ({"num_envs": -2}, "num_envs=-2 is no count"),
            ({"num_envs": 1.0}, "num_envs=1.0 is no count"),
            ({"output": "jax"}, r"output='jax' is unknown; choose one of \('numpy', 'torch'\)"),
            ({"autoreset_mode": "later"}, "autoreset_mode='later' is unknown; choose one of"),
            ({"render_mode": "human"}, "render_mode='human' is not supported here"),
        ],
    )
    def test_wrong_options_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_vec(**{"num_envs": 2, **options})

    def test_unknown_options_are_refused(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'fps'"):
            make_vec(2, fps=3)

    @pytest.mark.parametrize(
        "actions", [0, [0], [0, 0, 0], [[0], [0]], [0, 9], [0.0, np.nan], ["a", "b"], None, [[0], [0, 1]]]
    )
    def test_wrong_actions_are_refused_and_the_worlds_go_on(self, running, actions):
        envs, twin = running
        with pytest.raises(ValueError, match="action"):
            envs.step(actions)
        assert_same(envs.step([1, 5]), twin.step([1, 5]))

    def test_wrong_seeds_are_refused(self):
        with pytest.raises(ValueError, match="3 seeds for 2 slots"):
            make_vec(2).reset(seed=[1, 2, 3])

    @pytest.mark.parametrize("mode", list(AutoresetMode))
    def test_stepping_before_reset_and_after_close(self, mode):
        envs = make_vec(2, autoreset_mode=mode, render_mode="rgb_array")
        with pytest.raises(ResetNeeded):
            envs.step(np.zeros(2, int))
        with pytest.raises(ResetNeeded):
            envs.render()
        envs.reset()
        envs.close()
        envs.close()
        with pytest.raises(ClosedEnvironmentError):
            envs.step(np.zeros(2, int))

    def test_a_reset_opens_closed_worlds_again(self):
        """As with a single environment, which has always done so."""
        envs, twin = make_vec(2), make_vec(2)
        saved = [envs.reset(seed=0), envs.snapshot()][1]
        envs.close()
        assert_same(roll(envs, [[1, 5], [1, 1]]), roll(twin, [[1, 5], [1, 1]]))
        envs.close()
        np.testing.assert_array_equal(envs.restore(saved)[0], twin.reset(seed=0)[0])
        envs.close()
        with pytest.raises(ClosedEnvironmentError):
            envs.step(np.zeros(2, int))

    @pytest.mark.parametrize("seed", [np.arange(3, 5), [np.int64(3), np.int32(4)], (3, 4), np.int64(3)])
    def test_numpys_numbers_are_numbers(self, seed):
        two: Any = np.int64(2)
        envs = make_vec(two, size=np.int64(64))
        np.testing.assert_array_equal(envs.reset(seed=seed)[0], make_vec(2).reset(seed=3)[0])

    @pytest.mark.parametrize("seed", [1.5, True, -1, [0, 1.5], [0, -1], "12"])
    def test_seeds_that_are_none_are_refused(self, seed):
        with pytest.raises(ValueError, match="is no seed; give a whole number of at least 0"):
            make_vec(2).reset(seed=seed)

    def test_a_refused_reset_leaves_the_random_numbers_alone(self):
        envs, twin = make_vec(2), make_vec(2)
        for vector in (envs, twin):
            vector.reset(seed=0)
        for options in ({"start": -1}, {"gaol": 1}):
            with pytest.raises(ValueError, match="start -1|gaol"):
                envs.reset(seed=7, options=options)
        np.testing.assert_array_equal(envs.reset()[0], twin.reset()[0])
