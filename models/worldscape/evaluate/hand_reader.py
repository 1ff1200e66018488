"""Hand reader: a small network that finds hand and object in a picture, and what became of the object since the start.

It is trained on simulator frames only (hand_lessons.py), so it is a judge that no dream has ever pleased. The one that
this package ships was made by `worldscape eval hands --retrain`; it is a measuring instrument, the same for everybody.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldscape.conditioning.hand_model import NUM_KEYPOINTS
from worldscape.evaluate.kept import JudgeConfig
from worldscape.evaluate.metrics import to_unit

OBJECT_SEEN = ("first", "now")
MASKS = ("hand", "object now", "object first")
FRAMES_AT_ONCE = 256
FINE_WIDTH = 16  # channels at the picture's own size
MASK_WIDTH = 24
SHIPPED = Path(__file__).parent / "judges" / "hand_reader.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class HandReaderConfig(JudgeConfig):
    """JudgeConfig of the hand reader; its width is a multiple of 8."""

    name: ClassVar[str] = "hand reader"
    width: int = 24
    num_episodes: int = 1280
    num_steps: int = 40
    batch_size: int = 32
    updates: int = 7000

    def __post_init__(self) -> None:
        JudgeConfig.__post_init__(self)
        if self.width < 8 or self.width % 8:
            raise ValueError(f"hand reader with width {self.width}: it must be a multiple of 8")


class HandReading(NamedTuple):
    """Of M pictures: masks [M, 3, h, w], logits that a pixel shows what MASKS names (the last in the first picture),
    keypoints [M, 21, 2] in pixels (x right, y down), places [M, 2, 2] of the object in the first picture and now,
    likewise, and logits [M] that it has moved since the first picture, and that it is lifted now."""

    masks: Tensor
    keypoints: Tensor
    places: Tensor
    moved: Tensor
    lifted: Tensor

    @property
    def hand(self) -> Tensor:
        """Whether a pixel shows the hand: bool [..., h, w]."""
        return self.masks[..., 0, :, :] > 0


class HandReader(nn.Module):
    """The picture at the start and the one now, [B, 3, h, w] in [0, 1] each -> HandReading."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = (FINE_WIDTH, width, 2 * width, 3 * width, 3 * width)
        self.stem = _convolution(9, FINE_WIDTH)
        self.downs = nn.ModuleList(
            nn.Sequential(_convolution(a, b, stride=2), Residual(b))
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a + b, b, 1), Residual(b))
            for a, b in ((3 * width, 3 * width), (3 * width, 2 * width), (2 * width, width))
        )
        self.heat = nn.Conv2d(width, NUM_KEYPOINTS + len(OBJECT_SEEN), 3, padding=1)
        self.whole = nn.Conv2d(width, 4 * MASK_WIDTH, 1)
        self.mask = nn.Sequential(
            _convolution(MASK_WIDTH + FINE_WIDTH, MASK_WIDTH),
            _convolution(MASK_WIDTH, MASK_WIDTH),
            nn.Conv2d(MASK_WIDTH, len(MASKS), 3, padding=1),
        )
        self.whole_picture = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48 * width, 4 * width))
        self.events = nn.Sequential(nn.SiLU(), nn.Linear(4 * width, 2))
        # Where the object was and is, how far it went, and where the fingers are: what events are about.
        self.from_places = nn.Sequential(nn.Linear(2 * 3 + 1 + 2 * NUM_KEYPOINTS, 4 * width), nn.SiLU())
        self.to_events = nn.Linear(4 * width, 4 * width)

    def forward(self, first: Tensor, now: Tensor) -> HandReading:
        pixels = torch.cat([first - 0.5, now - 0.5, now - first], dim=1)
        fine = x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        whole = self.whole_picture(x)
        for up, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = up(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        masks = self.mask(torch.cat([F.pixel_shuffle(self.whole(x), 2), fine], 1))
        keypoints, places = find_peaks(self.heat(x)).split([NUM_KEYPOINTS, len(OBJECT_SEEN)], 1)
        moved, lifted = self.events(whole + self.to_events(self.from_places(_facts(keypoints, places)))).unbind(1)
        return HandReading(masks, keypoints * now.shape[-1], places * now.shape[-1], moved, lifted)


class Residual(nn.Module):
    """Two convolutions [B, C, h, w] -> [B, C, h, w] beside what they are given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            _convolution(channels, channels), nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.change(x))


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU())


def _facts(keypoints: Tensor, places: Tensor) -> Tensor:
    """Keypoints [B, 21, 2] and the object's places [B, 2, 2], all in [0, 1] -> what events follow from."""
    way = places[:, 1] - places[:, 0]
    near = keypoints - places[:, 1:]
    return torch.cat([places.flatten(1), 10.0 * way, 10.0 * way.norm(dim=1, keepdim=True), near.flatten(1)], 1)


def find_peaks(heat: Tensor) -> Tensor:
    """Heat maps [B, K, h, w] -> where they are hot on average, [B, K, 2] in [0, 1] (x right, y down)."""
    share = heat.flatten(2).softmax(-1).view_as(heat)
    places = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) / heat.shape[-1]
    return torch.stack([(share.sum(2) * places).sum(-1), (share.sum(3) * places).sum(-1)], -1)


@torch.no_grad()
def read_hands(model: HandReader, first: np.ndarray, frames: np.ndarray) -> HandReading:
    """Read episodes: first uint8 [N, h, w, 3], frames uint8 [N, S, h, w, 3] -> HandReading with leading [N, S]."""
    count = frames.shape[1]
    opened = torch.from_numpy(first).repeat_interleave(count, 0)
    flat = rearrange(torch.from_numpy(frames), "n s h w c -> (n s) h w c")
    pairs = zip(opened.split(FRAMES_AT_ONCE), flat.split(FRAMES_AT_ONCE), strict=True)
    parts = [model(to_unit(start), to_unit(now)) for start, now in pairs]
    joined = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return HandReading(*(rearrange(column, "(n s) ... -> n s ...", s=count) for column in joined))
