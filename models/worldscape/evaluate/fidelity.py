"""Dream against simulator: same start, same controls, closed loop; beside copy-the-start and warp-only.

Pixels count as covered when the start frames, reprojected with the simulator's own depth and poses, show them: that
mask does not depend on what is being scored, so geometry (covered) and imagination (uncovered) are told apart.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.data.episode import MAX_DEPTH
from worldscape.engine_frames import Start
from worldscape.evaluate import metrics as scores
from worldscape.evaluate.dream import Dream, Engine, dream_episodes, make_start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.pictures import save_film, save_grid
from worldscape.evaluate.report import Table

METHODS = ("model", "warp", "warp_true", "copy")


class Warped(NamedTuple):
    """Start frames seen from another pose: frame uint8 [B, h, w, 3] with holes filled, covered bool [B, h, w]."""

    frame: Tensor
    covered: Tensor


Warp = Callable[[Start, Tensor], Warped]
"""Start of B rows, poses [B, 4, 4] -> Warped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityConfig:
    """Horizons in steps after the start, real frames that open a dream, and the horizon of the shuffled-action test."""

    horizons: tuple[int, ...] = (1, 4, 16, 64)
    context: int = 1
    shuffle_horizon: int = 4

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(
                f"horizons {self.horizons} must be increasing step counts of at least 1, such as 1,4,16,64"
            )
        if self.context < 1 or self.shuffle_horizon < 1:
            raise ValueError(f"context {self.context} and shuffle_horizon {self.shuffle_horizon} must be at least 1")

    @property
    def num_dreamed(self) -> int:
        """Steps that each dream takes."""
        return max(*self.horizons, self.shuffle_horizon)

    @property
    def num_steps(self) -> int:
        """Steps that each judged episode needs."""
        return self.context - 1 + self.num_dreamed


class Fidelity(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print, the dream they were measured on, and by horizon the PSNR of
    each episode's frame, dB float64 [N]."""

    metrics: dict[str, float]
    tables: list[Table]
    dream: Dream
    psnr: dict[int, np.ndarray]


class Scored(NamedTuple):
    """All metrics of one horizon, their names ending in _h<horizon>, and the dream's PSNR in each episode, dB [N]."""

    metrics: dict[str, float]
    psnr: np.ndarray


def judge_fidelity(
    engine: Engine,
    episodes: EpisodeBatch,
    warp: Warp,
    config: FidelityConfig,
) -> Fidelity:
    """Dream every episode and score the dream against it. Raises ValueError for episodes shorter than the horizons."""
    if episodes.num_steps < config.num_steps:
        raise ValueError(f"episodes have {episodes.num_steps} steps, the horizons need {config.num_steps}; walk longer")
    dream = dream_episodes(engine, episodes, num_steps=config.num_dreamed, context=config.context)
    scored = {horizon: score_horizon(dream, episodes, warp, config.context, horizon) for horizon in config.horizons}
    found = {name: value for at_horizon in scored.values() for name, value in at_horizon.metrics.items()}
    found["action_gain_db"] = measure_action_gain(engine, episodes, dream, config)
    psnr = {horizon: at_horizon.psnr for horizon, at_horizon in scored.items()}
    return Fidelity(found, tabulate(found, config.horizons), dream, psnr)


def compare_psnr(first: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> dict[str, float]:
    """By how much the PSNR of dreams `other` exceeds that of `first` on the same episodes (Fidelity.psnr), dB:
    psnr_model_gain_hH, and psnr_model_gain_error_hH, the standard error of the mean difference in pairs."""
    found: dict[str, float] = {}
    for horizon, before in first.items():
        gain = other[horizon] - before
        found[f"psnr_model_gain_h{horizon}"] = float(gain.mean())
        found[f"psnr_model_gain_error_h{horizon}"] = scores.standard_error(gain)
    return found


def score_horizon(dream: Dream, episodes: EpisodeBatch, warp: Warp, context: int, horizon: int) -> Scored:
    """The dreams after `horizon` steps, beside the baselines."""
    now = context - 1 + horizon
    target = torch.from_numpy(episodes.frames[:, now])
    shown, covered = compare_methods(dream, episodes, warp, context, horizon)
    found = {"covered_share": covered.float().mean().item()}
    for method, frames in shown.items():
        found |= {f"{name}_{method}": value for name, value in score_frames(frames, target, covered).items()}
    psnr = {name: _psnr(shown[name], target) for name in ("model", "copy", "warp")}
    found["psnr_model_error"] = scores.standard_error(psnr["model"])
    for baseline in ("copy", "warp"):
        found[f"psnr_gain_{baseline}"] = found["psnr_model"] - found[f"psnr_{baseline}"]
        found[f"psnr_gain_{baseline}_error"] = scores.standard_error(psnr["model"] - psnr[baseline])
    found |= score_geometry(dream, episodes, context, horizon)
    sharpness = [scores.gradient_energy(scores.to_unit(frames)).mean().item() for frames in (shown["model"], target)]
    found["sharpness_ratio"] = sharpness[0] / sharpness[1] if sharpness[1] else math.nan
    return Scored({f"{name}_h{horizon}": value for name, value in found.items()}, psnr["model"])


def compare_methods(
    dream: Dream, episodes: EpisodeBatch, warp: Warp, context: int, horizon: int
) -> tuple[dict[str, Tensor], Tensor]:
    """What each of METHODS shows after `horizon` steps, uint8 [N, h, w, 3] each, and which pixels are covered."""
    start = make_start(episodes, context)
    dreamed = warp(start, torch.from_numpy(dream.pose[:, horizon - 1]))
    true = warp(start, torch.from_numpy(episodes.pose[:, context - 1 + horizon]))
    shown = {
        "model": torch.from_numpy(dream.frames[:, horizon - 1]),
        "warp": dreamed.frame,
        "warp_true": true.frame,
        "copy": torch.from_numpy(episodes.frames[:, context - 1]),
    }
    return shown, true.covered


def score_frames(frames: Tensor, target: Tensor, covered: Tensor) -> dict[str, float]:
    """uint8 frames and target [N, h, w, 3], covered bool [N, h, w] -> PSNR (dB) and SSIM, all / covered / uncovered.

    `psnr` is the mean of the frames' PSNRs; `psnr_pooled` the PSNR of the mean squared error over all frames, which a
    few very good frames (a step that moved nothing) cannot lift. `uncovered_error_share` is the share of that error
    which lies in uncovered pixels, NaN for perfect frames.
    """
    image, truth = scores.to_unit(frames), scores.to_unit(target)
    error = scores.squared_error(image, truth)
    found = {
        "psnr": scores.error_to_psnr(error).mean(),
        "psnr_pooled": scores.error_to_psnr(error.mean()),
        "ssim": scores.ssim(image, truth).mean(),
    }
    each = (image - truth).square().sum(1)
    found["uncovered_error_share"] = (each * ~covered).sum() / each.sum()
    for name, mask in (("covered", covered), ("uncovered", ~covered)):
        found[f"psnr_{name}"] = scores.psnr(image, truth, mask).nanmean()
        found[f"ssim_{name}"] = scores.ssim(image, truth, mask).nanmean()
    return {name: value.item() for name, value in found.items()}


def score_geometry(dream: Dream, episodes: EpisodeBatch, context: int, horizon: int) -> dict[str, float]:
    """Depth, pose and collisions of the dream after (collisions: during) the first `horizon` steps."""
    now, steps = context - 1 + horizon, slice(context - 1, context - 1 + horizon)
    depth = torch.from_numpy(dream.depth[:, horizon - 1]).float()
    pose, truth = dream.pose[:, horizon - 1], episodes.pose[:, now]
    turned = np.einsum("nji,njk->nik", pose[:, :3, :3], truth[:, :3, :3])
    angle = np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))
    return {
        "depth_abs_rel": scores.depth_error(depth, torch.from_numpy(episodes.depth[:, now]), max_depth=MAX_DEPTH)
        .nanmean()
        .item(),
        "position_error": float(np.linalg.norm(pose[:, :3, 3] - truth[:, :3, 3], axis=1).mean()),
        "rotation_error": float(np.degrees(angle).mean()),
        **compare_collisions(episodes.controls[:, steps], dream.realised[:, :horizon], episodes.realised[:, steps]),
    }


def compare_collisions(controls: np.ndarray, dreamed: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Commanded, dreamed and true motion [..., 6] -> agreement on which walking steps were refused, 0 to 1.

    A step is refused when it got less than half the commanded distance. `collision_recall` is the share of true
    refusals that the dream has too, `collision_precision` the share of the dream's that are true; NaN without any.
    """
    asked = np.linalg.norm(controls[..., :3], axis=-1)
    walking = asked > 1e-6
    refused = [(np.linalg.norm(motion[..., :3], axis=-1) < 0.5 * asked)[walking] for motion in (dreamed, true)]
    both = float((refused[0] & refused[1]).sum())
    return {
        "collision_share": _ratio(float(refused[1].sum()), walking.sum()),
        "collision_agreement": _ratio(float((refused[0] == refused[1]).sum()), walking.sum()),
        "collision_recall": _ratio(both, refused[1].sum()),
        "collision_precision": _ratio(both, refused[0].sum()),
    }


def measure_action_gain(engine: Engine, episodes: EpisodeBatch, dream: Dream, config: FidelityConfig) -> float:
    """PSNR with the episode's own controls minus with those of the next episode, at the shuffle horizon, in dB.

    NaN for a single episode, which has no other to borrow from.
    """
    if len(episodes) < 2:
        return math.nan
    horizon, first = config.shuffle_horizon, config.context - 1
    borrowed = np.roll(episodes.controls[:, first : first + horizon], 1, axis=0)
    hands = None
    if episodes.hands is not None:
        hands = np.roll(episodes.hands.actions[:, first : first + horizon], 1, axis=0)
    shuffled = dream_episodes(
        engine, episodes, num_steps=horizon, context=config.context, controls=borrowed, hands=hands
    )
    target = scores.to_unit(torch.from_numpy(episodes.frames[:, first + horizon]))
    own, other = (
        scores.psnr(scores.to_unit(torch.from_numpy(frames)), target).mean().item()
        for frames in (dream.frames[:, horizon - 1], shuffled.frames[:, horizon - 1])
    )
    return own - other


def tabulate(found: Mapping[str, float], horizons: tuple[int, ...]) -> list[Table]:
    """Metrics -> tables with a row per horizon, one for each score of METHODS and one for the geometry."""
    tables = []
    for name in ("psnr", "psnr_covered", "psnr_uncovered", "uncovered_error_share", "ssim"):
        rows = [[horizon, *[found[f"{name}_{method}_h{horizon}"] for method in METHODS]] for horizon in horizons]
        tables.append(Table(title=name, columns=["horizon", *METHODS], rows=rows))
    names = ("covered_share", "sharpness_ratio", "depth_abs_rel", "position_error", "rotation_error")
    names += ("collision_share", "collision_agreement", "collision_recall", "collision_precision")
    rows = [[horizon, *[found[f"{name}_h{horizon}"] for name in names]] for horizon in horizons]
    return [*tables, Table(title="geometry", columns=["horizon", *names], rows=rows)]


def save_pictures(
    out: Path, dream: Dream, episodes: EpisodeBatch, warp: Warp, config: FidelityConfig, *, num_shown: int = 8
) -> list[Path]:
    """Write a PNG grid for each of the first episodes and one film of all of them; returns the paths."""
    rows, context = slice(0, num_shown), config.context
    dream = Dream(
        frames=dream.frames[rows], depth=dream.depth[rows], pose=dream.pose[rows], realised=dream.realised[rows]
    )
    episodes = episodes.rows(rows)
    films = {name: [] for name in ("simulator", "model", "warp", "copy")}
    for step in range(config.num_dreamed):
        shown, _ = compare_methods(dream, episodes, warp, context, step + 1)
        films["simulator"].append(episodes.frames[:, context + step])
        for name in ("model", "warp", "copy"):
            films[name].append(shown[name].numpy())
    stacked = {name: np.stack(frames, axis=1) for name, frames in films.items()}
    paths = [out / f"fidelity_{index:02d}.png" for index in range(len(episodes))]
    chosen = [horizon - 1 for horizon in config.horizons]
    for index, path in enumerate(paths):
        grid = {name: list(frames[index, chosen]) for name, frames in stacked.items()}
        save_grid(path, grid, [f"step {horizon}" for horizon in config.horizons])
    film = out / "fidelity.mp4"
    save_film(film, {name: rearrange(frames, "n t h w c -> (n t) h w c") for name, frames in stacked.items()})
    return [*paths, film]


def _ratio(part: float, whole: float) -> float:
    return part / float(whole) if whole else math.nan


def _psnr(frames: Tensor, target: Tensor) -> np.ndarray:
    return scores.psnr(scores.to_unit(frames), scores.to_unit(target)).double().numpy()
