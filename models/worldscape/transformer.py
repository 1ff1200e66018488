"""The generator: a causal transformer that refines a frame's latent given history, camera motion, hands and memory.

It predicts the clean latent. A frame sees itself and earlier frames, never later ones; history comes as keys and
values, stored before temporal rotation. Whether a call refines or commits is only a matter of what the caller keeps.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from worldscape.conditioning.camera import plucker_map
from worldscape.conditioning.pose_video import POSE_CHANNELS
from worldscape.config import CodecConfig, MemoryConfig, TransformerConfig
from worldscape.nn.blocks import Block, KeysValues, Layout
from worldscape.nn.rope import Rotation, rotate, space_angles, time_angles
from worldscape.steady import sigmoid

RAYS_PER_TOKEN = 2  # Pluecker rays along each side of a token
Levels = float | tuple[float, ...]
"""The noise level of all new frames, or of each."""

HAND_WEIGHTS = ("embed_hands.", "no_hand")  # what weights from before hands lack; without a hand it starts unnoticed


class FrameInputs(NamedTuple):
    """What the generator is told of T new frames.

    latent [B, T, P, C] noisy; level [B, T] in [0, 1], 1 = pure noise; rays [B, T, 6, R, R] Pluecker map relative to the
    previous frame (R = 2 * grid); anchor [B, T, P, C] latent that memory suggests; coverage [B, T, P] share of each
    token's pixels that memory shows; hands [B, T, 4, h, w] pose video with nearness (`PoseVideo.picture`), black where
    no hand is, or None where none is in any frame.
    """

    latent: Tensor
    level: Tensor
    rays: Tensor
    anchor: Tensor
    coverage: Tensor
    hands: Tensor | None = None


class History(NamedTuple):
    """Committed frames as stored: keys without temporal rotation and values [L, B, S, P, H, K], their small relative
    positions [B, S], valid bool [B, S], or [B, T, S] where new frames see different ones. Behind the S frames keys and
    values may have room for new ones.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    valid: Tensor


class PlacedHistory(NamedTuple):
    """History ready to be read in one step, by the generator that placed it: keys rotated to their relative times; and
    which of the step's T new frames sees which, bool [B, T, T] (None: each itself and earlier ones). hands: what an
    earlier call of this step made of the pose video (Prediction); it is read as that and not looked at again.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    sees: Tensor | None = None
    hands: KeysValues | None = None


class EmbeddedView(NamedTuple):
    """What is told of T new frames before they are refined: once a step, for all model calls of that step.

    tokens [B, T, P, D] camera motion and memory as the generator reads them; anchor [B, T, P, C]; hands [B, T, P, D]
    the tokens of the pose video, and present bool [B, T] whether it shows any; both None where it never does.
    """

    tokens: Tensor
    anchor: Tensor
    hands: Tensor | None = None
    present: Tensor | None = None


class Prediction(NamedTuple):
    """latent [B, T, P, C] clean estimate; features [B, T, P, D]; layers: the new frames' keys and values; hands
    [L, B, 1, P, H, K]: those of the pose video of one new frame, None where there is none."""

    latent: Tensor
    features: Tensor
    layers: list[KeysValues]
    hands: KeysValues | None = None


class WorldTransformer(nn.Module):
    """Noisy frame tokens + camera rays + memory -> clean frame tokens.

    The pose video's tokens stand beside those of their frame, as a frame of their own at the same time: the picture
    reads them, history does not keep them (the finished picture shows the hand). A frame without a hand has a learned
    vector added to its tokens instead, which costs nothing.
    """

    def __init__(self, config: TransformerConfig, codec: CodecConfig, memory: MemoryConfig):
        super().__init__()
        self.config = config
        self.grid = codec.grid
        self.num_context = memory.num_context
        width, channels = config.width, codec.latent_channels
        self.embed_latent = nn.Linear(channels, width)
        self.embed_anchor = nn.Linear(channels + 1, width)
        self.embed_rays = nn.Sequential(
            nn.Linear(6 * RAYS_PER_TOKEN**2, width), nn.SiLU(), zero_linear(nn.Linear(width, width))
        )
        if config.hands:
            patch = POSE_CHANNELS * (codec.size // codec.grid) ** 2
            self.embed_hands = nn.Sequential(nn.Linear(patch, width), nn.SiLU(), nn.Linear(width, width))
            self.no_hand = nn.Parameter(torch.zeros(width))
        self.embed_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.level_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_modulation = nn.Parameter(torch.randn(2, width) / math.sqrt(width))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.to_latent = zero_linear(nn.Linear(width, channels + 1))

    keys_dtype = torch.float32
    """Of keys and values, as memory keeps them."""

    def room(self, present: Tensor | None, num_new: int = 1) -> int:
        """Frames' places behind history that `place` wants for num_new new frames: none, new keys are put behind."""
        return 0

    def place(self, history: History, present: Tensor | None = None, sees: Tensor | None = None) -> PlacedHistory:
        """Rotate stored keys to their relative times: once a step, for all model calls of that step.

        sees: which of T new frames sees which, bool [B, T, T]. present (EmbeddedView's) is for FastTransformer, which
        leaves room for the tokens of hands.
        """
        angles = time_angles(history.positions, self.config.head_width, self.config.rope_base)
        return PlacedHistory(rotate(history.keys, Rotation.of(angles)), history.values, history.valid, sees)

    def forward(
        self,
        frames: FrameInputs,
        positions: Tensor,
        history: PlacedHistory | None = None,
        sees: Tensor | None = None,
    ) -> Prediction:
        """Refine T new frames at relative `positions` [B, T], given history (or the clip's own start).

        sees: which new frame sees which, bool [B, T, T]; None: each sees itself and earlier ones (a teacher's: all).
        """
        view = self.embed_view(frames.rays, frames.anchor, frames.coverage, frames.hands)
        layout = self._layout(positions, history, sees, view.present)
        return self._refine(frames.latent, frames.level, view, layout, history)

    def embed_view(self, rays: Tensor, anchor: Tensor, coverage: Tensor, hands: Tensor | None = None) -> EmbeddedView:
        """The same as in FrameInputs -> what each model call on these frames is told of them.

        Raises ValueError for hands when the weights know none.
        """
        tokens = self.embed_rays(pack_rays(rays, self.grid))
        if self.config.anchor:
            tokens = tokens + self.embed_anchor(torch.cat([anchor, coverage[..., None]], -1))
        if hands is None:
            return EmbeddedView(tokens + self.no_hand if self.config.hands else tokens, anchor)
        if not self.config.hands:
            raise no_hands_known()
        present = shows_hand(hands)
        tokens = tokens + torch.where(present[..., None, None], 0.0, self.no_hand)
        return EmbeddedView(tokens, anchor, self.embed_hands(pack_hands(hands, self.grid)), present)

    def refine(
        self, latent: Tensor, level: Levels, view: EmbeddedView, positions: Tensor, history: PlacedHistory
    ) -> Prediction:
        """As forward, for frames all at one noise level, or each at its own, whose view is embedded already."""
        if history.hands is not None:
            history, view = self._with_seen(history, view, positions), view._replace(hands=None, present=None)
        layout = self._layout(positions, history, history.sees, view.present)
        levels = torch.tensor(level, device=latent.device).expand(latent.shape[:2])
        return self._refine(latent, levels, view, layout, history)

    def _refine(
        self, latent: Tensor, level: Tensor, view: EmbeddedView, layout: Layout, history: PlacedHistory | None
    ) -> Prediction:
        level = self.embed_level(level_features(level, self.config.width))
        modulation = rearrange(self.level_modulation(level), "b t (n d) -> b t n d", n=6)
        x, tokens = self.embed_latent(latent) + view.tokens, latent.shape[2]
        if view.hands is not None:
            x = torch.cat([x, view.hands], 2)
        layers, hands = [], []
        for index, block in enumerate(self.blocks):
            past = None if history is None else KeysValues(history.keys[index], history.values[index])
            x, new = block(x, modulation, past, layout)
            layers.append(KeysValues(*(part[:, :, :tokens] for part in new)))
            hands.append(KeysValues(*(part[:, :, tokens:] for part in new)))
        x, seen = x[:, :, :tokens], None
        if view.hands is not None and latent.shape[1] == 1:
            seen = KeysValues(*(torch.stack(parts) for parts in zip(*hands, strict=True)))
        return Prediction(self._read_clean(x, level, view.anchor), x, layers, seen)

    def _with_seen(self, history: PlacedHistory, view: EmbeddedView, positions: Tensor) -> PlacedHistory:
        """History with what was made of the pose video of one new frame in it, as one more frame of the past."""
        assert history.hands is not None and view.present is not None
        time = time_angles(positions, self.config.head_width, self.config.rope_base)
        keys = torch.cat([history.keys, rotate(history.hands.keys, Rotation.of(time))], 2)
        values = torch.cat([history.values, history.hands.values], 2)
        return PlacedHistory(keys, values, torch.cat([history.valid, view.present], 1), history.sees)

    def _layout(
        self, positions: Tensor, history: PlacedHistory | None, sees: Tensor | None, present: Tensor | None
    ) -> Layout:
        config = self.config
        space = space_angles(self.grid, config.head_width, config.rope_base, positions.device)
        if present is not None:
            space = torch.cat([space, space])
        time = time_angles(positions, config.head_width, config.rope_base)
        sees = self._earlier(positions) if sees is None else sees
        mask = self._mask(sees, history, present)
        return Layout(Rotation.of(space), Rotation.of(time), Rotation.of(space + time), mask)

    def _earlier(self, positions: Tensor) -> Tensor:
        """Each new frame sees itself and earlier ones (a teacher's: all): bool [1, T, T]."""
        order = torch.arange(positions.shape[1], device=positions.device)
        earlier = (order[:, None] >= order[None])[None]
        return earlier if self.config.is_causal else torch.ones_like(earlier)

    def _mask(self, sees: Tensor, history: PlacedHistory | None, present: Tensor | None) -> Tensor | None:
        """New frames see valid history, what `sees` says of each other, and their own hands where bool [B, T] says that
        there are any; True means it may look."""
        if history is None and present is None and sees.shape[1] == 1:
            return None
        tokens, kinds = self.grid**2, sees[..., None]
        if present is not None:
            own = torch.diag_embed(present)[..., None]
            kinds = torch.cat([kinds.expand_as(own), own], -1)
        new = repeat(kinds, "b t s kind -> b 1 (t n p) (s kind q)", n=kinds.shape[-1], p=tokens, q=tokens)
        if history is None:
            return new
        valid = history.valid if history.valid.ndim == 3 else history.valid[:, None].expand(-1, sees.shape[1], -1)
        past = repeat(valid, "b t s -> b 1 (t m) (s q)", m=new.shape[2] // sees.shape[1], q=tokens)
        return torch.cat([past, new.expand(len(past), -1, -1, -1)], -1)

    def _read_clean(self, x: Tensor, level: Tensor, anchor: Tensor) -> Tensor:
        """The last layer: what memory suggests, as far as it is trusted, plus what is new."""
        shift, scale = (level[:, :, None] + self.final_modulation)[:, :, :, None].unbind(2)
        change, trust = self.to_latent(self.final_norm(x) * (1 + scale) + shift).split([anchor.shape[-1], 1], -1)
        if not self.config.anchor:
            return change
        return change + sigmoid(trust + 1.0) * anchor


def frame_rays(pose: Tensor, reference: Tensor, intrinsics: Tensor, grid: int) -> Tensor:
    """Pluecker map of `pose` seen from `reference`, both [..., 4, 4] -> [..., 6, R, R], R = 2 * grid rays a side.

    `reference` is the inverse of the levelled previous camera: the rays tell the motion and the tilt, and nothing of
    where in the world it happens.
    """
    return plucker_map(reference @ pose, intrinsics, RAYS_PER_TOKEN * grid)


def pack_rays(rays: Tensor, grid: int) -> Tensor:
    """Pluecker map [B, T, 6, R, R] -> rays of each token [B, T, P, 6 * (R / grid)^2]."""
    return rearrange(rays, "b t c (h i) (w j) -> b t (h w) (c i j)", h=grid, w=grid)


def pack_hands(hands: Tensor, grid: int) -> Tensor:
    """Pose video [B, T, 4, h, w] -> pixels of each token [B, T, P, 4 * (h / grid)^2]."""
    return rearrange(hands, "b t c (h i) (w j) -> b t (h w) (c i j)", h=grid, w=grid)


def shows_hand(hands: Tensor) -> Tensor:
    """Whether frames of a pose video [B, T, 4, h, w] show a hand: bool [B, T]."""
    return (hands[:, :, -1].flatten(2) > 0).any(2)  # whatever is drawn is somewhere near


def no_hands_known() -> ValueError:
    """What to raise where weights that know no hands are told of some."""
    return ValueError("these weights were made without hands: use others, or train with --model transformer.hands=true")


def level_features(level: Tensor, width: int) -> Tensor:
    """Noise level [...] in [0, 1] -> sinusoidal features [..., width]."""
    rates = 1000.0 * 10000.0 ** -(torch.arange(width // 2, device=level.device) / (width // 2))
    angles = level[..., None].float() * rates
    features = torch.cat([angles.cos(), angles.sin()], -1)
    return torch.nn.functional.pad(features, (0, width - features.shape[-1]))


def zero_linear(layer: nn.Linear) -> nn.Linear:
    """A linear layer that starts at zero, so that what it injects starts absent."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
