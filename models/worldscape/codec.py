"""Codec: RGB-D frames <-> a few latent tokens, with a decoder that also sees what memory shows of the view.

Details that memory already knows never pass the bottleneck: the decoder takes the anchor's features at every scale and
may copy its pixels. Neither need the outlines of hands, where it is shown the pose video that the generator is told.
Latent tokens have unit root mean square, so noise of level 1 is as large as the signal.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldscape.conditioning.pose_video import POSE_CHANNELS
from worldscape.conditioning.reproject import Anchor
from worldscape.config import CodecConfig

RGBD_CHANNELS = 4
HAND_WEIGHTS = ("decoder.hands.", "hand_decoder.")
"""What a codec may lack: the layers that show hands start unnoticed, a hand decoder as a copy of the decoder."""


class Encoded(NamedTuple):
    """latent [B, P, C], unit root mean square a token; skips: features of each stage, finest first, [B, W, h, w]."""

    latent: Tensor
    skips: list[Tensor]


def shuffled(x: Tensor) -> Tensor:
    """As F.pixel_shuffle(x, 2), channels last as the convolutions have them: [B, 4 C, h, w] -> [B, C, 2 h, 2 w].

    On a GPU pixel_shuffle makes it contiguous, and all that follows goes back and forth between the layouts.
    """
    rows = x.permute(0, 2, 3, 1)
    return rearrange(rows, "b h w (c i j) -> b (h i) (w j) c", i=2, j=2).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Two convolutions around an identity; starts as the identity, so no normalisation is needed."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Encoder(nn.Module):
    """Frame or anchor with its coverage mask -> latent tokens and the features of every stage."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(4 * (RGBD_CHANNELS + 1), widths[0], 3, padding=1)
        self.stages = nn.ModuleList(Residual(width) for width in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        self.to_latent = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, rgbd: Tensor, mask: Tensor) -> Encoded:
        x = self.stem(F.pixel_unshuffle(torch.cat([rgbd, mask], 1), 2))
        skips = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.downs[index - 1](x))
            skips.append(x)
        return Encoded(normalise_tokens(rearrange(self.to_latent(F.silu(x)), "b c h w -> b (h w) c")), skips)


class HandPaths(nn.Module):
    """Pose video [B, 4, h, w] -> what it adds to a decoder's features at its two finest stages, finest first.

    No layer has a bias: where no hand is drawn nearby, that is zero, and so it is everywhere before training.
    """

    def __init__(self, width: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Conv2d(4 * POSE_CHANNELS, width, 3, padding=1, bias=False)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False)
        self.to_features = nn.ModuleList(
            nn.Conv2d(shown, made, 3, padding=1, bias=False)
            for shown, made in zip((width, 2 * width), widths, strict=False)
        )
        for layer in self.to_features:
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]

    def forward(self, hands: Tensor) -> list[Tensor]:
        fine = F.silu(self.stem(F.pixel_unshuffle(hands, 2)))
        return [layer(x) for layer, x in zip(self.to_features, (fine, F.silu(self.down(fine))), strict=True)]


class Decoder(nn.Module):
    """Latent tokens and the anchor's features -> RGB-D; each pixel is a learned blend of new and remembered."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        widths = config.widths
        self.grid = config.grid
        self.from_latent = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.merges = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.stages = nn.ModuleList(Residual(width) for width in widths)
        self.ups = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        self.to_pixels = nn.Conv2d(widths[0], 4 * (RGBD_CHANNELS + 1), 3, padding=1)
        self.hands = HandPaths(config.hand_width, widths) if config.hand_width else None

    def forward(self, latent: Tensor, skips: list[Tensor], anchor: Anchor, hands: Tensor | None = None) -> Tensor:
        fresh, keep = self.paint(latent, skips, hands)
        keep = anchor.mask * keep
        return keep * anchor.rgbd + (1.0 - keep) * fresh

    def paint(self, latent: Tensor, skips: list[Tensor], hands: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> new pixels [B, 4, h, w], and how far what memory shows is to be kept instead, [B, 1, h, w] in [0, 1]."""
        shown = [] if hands is None or self.hands is None else self.hands(hands)
        x = self.from_latent(rearrange(latent, "b (h w) c -> b c h w", h=self.grid))
        for index in reversed(range(len(self.stages))):
            x = x + self.merges[index](skips[index])
            x = self.stages[index](x + shown[index] if index < len(shown) else x)
            if index > 0:
                x = shuffled(self.ups[index - 1](x))
        fresh, blend = F.pixel_shuffle(self.to_pixels(F.silu(x)), 2).split([RGBD_CHANNELS, 1], 1)
        return fresh, torch.sigmoid(blend + 1.0)


class Codec(nn.Module):
    """Frames <-> latents. All pictures are [B, 4, h, w]: RGB and inverse depth, each in [-1, 1]."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.hand_decoder = Decoder(config) if config.hand_decoder else None
        # The layout in which convolutions are fast.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def for_hands(self) -> "Codec":
        """This codec as worlds with hands use it, with its hand decoder where it has one; they share all weights."""
        if self.hand_decoder is None:
            return self
        codec = copy.copy(self)
        codec._modules = {**self._modules, "decoder": self.hand_decoder}
        return codec

    def encode(self, rgbd: Tensor) -> Tensor:
        """A full frame [B, 4, h, w] -> latent [B, P, C]. Raises ValueError for another size."""
        if rgbd.ndim != 4 or rgbd.shape[1:] != (RGBD_CHANNELS, self.config.size, self.config.size):
            expected = (RGBD_CHANNELS, self.config.size, self.config.size)
            raise ValueError(f"frames have shape {tuple(rgbd.shape)}; this codec takes [B, {expected}]: resize them.")
        return self.encoder(rgbd, torch.ones_like(rgbd[:, :1])).latent

    def encode_anchor(self, anchor: Anchor) -> Encoded:
        """A partly covered view -> the latent it suggests, and the features that the decoder takes."""
        return self.encoder(anchor.rgbd * anchor.mask, anchor.mask)

    def decode(self, latent: Tensor, anchor: Anchor, skips: list[Tensor], hands: Tensor | None = None) -> Tensor:
        """Latent [B, P, C] with an anchor and its features (from encode_anchor) -> RGB-D [B, 4, h, w], not clamped.

        hands: pose video of the hands in view [B, 4, h, w]; None, where there are none, is as good as black. Only a
        codec with a `hand_width` looks at it.
        """
        return self.decoder(latent, skips, anchor, hands)


def normalise_tokens(latent: Tensor) -> Tensor:
    """Scale each token [..., C] to unit root mean square."""
    return F.rms_norm(latent, latent.shape[-1:], eps=1e-6)


def empty_anchor(batch: int, size: int, like: Tensor) -> Anchor:
    """An anchor that shows nothing: rgbd [B, 4, size, size] and mask [B, 1, size, size] of zeros."""
    return Anchor(like.new_zeros(batch, RGBD_CHANNELS, size, size), like.new_zeros(batch, 1, size, size))


def frame_to_rgbd(frame: Tensor, inverse_depth: Tensor) -> Tensor:
    """uint8 frames [B, h, w, 3] and inverse depth [B, h, w] in [-1, 1] -> RGB-D [B, 4, h, w] in [-1, 1]."""
    rgb = rearrange(frame, "b h w c -> b c h w").to(inverse_depth.dtype) / 127.5 - 1.0
    return torch.cat([rgb, inverse_depth[:, None]], 1)


def blur(pictures: Tensor, share: Tensor) -> Tensor:
    """Pictures [B, C, h, w] mixed with the means of their 3 x 3 neighbourhoods, by shares [B]."""
    smooth = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pictures.lerp(smooth, share[:, None, None, None])


def rgbd_to_frame(rgbd: Tensor) -> Tensor:
    """RGB-D [B, 4, h, w] -> uint8 frames [B, h, w, 3], clamped and rounded."""
    rgb = rgbd[:, :3].float().permute(0, 2, 3, 1)
    return rgb.clamp(-1.0, 1.0).add_(1.0).mul_(127.5).add_(0.5).to(torch.uint8)


def token_coverage(mask: Tensor, grid: int) -> Tensor:
    """Coverage mask [B, 1, h, w] -> share of each token's pixels, [B, P]."""
    return F.adaptive_avg_pool2d(mask, grid).flatten(1)
