"""Heads of hands: how far things hold a hand back, how it moves its object, and where the things are it is about."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.conditioning.hand_model import NUM_KEYPOINTS
from worldscape.conditioning.hands import HAND_STATE_WIDTH
from worldscape.conditioning.layers import Thing
from worldscape.steady import Conv2d, Linear, SiLU, sigmoid

LARGEST_LAG = 2.0  # steps' worth of moving or turning by which a wrist may miss its goal
OBJECT_STEP = 0.03  # metres, the unit in which an object's motion is told
SURE = 0.75  # probability of moving below which an object stands still


class TokenHead(nn.Module):
    """Tokens [B, P, I] -> outputs [B, O]: a small network on each token, mean and maximum, a small network on those."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.tokens = nn.Sequential(nn.LayerNorm(inputs), Linear(inputs, width), SiLU(), Linear(width, width))
        self.pooled = nn.Sequential(nn.SiLU(), Linear(2 * width, width), SiLU(), Linear(width, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return self.pooled(torch.cat([x.mean(1), x.amax(1)], -1))


class WristHead(nn.Module):
    """Features and latent of the current frame, where hands are and where they are told to go -> what contact does."""

    def __init__(self, width: int, features: int, channels: int):
        super().__init__()
        self.told = Linear(2 * HAND_STATE_WIDTH + 1, width)
        self.head = TokenHead(features + channels + width, width, 6)
        nn.init.zeros_(self.head.pooled[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.head.pooled[-1].bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, features: Tensor, latent: Tensor, state: Tensor, goal: Tensor, rows: tuple[int, ...] = (0, 1)
    ) -> Tensor:
        """features [B, P, D], latent [B, P, C], state and goal [B, 2, 16] of both hands (state_to_vector) -> how far
        the wrists will be from their goals [B, 2, 6]: move and turn along workspace axes, in steps of a HandScale.
        rows: the hands that can be present at all; nothing is asked about others, and nothing holds them."""
        first, last = rows[0], rows[-1]
        state, goal = state[:, first : last + 1], goal[:, first : last + 1]
        is_right = torch.arange(first, last + 1, device=goal.device, dtype=goal.dtype)[:, None]
        is_right = is_right.expand(*goal.shape[:2], 1)
        told = self.told(torch.cat([goal, (goal - state) * 10.0, is_right], -1))  # metres: a step is about 0.03
        seen = torch.cat([features, latent], -1)[:, None].expand(-1, len(rows), -1, -1)
        tokens = torch.cat([seen, told[:, :, None].expand(-1, -1, seen.shape[2], -1)], -1)
        lag = self.head(tokens.flatten(0, 1)).unflatten(0, goal.shape[:2])
        lag = LARGEST_LAG * torch.tanh(lag / LARGEST_LAG)
        return lag if len(rows) == 2 else F.pad(lag, (0, 0, first, 1 - last))


class ObjectMotion(NamedTuple):
    """What a step does to an object, if it moves at all: shift [B, 3] in world axes (metres), moves [B], logits that it
    does; and touch [B, 3] after the step, logits of contact, grasped and lifted (`hand_tasks.Touch`)."""

    shift: Tensor
    moves: Tensor
    touch: Tensor

    def likely(self) -> Tensor:
        """The shift to expect, [B, 3]: none where it is not rather sure that there is one, or objects would creep."""
        chance = sigmoid(self.moves)
        return self.shift * torch.where(chance > SURE, chance, 0.0)[:, None]


class ObjectHead(nn.Module):
    """Where hands were and are around an object -> ObjectMotion. It reads geometry alone, as MotionHead does."""

    def __init__(self, width: int):
        super().__init__()
        told = 7 * NUM_KEYPOINTS + 4  # points before, their steps, distances; the object's last shift and its height
        self.net = nn.Sequential(
            Linear(told, width),
            SiLU(),
            Linear(width, width),
            SiLU(),
            Linear(width, width),
            SiLU(),
            Linear(width, 7),
        )

    def forward(
        self,
        before: Tensor,
        after: Tensor,
        present: Tensor,
        thing: Thing,
        shift: Tensor,
        rows: tuple[int, ...] = (0, 1),
    ) -> ObjectMotion:
        """Keypoints [B, 2, 21, 3] of both hands in world axes, present bool [B, 2], the object before the step, and its
        shift [B, 3] in the step before. The nearer hand decides; a left one is seen in a mirror. rows: the hands that
        can be present at all."""
        if rows == (1,):
            return self._answer(before[:, 1], after[:, 1], thing, shift)
        away = (after - thing.centre[:, None, None]).norm(dim=-1).amin(2)
        is_left = torch.where(present, away, torch.inf).diff(dim=1) > 0
        one = is_left[..., None]
        mirror = torch.ones_like(shift)
        mirror[:, :1] = torch.where(is_left, -1.0, 1.0)
        centre = thing.centre[:, None]
        sides = (torch.where(one, hands[:, 0], hands[:, 1]) for hands in (before, after))
        before, after = (centre + (points - centre) * mirror[:, None] for points in sides)
        found = self._answer(before, after, thing, shift * mirror)
        return found._replace(shift=found.shift * mirror)

    def _answer(self, before: Tensor, after: Tensor, thing: Thing, shift: Tensor) -> ObjectMotion:
        """For the keypoints [B, 21, 3] of one hand, a right one."""
        after, before = after - thing.centre[:, None], before - thing.centre[:, None]
        height = (thing.table - thing.centre[:, 1])[:, None]
        points, steps = before.flatten(1), (after - before).flatten(1)
        told = torch.cat([10 * points, 30 * steps, 10 * after.norm(dim=-1), 30 * shift, 10 * height], 1)
        shift, moves, touch = self.net(told).split([3, 1, 3], 1)
        return ObjectMotion(OBJECT_STEP * shift, moves[:, 0], touch)


class Things(NamedTuple):
    """What a frame shows of a table: object and target [B, 3] in camera axes, metres; spread [B, 2], how far off either
    may be, metres; touch [B, 3], logits of contact, grasped and lifted (`hand_tasks.Touch`).
    """

    object: Tensor
    target: Tensor
    spread: Tensor
    touch: Tensor


class ThingMaps(NamedTuple):
    """Of object and target, cell by cell of a grid of G x G over the picture: heat [B, 2, G G], logits of where each
    is; points [B, 2, G G, 3] in camera axes, where it is if it is in that cell, and spread [B, 2, G G], how far off
    that may be; touch [B, 3] as in Things. Metres.
    """

    heat: Tensor
    points: Tensor
    spread: Tensor
    touch: Tensor


class ThingsHead(nn.Module):
    """A frame and where the hand is in it -> Things.

    Each is looked for in the cell where it most likely is, and placed within it (as in CenterNet, Zhou et al. 2019):
    the mean of two places where a thing may be is a place where it is not.
    """

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Sequential(
            Conv2d(16, width, 3, stride=2, padding=1), nn.SiLU(), Conv2d(width, width, 3, padding=1)
        )
        self.hand = nn.Sequential(Linear(2 * (3 * NUM_KEYPOINTS + 1), width), SiLU(), Linear(width, width))
        self.down = nn.Sequential(
            nn.SiLU(),
            Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        self.whole = nn.Sequential(Linear(4 * width, width), SiLU())
        self.touch = Linear(width, 3)
        self.up = nn.Sequential(Conv2d(2 * width, width, 1), nn.SiLU(), Conv2d(width, width, 3, padding=1))
        self.maps = Conv2d(width, 10, 1)  # of object and target: heat, two offsets, depth, spread

    def look(self, rgbd: Tensor, keypoints: Tensor, present: Tensor, intrinsics: Tensor) -> ThingMaps:
        """rgbd [B, 4, h, h] in [-1, 1], keypoints [B, 2, 21, 3] in camera axes (metres), present bool [B, 2],
        intrinsics [B, 4] normalised."""
        there = present.to(rgbd.dtype)
        told = torch.cat([(keypoints * there[..., None, None]).flatten(2), there[..., None]], -1).flatten(1)
        fine = self.enter(F.pixel_unshuffle(rgbd, 2)) + self.hand(told)[..., None, None]
        coarse = self.down(fine)
        whole = self.whole(F.adaptive_avg_pool2d(coarse, 2).flatten(1))
        coarse = F.interpolate(coarse + whole[..., None, None], size=fine.shape[-2:], mode="nearest")
        maps = self.maps(F.silu(self.up(torch.cat([fine, coarse], 1)))).float().flatten(2)
        heat, x, y, depth, spread = maps.unflatten(1, (5, 2)).unbind(1)
        side = fine.shape[-1]
        place = (torch.arange(side, device=rgbd.device) + 0.5) / side
        z = F.softplus(depth)
        fx, fy, cx, cy = intrinsics[:, None, :, None].unbind(2)
        column, row = place.repeat(side) + x / side, place.repeat_interleave(side) + y / side
        points = torch.stack([(column - cx) / fx * z, (row - cy) / fy * z, z], -1)
        return ThingMaps(heat, points, 0.001 + 0.02 * F.softplus(spread), self.touch(whole))

    def forward(self, rgbd: Tensor, keypoints: Tensor, present: Tensor, intrinsics: Tensor) -> Things:
        """The arguments of `look` -> what is most likely."""
        maps = self.look(rgbd, keypoints, present, intrinsics)
        chance, cell = maps.heat.softmax(-1).max(-1, keepdim=True)
        points = maps.points.gather(2, cell[..., None].expand(-1, -1, -1, 3))[:, :, 0]
        spread = maps.spread.gather(2, cell) / chance
        return Things(points[:, 0], points[:, 1], spread[..., 0], maps.touch)
