"""Inverse dynamics learns a synthetic shift in seconds, and tells a perfect dream from a frozen one."""

import numpy as np
import pytest
import torch

from tests.evaluate.panorama import CopyEngine, PerfectEngine
from worldscape.evaluate import actions
from worldscape.evaluate import inverse_dynamics as inverse

CONFIG = inverse.InverseDynamicsConfig(width=8, updates=250, batch_size=32, lr=5e-3)


@pytest.fixture(scope="module")
def reader(judge):
    return inverse.train_inverse_dynamics(inverse.make_pairs(judge.episodes(40, 20, first_seed=0)), CONFIG)


def test_a_perfect_dream_reads_like_the_simulator(reader, episodes):
    found = actions.judge_actions(PerfectEngine(4), episodes.segments(6), reader).metrics
    assert found["action_accuracy_simulator"] > 0.85
    assert found["action_accuracy_ratio"] == 1 and found["action_accuracy_free_ratio"] == 1
    assert found["yaw_error_dream"] == found["yaw_error_simulator"] < 6
    assert found["num_pairs"] == 60


def test_a_frozen_dream_reads_as_no_ops(reader, episodes):
    segments = episodes.segments(6)
    found = actions.judge_actions(CopyEngine(4), segments, reader).metrics
    assert found["action_accuracy_dream"] == pytest.approx((segments.effective_actions() == 0).mean(), abs=0.05)
    assert found["action_accuracy_ratio"] < 0.5


def test_backwards_and_mirrored_pairs_are_relabelled():
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 1, 8, 8, 3), dtype=torch.uint8)
    pairs = inverse.Pairs(frames[0], frames[1], torch.tensor([2]), torch.tensor([[-0.25, 0.0, 0.1, 0.2]]))
    seen = set()
    for seed in range(20):
        shown = inverse.augment_pairs(pairs, torch.Generator().manual_seed(seed))
        backwards = torch.equal(shown.first, pairs.second) or torch.equal(shown.first, pairs.second.flip(2))
        mirrored = not (torch.equal(shown.first, pairs.first) or torch.equal(shown.first, pairs.second))
        sign = -1 if backwards else 1
        flip = torch.tensor([-1, 1, -1, 1]) if mirrored else torch.ones(4)
        assert torch.allclose(shown.motion, pairs.motion * sign * flip)
        assert shown.action.item() == (4 if backwards != mirrored else 2)
        seen.add((backwards, mirrored))
    assert len(seen) == 4


def test_undoing_and_mirroring_twice_is_nothing():
    for table in (inverse.REVERSED, inverse.MIRRORED):
        assert [table[table[action]] for action in range(9)] == list(range(9))


def test_the_reader_is_kept_and_retrained_only_for_another_config(judge, tmp_path):
    config = inverse.InverseDynamicsConfig(width=8, updates=2, batch_size=4)
    walks = []

    def walk():
        walks.append(1)
        return judge.episodes(1, 4, first_seed=0)

    path = tmp_path / "reader.safetensors"
    first = inverse.load_or_train(path, config, walk)
    again = inverse.load_or_train(path, config, walk)
    assert len(walks) == 1
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    inverse.load_or_train(path, inverse.InverseDynamicsConfig(width=8, updates=3, batch_size=4), walk)
    assert len(walks) == 2
    path.write_bytes(path.read_bytes()[:30])
    inverse.load_or_train(path, config, walk)
    inverse.load_or_train(path, config, walk)
    assert len(walks) == 3, "a damaged file is trained anew"


def test_scores_by_hand():
    truth = inverse.Pairs(torch.empty(4), torch.empty(4), torch.tensor([0, 1, 1, 5]), torch.zeros(4, 4))
    motion = torch.zeros(4, 4)
    motion[0, :2] = torch.tensor([0.3, 0.4])
    motion[3, 2] = np.radians(8)
    reading = inverse.Reading(torch.tensor([0, 1, 2, 6]), motion)
    found = actions.score_reading(reading, truth, torch.tensor([False, True, True, True]))
    assert found["action_accuracy"] == 0.5 and found["action_accuracy_free"] == pytest.approx(1 / 3)
    assert found["action_accuracy_balanced"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["action_accuracy_refused"] == 1
    assert found["distance_error"] == pytest.approx(0.5 / 4) and found["yaw_error"] == pytest.approx(2)
