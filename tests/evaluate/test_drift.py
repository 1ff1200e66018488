"""Drift: a perfect dream stays within the simulator's spread, a fading one does not."""

import math

import numpy as np
import pytest

from tests.evaluate.panorama import FoggyEngine, PerfectEngine
from worldscape.evaluate import drift


@pytest.fixture(scope="module")
def walked(judge):
    return judge.episodes(4, 80)


def test_a_perfect_dream_stays_within_the_spread(walked):
    found = drift.judge_drift(PerfectEngine(4), walked, window=20).metrics
    assert found["within"] == 1 and found["within_each"] > 0.8
    assert found["sharpness_ratio_last"] == pytest.approx(1)
    assert found["freeze_dream_last"] == 0 and found["variety_dream_last"] > 1


def test_a_fading_dream_is_caught(walked):
    judged = drift.judge_drift(FoggyEngine(4), walked, window=20)
    found = judged.metrics
    assert found["sharpness_within"] < 1 and found["contrast_within"] < 1 and found["within"] < 1
    assert found["sharpness_ratio_last"] < 0.05 and found["freeze_dream_last"] > 0.9
    assert len(judged.tables[0].rows) == 4 + 3


def test_spread_is_the_middle_of_what_was_measured():
    """It was mean +- 2 deviations once, which for skewed sharpness reached below zero: a blank picture passed."""
    low, high = drift.simulator_spread(np.array([[*range(41)], [math.nan] * 41]))
    assert (low, high) == (1.0, 39.0)
    skewed = np.array([[0.001] * 10 + [0.05]])
    assert drift.simulator_spread(skewed)[0] == pytest.approx(0.001)


def test_statistics_are_compared_window_by_window():
    found = drift.compare_ratios(np.array([[1.0, 1.0, 3.0]]), np.array([[2.0, 4.0, 2.0]]))
    ratios = {name: value for name, value in found.items() if "error" not in name}
    assert ratios == {"mean": pytest.approx(0.75), "first": 0.5, "last": 1.5, "min": 0.25, "max": 1.5}
    assert all(math.isnan(found[f"{kind}_error"]) for kind in ("mean", "first", "last")), "one dream tells of no spread"


def test_a_ratios_error_is_what_other_dreams_would_have_said():
    """Of a thousand batches of dreams under the same actions, the ratio's scatter is the error that one batch tells."""
    rng = np.random.default_rng(0)
    true = rng.lognormal(0.0, 0.5, (1000, 16, 3))
    dreamed = true * 0.8 + rng.normal(0.0, 0.3, true.shape)
    found = [drift.compare_ratios(*pair) for pair in zip(dreamed, true, strict=True)]
    for kind in ("mean", "first", "last"):
        told = np.mean([one[f"{kind}_error"] for one in found])
        assert told == pytest.approx(np.std([one[kind] for one in found]), rel=0.1)


def test_dreams_of_the_same_episodes_are_compared_in_pairs(walked):
    """What an episode does to both cancels, so a small gain is seen that either error would hide."""
    rng = np.random.default_rng(0)
    gains, told = [], []
    for _ in range(300):
        true = rng.lognormal(0.0, 0.5, (16, 3))
        shared = true * rng.lognormal(0.0, 0.5, true.shape)
        dreamed = [0.8 * shared, 0.9 * shared + rng.normal(0.0, 0.02, true.shape)]
        first, other = (
            drift.Windows(dict.fromkeys(drift.COMPARED, d), dict.fromkeys(drift.COMPARED, true)) for d in dreamed
        )
        found = drift.compare_dreams(first, other)
        gains.append(found["change_ratio_last_gain"])
        told.append(found["change_ratio_last_gain_error"])
    apart = drift.compare_ratios(dreamed[0], true)["last_error"]
    assert np.mean(gains) == pytest.approx(0.1 * np.exp(0.125), rel=0.1)
    assert np.mean(told) == pytest.approx(np.std(gains), rel=0.15) and np.mean(told) < 0.5 * apart
    windows = drift.judge_drift(PerfectEngine(4), walked, window=20).windows
    assert set(drift.compare_dreams(windows, windows).values()) == {0.0}
    with pytest.raises(ValueError, match="the dreams follow different episodes"):
        drift.compare_dreams(first, windows)


def test_dreams_without_a_number_do_not_count():
    found = drift.compare_ratios(np.array([[1.0, math.nan], [3.0, 2.0]]), np.array([[2.0, 9.0], [2.0, 4.0]]))
    assert (found["first"], found["last"]) == (1.0, 0.5)
    assert math.isnan(drift.compare_ratios(np.full((2, 1), math.nan), np.ones((2, 1)))["last"])


def test_pictures_are_written(walked, tmp_path):
    dream = drift.judge_drift(PerfectEngine(4), walked, window=20).dream
    paths = drift.save_pictures(tmp_path, dream, walked, num_shown=1)
    assert [path.name for path in paths] == ["drift.png", "drift.mp4"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_window_that_does_not_fit_is_refused(walked):
    with pytest.raises(ValueError, match="window"):
        drift.judge_drift(PerfectEngine(4), walked, window=100)
