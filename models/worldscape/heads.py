"""Heads: what the world lets happen, read off the generator's features: motion, reward, termination; and first depth.

`MotionHead` says before a frame is dreamed whether the commanded walk is free; `EventHead` says afterwards whether the
new frame earns the reward and ends the episode; `DepthHead` guesses depth for a picture that comes without.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.config import HeadsConfig
from worldscape.memory.surroundings import CELLS as PLAN_CELLS

RARE = -3.0  # logit of an event before anything is learned
DROPOUT = 0.2  # of what the motion head has made of features and of surroundings
LIKELY = 2.0  # logit of a free walk before anything is learned


class Events(NamedTuple):
    """Logits [B] that the frame earns the task's reward, and that it ends the episode."""

    reward: Tensor
    end: Tensor


class TokenHead(nn.Module):
    """Tokens [B, P, I] -> outputs [B, O]: a small network on each token, mean and maximum, a small network on those."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.tokens = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Sequential(nn.SiLU(), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return self.pooled(torch.cat([x.mean(1), x.amax(1)], -1))


class MotionHead(nn.Module):
    """Features and latent of the current frame, the control and the remembered surroundings -> is the walk free?"""

    def __init__(self, width: int, features: int, channels: int):
        super().__init__()
        self.control = nn.Linear(6, width)
        self.seen = TokenHead(features + channels + width, width, width)
        self.near = nn.Sequential(
            nn.Conv2d(2, width // 4, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear((width // 2) * (PLAN_CELLS // 4) ** 2, width),
        )
        self.decide = nn.Sequential(
            nn.SiLU(), nn.Dropout(DROPOUT), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        nn.init.constant_(self.decide[-1].bias, LIKELY)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor, latent: Tensor, control: Tensor, near: Tensor) -> Tensor:
        """features [B, P, D], latent [B, P, C], control [B, 6], near [B, 2, G, G] (plan_view) -> logit [B]."""
        told = self.control(control * 4.0)[:, None].expand(-1, latent.shape[1], -1)  # metres: a step is about 0.25
        seen = self.seen(torch.cat([features, latent, told], -1))
        return self.decide(seen + self.near(near))[:, 0]


class EventHead(nn.Module):
    """Features and latent of the new frame -> reward and end logits."""

    def __init__(self, width: int, features: int, channels: int):
        super().__init__()
        self.head = TokenHead(features + channels, width, 2)
        nn.init.constant_(self.head.pooled[-1].bias, RARE)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor, latent: Tensor) -> Events:
        return Events(*self.head(torch.cat([features, latent], -1)).unbind(-1))


class DepthHead(nn.Module):
    """RGB [B, 3, h, w] in [-1, 1] -> inverse depth [B, h, w] in [-1, 1]; a small U-Net."""

    def __init__(self, width: int):
        super().__init__()
        widths = (width // 4, width // 2, width, width)
        self.stem = nn.Conv2d(12, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.bottom = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.whole = nn.Linear(widths[-1], widths[-1])
        self.ups = nn.ModuleList(nn.Conv2d(a + b, a, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.to_depth = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, rgb: Tensor) -> Tensor:
        x = F.silu(self.stem(F.pixel_unshuffle(rgb, 2)))
        skips = [x]
        for down in self.downs:
            x = F.silu(down(x))
            skips.append(x)
        x = F.silu(self.bottom(x) + self.whole(x.mean((2, 3)))[:, :, None, None])
        for up, skip in zip(reversed(self.ups), reversed(skips[:-1]), strict=True):
            x = F.silu(up(torch.cat([skip, F.interpolate(x, size=skip.shape[-2:], mode="nearest")], 1)))
        return torch.tanh(F.pixel_shuffle(self.to_depth(x), 2))[:, 0]


class Heads(nn.Module):
    """All heads of a world model; `features` is the generator's width, `channels` the latent's."""

    def __init__(self, config: HeadsConfig, features: int, channels: int):
        super().__init__()
        self.motion = MotionHead(config.width, features, channels)
        self.events = EventHead(config.width, features, channels)
        self.depth = DepthHead(max(config.width // 2, 16))
