"""Stage `heads`: motion, reward and termination read off the finished generator; depth guessed from a single picture.

A step is blocked where the simulator let less happen than was commanded; a frame earns the reward where the simulator
paid or reported success.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.conditioning.camera import apply_control
from worldscape.conditioning.hands import HandScale
from worldscape.config import WorldConfig
from worldscape.data.clips import Datasets, FrameStore, load_frames
from worldscape.train.codec import picture_rows
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.hand_heads import hand_labels, hand_losses
from worldscape.train.rollouts import Moment, RolloutPlan, take_rollouts
from worldscape.train.world import NUM_SAMPLES
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsTrainConfig(TrainConfig):
    """TrainConfig of the heads stage; batch_size counts frames.

    dreams: stretches of episodes that are dreamed again (half as many are read as recorded); dream_frames: frames of
    each. pictures: frames a step that the depth head learns from.
    """

    dreams: int = 640
    dream_frames: int = 40
    pictures: int = 16


DEFAULTS: dict[str, TrainConfig] = {
    "debug": HeadsTrainConfig(**DEBUG, batch_size=16, dreams=4, dream_frames=8, pictures=4),
    "nano": HeadsTrainConfig(
        steps=2500, batch_size=128, lr=1e-3, warmup=100, ema=0.998, precision="bf16", threads=2, sample_every=1000
    ),
    "small": HeadsTrainConfig(
        steps=8000, batch_size=128, lr=5e-4, warmup=200, precision="bf16", sample_every=2000, pictures=32
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsStage:
    """Trains the heads on rollouts; the last NUM_SAMPLES episodes are kept for the sample pictures."""

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: HeadsTrainConfig
    scale: HandScale
    name: str = "heads"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The heads."""
        return model.heads

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """What the heads see, [B, ...] (what_heads_see); what followed: control, free, walks, reward, end, each [B] but
        the control [B, 6], and of hands hand_labels; and pictures [N, 4, h, w]."""
        rng = np.random.default_rng([self.config.seed, step, rank, 8])
        stretches, length = self.rollouts["frames"].shape
        place = (
            torch.from_numpy(rng.integers(stretches, size=self.config.batch_size)),
            torch.from_numpy(rng.integers(length, size=self.config.batch_size)),
        )
        now = self.rollouts["frames"][place].numpy()
        walks = is_walk(self.store, now + 1) & ~is_repeated_refusal(self.store, now + 1)
        tracks = self.store.hands
        pictures = rng.integers(self.store.starts[num_training(self.store)], size=self.config.pictures)
        return {
            "features": self.rollouts["features"][place].float(),
            "latent": self.rollouts["latent"][place].float(),
            "near": mirror_some(self.rollouts["near"][place].float(), rng),
            "control": torch.from_numpy(self.store.controls[now + 1]),
            "free": torch.from_numpy((~is_refused(self.store, now + 1)).astype(np.float32)),
            "walks": torch.from_numpy(walks.astype(np.float32)),
            "reward": torch.from_numpy(is_paid(self.store, now).astype(np.float32)),
            "end": torch.from_numpy(np.maximum(self.store.terminated[now], self.store.success[now])),
            "picture": self.store.rgbd(pictures),
            **({} if tracks is None else hand_labels(self.store, tracks, now, self.scale)),
        }

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Binary cross-entropy of motion, reward and end; L1 of inverse depth; and hand_losses."""
        features, latent, free, walks = (batch[name] for name in ("features", "latent", "free", "walks"))
        motion = model.heads.motion(features, latent, batch["control"], batch["near"]).float()
        events = model.heads.events(features, latent)
        motion_loss = F.binary_cross_entropy_with_logits(motion, free, walks, reduction="sum")
        motion_loss = motion_loss / walks.sum().clamp_min(1)
        reward_loss = F.binary_cross_entropy_with_logits(events.reward.float(), batch["reward"])
        end_loss = F.binary_cross_entropy_with_logits(events.end.float(), batch["end"])
        depth = model.heads.depth(batch["picture"][:, :3]).float()
        depth_loss = (depth - batch["picture"][:, 3]).abs().mean()
        hands = hand_losses(model.heads, batch) if "is_told" in batch else {}
        hand_loss = sum((hands[name] for name in ("wrist", "task") if hands), depth_loss.new_zeros(()))
        refused, pays = (motion <= 0).float(), (events.reward > 0).float()
        return {
            "loss": motion_loss + reward_loss + end_loss + 4.0 * depth_loss + hand_loss,
            "motion": motion_loss.detach(),
            "blocked_share": share(1 - free, walks),
            "blocked_recall": share(refused, walks * (1 - free)),
            "blocked_precision": share(1 - free, walks * refused),
            "reward_recall": share(pays, batch["reward"]),
            "reward_precision": share(batch["reward"], pays),
            "depth": depth_loss.detach(),
            **{name: value.detach() for name, value in hands.items()},
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """The last pictures of the last episodes, their inverse depth, and the guess."""
        index = self.store.starts[1:][-NUM_SAMPLES:] - 1
        picture = self.store.rgbd(index).to(next(model.parameters()).device)
        guess = model.heads.depth(picture[:, :3])
        grey = [((depth + 1) * 127.5).round().to(torch.uint8) for depth in (picture[:, 3], guess)]
        rows = [depth[..., None].expand(-1, -1, -1, 3).cpu().numpy() for depth in grey]
        return {"depth": picture_rows([self.store.frames[index], *rows])}


def what_heads_see(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`latent` [E, P, C], `features` [E, P, D], and `near` [E, 2, G, G]: the surroundings along the recorded control
    that follows."""
    engine, state = moment.engine, moment.engine.state
    following = torch.from_numpy(store.controls[moment.index + 1]).to(engine.device)
    here = state.camera[:, :3]
    there = apply_control(state.camera, following, engine.config.controls.max_pitch)[:, :3]
    near = state.memory.surfaces().plan_view(here, there - here, engine.config.body)
    return {"latent": state.latent, "features": state.features, "near": near}


def is_walk(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether a walk was commanded in the steps that led to these frames [...]."""
    return np.abs(store.controls[index, :3]).max(-1) > 1e-6


def is_refused(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether less motion took place than was commanded in the steps that led to these frames [...]."""
    return np.abs(store.controls[index, :3] - store.realised[index, :3]).max(-1) > 1e-3


def is_paid(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether these frames earned the episode's reward; tasks of hands pay a little all the time, so there: success."""
    paid = store.reward[index] > 0
    if store.hands is not None:
        paid = paid & (store.hands.task[index] < 0)
    return paid | (store.success[index] > 0)


def is_repeated_refusal(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether these steps were refused just like the same command before them.

    A recording walker that pushes against a wall says the same thing many times: two refusals of three were repeats,
    and heads trained on them refuse a third of all walks.
    """
    before = np.maximum(index - 1, 0)
    is_same = np.abs(store.controls[index] - store.controls[before]).max(-1) < 1e-6
    return is_same & is_refused(store, index) & is_refused(store, before)


def mirror_some(near: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the plan views [B, 2, G, G] with left and right exchanged: a walker's body is symmetric."""
    is_mirrored = torch.from_numpy(rng.random(len(near)) < 0.5)
    return torch.where(is_mirrored[:, None, None, None], near.flip(-1), near)


def num_training(store: FrameStore) -> int:
    """Episodes to train on: all but the last NUM_SAMPLES, of a dataset that has so many."""
    return max(store.num_episodes - NUM_SAMPLES, 1)


def share(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of values, 0 where the weights are."""
    return ((values * weight).sum() / weight.sum().clamp_min(1)).detach()


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> HeadsStage:
    """The stage for a dataset, over the codec and generator of `init`."""
    assert init is not None and isinstance(train_config, HeadsTrainConfig)
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    plan = RolloutPlan(
        episodes=num_training(store),
        dreamed=train_config.dreams,
        recorded=max(train_config.dreams // 2, 1),
        length=train_config.dream_frames,
        seed=train_config.seed,
    )
    rollouts = take_rollouts(load_world(init), store, dataset, plan, what_heads_see)
    return HeadsStage(store=store, rollouts=rollouts, config=train_config, scale=model_config.hands)
