"""Memory: does a place left behind look the same on return, to the dream itself and to the simulator?

Scripted walks leave places and come back. Each memory policy dreams the same walks with the motion that the simulator
let happen, so that both stand in the same place and only memory differs. A revisit is a step whose true pose was taken
before, too long ago for the local window.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange

from worldscape.config import MemoryConfig
from worldscape.data.explore import FORWARD, MIRROR, TURN_LEFT, TURN_RIGHT, TURNS_AROUND
from worldscape.data.rollout import Act, Policy
from worldscape.engine import WorldEngine
from worldscape.engines import open_engine
from worldscape.evaluate import metrics as scores
from worldscape.evaluate.dream import Dream, Engine, dream_episodes
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.pictures import save_film, save_grid
from worldscape.evaluate.report import Table
from worldscape.world import WorldModel

SAME_PLACE = 0.05  # metres between two poses that count as one
SAME_VIEW = 2.0  # degrees between two views that count as one
OUT = 8  # steps out before the way back

PATHS: dict[str, tuple[int, ...]] = {
    "spin": (TURN_RIGHT,) * (4 * TURNS_AROUND),
    "turn_and_back": (TURN_LEFT,) * TURNS_AROUND + (TURN_RIGHT,) * TURNS_AROUND,
    "walk_and_back": (FORWARD,) * OUT + (MIRROR[FORWARD],) * OUT,
    "loop": ((FORWARD,) * 3 + (TURN_RIGHT,) * (TURNS_AROUND // 2)) * 4,
}
"""Walks by name: two full turns; half a turn and back; out and back; a square."""


class Revisits(NamedTuple):
    """Places of P pairs: row of the episode, frame `now` that shows again what frame `before` showed; int64 [P]."""

    row: np.ndarray
    before: np.ndarray
    now: np.ndarray


class MemoryScores(NamedTuple):
    """Flat metrics (docs/metrics.md), the tables to print, and one dream of each path by policy."""

    metrics: dict[str, float]
    tables: list[Table]
    dreams: dict[str, dict[str, Dream]]


@cache
def follow(path: tuple[int, ...]) -> Policy:
    """The policy that takes the actions of a path, whatever it sees."""

    def policy(env: gym.Env, rng: np.random.Generator) -> Act:
        left = iter(path)
        return lambda observation, info: next(left)

    return policy


def with_policy(config: MemoryConfig, name: str, num_steps: int) -> MemoryConfig:
    """The config under another policy with as many frames of context; `full` keeps every frame of the dream.

    Raises ValueError for an unknown policy.
    """
    window = config.num_context - (0 if name == "local" else config.num_sink)
    if name in ("local", "sink+local"):
        return replace(config, policy=name, local_window=window, num_retrieved=0)
    size = config.num_keyframes if name == "maco" else max(num_steps + 1, config.num_keyframes)
    return replace(config, policy=name, num_keyframes=size)


def find_revisits(poses: np.ndarray, gap: int) -> Revisits:
    """True poses [N, T + 1, 4, 4] -> steps at which a pose recurs after at least `gap` steps, with its first time."""
    distance = np.linalg.norm(poses[:, :, None, :3, 3] - poses[:, None, :, :3, 3], axis=-1)
    alike = np.einsum("ntij,nsij->nts", poses[..., :3, :3], poses[..., :3, :3])
    angle = np.degrees(np.arccos(np.clip((alike - 1) / 2, -1, 1)))
    steps = np.arange(poses.shape[1])
    is_same = (distance < SAME_PLACE) & (angle < SAME_VIEW) & (steps[:, None] - steps >= gap)
    row, now = np.nonzero(is_same.any(2))
    return Revisits(row, is_same[row, now].argmax(1), now)


def judge_memory(
    model: WorldModel,
    walks: Mapping[str, EpisodeBatch],
    policies: tuple[str, ...],
    *,
    batch: int,
    **engine_options: Any,
) -> MemoryScores:
    """Dream every walk under every policy and score the revisits; metrics are named <score>_<path>_<policy>.
    engine_options: those of `open_engine`.

    Raises ValueError for a walk on which no place recurs, and for an unknown policy.
    """
    found: dict[str, float] = {}
    dreams: dict[str, dict[str, Dream]] = {path: {} for path in walks}
    for path, episodes in walks.items():
        revisits = find_revisits(episodes.pose, model.config.memory.num_context + 1)
        if not len(revisits.row):
            raise ValueError(f"on the walk {path!r} no place is seen again; walk longer")
        found[f"num_revisits_{path}"] = float(len(revisits.row))
        for policy in policies:
            memory = with_policy(model.config.memory, policy, episodes.num_steps)
            slots = min(batch, len(episodes))
            engine = open_engine(model, slots, memory=memory, **engine_options)
            begin = time.perf_counter()
            dream = dream_episodes(engine, episodes, num_steps=episodes.num_steps, is_realised=True)
            steps = -(-len(episodes) // engine.num_slots) * episodes.num_steps
            cost = {"step_ms": 1000 * (time.perf_counter() - begin) / steps, "mb_per_world": _megabytes(engine)}
            found |= {f"{name}_{path}_{policy}": value for name, value in cost.items()}
            scored = score_revisits(dream, episodes, revisits)
            found |= {f"{name}_{path}_{policy}": value for name, value in scored.items()}
            dreams[path][policy] = dream
            engine.close()
    return MemoryScores(found, tabulate(found, tuple(walks), policies), dreams)


def judge_revisits(engine: Engine, episodes: EpisodeBatch, config: MemoryConfig) -> dict[str, float]:
    """Dream a walk along the motion that took place and score what is seen again (score_revisits)."""
    dream = dream_episodes(engine, episodes, num_steps=episodes.num_steps, is_realised=True)
    return score_revisits(dream, episodes, find_revisits(episodes.pose, config.num_context + 1))


def score_revisits(dream: Dream, episodes: EpisodeBatch, revisits: Revisits) -> dict[str, float]:
    """Dreamed frames on return against the simulator's, and against what the dream showed there before (symmetry).

    `return_psnr` is of the returns to the start, the one place that was real.
    """
    frames = np.concatenate([episodes.frames[:, :1], dream.frames], 1)
    row, before, now = revisits
    shown, earlier, truth = (
        scores.to_unit(torch.from_numpy(pictures[row, step]))
        for pictures, step in ((frames, now), (frames, before), (episodes.frames, now))
    )
    is_start = torch.from_numpy(before == 0)
    psnr = scores.psnr(shown, truth)
    return {
        "revisit_psnr": psnr.mean().item(),
        "revisit_ssim": scores.ssim(shown, truth).mean().item(),
        "return_psnr": psnr[is_start].mean().item(),
        "symmetry_psnr": scores.psnr(shown, earlier).mean().item(),
        "symmetry_ssim": scores.ssim(shown, earlier).mean().item(),
    }


def tabulate(found: Mapping[str, float], paths: tuple[str, ...], policies: tuple[str, ...]) -> list[Table]:
    """Metrics -> a table of each path, with a row for each policy."""
    names = ("return_psnr", "revisit_psnr", "revisit_ssim", "symmetry_psnr", "symmetry_ssim", "step_ms", "mb_per_world")
    return [
        Table(
            title=f"{path} ({found[f'num_revisits_{path}']:.0f} revisits)",
            columns=["policy", *names],
            rows=[[policy, *[found[f"{name}_{path}_{policy}"] for name in names]] for policy in policies],
        )
        for path in paths
    ]


def save_pictures(
    out: Path, walks: Mapping[str, EpisodeBatch], dreams: dict[str, dict[str, Dream]], *, num_shown: int = 4
) -> list[Path]:
    """A PNG grid of each path (rows: simulator, policies; columns along the walk) and a film; returns the paths."""
    written = []
    for path, episodes in walks.items():
        steps = np.linspace(0, episodes.num_steps, 9).astype(int)[1:]
        films = {"simulator": episodes.frames[:num_shown, 1:]}
        films |= {policy: dream.frames[:num_shown] for policy, dream in dreams[path].items()}
        for index in range(min(num_shown, len(episodes))):
            grid = {name: list(frames[index, steps - 1]) for name, frames in films.items()}
            written.append(out / f"memory_{path}_{index:02d}.png")
            save_grid(written[-1], grid, [f"step {step}" for step in steps])
        written.append(out / f"memory_{path}.mp4")
        save_film(written[-1], {name: rearrange(film, "n t h w c -> (n t) h w c") for name, film in films.items()})
    return written


def _megabytes(engine: WorldEngine) -> float:
    """Memory that the pages of one world take."""
    store = engine.state.memory.store
    return store.num_used() * store.num_bytes / (store.num_pages * engine.num_slots) / 2**20
