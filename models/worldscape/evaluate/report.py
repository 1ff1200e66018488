"""How results leave the house: readable tables, then exactly one JSON line, and Markdown tables made from such lines.

Also a small tool: `python -m worldscape.evaluate.report RESULTS.jsonl [--metrics NAME,NAME]` prints such a table.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

FIELDS = ("name", "preset", "weights", "device", "commit", "seconds", "metrics")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One result. `metrics` is flat, name -> number; every name is explained in docs/metrics.md."""

    name: str
    preset: str
    weights: str
    device: str
    seconds: float
    metrics: Mapping[str, float]
    commit: str

    def to_json(self) -> str:
        """The one JSON line, fields in the order of FIELDS. NaN and infinities become null (JSON has neither)."""
        fields = asdict(self)
        fields["seconds"] = round(self.seconds, 1)
        fields["metrics"] = {name: _json_number(value) for name, value in self.metrics.items()}
        return json.dumps({name: fields[name] for name in FIELDS}, allow_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A titled table. Cells are text or numbers; numbers are printed with three significant decimals."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def to_text(self) -> str:
        """The table as aligned plain text, title first."""
        cells = [list(self.columns), *[[format_cell(cell) for cell in row] for row in self.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.title, *lines])

    def to_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, without its title."""
        rows = [self.columns, ["---"] * len(self.columns), *[[format_cell(cell) for cell in row] for row in self.rows]]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def print_report(report: Report, tables: Sequence[Table] = (), stream: TextIO | None = None) -> None:
    """Print the tables, a blank line after each, and the report's JSON line last."""
    stream = stream or sys.stdout
    for table in tables:
        print(table.to_text(), end="\n\n", file=stream)
    print(report.to_json(), file=stream, flush=True)


def report_on(name: str, weights: str, device: str, seconds: float, metrics: Mapping[str, float]) -> Report:
    """Report on measured weights: adds preset, checksum, hardware, library version and commit.

    weights: a shipped name or path, as given by the user; its last part and a checksum go into the report.
    """
    from worldscape.checkpoint import load_world, weights_id

    model = load_world(weights)
    return Report(
        name=name,
        preset=model.config.preset,
        weights=f"{Path(weights).name}@{weights_id(model)}",
        device=describe_device(device),
        seconds=seconds,
        metrics=metrics,
        commit=find_commit(),
    )


def describe_device(device: str) -> str:
    """A torch device -> its name, thread count for a CPU, and the torch version, in words."""
    import torch

    if torch.device(device).type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device}: {_cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def find_commit() -> str:
    """Commit of the checkout this package runs from, with "-dirty" for changed files; "unknown" when installed."""
    package = Path(__file__).resolve().parents[1]
    try:
        root = _git(package, "rev-parse", "--show-toplevel")
        if Path(root) / "models" / "worldscape" != package:
            return "unknown"
        changed = _git(package, "status", "--porcelain", "--untracked-files=no")
        return _git(package, "rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def parse_report(line: str) -> Report:
    """A JSON line -> Report (null metrics become NaN). Raises ValueError for a line that is not a report."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON line: {line[:80]!r}; pass the last line that an evaluation printed") from error
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        raise ValueError(f"not a report: {line[:80]!r}; its fields must be {', '.join(FIELDS)}")
    metrics = {name: math.nan if value is None else value for name, value in fields["metrics"].items()}
    return Report(**{**fields, "metrics": metrics})


def last_report(text: str) -> Report:
    """All output of an evaluation or benchmark -> the Report of its last line."""
    lines = text.strip().splitlines()
    if not lines:
        raise ValueError("no output to read a report from; pass what the evaluation printed")
    return parse_report(lines[-1])


def tabulate_reports(reports: Sequence[Report], metrics: Sequence[str] | None = None) -> Table:
    """Reports -> a table with one row a metric and one column a report; without `metrics`, all metrics that occur."""
    names = list(metrics) if metrics else list(dict.fromkeys(name for report in reports for name in report.metrics))
    for name in names:
        if not any(name in report.metrics for report in reports):
            raise ValueError(f"no report has a metric {name!r}; docs/metrics.md lists the names")
    columns = ["metric", *[f"{report.name} {report.preset} {report.weights} {report.commit}" for report in reports]]
    rows = [[name, *[report.metrics.get(name, math.nan) for report in reports]] for name in names]
    return Table(title="results", columns=columns, rows=rows)


def format_cell(cell: str | float) -> str:
    """Text as it is, whole numbers whole, others with three decimals (tiny ones: three digits), NaN as a dash."""
    if isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return "-"
    if math.isfinite(cell) and cell == int(cell):
        return str(int(cell))
    return f"{cell:.3f}" if abs(cell) >= 0.01 else f"{cell:.3g}"


def _json_number(value: float) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) else float(f"{number:.6g}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table of the JSON lines in a file."""
    parser = argparse.ArgumentParser(prog="python -m worldscape.evaluate.report", description=main.__doc__)
    parser.add_argument("results", type=Path, help="file with one JSON line per result (other lines are skipped)")
    parser.add_argument("--metrics", help="comma-separated metric names, in the order wanted; default all")
    options = parser.parse_args(arguments)
    lines = [line for line in options.results.read_text().splitlines() if line.startswith("{")]
    names = options.metrics.split(",") if options.metrics else None
    print(tabulate_reports([parse_report(line) for line in lines], names).to_markdown())


if __name__ == "__main__":
    main()
