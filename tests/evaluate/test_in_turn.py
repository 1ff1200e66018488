"""The benchmark of environments in turn: ratios by hand, and the whole script on the debug weights."""

import json

import numpy as np
import pytest

from benchmarks import in_turn
from tests.evaluate.test_documented import DOCUMENTED


def test_rates_are_those_of_all_steps_together():
    seconds = np.array([[0.01, 0.02], [0.03, 0.02], [0.02, 0.06], [0.02, 0.0]])
    found = in_turn.summarise(["nav", "hand"], seconds)
    assert found == pytest.approx(
        {
            "env_steps_per_second_nav": 50,
            "step_ms_p50_nav": 20,
            "speed_ratio_nav": 1,
            "env_steps_per_second_hand": 40,
            "step_ms_p50_hand": 20,
            "speed_ratio_hand": 0.8,
        }
    )
    assert {name.replace("_nav", "_E").replace("_hand", "_E") for name in found} <= DOCUMENTED


def test_the_script_ends_with_one_json_object(capsys):
    in_turn.main(["--weights", "debug", "--steps", "2", "--seeds", "2"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["name"] == "in_turn" and line["preset"] == "debug" and len(line["metrics"]) == 6
    metrics = line["metrics"]
    ratio = metrics["env_steps_per_second_hand"] / metrics["env_steps_per_second_nav"]
    assert metrics["speed_ratio_hand"] == pytest.approx(ratio, rel=1e-4) and metrics["speed_ratio_nav"] == 1


def test_what_there_is_not_is_one_clear_line():
    with pytest.raises(SystemExit, match="in_turn: error: .*no-such-weights"):
        in_turn.main(["--weights", "no-such-weights"])
    with pytest.raises(SystemExit, match="in_turn: error: .*WorldScape-Fly"):
        in_turn.main(["--weights", "debug", "--envs", "WorldScape-Nav-v0,WorldScape-Fly-v0"])


@pytest.mark.parametrize(
    ("bad", "message"), [(["--steps", "0"], "--steps and --seeds are at least 1"), (["--envs", "a-v0,a-v0"], "twice")]
)
def test_bad_options_are_refused(bad, message, capsys):
    with pytest.raises(SystemExit):
        in_turn.read_options(bad)
    assert message in capsys.readouterr().err
