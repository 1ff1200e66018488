"""Reports: one JSON line, last; tables made from such lines."""

import io
import json
import math

import pytest

from worldscape.evaluate import report as reports


def _report(**metrics: float) -> reports.Report:
    return reports.Report(
        name="fidelity", preset="debug", weights="debug", device="cpu", seconds=1.234, metrics=metrics, commit="abc"
    )


def test_the_last_line_is_the_report_in_the_documented_order():
    stream = io.StringIO()
    table = reports.Table(title="scores", columns=["h", "dB"], rows=[[1, 20.5], [4, math.nan]])
    reports.print_report(_report(psnr=20.5), [table], stream)
    fields = json.loads(stream.getvalue().splitlines()[-1])
    assert list(fields) == ["name", "preset", "weights", "device", "commit", "seconds", "metrics"]
    assert fields["metrics"] == {"psnr": 20.5} and fields["seconds"] == 1.2
    assert "scores\nh      dB\n1  20.500\n4       -\n" in stream.getvalue()


def test_numbers_that_json_lacks_become_null_and_come_back_as_nan():
    line = _report(a=math.nan, b=math.inf, c=3).to_json()
    assert json.loads(line)["metrics"] == {"a": None, "b": None, "c": 3}
    assert math.isnan(reports.parse_report(line).metrics["a"])


def test_a_report_survives_the_round_trip():
    report = _report(a=0.123456789, b=2)
    parsed = reports.last_report("table\n" + report.to_json() + "\n")
    assert parsed.metrics == {"a": 0.123457, "b": 2} and parsed.weights == "debug"


def test_markdown_table_from_lines(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_text("chatter\n" + _report(a=1.5, b=2).to_json() + "\n" + _report(a=0.0012).to_json() + "\n")
    reports.main([str(path), "--metrics", "a,b"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["| --- | --- | --- |", "| a | 1.500 | 0.0012 |", "| b | 2 | - |"]


@pytest.mark.parametrize("text", ["", "hello", "[1]", '{"name": 1}'])
def test_what_is_not_a_report_is_refused(text):
    with pytest.raises(ValueError):
        reports.last_report(text)


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="'c'"):
        reports.tabulate_reports([_report(a=1)], ["c"])


def test_commit_outside_a_checkout_is_unknown(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "worldscape" / "evaluate"
    package.mkdir(parents=True)
    monkeypatch.setattr(reports, "__file__", str(package / "report.py"))
    assert reports.find_commit() == "unknown"
