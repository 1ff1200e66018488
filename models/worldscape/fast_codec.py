"""Inference-only rewrites of a finished codec: the same pictures to rounding, in half the time.

On a GPU that is half precision. On a CPU:

Weights lie as oneDNN reads them, which PyTorch's own convolutions find out anew at every call, or do without oneDNN
when there are few pixels. Activations and sums are made by the convolution that comes before them. In bf16 all of it
is half as much work; what comes out is float32 in any case.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldscape.codec import Codec, Encoded, HandPaths, Residual, normalise_tokens
from worldscape.conditioning.reproject import Anchor

NOTHING_MORE, SILU = "none", "swish"  # oneDNN's names of what follows a convolution


class Conv(NamedTuple):
    """An nn.Conv2d whose weight is packed; padding and stride as in nn.Conv2d."""

    weight: Tensor
    bias: Tensor
    padding: list[int]
    stride: list[int]

    @classmethod
    def of(cls, layer: nn.Module, size: int, dtype: torch.dtype) -> "Conv":
        """The same map as the nn.Conv2d `layer`, laid out for pictures of `size` pixels a side; others are as good."""
        assert isinstance(layer, nn.Conv2d)
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        padding, stride = ([int(n) for n in sides] for sides in (layer.padding, layer.stride))
        like = [1, layer.in_channels, size, size]
        weight = layer.weight.detach().to(dtype).contiguous().to_mkldnn()
        packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(weight, padding, stride, [1, 1], 1, like)
        return cls(packed, bias.detach().to(dtype, copy=True), padding, stride)

    def __call__(self, x: Tensor, then: str = NOTHING_MORE) -> Tensor:
        rest = (self.padding, self.stride, [1, 1], 1, then, [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *rest)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add this map of x to `total`, in place."""
        rest = (self.padding, self.stride, [1, 1], 1, "add", 1.0, None, [], None)
        return torch.ops.mkldnn._convolution_pointwise_.binary(total, x, self.weight, self.bias, *rest)


class Stage(NamedTuple):
    """A codec's Residual."""

    first: Conv
    second: Conv

    @classmethod
    def of(cls, stage: nn.Module, size: int, dtype: torch.dtype) -> "Stage":
        """The same map as the Residual `stage`."""
        assert isinstance(stage, Residual)
        return cls(Conv.of(stage.first, size, dtype), Conv.of(stage.second, size, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Overwrites x."""
        return self.second.add_to(x, self.first(F.silu(x), SILU))


class Paths(NamedTuple):
    """A decoder's HandPaths."""

    stem: Conv
    down: Conv
    to_features: tuple[Conv, ...]

    @classmethod
    def of(cls, paths: HandPaths, sizes: list[int], dtype: torch.dtype) -> "Paths":
        """The same map as `paths`, for stages of `sizes` pixels a side."""
        made = [Conv.of(layer, size, dtype) for layer, size in zip(paths.to_features, sizes, strict=False)]
        return cls(Conv.of(paths.stem, sizes[0], dtype), Conv.of(paths.down, sizes[1], dtype), tuple(made))

    def look(self, hands: Tensor) -> list[Tensor]:
        """What `to_features` takes, finest first."""
        pixels = rearrange(hands, "b c (h i) (w j) -> b h w (c i j)", i=2, j=2)  # as they lie with channels last
        fine = self.stem(pixels.permute(0, 3, 1, 2), SILU)
        return [fine, self.down(fine, SILU)]


class HalfCodec:
    """The calls that WorldEngine makes of a Codec on a GPU, in half precision; pixels and latents stay float32.

    Later changes of the codec's weights are not seen.
    """

    @torch.no_grad()
    def __init__(self, plain: Codec, dtype: torch.dtype):
        self.dtype, self.plain = dtype, copy.deepcopy(plain).to(dtype)

    def encode(self, rgbd: Tensor) -> Tensor:
        """As Codec.encode."""
        return self.plain.encode(rgbd.to(self.dtype)).float()

    def encode_anchor(self, anchor: Anchor) -> Encoded:
        """As Codec.encode_anchor; the features stay in half precision."""
        found = self.plain.encode_anchor(self._half(anchor))
        return Encoded(found.latent.float(), found.skips)

    def decode(self, latent: Tensor, anchor: Anchor, skips: list[Tensor], hands: Tensor | None = None) -> Tensor:
        """As Codec.decode; what memory shows is blended in as it is, in float32."""
        shown = None if hands is None else hands.to(self.dtype)
        fresh, keep = self.plain.decoder.paint(latent.to(self.dtype), skips, shown)
        return torch.lerp(fresh.float(), anchor.rgbd, anchor.mask * keep.float())

    def _half(self, anchor: Anchor) -> Anchor:
        return Anchor(anchor.rgbd.to(self.dtype), anchor.mask.to(self.dtype))


class FastCodec:
    """The calls that WorldEngine makes of a Codec, without gradients; later changes of its weights are not seen."""

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """Whether this device, and this torch, have what it takes: the fused convolutions are no public function."""
        is_fused = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        return device.type == "cpu" and torch.backends.mkldnn.is_available() and is_fused

    @torch.no_grad()
    def __init__(self, plain: Codec, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        encoder, decoder, self.grid = plain.encoder, plain.decoder, plain.config.grid
        sizes = [plain.config.size >> stage for stage in range(1, len(plain.config.widths) + 1)]
        self.stem = Conv.of(encoder.stem, sizes[0], dtype)
        self.downs = [Conv.of(layer, size, dtype) for layer, size in zip(encoder.downs, sizes[:-1], strict=True)]
        self.encoding = [Stage.of(stage, size, dtype) for stage, size in zip(encoder.stages, sizes, strict=True)]
        self.to_latent = Conv.of(encoder.to_latent, self.grid, dtype)
        self.from_latent = Conv.of(decoder.from_latent, self.grid, dtype)
        self.merges = [Conv.of(layer, size, dtype) for layer, size in zip(decoder.merges, sizes, strict=True)]
        self.decoding = [Stage.of(stage, size, dtype) for stage, size in zip(decoder.stages, sizes, strict=True)]
        self.ups = [Conv.of(layer, size, dtype) for layer, size in zip(decoder.ups, sizes[1:], strict=True)]
        self.to_pixels = Conv.of(decoder.to_pixels, sizes[0], dtype)
        self.hands = None if decoder.hands is None else Paths.of(decoder.hands, sizes, dtype)

    def encode(self, rgbd: Tensor) -> Tensor:
        """As Codec.encode."""
        return self._encode(rgbd, torch.ones_like(rgbd[:, :1])).latent

    def encode_anchor(self, anchor: Anchor) -> Encoded:
        """As Codec.encode_anchor."""
        return self._encode(anchor.rgbd * anchor.mask, anchor.mask)

    def decode(self, latent: Tensor, anchor: Anchor, skips: list[Tensor], hands: Tensor | None = None) -> Tensor:
        """As Codec.decode."""
        shown = [] if hands is None or self.hands is None else self.hands.look(hands.to(self.dtype))
        x = self.from_latent(rearrange(latent.to(self.dtype), "b (h w) c -> b c h w", h=self.grid))
        for index in reversed(range(len(self.decoding))):
            x = self.merges[index].add_to(x, skips[index])
            if self.hands is not None and index < len(shown):
                x = self.hands.to_features[index].add_to(x, shown[index])
            x = self.decoding[index](x)
            if index > 0:
                x = F.pixel_shuffle(self.ups[index - 1](x), 2)
        fresh, blend = F.pixel_shuffle(self.to_pixels(F.silu(x)).float(), 2).split([anchor.rgbd.shape[1], 1], 1)
        return torch.lerp(fresh, anchor.rgbd, anchor.mask * torch.sigmoid(blend + 1.0))

    def _encode(self, rgbd: Tensor, mask: Tensor) -> Encoded:
        pixels = F.pixel_unshuffle(torch.cat([rgbd, mask], 1), 2)
        x = self.encoding[0](self.stem(pixels.to(self.dtype, memory_format=torch.channels_last)))
        skips = [x]
        for down, stage in zip(self.downs, self.encoding[1:], strict=True):
            skips.append(stage(down(skips[-1])))
        latent = self.to_latent(F.silu(skips[-1])).float()
        return Encoded(normalise_tokens(rearrange(latent, "b c h w -> b (h w) c")), skips)
