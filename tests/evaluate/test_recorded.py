"""Recordings as judges: what was recorded is what dreams are compared with, and the report says whose it was."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.written import write_dataset
from worldscape.cli import main
from worldscape.data.episode import EpisodeReader
from worldscape.data.explore import explore
from worldscape.data.rollout import roll_episode
from worldscape.evaluate.recorded import recorded_episodes
from worldscape.evaluate.report import last_report

LENGTHS = (6, 3, 5)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Walks of so many steps through the room of the example."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from tiny_room import TinyRoom  # pyright: ignore[reportMissingImports]

    env = TinyRoom()
    rolled = [roll_episode(env, explore, seed=n, num_steps=steps, index=n) for n, steps in enumerate(LENGTHS)]
    return write_dataset(tmp_path / "judge", env, *rolled)


def test_the_long_episodes_are_taken_as_they_were_recorded(data):
    episodes, whole = recorded_episodes(data, 64, 9, 4), EpisodeReader(data).episode(2)
    assert (len(episodes), episodes.num_steps) == (2, 4) and episodes.seeds.tolist() == [0, 2]
    assert whole.depth is not None and whole.controls is not None and whole.realised is not None
    np.testing.assert_array_equal(episodes.frames[1], whole.frames[:5])
    np.testing.assert_array_equal(episodes.depth[1], whole.depth[:5].astype(np.float32))
    np.testing.assert_array_equal(episodes.actions[1], whole.actions[:4])
    np.testing.assert_array_equal(episodes.controls[1], whole.controls[:4])
    np.testing.assert_array_equal(episodes.realised[1], whole.realised[:4])
    assert len(recorded_episodes(data, 64, 1, 4)) == 1


def test_short_recordings_and_other_sizes_are_refused(data):
    with pytest.raises(ValueError, match="judge are shorter than 7 steps, the longest 6; choose shorter --horizons"):
        recorded_episodes(data, 64, 9, 7)
    with pytest.raises(ValueError, match=r"pictures of shape \(64, 64, 3\); this preset takes \(128, 128, 3\)"):
        recorded_episodes(data, 128, 9, 4)


def test_fidelity_of_a_recording(data, capsys):
    """Who had recorded a simulator of their own could not get one number of it."""
    options = ["--weights", "debug", "--batch", "2", "--horizons", "1,4", "--data", str(data)]
    assert main(["eval", "fidelity", *options]) == 0
    report = last_report(capsys.readouterr().out)
    assert report.name == "fidelity_data_judge"
    assert report.metrics["psnr_copy_h4"] + 3 < report.metrics["psnr_warp_true_h4"]
