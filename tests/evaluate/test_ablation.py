"""The ablation's rows: how a variant reads, how its speed is counted, and what is written."""

from __future__ import annotations

import json

import pytest
import torch

from tests.evaluate.panorama import PerfectEngine
from worldscape.evaluate.ablation import COLUMNS, WARM_UP, Variant, measure_speed, read_variant, save_ablation
from worldscape.evaluate.report import Report


class TimedPerfectEngine(PerfectEngine):
    device = torch.device("cpu")


def test_a_variant_reads_as_name_weights_and_options():
    assert read_variant("student=runs/a") == Variant(name="student", weights="runs/a")
    expected = Variant(name="no pool", weights="runs/a", steps_per_frame=4, policy="sink+local")
    assert read_variant("no pool=runs/a,steps_per_frame=4,policy=sink+local") == expected


@pytest.mark.parametrize("text", ["student", "=runs/a", "a=", "a=b,speed=2"])
def test_other_rows_are_refused(text):
    with pytest.raises(ValueError, match="does not read as NAME=WEIGHTS"):
        read_variant(text)


def test_the_speed_counts_steps_after_the_warm_up(episodes):
    """Twelve steps of two slots, of which seven count, in two seconds: seven env steps a second."""
    ticks = iter([10.0, 12.0])
    found = measure_speed(TimedPerfectEngine(2), episodes, clock=lambda: next(ticks))
    assert found["env_steps_per_second"] == 2 * (episodes.num_steps - WARM_UP) / 2.0


def test_the_table_keeps_what_was_measured(tmp_path):
    def report(gain: float) -> Report:
        metrics = {"psnr_model_h4": gain, "other": 2.0}
        names = {"name": "ablation", "preset": "debug", "weights": "w@1", "device": "cpu", "commit": "abc"}
        return Report(**names, seconds=1.0, metrics=metrics)

    rows = [(Variant(name=name, weights="w"), report(gain)) for name, gain in (("before", 20.0), ("after", 22.5))]
    text, data = save_ablation(tmp_path, "worldscape eval ablation", rows)
    table = text.read_text()
    assert "| variant | weights | psnr_model_h4 |" in table and "| after | w@1 | 22.500 |" in table
    assert "`worldscape eval ablation`" in table and COLUMNS[1] not in table
    found = json.loads(data.read_text())
    assert found["after"]["metrics"] == {"psnr_model_h4": 22.5, "other": 2.0}
