"""Heads: what the world lets happen: motion, reward, termination; and first depth.

`MotionHead` says before a frame is dreamed whether the commanded walk is free; `EventHead` says afterwards whether the
new frame earns the reward and ends the episode, `GoalHead` where in it the goal is; `DepthHead` guesses depth for a
picture that comes without. Those of hands are in hand_heads.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.conditioning.reproject import decode_depth
from worldscape.config import HeadsConfig
from worldscape.hand_heads import ObjectHead, ThingsHead, WristHead
from worldscape.memory.surroundings import CELLS as PLAN_CELLS
from worldscape.memory.surroundings import NEAR_CHANNELS
from worldscape.steady import Conv2d, Linear, SiLU, sigmoid

THING_CELL = 4  # pixels a side of the cells in which things are looked for
RARE = -3.0  # logit of an event before anything is learned
DROPOUT = 0.3  # of what the motion head has made of surroundings
LIKELY = 2.0  # logit of a free walk before anything is learned


class Events(NamedTuple):
    """Logits [B] that the frame earns the task's reward, and that it ends the episode."""

    reward: Tensor
    end: Tensor


class MotionHead(nn.Module):
    """The remembered surroundings, those in the current picture, and how far a walk leads -> is the walk free?

    It reads geometry alone, which recordings hold as much of as anybody wants; on tokens of a few hundred dreams it
    learned those by heart (docs/LOG.md).
    """

    def __init__(self, width: int):
        super().__init__()
        fine, coarse = max(width // 4, 2), max(width // 2, 4)
        self.near = nn.Sequential(
            Conv2d(NEAR_CHANNELS, fine, 3, padding=1),
            nn.SiLU(),
            Conv2d(fine, coarse, 3, stride=2, padding=1),
            nn.SiLU(),
            Conv2d(coarse, coarse, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(DROPOUT),
        )
        self.decide = nn.Sequential(
            Linear(coarse * (PLAN_CELLS // 4) ** 2 + 1, width), SiLU(), nn.Dropout(DROPOUT), Linear(width, 1)
        )
        nn.init.constant_(self.decide[-1].bias, LIKELY)  # pyright: ignore[reportArgumentType]

    def forward(self, near: Tensor, length: Tensor) -> Tensor:
        """near [B, 4, G, G] (surroundings_along), length of the walk [B], metres -> logit [B]."""
        return self.decide(torch.cat([self.near(near), 4.0 * length[:, None]], 1))[:, 0]


class EventHead(nn.Module):
    """The new frame -> reward and end logits.

    It reads the picture, so it can learn from every recorded frame. On tokens of a few hundred rollouts it learned
    those by heart, and paid a dreaming agent for red boxes that nobody saw (docs/LOG.md).
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            Conv2d(64, width, 3, padding=1),
            nn.SiLU(),
            Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            Linear(32 * width, 2 * width),
            SiLU(),
        )
        self.decide = Linear(2 * width, 2)
        nn.init.constant_(self.decide.bias, RARE)

    def forward(self, rgbd: Tensor) -> Events:
        """rgbd [B, 4, h, h] in [-1, 1]."""
        return Events(*self.decide(self.layers(rgbd)).unbind(-1))


class SeenGoal(NamedTuple):
    """Whether frames show the goal, logits [B], and where it is then: place [B, 3] in camera axes, metres."""

    seen: Tensor
    place: Tensor


class GoalHead(nn.Module):
    """The new frame -> SeenGoal: a goal is looked for in cells of THING_CELL pixels; depth says how far away it is."""

    def __init__(self, width: int):
        super().__init__()
        self.fine = nn.Sequential(
            nn.PixelUnshuffle(THING_CELL), Conv2d(4 * THING_CELL**2, width, 3, padding=1), nn.SiLU()
        )
        self.coarse = nn.Sequential(
            Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
        )
        self.seen = nn.Sequential(Linear(4 * width, width), SiLU(), Linear(width, 1))
        self.heat = nn.Sequential(Conv2d(3 * width, width, 3, padding=1), nn.SiLU(), Conv2d(width, 1, 1))

    def look(self, rgbd: Tensor) -> tuple[Tensor, Tensor]:
        """rgbd [B, 4, h, h] in [-1, 1] -> logits that the goal is seen [B], and in which cell [B, G G]."""
        fine = self.fine(rgbd)
        coarse = self.coarse(fine)
        whole = torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], 1)
        wide = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self.seen(whole)[:, 0], self.heat(torch.cat([fine, wide], 1)).flatten(1)

    def forward(self, rgbd: Tensor, intrinsics: Tensor) -> SeenGoal:
        """rgbd as in `look`, intrinsics [B, 4] normalised."""
        seen, heat = self.look(rgbd)
        side = rgbd.shape[-1] // THING_CELL
        cell = heat.argmax(1)
        column, row = (cell % side + 0.5) / side, (cell // side + 0.5) / side
        nearest = F.max_pool2d(rgbd[:, 3:], THING_CELL).flatten(1).gather(1, cell[:, None])[:, 0]
        z = decode_depth(nearest)
        fx, fy, cx, cy = intrinsics.unbind(-1)
        return SeenGoal(seen, torch.stack([(column - cx) / fx * z, (row - cy) / fy * z, z], -1))


class DepthHead(nn.Module):
    """RGB [B, 3, h, w] in [-1, 1] -> inverse depth [B, h, w] in [-1, 1]; a small U-Net."""

    def __init__(self, width: int):
        super().__init__()
        widths = (width // 4, width // 2, width, width)
        self.stem = Conv2d(12, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(
            Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.bottom = Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.whole = Linear(widths[-1], widths[-1])
        self.ups = nn.ModuleList(Conv2d(a + b, a, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.to_depth = Conv2d(widths[0], 4, 3, padding=1)

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
    """All heads of a world model; `features` is the generator's width, `channels` the latent's.

    `wrist` and `things` are there where the generator knows hands, `goal` and `object` where the config asks for them.
    """

    def __init__(self, config: HeadsConfig, features: int, channels: int, *, hands: bool):
        super().__init__()
        self.motion = MotionHead(config.width)
        self.events = EventHead(max(config.width // 4, 8))
        self.wrist = WristHead(config.width, features, channels) if hands else None
        self.things = ThingsHead(max(config.width * 3 // 8, 8)) if hands else None
        self.object = ObjectHead(2 * config.width) if hands and config.object else None
        self.depth = DepthHead(max(config.width // 2, 16))
        self.goal = GoalHead(max(config.width // 4, 8)) if config.goal else None

    def happens(self, rgbd: Tensor) -> Tensor:
        """rgbd [B, 4, h, h] in [-1, 1] -> probabilities of reward and end [B, 2]."""
        return sigmoid(torch.stack(self.events(rgbd), 1))

    def of_pictures(self) -> nn.ModuleDict:
        """Those that recordings teach without dreams: all but wrist, as far as they are there."""
        found = {"motion": self.motion, "events": self.events, "depth": self.depth, "things": self.things}
        found |= {"object": self.object, "goal": self.goal}
        return nn.ModuleDict({name: head for name, head in found.items() if head is not None})
