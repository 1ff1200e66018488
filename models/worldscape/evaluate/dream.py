"""Runs an engine over judged episodes: same start frames, same controls, closed loop, in batches of its slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldscape.clip_engine import ClipEngine
from worldscape.engine_frames import EngineFrame, HandFrame, Start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.oracle import OracleEngine
from worldscape.progress import Progress

KEPT = {"frame": torch.uint8, "depth": torch.float16, "pose": torch.float32, "realised": torch.float32}
"""What is kept of each step's EngineFrame."""
SEEDS_APART = 2**40  # between the noise seeds of two draws of a dream; layout seeds are far below


class Engine(Protocol):
    """What judging needs of a `WorldEngine`."""

    num_slots: int

    @property
    def action_latency(self) -> int:
        """Steps from an action to the frame that shows it, beyond the very next one."""
        ...

    def open(self, start: Start, seeds: Tensor, rows: Tensor | None = None) -> EngineFrame: ...

    def step(
        self,
        controls: Tensor,
        active: Tensor | None = None,
        *,
        hands: Tensor | None = None,
        is_realised: bool = False,
    ) -> EngineFrame: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamedHands:
    """Hands in N dreams of S steps: keypoints float32 [N, S, 2, 21, 3] metres, world axes; reward and success float32
    [N, S, 3] of each of `hand_tasks.HAND_TASKS`; object and moved float32 [N, S, 3]: where the dream takes the object
    to be, and what it takes hands to have moved it by, metres, world axes.
    """

    object: np.ndarray
    moved: np.ndarray
    keypoints: np.ndarray
    reward: np.ndarray
    success: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Dream:
    """N dreams of S steps; row s is what step s produced.

    frames uint8 [N, S, h, w, 3]; depth float16 [N, S, h, w] metres; pose float32 [N, S, 4, 4] camera to world;
    realised float32 [N, S, 6], the motion that the dream let happen; hands, where there are any.
    """

    frames: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    realised: np.ndarray
    hands: DreamedHands | None = None


def make_start(episodes: EpisodeBatch, context: int, *, tells_places: bool = True) -> Start:
    """The first `context` real frames of each episode, with depth, poses and hands -> Start of N rows.

    tells_places: it says where object and target of a hand's task are, as the recordings that dreams start from do.
    """
    hands = episodes.hands
    return Start(
        frames=torch.from_numpy(episodes.frames[:, :context]),
        depth=torch.from_numpy(episodes.depth[:, :context]),
        pose=torch.from_numpy(episodes.pose[:, :context]),
        intrinsics=torch.from_numpy(episodes.intrinsics),
        hands=None if hands is None else hands.recorded(context),
        places=None if hands is None or not tells_places else hands.places(context),
    )


def dream_episodes(
    engine: Engine,
    episodes: EpisodeBatch,
    *,
    num_steps: int,
    context: int = 1,
    controls: np.ndarray | None = None,
    hands: np.ndarray | None = None,
    is_realised: bool = False,
    tells_places: bool = True,
    draw: int = 0,
) -> Dream:
    """Open each episode with its first `context` frames and step `num_steps` controls from there.

    Step s of the dream shows what step context - 1 + s of the episode does, also where the engine shows it later.
    `controls` [N, S, 6] replaces the episode's own, `hands` [N, S, 2, 13] its hands'. is_realised: dream along the
    motion that took place in the simulator, so that both stand in the same place. tells_places: as in `make_start`.
    The noise seed of a dream is its layout seed, so a dream does not depend on the batch it runs in; each other `draw`,
    0 or more, is another dream of the same.
    """
    own = episodes.realised if is_realised else episodes.controls
    commanded = own[:, context - 1 :] if controls is None else controls
    moved = _commanded_hands(episodes, context, is_realised) if hands is None else hands
    if commanded.shape[1] < num_steps:
        raise ValueError(f"{num_steps} steps asked of a dream, but there are only {commanded.shape[1]} controls")
    groups = [
        np.arange(len(episodes))[first:][: engine.num_slots] for first in range(0, len(episodes), engine.num_slots)
    ]
    start_of = partial(make_start, context=context, tells_places=tells_places)
    episodes = replace(episodes, seeds=episodes.seeds + draw * SEEDS_APART)
    with Progress("dream steps", total=len(groups) * num_steps) as progress:
        parts = [
            _dream_rows(engine, episodes, rows, commanded[:, :num_steps], moved, start_of, is_realised, progress)
            for rows in groups
        ]
    known = [part.hands for part in parts if part.hands is not None]
    return Dream(**_joined(parts, "hands"), hands=DreamedHands(**_joined(known)) if known else None)


def _joined(parts: Sequence[Any], without: str = "") -> dict[str, np.ndarray]:
    """The arrays of dataclasses of one kind, one after another."""
    names = [field.name for field in fields(parts[0]) if field.name != without]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def _commanded_hands(episodes: EpisodeBatch, context: int, is_realised: bool) -> np.ndarray | None:
    """What the hands were told [N, S, 2, 13] or, is_realised, where they got to [N, S, 2, 16]."""
    truth = episodes.hands
    if truth is None:
        return None
    return truth.state[:, context:] if is_realised else truth.actions[:, context - 1 :]


def _dream_rows(
    engine: Engine,
    episodes: EpisodeBatch,
    rows: np.ndarray,
    commanded: np.ndarray,
    moved: np.ndarray | None,
    start_of: Callable[[EpisodeBatch], Start],
    is_realised: bool,
    progress: Progress,
) -> Dream:
    padded = np.resize(rows, engine.num_slots)  # a last, smaller group is repeated to fill the slots
    batch = episodes.rows(padded.tolist())
    start = start_of(batch)
    engine.open(start, torch.from_numpy(batch.seeds))
    steps = torch.from_numpy(np.ascontiguousarray(commanded[padded]))
    told = None if moved is None else torch.from_numpy(np.ascontiguousarray(moved[padded][:, : steps.shape[1]]))
    if isinstance(engine, OracleEngine):
        engine.tell(batch, start.frames.shape[1])
    if isinstance(engine, ClipEngine):
        engine.foresee(steps, hands=told, is_realised=is_realised)
    latency = engine.action_latency
    seen: dict[str, list[Tensor]] = {name: [] for name in KEPT}
    hands: list[HandFrame] = []
    for index in range(steps.shape[1] + latency):
        now = min(index, steps.shape[1] - 1)  # what is told after the last step does not show any more
        control = steps[:, now] if now == index else torch.zeros_like(steps[:, now])
        commanded_hands = {} if told is None else {"hands": told[:, now]}
        frame = engine.step(control, **commanded_hands, is_realised=is_realised)
        if index < latency:
            continue
        for name, dtype in KEPT.items():
            seen[name].append(getattr(frame, name)[: len(rows)].to("cpu", dtype))
        hands += [] if frame.hands is None else [frame.hands]
        progress.update()
    pictures, depth, pose, realised = (torch.stack(values, dim=1).numpy() for values in seen.values())
    return Dream(frames=pictures, depth=depth, pose=pose, realised=realised, hands=_stack_hands(hands, len(rows)))


def _stack_hands(frames: list[HandFrame], rows: int) -> DreamedHands | None:
    if not frames:
        return None
    names = [field.name for field in fields(DreamedHands)]
    stacked = {name: torch.stack([getattr(frame, name)[:rows].cpu() for frame in frames], dim=1) for name in names}
    return DreamedHands(**{name: values.numpy() for name, values in stacked.items()})
