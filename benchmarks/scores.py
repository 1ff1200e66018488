"""Put measured numbers into the README and the model card.

    python benchmarks/scores.py RESULTS.jsonl [MORE.jsonl ...]

The files hold outputs of `worldscape eval ...` and of benchmarks/env_steps.py; the last JSON line of each name counts.
There are two blocks, of weights that walk (fidelity, actions, drift, env_steps) and of weights that know hands
(fidelity_tabletop, hands); a block is written when all of its results are given, measured on the same weights: what
stands between its markers, such as `<!-- scores: begin -->` and `<!-- scores: end -->`, is replaced.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worldscape.evaluate.report import Report, Table, parse_report

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "model_card.md")
WALKER = ("fidelity", "actions", "drift", "env_steps")
HAND = ("fidelity_tabletop", "hands")
HORIZONS = (1, 4, 16, 64)
HAND_HORIZONS = (4, 16, 32)
FIDELITY = "worldscape eval fidelity --source rooms --episodes 64 --batch 32"
TABLETOP = "worldscape eval fidelity --source tabletop --episodes 64 --horizons 1,4,16,32"
HANDS = "worldscape eval hands --episodes 64"
DRIFT = "worldscape eval drift --steps 1000"
SPEED = "python benchmarks/env_steps.py --num-envs 1,4,16 --device cpu --horizon 2000"
COLUMNS = {
    "dream": "{psnr_model:.1f}",
    "frozen picture": "{psnr_copy:.1f}",
    "reprojection only": "{psnr_warp:.1f}",
    "gain over frozen (standard error)": "{psnr_gain_copy:+.1f} ({psnr_gain_copy_error:.1f})",
    "SSIM": "{ssim_model:.2f}",
    "sharpness / simulator": "{sharpness_ratio:.2f}",
}
"""Of the scores at a horizon: title, and what a cell says of fidelity's metrics without their horizon."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    try:
        reports = read_reports(parser.parse_args().results)
        texts = {name: describe(reports) for name, (needed, describe) in BLOCKS.items() if are_given(reports, needed)}
        if not texts:
            raise ValueError("no block has any of its results")
        for document in DOCUMENTS:
            text = document.read_text()
            for name, block in texts.items():
                text = put_between(text, name, block)
            document.write_text(text)
    except (OSError, ValueError) as error:
        print(f"scores: error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(texts.values()))
    return 0


def read_reports(paths: list[Path]) -> dict[str, Report]:
    """The last result of each name."""
    lines = [line for path in paths for line in path.read_text().splitlines() if line.startswith('{"name"')]
    return {report.name: report for report in map(parse_report, lines)}


def are_given(reports: Mapping[str, Report], needed: Sequence[str]) -> bool:
    """Whether all results of a block are there. Raises ValueError when some are missing or weights differ."""
    given = [reports[name] for name in needed if name in reports]
    if given and len(given) < len(needed):
        raise ValueError(f"of {', '.join(needed)} only {', '.join(report.name for report in given)} are given")
    weights = {report.weights.split("@")[-1] for report in given}  # checksums: a folder may have been renamed
    if len(weights) > 1:
        raise ValueError(f"{', '.join(needed)} are of different weights: {', '.join(sorted(weights))}")
    return bool(given)


def at_horizon(metrics: Mapping[str, float], horizon: int) -> dict[str, float]:
    """The metrics of one horizon, by their names without it."""
    end = f"_h{horizon}"
    return {name.removesuffix(end): value for name, value in metrics.items() if name.endswith(end)}


def describe_walker(reports: Mapping[str, Report]) -> str:
    """The Markdown of the scores of walking, the command beside each."""
    fidelity, actions, drift, speed = (reports[name].metrics for name in WALKER)
    rows = [[str(h), *[cell.format_map(at_horizon(fidelity, h)) for cell in COLUMNS.values()]] for h in HORIZONS]
    scores = Table(title="scores", columns=["step", *COLUMNS], rows=rows)
    last = HORIZONS[-1]
    facts = {
        "PSNR at step 4 with the true minus with shuffled actions": (f"{fidelity['action_gain_db']:.1f} dB", FIDELITY),
        f"blocked walks over {last} steps: found; right when it says so": (
            f"{fidelity[f'collision_recall_h{last}']:.2f}; {fidelity[f'collision_precision_h{last}']:.2f}",
            FIDELITY,
        ),
        "action read back from the dream / from the simulator": (
            f"{actions['action_accuracy_dream']:.3f} / {actions['action_accuracy_simulator']:.3f}",
            "worldscape eval actions --batch 32",
        ),
        "sharpness over 1,000 steps / simulator: lowest, highest window of 100": (
            f"{drift['sharpness_ratio_min']:.2f}, {drift['sharpness_ratio_max']:.2f}",
            DRIFT,
        ),
        "contrast, change, variety over 1,000 steps / simulator (standard errors)": (
            ", ".join(
                f"{drift[f'{name}_ratio_mean']:.2f} ({drift[f'{name}_ratio_mean_error']:.2f})"
                for name in ("contrast", "change", "variety")
            ),
            DRIFT,
        ),
        "one env: steps/s; p50, p99 of a step": (
            f"{speed['env_steps_per_second_n1']:.1f}; "
            f"{speed['step_ms_p50_n1']:.0f} ms, {speed['step_ms_p99_n1']:.0f} ms",
            SPEED,
        ),
        "batch of 4, of 16: env steps/s": (
            f"{speed['env_steps_per_second_n4']:.0f}, {speed['env_steps_per_second_n16']:.0f}",
            SPEED,
        ),
        "step time at step 2,000 / at step 100": (f"{speed['step_time_ratio_n1']:.2f}", SPEED),
    }
    others = [[what, number, f"`{command}`"] for what, (number, command) in facts.items()]
    return "\n".join(
        [
            f"`{FIDELITY}`: 64 held-out layouts, one real frame to start from,",
            "commanded actions, closed loop; PSNR in dB.",
            "",
            scores.to_markdown(),
            "",
            Table(title="facts", columns=["what", "number", "command"], rows=others).to_markdown(),
            "",
            f"Speeds: {reports['env_steps'].device}.",
        ]
    )


def describe_hands(reports: Mapping[str, Report]) -> str:
    """The Markdown of the scores of hands."""
    fidelity, hands = (reports[name].metrics for name in HAND)
    columns = ["step", "dream", "frozen picture", "hand overlap (IoU)", "keypoints off, pixels"]
    columns += ["object moved, read (F1)", "object moved, told (F1)"]
    seen = ("hand_iou", "keypoint_error", "object_moved_f1", "object_told_f1")
    rows = [
        [
            str(h),
            *[f"{fidelity[f'psnr_{which}_h{h}']:.1f}" for which in ("model", "copy")],
            *[f"{hands[f'{name}_h{h}']:.2f}" for name in seen],
        ]
        for h in HAND_HORIZONS
    ]
    return "\n".join(
        [
            f"`{TABLETOP}` and `{HANDS}`: 64 held-out tables,",
            "commanded actions, object and target told at the start; PSNR in dB; hand and object as a network trained",
            "on the simulator reads them.",
            "Told: whether hands have moved the object as the dream itself has it, which its rewards are made of.",
            "",
            Table(title="hands", columns=columns, rows=rows).to_markdown(),
            "",
            f"{hands['success_share']:.0%} of these tables are solved in the simulator: F1 of the learned success "
            f"{hands['success_f1']:.2f}; correlation of learned and true reward {hands['reward_correlation']:.2f}.",
        ]
    )


BLOCKS = {"scores": (WALKER, describe_walker), "hand scores": (HAND, describe_hands)}


def put_between(document: str, name: str, text: str) -> str:
    """The document with `text` between the markers of this name. Raises ValueError when it has none."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"a document lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
