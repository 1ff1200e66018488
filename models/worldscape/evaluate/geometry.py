"""Is the dream one place? Its depth, its frames warped onto each other, and new views of it from Gaussians.

The dream moves as the simulator did, so both stand in the same place at every step and the simulator's geometry can
judge: what shows the same surface in two simulated frames must look the same in the two dreamed ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.camera import pose_distance
from worldscape.conditioning.reproject import encode_depth, reproject, same_surface
from worldscape.engine_frames import Start
from worldscape.evaluate import metrics as scores
from worldscape.evaluate.baselines import fill_holes, warp_start
from worldscape.evaluate.dream import Dream, Engine, dream_episodes, make_start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.pictures import save_grid
from worldscape.evaluate.report import Table
from worldscape.splats.aggregator import Aggregator
from worldscape.splats.gaussians import Gaussians
from worldscape.splats.reconstruct import aggregate
from worldscape.splats.render import render
from worldscape.splats.unproject import unproject
from worldscape.world import WorldModel

MAX_DEPTH = 50.0  # metres; what is farther is sky
PAIRS = 8  # pairs of frames compared in each episode, at each gap
CLIP = 7  # consecutive frames of which every other one is held out
SHARP = 0.25  # pixels; finer than for a flight through the place, as views are drawn at the frames' own size
SAME_CAMERA = 0.01  # radians; a view this near to a given frame is no new view (the walker was stopped)
SOLID = 0.5  # a pixel that Gaussians cover less is a hole, filled from around it

Maker = Callable[[Tensor, Tensor, Tensor], Gaussians]
"""Frames rgbd [B, T, 4, h, h] of a clip, poses [B, T, 4, 4], intrinsics [B, 4] -> Gaussians of what they show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryConfig:
    """Steps after which depth is compared, gaps in steps between the frames that are warped onto each other, and how
    many real frames each dream begins with.
    """

    horizons: tuple[int, ...] = (1, 4, 16, 64)
    gaps: tuple[int, ...] = (1, 4, 16)
    context: int = 1

    def __post_init__(self) -> None:
        for name in ("horizons", "gaps"):
            values = getattr(self, name)
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise ValueError(f"{name} {values} must be increasing numbers of steps, 1 or more")
        if self.context < 1:
            raise ValueError(f"context is {self.context}; a dream begins with at least 1 real frame")

    @property
    def num_steps(self) -> int:
        """Steps of each dream: enough for every horizon, for one pair at every gap and for one clip."""
        return max(*self.horizons, 1 + max(self.gaps), CLIP)

    @property
    def num_walked(self) -> int:
        """Steps of each episode: those between the frames that its dream begins with, and those of the dream."""
        return self.context - 1 + self.num_steps


class Geometry(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print and the dream they were measured on."""

    metrics: dict[str, float]
    tables: list[Table]
    dream: Dream


class Views(NamedTuple):
    """Held-out views of clips, pictures [B, V, 3, h, w] in [0, 1]: as they are, drawn from Gaussians of the other
    frames, and the other frame whose camera is nearest. is_new bool [B, V]: no other frame was taken from there.
    """

    true: Tensor
    drawn: Tensor
    nearest: Tensor
    is_new: Tensor


def choose_maker(model: WorldModel, aggregator: Aggregator | None) -> Maker:
    """The trained aggregator over the model's features, or, without one, plain unprojection."""
    if aggregator is None:
        return lambda *frames: unproject(*frames, scale=SHARP)
    return lambda *frames: aggregate(aggregator, model.codec, model.transformer, *frames)


@torch.inference_mode()
def judge_geometry(
    engine: Engine, episodes: EpisodeBatch, make: Maker, config: GeometryConfig, *, redraws: bool = True
) -> Geometry:
    """Dream the episodes along the simulator's own motion and measure depth, consistency and new views; and, where it
    `redraws`, once more with other noise, for what two dreams of a place have in common."""
    walk = partial(
        dream_episodes, engine, episodes, num_steps=config.num_steps, context=config.context, is_realised=True
    )
    dream, redrawn = walk(), walk(draw=1) if redraws else None
    start, episodes = make_start(episodes, config.context), dreamed_part(episodes, config)
    found: dict[str, float] = {}
    for horizon in config.horizons:
        measured = measure_frames(dream, redrawn, episodes, horizon, start)
        found |= {f"{name}_h{horizon}": value for name, value in measured.items()}
    for gap in config.gaps:
        found |= measure_consistency(dream, episodes, gap)
    for name, frames, depth in _sequences(dream, episodes):
        views = draw_held_out(frames, depth, episodes, make)
        found |= score_views(name, views)
    return Geometry(found, [tabulate(found, config)], dream)


def dreamed_part(episodes: EpisodeBatch, config: GeometryConfig) -> EpisodeBatch:
    """What was dreamed of the episodes: from the last real frame that the dreams begin with, `num_steps` steps."""
    return episodes.cut(config.context - 1, config.num_steps)


def measure_frames(
    dream: Dream, redrawn: Dream | None, episodes: EpisodeBatch, horizon: int, start: Start
) -> dict[str, float]:
    """Frames and depth after `horizon` steps against the simulator's, and against those of the same dreams redrawn,
    if they were; depth also apart where the start frames truly show what is there."""
    covered = warp_start(start, torch.from_numpy(episodes.pose[:, horizon])).covered
    truths = {"": (episodes.frames[:, horizon], episodes.depth[:, horizon])}
    if redrawn is not None:
        truths["redrawn_"] = redrawn.frames[:, horizon - 1], redrawn.depth[:, horizon - 1]
    shown = scores.to_unit(torch.from_numpy(dream.frames[:, horizon - 1]))
    depth = torch.from_numpy(dream.depth[:, horizon - 1]).float()
    found: dict[str, float] = {}
    for prefix, (frames, distances) in truths.items():
        target = torch.from_numpy(distances).float()
        errors = {
            "abs_rel": scores.depth_error(depth, target, max_depth=MAX_DEPTH),
            "abs_rel_covered": scores.depth_error(depth, target, max_depth=MAX_DEPTH, mask=covered),
            "abs_rel_uncovered": scores.depth_error(depth, target, max_depth=MAX_DEPTH, mask=~covered),
            "delta": scores.depth_accuracy(depth, target, max_depth=MAX_DEPTH),
        }
        found[f"{prefix}psnr"] = _mean(scores.psnr(shown, scores.to_unit(torch.from_numpy(frames))))
        found |= {f"{prefix}depth_{name}": _mean(values) for name, values in errors.items()}
        found[f"{prefix}depth_abs_rel_median"] = errors["abs_rel"].nanmedian().item()
    found["psnr_realised"] = found.pop("psnr")
    return found


def measure_consistency(dream: Dream, episodes: EpisodeBatch, gap: int) -> dict[str, float]:
    """Frames moved to the camera `gap` steps later, where both show the same surface: PSNR there.

    By the simulator's geometry, in dream and simulator: whoever dreams a place otherwise than it is pays for that, too.
    And by the dream's own depth, whatever it dreams: `own`, with how often two frames' depth agrees.
    """
    (_, frames, depth), (_, true_frames, true_depth) = _sequences(dream, episodes)
    ways = {"dream": (frames, true_depth), "simulator": (true_frames, true_depth), "own": (frames, depth)}
    num_steps = frames.shape[1]
    first = np.unique(np.linspace(1, num_steps - gap, min(PAIRS, num_steps - gap)).astype(int))
    found: dict[str, float] = {}
    for name, (pictures, distances) in ways.items():
        psnr, share, agree = [], [], []
        for step in (first - 1).tolist():
            later = scores.to_unit(torch.from_numpy(pictures[:, step + gap]))
            moved = warp(pictures[:, step], distances[:, step], distances[:, step + gap], episodes, step + 1, gap)
            psnr.append(scores.psnr(moved.rgb, later, moved.is_same))
            share.append(moved.is_same.float().mean((1, 2)))
            agree.append(moved.is_same.sum((1, 2)) / moved.is_shown.sum((1, 2)))
        found[f"warp_psnr_{name}_g{gap}"] = _mean(torch.cat(psnr))
        if name != "dream":
            found[f"warp_share_{name}_g{gap}"] = _mean(torch.cat(share))
            found[f"warp_agree_{name}_g{gap}"] = _mean(torch.cat(agree))
    return found


class Warped(NamedTuple):
    """Frames moved to another camera: rgb [N, 3, h, w] in [0, 1]; which pixels they show there, nearer than MAX_DEPTH,
    and which of these as the surface that is seen there, bool [N, h, w].
    """

    rgb: Tensor
    is_shown: Tensor
    is_same: Tensor


def warp(
    frame: np.ndarray, depth: np.ndarray, later: np.ndarray, episodes: EpisodeBatch, step: int, gap: int
) -> Warped:
    """uint8 frames [N, h, w, 3] with depth [N, h, w] taken at `step`, moved to the camera `gap` steps later, from where
    the depth is `later` [N, h, w]."""
    poses, intrinsics = torch.from_numpy(episodes.pose), torch.from_numpy(episodes.intrinsics)
    rgbd = frame_to_rgbd(torch.from_numpy(frame), encode_depth(torch.from_numpy(depth).float()))
    valid = torch.ones(len(frame), 1, dtype=torch.bool)
    anchor = reproject(rgbd[:, None], poses[:, step, None], valid, poses[:, step + gap], intrinsics)
    there = torch.from_numpy(later).float()
    is_shown = (anchor.mask[:, 0] > 0.5) & (there < MAX_DEPTH)
    return Warped(anchor.rgbd[:, :3] / 2 + 0.5, is_shown, is_shown & same_surface(anchor, there))


def draw_held_out(frames: np.ndarray, depth: np.ndarray, episodes: EpisodeBatch, make: Maker) -> Views:
    """The last CLIP frames [N, S, h, w, 3] and depth [N, S, h, w] after each step: Gaussians of every other frame,
    drawn from the cameras between."""
    shown = torch.from_numpy(frames[:, -CLIP:])
    inverse = encode_depth(torch.from_numpy(depth[:, -CLIP:]).float())
    rgbd = torch.stack([frame_to_rgbd(shown[:, t], inverse[:, t]) for t in range(CLIP)], 1)
    poses = torch.from_numpy(episodes.pose[:, 1 : frames.shape[1] + 1][:, -CLIP:])
    intrinsics = torch.from_numpy(episodes.intrinsics)
    drawn = []
    for row in range(len(rgbd)):  # one place at a time: a hundred thousand Gaussians are enough
        one = slice(row, row + 1)
        scene = make(rgbd[one, ::2], poses[one, ::2], intrinsics[one])
        cameras = poses[one, 1::2]
        picture = render(scene, cameras, repeat(intrinsics[one], "b k -> b v k", v=cameras.shape[1]), rgbd.shape[-1])
        colour = picture.rgb / picture.alpha.clamp_min(1e-3)[:, :, None]
        mask = rearrange((picture.alpha > SOLID).to(colour.dtype), "b v h w -> (b v) 1 h w")
        colour = rearrange(colour.clamp(0, 1), "b v k h w -> (b v) k h w") * mask
        drawn.append(fill_holes(colour, mask, torch.full_like(colour[:, :, 0, 0], 0.5)))
    true = rgbd[:, :, :3] / 2 + 0.5
    distance, nearest = pose_distance(poses[:, 1::2], poses[:, ::2]).min(-1)
    chosen = true[:, ::2][torch.arange(len(true))[:, None], nearest]
    return Views(true[:, 1::2], torch.stack(drawn), chosen, distance > SAME_CAMERA)


def score_views(name: str, views: Views) -> dict[str, float]:
    """PSNR of drawn new views, of the nearest frames, and what the Gaussians gain."""
    drawn, nearest = (_mean(scores.psnr(picture, views.true)[views.is_new]) for picture in (views.drawn, views.nearest))
    return {
        f"novel_psnr_{name}": drawn,
        f"nearest_psnr_{name}": nearest,
        f"novel_gain_{name}": drawn - nearest,
    }


def tabulate(found: dict[str, float], config: GeometryConfig) -> Table:
    """Frames and depth by horizon, also of dreams drawn again, consistency by gap, new views."""
    kinds = {"PSNR": "psnr", "depth abs-rel": "depth_abs_rel"}
    kinds |= {f"depth abs-rel {kind}": f"depth_abs_rel_{kind}" for kind in ("covered", "uncovered", "median")}
    kinds |= {"depth delta < 1.25": "depth_delta"}
    perfect = {"psnr": math.inf, "depth_delta": 1.0}
    rows: list[list[str | float]] = []
    for title, kind in kinds.items():
        own = "psnr_realised" if kind == "psnr" else kind
        for at in (f"_h{horizon}" for horizon in config.horizons):
            cells = found[own + at], perfect.get(kind, 0.0), found.get(f"redrawn_{kind}{at}", "")
            rows.append([f"{title}, step {at[2:]}", *cells])
    for gap in config.gaps:
        simulated = found[f"warp_psnr_simulator_g{gap}"]
        rows.append([f"warp PSNR, gap {gap}", found[f"warp_psnr_dream_g{gap}"], simulated, ""])
        rows.append([f"warp PSNR by its own depth, gap {gap}", found[f"warp_psnr_own_g{gap}"], simulated, ""])
        agree = (found[f"warp_agree_{name}_g{gap}"] for name in ("own", "simulator"))
        rows.append([f"depth agrees, gap {gap}", *agree, ""])
    for name in ("novel_psnr", "nearest_psnr"):
        rows.append([name.replace("_", " "), found[f"{name}_dream"], found[f"{name}_simulator"], ""])
    return Table(title="geometry", columns=["score", "dream", "simulator", "drawn again"], rows=rows)


def save_pictures(
    out: Path, dream: Dream, episodes: EpisodeBatch, make: Maker, config: GeometryConfig, *, num_shown: int = 4
) -> list[Path]:
    """Write a grid of frames and inverse depth at the horizons, and one of held-out views; returns the paths."""
    episodes = dreamed_part(episodes, config)
    chosen = [horizon - 1 for horizon in config.horizons]
    frames: dict[str, list[np.ndarray]] = {}
    views: dict[str, list[np.ndarray]] = {}
    for row in range(min(num_shown, len(episodes))):
        for name, pictures, depth in _sequences(dream, episodes):
            frames[f"{name} {row}"] = [pictures[row, step] for step in chosen]
            frames[f"{name} {row} depth"] = [_shade(depth[row, step]) for step in chosen]
            one = episodes.rows(slice(row, row + 1))
            held_out = draw_held_out(pictures[row : row + 1], depth[row : row + 1], one, make)
            for kind in ("true", "drawn", "nearest"):
                picture = rearrange(getattr(held_out, kind)[0], "v k h w -> v h w k")
                views[f"{name} {row} {kind}"] = list((255 * picture).round().to(torch.uint8).numpy())
    paths = [out / "geometry.png", out / "novel_views.png"]
    save_grid(paths[0], frames, [f"step {step + 1}" for step in chosen], scale=2)
    save_grid(paths[1], views, [f"view {view + 1}" for view in range(CLIP // 2)], scale=2)
    return paths


def _sequences(dream: Dream, episodes: EpisodeBatch) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Frames and depth after each step, of dream and simulator."""
    steps = slice(1, dream.frames.shape[1] + 1)
    return [("dream", dream.frames, dream.depth), ("simulator", episodes.frames[:, steps], episodes.depth[:, steps])]


def _shade(depth: np.ndarray) -> np.ndarray:
    """Depth [h, w] -> grey uint8 [h, w, 3], near is bright."""
    return repeat((255 / (1 + depth.astype(np.float32))).astype(np.uint8), "h w -> h w c", c=3)


def _mean(values: Tensor) -> float:
    """Mean of the values that are not NaN; NaN where all are."""
    numbers = values[~torch.isnan(values)]
    return numbers.mean().item() if len(numbers) else math.nan
