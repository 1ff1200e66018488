"""Stage `spatial`: the generator goes on learning, now also that its frames show one place.

L = L_fm + alpha L_depth + beta L_render, both ramped up. L_depth is of the denoised frames, decoded as if memory showed
nothing, and compares them with what the decoder makes of the true latents, so that these are its minimum: against the
depth that was recorded it would teach the generator to mend the codec. Nearly clean frames, which only have to be
copied, do not count, and pure noise, whose answer is a mean, does not either. L_render is of Gaussians that an
aggregator predicts from the features and the denoised frames (which it does not move) of some frames of a clip, drawn
from those frames' cameras and from held-out ones; what moves between frames, hands and what they handle, is left out.
The aggregator takes no part in a dream.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from worldscape.checkpoint import load_aggregator, load_world
from worldscape.codec import normalise_tokens
from worldscape.conditioning.reproject import decode_depth
from worldscape.config import WorldConfig
from worldscape.data.clips import Datasets, corrupt_sources
from worldscape.evaluate.metrics import error_to_psnr
from worldscape.splats.aggregator import Aggregated, Aggregator, Context, block_median
from worldscape.splats.config import PRESETS
from worldscape.splats.render import Rendering, render
from worldscape.train.codec import decode_blind, picture_loss, picture_rows
from worldscape.train.config import DEBUG, TrainConfig, require
from worldscape.train.known import Recorded, find_known, find_still, known_in, rebuild
from worldscape.train.runtime import choose_device
from worldscape.train.spatial_losses import DEPTH_KINDS, depth_loss, render_loss
from worldscape.train.world import Refined, WorldStage, WorldTrainConfig
from worldscape.train.world import build_stage as build_world_stage
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialTrainConfig(WorldTrainConfig):
    """WorldTrainConfig of the spatial stage.

    alpha, beta: weights of L_depth and L_render, reached linearly over the first `ramp` steps. spatial_rows: clips of
    each batch on which they are measured. num_held_out: frames of a clip that the aggregator does not see; num_shown:
    of those it sees, how many are drawn. picture_dropout: share of clips of which it sees features alone.
    depth_kind: "metric", or "relative" for recordings whose depth is known up to scale and shift. keep: how far, from 0
    to 1, frames are drawn from what the decoder made of them at first to what memory shows; 0 leaves the decoder alone.
    """

    alpha: float = 0.25
    beta: float = 0.25
    ramp: int = 200
    spatial_rows: int = 4
    num_held_out: int = 2
    num_shown: int = 1
    picture_dropout: float = 0.3
    depth_kind: str = "metric"
    keep: float = 0.5

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name, least in (("alpha", 0), ("beta", 0), ("ramp", 0), ("num_shown", 0)):
            require(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        for name in ("spatial_rows", "num_held_out"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("picture_dropout", "keep"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        require(self.depth_kind in DEPTH_KINDS, "depth_kind", self.depth_kind, f"one of {', '.join(DEPTH_KINDS)}")


DEFAULTS: dict[str, TrainConfig] = {
    "debug": SpatialTrainConfig(**DEBUG, batch_size=4, dream_frames=16, ramp=2, spatial_rows=2, num_held_out=1),
    "nano": SpatialTrainConfig(
        steps=2000, batch_size=32, lr=3e-4, warmup=100, ema=0.998, optimizer="muon", precision="bf16", threads=2
    ),
    "small": SpatialTrainConfig(
        steps=6000, batch_size=128, lr=2e-4, warmup=200, ema=0.999, optimizer="muon", precision="bf16", spatial_rows=16
    ),
}


class Space(NamedTuple):
    """A batch's clips in space: denoised frames rgbd [R, F, 4, h, w] and what the true latents decode to, Gaussians of
    the context frames, and these drawn from V views (held-out ones first)."""

    rgbd: Tensor
    wanted: Tensor
    found: Aggregated
    drawn: Rendering


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialStage:
    """Trains the generator, walkers' decoder and an aggregator on the world stage's clips. `aggregator` and
    `before`: the aggregator and the model as they begin."""

    clips: WorldStage
    config: SpatialTrainConfig
    aggregator: Aggregator
    before: WorldModel
    name: str = "spatial"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The transformer, the decoder and the model's aggregator, which is put in place where there is none."""
        if model.aggregator is None:
            model.aggregator = copy.deepcopy(self.aggregator).to(next(model.parameters()).device)
        parts = {"transformer": model.transformer, "aggregator": model.aggregator}
        return nn.ModuleDict(parts | {"decoder": model.codec.decoder} if self.config.keep else parts)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """The world stage's clips, and of the first R = spatial_rows the pictures, depth and cameras.

        own long [F]: places of the clips' frames that are not retrieved, which alone are looked at in space; of these,
        views long [V]: frames to draw, num_held_out held-out ones first; context long [N]: those the aggregator sees;
        still bool [R, F, h, w]: pixels of what does not move between frames; ramp: share of alpha and beta that this
        step takes.
        """
        rng = np.random.default_rng([self.config.seed, step, rank, 8])
        store, batch = self.clips.store, self.clips.batch(step, rank, world_size)
        own = np.delete(np.arange(batch["frames"].shape[1]), self.clips.retrieved)
        frames = batch["frames"][: self.config.spatial_rows, own].numpy()
        order = rng.permutation(frames.shape[1])
        held_out, context = np.split(order, [self.config.num_held_out])
        return batch | {
            "pictures": store.rgbd(frames),
            "depth": torch.from_numpy(store.depth[frames]).float(),
            "poses": torch.from_numpy(store.pose[frames]),
            "intrinsics": torch.from_numpy(store.intrinsics[frames[:, 0]]),
            "has_picture": torch.from_numpy(rng.random(len(frames)) >= self.config.picture_dropout),
            "own": torch.from_numpy(own),
            "views": torch.from_numpy(np.concatenate([held_out, context[: self.config.num_shown]])),
            "context": torch.from_numpy(np.sort(context)),
            "still": find_still(store, frames),
            "ramp": torch.tensor(min(1.0, (step + 1) / max(self.config.ramp, 1))),
        }

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """L_fm + ramp (alpha L_depth + beta L_render), and each of them."""
        refined = self.clips.refine(model, batch, generator)
        parts = self.clips.flow_loss(batch, refined)
        if self.config.alpha == self.config.beta == 0:  # the stage's own control: the same batches without its losses
            return parts
        with torch.autocast(batch["latent"].device.type, enabled=False):  # geometry needs all of float32
            space = self.build_space(model, batch, refined)
            depth, picture = self.measure_depth(batch, refined, space), self.measure_views(batch, space)
            shown = self.measure_shown(model, batch, refined, generator)
        views = picture.loss + shown
        total = parts["loss"] + batch["ramp"] * (self.config.alpha * depth + self.config.beta * views)
        return {
            **parts,
            "loss": total,
            "flow": parts["loss"].detach(),
            "depth": depth.detach(),
            "render": picture.loss.detach(),
            "shown": shown.detach(),
            "psnr_held_out": picture.psnr,
            "seen": picture.seen,
        }

    def build_space(self, model: WorldModel, batch: dict[str, Tensor], refined: Refined) -> Space:
        """Denoised frames, Gaussians and views of the first clips of a batch."""
        assert model.aggregator is not None
        rows, own, context = len(batch["pictures"]), batch["own"], batch["context"]
        rgbd = decode_frames(self.before, refined.prediction.latent[:rows, own])
        with torch.no_grad():
            wanted = decode_frames(self.before, batch["latent"][:rows, own])
        seen = rgbd.detach().masked_fill(~batch["still"][:, :, None], torch.nan)  # left out by the aggregator
        found = model.aggregator(
            Context(
                features=refined.prediction.features[:rows, own[context]].float(),
                rgbd=seen[:, context],
                has_picture=batch["has_picture"],
                poses=batch["poses"][:, context],
                intrinsics=batch["intrinsics"],
            )
        )
        cameras = batch["poses"][:, batch["views"]]
        intrinsics = repeat(batch["intrinsics"], "r k -> r v k", v=cameras.shape[1])
        return Space(rgbd, wanted, found, render(found.gaussians, cameras, intrinsics, rgbd.shape[-1]))

    def measure_depth(self, batch: dict[str, Tensor], refined: Refined, space: Space) -> Tensor:
        """L_depth of the denoised frames against the true latents' where memory shows most of a token, noisy ones
        counting less and nearly clean ones not at all, and of the Gaussians of the context frames against what was
        recorded."""
        kind, target = self.config.depth_kind, batch["depth"]
        level = refined.level[: len(target), batch["own"]]
        weight = (1.0 - level) * (level > self.config.context_level)
        found, wanted = (decode_depth(rgbd[:, :, 3]) for rgbd in (space.rgbd, space.wanted))
        shown = rearrange(refined.coverage[: len(target), batch["own"]], "r t (h w) -> r t h w", h=self.grid)
        side = target.shape[-1] // self.grid
        is_shown = repeat(shown > 0.5, "r t h w -> r t (h p) (w q)", p=side, q=side)
        wanted = wanted.masked_fill(~is_shown, torch.nan)
        of_frames = (weight * depth_loss(found, wanted)).sum() / weight.sum().clamp_min(1.0)
        still = target.masked_fill(~batch["still"], torch.nan)[:, batch["context"]]
        coarse = block_median(still, target.shape[-1] // space.found.depth.shape[-1])
        return of_frames + depth_loss(space.found.depth, coarse, kind=kind).mean()

    def measure_views(self, batch: dict[str, Tensor], space: Space) -> ViewScore:
        """L_render of the drawn views, of the held-out ones where a context frame truly shows what they show."""
        views, held_out = batch["views"], self.config.num_held_out
        target = batch["pictures"][:, views, :3] / 2 + 0.5
        seen = find_seen(batch, views[:held_out])
        mask = torch.cat([seen, batch["still"][:, views[held_out:]]], 1)
        error = (space.drawn.rgb - target)[:, :held_out].detach().square().mean(2)
        error = (error * seen).sum() / seen.sum().clamp_min(1)
        loss = render_loss(space.drawn.rgb, target, mask).mean()
        return ViewScore(loss, error_to_psnr(error), seen.float().mean())

    def measure_shown(
        self, model: WorldModel, batch: dict[str, Tensor], refined: Refined, generator: torch.Generator
    ) -> Tensor:
        """L_render of the held-out frames of clips without hands as a dream shows them: decoded with what the context
        frames show of them, these being as a dream's may be (corrupt_sources), and drawn to it by `keep`."""
        if self.config.keep == 0 or "hands" in batch:
            return batch["ramp"].new_zeros(())
        views, num = batch["views"][: self.config.num_held_out], self.clips.model_config.memory.num_anchors
        order = torch.randperm(len(batch["context"]), generator=generator, device=generator.device)
        seen, held_out = recorded_in(batch, batch["context"][order[:num]]), recorded_in(batch, views)
        with torch.no_grad():
            seen = seen._replace(rgbd=corrupt_sources(seen.rgbd, generator))
            anchor = rebuild(seen, held_out.poses, batch["intrinsics"])
            is_known = known_in(anchor, held_out).flatten(0, 1)[:, None]
            latent = refined.prediction.latent[: len(seen.rgbd), batch["own"][views]].float()
            given = (normalise_tokens(latent.flatten(0, 1)), model.codec.encode_anchor(anchor).skips, anchor)
            wanted = self.before.codec.decoder(*given).lerp(anchor.rgbd, self.config.keep * is_known)
        return picture_loss(model.codec.decoder(*given), wanted)

    @property
    def grid(self) -> int:
        """Tokens along a side of a frame."""
        return self.clips.model_config.codec.grid

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """The first clips of a fixed batch: rows of frames, the same drawn from Gaussians, and where they count."""
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.batch(0, 0, 1).items()}
        refined = self.clips.refine(model, batch, torch.Generator(device).manual_seed(self.config.seed))
        drawn = self.build_space(model, batch, refined).drawn.rgb
        target = batch["pictures"][:, batch["views"], :3] / 2 + 0.5
        seen = find_seen(batch, batch["views"])[:, :, None].expand(-1, -1, 3, -1, -1)
        rows = []
        for pictures in (target, drawn.clamp(0, 1), seen.float()):
            flat = rearrange((255 * pictures).round().to(torch.uint8), "r v k h w -> (r v) h w k")
            rows.append(flat.cpu().numpy())
        return {"views": picture_rows(rows)}


class ViewScore(NamedTuple):
    """L_render; PSNR in dB of the held-out views and the share of their pixels that count (no gradient)."""

    loss: Tensor
    psnr: Tensor
    seen: Tensor


def find_seen(batch: dict[str, Tensor], views: Tensor) -> Tensor:
    """Which pixels of the frames `views` [V] the context frames show, where nothing moves: bool [R, V, h, w]."""
    return find_known(recorded_in(batch, batch["context"]), recorded_in(batch, views), batch["intrinsics"])


def recorded_in(batch: dict[str, Tensor], frames: Tensor) -> Recorded:
    """The frames `frames` [F] of a batch's clips, as they were recorded."""
    return Recorded(*(batch[name][:, frames] for name in ("pictures", "poses", "still")))


def decode_frames(model: WorldModel, latent: Tensor) -> Tensor:
    """Latents [R, F, P, C] -> RGB-D [R, F, 4, h, w] in [-1, 1], as if memory showed nothing."""
    tokens = normalise_tokens(rearrange(latent.float(), "r t p c -> (r t) p c"))
    rgbd = decode_blind(model, tokens).clamp(-1.0, 1.0)
    return rearrange(rgbd, "(r t) k h w -> r t k h w", r=len(latent))


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> SpatialStage:
    """The stage for a dataset, over the codec and generator of `init`, and its aggregator where it has one.

    Raises ValueError for recorded depth that is NaN and for clips that leave the aggregator nothing to look at.
    """
    assert init is not None and isinstance(train_config, SpatialTrainConfig)
    num_frames = model_config.memory.num_sink + model_config.memory.local_window + 1
    rule = f"below the {num_frames} frames of a clip that are not retrieved"
    require(train_config.num_held_out < num_frames, "num_held_out", train_config.num_held_out, rule)
    clips = build_world_stage(model_config, train_config, dataset, init)
    if np.isnan(clips.store.depth).any():
        raise ValueError(f"{dataset} has depth that is NaN; record 0 where nothing was measured.")
    aggregator = load_aggregator(init)
    if aggregator is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train_config.seed)
            config = PRESETS[model_config.preset]
            aggregator = Aggregator(config, model_config.codec, model_config.transformer.width)
    before = load_world(init, choose_device(train_config.device)).requires_grad_(False)
    return SpatialStage(clips=clips, config=train_config, aggregator=aggregator, before=before)
