"""Stage `decoder`: the codec's decoder learns to be sharp, on recorded frames and on its own closed-loop dreams.

A decoder trained on pixels alone paints the mean of all pictures that fit its latent, which is soft, and what memory
shows of a place gets softer as one walks up to it; a critic asks for more. Encoder and generator stay as they are, so
latents keep their meaning.

Half of each batch are recorded frames. The other half are moments of dreams along recorded motion, made once with the
weights that the stage begins with (rollouts.py), so a second run of the stage learns from what the first one shows.
What the real first frame shows of the view must be true there, pixel by pixel, and look real to the critic; so must
hands. The rest has no truth to be compared with and stays as it was dreamed: left to a critic, or to its twin's patch
statistics, the decoder invents stripes and blobs on plain walls, which memory then keeps (docs/LOG.md). Where memory
shows the same surface, it is drawn towards memory: a dream that paints anew what it has shown flickers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.conditioning.layers import NOBODY
from worldscape.conditioning.reproject import Anchor, decode_depth, same_surface, visible_from
from worldscape.config import MemoryConfig, WorldConfig
from worldscape.data.clips import Datasets, FrameStore, corrupt_sources, load_frames
from worldscape.train.codec import (
    as_pictures,
    disturb_latent,
    draw_pairs,
    draw_targets_hands,
    gather_targets,
    picture_grid,
    picture_loss,
    psnr,
    recall_targets,
    sharpness_ratio,
)
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.critic import Critic, critic_losses, make_critic
from worldscape.train.decoder_hands import HandsStage, build_hands_stage
from worldscape.train.heads import plan_rollouts
from worldscape.train.rollouts import Moment, notes_at, owners_at, take_rollouts, told_of_hands
from worldscape.train.runtime import choose_device
from worldscape.world import WorldModel

NUM_PICTURES = 12  # a row of the sample pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderTrainConfig(TrainConfig):
    """TrainConfig of the decoder stage; a step trains the critic, and every maker_every-th one the decoder too.

    dreams: stretches of episodes that are dreamed again; dream_frames: frames of each. adversarial: weight of the
    critic's opinion beside the pixel losses. blind_share: share of the recorded rows without memory. critic_width:
    channels of the critic's first layer. keep: how far, from 0 to 1, what was dreamed is drawn to what memory shows of
    the same surface. hands_only: learn hands and what they uncover and keep all else
    (decoder_hands.py).
    """

    dreams: int = 256
    dream_frames: int = 64
    adversarial: float = 0.08
    blind_share: float = 0.4
    critic_width: int = 64
    maker_every: int = 2
    keep: float = 0.5
    hands_only: bool = False

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name in ("dreams", "dream_frames", "critic_width", "maker_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("blind_share", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share in [0, 1]")

    def check_episodes(self, store: FrameStore, memory: MemoryConfig) -> None:
        plan_rollouts(store, self).able(store)


DEFAULTS: dict[str, TrainConfig] = {
    "debug": DecoderTrainConfig(**DEBUG, batch_size=4, dreams=4, dream_frames=8, critic_width=8),
    "nano": DecoderTrainConfig(
        steps=2000, batch_size=32, lr=3e-4, warmup=100, betas=(0.5, 0.95), ema=0.998, precision="bf16", threads=2
    ),
    "small": DecoderTrainConfig(
        steps=10000, batch_size=64, lr=3e-4, warmup=200, betas=(0.5, 0.95), ema=0.999, precision="bf16"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderStage:
    """Trains the decoder, and a critic beside it that is thrown away in the end."""

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: DecoderTrainConfig
    num_anchors: int
    critic: Critic
    name: str = "decoder"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The decoder and the critic."""
        return nn.ModuleDict({"decoder": model.codec.decoder, "critic": self.critic})

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Recorded frames and their sources (gather_targets), moments of dreams (what_decoder_sees), and whether it is
        the decoder's turn."""
        config = self.config
        rng = np.random.default_rng([config.seed, step, rank, 5])
        num_recorded = config.batch_size // 2
        return {
            **self._draw_recorded(rng, num_recorded),
            **self._draw_dreamed(rng, config.batch_size - num_recorded),
            "is_turn": torch.tensor((step + 1) % config.maker_every == 0),
        }

    def _draw_recorded(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        targets, sources = draw_pairs(self.store, rng, size, self.num_anchors)
        count = rng.integers(1, self.num_anchors + 1, size=size)
        count = np.where(rng.random(size) < self.config.blind_share, 0, count)
        return gather_targets(self.store, targets, sources, count)

    def _draw_dreamed(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        stretches, length = self.rollouts["frames"].shape
        place = (
            torch.from_numpy(rng.integers(stretches, size=size)),
            torch.from_numpy(rng.integers(min(1, length - 1), length, size=size)),
        )
        index, notes = notes_at(self.rollouts, place)
        return {f"dream_{name}": note for name, note in notes.items()} | {"twin": self.store.rgbd(index)}

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The critic's own loss; on the decoder's turn also pixels, edges and the critic's opinion."""
        batch = as_pictures(batch)
        with torch.set_grad_enabled(bool(batch["is_turn"])):
            rebuilt = self._rebuild(model, batch, generator)
        split, real = len(batch["target"]), batch["dream_real"]
        wanted = torch.cat([batch["target"], self._dreamt(batch).lerp(batch["twin"], real)])
        pixels = picture_loss(rebuilt, wanted)
        judged = torch.cat([rebuilt[:split], wanted[split:].lerp(rebuilt[split:], real)])
        opinion = critic_losses(self.critic, wanted, judged, generator)
        loss = opinion.critic
        if batch["is_turn"]:
            loss = loss + pixels + self.config.adversarial * opinion.maker
        return {
            "loss": loss,
            "pixels": pixels.detach(),
            "margin": opinion.margin,
            "critic": opinion.critic.detach(),
            "psnr": psnr(rebuilt[:split], batch["target"]),
            "sharpness": sharpness_ratio(rebuilt[:split], batch["target"]),
            "sharpness_dreamed": sharpness_ratio(rebuilt[split:], batch["twin"]),
            "sharpness_before": sharpness_ratio(batch["dream_shown"], batch["twin"]),
        }

    def _dreamt(self, batch: dict[str, Tensor]) -> Tensor:
        """What dreamed pixels are to be: as they were shown, drawn to what memory shows of the same surface."""
        shown, anchor = batch["dream_shown"], Anchor(batch["dream_anchor"], batch["dream_mask"])
        is_same = same_surface(anchor, decode_depth(shown[:, 3]))[:, None]
        return shown.lerp(anchor.rgbd, self.config.keep * is_same)

    def _rebuild(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """The recorded frames from their own latents, then the dreamed ones, as the decoder makes them: RGB-D."""
        with torch.no_grad():
            with torch.autocast(batch["target"].device.type, enabled=False):
                recorded = recall_targets(corrupt_sources(batch["sources"], generator), batch)
            dreamed = Anchor(batch["dream_anchor"], batch["dream_mask"])
            anchor = Anchor(*(torch.cat(parts) for parts in zip(recorded, dreamed, strict=True)))
            own = disturb_latent(model.codec.encode(batch["target"]).float(), generator)
            latent, guess = torch.cat([own, batch["dream_latent"]]), model.codec.encode_anchor(anchor)
            hands = draw_targets_hands(batch)
            hands = None if hands is None else torch.cat([hands, batch["dream_drawn"]])
        return model.codec.decode(latent, anchor, guess.skips, hands).float()

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Rows: recorded frames, rebuilt; then a dream's recorded twins, anchors, what was shown before, and now."""
        rng, device = np.random.default_rng([self.config.seed, 6]), next(model.parameters()).device
        batch = self._draw_recorded(rng, NUM_PICTURES) | self._draw_dreamed(rng, NUM_PICTURES)
        batch = as_pictures({name: tensor.to(device) for name, tensor in batch.items()})
        recorded, dreamed = self._rebuild(model, batch, torch.Generator(device).manual_seed(self.config.seed)).split(
            NUM_PICTURES
        )
        rows = [batch["target"], recorded, batch["twin"], batch["dream_anchor"], batch["dream_shown"], dreamed]
        return {"decoder": picture_grid(rows)}


def what_decoder_sees(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`latent` [E, P, C], `anchor` [E, 4, h, w], `mask` bool [E, 1, h, w] and what told_of_hands names, which the
    decoder is given; `shown` [E, 4, h, w], what it makes of them; `real` bool [E, 1, h, w], where the stretch's first
    frame shows the view, or a hand is, which is known too."""
    state, (rgbd, mask), device = moment.engine.state, moment.view.recall.anchor, moment.engine.device
    depth, target, intrinsics, poses = (
        torch.from_numpy(part).to(device, torch.float32)
        for part in (
            store.depth[moment.index],
            store.pose[moment.index],
            store.intrinsics[moment.index],
            store.pose[moment.first],
        )
    )
    first, valid = store.rgbd(moment.first).to(device)[:, None], torch.ones_like(mask[:, :, 0, 0], dtype=torch.bool)
    real = visible_from(first, poses[:, None], valid, depth, target, intrinsics)
    if store.hands is not None:
        real |= (owners_at(store, moment.index, device) > NOBODY)[:, None]
    given = {"latent": state.latent, "anchor": rgbd, "mask": mask > 0, **told_of_hands(store, moment)}
    sharpens = moment.view.hands is None and moment.engine.config.sharpen.is_on
    # A decoder that learned to paint what was sharpened after it would be sharpened twice.
    shown = moment.engine.paint(state.latent, moment.view) if sharpens else state.rgbd
    return {**given, "shown": shown, "real": real}


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> DecoderStage | HandsStage:
    """The stage for a dataset, over the codec and generator of `init`."""
    assert init is not None and isinstance(train_config, DecoderTrainConfig)
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    plan = plan_rollouts(store, train_config)
    dreamer = load_world(init, choose_device(train_config.device))
    if train_config.hands_only:
        return build_hands_stage(dreamer, store, dataset, plan, train_config)
    return DecoderStage(
        store=store,
        rollouts=take_rollouts(dreamer, store, dataset, plan, what_decoder_sees),
        config=train_config,
        num_anchors=model_config.memory.num_anchors,
        critic=make_critic(train_config.critic_width, train_config.seed),
    )
