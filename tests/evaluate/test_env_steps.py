"""The environment benchmark: timing by hand, and the whole script on the debug weights."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import env_steps
from tests.evaluate.test_documented import undocumented

ROOT = Path(__file__).parents[2]


class SlowEnv:
    """Takes 2 ms a step and ends every tenth."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.elapsed, self.resets = num_envs, 0, []

    def reset(self, *, options=None):
        self.resets.append(options)

    def step(self, action):
        time.sleep(0.002)
        self.elapsed += 1
        ended = np.zeros(self.num_envs, bool)
        ended[-1] = self.elapsed % 10 == 0
        return None, 0.0, ended, np.zeros(self.num_envs, bool), {"model_calls": np.full(self.num_envs, 3)}


def test_steps_frames_and_model_calls_are_counted_apart():
    env = SlowEnv(4)
    found = env_steps.summarise(env_steps.time_steps(env, 30, 4), 4)
    assert (found["steps"], found["frames"], found["model_calls"], found["model_calls_per_step"]) == (30, 120, 90, 3)
    assert 2 <= found["step_ms_p50"] <= found["step_ms_p95"] <= found["step_ms_p99"]
    assert found["env_steps_per_second"] < 4 / 0.002
    assert len(env.resets) == 5 and env.resets[0]["reset_mask"].tolist() == [False, False, False, True]


def test_resident_memory_grows_with_an_array():
    before = env_steps.resident_bytes()
    array = np.ones(12_000_000)  # malloc never serves so much from what it holds already
    assert env_steps.resident_bytes() - before > 0.8 * array.nbytes


@pytest.mark.parametrize("bad", [["--num-envs", "0"], ["--num-envs", "1,x"], ["--steps", "0"], ["--horizon", "50"]])
def test_bad_options_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        env_steps.read_settings(bad)
    assert "--" in capsys.readouterr().err


def test_environments_take_turns_with_the_same_actions():
    log = []

    class Env:
        def __init__(self, name):
            self.name = name

        def step(self, action):
            log.append((self.name, int(action)))

    seconds = env_steps.take_turns([Env("old"), Env("young")], 1, env_steps.draw_keys)
    assert seconds.shape == (2 * env_steps.AROUND, 2) and (seconds > 0).all()
    assert [name for name, _ in log] == ["old", "young"] * (2 * env_steps.AROUND)
    assert [action for _, action in log[::2]] == [action for _, action in log[1::2]]


def test_the_script_ends_with_one_json_object():
    command = [sys.executable, "benchmarks/env_steps.py", "--weights", "debug", "--steps", "10", "--num-envs", "1"]
    command += ["--horizon", "200", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "models"), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["name"] == "env_steps" and line["preset"] == "debug"
    metrics = line["metrics"]
    assert not undocumented(metrics) and metrics["frames_n1"] == 10 and metrics["model_calls_n1"] >= 10
    assert 0 < metrics["step_time_ratio_n1"] < 10 and metrics["horizon_n1"] == 200
    assert re.fullmatch(r"cpu: .*, \d+ threads, torch .*", line["device"])
