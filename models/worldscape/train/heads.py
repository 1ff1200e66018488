"""Stage `heads`: motion, reward and termination read off the finished generator; depth guessed from a single picture.

A step is blocked where the simulator let less happen than was commanded; a frame earns the reward where the simulator
paid or reported success.
"""

from __future__ import annotations

import itertools
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
from worldscape.heads import Heads
from worldscape.train.codec import picture_rows
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.goal_heads import Sightings, find_sightings, goal_labels, goal_losses
from worldscape.train.hand_heads import dreamlike, hand_labels, hand_losses, has_things, thing_labels, thing_losses
from worldscape.train.rollouts import Moment, RolloutPlan, take_rollouts
from worldscape.train.runtime import choose_device
from worldscape.train.world import NUM_SAMPLES
from worldscape.world import WorldModel

LOSSES = {"events": 1.0, "depth": 4.0, "motion": 1.0, "wrist": 1.0, "things": 1.0, "goal": 1.0}
"""What each head's loss counts."""
PAID_SHARE = 8  # one of so many frames that the events head learns from shows the goal
ARRIVING = 3  # frames from the first at the goal on that still show it


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsTrainConfig(TrainConfig):
    """TrainConfig of the heads stage; batch_size counts frames.

    dreams: stretches of episodes that are dreamed again (half as many are read as recorded); dream_frames: frames of
    each. pictures: frames a step that the depth head learns from; things, events and goals: those that the things, the
    events and the goal head learn from; 0 leaves a head as it is. pictures_only: train those four on recorded frames
    and leave motion and wrists as they are; needs no dreams.
    """

    dreams: int = 640
    dream_frames: int = 40
    pictures_only: bool = False
    pictures: int = 16
    things: int = 64
    events: int = 64
    goals: int = 64

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name in ("pictures", "things", "events", "goals"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


DEFAULTS: dict[str, TrainConfig] = {
    "debug": HeadsTrainConfig(
        **DEBUG, batch_size=16, dreams=4, dream_frames=8, pictures=4, things=4, events=4, goals=4
    ),
    "nano": HeadsTrainConfig(
        steps=2500, batch_size=128, lr=1e-3, warmup=100, ema=0.998, precision="bf16", threads=2, sample_every=1000
    ),
    "small": HeadsTrainConfig(
        steps=8000, batch_size=128, lr=5e-4, warmup=200, precision="bf16", sample_every=2000, pictures=32
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsStage:
    """Trains the heads on rollouts, and those that read pictures on frames of training episodes, long [N] each: that of
    things on `tables`, that of events on `arrivals` at the goal and on `walks` elsewhere (picture_frames), that of
    goals on `sightings`. The last NUM_SAMPLES episodes are kept for the sample pictures."""

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: HeadsTrainConfig
    scale: HandScale
    tables: np.ndarray
    walks: np.ndarray
    arrivals: np.ndarray
    sightings: Sightings
    name: str = "heads"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The heads; without rollouts those that read pictures."""
        return model.heads if self.rollouts else model.heads.of_pictures()

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """What the heads see, [B, ...] (what_heads_see), with what followed: control, free, walks, each [B] but the
        control [B, 6], and of hands hand_labels; pictures [N, 4, h, w]; events; goals; and of hands thing_labels."""
        rng = np.random.default_rng([self.config.seed, step, rank, 8])
        moved = self._motion(rng) if self.rollouts else {}
        pictures = rng.integers(self.store.starts[num_training(self.store)], size=self.config.pictures)
        things = {}
        if self.store.hands is not None and len(self.tables) and self.config.things:
            things = thing_labels(self.store, self.store.hands, rng.choice(self.tables, self.config.things), rng)
        pictured = {"picture": self.store.rgbd(pictures)} if len(pictures) else {}
        events = self._events(rng) if self.config.events else {}
        goals = goal_labels(self.store, self.sightings, self.config.goals, rng)
        return {**moved, **pictured, **events, **things, **goals}

    def _motion(self, rng: np.random.Generator) -> dict[str, Tensor]:
        stretches, length = self.rollouts["frames"].shape
        place = (
            torch.from_numpy(rng.integers(stretches, size=self.config.batch_size)),
            torch.from_numpy(rng.integers(length, size=self.config.batch_size)),
        )
        now = self.rollouts["frames"][place].numpy()
        walks = is_walk(self.store, now + 1) & ~is_repeated_refusal(self.store, now + 1)
        tracks = self.store.hands
        return {
            "features": self.rollouts["features"][place].float(),
            "latent": self.rollouts["latent"][place].float(),
            "near": mirror_some(self.rollouts["near"][place].float(), rng),
            "control": torch.from_numpy(self.store.controls[now + 1]),
            "free": torch.from_numpy((~is_refused(self.store, now + 1)).astype(np.float32)),
            "walks": torch.from_numpy(walks.astype(np.float32)),
            **({} if tracks is None else hand_labels(self.store, tracks, now, self.scale)),
        }

    def _events(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Training frames, some in a mirror and as dreams are: event_rgbd [N, 4, h, w], reward and end [N]."""
        num_paid = self.config.events // PAID_SHARE if len(self.arrivals) else 0
        num_others = self.config.events - num_paid
        frames = np.concatenate([rng.choice(self.arrivals, num_paid), rng.choice(self.walks, num_others)])
        paid = (np.arange(len(frames)) < num_paid).astype(np.float32)
        return {
            "event_rgbd": dreamlike(mirror_some(self.store.rgbd(frames), rng), rng),
            "reward": torch.from_numpy(paid),
            "end": torch.from_numpy(np.maximum(self.store.terminated[frames], paid)),
        }

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The sum of what each head misses: event_losses, depth_loss, motion_losses, hand_losses, thing_losses and
        goal_losses, of those that the batch has labels for."""
        heads = model.heads
        losses: dict[str, Tensor] = {}
        noted: dict[str, Tensor] = {}
        for found in (
            event_losses(heads, batch) if "event_rgbd" in batch else {},
            depth_loss(heads, batch) if "picture" in batch else {},
            motion_losses(heads, batch) if "features" in batch else {},
            hand_losses(heads, batch) if "is_told" in batch else {},
            thing_losses(heads, batch) if "thing_rgbd" in batch else {},
            goal_losses(heads, batch) if "goal_rgbd" in batch else {},
        ):
            losses |= {name: found[name] for name in LOSSES if name in found}
            noted |= {name: value for name, value in found.items() if name not in losses}
        total = torch.stack([LOSSES[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in {**losses, **noted}.items()}}

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """The last pictures of the last episodes, their inverse depth, and the guess."""
        index = self.store.starts[1:][-NUM_SAMPLES:] - 1
        picture = self.store.rgbd(index).to(next(model.parameters()).device)
        guess = model.heads.depth(picture[:, :3])
        grey = [((depth + 1) * 127.5).round().to(torch.uint8) for depth in (picture[:, 3], guess)]
        rows = [depth[..., None].expand(-1, -1, -1, 3).cpu().numpy() for depth in grey]
        return {"depth": picture_rows([self.store.frames[index], *rows])}


def event_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy of reward and end; recall and precision of rewards."""
    events = heads.events(batch["event_rgbd"])
    reward = F.binary_cross_entropy_with_logits(events.reward.float(), batch["reward"])
    end = F.binary_cross_entropy_with_logits(events.end.float(), batch["end"])
    pays = (events.reward > 0).float()
    return {
        "events": reward + end,
        "reward_recall": share(pays, batch["reward"]),
        "reward_precision": share(batch["reward"], pays),
    }


def depth_loss(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """L1 of inverse depth."""
    return {"depth": (heads.depth(batch["picture"][:, :3]).float() - batch["picture"][:, 3]).abs().mean()}


def motion_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy of free walks; share of blocked ones, recall and precision of refusals."""
    free, walks = batch["free"], batch["walks"]
    motion = heads.motion(batch["features"], batch["latent"], batch["control"], batch["near"]).float()
    loss = F.binary_cross_entropy_with_logits(motion, free, walks, reduction="sum") / walks.sum().clamp_min(1)
    refused = (motion <= 0).float()
    return {
        "motion": loss,
        "blocked_share": share(1 - free, walks),
        "blocked_recall": share(refused, walks * (1 - free)),
        "blocked_precision": share(1 - free, walks * refused),
    }


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


def mirror_some(views: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the plan views or pictures [B, C, h, w] with left and right exchanged: a walker's body is symmetric."""
    is_mirrored = torch.from_numpy(rng.random(len(views)) < 0.5)
    return torch.where(is_mirrored[:, None, None, None], views.flip(-1), views)


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
    rollouts: dict[str, Tensor] = {}
    if not train_config.pictures_only:
        rollouts = take_rollouts(
            load_world(init, choose_device(train_config.device)), store, dataset, plan, what_heads_see
        )
    tables, walks, arrivals = picture_frames(store)
    return HeadsStage(
        store=store,
        rollouts=rollouts,
        config=train_config,
        scale=model_config.hands,
        tables=tables,
        walks=walks,
        arrivals=arrivals,
        # No episode is searched for goals that nothing is to learn from.
        sightings=find_sightings(store, num_training(store) if train_config.goals and model_config.heads.goal else 0),
        name="heads of pictures" if train_config.pictures_only else "heads",
    )


def picture_frames(store: FrameStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the training frames that show things of a hand's task, of those in which a walker is not at the
    goal, and of those in which it has just arrived there. Where every frame has a task for hands, these count.

    Recordings go on at the goal, where the walker turns away from it: who learned that such views are paid for paid for
    any wall close by. An episode that ends at the goal shows none of them.
    """
    count = store.starts[num_training(store)]
    tables, has_task = np.zeros(0, np.int64), np.zeros(count, bool)
    if store.hands is not None:
        tables, has_task = has_things(store.hands), store.hands.task[:count] >= 0
    counts = ~has_task if (~has_task).any() else ~np.zeros(count, bool)
    paid = is_paid(store, np.arange(count))
    walks, arrivals = np.flatnonzero(counts & ~paid), np.flatnonzero(counts & arriving(paid, store.starts))
    return tables[tables < count], walks if len(walks) else np.flatnonzero(counts), arrivals


def arriving(paid: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which of the frames that are paid for, bool [N], are among the first ARRIVING of a run of them that an episode
    did not begin with: bool [N]. starts: positions of the first frames of episodes."""
    shown = np.zeros_like(paid)
    for first, after in itertools.pairwise(starts[starts <= len(paid)]):
        at_goal = paid[first:after]
        arrives = at_goal & ~np.r_[True, at_goal[:-1]]
        for _ in range(ARRIVING - 1):
            arrives = arrives | (at_goal & np.r_[False, arrives[:-1]])
        shown[first:after] = arrives
    return shown
