"""Stage `world`: the generator learns to dream the next frame from history, camera motion and memory.

Clips are composed as the engine composes context: the dream's first frame (sink), what memory retrieved for the target
(where memory.num_retrieved asks for it), then consecutive frames (local window, target). Every frame has its own noise
level (diffusion forcing), history mostly low ones, retrieved frames always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.conditioning.camera import invert_pose, level_pose
from worldscape.config import MemoryConfig, WorldConfig
from worldscape.data.clips import Datasets, FrameStore, load_frames
from worldscape.engine import WorldEngine
from worldscape.flow import add_noise, draw_levels
from worldscape.scoring import told_hands
from worldscape.sight import present, sight
from worldscape.train.codec import picture_rows
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.prepare import PreparedFrames, dream_length, prepare
from worldscape.train.rollouts import follow, hands_in, start_at
from worldscape.train.runtime import choose_device
from worldscape.transformer import FrameInputs, Prediction, frame_rays
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldTrainConfig(TrainConfig):
    """TrainConfig of the world stage.

    dream_frames: frames of each prepared dream. dreams_seed: where they are cut from their episodes, and how they are
    disturbed; runs that differ in `seed` alone share what is prepared.
    context_share: frames of a clip at most context_level noisy.
    anchor_dropout: share of clips that memory shows nothing of. level_weight: how much less a frame of noise counts.
    novelty_share: share of the clips drawn in proportion to what memory does not show of them, or shows wrongly because
    things move; the others evenly. novelty_weight: how much more such a token counts. Both because memory shows nine
    tokens of ten: drawn evenly, nearly all of the training goes into copying.
    own_dreams: in so many recordings with hands memory shows what the generator of --init dreams along them, with its
    errors, instead of slightly disturbed recorded frames.
    """

    dream_frames: int = 64
    context_share: float = 0.5
    context_level: float = 0.25
    anchor_dropout: float = 0.1
    level_weight: float = 0.5
    novelty_share: float = 0.7
    novelty_weight: float = 2.0
    own_dreams: int = 0
    dreams_seed: int = 0

    def check_episodes(self, store: FrameStore, memory: MemoryConfig) -> None:
        sizes, needed = np.diff(store.starts), memory.num_sink + memory.local_window + 2
        if dream_length(sizes, self.dream_frames) < needed:
            raise ValueError(
                f"episodes have {sizes.min()} to {sizes.max()} frames and dream_frames is {self.dream_frames}; clips "
                f"need {needed}: record longer episodes, raise dream_frames, or lower --model memory.local_window"
            )


DEFAULTS: dict[str, TrainConfig] = {
    "debug": WorldTrainConfig(**DEBUG, batch_size=4, dream_frames=16),
    "nano": WorldTrainConfig(
        steps=9000, batch_size=32, lr=1e-3, warmup=200, ema=0.999, optimizer="muon", precision="bf16", threads=2
    ),
    "small": WorldTrainConfig(
        steps=30000, batch_size=128, lr=6e-4, warmup=500, ema=0.9995, optimizer="muon", precision="bf16"
    ),
}
SAMPLE_STEPS = (1, 2, 4, 8, 16, 32)
NUM_SAMPLES = 8
OPENING_SHARE = 0.15  # of the clips begin where the dream does


class Refined(NamedTuple):
    """What the generator makes of a batch's frames, each at its own level [B, T], with coverage [B, T, P] by memory."""

    level: Tensor
    coverage: Tensor
    prediction: Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldStage:
    """Trains the transformer on prepared dreams; the last NUM_SAMPLES episodes are kept for the sample pictures.

    odds: cumulative probability of each (dream, first place of the tail), see clip_odds.
    """

    store: FrameStore
    prepared: PreparedFrames
    config: WorldTrainConfig
    model_config: WorldConfig
    odds: np.ndarray
    name: str = "world"

    @property
    def retrieved(self) -> slice:
        """Places of the retrieved frames in a clip."""
        num_sink = self.model_config.memory.num_sink
        return slice(num_sink, num_sink + self.prepared.retrieved.shape[2])

    def trainable(self, model: WorldModel) -> nn.Module:
        """The transformer."""
        return model.transformer

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Clips of T = sink + retrieved + window + 1 frames: latent and guess [B, T, P, C], coverage [B, T, P], rays,
        frames long [B, T] (positions in the store), has_anchor bool [B] (False: memory is withheld); where frames are
        retrieved at all, sees bool [B, T, T] (sight.py); and where dreams have hands, their pose video: hands uint8
        [B, T, 4, h, w]. All clips of a batch have hands or none has, since a pose video doubles the tokens of a
        batch."""
        rng = np.random.default_rng([self.config.seed, step, rank, 4])
        clips = self.draw_clips(rng, self.config.batch_size, is_one_kind=True)
        has_anchor = torch.from_numpy(rng.random(self.config.batch_size) >= self.config.anchor_dropout)
        return self.gather(*clips) | {"has_anchor": has_anchor}

    def gather(self, dreams: np.ndarray, places: np.ndarray) -> dict[str, Tensor]:
        """Clips by their dreams [B] and the places of their frames in them [B, T], -1 for an absent frame (the first
        of the dream stands there, and nobody sees it): a batch without has_anchor."""
        is_held, places = torch.from_numpy(places[:, self.retrieved] >= 0), np.maximum(places, 0)
        clip = (torch.from_numpy(dreams)[:, None], torch.from_numpy(places))
        hands = self.prepared.pose_video(clip) if self.prepared.has_hands[dreams].any() else None
        batch = {
            "latent": self.prepared.latent[clip].float(),
            "guess": self.prepared.guess[clip].float(),
            "coverage": self.prepared.coverage[clip].float(),
            "frames": self.prepared.frames[clip],
            "rays": self._rays(dreams, places),
            **({} if hands is None else {"hands": hands}),
        }
        if is_held.shape[1] == 0:
            return batch
        memory, is_causal = self.model_config.memory, self.model_config.transformer.is_causal
        return batch | {"sees": sight(is_held, memory.num_sink, memory.local_window + 1, is_causal)}

    def draw_clips(
        self, rng: np.random.Generator, size: int, *, is_one_kind: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dreams [B] and the places of the clips' frames in them [B, T]: the first num_sink, those retrieved for the
        target (-1: none), then consecutive ones. is_one_kind: either all of the dreams have hands or none has."""
        memory = self.model_config.memory
        odds = odds_of_one_kind(self.odds, self.prepared.has_hands, rng) if is_one_kind else self.odds
        drawn = np.searchsorted(odds, rng.random(size), side="right")
        dreams, first = np.divmod(drawn, clip_places(self.prepared, memory))
        first = memory.num_sink + np.where(rng.random(size) < OPENING_SHARE, 0, first)
        sink = np.broadcast_to(np.arange(memory.num_sink), (size, memory.num_sink))
        tail = first[:, None] + np.arange(memory.local_window + 1)
        retrieved = self.prepared.retrieved.numpy()[dreams, tail[:, -1]]
        return dreams, np.concatenate([sink, retrieved, tail], 1)

    def _rays(self, dreams: np.ndarray, places: np.ndarray) -> Tensor:
        frames = self.prepared.frames.numpy()
        now = frames[dreams[:, None], places]
        before = frames[dreams[:, None], np.maximum(places - 1, 0)]
        pose, previous = (torch.from_numpy(self.store.pose[index]) for index in (now, before))
        reference = invert_pose(level_pose(previous.flatten(0, 1))).unflatten(0, previous.shape[:2])
        intrinsics = torch.from_numpy(self.store.intrinsics[now])
        return frame_rays(pose, reference, intrinsics, self.model_config.codec.grid)

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the predicted clean latent: tokens that memory does not show, or shows wrongly, count
        more, frames of high level less."""
        return self.flow_loss(batch, self.refine(model, batch, generator))

    def refine(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> Refined:
        """Add noise to a batch's latents, frame by frame, and let the generator remove it."""
        clean = batch["latent"]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        config = self.config
        level = draw_levels(clean.shape[:2], config.context_share, config.context_level, generator, self.retrieved)
        return self.refine_at(model, batch, noise, level)

    def refine_at(self, model: WorldModel, batch: dict[str, Tensor], noise: Tensor, level: Tensor) -> Refined:
        """The same with noise [B, T, P, C] at these levels [B, T]; has_anchor is bool [B] or [B, T]."""
        clean, has_anchor = batch["latent"], batch["has_anchor"].reshape(len(level), -1, 1)
        inputs = FrameInputs(
            latent=add_noise(clean, noise, level),
            level=level,
            rays=batch["rays"],
            anchor=batch["guess"] * has_anchor[..., None],
            coverage=batch["coverage"] * has_anchor,
            hands=told_hands(batch),
        )
        positions = torch.arange(clean.shape[1], device=clean.device).expand(len(clean), -1)
        return Refined(level, inputs.coverage, model.transformer(inputs, positions, sees=batch.get("sees")))

    def flow_loss(self, batch: dict[str, Tensor], refined: Refined) -> dict[str, Tensor]:
        """L_fm and what is logged beside it, of the frames that are there."""
        found = refined.prediction.latent.float()
        parts = [batch["latent"], batch["guess"], found, refined.level, refined.coverage]
        if "sees" in batch:
            parts = [part[present(batch["sees"])] for part in parts]
        clean, guess, found, level, coverage = parts
        error = (found - clean).pow(2).mean(-1)
        weight = 1.0 + self.config.novelty_weight * novelty(clean, guess, coverage)
        weight = weight / weight.mean() * (1.0 - self.config.level_weight * level)[..., None]
        is_noise = (level == 1.0)[..., None].expand_as(error)
        return {
            "loss": (error * weight).mean(),
            "from_noise": mean_where(error, is_noise).detach(),
            "novel": mean_where(error, is_noise & (coverage < 0.1)).detach(),
            "guess": (guess - clean).pow(2).mean().detach(),
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Closed-loop dreams of episodes left out of training."""
        return {"dream": dream_pictures(model, self.store, self.prepared.frames[-NUM_SAMPLES:].numpy())}


def dream_pictures(model: WorldModel, store: FrameStore, frames: np.ndarray) -> np.ndarray:
    """Closed-loop dreams along recorded stretches, frames long [N, F]: rows simulator, dream at growing horizons."""
    engine = WorldEngine(model, len(frames), device=next(model.parameters()).device, hands=hands_in(store))
    engine.open(start_at(store, frames[:, 0]), torch.arange(len(frames)))
    rows = []
    horizons = [h for h in SAMPLE_STEPS if h < frames.shape[1]]
    for horizon in range(1, max(horizons) + 1):
        frame = follow(engine, store, frames[:, horizon])
        if horizon in horizons:
            rows.extend([store.frames[frames[:, horizon]], frame.frame.cpu().numpy()])
    return picture_rows(rows)


def novelty(latent: Tensor, guess: Tensor, coverage: Tensor) -> Tensor:
    """How new tokens are to memory, [..., P] in [0, 1]: the share that it does not show, or how far off it is.

    latent and what memory guessed [..., P, C], coverage [..., P]. Tokens have unit root mean square, so two that have
    nothing in common differ by 2 in mean square.
    """
    is_off = (guess - latent).square().mean(-1) / 2.0
    return torch.maximum(1.0 - coverage, is_off.clamp_max(1.0))


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values [...] where bool [...] holds; 0 where it never does."""
    return (values * where).sum() / where.sum().clamp_min(1)


def clip_places(prepared: PreparedFrames, memory: MemoryConfig) -> int:
    """Places of a dream where the tail of a clip (local window and target) may begin, after its sink."""
    return prepared.frames.shape[1] - memory.num_sink - memory.local_window


def clip_odds(prepared: PreparedFrames, memory: MemoryConfig, novelty_share: float) -> np.ndarray:
    """Cumulative probability of each clip, flat over (dream, first place of its tail): evenly, or in proportion to how
    new the tail is to memory (novelty). The last NUM_SAMPLES dreams, if there are more, are never drawn."""
    dreams, places = len(prepared.frames), clip_places(prepared, memory)
    known = zip(prepared.latent, prepared.guess, prepared.coverage, strict=True)  # dream by dream: they are large
    unseen = torch.stack([novelty(*(part.float() for part in dream)).mean(1) for dream in known])
    tails = unseen[:, memory.num_sink :].unfold(1, memory.local_window + 1, 1).mean(2).double().numpy()
    allowed = np.zeros((dreams, places))
    allowed[: max(dreams - NUM_SAMPLES, 1)] = 1.0
    even, novel = allowed / allowed.sum(), allowed * tails
    share = novelty_share if novel.sum() > 0 else 0.0
    odds = np.cumsum((1.0 - share) * even + share * novel / max(novel.sum(), 1e-12))
    return odds / odds[-1]


def odds_of_one_kind(odds: np.ndarray, has_hands: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cumulative probabilities (clip_odds) -> the same among the dreams with hands (bool [E]) or among the others,
    drawn as often as clips of theirs would be; unchanged, without a draw, where there is one kind only."""
    if has_hands.all() or not has_hands.any():
        return odds
    each = np.diff(odds, prepend=0.0).reshape(len(has_hands), -1)
    is_hands = rng.random() < each[has_hands].sum()
    of_kind = np.cumsum(each * (has_hands == is_hands)[:, None])
    return of_kind / of_kind[-1]


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None, *, num_ahead: int = 0
) -> WorldStage:
    """The stage for a dataset, with memory replayed through the codec of `init`; num_ahead as in `prepare`."""
    assert init is not None and isinstance(train_config, WorldTrainConfig)
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    train_config.check_episodes(store, model_config.memory)
    prepared = prepare(
        load_world(init, choose_device(train_config.device)),
        model_config.memory,
        store,
        dataset,
        train_config.dream_frames,
        train_config.dreams_seed,
        own_dreams=train_config.own_dreams,
        num_ahead=num_ahead,
    )
    odds = clip_odds(prepared, model_config.memory, train_config.novelty_share)
    return WorldStage(store=store, prepared=prepared, config=train_config, model_config=model_config, odds=odds)
