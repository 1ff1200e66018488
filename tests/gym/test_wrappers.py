"""Gymnasium's own vector wrappers around the vector environment, in its default autoreset mode NEXT_STEP."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward, RecordEpisodeStatistics, RecordVideo

from tests.gym.helpers import LENGTHS, EndAt, make_vec, walk


@pytest.fixture
def numpy_to_torch():
    pytest.importorskip("array_api_compat")
    return importlib.import_module("gymnasium.wrappers.vector").NumpyToTorch


def test_episode_statistics_count_each_episode_once():
    envs = RecordEpisodeStatistics(make_vec(3, task=EndAt(LENGTHS)))
    walk(envs, 8)
    assert list(envs.length_queue) == [2, 3, 3, 3]
    assert list(envs.return_queue) == [3, 6, 6, 6]


def test_statistics_follow_a_mask():
    envs = RecordEpisodeStatistics(make_vec(3, task=EndAt(LENGTHS), autoreset_mode="DISABLED"))
    walk(envs, 2)
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(np.zeros(3, int))
    assert list(envs.length_queue) == [2, 3]


def test_infos_split_into_dicts():
    envs = DictInfoToList(make_vec(2))
    _, infos = envs.reset(seed=0)
    assert infos[1]["pose"].shape == (4, 4) and "success" in infos[0]


def test_videos_show_every_step(clips, tmp_path):
    envs = make_vec(4, render_mode="rgb_array", task=EndAt([[3]] * 4))
    envs = RecordVideo(envs, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    walk(envs, 3)
    envs.close()
    frames, fps = clips[0]
    assert len(frames) == 4 and frames[0].shape == (512, 512, 3) and fps == 10
    assert all(frame.std() > 5 for frame in frames)
    assert not np.array_equal(frames[0], frames[3])


def test_rewards_are_divided_by_the_spread_of_each_rows_return():
    envs, plain = (make_vec(2, task=EndAt([[99]] * 2)) for _ in range(2))
    scaled = [result[1] for result in walk(NormalizeReward(envs, gamma=0.5), 30)]
    rewards = [result[1] for result in walk(plain, 30)]
    returns = list(itertools.accumulate(rewards, lambda total, reward: total * 0.5 + reward))
    np.testing.assert_allclose(scaled[-1], rewards[-1] / np.std(returns), rtol=0.02)


def test_arrays_become_tensors_and_tensors_actions(numpy_to_torch):
    envs, plain = numpy_to_torch(make_vec(2, task=EndAt(LENGTHS[:2]))), make_vec(2, task=EndAt(LENGTHS[:2]))
    observations, infos = envs.reset(seed=3)
    assert isinstance(infos["pose"], torch.Tensor)
    np.testing.assert_array_equal(observations.numpy(), plain.reset(seed=3)[0])
    for actions in ([1, 5], [2, 6], [0, 1]):
        result, expected = envs.step(torch.tensor(actions)), plain.step(np.array(actions))
        for tensor, array in zip(result[:4], expected[:4], strict=True):
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_wrappers_stack(clips, tmp_path):
    envs = make_vec(2, render_mode="rgb_array", task=EndAt([[2], [2]]))
    envs = RecordVideo(envs, str(tmp_path / "videos"), step_trigger=lambda step: step == 0, video_length=2)
    envs = DictInfoToList(NormalizeReward(RecordEpisodeStatistics(envs)))
    infos = walk(envs, 4)[1][4]
    assert [info["episode"]["l"] for info in infos] == [2, 2]
    envs.close()
    assert len(clips) == 1
