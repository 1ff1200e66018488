"""What puts measured numbers into the README: which results it wants, what a row says, where it goes."""

import sys

import pytest

from benchmarks import scores
from worldscape.evaluate.report import Report


def report(name: str, metrics: dict[str, float], weights: str = "nano@1") -> Report:
    return Report(name=name, preset="nano", weights=weights, device="a cpu", commit="abc", seconds=1.0, metrics=metrics)


def walker(**metrics: float) -> dict[str, Report]:
    """The four results of walking; what is not named here is 0.5."""
    near = ("psnr_model", "psnr_copy", "psnr_warp", "psnr_gain_copy", "psnr_gain_copy_error", "ssim_model")
    long = ("contrast_ratio_mean", "change_ratio_mean", "variety_ratio_mean")
    wanted = {
        "fidelity": [f"{name}_h{h}" for name in (*near, "sharpness_ratio") for h in scores.HORIZONS],
        "actions": ["action_accuracy_dream", "action_accuracy_simulator"],
        "drift": ["sharpness_ratio_min", "sharpness_ratio_max", *long, *(f"{name}_error" for name in long)],
        "env_steps": ["step_ms_p50_n1", "step_ms_p99_n1", "step_time_ratio_n1"],
    }
    wanted["fidelity"] += ["action_gain_db", "collision_recall_h64", "collision_precision_h64"]
    wanted["env_steps"] += [f"env_steps_per_second_n{count}" for count in (1, 4, 16)]
    found = {name: report(name, dict.fromkeys(names, 0.5)) for name, names in wanted.items()}
    found["fidelity"] = report("fidelity", dict(found["fidelity"].metrics) | metrics)
    return found


def test_a_row_is_a_horizon_with_errors_in_brackets():
    text = scores.describe_walker(
        walker(psnr_model_h16=20.43, psnr_copy_h16=15.41, psnr_gain_copy_h16=5.02, psnr_gain_copy_error_h16=0.81)
    )
    assert "| 16 | 20.4 | 15.4 | 0.5 | +5.0 (0.8) | 0.50 | 0.50 |" in text
    assert text.count("| 0.50 | 0.50 |") == len(scores.HORIZONS)


@pytest.mark.parametrize("document", scores.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_have_the_table_as_it_is_written_now(document):
    """A column that is added here without running it would leave the documents behind."""
    header = "| " + " | ".join(["step", *scores.COLUMNS]) + " |"
    assert header in document.read_text()


def test_a_block_wants_all_of_its_results_of_the_same_weights():
    given = walker()
    assert scores.are_given(given, scores.WALKER) and not scores.are_given(given, scores.HAND)
    with pytest.raises(ValueError, match="only fidelity, drift are given"):
        scores.are_given({name: given[name] for name in ("fidelity", "drift")}, scores.WALKER)
    with pytest.raises(ValueError, match="of different weights: 1, 2"):
        scores.are_given(given | {"drift": report("drift", {}, "elsewhere@2")}, scores.WALKER)


def test_only_what_stands_between_the_markers_is_replaced(tmp_path, monkeypatch, capsys):
    document, results = tmp_path / "README.md", tmp_path / "results.jsonl"
    document.write_text("before\n<!-- scores: begin -->\nold\n<!-- scores: end -->\nafter\n")
    results.write_text("a table\n" + "\n".join(r.to_json() for r in walker(action_gain_db=7.25).values()))
    monkeypatch.setattr(scores, "DOCUMENTS", (document,))
    monkeypatch.setattr(sys, "argv", ["scores.py", str(results)])
    assert scores.main() == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- scores: begin -->\n`worldscape eval fidelity") and "old" not in text
    assert "7.2 dB" in text and text.endswith("\n<!-- scores: end -->\nafter\n")
    document.write_text("no markers")
    assert scores.main() == 1 and "lacks the markers" in capsys.readouterr().err
    assert document.read_text() == "no markers"
