"""The environment benchmark: timing by hand, and the whole script on the debug weights."""

import csv
import json
import mmap
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import env_steps
from benchmarks.sweep import read_sweep
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
    array = np.frombuffer(mmap.mmap(-1, 96_000_000), np.uint8)  # malloc may serve it from what it holds already
    array.fill(1)
    assert env_steps.resident_bytes() - before > 0.8 * array.nbytes


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


def test_a_step_lasts_until_its_context_is_left_and_tensors_count_too():
    """As with output="torch"; the context is entered for the warm-up's steps as well."""
    entered = []

    @contextmanager
    def around():
        entered.append("in")
        yield
        entered.append("out")

    class TensorEnv(SlowEnv):
        def step(self, action):
            none, reward, ended, truncated, info = super().step(action)
            tensors = [torch.from_numpy(value) for value in (ended, truncated, info["model_calls"])]
            return none, reward, tensors[0], tensors[1], {"model_calls": tensors[2]}

    env = TensorEnv(2)
    timing = env_steps.time_steps(env, 10, 2, around=around)
    assert timing.model_calls == 30 and len(env.resets) == 3
    assert entered == ["in", "out"] * (env_steps.WARM_UP_STEPS + 10)


@pytest.mark.parametrize(("num_envs", "output"), [(1, "numpy"), (1, "torch"), (2, "torch")])
def test_environments_are_made_as_they_are_asked_for(num_envs, output):
    options = ["--weights", "debug", "--starts", "drawn", "--num-envs", str(num_envs), "--obs", "latent"]
    (setting,), _ = read_sweep([*options, "--output", output, "--steps-per-frame", "2"])
    env = env_steps.make_env(setting)
    observation, _ = env.reset(seed=0)
    assert isinstance(observation, torch.Tensor) == (output == "torch") and observation.shape[-1] == 128
    assert observation.ndim == (1 if output == "numpy" else 2)
    timing = env_steps.time_steps(env, 2, num_envs, draw=env_steps.choose_draw(env))
    assert len(timing.steps) == 2 and timing.model_calls == 2 * 3, "two calls refine, one commits"


def test_the_script_ends_with_one_json_object(tmp_path):
    """A sweep of two settings with everything that belongs to it, started as a reader of the README starts it: `python
    benchmarks/horizon.py` once did not find its neighbour."""
    command = [sys.executable, "benchmarks/env_steps.py", "--weights", "debug", "--steps", "10", "--num-envs", "1"]
    command += ["--steps-per-frame", "1,2", "--horizon", "200", "--threads", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "models")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["name"] == "env_steps" and line["preset"] == "debug"
    metrics = line["metrics"]
    assert not undocumented(metrics) and metrics["frames_n1_k1"] == 10 and metrics["model_calls_n1_k1"] >= 10
    assert metrics["model_calls_per_step_n1_k2"] - metrics["model_calls_per_step_n1_k1"] == 1
    assert 0 < metrics["step_time_ratio_n1_k1"] < 10 and metrics["horizon_n1_k1"] == 200
    assert "horizon_n1_k2" not in metrics
    assert metrics["step_gflop_n1_k2"] > metrics["step_gflop_n1_k1"] > 0 < metrics["outside_model_share_n1_k2"] < 1
    assert 0 < metrics["roofline_share_n1_k1"] < 1 < metrics["peak_gflop_per_second_n1_k1"]
    with (tmp_path / "env_steps.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(row["num_envs"], row["steps_per_frame"]) for row in lines] == [("1", "1"), ("1", "2")]
    for row, ending in zip(lines, ("_n1_k1", "_n1_k2"), strict=True):
        assert float(row["step_ms_p50"]) == pytest.approx(metrics[f"step_ms_p50{ending}"], rel=1e-5)
    plot = cv2.imread(str(tmp_path / "env_steps.png"))
    assert plot is not None and plot.std() > 5
    assert re.fullmatch(r"cpu: .*, \d+ threads, torch .*", line["device"])
