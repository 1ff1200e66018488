"""The soak: a short one on debug weights, and that it notices what it is there to notice."""

import json

import numpy as np
import pytest

from benchmarks import soak
from tests.evaluate.test_documented import undocumented

SMALL = ["--weights", "debug", "--num-envs", "3", "--limit", "7"]


def test_a_short_soak(capsys, monkeypatch):
    monkeypatch.setattr(soak, "EVENT_ODDS", 0.5)
    monkeypatch.setattr(soak, "CHECK_EVERY", 5)
    soak.main([*SMALL, "--steps", "180", "--max-growth", "200"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = report["metrics"]
    assert report["name"] == "soak" and metrics["num_steps"] == 180 and metrics["num_pages"] > 3
    happened = ("episodes", "reset", "fork", "save", "restore", "replay", "compared")
    assert all(metrics[f"num_{event}"] > 0 for event in happened)
    assert not undocumented(metrics)


def make() -> soak.Soak:
    return soak.Soak("debug", 3, 50, seed=0)


def test_numbers_that_are_none_are_noticed(monkeypatch):
    worlds = make()
    step = worlds.envs.step

    def lose(actions):
        frames, rewards, terminated, truncated, infos = step(actions)
        infos["depth"][1, 0, 0] = np.nan
        return frames, rewards, terminated, truncated, infos

    monkeypatch.setattr(worlds.envs, "step", lose)
    with pytest.raises(soak.Fault, match="depth not finite"):
        worlds.step()


def test_frames_that_do_not_come_again_are_noticed(monkeypatch):
    worlds = make()
    worlds.replay()
    monkeypatch.setattr(worlds.envs, "restore", lambda saved, rows=None: worlds.envs.reset())
    with pytest.raises(soak.Fault, match="showed other frames"):
        worlds.replay()


def test_worlds_that_are_opened_anew_are_not_compared(monkeypatch):
    monkeypatch.setattr(soak, "EVENT_ODDS", 0.0)
    worlds = soak.Soak("debug", 3, 2, seed=0)
    for _ in range(2):
        worlds.step()  # all episodes are over, and the next step opens other worlds
    worlds.replay()
    assert worlds.counts["compared"] == 0
    while not worlds.envs.unwrapped._core.needs_reset.all():
        worlds.step()
    worlds.envs.reset(options={"reset_mask": np.array([True, False, False])})
    worlds.replay()
    assert worlds.counts["compared"] == 1  # the step before the end of its two


def test_a_lost_page_is_noticed():
    worlds = make()
    worlds.check_pages()
    store = worlds.envs.unwrapped._core.engine.state.memory.store
    store.references[-1] += 1
    with pytest.raises(RuntimeError, match="leak: counted but in no table"):
        worlds.check_pages()


def test_growth_is_noticed():
    with pytest.raises(SystemExit, match="resident memory grew by .* more than --max-growth -9999"):
        soak.main([*SMALL, "--steps", "6", "--max-growth=-9999"])
