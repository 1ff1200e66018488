"""Stage `decoder` with `hands_only`: the decoder learns hands, and what they hid until now, and changes nothing else.

With `codec.hand_decoder` that is the codec's second decoder, which no walker uses; it begins as a copy of the first.

A hand's outline is known before it is dreamed: the pose video says where each bone is. A decoder that is shown it
(`CodecConfig.hand_width`) need not guess that from a few tokens and from what memory has of the hand in another place.

Behind a hand nothing shows of a dream as much as the place where the arm was: memory has never seen it, and a decoder
that trusts a dreamed latent paints an arm there, which memory then keeps (docs/LOG.md). But a table goes on as it is
around the hole, and that much the decoder is shown.

So in dreams along recorded motion, pixels on hands and closely around them, and those that memory does not show of a
table, must be the recording's; all others stay as the decoder of `--init` paints them. A walker's holes are not filled:
what comes into view there can be anything, and the mean of all rooms is a smear. Hands have to look real to a critic
too, or fingers that are a little off melt into their mean; what is in a hole is not asked of it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.codec import Codec
from worldscape.conditioning.layers import NOBODY, OBJECT, OBJECT_RIM
from worldscape.conditioning.reproject import Anchor
from worldscape.data.clips import Datasets, FrameStore
from worldscape.evaluate.metrics import error_to_psnr
from worldscape.train.codec import picture_grid, picture_loss
from worldscape.train.critic import Critic, critic_losses, make_critic
from worldscape.train.rollouts import Moment, RolloutPlan, notes_at, owners_at, take_rollouts, told_of_hands
from worldscape.world import WorldModel

if TYPE_CHECKING:
    from worldscape.train.decoder import DecoderTrainConfig

TRUE_WEIGHT = 4.0  # of a pixel that is to be the recording's against one that is to stay
TABLE_SHARE = 0.75  # of a batch's rows have such pixels, where there are any
AROUND = 2  # pixels around a hand that are to be the recording's too
NUM_PICTURES = 12  # a row of the sample pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class HandsStage:
    """Trains the decoder on hands and in holes, and a critic of hands beside it that is thrown away in the end.

    `before` is the codec as it was, `with_truth` long [M] the places of the rollouts' frames that have pixels to learn.
    """

    store: FrameStore
    rollouts: dict[str, Tensor]
    config: DecoderTrainConfig
    before: Codec
    with_truth: Tensor
    critic: Critic
    name: str = "decoder of hands"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The decoder and the critic."""
        return nn.ModuleDict({"decoder": model.codec.for_hands().decoder, "critic": self.critic})

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Moments of dreams (what_hands_show), `twin`: the recorded frames, RGB-D, and whether it is the decoder's
        turn."""
        rng, size = np.random.default_rng([self.config.seed, step, rank, 8]), self.config.batch_size
        drawn = self._draw(rng, round(TABLE_SHARE * size) if len(self.with_truth) else 0, size)
        return drawn | {"is_turn": torch.tensor((step + 1) % self.config.maker_every == 0)}

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The critic's own loss; on the decoder's turn also pixels, edges and the critic's opinion of hands. In
        decibels: the RGB of hands and of holes as it was and as it is, and what else has changed."""
        with torch.set_grad_enabled(bool(batch["is_turn"])):
            made, before = self._paint(model, batch)
        hand, hole, twin = batch["hand"], batch["hole"], batch["twin"]
        is_true = torch.maximum(hand, hole)
        wanted, weight = before.lerp(twin, is_true), 1.0 + (TRUE_WEIGHT - 1.0) * is_true
        opinion = critic_losses(self.critic, wanted, wanted.lerp(made, hand), generator)
        loss = opinion.critic
        squared = (made - wanted)[:, :3].square()
        pixels = picture_loss(made, wanted, weight) + (weight * squared).mean()
        if batch["is_turn"]:
            loss = loss + pixels + self.config.adversarial * opinion.maker
        return {
            "loss": loss,
            "pixels": pixels.detach(),
            "critic": opinion.critic.detach(),
            "margin": opinion.margin,
            "hand_psnr_before": _decibels(before - twin, hand),
            "hand_psnr": _decibels(made - twin, hand),
            "hole_psnr_before": _decibels(before - twin, hole),
            "hole_psnr": _decibels(made - twin, hole),
            "kept_psnr": _decibels(made - before, 1.0 - is_true),
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Rows: recorded frames; what memory shows; the dream as it was, and as it is."""
        rng, device = np.random.default_rng([self.config.seed, 9]), next(model.parameters()).device
        batch = self._draw(rng, NUM_PICTURES if len(self.with_truth) else 0, NUM_PICTURES)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        made, before = self._paint(model, batch)
        return {"decoder": picture_grid([batch["twin"], batch["anchor"], before, made])}

    def _paint(self, model: WorldModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch's latents as the decoder paints them now, and as it did before: RGB-D."""
        anchor, drawn = Anchor(batch["anchor"], batch["mask"]), batch["drawn"]
        with torch.no_grad():
            codec = model.codec.for_hands()
            skips = codec.encode_anchor(anchor).skips
            before = self.before.to(batch["latent"].device)
            kept = before.decode(batch["latent"], anchor, skips, drawn).float()
        return codec.decode(batch["latent"], anchor, skips, drawn).float(), kept

    def _draw(self, rng: np.random.Generator, num_true: int, size: int) -> dict[str, Tensor]:
        frames = self.rollouts["frames"]
        rows = self.with_truth[torch.from_numpy(rng.integers(max(len(self.with_truth), 1), size=num_true))]
        rows = torch.cat([rows, torch.from_numpy(rng.integers(frames.numel(), size=size - num_true))])
        index, notes = notes_at(self.rollouts, torch.unravel_index(rows, frames.shape))
        return notes | {"twin": self.store.rgbd(index)}


def what_hands_show(store: FrameStore, moment: Moment) -> dict[str, Tensor]:
    """`latent` [E, P, C], `anchor` [E, 4, h, w], `mask` bool [E, 1, h, w] and what told_of_hands names, which the
    decoder is given; `hand` bool [E, 1, h, w]: where the recording shows a hand, and around it; `hole` bool
    [E, 1, h, w]: where memory shows nothing of a table, and the recording no hand."""
    rgbd, mask = moment.view.recall.anchor
    hand = hole = torch.zeros_like(mask, dtype=torch.bool)
    if store.hands is not None:
        owner = owners_at(store, moment.index, mask.device)[:, None]
        is_table = store.hands.moves(moment.index)[:, None, None, None].to(mask.device)
        is_hand = (owner != NOBODY) & (owner != OBJECT) & (owner != OBJECT_RIM)
        hole = is_table & (owner == NOBODY) & (mask <= 0)
        hand = (F.max_pool2d(is_hand.to(mask.dtype), 2 * AROUND + 1, 1, AROUND) > 0) & ~hole
    given = {"latent": moment.engine.state.latent, "anchor": rgbd, "mask": mask > 0, **told_of_hands(store, moment)}
    return given | {"hand": hand, "hole": hole}


def build_hands_stage(
    dreamer: WorldModel, store: FrameStore, dataset: Datasets, plan: RolloutPlan, config: DecoderTrainConfig
) -> HandsStage:
    """The stage over the codec and generator of `dreamer`. Raises ValueError for recordings without hands."""
    if store.hands is None:
        raise ValueError("hands_only is about hands and what they uncover, and neither dataset nor weights know hands.")
    rollouts = take_rollouts(dreamer, store, dataset, plan, what_hands_show)
    is_true = (rollouts["hand"] | rollouts["hole"]).flatten(2).any(2).flatten()
    return HandsStage(
        store=store,
        rollouts=rollouts,
        config=config,
        before=deepcopy(dreamer.codec.for_hands()).requires_grad_(False).eval(),
        with_truth=torch.nonzero(is_true)[:, 0],
        critic=make_critic(config.critic_width, config.seed),
    )


def _decibels(difference: Tensor, where: Tensor) -> Tensor:
    """PSNR of the RGB of differences [B, 4, h, w] in the pixels `where` [B, 1, h, w] is 1; 0 where there are none."""
    num = where.sum()
    if not bool(num > 0):
        return difference.new_zeros(())
    squared = (difference[:, :3].square().mean(1, keepdim=True) * where).sum() / num
    return error_to_psnr(squared.detach() / 4.0)  # of numbers in [-1, 1]
