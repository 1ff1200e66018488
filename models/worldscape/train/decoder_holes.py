"""Stage `decoder` with `holes_only`: the decoder learns to paint what a hand hid until now, and changes nothing else.

Nothing shows of a hand's dream as much as the place where the arm was: memory has never seen it, and a decoder that
trusts a dreamed latent paints an arm there, which memory then keeps (docs/LOG.md). But a table goes on as it is around
the hole, and that much the decoder is shown. So in dreams along recorded motion, pixels that memory does not show and
no hand covers must be the recording's; all others stay as the decoder of `--init` paints them.

A walker's holes are not filled: what comes into view there can be anything, and the mean of all rooms is a smear.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.codec import Codec
from worldscape.conditioning.layers import NOBODY
from worldscape.conditioning.reproject import Anchor
from worldscape.data.clips import Datasets, FrameStore
from worldscape.evaluate.metrics import error_to_psnr
from worldscape.train.codec import picture_grid, picture_loss
from worldscape.train.config import TrainConfig
from worldscape.train.rollouts import Moment, RolloutPlan, owners_at, take_rollouts
from worldscape.world import WorldModel

HOLE_WEIGHT = 4.0  # of a pixel that is to be learned against one that is to stay
HOLE_SHARE = 0.75  # of a batch's rows have such pixels, where there are any
NUM_PICTURES = 12  # a row of the sample pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class HolesStage:
    """Trains the decoder in holes; `before` is the codec as it was."""

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: TrainConfig
    before: Codec
    with_holes: Tensor
    name: str = "decoder of holes"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The decoder."""
        return model.codec.decoder

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Moments of dreams (what_holes_show), and `twin`: the recorded frames, RGB-D."""
        rng, size = np.random.default_rng([self.config.seed, step, rank, 8]), self.config.batch_size
        return self._draw(rng, round(HOLE_SHARE * size) if len(self.with_holes) else 0, size)

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Pixels and edges; in decibels: the RGB of holes as it was and as it is, and what else has changed."""
        made, before = self._paint(model, batch)
        hole = batch["hole"]
        wanted, weight = before.lerp(batch["twin"], hole), 1.0 + (HOLE_WEIGHT - 1.0) * hole
        squared = (made - wanted)[:, :3].square()
        return {
            "loss": picture_loss(made, wanted, weight) + (weight * squared).mean(),
            "hole_psnr_before": _decibels(before - batch["twin"], hole),
            "hole_psnr": _decibels(made - batch["twin"], hole),
            "kept_psnr": _decibels(made - before, 1.0 - hole),
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Rows: recorded frames; what memory shows; the dream as it was, and as it is."""
        rng, device = np.random.default_rng([self.config.seed, 9]), next(model.parameters()).device
        batch = self._draw(rng, NUM_PICTURES if len(self.with_holes) else 0, NUM_PICTURES)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        made, before = self._paint(model, batch)
        return {"decoder": picture_grid([batch["twin"], batch["anchor"], before, made])}

    def _paint(self, model: WorldModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch's latents as the decoder paints them now, and as it did before: RGB-D."""
        anchor = Anchor(batch["anchor"], batch["mask"])
        with torch.no_grad():
            skips = model.codec.encode_anchor(anchor).skips
            before = self.before.to(batch["latent"].device).decode(batch["latent"], anchor, skips).float()
        return model.codec.decode(batch["latent"], anchor, skips).float(), before

    def _draw(self, rng: np.random.Generator, num_holes: int, size: int) -> dict[str, Tensor]:
        num_frames = self.rollouts["frames"].numel()
        holes = self.with_holes[torch.from_numpy(rng.integers(max(len(self.with_holes), 1), size=num_holes))]
        rows = torch.cat([holes, torch.from_numpy(rng.integers(num_frames, size=size - num_holes))])
        notes = {name: note.flatten(0, 1)[rows] for name, note in self.rollouts.items()}
        index = notes.pop("frames").numpy()
        return {name: note.float() for name, note in notes.items()} | {"twin": self.store.rgbd(index)}


def what_holes_show(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`latent` [E, P, C], `anchor` [E, 4, h, w] and `mask` bool [E, 1, h, w], which the decoder is given; `hole` bool
    [E, 1, h, w]: where memory shows nothing of a table and the recording no hand."""
    rgbd, mask = moment.view.recall.anchor
    hole = torch.zeros_like(mask, dtype=torch.bool)
    if store.hands is not None:
        is_table = torch.from_numpy(store.hands.present[moment.index].any(1))[:, None, None]
        hole = (is_table & (owners_at(store, moment.index) == NOBODY))[:, None].to(mask.device) & (mask <= 0)
    return {"latent": moment.engine.state.latent, "anchor": rgbd, "mask": mask > 0, "hole": hole}


def build_holes_stage(
    dreamer: WorldModel, store: FrameStore, dataset: Datasets, plan: RolloutPlan, config: TrainConfig
) -> HolesStage:
    """The stage over the codec and generator of `dreamer`. Raises ValueError for recordings without hands."""
    if store.hands is None:
        raise ValueError("holes_only is about what hands uncover, and neither dataset nor weights know hands.")
    rollouts = take_rollouts(dreamer, store, dataset, plan, what_holes_show)
    with_holes = torch.nonzero(rollouts["hole"].flatten(2).any(2).flatten())[:, 0]
    before = deepcopy(dreamer.codec).requires_grad_(False).eval()
    return HolesStage(store=store, rollouts=rollouts, config=config, before=before, with_holes=with_holes)


def _decibels(difference: Tensor, where: Tensor) -> Tensor:
    """PSNR of the RGB of differences [B, 4, h, w] in the pixels `where` [B, 1, h, w] is 1; 0 where there are none."""
    num = where.sum()
    if not bool(num > 0):
        return difference.new_zeros(())
    squared = (difference[:, :3].square().mean(1, keepdim=True) * where).sum() / num
    return error_to_psnr(squared.detach() / 4.0)  # of numbers in [-1, 1]
