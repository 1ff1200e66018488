"""What the generator trains on: latents of recorded frames and what memory would have shown of each view.

Episodes are replayed through the engine's own memory, as a dream whose generator never errs: each frame is
encoded, disturbed a little, decoded with its anchor, and that picture is what memory keeps. The result lies beside the
dataset, under a name made of everything it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldscape.codec import empty_anchor, normalise_tokens, token_coverage
from worldscape.conditioning.pose_video import POSE_CHANNELS
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.config import MemoryConfig
from worldscape.data.clips import Datasets, FrameStore
from worldscape.data.hand_tracks import HandTracks
from worldscape.engine import WorldEngine
from worldscape.memory.pages import PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.precision import has_fast_bf16
from worldscape.progress import Progress
from worldscape.slot_hands import draw_hands
from worldscape.train.cache import cached
from worldscape.train.rollouts import hands_at, hands_in, start_at
from worldscape.train.runtime import rows_at_once
from worldscape.world import WorldModel

NO_HAND = -1
LARGEST_DISTURBANCE = 0.25  # of latents before decoding, as a generator's errors would


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedFrames:
    """E dreams of F frames each. latent and guess [E, F, P, C], coverage [E, F, P] (float16), frames long [E, F]:
    positions in the FrameStore; retrieved long [E, F, R]: places in the dream of the earlier frames whose keys and
    values MACO chose for this one, oldest first, then -1. The first frame of each dream opens it: memory shows nothing
    of it. hands uint8 [M, 4, h, w]: pose video of the frames with hands, hand_index long [E, F]: place in it, NO_HAND
    without; both None where the recordings have none. ahead_guess [E, F, A, P, C] and ahead_coverage [E, F, A, P]: what
    memory, as it stands before it takes in a frame, shows of the views of the A frames after that one; None where
    nobody asked.
    """

    latent: Tensor
    guess: Tensor
    coverage: Tensor
    frames: Tensor
    retrieved: Tensor
    hands: Tensor | None = None
    hand_index: Tensor | None = None
    ahead_guess: Tensor | None = None
    ahead_coverage: Tensor | None = None

    @property
    def has_hands(self) -> np.ndarray:
        """Dreams in which a hand can be seen, bool [E]."""
        if self.hand_index is None:
            return np.zeros(len(self.frames), dtype=bool)
        return (self.hand_index != NO_HAND).any(1).numpy()

    def pose_video(self, place: tuple[Tensor, Tensor]) -> Tensor | None:
        """What the generator is told of hands at (dreams, places), each [...]: uint8 [..., 4, h, w]; or None."""
        if self.hands is None or self.hand_index is None:
            return None
        index = self.hand_index[place]
        return self.hands[index.clamp_min(0)] * (index != NO_HAND)[..., None, None, None]


def prepare(
    model: WorldModel,
    memory: MemoryConfig,
    store: FrameStore,
    dataset: Datasets,
    length: int,
    seed: int,
    *,
    own_dreams: int = 0,
    num_ahead: int = 0,
) -> PreparedFrames:
    """Replay every episode through memory, or read the result of an earlier call with the same inputs.

    length: frames of each dream, cut from a random place of its episode. memory: the policy of the dreams. own_dreams:
    in so many of those with hands, memory holds what the model dreams along the recorded motion. num_ahead: of so many
    frames after each one is kept what memory shows of them beforehand.
    """
    config = replace(model.config, memory=memory).to_dict()
    settings = [store.recording, config["codec"], config["memory"], length, seed]
    if store.hands is not None:
        settings.append("hands are taken along bone by bone without rims, the first frame's before others")
    asked = [f"{num_ahead} ahead"] if num_ahead > 0 else []
    tensors = cached(
        dataset,
        [*settings, *asked, LARGEST_DISTURBANCE],
        [model.codec],
        lambda: _replay_all(model, memory, store, length, seed, num_ahead),
    )
    if num_ahead > 0:  # a later stage that asks for less need not replay
        less = {name: tensor for name, tensor in tensors.items() if not name.startswith("ahead_")}
        cached(dataset, [*settings, LARGEST_DISTURBANCE], [model.codec], lambda: less)
    if own_dreams > 0 and store.hands is not None:
        config |= {"length": length, "seed": seed}
        settings = ["own dreams", store.recording, config, own_dreams, *([num_ahead] if num_ahead > 0 else [])]
        parts = [model.codec, model.transformer]
        tensors |= cached(dataset, settings, parts, lambda: _dream_some(model, memory, store, tensors, own_dreams))
    nothing = tensors["frames"].new_empty(*tensors["frames"].shape, 0)  # not kept where nothing can be retrieved
    return PreparedFrames(**{"retrieved": nothing, **tensors})


def dream_length(sizes: np.ndarray, wanted: int) -> int:
    """Frames of prepared dreams, by those of the episodes [E]: as many as wanted where half of the episodes have so
    many, else the number that leaves most frames, where shorter episodes are left out."""
    if 2 * (sizes >= wanted).sum() >= len(sizes):
        return wanted
    lengths = np.unique(sizes.clip(max=wanted))
    return int(lengths[np.argmax([length * (sizes >= length).sum() for length in lengths])])


def _replay_all(
    model: WorldModel, memory: MemoryConfig, store: FrameStore, length: int, seed: int, num_ahead: int
) -> dict[str, Tensor]:
    rng = np.random.default_rng([seed, 3])
    sizes = np.diff(store.starts)
    length = dream_length(sizes, length)
    is_long = sizes >= length
    if not is_long.all():
        print(f"{(~is_long).sum()} episodes are left out: they are shorter than dreams of {length} frames", flush=True)
    offsets = store.starts[:-1][is_long] + rng.integers(0, sizes[is_long] - length + 1)
    frames = torch.from_numpy(offsets[:, None] + np.arange(length)[None])
    parts = []
    with Progress("episodes prepared", total=len(frames)) as progress:
        for rows in frames.split(rows_at_once(next(model.parameters()).device)):
            generator = torch.Generator().manual_seed(seed + int(rows[0, 0]))
            parts.append(_replay(model, memory, store, rows, num_ahead, generator))
            progress.update(len(rows))
    hands = {} if store.hands is None else draw_tracks(store, store.hands, frames, next(model.parameters()).device)
    return {"frames": frames, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}, **hands}


def _dream_some(
    model: WorldModel, memory: MemoryConfig, store: FrameStore, tensors: dict[str, Tensor], count: int
) -> dict[str, Tensor]:
    """What memory shows in replayed dreams, the first `count` of those that have hands dreamed by the model: guess,
    coverage and, where there are any, retrieved and what is shown ahead."""
    assert store.hands is not None
    frames, names = tensors["frames"], ("guess", "coverage", "retrieved", "ahead_guess", "ahead_coverage")
    shown = {name: tensors[name].clone() for name in names if name in tensors}
    num_ahead = shown["ahead_coverage"].shape[2] if "ahead_coverage" in shown else 0
    with_hands = torch.from_numpy(store.hands.present[frames[:, 0].numpy()].any(1)).nonzero()[:count, 0]
    with Progress("episodes dreamed", total=len(with_hands)) as progress:
        for rows in with_hands.split(rows_at_once(next(model.parameters()).device)):
            dreamed = _dream(model, memory, store, frames[rows].numpy(), num_ahead)
            for name, kept in shown.items():
                kept[rows] = dreamed[name].to(kept.dtype)
            progress.update(len(rows))
    return shown


@torch.inference_mode()
def _dream(
    model: WorldModel, memory: MemoryConfig, store: FrameStore, frames: np.ndarray, num_ahead: int
) -> dict[str, Tensor]:
    """One batch of closed-loop dreams along recorded motion, frames [E, F] -> guess, coverage, retrieved and, with
    num_ahead, what is shown ahead."""
    device = next(model.parameters()).device
    engine = WorldEngine(model, len(frames), device=device, precision="auto", hands=hands_in(store), memory=memory)
    engine.open(start_at(store, frames[:, 0]), torch.from_numpy(frames[:, 0]))
    state, config = engine.state, model.config.codec
    nothing = empty_anchor(len(frames), config.size, state.rgbd)
    steps = {
        "guess": [engine.codec.encode_anchor(nothing).latent.cpu()],
        "coverage": [torch.zeros(len(frames), config.num_tokens)],
        "retrieved": [state.memory.tables.retrieved.cpu()],
    }
    ahead = [_nothing_ahead(model, len(frames), num_ahead)]
    for step in range(1, frames.shape[1]):
        index = frames[:, step]
        if num_ahead > 0:
            ahead.append(_look_ahead(model, state.memory, store, frames, step, num_ahead))
        realised, active = torch.from_numpy(store.realised[index]).to(engine.device), torch.ones_like(state.is_open)
        view = engine.advance(state, realised, active, hands=hands_at(engine, store, index)).view
        now = (view.guess.latent, view.token_coverage, state.memory.tables.retrieved)
        for kept, value in zip(steps.values(), now, strict=True):
            kept.append(value.cpu())
    shown = {name: torch.stack(values, 1) for name, values in steps.items()}
    return shown | (_stack_ahead(ahead) if num_ahead > 0 else {})


@torch.inference_mode()
def draw_tracks(
    store: FrameStore, tracks: HandTracks, frames: Tensor, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Pose video of the frames long [E, F] in which recorded hands can be seen: PreparedFrames' hands, hand_index.

    Drawn on the device, kept on the CPU.
    """
    size, index = store.frames.shape[1], torch.full_like(frames, NO_HAND).flatten()
    with_hands = torch.from_numpy(tracks.present[frames.flatten()].any(1)).nonzero()[:, 0]
    drawn, count = [torch.zeros(0, POSE_CHANNELS, size, size, dtype=torch.uint8)], 0
    with Progress("pose video drawn", total=len(with_hands)) as progress:
        for rows in with_hands.split(rows_at_once(torch.device(device))):
            where = frames.flatten()[rows].numpy()
            pose, intrinsics = (torch.from_numpy(part[where]).to(device) for part in (store.pose, store.intrinsics))
            picture = draw_hands(tracks.limbs(where, pose), pose, intrinsics, size).cpu()
            shown = picture.flatten(1).any(1)
            drawn.append((picture[shown] * 255.0).round().to(torch.uint8))
            index[rows[shown]] = count + torch.arange(int(shown.sum()))
            count += int(shown.sum())
            progress.update(len(rows))
    return {"hands": torch.cat(drawn), "hand_index": index.view_as(frames)}


@torch.inference_mode()
def _replay(
    model: WorldModel,
    policy: MemoryConfig,
    store: FrameStore,
    frames: Tensor,
    num_ahead: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One batch of dreams, frames long [E, F] -> latent, guess, coverage; retrieved where anything can be; and with
    num_ahead what is shown ahead."""
    device = next(model.parameters()).device
    shape = PageShape(layers=0, tokens=0, heads=0, head_width=0, size=model.config.codec.size)
    memory = WorldMemory.empty(policy, len(frames), shape, torch.zeros((), device=device))
    intrinsics = torch.from_numpy(store.intrinsics[frames[:, 0].numpy()]).to(device)
    active = torch.ones(len(frames), dtype=torch.bool, device=device)
    strength = LARGEST_DISTURBANCE * torch.rand(len(frames), 1, 1, generator=generator).to(device)
    steps: dict[str, list[Tensor]] = {"latent": [], "guess": [], "coverage": []}
    retrieved: list[Tensor] = []
    ahead = [_nothing_ahead(model, len(frames), num_ahead)]
    for step in range(frames.shape[1]):
        index = frames[:, step].numpy()
        rgbd, pose = store.rgbd(index).to(device), torch.from_numpy(store.pose[index]).to(device)
        limbs = None if store.hands is None else store.hands.limbs(index, pose)
        recall = memory.recall(pose, intrinsics, rebuild=reproject_fast, limbs=limbs)
        anchor = recall.anchor
        if step > 0 and num_ahead > 0:
            ahead.append(_look_ahead(model, memory, store, frames.numpy(), step, num_ahead))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            latent, guess = model.codec.encode(rgbd).float(), model.codec.encode_anchor(anchor)
            kept = rgbd
            if step > 0:
                noise = torch.randn(latent.shape, generator=generator).to(device)
                disturbed = normalise_tokens(latent + strength * noise)
                drawn = None
                if limbs is not None and model.config.codec.hand_width > 0:
                    drawn = draw_hands(limbs, pose, intrinsics, rgbd.shape[-1])
                kept = model.codec.decode(disturbed, anchor, guess.skips, drawn).float().clamp(-1.0, 1.0)
        memory.append(Frame([], kept, pose, intrinsics, limbs=limbs), recall, active)
        coverage = token_coverage(anchor.mask, model.config.codec.grid)
        for name, value in (("latent", latent), ("guess", guess.latent), ("coverage", coverage)):
            steps[name].append(value.to("cpu", torch.float16))
        retrieved.append(memory.tables.retrieved.cpu())
    if retrieved[0].shape[1] > 0:
        steps["retrieved"] = retrieved
    shown = {name: torch.stack(values, 1) for name, values in steps.items()}
    return shown | (_stack_ahead(ahead) if num_ahead > 0 else {})


Shown = tuple[Tensor, Tensor]
"""What memory shows of the A views ahead of one frame of E dreams: guess [E, A, P, C] and coverage [E, A, P]."""


def _look_ahead(
    model: WorldModel, memory: WorldMemory, store: FrameStore, frames: np.ndarray, step: int, num_ahead: int
) -> Shown:
    """What memory, before it takes in frame `step` of the dreams [E, F], shows of the num_ahead frames after it; of the
    last frame again where a dream ends."""
    device, shown = next(model.parameters()).device, []
    intrinsics = torch.from_numpy(store.intrinsics[frames[:, 0]]).to(device)
    for place in range(step + 1, step + 1 + num_ahead):
        index = frames[:, min(place, frames.shape[1] - 1)]
        pose = torch.from_numpy(store.pose[index]).to(device)
        limbs = None if store.hands is None else store.hands.limbs(index, pose)
        anchor = memory.recall(pose, intrinsics, rebuild=reproject_fast, limbs=limbs).anchor
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            guess = model.codec.encode_anchor(anchor).latent
        shown.append((guess, token_coverage(anchor.mask, model.config.codec.grid)))
    guess, coverage = (torch.stack(parts, 1).to("cpu", torch.float16) for parts in zip(*shown, strict=True))
    return guess, coverage


def _nothing_ahead(model: WorldModel, dreams: int, num_ahead: int) -> Shown:
    """Before anything was seen."""
    codec = model.config.codec
    empty = torch.zeros(dreams, num_ahead, codec.num_tokens, codec.latent_channels, dtype=torch.float16)
    return empty, empty[..., 0].clone()


def _stack_ahead(ahead: list[Shown]) -> dict[str, Tensor]:
    """PreparedFrames' ahead_guess and ahead_coverage, of all frames of the dreams."""
    guess, coverage = (torch.stack(parts, 1) for parts in zip(*ahead, strict=True))
    return {"ahead_guess": guess, "ahead_coverage": coverage}
