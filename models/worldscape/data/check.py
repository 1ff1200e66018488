"""`worldscape check DATA`: whether a dataset is fit to be trained on, before hours go into it.

Shapes are checked wherever datasets are read. Axes, units and intrinsics can be wrong in the right shape; that shows
when a frame is warped by depth and pose into the view of a later one, which must bring it nearer to that one. What the
motion is said to have been is held against the poses (`check_motion.py`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.camera import invert_pose
from worldscape.conditioning.reproject import reproject
from worldscape.data.check_motion import check_motion
from worldscape.data.clips import NEEDED, to_rgbd
from worldscape.data.episode import Episode, EpisodeReader

MAX_PAIRS = 128
GAPS = (1, 2, 4)
"""Steps between two frames that are compared."""
MAX_TURN = np.radians(30.0)
"""Radians; beyond, too little is in view of both frames."""
MIN_TURN = np.radians(1.0)
MIN_MOTION = 1e-3
"""Metres."""
MIN_GAIN = 0.5
"""dB by which warping must be better, and standard errors: frames that fit by chance gain little, now and then."""
MIN_ERRORS = 3.0
OPENGL = torch.tensor([1.0, -1.0, -1.0, 1.0])
MIN_COVERED = 0.1
"""Share of the pixels that must be in view of both."""
AXES = {
    "OpenGL's (y up, z backward), not x right, y down, z forward": lambda pose: pose @ torch.diag(OPENGL),
    "world to camera, not camera to world": invert_pose,
}
"""What else poses may have been recorded as, and how they become it."""
SERVES = {
    "depth": "every stage",
    "pose": "every stage",
    "intrinsics": "every stage",
    "camera": "every stage",
    "realised": "every stage",
    "controls": "every stage",
    "collision": "this check",
    "success": "heads: reward and end",
    "goal_distance": "heads: dense reward of a walk",
    "hand_state": "hands, in every stage",
    "object_pose": "heads: objects that hands move",
}
"""What the optional fields of `Episode` are for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Numbers by name, which fields there are, and in words what keeps training from working, or looks wrong."""

    metrics: dict[str, float]
    fields: dict[str, bool]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    """Two frames of an episode, and how far the camera went between them, in metres."""

    episode: Episode
    source: int
    target: int
    path: float


class Warped(NamedTuple):
    """PSNR of P pairs, dB float64 [P], of the pixels in view of both frames, NaN where these are few: the first frame
    as it is, taken along with the camera's rotation alone, and with its whole motion."""

    still: np.ndarray
    turned: np.ndarray
    moved: np.ndarray


def check_dataset(reader: EpisodeReader, seed: int = 0) -> Verdict:
    """What there is in a dataset, and whether its geometry explains its pictures; seed: of the frames to compare.

    Raises ValueError for an episode that cannot be read, lacks what the first one has, or has it in another shape.
    """
    fields = {name: getattr(reader.episode(0), name) is not None for name in SERVES}
    present, missing = ([name for name in NEEDED if fields[name] == is_there] for is_there in (True, False))
    episodes = [reader.checked(index, *present) for index in range(len(reader))]
    verdict = Verdict(
        metrics={
            "episodes": len(episodes),
            "steps": int(reader.lengths.sum()),
            "shortest": int(reader.lengths.min()),
            "median": float(np.median(reader.lengths)),
        },
        fields=fields,
    )
    if missing:
        verdict.problems.append(f"no {', '.join(missing)}: no stage can be trained (see examples/tiny_room.py)")
    if {"pose", "camera", "realised", "controls"} <= set(present):
        metrics, problems, warnings = check_motion(episodes, reader.takes_actions_for_keys)
        verdict.metrics.update(metrics)
        verdict.problems.extend(problems)
        verdict.warnings.extend(warnings)
    if {"depth", "pose", "intrinsics"} <= set(present):
        _check_geometry(episodes, verdict, np.random.default_rng(seed))
    return verdict


def _check_geometry(episodes: list[Episode], verdict: Verdict, rng: np.random.Generator) -> None:
    height, width = episodes[0].frames.shape[1:3]
    if height != width:
        verdict.problems.append(f"pictures are {width} x {height} pixels, and models take squares")
        return
    depth = np.concatenate([at(e.depth, len(e) // 2).ravel() for e in episodes[:MAX_PAIRS]]).astype(np.float32)
    verdict.metrics.update({f"depth_{share}": float(np.percentile(depth, share)) for share in (5, 50, 95)})
    pairs = draw_pairs(episodes, rng)
    verdict.metrics["pairs"] = len(pairs)
    if not pairs:
        verdict.warnings.append("the camera stands still: nothing tells whether depth, pose and intrinsics are right")
        return
    warped, paths = warp_pairs(pairs), np.array([pair.path for pair in pairs])
    gain = warped.moved - warped.still
    verdict.metrics.update({f"psnr_{name}": _mean(values) for name, values in warped._asdict().items()})
    verdict.metrics["gain"] = _mean(gain)
    others = {name: _gain(warp_pairs(pairs, change)) for name, change in AXES.items()}
    best = max(others, key=lambda name: others[name])
    if others[best] >= MIN_GAIN and not others[best] <= _mean(gain) + MIN_GAIN:
        verdict.problems.append(f"pose is probably {best}: frames warped with such poses fit better")
    elif not _is_gain(gain):
        verdict.problems.append(
            "frames warped by depth and pose are not nearer to the frames that they should show than frames left as "
            "they are: axes (pose is camera to world: x right, y down, z forward), units (metres) or intrinsics "
            "(fx/w, fy/h, cx/w, cy/h, not pixels) are probably wrong"
        )
    if not (paths > MIN_MOTION).any():
        verdict.warnings.append("the camera only turns: nothing tells whether depth is right")
        return
    far = paths >= np.median(paths[paths > MIN_MOTION])
    gain = (warped.moved - warped.turned)[far]
    verdict.metrics["gain_by_depth"] = _mean(gain)
    if not _is_gain(gain):
        verdict.problems.append(
            "depth does not explain how pictures change when the camera walks: depth and the path in pose are probably "
            "not in the same unit (both are metres, not millimetres), or depth is not measured along the view axis"
        )


def draw_pairs(episodes: list[Episode], rng: np.random.Generator) -> list[Pair]:
    """Up to MAX_PAIRS pairs of frames, GAPS steps apart, between which the camera moved, and turned by MAX_TURN at
    most: evenly from the episodes."""
    found: list[Pair] = []
    for index in rng.permutation(len(episodes))[:MAX_PAIRS]:
        suiting = [pair for gap in GAPS for pair in _moving_pairs(episodes[index], gap)]
        chosen = rng.permutation(len(suiting))[: max(MAX_PAIRS // len(episodes), 1)]
        found += [suiting[number] for number in chosen]
    return found[:MAX_PAIRS]


def _moving_pairs(episode: Episode, gap: int) -> list[Pair]:
    assert episode.pose is not None
    before, after = episode.pose[:-gap], episode.pose[gap:]
    path = np.linalg.norm(after[:, :3, 3] - before[:, :3, 3], axis=1)
    turn = np.arccos(np.clip((np.einsum("tij,tij->t", before[:, :3, :3], after[:, :3, :3]) - 1) / 2, -1, 1))
    moves = (turn <= MAX_TURN) & ((path > MIN_MOTION) | (turn > MIN_TURN))
    return [Pair(episode, t, t + gap, float(path[t])) for t in np.flatnonzero(moves).tolist()]


@torch.inference_mode()
def warp_pairs(pairs: list[Pair], change: Callable[[Tensor], Tensor] = torch.clone, batch: int = 16) -> Warped:
    """How near the first frames of pairs come to the second ones, see Warped. change: of the poses [P, 4, 4]."""
    parts = [_warp(pairs[first : first + batch], change) for first in range(0, len(pairs), batch)]
    return Warped(*(torch.cat(rows).double().numpy() for rows in zip(*parts, strict=True)))


def _warp(pairs: list[Pair], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    source, target = (_rgbd(pairs, name) for name in ("source", "target"))
    before, after = (change(_stack(pairs, "pose", name)) for name in ("source", "target"))
    intrinsics = torch.stack([torch.as_tensor(np.array(pair.episode.intrinsics)).float() for pair in pairs])
    on_the_spot = before.clone()
    on_the_spot[:, :3, 3] = after[:, :3, 3]
    valid = torch.ones(len(pairs), 1, dtype=torch.bool)
    views = [reproject(source[:, None], pose[:, None], valid, after, intrinsics) for pose in (on_the_spot, before)]
    mask = views[0].mask * views[1].mask
    shown = (source, views[0].rgbd, views[1].rgbd)
    errors = [((rgbd - target)[:, :3].square() * mask).mean((1, 2, 3)) / mask.mean((1, 2, 3)) / 4 for rgbd in shown]
    covered = mask.mean((1, 2, 3)) >= MIN_COVERED
    still, turned, moved = (torch.where(covered, -10 * error.clamp_min(1e-6).log10(), torch.nan) for error in errors)
    return still, turned, moved


def at(rows: np.ndarray | None, frame: int) -> np.ndarray:
    """A row of an optional field that was checked to be there."""
    assert rows is not None
    return np.array(rows[frame])


def _stack(pairs: list[Pair], name: str, frame: str) -> Tensor:
    return torch.from_numpy(np.stack([at(getattr(p.episode, name), getattr(p, frame)) for p in pairs])).float()


def _rgbd(pairs: list[Pair], frame: str) -> Tensor:
    return to_rgbd(_stack(pairs, "frames", frame).to(torch.uint8), _stack(pairs, "depth", frame))


def _mean(values: np.ndarray) -> float:
    """Mean of those that are known, NaN where less than half are."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if 2 * len(known) >= len(values) > 0 else math.nan


def _gain(warped: Warped) -> float:
    return float(np.nan_to_num(_mean(warped.moved - warped.still)))


def _is_gain(values: np.ndarray) -> bool:
    """Whether the mean is large enough, and no accident; not where less than half are known."""
    mean, known = _mean(values), values[np.isfinite(values)]
    return not math.isnan(mean) and bool(mean >= max(MIN_GAIN, MIN_ERRORS * known.std() / math.sqrt(len(known))))


def add_parser(subparsers: Any) -> None:
    """Add the `check` command."""
    description = (
        "Tell whether a dataset is fit to be trained on: a table, what is wrong, and one line of JSON. The exit code "
        "is 1 when something is missing that every stage needs, or depth, pose and intrinsics do not explain pictures."
    )
    parser: argparse.ArgumentParser = subparsers.add_parser("check", description=description)
    parser.add_argument("data", help="folder or Minari id of the dataset")
    parser.add_argument("--seed", type=int, default=0, help="seed of the frames that are compared (default 0)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    verdict = check_dataset(EpisodeReader(args.data), args.seed)
    numbers = {name: round(value, 3) if math.isfinite(value) else None for name, value in verdict.metrics.items()}
    lines = [f"{name:>14}  {'-' if value is None else value:>10}" for name, value in numbers.items()]
    lines += [f"{name:>14}  {'yes' if there else 'no':>10}  {SERVES[name]}" for name, there in verdict.fields.items()]
    lines += ["", *(f"wrong: {text}" for text in verdict.problems), *(f"look: {text}" for text in verdict.warnings)]
    print("\n".join(lines))
    report = {"name": "check", "data": Path(args.data).name, "metrics": numbers, "fields": verdict.fields}
    print(json.dumps(report | {"problems": verdict.problems, "warnings": verdict.warnings}))
    return 1 if verdict.problems else 0
