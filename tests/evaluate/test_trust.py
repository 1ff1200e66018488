"""`eval trust`: rank correlations of signals and errors known by hand."""

import math

import numpy as np
import pytest

from tests.evaluate.panorama import PanoramaEnv, random_keys
from worldscape.engine import WorldEngine
from worldscape.evaluate import trust
from worldscape.evaluate.dream import dream_episodes
from worldscape.evaluate.episodes import Judge
from worldscape.world import debug_world

STEPS = np.tile(np.arange(6.0), (4, 1))


def test_a_signal_that_counts_steps_wins_nothing_within_a_step():
    """The error grows with the step, and in each step with the row: only `drift` knows of the rows."""
    rows = np.arange(4.0)[:, None]
    psnr = 30 - STEPS - 0.1 * rows
    signals = {"drift": 0.1 * STEPS + 0.01 * rows, "steps": STEPS}
    found = trust.score_signals(signals, psnr, psnr)
    assert (found["drift_psnr"], found["drift_psnr_same_step"]) == (pytest.approx(-1), pytest.approx(-1))
    assert found["steps_psnr"] < -0.95 and math.isnan(found["steps_psnr_same_step"])


def test_frames_are_scored_by_drift():
    drift = np.array([[0.0, 0.2, 0.3, 0.5, 1.0]])
    found = trust.score_signals({"drift": drift}, np.array([[30.0, 28.0, 20.0, 12.0, 10.0]]), drift)
    assert (found["psnr_low_drift"], found["psnr_high_drift"]) == (29.0, 11.0)
    assert (found["share_low_drift"], found["share_high_drift"]) == (0.4, 0.4)
    table = trust.tabulate_drift(drift, 10 * drift, drift, "realised")
    assert [row[1] for row in table.rows] == [1, 1, 1, 1, 0, 1] and table.rows[-1][2] == 10


def test_signals_belong_to_their_episodes():
    """Three episodes in two slots: the last group is padded, and what its padding said is dropped."""
    model = debug_world()
    walked = Judge(policy=random_keys, size=32, make_env=lambda num_steps: PanoramaEnv()).episodes(3, 3)
    episodes = walked.rows([0, 1, 2])
    enlarged = {"frames": walked.frames.repeat(2, 2).repeat(2, 3), "depth": walked.depth.repeat(2, 2).repeat(2, 3)}
    episodes = type(episodes)(**{**{name: getattr(episodes, name) for name in episodes.__slots__}, **enlarged})
    together, alone = (trust.WatchedEngine(WorldEngine(model, slots)) for slots in (2, 1))
    for engine in (together, alone):
        dream_episodes(engine, episodes, num_steps=3)
    for name, values in together.signals(3).items():
        assert values.shape == (3, 3)
        np.testing.assert_allclose(values, alone.signals(3)[name], atol=1e-3)
    assert together.signals(3)["steps"].tolist() == [[1, 2, 3]] * 3
    assert len(np.unique(together.signals(3)["drift"])) > 3
