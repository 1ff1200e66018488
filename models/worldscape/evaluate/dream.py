"""Runs an engine over judged episodes: same start frames, same controls, closed loop, in batches of its slots."""

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldscape.engine import EngineFrame, Start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.progress import Progress


class Engine(Protocol):
    """What judging needs of a `WorldEngine`."""

    num_slots: int

    def open(self, start: Start, seeds: Tensor, rows: Tensor | None = None) -> EngineFrame: ...

    def step(self, controls: Tensor, active: Tensor | None = None, *, is_realised: bool = False) -> EngineFrame: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Dream:
    """N dreams of S steps; row s is what step s produced.

    frames uint8 [N, S, h, w, 3]; depth float16 [N, S, h, w] metres; pose float32 [N, S, 4, 4] camera to world;
    realised float32 [N, S, 6], the motion that the dream let happen.
    """

    frames: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    realised: np.ndarray


def make_start(episodes: EpisodeBatch, context: int) -> Start:
    """The first `context` real frames of each episode, with depth and poses -> Start of N rows."""
    return Start(
        frames=torch.from_numpy(episodes.frames[:, :context]),
        depth=torch.from_numpy(episodes.depth[:, :context]),
        pose=torch.from_numpy(episodes.pose[:, :context]),
        intrinsics=torch.from_numpy(episodes.intrinsics),
    )


def dream_episodes(
    engine: Engine,
    episodes: EpisodeBatch,
    *,
    num_steps: int,
    context: int = 1,
    controls: np.ndarray | None = None,
    is_realised: bool = False,
) -> Dream:
    """Open each episode with its first `context` frames and step `num_steps` controls from there.

    Step s of the dream answers step context - 1 + s of the episode; `controls` [N, S, 6] replaces the episode's own.
    is_realised: dream along the motion that took place in the simulator, so that both stand in the same place.
    The noise seed of a dream is its layout seed, so a dream does not depend on the batch it runs in.
    """
    own = episodes.realised if is_realised else episodes.controls
    commanded = own[:, context - 1 :] if controls is None else controls
    if commanded.shape[1] < num_steps:
        raise ValueError(f"{num_steps} steps asked of a dream, but there are only {commanded.shape[1]} controls")
    groups = [
        np.arange(len(episodes))[first:][: engine.num_slots] for first in range(0, len(episodes), engine.num_slots)
    ]
    with Progress("dream steps", total=len(groups) * num_steps) as progress:
        parts = [
            _dream_rows(engine, episodes, rows, commanded[:, :num_steps], context, is_realised, progress)
            for rows in groups
        ]
    return Dream(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Dream)}
    )


def _dream_rows(
    engine: Engine,
    episodes: EpisodeBatch,
    rows: np.ndarray,
    commanded: np.ndarray,
    context: int,
    is_realised: bool,
    progress: Progress,
) -> Dream:
    padded = np.resize(rows, engine.num_slots)  # a last, smaller group is repeated to fill the slots
    batch = episodes.rows(padded.tolist())
    engine.open(make_start(batch, context), torch.from_numpy(batch.seeds))
    steps = torch.from_numpy(np.ascontiguousarray(commanded[padded]))
    frames = []
    for control in steps.unbind(dim=1):
        frames.append(engine.step(control, is_realised=is_realised))
        progress.update()

    def stack(values: list[Tensor], dtype: torch.dtype) -> np.ndarray:
        return torch.stack([value[: len(rows)].to("cpu", dtype) for value in values], dim=1).numpy()

    return Dream(
        frames=stack([frame.frame for frame in frames], torch.uint8),
        depth=stack([frame.depth for frame in frames], torch.float16),
        pose=stack([frame.pose for frame in frames], torch.float32),
        realised=stack([frame.realised for frame in frames], torch.float32),
    )
