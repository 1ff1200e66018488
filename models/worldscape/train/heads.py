"""Stage `heads`: motion, reward and termination read off the finished generator; depth guessed from a single picture.

A step is blocked where the simulator let less happen than was commanded; a frame earns the reward where the simulator
paid or reported success.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.conditioning.hands import HandScale
from worldscape.config import BodyConfig, MemoryConfig, WorldConfig
from worldscape.data.clips import Datasets, FrameStore, load_frames
from worldscape.heads import Heads
from worldscape.train.codec import picture_rows
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.goal_heads import Sightings, find_sightings, goal_labels, goal_losses
from worldscape.train.hand_heads import dreamlike, hand_labels, hand_losses, has_things, thing_labels, thing_losses
from worldscape.train.motion_heads import (
    dreamed_surroundings,
    mirror_some,
    motion_labels,
    motion_losses,
    recorded_surroundings,
    share,
    walk_moments,
)
from worldscape.train.object_heads import object_labels, object_losses, object_stretches
from worldscape.train.rollouts import Moment, RolloutPlan, notes_at, take_rollouts
from worldscape.train.runtime import choose_device
from worldscape.train.world import NUM_SAMPLES
from worldscape.world import WorldModel

COUNTS = ("walks", "pictures", "things", "objects", "events", "goals")
"""What the heads of pictures learn from a step: fields of HeadsTrainConfig."""
LOSSES = {"events": 1.0, "depth": 4.0, "motion": 1.0, "wrist": 1.0, "things": 1.0, "object": 1.0, "goal": 1.0}
"""What each head's loss counts."""
PAID_SHARE = 8  # one of so many frames that the events head learns from shows the goal
PAID_WEIGHT = 1 / 6  # what such a frame counts beside others: in a walk it is at least so much rarer than in a batch
ARRIVING = 3  # frames from the first at the goal on that still show it
NEAR_MISS = 2.0  # metres from the goal: half of the frames that are not paid for are no farther, where that is known


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsTrainConfig(TrainConfig):
    """TrainConfig of the heads stage; batch_size counts frames.

    dreams: stretches of episodes that are dreamed again (half as many are read as recorded); dream_frames: frames of
    each. walks: recorded walks a step that the motion head learns from beside dreamed ones; pictures: frames that the
    depth head learns from; things, events and goals: those that the things, the events and the goal head learn from;
    objects: stretches that the object head learns from; 0 leaves a head as it is. pictures_only: train those six on
    recordings, without dreams, and leave wrists as they are.
    """

    dreams: int = 640
    dream_frames: int = 40
    pictures_only: bool = False
    walks: int = 64
    pictures: int = 16
    things: int = 64
    objects: int = 128
    events: int = 64
    goals: int = 64

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name in COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.pictures_only and not any(getattr(self, name) for name in COUNTS):
            raise ValueError(f"pictures_only with {', '.join(COUNTS)} all 0 leaves nothing to train; raise one of them")

    def check_episodes(self, store: FrameStore, memory: MemoryConfig) -> None:
        if not self.pictures_only:
            plan_rollouts(store, self).able(store)


DEFAULTS: dict[str, TrainConfig] = {
    "debug": HeadsTrainConfig(
        **DEBUG, batch_size=16, dreams=4, dream_frames=8, walks=4, pictures=4, things=4, objects=4, events=4, goals=4
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
    things on `tables`, that of events on `arrivals` at the goal, on `walks` elsewhere (picture_frames) and on those of
    them that are `near_misses`, that of goals on `sightings`; and that of objects on `stretches`. The last NUM_SAMPLES
    episodes are kept for the sample pictures."""

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: HeadsTrainConfig
    scale: HandScale
    body: BodyConfig
    max_pitch: float
    recorded_walks: np.ndarray
    tables: np.ndarray
    stretches: np.ndarray
    walks: np.ndarray
    arrivals: np.ndarray
    near_misses: np.ndarray
    sightings: Sightings
    name: str = "heads"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The heads; without rollouts those that read pictures."""
        return model.heads if self.rollouts else model.heads.of_pictures()

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """What the heads see, [B, ...] (seen_by_heads), with what followed: motion_labels, and of hands hand_labels;
        recorded walks behind the dreamed ones; pictures [N, 4, h, w]; events; goals; of hands thing_labels and
        object_labels."""
        rng = np.random.default_rng([self.config.seed, step, rank, 8])
        moved = self._dreamed(rng) if self.rollouts else {}
        if self.config.walks and len(self.recorded_walks):
            walks = self._walks(rng)
            moved |= {name: torch.cat([moved[name], new]) if name in moved else new for name, new in walks.items()}
        pictures = rng.integers(self.store.starts[num_training(self.store)], size=self.config.pictures)
        things = {}
        if self.store.hands is not None and len(self.tables) and self.config.things:
            things = thing_labels(self.store, self.store.hands, rng.choice(self.tables, self.config.things), rng)
        pictured = {"picture": self.store.rgbd(pictures)} if len(pictures) else {}
        events = self._events(rng) if self.config.events else {}
        goals = goal_labels(self.store, self.sightings, self.config.goals, rng)
        objects = object_labels(self.store, self.stretches, self.config.objects, rng)
        return {**moved, **pictured, **events, **things, **goals, **objects}

    def _dreamed(self, rng: np.random.Generator) -> dict[str, Tensor]:
        stretches, length = self.rollouts["frames"].shape
        place = (
            torch.from_numpy(rng.integers(stretches, size=self.config.batch_size)),
            torch.from_numpy(rng.integers(length, size=self.config.batch_size)),
        )
        now, seen = notes_at(self.rollouts, place)
        tracks = self.store.hands
        told = {} if tracks is None else hand_labels(self.store, tracks, now, self.scale)
        seen["near"] = mirror_some(seen["near"], rng)
        return {**seen, **told, **motion_labels(self.store, now)}

    def _walks(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Recorded walks: near [N, 4, G, G] and motion_labels."""
        now = rng.choice(self.recorded_walks, self.config.walks)
        near = recorded_surroundings(self.store, now, self.body, self.max_pitch, rng)
        return {"near": mirror_some(near, rng), **motion_labels(self.store, now)}

    def _events(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Training frames, some in a mirror and as dreams are: event_rgbd [N, 4, h, w], reward and end [N]."""
        frames, paid = draw_events(self.arrivals, self.near_misses, self.walks, self.config.events, rng)
        return {
            "event_rgbd": dreamlike(mirror_some(self.store.rgbd(frames), rng), rng),
            "reward": torch.from_numpy(paid),
            "end": torch.from_numpy(np.maximum(self.store.terminated[frames], paid)),
        }

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The sum of what each head misses: event_losses, depth_loss, motion_losses, hand_losses, thing_losses,
        object_losses and goal_losses, of those that the batch has labels for."""
        heads = model.heads
        losses: dict[str, Tensor] = {}
        noted: dict[str, Tensor] = {}
        for found in (
            event_losses(heads, batch) if "event_rgbd" in batch else {},
            depth_loss(heads, batch) if "picture" in batch else {},
            motion_losses(heads, batch) if "near" in batch else {},
            hand_losses(heads, batch) if "is_told" in batch else {},
            thing_losses(heads, batch) if "thing_rgbd" in batch else {},
            object_losses(heads, batch) if "object_points" in batch else {},
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


def draw_events(
    arrivals: np.ndarray, near_misses: np.ndarray, walks: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` frames that the events head learns from, long, and whether they are paid for, float: one in PAID_SHARE an
    arrival, half of the others near misses, where there are any."""
    num_paid = count // PAID_SHARE if len(arrivals) else 0
    num_near = (count - num_paid) // 2 if len(near_misses) else 0
    counts = ((arrivals, num_paid), (near_misses, num_near), (walks, count - num_paid - num_near))
    frames = np.concatenate([rng.choice(kind, number) for kind, number in counts])
    return frames, (np.arange(count) < num_paid).astype(np.float32)


def event_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy of reward and end, as rare as they are in walks; recall and precision of rewards."""
    events = heads.events(batch["event_rgbd"])
    rare = torch.tensor(PAID_WEIGHT, device=events.reward.device)
    reward = F.binary_cross_entropy_with_logits(events.reward.float(), batch["reward"], pos_weight=rare)
    end = F.binary_cross_entropy_with_logits(events.end.float(), batch["end"], pos_weight=rare)
    pays = (events.reward > 0).float()
    return {
        "events": reward + end,
        "reward_recall": share(pays, batch["reward"]),
        "reward_precision": share(batch["reward"], pays),
    }


def depth_loss(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """L1 of inverse depth."""
    return {"depth": (heads.depth(batch["picture"][:, :3]).float() - batch["picture"][:, 3]).abs().mean()}


def seen_by_heads(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`near` [E, 4, G, G]: the surroundings along the recorded control that follows; in an engine with hands also
    `latent` [E, P, C] and `features` [E, P, D]."""
    state = moment.engine.state
    seen = {"near": dreamed_surroundings(store, moment)}
    return seen if store.hands is None else {**seen, "latent": state.latent, "features": state.features}


def is_paid(store: FrameStore, index: np.ndarray) -> np.ndarray:
    """Whether these frames earned the episode's reward; tasks of hands pay a little all the time, so there: success."""
    paid = store.reward[index] > 0
    if store.hands is not None:
        paid = paid & (store.hands.task[index] < 0)
    return paid | (store.success[index] > 0)


def num_training(store: FrameStore) -> int:
    """Episodes to train on: all but the last NUM_SAMPLES, of a dataset that has so many."""
    return max(store.num_episodes - NUM_SAMPLES, 1)


class Dreams(Protocol):
    """What the settings of a stage say of the dreams it learns from."""

    @property
    def dreams(self) -> int: ...
    @property
    def dream_frames(self) -> int: ...
    @property
    def seed(self) -> int: ...


def plan_rollouts(store: FrameStore, config: Dreams, recorded: int = 0) -> RolloutPlan:
    """The dreams that these settings ask for, of training episodes, and so many stretches as recorded."""
    return RolloutPlan(
        episodes=num_training(store),
        dreamed=config.dreams,
        recorded=recorded,
        length=config.dream_frames,
        seed=config.seed,
    )


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> HeadsStage:
    """The stage for a dataset, over the codec and generator of `init`."""
    assert init is not None and isinstance(train_config, HeadsTrainConfig)
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    plan = plan_rollouts(store, train_config, recorded=max(train_config.dreams // 2, 1))
    rollouts: dict[str, Tensor] = {}
    if not train_config.pictures_only:
        rollouts = take_rollouts(
            load_world(init, choose_device(train_config.device)), store, dataset, plan, seen_by_heads
        )
    tables, walks, arrivals = picture_frames(store)
    return HeadsStage(
        store=store,
        rollouts=rollouts,
        config=train_config,
        scale=model_config.hands,
        body=model_config.body,
        max_pitch=model_config.controls.max_pitch,
        recorded_walks=walk_moments(store, num_training(store)),
        tables=tables,
        stretches=object_stretches(store, num_training(store) if model_config.heads.object else 0),
        walks=walks,
        arrivals=arrivals,
        near_misses=walks[store.goal_distance[walks] < NEAR_MISS],
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
