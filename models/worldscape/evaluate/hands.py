"""Does a dreamed hand do what the simulator's does under the same actions, and does the object answer as there?

The hand in pictures is found by a network that was trained on the simulator (hand_reader.py), in dream and simulator
alike; what it reads off the simulator itself stands beside every score (`_simulator`): no dream can be judged better.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.evaluate.dream import Dream, DreamedHands, Engine, dream_episodes
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.hand_lessons import RIGHT, HandLabels, hands_of, label_frames, project
from worldscape.evaluate.hand_reader import HandReader, HandReading, read_hands
from worldscape.evaluate.hand_truth import MOVED, hand_surface
from worldscape.evaluate.pictures import save_film, save_grid
from worldscape.evaluate.report import Table

EVENTS = ("moved", "lifted", "dropped")


@dataclass(frozen=True, kw_only=True, slots=True)
class HandsConfig:
    """horizons in steps after the start. tells_places: starts say where object and target are, as recordings do; if
    not, they are looked for in the first picture, as in a user's own.
    """

    horizons: tuple[int, ...] = (4, 16, 32)
    tells_places: bool = True

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons {self.horizons} must be increasing step counts of at least 1, such as 4,16,32")

    @property
    def num_steps(self) -> int:
        """Steps that each judged episode needs."""
        return self.horizons[-1]


class JudgedHands(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print and the dream they were measured on."""

    metrics: dict[str, float]
    tables: list[Table]
    dream: Dream


def judge_hands(engine: Engine, episodes: EpisodeBatch, reader: HandReader, config: HandsConfig) -> JudgedHands:
    """Dream every episode with its own hand actions and score hands, object and rewards against the simulator."""
    dream = dream_episodes(engine, episodes, num_steps=config.num_steps, tells_places=config.tells_places)
    if dream.hands is None:
        raise ValueError("this engine dreams no hands; make it with hands='right'.")
    first = episodes.frames[:, 0]
    readings = {
        "dream": read_hands(reader, first, dream.frames),
        "simulator": read_hands(reader, first, episodes.frames[:, 1 : config.num_steps + 1]),
    }
    found: dict[str, float] = {}
    for horizon in config.horizons:
        scores = score_hand(readings, dream, episodes, horizon) | score_object(readings, episodes, horizon)
        scores |= score_belief(dream.hands, episodes, horizon)
        found |= {f"{name}_h{horizon}": value for name, value in scores.items()}
    found |= score_rewards(dream.hands, episodes, config.num_steps)
    return JudgedHands(found, tabulate_hands(found, config.horizons), dream)


def score_hand(
    readings: dict[str, HandReading], dream: Dream, episodes: EpisodeBatch, horizon: int
) -> dict[str, float]:
    """Masks and keypoints after `horizon` steps."""
    assert dream.hands is not None
    labels = labels_at(episodes, horizon)
    masks, true = {name: reading.hand[:, horizon - 1] for name, reading in readings.items()}, labels.masks[:, 0]
    points = {name: reading.keypoints[:, horizon - 1] for name, reading in readings.items()}
    points["commanded"] = torch.from_numpy(project_dreamed(dream.hands, episodes, horizon))
    errors = {name: mean_distance(found, labels) for name, found in points.items()}
    return {
        "hand_surface_iou": mean_iou(*surfaces(dream, episodes, horizon)),
        "hand_iou": mean_iou(masks["dream"], masks["simulator"]),
        "hand_iou_true": mean_iou(masks["dream"], true),
        "hand_iou_simulator": mean_iou(masks["simulator"], true),
        "keypoint_error": errors["dream"],
        "keypoint_error_simulator": errors["simulator"],
        "keypoint_error_commanded": errors["commanded"],
    }


def surfaces(dream: Dream, episodes: EpisodeBatch, horizon: int) -> tuple[Tensor, Tensor]:
    """Surfaces near the hand's bones after `horizon` steps (hand_surface), by the dream's own depth and the bones that
    it was told, and by the simulator's: bool [N, h, w] each. No network is asked."""
    assert dream.hands is not None
    intrinsics, truth = torch.from_numpy(episodes.intrinsics), hands_of(episodes)
    seen = (
        (dream.depth[:, horizon - 1], dream.pose[:, horizon - 1], dream.hands.keypoints[:, horizon - 1, RIGHT]),
        (episodes.depth[:, horizon], episodes.pose[:, horizon], truth.keypoints[:, horizon, RIGHT]),
    )
    ours, theirs = ((torch.from_numpy(part).float() for part in parts) for parts in seen)
    (depth, pose, points), (true_depth, true_pose, true_points) = ours, theirs
    return hand_surface(depth, pose, intrinsics, points), hand_surface(true_depth, true_pose, intrinsics, true_points)


def score_object(readings: dict[str, HandReading], episodes: EpisodeBatch, horizon: int) -> dict[str, float]:
    """What became of the object in the first `horizon` steps: moved at the end, lifted at any time, dropped again."""
    truth = hands_of(episodes)
    true = find_events(truth.moved()[:, 1 : horizon + 1], truth.lifted[:, 1 : horizon + 1])
    found: dict[str, float] = {"object_moved_share": float(true["moved"].mean())}
    for source, reading in readings.items():
        moved, lifted = ((part[:, :horizon] > 0).numpy() for part in (reading.moved, reading.lifted))
        seen, ending = find_events(moved, lifted), "_simulator" if source == "simulator" else ""
        for event in EVENTS:
            for name, value in agreement(seen[event], true[event]).items():
                found[f"object_{event}_{name}{ending}"] = value
    return found


def score_belief(hands: DreamedHands, episodes: EpisodeBatch, horizon: int) -> dict[str, float]:
    """Where the dream itself takes the object to be after `horizon` steps, which is what its rewards are made of, and
    whether hands have moved it. No picture is read."""
    truth = hands_of(episodes)
    error = np.linalg.norm(hands.object[:, horizon - 1] - truth.object[:, horizon], axis=-1)
    moved = agreement(np.linalg.norm(hands.moved[:, horizon - 1], axis=-1) > MOVED, truth.moved()[:, horizon])
    return {"object_place_error": float(np.median(error)), **{f"object_told_{k}": v for k, v in moved.items()}}


def find_events(moved: np.ndarray, lifted: np.ndarray) -> dict[str, np.ndarray]:
    """Flags of each step, bool [N, S] -> whether each of EVENTS happened, bool [N]."""
    was_lifted: np.ndarray = np.any(lifted, axis=1)
    return {"moved": moved[:, -1], "lifted": was_lifted, "dropped": was_lifted & ~lifted[:, -1]}


def score_rewards(hands: DreamedHands, episodes: EpisodeBatch, num_steps: int) -> dict[str, float]:
    """Learned reward and success of each episode's own task against the simulator's, over all steps."""
    truth, rows = hands_of(episodes), np.arange(len(episodes))
    reward, success = (part[rows, :, truth.task] for part in (hands.reward, hands.success))
    says, succeeds = np.asarray((success > 0.5).any(axis=1)), np.asarray(episodes.success[:, :num_steps].any(axis=1))
    reached = agreement(says, succeeds)
    true = truth.reward[:, :num_steps]
    return {
        "reward_correlation": correlation(reward, true),
        "reward_error": float(np.abs(reward - true).mean()),
        "success_share": float(succeeds.mean()),
        **{f"success_{name}": value for name, value in reached.items()},
    }


def judge_hand_motion(engine: Engine, episodes: EpisodeBatch, reader: HandReader) -> JudgedHands:
    """Do actions move the hand in the picture as in the simulator? Its motion from frame to frame, read off both.

    `hand_motion_r2`: share of the variance of the keypoints' true motion (pixels a step) that the reading explains.
    """
    dream = dream_episodes(engine, episodes, num_steps=episodes.num_steps)
    first, truth = episodes.frames[:, 0], torch.from_numpy(hands_of(episodes).pixels[:, :, RIGHT])
    inside = ((truth >= 0) & (truth < first.shape[1])).all(-1)
    counts, motion = inside[:, 1:] & inside[:, :-1], truth.diff(dim=1)
    found: dict[str, float] = {}
    for name, frames in (("dream", dream.frames), ("simulator", episodes.frames[:, 1:])):
        seen = read_hands(reader, first, np.concatenate([first[:, None], frames], axis=1)).keypoints.diff(dim=1)
        error = (seen - motion)[counts].square().sum(-1)
        found[f"hand_motion_r2_{name}"] = 1 - _ratio(float(error.sum()), float(motion[counts].square().sum()))
        found[f"hand_motion_error_{name}"] = error.sqrt().mean().item() if len(error) else math.nan
    found["hand_motion_r2_ratio"] = _ratio(found["hand_motion_r2_dream"], found["hand_motion_r2_simulator"])
    found["num_pairs"] = float(motion.shape[0] * motion.shape[1])
    names = ("hand_motion_r2", "hand_motion_error")
    rows = [[name, found[f"{name}_dream"], found[f"{name}_simulator"]] for name in names]
    table = Table(title="motion read back", columns=["score", "dream", "simulator"], rows=rows)
    return JudgedHands(found, [table], dream)


def labels_at(episodes: EpisodeBatch, horizon: int) -> HandLabels:
    """The simulator's labels of the frames after `horizon` steps."""
    rows = np.arange(len(episodes))
    return label_frames(episodes, rows, np.zeros_like(rows), np.full_like(rows, horizon))


def project_dreamed(hands: DreamedHands, episodes: EpisodeBatch, horizon: int) -> np.ndarray:
    """The dream's right hand after `horizon` steps as the simulator's camera would see it: pixels [N, 21, 2]."""
    points = hands.keypoints[:, horizon - 1, RIGHT]
    return project(points, episodes.pose[:, horizon], episodes.intrinsics, episodes.frames.shape[2])


def mean_iou(one: Tensor, other: Tensor) -> float:
    """Masks bool [N, h, w] -> mean intersection over union, of the pairs of which the second shows anything."""
    either, both = (one | other).sum((1, 2)), (one & other).sum((1, 2))
    counts = other.any(2).any(1)
    return (both / either.clamp_min(1))[counts].mean().item() if bool(counts.any()) else math.nan


def mean_distance(points: Tensor, labels: HandLabels) -> float:
    """Mean distance in pixels of keypoints [N, 21, 2] from where they are, of those inside the picture."""
    distance = (points - labels.pixels).norm(dim=-1)[labels.inside]
    return distance.mean().item() if len(distance) else math.nan


def agreement(says: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Flags bool [N] -> precision, recall and F1; NaN where they are not defined."""
    both = float((says & true).sum())
    return {
        "precision": _ratio(both, float(says.sum())),
        "recall": _ratio(both, float(true.sum())),
        "f1": _ratio(2 * both, float(says.sum() + true.sum())),
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two arrays; NaN where either does not vary."""
    if min(one.std(), other.std()) < 1e-9:
        return math.nan
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def tabulate_hands(found: dict[str, float], horizons: tuple[int, ...]) -> list[Table]:
    """Metrics -> a table of the hand and one of the object, a row per horizon."""
    hand = (
        "hand_surface_iou",
        "hand_iou",
        "hand_iou_true",
        "hand_iou_simulator",
        "keypoint_error",
        "keypoint_error_simulator",
        "keypoint_error_commanded",
    )
    read = tuple(f"object_{event}_f1{ending}" for event in EVENTS for ending in ("", "_simulator"))
    thing = ("object_place_error", "object_told_f1", *read)
    tables = []
    for title, names in (("hand", hand), ("object", thing)):
        rows = [[horizon, *[found[f"{name}_h{horizon}"] for name in names]] for horizon in horizons]
        tables.append(Table(title=title, columns=["horizon", *names], rows=rows))
    return tables


def save_pictures(out: Path, dream: Dream, episodes: EpisodeBatch, *, num_shown: int = 8) -> list[Path]:
    """Write a grid of the last frames of the first episodes (PNG) and a film of them (MP4); returns the paths."""
    rows, steps = slice(0, num_shown), dream.frames.shape[1]
    shown = {"simulator": episodes.frames[rows, 1 : steps + 1], "dream": dream.frames[rows]}
    grid, film = out / "hands.png", out / "hands.mp4"
    titles = [f"episode {index}" for index in range(len(shown["dream"]))]
    save_grid(grid, {name: list(frames[:, -1]) for name, frames in shown.items()}, titles)
    save_film(film, {name: np.concatenate(list(frames)) for name, frames in shown.items()}, fps=10)
    return [grid, film]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
