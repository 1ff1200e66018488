"""The long-dream benchmark, small, on the debug weights."""

import json
from inspect import isfunction

import cv2
import numpy as np
import pytest
import torch

from benchmarks import horizon
from tests.evaluate.test_documented import undocumented
from worldscape.memory import policy


def test_summary_by_hand():
    seconds = np.where(np.arange(600) < 300, 0.010, 0.012)
    pages = np.minimum(np.arange(600), 250)
    found = horizon.summarise(horizon.LongDream(seconds, 0.1 * seconds, pages, (2**20, 4 * 2**20)))
    expected = {
        "step_ms": 11.0,
        "policy_share": 0.1,
        "step_time_ratio": 1.2,
        "pages": 250,
        "pages_ratio": 1.25,
        "memory_growth_mb": 3.0,
    }
    assert found == pytest.approx(expected)


def test_the_whole_script(capsys, tmp_path):
    options = [
        "--weights",
        "debug",
        "--steps",
        "400",
        "--policies",
        "maco,local",
        "--forks",
        "16",
        "--fork-steps",
        "201",
    ]
    horizon.main([*options, "--plot", str(tmp_path / "pages.png")])
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert not undocumented({name.removesuffix("_maco").removesuffix("_local") for name in metrics})
    assert metrics["pages_ratio_local"] == 1.0 and metrics["pages_maco"] > metrics["pages_local"]
    assert metrics["fork_pages_share"] == 1 / 16
    assert 0 < metrics["policy_share_maco"] < 1
    plot = cv2.imread(str(tmp_path / "pages.png"))
    assert plot is not None and plot.std() > 5


def test_every_decision_of_the_policy_is_clocked():
    own = {name for name, value in vars(policy).items() if isfunction(value) and value.__module__ == policy.__name__}
    made = {name for name in own if not name.startswith("_")}
    assert made == set(horizon.DECISIONS)
    with horizon.clocked_decisions() as spent:
        policy.longest_held(torch.zeros(1, 2, dtype=torch.long))
        assert len(spent) == 1 and spent[0] > 0
    policy.longest_held(torch.zeros(1, 2, dtype=torch.long))
    assert len(spent) == 1


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        horizon.main(["--steps", "10"])
    assert "--steps is at least 400" in capsys.readouterr().err
