"""Settings of the environment benchmark's sweep, and what becomes of their results."""

import csv

import cv2
import numpy as np
import pytest

from benchmarks import sweep
from tests.evaluate.test_documented import undocumented
from worldscape.evaluate.pictures import save_plot


def test_every_combination_is_measured_and_named():
    settings, out = sweep.read_sweep(["--num-envs", "1,4", "--steps-per-frame", "1,2", "--size", "64,128"])
    assert out is None and len(settings) == 8
    assert [setting.ending for setting in settings[:3]] == ["_n1_k1_s64", "_n4_k1_s64", "_n1_k2_s64"]
    assert {(s.num_envs, s.steps_per_frame, s.size) for s in settings} == {
        (n, k, side) for n in (1, 4) for k in (1, 2) for side in (64, 128)
    }
    assert settings[-1].title == "n4 k2 s128" and settings[-1].keywords["size"] == 128


def test_names_tell_only_what_is_swept():
    settings, _ = sweep.read_sweep(["--num-envs", "1,16", "--steps-per-frame", "2", "--horizon", "200"])
    assert [setting.ending for setting in settings] == ["_n1", "_n16"]
    assert [setting.steps_per_frame for setting in settings] == [2, 2]
    assert [setting.horizon for setting in settings] == [200, 0]
    assert [setting.size for setting in settings] == [None, None]


def test_tensors_and_many_worlds_need_the_vector_environment():
    assert [s.is_vector for s in sweep.read_sweep(["--num-envs", "1,2"]).settings] == [False, True]
    assert sweep.read_sweep(["--num-envs", "1", "--output", "torch"]).settings[0].is_vector


@pytest.mark.parametrize(
    "bad",
    [
        ["--num-envs", "0"],
        ["--num-envs", ""],
        ["--num-envs", "1,x"],
        ["--size", "64,"],
        ["--steps-per-frame", "0"],
        ["--steps", "0"],
        ["--horizon", "50"],
        ["--obs", "latent", "--size", "64"],
    ],
    ids=" ".join,
)
def test_bad_options_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        sweep.read_sweep(bad)
    assert "--" in capsys.readouterr().err


def test_results_become_names_rows_and_lines(tmp_path):
    settings, _ = sweep.read_sweep(["--num-envs", "1,4", "--steps-per-frame", "1,2"])
    results = [{"env_steps_per_second": 10.0 + place, "steps": 5} for place in range(4)]
    results[0]["horizon"] = 200
    metrics = sweep.name_metrics(settings, results)
    assert metrics["env_steps_per_second_n4_k2"] == 13.0 and metrics["horizon_n1_k1"] == 200 and len(metrics) == 9
    assert not undocumented(metrics) and undocumented(["magic_n4_k2"]) == {"magic_nn"}
    rows = sweep.metric_rows(results)
    assert rows[0] == ["env_steps_per_second", 10.0, 11.0, 12.0, 13.0] and np.isnan(rows[2][2])
    sweep.save_csv(tmp_path / "new" / "found.csv", settings, results)
    with (tmp_path / "new" / "found.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["num_envs"] for line in lines] == ["1", "4", "1", "4"]
    assert lines[3] == {
        "num_envs": "4",
        "steps_per_frame": "2",
        "size": "",
        "env_steps_per_second": "13.0",
        "steps": "5",
        "horizon": "nan",
    }


def test_throughput_is_drawn_over_the_number_of_environments():
    settings, _ = sweep.read_sweep(["--num-envs", "1,4,16", "--steps-per-frame", "1,2"])
    ticks, curves = sweep.throughput_curves(settings, [{"env_steps_per_second": float(n)} for n in range(6)])
    assert ticks == ["1", "4", "16"] and curves.keys() == {"k1", "k2"}
    assert curves["k1"].tolist() == [0, 1, 2] and curves["k2"].tolist() == [3, 4, 5]
    alone, _ = sweep.read_sweep(["--num-envs", "2"])
    assert sweep.throughput_curves(alone, [{"env_steps_per_second": 7.0}])[1]["env steps/s"].tolist() == [7.0]


def test_points_with_names_are_marked(tmp_path):
    """Steps/s 0, 50 and 100 at three places: on the axis, half up in the middle, and in the upper right corner."""
    for ticks in ((), ("1", "4", "16")):
        path = tmp_path / f"{len(ticks)}.png"
        save_plot(path, {"k1": np.array([0.0, 50.0, 100.0])}, x="environments", y="env steps/s", ticks=ticks)
        picture = cv2.imread(str(path))
        assert picture is not None
        marks = [(picture[y - 2, x] < 250).any() for x, y in ((320, 200), (590, 50))]
        assert marks == [bool(ticks)] * 2
