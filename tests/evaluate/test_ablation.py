"""The ablation's rows: how a variant reads, how its speed is counted, and what is written."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.evaluate.panorama import PerfectEngine
from worldscape.evaluate.ablation import MEASURES, WARM_UP, Variant, measure_speed, read_variant, save_ablation
from worldscape.evaluate.report import Report


class TimedPerfectEngine(PerfectEngine):
    device = torch.device("cpu")


def test_a_variant_reads_as_name_weights_and_options():
    assert read_variant("student=runs/a") == Variant(name="student", weights="runs/a")
    expected = Variant(name="no pool", weights="runs/a", steps_per_frame=4, policy="sink+local", temperature=1.5)
    assert read_variant("no pool=runs/a,steps_per_frame=4,policy=sink+local,temperature=1.5") == expected


@pytest.mark.parametrize("text", ["student", "=runs/a", "a=", "a=b,speed=2"])
def test_other_rows_are_refused(text):
    with pytest.raises(ValueError, match="does not read as NAME=WEIGHTS"):
        read_variant(text)


def test_the_speed_counts_steps_after_the_warm_up(episodes):
    """Twelve steps of two slots, of which seven count, in two seconds: seven env steps a second."""
    ticks = iter([10.0, 12.0])
    found = measure_speed(TimedPerfectEngine(2), episodes, clock=lambda: next(ticks))
    assert found["env_steps_per_second"] == 2 * (episodes.num_steps - WARM_UP) / 2.0


def reports(**metrics: tuple[float, ...]) -> list[tuple[Variant, Report]]:
    """One report a variant, "before" and "after", with these metrics of each."""
    names = {"name": "ablation", "preset": "debug", "weights": "w@1", "device": "cpu", "commit": "abc", "seconds": 1.0}
    return [
        (Variant(name=name, weights="w"), Report(**names, metrics={key: metrics[key][row] for key in metrics}))
        for row, name in enumerate(("before", "after"))
    ]


def test_the_table_keeps_what_was_measured(tmp_path):
    rows = reports(psnr_model_h4=(20.0, 22.5), other=(2.0, 2.0))
    text, data = save_ablation(tmp_path, "worldscape eval ablation", rows)
    table = text.read_text()
    assert "|  | before | after |" in table and "| psnr_model_h4 | 20.00 | 22.50 |" in table
    assert "| weights | w@1 | w@1 |" in table
    assert "`worldscape eval ablation`" in table and MEASURES[1] not in table and "pairs" not in table
    found = json.loads(data.read_text())
    assert found["after"]["metrics"] == {"psnr_model_h4": 22.5, "other": 2.0}


def test_long_dreams_are_told_with_their_errors_and_in_pairs(tmp_path):
    """The first row exceeds itself by nothing, so only the others are told; a dash is what was not measured."""
    drift = {
        "drift_change_ratio_mean": (0.66, 0.76),
        "drift_change_ratio_mean_error": (0.03, 0.04),
        "drift_change_ratio_mean_gain": (0.0, 0.1),
        "drift_change_ratio_mean_gain_error": (0.0, 0.02),
        "drift_variety_ratio_last": (math.nan, 0.5),
        "psnr_model_h16": (20.0, 19.5),
        "psnr_model_error_h16": (0.5, 0.4),
        "psnr_model_gain_h16": (0.0, -0.5),
        "psnr_model_gain_error_h16": (0.0, 0.1),
    }
    table = save_ablation(tmp_path, "command", reports(**drift))[0].read_text()
    assert "| drift_change_ratio_mean | 0.66 (0.03) | 0.76 (0.04) |" in table
    assert "| drift_variety_ratio_last | - | 0.50 |" in table
    assert "| psnr_model_h16 | 20.00 (0.50) | 19.50 (0.40) |" in table
    paired = table[table.index("Gains over 'before', in pairs:") :]
    assert "|  | after |" in paired and "| drift_change_ratio_mean_gain | +0.10 (0.02) |" in paired
    assert "| psnr_model_gain_h16 | -0.50 (0.10) |" in paired
