"""How a policy learns to see what it is told of: from the openings of many episodes first, then beside PPO.

Thirty layouts an update are soon learned by heart, a target's place by the table it lies over, and forgotten with the
next thirty. Against the first, pictures are shifted at random while they teach (DrQ, Yarats et al. 2021), which leaves
it to what stands in them; against the second, openings of thousands of episodes are kept and teach beside every step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from worldscape.policy import PixelPolicy, open_stack
from worldscape.progress import Progress
from worldscape.train.optim import set_lr

if TYPE_CHECKING:
    from ws_gym.ppo import Worlds

SHIFT = 6
"""Pixels by which pictures are shifted at most."""
BATCH = 64
LR = 1e-3


class Views(NamedTuple):
    """What a policy can learn to see from: stacks uint8 [N, F, h, w, 3], what it is told, [N, M], the facts [N, K]."""

    stacks: Tensor
    told: Tensor
    facts: Tensor

    def at(self, rows: Tensor) -> Views:
        """Those of `rows`."""
        return Views(*(part[rows] for part in self))

    def shifted(self, generator: torch.Generator) -> Views:
        """The same with each stack moved at random."""
        return self._replace(stacks=shifted(self.stacks, generator))

    def off(self, policy: PixelPolicy) -> Tensor:
        """How far off the policy sees the facts."""
        return facts_loss(policy.see(self.stacks, self.told), self.facts)


class Looks(NamedTuple):
    """Openings of N episodes: frames uint8 [N, h, w, 3], what a policy is told of them, [N, M], and the facts [N, K]
    of what they show, NaN where nobody knows."""

    frames: Tensor
    told: Tensor
    facts: Tensor

    def at(self, rows: Tensor, num_frames: int) -> Views:
        """Those of `rows`, as stacks of `num_frames`."""
        return Views(open_stack(self.frames[rows], num_frames), self.told[rows], self.facts[rows])

    def draw(self, count: int, num_frames: int, generator: torch.Generator) -> Views:
        """Some of them."""
        rows = torch.randint(len(self.frames), (count,), generator=generator, device=generator.device)
        return self.at(rows, num_frames)


def look_around(worlds: Worlds, count: int, seed: int) -> Looks:
    """The openings of `count` episodes of these worlds, which end up opened."""
    frames, told, facts, done = [], [], [], 0
    with Progress("openings seen", total=count) as progress:
        while done < count:
            shown = worlds.open(seed + done, 1)
            new = min(len(shown.stacks), count - done)
            frames.append(shown.stacks[:new, 0])
            told.append(shown.told[:new])
            facts.append(shown.facts[:new])
            done += new
            progress.update(new)
    return Looks(torch.cat(frames), torch.cat(told), torch.cat(facts))


def learn_to_see(policy: PixelPolicy, looks: Looks, epochs: int, generator: torch.Generator) -> None:
    """Teach the policy the facts of all looks, some epochs long, with a learning rate that falls to zero; nothing else
    of it changes."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=LR, eps=1e-5)
    num_steps, step = epochs * math.ceil(len(looks.frames) / BATCH), 0
    with Progress("batches seen", total=num_steps) as progress:
        for _ in range(epochs):
            order = torch.randperm(len(looks.frames), generator=generator, device=generator.device)
            for rows in order.split(BATCH):
                set_lr([optimizer], LR * 0.5 * (1.0 + math.cos(math.pi * step / num_steps)))
                optimizer.zero_grad(set_to_none=True)
                looks.at(rows, policy.config.frames).shifted(generator).off(policy).backward()
                optimizer.step()
                step += 1
                progress.update()


def look_again(views: Views, looks: Looks | None, generator: torch.Generator) -> Views:
    """These views and as many looks, if there are any, all shifted at random."""
    if looks is not None:
        more = looks.draw(len(views.stacks), views.stacks.shape[1], generator)
        views = Views(*(torch.cat(pair) for pair in zip(views, more, strict=True)))
    return views.shifted(generator)


def shifted(stacks: Tensor, generator: torch.Generator, most: int = SHIFT) -> Tensor:
    """Stacks uint8 [M, F, h, w, 3], each moved by up to `most` pixels across and down; what comes into view repeats the
    edge."""
    count, frames, height, width = stacks.shape[:4]
    by = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=generator.device)
    rows = (torch.arange(height, device=by.device) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=by.device) + by[1]).clamp(0, width - 1)
    which = torch.arange(count, device=by.device)[:, None, None, None]
    every = torch.arange(frames, device=by.device)[:, None, None]
    return stacks[which, every, rows[:, None, :, None], columns[:, None, None, :]]


def facts_loss(seen: Tensor, facts: Tensor) -> Tensor:
    """How far off the facts [M, K] are seen, where they are known (not NaN)."""
    is_known = facts.isfinite()
    error = smooth_l1_loss(seen, torch.where(is_known, facts, seen.detach()), reduction="sum")
    return error / is_known.sum().clamp_min(1)
