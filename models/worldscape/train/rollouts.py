"""Rollouts: what the engine sees and makes while it dreams recorded episodes again, and while it takes them in.

What learns on recorded frames alone misjudges dreamed ones (docs/LOG.md). Dreams run closed loop along the recorded
motion, so each of their frames has a recorded twin: same start, same pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.hands import HANDS
from worldscape.conditioning.layers import owned_by
from worldscape.data.clips import Datasets, FrameStore
from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame, RecordedHands, Start
from worldscape.progress import Progress
from worldscape.slot_hands import SlotHands
from worldscape.slots import View
from worldscape.train.cache import cached
from worldscape.train.runtime import rows_at_once
from worldscape.world import WorldModel

KEPT = "with hands mended, walkers apart"
"""Names what notes hold: change it with them, and rollouts that were kept before are made again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPlan:
    """`dreamed` stretches of `length` frames each, then `recorded` ones, drawn from the first `episodes` episodes."""

    episodes: int
    dreamed: int
    recorded: int
    length: int
    seed: int

    def draw(self, store: FrameStore) -> Tensor:
        """Positions of the frames, long [dreamed + recorded, length]; each has a successor in its episode.

        Says how many episodes are too short and left out. Raises ValueError where all are.
        """
        rng, num_short = np.random.default_rng([self.seed, 7]), self.episodes - len(self.able(store))
        if num_short > 0:
            print(f"{num_short} episodes are left out: rollouts of {self.length} frames need longer ones", flush=True)
        return draw_stretches(store, rng, np.arange(self.episodes), self.dreamed + self.recorded, self.length)

    def able(self, store: FrameStore) -> np.ndarray:
        """The episodes that are long enough. Raises ValueError where none is."""
        return able_episodes(store, np.arange(self.episodes), self.length, "dream_frames")


def of_one_kind(has_hands: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the recordings with hands (bool [N]) or of those without, drawn as often as there are such: beside
    hands, everything without them would take twice as long."""
    return np.flatnonzero(has_hands == (rng.random() < has_hands.mean()))


def able_episodes(store: FrameStore, episodes: np.ndarray, length: int, option: str) -> np.ndarray:
    """Those of these episodes that have more than `length` frames. Raises ValueError, which names the option that says
    how many, where none has."""
    sizes = np.diff(store.starts)[episodes]
    if not (sizes > length).any():
        raise ValueError(
            f"episodes have {sizes.min()} to {sizes.max()} frames; rollouts of {length} need at least one more: record "
            f"longer ones, or lower {option}"
        )
    return episodes[sizes > length]


def draw_stretches(
    store: FrameStore, rng: np.random.Generator, episodes: np.ndarray, count: int, length: int
) -> Tensor:
    """Stretches of `length` frames of these episodes: positions, long [count, length].

    Each frame has a successor in its episode; shorter episodes are left out. Raises ValueError where all are.
    """
    episodes, sizes = able_episodes(store, episodes, length, "dream_frames or rollout"), np.diff(store.starts)
    chosen = episodes[rng.integers(len(episodes), size=count)]
    first = store.starts[chosen] + rng.integers(0, sizes[chosen] - length)
    return torch.from_numpy(first[:, None] + np.arange(length)[None])


class Moment(NamedTuple):
    """One frame of E rollouts: the engine that has just made it, what it was told of the view, and where its recorded
    twins and the first frames of their stretches stand in the store, [E] each.
    """

    engine: WorldEngine
    view: View
    index: np.ndarray
    first: np.ndarray


Note = Callable[[FrameStore, Moment], dict[str, Tensor]]


def take_rollouts(
    model: WorldModel, store: FrameStore, dataset: Datasets, plan: RolloutPlan, note: Note
) -> dict[str, Tensor]:
    """`frames` long [E, F] (RolloutPlan.draw), and of each what `note` keeps of it, [E, F, ...]. Made once.

    Floating-point notes are kept as float16.
    """
    frames = plan.draw(store)
    settings = [store.recording, note.__name__, model.config.to_dict(), asdict(plan), KEPT]
    return cached(
        dataset,
        settings,
        [model.codec, model.transformer],
        lambda: {"frames": frames, **_roll_all(model, store, frames, plan.dreamed, note)},
    )


def _roll_all(model: WorldModel, store: FrameStore, frames: Tensor, dreamed: int, note: Note) -> dict[str, Tensor]:
    """Stretches with hands and those without go into engines of their own: a walker's is sharpened, and has another
    decoder."""
    rows, has_hands = torch.arange(len(frames)), torch.zeros(len(frames), dtype=torch.bool)
    if store.hands is not None:
        has_hands = store.hands.moves(frames.numpy()).any(1)
    parts, order = [], []
    with Progress("frames rolled out", total=frames.numel()) as progress:
        for is_dreamed, with_hands in product((True, False), repeat=2):
            chosen = rows[((rows < dreamed) == is_dreamed) & (has_hands == with_hands)]
            hands = hands_in(store) if with_hands else None
            groups = chosen.split(rows_at_once(next(model.parameters()).device)) if len(chosen) else ()
            for group in groups:
                parts += [_roll(model, store, frames[group].numpy(), hands, is_dreamed, note, progress)]
            order.append(chosen)
    places = torch.cat(order).argsort()
    return {name: torch.cat([part[name] for part in parts])[places] for name in parts[0]}


@torch.inference_mode()
def _roll(
    model: WorldModel,
    store: FrameStore,
    frames: np.ndarray,
    hands: str | None,
    is_dreamed: bool,
    note: Note,
    progress: Progress,
) -> dict[str, Tensor]:
    """One batch of stretches, frames [E, F], in an engine with `hands`; the first of each is a recorded frame."""
    device = next(model.parameters()).device
    engine = WorldEngine(model, len(frames), device=device, precision="auto", hands=hands)
    start = start_at(store, frames[:, 0])
    engine.open(start if hands else replace(start, hands=None), torch.from_numpy(frames[:, 0]))
    state = engine.state
    view = engine.look(state, state.camera, state.pose)
    steps: dict[str, list[Tensor]] = {}
    for place in range(frames.shape[1]):
        index = frames[:, place]
        if place > 0 and is_dreamed:
            realised = torch.from_numpy(store.realised[index]).to(device)
            moved = hands_at(engine, store, index)
            view = engine.advance(state, realised, torch.ones_like(state.is_open), hands=moved).view
        elif place > 0:
            pose = torch.from_numpy(store.pose[index]).to(device)
            seen = None
            if engine.hands is not None and store.hands is not None:
                seen = RecordedHands(*(x.to(device) for x in store.hands.at(index)))
            view = engine.commit_real(state, store.rgbd(index).to(device), pose, seen)
        for name, value in note(store, Moment(engine, view, index, frames[:, 0])).items():
            kept = value.to("cpu", torch.float16 if value.is_floating_point() else value.dtype)
            steps.setdefault(name, []).append(kept)
        progress.update(len(frames))
    return {name: torch.stack(tensors, 1) for name, tensors in steps.items()}


def start_at(store: FrameStore, index: np.ndarray) -> Start:
    """The recorded frames at these positions [R] as starts of R worlds."""
    return Start(
        frames=torch.from_numpy(store.frames[index])[:, None],
        depth=torch.from_numpy(store.depth[index]).float()[:, None],
        pose=torch.from_numpy(store.pose[index])[:, None],
        intrinsics=torch.from_numpy(store.intrinsics[index]),
        hands=None if store.hands is None else RecordedHands(*(part[:, None] for part in store.hands.at(index))),
    )


def hands_in(store: FrameStore) -> str | None:
    """What an engine that dreams these recordings is to be made with: "right", "both" or None."""
    if store.hands is None:
        return None
    return next(name for name, rows in HANDS.items() if rows == store.hands.rows)


def owners_at(store: FrameStore, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Who owns the pixels of recorded frames [E] with hands (`layers.owned_by`): uint8 [E, h, w], on the device."""
    assert store.hands is not None
    depth, pose, intrinsics = (
        torch.from_numpy(part[index]).to(device, torch.float32) for part in (store.depth, store.pose, store.intrinsics)
    )
    return owned_by(depth, pose, intrinsics, store.hands.limbs(index, pose))


def told_of_hands(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`drawn` uint8 [E, 4, h, w]: the pose video that the dream was told of, black where no hand is; nothing of
    recordings without hands."""
    if store.hands is None:
        return {}
    hands, rgbd = moment.view.hands, moment.engine.state.rgbd
    picture = torch.zeros_like(rgbd) if hands is None else hands.picture
    return {"drawn": (255.0 * picture).round().to(torch.uint8)}


def notes_at(rollouts: dict[str, Tensor], place: tuple[Tensor, ...]) -> tuple[np.ndarray, dict[str, Tensor]]:
    """The recorded frames [M] at these places (stretches, and frames of them, long [M] each) and what is noted of them,
    as floats; told_of_hands from 0 to 1."""
    notes = {name: note[place] for name, note in rollouts.items()}
    frames = notes.pop("frames").numpy()
    notes = {name: note.float() for name, note in notes.items()}
    return frames, notes | ({"drawn": notes["drawn"] / 255.0} if "drawn" in notes else {})


def hands_at(engine: WorldEngine, store: FrameStore, index: np.ndarray) -> SlotHands | None:
    """The hands in the recorded frames [E] as the engine's slots have them; None in an engine without hands."""
    if engine.hands is None or store.hands is None:
        return None
    state, command, present = (part.to(engine.device) for part in store.hands.at(index))
    return engine.state.hands.placed(state, command, present, torch.from_numpy(store.pose[index]).to(engine.device))


def follow(engine: WorldEngine, store: FrameStore, index: np.ndarray) -> EngineFrame:
    """Step all slots along the motion that led to the recorded frames [B]."""
    hands = None if engine.hands is None or store.hands is None else store.hands.at(index).state
    return engine.step(torch.from_numpy(store.realised[index]), hands=hands, is_realised=True)
