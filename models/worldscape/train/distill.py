"""Stage `distill`: self-forcing. The student dreams on its own history and learns to dream what its teacher would.

Each rollout opens on recorded frames and runs through the engine itself: its memory, its sampler up to one model call
drawn for the whole batch, its commits (or, with a rolling sampler, its frames in flight). Gradient flows through that
one call of each frame of the window, and through no history. The end of the rollout is noised; where the frozen teacher
(real) and a critic trained on rollouts beside the student (fake) disagree about the clean frames, the student moves
(matching.py). Teacher and critic are causal and see what the student saw, or both bidirectional: then they are shown
the window by memory as it stood before it, since later it holds the student's own frames.

Cost of a step: `rollout` frames of an engine with batch_size slots (memory, codec, num_calls + 1 model calls a frame)
and a critic's training step on batch_size clips; every student_every-th step also teacher and critic once more on
those clips and the student's backward. Two things tune for long horizons: longer rollouts (`rollout` above `window`),
whose frames before the window cost no gradient, and rollouts that open on frames which were dreamed beforehand
(`dreams`), which cost nothing but the dreams. A teacher that is shown what a dream has become continues it as it is,
faded or not; so of rollouts that open on dreams teacher and critic may judge the window alone (`alone_share`): what
they then compare is how windows of dreams and of recordings look, whatever went before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.config import MemoryConfig, WorldConfig
from worldscape.data.clips import Datasets, FrameStore, load_frames
from worldscape.engines import SAMPLERS
from worldscape.flow import add_noise
from worldscape.scoring import Clip, estimate_end
from worldscape.train.config import DEBUG, TrainConfig, require
from worldscape.train.heads import num_training, plan_rollouts
from worldscape.train.known import Recorded, find_still, known_share
from worldscape.train.matching import (
    LEAST_LEVEL,
    draw_shared_levels,
    flow_matching_loss,
    matching_gradient,
    matching_loss,
)
from worldscape.train.rollouts import Moment, able_episodes, draw_stretches, of_one_kind, take_rollouts
from worldscape.train.runtime import choose_device
from worldscape.train.self_rollout import leave_alone, roll_out
from worldscape.train.world import NUM_SAMPLES, SAMPLE_STEPS, dream_pictures
from worldscape.transformer import WorldTransformer
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillTrainConfig(TrainConfig):
    """TrainConfig of the distill stage; a step trains the critic, and every student_every-th one the student too.

    history: frames that open a rollout; rollout: frames dreamed after them, of which the last `window` are compared
    with the teacher's. dreams: stretches of dream_frames frames that the generator of --init dreams along recordings
    beforehand; half of the rollouts then open on frames of theirs, the other half on recorded ones, as all do with 0.
    alone_share: of those that open on dreams, the share whose window teacher and critic are shown without memory and
    without the frames before it, with noise of alone_level at the most: beyond that they would compare what is there
    rather than how it looks, and what is there is memory's to say.
    recorded_weight: how strongly those that open on recordings are drawn to the recorded frames as well, as a share of
    what a teacher weighs whose estimates were these frames: what is nearest on average, which a sample of what could be
    is not. known_weight: the same of the pixels that the opening frames show, where one answer alone is right; there it
    costs nothing of what a dream invents.
    sampler: "blockwise", or "rolling", in which frames in flight see each other and each has the calls that were drawn.
    level_shift: how far their noise levels are shifted towards noise; the teacher's, critic's and student's levels all
    follow the same path.
    """

    history: int = 1
    rollout: int = 7
    window: int = 7
    dreams: int = 0
    dream_frames: int = 96
    alone_share: float = 0.0
    alone_level: float = 0.6
    recorded_weight: float = 0.0
    known_weight: float = 0.0
    teacher_weight: float = 1.0
    student_every: int = 5
    sampler: str = "blockwise"
    level_shift: float = 3.0

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require(self.sampler in SAMPLERS, "sampler", self.sampler, f"one of {', '.join(SAMPLERS)}")
        for name in ("history", "window", "student_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.rollout < self.window:
            raise ValueError(f"rollout is {self.rollout}; it holds the window of {self.window} frames, so no fewer")
        if self.dreams < 0:
            raise ValueError(f"dreams is {self.dreams}; it must be at least 0")
        if self.dreams > 0 and self.dream_frames <= self.history + self.rollout:
            raise ValueError(
                f"dream_frames is {self.dream_frames}; openings and rollouts of {self.history} + {self.rollout} frames "
                "lie within a dream, after its first frame: raise it"
            )
        require(0 <= self.alone_share <= 1, "alone_share", self.alone_share, "in [0, 1]")
        require(LEAST_LEVEL < self.alone_level <= 1, "alone_level", self.alone_level, f"in ({LEAST_LEVEL}, 1]")
        if self.alone_share > 0 and self.dreams == 0:
            raise ValueError("alone_share is of the rollouts that open on dreams: give it some, --set dreams=192")
        for name in ("recorded_weight", "known_weight", "teacher_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        if self.teacher_weight == 0 and (not self.heeds_recordings or self.dreams > 0):
            raise ValueError(
                "with teacher_weight = 0 recordings are all there is to learn from: give recorded_weight and dreams = 0"
            )
        if self.level_shift < 1:
            raise ValueError(f"level_shift is {self.level_shift}; it must be at least 1")

    @property
    def heeds_recordings(self) -> bool:
        """Whether rollouts that open on recordings are drawn to the recorded frames."""
        return max(self.recorded_weight, self.known_weight) > 0

    def check_episodes(self, store: FrameStore, memory: MemoryConfig) -> None:
        able_episodes(store, np.arange(num_training(store)), self.history + self.rollout, "rollout")
        if self.dreams > 0:
            plan_rollouts(store, self).able(store)


DEFAULTS: dict[str, TrainConfig] = {
    "debug": DistillTrainConfig(**DEBUG, batch_size=2, rollout=3, window=2, dreams=2, dream_frames=8, student_every=2),
    "nano": DistillTrainConfig(
        steps=1500,
        batch_size=8,
        lr=1e-4,
        warmup=30,
        weight_decay=0.0,
        betas=(0.0, 0.999),
        ema=0.99,
        precision="bf16",
        threads=2,
        student_every=3,
        checkpoint_every=100,
        sample_every=250,
    ),
    "small": DistillTrainConfig(
        steps=5000,
        batch_size=64,
        lr=3e-5,
        warmup=100,
        weight_decay=0.0,
        betas=(0.0, 0.999),
        ema=0.995,
        precision="bf16",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillStage:
    """Trains the student, and a critic beside it that is thrown away in the end. dreams: `take_rollouts` with
    `what_is_shown`; empty where all openings are recorded."""

    store: FrameStore
    config: DistillTrainConfig
    model_config: WorldConfig
    teacher: WorldTransformer
    critic: WorldTransformer
    dreams: dict[str, Tensor] = field(default_factory=dict)
    name: str = "distill"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The student, and the critic where one is heeded."""
        student = {"student": model.transformer}
        return nn.ModuleDict(student | ({"critic": self.critic} if self.config.teacher_weight > 0 else {}))

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Openings (rgbd [B, H, 4, h, w], pose [B, H, 4, 4]), intrinsics [B, 4], controls [B, N, 6] of the frames to
        dream, noise seeds [B], alone bool [B] (alone_share); where recordings are heeded, on the student's turn, what
        was recorded of the window (_recorded); and what all ranks share: num_calls, and whether it is the student's
        turn."""
        config, rng = self.config, np.random.default_rng([self.config.seed, step, rank, 11])
        length = config.history + config.rollout
        shared = np.random.default_rng([config.seed, step, 12])
        episodes = self._episodes(shared)
        frames = draw_stretches(self.store, rng, episodes, config.batch_size, length).numpy()
        rgbd = self.store.rgbd(frames[:, : config.history])
        alone, is_recorded = torch.zeros(len(frames), dtype=torch.bool), torch.ones(len(frames), dtype=torch.bool)
        if self.dreams:
            rows = self._open_on_dreams(frames, rgbd, episodes, rng)
            alone[rows] = torch.from_numpy(rng.random(len(rows)) < config.alone_share)
            is_recorded[rows] = False
        opening, dreamed = frames[:, : config.history], frames[:, config.history :]
        is_turn = config.teacher_weight == 0 or (step + 1) % config.student_every == 0
        recorded = self._recorded(frames) | {"is_recorded": is_recorded} if is_turn and config.heeds_recordings else {}
        return {
            "rgbd": rgbd,
            "pose": torch.from_numpy(self.store.pose[opening]),
            "intrinsics": torch.from_numpy(self.store.intrinsics[frames[:, 0]]),
            "controls": torch.from_numpy(self.store.realised[dreamed]),
            **self._hands(frames),
            "seeds": torch.from_numpy(rng.integers(2**62, size=len(frames))),
            "alone": alone,
            **recorded,
            "num_calls": torch.tensor(1 + int(shared.integers(self.model_config.steps_per_frame))),
            "is_turn": torch.tensor(is_turn),
        }

    def _episodes(self, rng: np.random.Generator) -> np.ndarray:
        """Training episodes of one kind, with hands or without, that are long enough."""
        store, length = self.store, self.config.history + self.config.rollout
        able = able_episodes(store, np.arange(num_training(store)), length, "rollout")
        has_hands = np.zeros(len(able), bool) if store.hands is None else store.hands.moves(store.starts[able]).numpy()
        return able[of_one_kind(has_hands, rng)]

    def _open_on_dreams(
        self, frames: np.ndarray, rgbd: Tensor, episodes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Let every second rollout go on from a dream of one of these episodes, in place: positions of its frames
        [B, H + N], what its opening shows rgbd [B, H, 4, h, w]. Returns which rollouts do."""
        history, stretches = self.config.history, self.dreams["frames"]
        dreamed_of = np.searchsorted(self.store.starts, stretches[:, 0].numpy(), side="right") - 1
        able = np.flatnonzero(np.isin(dreamed_of, episodes))
        rows = np.arange(0, len(frames), 2)
        if len(able) == 0:
            return rows[:0]
        chosen = able[rng.integers(len(able), size=len(rows))]
        first = rng.integers(1, stretches.shape[1] - frames.shape[1] + 1, size=len(rows))
        places = torch.from_numpy(first[:, None] + np.arange(frames.shape[1]))
        dream = torch.from_numpy(chosen)[:, None]
        frames[rows] = stretches[dream, places].numpy()
        rgbd[rows] = self.dreams["shown"][dream, places[:, :history]].to(rgbd.dtype)
        return rows

    def _recorded(self, frames: np.ndarray) -> dict[str, Tensor]:
        """What was recorded of the windows of frames [B, H + N]: recorded [B, W, 4, h, w]; with known_weight, also
        their poses recorded_pose [B, W, 4, 4] and what stays where it is: still bool [B, H, h, w] of the openings,
        recorded_still bool [B, W, h, w]."""
        opening, window = frames[:, : self.config.history], frames[:, -self.config.window :]
        recorded = {"recorded": self.store.rgbd(window)}
        if self.config.known_weight == 0:
            return recorded
        return recorded | {
            "recorded_pose": torch.from_numpy(self.store.pose[window]),
            "still": find_still(self.store, opening),
            "recorded_still": find_still(self.store, window),
        }

    def _hands(self, frames: np.ndarray) -> dict[str, Tensor]:
        """The hands in openings and dreamed frames [B, H + N], and the poses that they are seen from; nothing where
        none has any."""
        if self.store.hands is None or not self.store.hands.present[frames].any():
            return {}
        named = {f"hand_{name}": part for name, part in self.store.hands.at(frames)._asdict().items()}
        return {**named, "poses": torch.from_numpy(self.store.pose[frames])}

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The critic's flow-matching loss on the rollout's window, and on the student's turn the matching loss."""
        is_turn, window = bool(batch["is_turn"]), self.config.window
        with torch.autocast(batch["rgbd"].device.type, enabled=False), torch.set_grad_enabled(is_turn):
            rolled = roll_out(model, batch, window, self.config.sampler, is_causal=self.teacher.config.is_causal)
        made = rolled.frames.latent[:, -window:]
        clip = rolled._replace(frames=rolled.frames._replace(latent=rolled.frames.latent.detach()))
        if self.config.alone_share > 0:
            clip = leave_alone(clip, window, batch["alone"])
        greatest = torch.where(batch["alone"], self.config.alone_level, 1.0)
        nothing, heeds_teacher = made.new_zeros(()), self.config.teacher_weight > 0
        critic = self._critic_loss(clip, greatest, generator) if heeds_teacher else nothing
        parts = {"critic": critic.detach(), "matching": nothing, "gap": nothing}
        if not is_turn:
            return {"loss": critic, **parts}
        gradient = torch.zeros_like(clip.frames.latent[:, -window:])
        if heeds_teacher:
            gradient = self.config.teacher_weight * self._gradient(clip, greatest, generator)
        if self.config.heeds_recordings:
            gradient = gradient + self._pull(model, made, batch)
        matching = matching_loss(made, gradient)
        return {"loss": critic + matching, **parts, "matching": matching.detach(), "gap": gradient.abs().mean()}

    def _critic_loss(self, clip: Clip, greatest: Tensor, generator: torch.Generator) -> Tensor:
        made, noised, level = self._noised(clip, greatest, generator)
        estimate = estimate_end(self.critic, clip.frames, noised, level, clip.sees)
        return flow_matching_loss(estimate, made, level[:, None].expand(made.shape[:2]))

    @torch.no_grad()
    def _gradient(self, clip: Clip, greatest: Tensor, generator: torch.Generator) -> Tensor:
        """In full precision: the two estimates are close, and their difference is all that counts."""
        made, noised, level = self._noised(clip, greatest, generator)
        with torch.autocast(made.device.type, enabled=False):
            real = estimate_end(self.teacher.to(made.device), clip.frames, noised, level, clip.sees)
            fake = estimate_end(self.critic, clip.frames, noised, level, clip.sees)
        return matching_gradient(made, real, fake)

    @torch.no_grad()
    def _pull(self, model: WorldModel, made: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Away from the recorded frames, in rollouts that open on recordings: [B, W, P, C]."""
        with torch.autocast(made.device.type, enabled=False):
            latent = model.codec.encode(batch["recorded"].flatten(0, 1)).unflatten(0, made.shape[:2])
            weight = torch.full_like(latent[..., 0], self.config.recorded_weight)
            if self.config.known_weight > 0:
                weight += self.config.known_weight * self._known(model, batch)
        weight = weight * batch["is_recorded"][:, None, None]
        return weight[..., None] * matching_gradient(made, latent, made)

    def _known(self, model: WorldModel, batch: dict[str, Tensor]) -> Tensor:
        """The share of each token of the window that recorded openings show: [B, W, P]."""
        opening = Recorded(batch["rgbd"], batch["pose"], batch["still"])
        window = Recorded(batch["recorded"], batch["recorded_pose"], batch["recorded_still"])
        return known_share(opening, window, batch["intrinsics"], model.config.codec.grid)

    def _noised(self, clip: Clip, greatest: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The clip's window [B, W, P, C], the same with noise, and the level of each clip, at most `greatest`: [B]."""
        made = clip.frames.latent[:, -self.config.window :]
        level = draw_shared_levels(len(made), self.config.level_shift, generator, greatest)
        noise = torch.randn(made.shape, generator=generator, device=made.device)
        return made, add_noise(made, noise, level[:, None].expand(made.shape[:2])), level

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Closed-loop dreams of episodes left out of training, the short ones apart."""
        sizes = np.diff(self.store.starts)[-NUM_SAMPLES:]
        length = min(int(sizes.max()), SAMPLE_STEPS[-1] + 1)
        frames = self.store.starts[:-1][-NUM_SAMPLES:][sizes >= length, None] + np.arange(length)
        return {"dream": dream_pictures(model, self.store, frames)}


def what_is_shown(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`shown` [E, 4, h, w]: the frame as the engine has it."""
    return {"shown": moment.engine.state.rgbd}


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None, teacher: str
) -> DistillStage:
    """The stage for a dataset; the weights of `teacher` are frozen, and the critic begins as their copy.

    Raises ValueError when the window is longer than the clips' tails, or than what a bidirectional teacher refines.
    """
    assert isinstance(train_config, DistillTrainConfig)
    longest = model_config.memory.local_window + 1
    if train_config.window > longest:
        raise ValueError(f"window is {train_config.window}; local window and target are {longest} frames")
    frozen = copy.deepcopy(load_world(teacher).transformer)
    if not frozen.config.is_causal and train_config.alone_share > 0:
        raise ValueError("alone_share is for a causal teacher: a bidirectional one has always been shown a beginning")
    if not frozen.config.is_causal and train_config.window > model_config.memory.num_refined:
        raise ValueError(
            f"window is {train_config.window}; a bidirectional teacher refines {model_config.memory.num_refined} "
            f"frames at once: --set window={model_config.memory.num_refined}"
        )
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    train_config.check_episodes(store, model_config.memory)
    dreams: dict[str, Tensor] = {}
    if train_config.dreams > 0:
        assert init is not None
        plan = plan_rollouts(store, train_config)
        student = load_world(init, choose_device(train_config.device))
        dreams = take_rollouts(student, store, dataset, plan, what_is_shown)
    return DistillStage(
        store=store,
        config=train_config,
        model_config=model_config,
        teacher=frozen,
        critic=copy.deepcopy(frozen),
        dreams=dreams,
    )
