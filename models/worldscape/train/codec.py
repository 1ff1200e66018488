"""Stage `codec`: RGB-D frames to latents and back, with and without what memory shows of the view.

Each batch holds target frames and a few earlier frames of the same episode. Those are reprojected (partly corrupted, as
a dream's would be) into the target's view. Two reconstructions are trained: from the frame's own latent, and from the
anchor alone, which makes the anchor's latent the best guess before any generator has looked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from worldscape.codec import RGBD_CHANNELS, empty_anchor, normalise_tokens, rgbd_to_frame
from worldscape.conditioning.hands import HANDS
from worldscape.conditioning.layers import Layers, Limbs, Pictures, Thing, owned_by, split_layers
from worldscape.conditioning.reproject import Anchor, decode_depth, reproject
from worldscape.config import WorldConfig
from worldscape.data.clips import (
    Datasets,
    FrameStore,
    corrupt_sources,
    draw_sources,
    draw_targets,
    load_frames,
    to_rgbd,
)
from worldscape.data.hand_tracks import HandTracks
from worldscape.evaluate import metrics
from worldscape.slot_hands import draw_hands
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.world import WorldModel

LIMBS = ("parts", "keypoints", "present")  # what a batch holds of the fields of Limbs
LATENT_NOISE = 0.2  # largest noise added to latents, so that the decoder forgives the generator


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecTrainConfig(TrainConfig):
    """TrainConfig of the codec stage. blind_share: share of the rows rebuilt without memory."""

    blind_share: float = 0.5

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not 0 <= self.blind_share <= 1:
            raise ValueError(f"blind_share is {self.blind_share}; it is a share of the rows in [0, 1]")


DEFAULTS: dict[str, TrainConfig] = {
    "debug": CodecTrainConfig(**DEBUG, batch_size=4),
    "nano": CodecTrainConfig(
        steps=6000,
        batch_size=32,
        lr=1e-3,
        warmup=100,
        ema=0.997,
        optimizer="muon",
        blind_share=0.7,
        precision="bf16",
        threads=2,
    ),
    "small": CodecTrainConfig(steps=20000, batch_size=64, lr=6e-4, warmup=500, ema=0.999, precision="bf16"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecStage:
    """Trains the codec on a recorded dataset; see the module's docstring."""

    store: FrameStore
    config: CodecTrainConfig
    num_anchors: int
    name: str = "codec"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The codec."""
        return model.codec

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Targets [B, h, w, 3], sources [B, N, h, w, 3], their depths and poses, and which sources count."""
        rng = np.random.default_rng([self.config.seed, step, rank, 1])
        return self._draw(rng, self.config.batch_size)

    def _draw(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        targets, sources = draw_pairs(self.store, rng, batch, self.num_anchors)
        return gather_targets(self.store, targets, sources, rng.integers(1, self.num_anchors + 1, size=batch))

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction from latents, a share of the rows without memory; a quarter as much, from the anchor alone."""
        batch = as_pictures(batch)
        target, codec = batch["target"], model.codec
        num_blind = round(self.config.blind_share * len(target))
        noisy, hands = disturb_latent(codec.encode(target), generator), draw_targets_hands(batch)
        told = (None, None) if hands is None else (hands[:num_blind], hands[num_blind:])
        blind, wanted = decode_blind(model, noisy[:num_blind], told[0]), target[num_blind:]
        if len(wanted):
            seeing = self._recall({name: tensor[num_blind:] for name, tensor in batch.items()}, generator)
            guess = codec.encode_anchor(seeing)
            shown = codec.decode(noisy[num_blind:], seeing, guess.skips, told[1]).float()
            alone = picture_loss(codec.decode(guess.latent, seeing, guess.skips, told[1]).float(), wanted)
        else:
            shown, alone = wanted, target.new_zeros(())
        rebuilt = torch.cat([blind, shown])
        return {
            "loss": picture_loss(rebuilt, target) + 0.25 * alone,
            "alone": alone.detach(),
            "psnr_blind": psnr(blind, target[:num_blind]),
            "psnr": psnr(shown, wanted),
            "sharpness_blind": sharpness_ratio(blind, target[:num_blind]),
            "depth": (rebuilt[:, 3] - target[:, 3]).abs().mean().detach(),
        }

    def _recall(self, batch: dict[str, Tensor], generator: torch.Generator) -> Anchor:
        with torch.no_grad(), torch.autocast(batch["target"].device.type, enabled=False):
            return recall_targets(corrupt_sources(batch["sources"], generator), batch)

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Rows: frames, rebuilt without memory, anchors, rebuilt with memory, from memory alone."""
        batch = self._draw(np.random.default_rng([self.config.seed, 2]), 12)
        device = next(model.parameters()).device
        batch = as_pictures({name: tensor.to(device) for name, tensor in batch.items()})
        target = batch["target"]
        anchor = recall_targets(batch["sources"], batch)
        latent, guess, hands = model.codec.encode(target), model.codec.encode_anchor(anchor), draw_targets_hands(batch)
        blind = decode_blind(model, latent, hands)
        with_memory = model.codec.decode(latent, anchor, guess.skips, hands)
        alone = model.codec.decode(guess.latent, anchor, guess.skips, hands)
        return {"codec": picture_grid([target, blind, anchor.rgbd, with_memory, alone])}


def draw_pairs(store: FrameStore, rng: np.random.Generator, batch: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames to rebuild [batch], and `num` earlier frames to remember each by [batch, num]."""
    targets, first = draw_targets(store, rng, batch, history=1)
    moves = None if store.hands is None else store.hands.moves(targets).numpy()
    return targets, draw_sources(rng, targets, first, num, moves)


def gather_targets(store: FrameStore, targets: np.ndarray, sources: np.ndarray, count: np.ndarray) -> dict[str, Tensor]:
    """Frames [B] to rebuild and frames [B, N] to remember them by, of which the first `count` [B] do count:
    target and sources as they were recorded (uint8 [..., h, w, 3], and float16 target_depth and sources_depth
    [..., h, w]: as_pictures makes RGB-D of them), pose, source_poses, valid bool [B, N], intrinsics [B, 4]; and where
    the recordings have hands, those of the targets and of the sources: parts, keypoints, present (Limbs), thing_centre
    and so on (Thing), and all of these again as source_parts and so on."""
    target, target_depth = store.recorded(targets)
    source, source_depth = store.recorded(sources)
    return {
        **({} if store.hands is None else _gather_hands(store.hands, store, targets, sources)),
        "target": target,
        "target_depth": target_depth,
        "sources": source,
        "sources_depth": source_depth,
        "pose": torch.from_numpy(store.pose[targets]),
        "source_poses": torch.from_numpy(store.pose[sources]),
        "valid": torch.from_numpy(np.arange(sources.shape[1])[None] < count[:, None]),
        "intrinsics": torch.from_numpy(store.intrinsics[targets]),
    }


def as_pictures(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of gather_targets with RGB-D instead of what was recorded: target [B, 4, h, w], sources
    [B, N, 4, h, w]."""
    depths = {name: f"{name}_depth" for name in ("target", "sources")}
    rest = {name: part for name, part in batch.items() if name not in depths.values()}
    return rest | {name: to_rgbd(batch[name], batch[depth]) for name, depth in depths.items()}


def recall_targets(sources: Tensor, batch: dict[str, Tensor]) -> Anchor:
    """What source pictures [B, N, 4, h, w] show of the targets of a batch (gather_targets)."""
    pose, intrinsics = batch["pose"], batch["intrinsics"]
    layers = Layers(sources, batch["source_poses"], batch["valid"])
    if "present" in batch:
        still = Pictures(*layers, *_own_hands(sources, batch))
        another_and_latest = Pictures(*(part[:, :2].flip(1) for part in still))
        layers = split_layers(still, another_and_latest, limbs_in(batch), pose, intrinsics)
    return reproject(*layers, pose, intrinsics)


def _gather_hands(tracks: HandTracks, store: FrameStore, targets: np.ndarray, sources: np.ndarray) -> dict[str, Tensor]:
    """The Limbs of targets [B] and, as source_..., of sources [B, N]."""
    now = tracks.limbs(targets, torch.from_numpy(store.pose[targets]))
    flat = sources.reshape(-1)
    before = tracks.limbs(flat, torch.from_numpy(store.pose[flat]))
    sources_of = {f"source_{name}": part.unflatten(0, sources.shape) for name, part in _fields_of(before).items()}
    return _fields_of(now) | sources_of


def _fields_of(limbs: Limbs) -> dict[str, Tensor]:
    """Limbs as fields of a batch."""
    assert limbs.thing is not None
    thing = {f"thing_{name}": part for name, part in limbs.thing._asdict().items()}
    return {name: getattr(limbs, name) for name in LIMBS} | thing


def limbs_in(batch: dict[str, Tensor], prefix: str = "") -> Limbs:
    """The Limbs of a batch's rows, whose left hands count where there are any."""
    parts, keypoints, present = (batch[prefix + name] for name in LIMBS)
    thing = Thing(*(batch[f"{prefix}thing_{name}"] for name in Thing._fields))
    return Limbs(parts, keypoints, present, HANDS["both"] if present[:, 0].any() else HANDS["right"], thing)


@torch.no_grad()
def draw_targets_hands(batch: dict[str, Tensor]) -> Tensor | None:
    """The pose video of a batch's targets [B, 4, h, w], as a dream draws it; None where nobody knows of hands."""
    if "present" not in batch:
        return None
    with torch.autocast(batch["target"].device.type, enabled=False):
        return draw_hands(limbs_in(batch), batch["pose"], batch["intrinsics"], batch["target"].shape[-1])


def _own_hands(sources: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Whose pixels are whose in source pictures [B, N, 4, h, w], and the parts of what moves in them (Pictures)."""
    num = sources.shape[1]
    names = (*LIMBS, *(f"thing_{name}" for name in Thing._fields))
    flat = {f"source_{name}": batch[f"source_{name}"].flatten(0, 1) for name in names}
    poses, intrinsics = batch["source_poses"].flatten(0, 1), batch["intrinsics"].repeat_interleave(num, 0)
    depth = decode_depth(sources[:, :, 3]).flatten(0, 1)
    limbs = limbs_in(flat, "source_")
    owner = owned_by(depth, poses, intrinsics, limbs)
    return owner.unflatten(0, (-1, num)), limbs.moving().unflatten(0, (-1, num))


def disturb_latent(latent: Tensor, generator: torch.Generator) -> Tensor:
    """Latents [B, P, C] with noise of a random strength up to LATENT_NOISE."""
    strength = LATENT_NOISE * torch.rand(len(latent), 1, 1, generator=generator, device=latent.device)
    noise = torch.randn(latent.shape, generator=generator, device=latent.device)
    return normalise_tokens(latent + strength * noise)


def decode_blind(model: WorldModel, latent: Tensor, hands: Tensor | None = None) -> Tensor:
    """Decode latents [B, P, C] (and their pose video [B, 4, h, w]) as if memory showed nothing -> RGB-D
    [B, 4, h, w]."""
    nothing = empty_anchor(1, model.config.codec.size, latent.float())
    skips = [skip.expand(len(latent), -1, -1, -1) for skip in model.codec.encode_anchor(nothing).skips]
    anchor = Anchor(*(part.expand(len(latent), -1, -1, -1) for part in nothing))
    return model.codec.decode(latent, anchor, skips, hands).float()


def picture_loss(rebuilt: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 of RGB and (doubled) inverse depth plus L1 of their differences between neighbours, over [B, 4, h, w].

    weight: how much each pixel counts, [B, 1, h, w]; None: all alike.
    """
    channels = torch.ones(RGBD_CHANNELS, 1, 1, device=target.device)
    channels[3] = 2.0
    error = (rebuilt - target) * channels
    weight = torch.ones_like(error[:, :1]) if weight is None else weight
    down = weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()
    across = weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()
    return (weight * error.abs()).mean() + 0.5 * (down.mean() + across.mean())


def psnr(made: Tensor, target: Tensor) -> Tensor:
    """Mean over pictures [B, 4, h, w] of the RGB's PSNR in dB; 0 when there are none."""
    if not len(made):
        return made.new_zeros(())
    shown, wanted = (picture[:, :3].clamp(-1.0, 1.0) / 2 + 0.5 for picture in (made, target))
    return metrics.psnr(shown, wanted).mean().detach()


def sharpness_ratio(made: Tensor, target: Tensor) -> Tensor:
    """Gradient energy of made over that of recorded pictures [B, 4, h, w], RGB together; 0 when there are none."""
    if not len(made):
        return made.new_zeros(())
    of_made, of_target = (
        picture[:, :3].diff(dim=-1).square().mean() + picture[:, :3].diff(dim=-2).square().mean()
        for picture in (made.clamp(-1.0, 1.0), target)
    )
    return (of_made / of_target.clamp_min(1e-12)).detach()


def picture_grid(rows: list[Tensor]) -> np.ndarray:
    """Rows of RGB-D pictures, each [N, 4, h, w] -> one picture uint8, each row followed by its inverse depth."""
    lines = []
    for row in rows:
        depth = row[:, 3:].expand(-1, 4, -1, -1)
        lines.extend([rgbd_to_frame(row), rgbd_to_frame(depth)])
    return picture_rows([line.cpu().numpy() for line in lines])


def picture_rows(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of pictures, each uint8 [N, h, w, 3] -> one picture."""
    return rearrange(np.stack(rows), "r n h w c -> (r h) (n w) c")


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None
) -> CodecStage:
    """The stage for a dataset.

    Raises ValueError when the dataset lacks depth or poses or has another picture size, and for a hand decoder, which
    a stage that changes what latents mean would leave behind.
    """
    assert isinstance(train_config, CodecTrainConfig)
    if model_config.codec.hand_decoder:
        raise ValueError("codec.hand_decoder is taught when the codec is done: train decoder --set hands_only=true.")
    store = load_frames(dataset, model_config.codec.size, hands=model_config.transformer.hands)
    return CodecStage(store=store, config=train_config, num_anchors=model_config.memory.num_anchors)
