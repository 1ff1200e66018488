"""Put measured numbers into the README and the model card.

    python benchmarks/scores.py RESULTS.jsonl [MORE.jsonl ...]

The files hold outputs of `worldscape eval ...` (fidelity of rooms and tabletop, actions, drift, hands) and of
benchmarks/env_steps.py; the last JSON line of each name counts. All
must have been measured on the same weights. The text between the markers `<!-- scores: begin -->` and
`<!-- scores: end -->` of each document is replaced.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from worldscape.evaluate.report import Table, parse_report

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "model_card.md")
BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
NEEDED = ("fidelity", "actions", "drift", "env_steps", "fidelity_tabletop", "hands")
HORIZONS = (1, 4, 16, 64)
HAND_HORIZONS = (4, 16, 32)
FIDELITY = "worldscape eval fidelity --source rooms --episodes 64 --batch 32"
TABLETOP = "worldscape eval fidelity --source tabletop --episodes 64 --batch 32 --horizons 1,4,16,32"
HANDS = "worldscape eval hands --episodes 64 --batch 32"
SPEED = "python benchmarks/env_steps.py --num-envs 1,4,16 --device cpu --horizon 2000"
COLUMNS = (
    ("psnr_model", ".1f", "dream"),
    ("psnr_copy", ".1f", "frozen picture"),
    ("psnr_warp", ".1f", "reprojection only"),
    ("psnr_gain_copy", "+.1f", "gain over frozen"),
    ("ssim_model", ".2f", "SSIM"),
    ("sharpness_ratio", ".2f", "sharpness / simulator"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    try:
        text = describe(*read_results(parser.parse_args().results))
    except (OSError, ValueError) as error:
        print(f"scores: error: {error}", file=sys.stderr)
        return 1
    for document in DOCUMENTS:
        document.write_text(put_between(document.read_text(), text))
    print(text)
    return 0


def read_results(paths: list[Path]) -> tuple[dict[str, Mapping[str, float]], str]:
    """The metrics of each result by name, and the device of the speeds.

    Raises ValueError when a result is missing or weights differ.
    """
    lines = [line for path in paths for line in path.read_text().splitlines() if line.startswith('{"name"')]
    reports = {report.name: report for report in map(parse_report, lines)}
    device = reports["env_steps"].device if "env_steps" in reports else ""
    missing = [name for name in NEEDED if name not in reports]
    if missing:
        raise ValueError(f"no JSON line of {', '.join(missing)} in {', '.join(map(str, paths))}")
    weights = {reports[name].weights.split("@")[-1] for name in NEEDED}  # checksums: a folder may have been renamed
    if len(weights) > 1:
        raise ValueError(f"the results are of different weights: {', '.join(sorted(weights))}")
    return {name: reports[name].metrics for name in NEEDED}, device


def describe(found: dict[str, Mapping[str, float]], device: str) -> str:
    """The Markdown of all scores, the command beside each."""
    fidelity, actions, drift, speed, *of_hands = (found[name] for name in NEEDED)
    rows = [[str(h), *[f"{fidelity[f'{name}_h{h}']:{form}}" for name, form, _ in COLUMNS]] for h in HORIZONS]
    scores = Table(title="scores", columns=["step", *[title for *_, title in COLUMNS]], rows=rows)
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
            "worldscape eval drift --steps 1000",
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
            *describe_hands(*of_hands),
            "",
            f"Speeds: {device}.",
        ]
    )


def describe_hands(fidelity: Mapping[str, float], hands: Mapping[str, float]) -> list[str]:
    """Lines of Markdown with the scores of hands."""
    columns = ["step", "dream", "frozen picture", "hand overlap (IoU)", "keypoints off, pixels", "object moved (F1)"]
    rows = [
        [
            str(h),
            *[f"{fidelity[f'psnr_{which}_h{h}']:.1f}" for which in ("model", "copy")],
            *[f"{hands[f'{name}_h{h}']:.2f}" for name in ("hand_iou", "keypoint_error", "object_moved_f1")],
        ]
        for h in HAND_HORIZONS
    ]
    return [
        f"Hands: `{TABLETOP}` and `{HANDS}`, 64 held-out tables, commanded actions;",
        "PSNR in dB; hand and object as a network trained on the simulator reads them off the pictures.",
        "",
        Table(title="hands", columns=columns, rows=rows).to_markdown(),
        "",
        f"Of {hands['success_share']:.0%} of the tables solved in the simulator: F1 of the learned success "
        f"{hands['success_f1']:.2f}; correlation of learned and true reward {hands['reward_correlation']:.2f}.",
    ]


def put_between(document: str, text: str) -> str:
    """The document with `text` between its markers. Raises ValueError when it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a document lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
