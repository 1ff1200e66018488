"""The evaluations from the command line, on debug weights and a few real rooms: the report comes last."""

import json
import math

import pytest
import torch

from worldscape.checkpoint import save_world
from worldscape.cli import main
from worldscape.evaluate.episodes import Judge
from worldscape.evaluate.memory import PATHS
from worldscape.evaluate.report import FIELDS, last_report
from worldscape.train.cli import copy_parts
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel, debug_world

pytest.importorskip("worldscape.data.rooms_gl", exc_type=ImportError)
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
SMALL = ["--weights", "debug", "--episodes", "2", "--batch", "2"]


def run(capsys, *arguments: str, source: str = "rooms"):
    assert main(["eval", arguments[0], *SMALL, "--source", source, *arguments[1:]]) == 0
    out = capsys.readouterr().out
    assert list(json.loads(out.splitlines()[-1])) == list(FIELDS)
    report = last_report(out)
    is_told_apart = source == "tabletop" and arguments[0] != "hands"
    name = f"{arguments[0]}_tabletop" if is_told_apart else arguments[0]
    assert (report.name, report.preset) == (name, "debug") and report.weights.startswith("debug@")
    return report


def test_fidelity(capsys, tmp_path):
    report = run(capsys, "fidelity", "--horizons", "1,4", "--out", str(tmp_path))
    assert report.metrics["psnr_copy_h1"] < report.metrics["psnr_warp_true_h1"]
    assert 3 < report.metrics["psnr_model_h4"] < 40 and math.isfinite(report.metrics["action_gain_db"])
    assert {path.name for path in tmp_path.iterdir()} == {"fidelity_00.png", "fidelity_01.png", "fidelity.mp4"}


def test_actions(capsys, tmp_path):
    options = ["--steps", "8", "--segment", "4", "--updates", "2", "--training-episodes", "1", "--out", str(tmp_path)]
    report = run(capsys, "actions", *options)
    assert report.metrics["num_pairs"] == 16
    assert {path.name for path in tmp_path.iterdir()} == {"inverse_dynamics.safetensors", "actions.mp4"}


def test_drift(capsys, tmp_path):
    report = run(capsys, "drift", "--steps", "24", "--window", "12", "--out", str(tmp_path))
    assert 0 <= report.metrics["within"] <= 1 and report.metrics["sharpness_simulator"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"drift.png", "drift.mp4"}


def test_ablation(capsys, tmp_path, monkeypatch):
    """Both samplers and a teacher, judged alike: what a call costs differs, what is measured does not. The simulator
    walks once for all of them."""
    walks: list[int] = []
    episodes = Judge.episodes

    def walk(judge: Judge, num: int, num_steps: int, **options):
        walks.append(num_steps)
        return episodes(judge, num, num_steps, **options)

    monkeypatch.setattr(Judge, "episodes", walk)
    student = debug_world()
    teacher = WorldModel(adapt_model(student.config))
    copy_parts(student, teacher)
    save_world(teacher, tmp_path / "teacher", {})
    rows = [
        "one=debug",
        "rolling=debug,sampler=rolling,steps_per_frame=2",
        f"teacher={tmp_path / 'teacher'},steps_per_frame=4",
    ]
    options = ["--horizons", "1,12", "--memory-episodes", "1", "--drift-steps", "6", "--drift-episodes", "1"]
    told = [part for row in rows for part in ("--row", row)]
    assert main(["eval", "ablation", *SMALL[2:], *told, *options, "--out", str(tmp_path)]) == 0
    reports = [json.loads(line)["metrics"] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert reports[0].keys() == reports[1].keys() == reports[2].keys()
    assert [report["model_calls_per_frame"] for report in reports][:2] == [2, 1]
    assert 4 / 3 < reports[2]["model_calls_per_frame"] <= 4
    assert all(math.isfinite(report["memory_symmetry_psnr"]) for report in reports)
    assert sorted(walks) == sorted([12, len(PATHS["spin"]), 6])
    table = (tmp_path / "ablation.md").read_text()
    assert "|  | one | rolling | teacher |" in table and "Gains over 'one', in pairs:" in table


def test_geometry(capsys, tmp_path):
    """Real rooms, unprojected by the simulator's depth, look right from between the frames."""
    options = ["--horizons", "1,4", "--gaps", "1,4"]
    report = run(capsys, "geometry", *options, "--out", str(tmp_path))
    assert report.metrics["novel_gain_simulator"] > 1 and report.metrics["warp_psnr_simulator_g1"] > 30
    assert report.metrics["warp_psnr_dream_g1"] < report.metrics["warp_psnr_simulator_g1"]
    assert {path.name for path in tmp_path.iterdir()} == {"geometry.png", "novel_views.png"}
    assert main(["eval", "geometry", *SMALL, *options, "--oracle"]) == 0
    right = last_report(capsys.readouterr().out)
    assert right.name == "geometry_oracle" and len(right.metrics) < len(report.metrics)
    assert right.metrics.keys() == {name for name in report.metrics if not name.startswith("redrawn_")}
    assert right.metrics["psnr_realised_h4"] != report.metrics["psnr_realised_h4"]


def test_memory(capsys, tmp_path):
    options = ["--policies", "maco,local", "--paths", "turn_and_back", "--out", str(tmp_path)]
    report = run(capsys, "memory", *options)
    assert report.metrics["num_revisits_turn_and_back"] > 4
    assert report.metrics["return_psnr_turn_and_back_maco"] > report.metrics["return_psnr_turn_and_back_local"]
    names = {"memory_turn_and_back_00.png", "memory_turn_and_back_01.png", "memory_turn_and_back.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_trust(capsys):
    report = run(capsys, "trust", "--steps", "8")
    assert -1 <= report.metrics["drift_psnr_commanded"] <= 1
    assert 0 < report.metrics["share_low_drift_realised"] <= 1


def test_retrieval(capsys):
    report = run(capsys, "retrieval", "--steps", "12")
    assert 0 < report.metrics["covered_memory"] <= 1 and report.metrics["num_views"] > 0


def test_fidelity_of_the_tabletop(capsys):
    report = run(capsys, "fidelity", "--horizons", "1,4", "--policy", "mixed", source="tabletop")
    assert 3 < report.metrics["psnr_model_h4"] < 40 and math.isfinite(report.metrics["action_gain_db"])


def test_actions_of_hands(capsys, tmp_path):
    options = ["--steps", "8", "--segment", "4", "--updates", "2", "--training-episodes", "1", "--out", str(tmp_path)]
    report = run(capsys, "actions", *options, source="tabletop")
    assert report.metrics["num_pairs"] == 16 and report.metrics["hand_motion_error_dream"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"hand_reader.safetensors"}


def test_drift_of_the_tabletop(capsys):
    report = run(capsys, "drift", "--steps", "24", "--window", "12", source="tabletop")
    assert 0 <= report.metrics["within"] <= 1 and report.metrics["change_simulator"] > 0


def test_hands(capsys, tmp_path):
    options = ["--horizons", "2,6", "--updates", "2", "--training-episodes", "1", "--out", str(tmp_path)]
    report = run(capsys, "hands", *options, source="tabletop")
    assert report.metrics["keypoint_error_commanded_h2"] < 12 and report.metrics["reward_error"] < 1
    assert {path.name for path in tmp_path.iterdir()} == {"hands.png", "hands.mp4", "hand_reader.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fidelity", "--horizons", "4,1"], "increasing"),
        (["fidelity", "--policy", "teleport"], "unknown policy"),
        (["hands", "--horizons", "4,1"], "increasing"),
        (["fidelity", "--first-seed", "7"], "training layout"),
        (["fidelity", "--weights", "no-such-weights"], "no-such-weights"),
        (["actions", "--segment", "0"], "--segment"),
        (["actions", "--updates", "0"], "updates"),
        (["drift", "--episodes", "0"], "at least 1"),
        (["fidelity", "--data", "judge", "--source", "tabletop"], "both say who judges"),
        (["drift", "--window", "5000"], "does not fit"),
        (["memory", "--paths", "moonwalk"], "moonwalk"),
        (["retrieval", "--every", "0", "--episodes", "1", "--steps", "2"], "every is 0"),
        (["geometry", "--gaps", "0"], "increasing"),
        (["geometry", "--oracle", "--sampler", "rolling"], "--oracle finishes one"),
        (["geometry", "--temperature", "-1"], "temperature is -1.0; give a number of at least 0"),
        (["ablation", "--row", "a=debug", "--temperature", "2"], "--row NAME=WEIGHTS,temperature=2.0"),
        (["ablation", "--row", "a=debug", "--sampler", "rolling"], "--row NAME=WEIGHTS,sampler=rolling"),
        pytest.param(["trust", "--device", "cuda"], "finds no CUDA device; give device='cpu'", marks=NO_CUDA),
        (["trust", "--device", "gpu"], "is not a torch device"),
    ],
)
def test_bad_options_are_one_clear_line(capsys, arguments, message):
    assert main(["eval", *arguments[:1], "--weights", "debug", *arguments[1:]]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("worldscape: error:") and message in error[-1]
