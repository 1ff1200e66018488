"""A policy that sees the last few frames: a convolutional actor-critic, what it draws actions from, its file on disk.

`ws_gym.ppo` trains it, `worldscape eval transfer` scores it; both must see frames and draw actions in the same way.
Files are safetensors with JSON in the header, as everywhere here: loading a stranger's policy runs nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from worldscape.atomic import whole_file

FORMAT = "worldscape-policy"
POLICY_FILE = "policy.safetensors"
STD_RANGE = (0.05, 1.0)
"""Standard deviations between which continuous actions are drawn, in units of an action's full size."""
STD = 0.22
"""With which a policy begins that nobody widens. At 0.5 a hand of thirteen numbers soon left the picture."""
THOUGHTS = 128
"""Width of the layers between facts and actor or critic."""
NOISE_EDGE = 2.0**-24
"""Noise is kept this far from 0 and 1, where a normal number would be infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """Actions to choose from, or with `is_continuous` the numbers in [-1, 1] that make one action; frames seen (height
    and width `size`, multiples of `shrinks_by`); widths; stride of the first convolution. num_facts: numbers about the
    scene that it is taught to see. num_told: numbers that it is told beside the pictures, as a robot knows of itself.
    """

    num_actions: int
    is_continuous: bool = False
    num_facts: int = 0
    num_told: int = 0
    size: int = 64
    frames: int = 4
    channels: tuple[int, ...] = (32, 64)
    hidden: int = 256
    stride: int = 4

    def __post_init__(self) -> None:
        for name in ("num_actions", "size", "frames", "hidden", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"a policy with {name} {getattr(self, name)}: it must be at least 1")
        if self.num_facts < 0 or self.num_told < 0:
            raise ValueError(
                f"a policy that sees {self.num_facts} facts and is told {self.num_told}: each must be at least 0"
            )
        if not self.channels or self.size % self.shrinks_by:
            raise ValueError(f"channels {self.channels} divide pictures of {self.size} pixels into parts of a pixel")

    @property
    def shrinks_by(self) -> int:
        """How much smaller pictures are at the end: by `stride` after the first convolution, by half after each
        other."""
        return self.stride * 2 ** (len(self.channels) - 1)


class Choice(NamedTuple):
    """One of A actions, for each of B rows: logits [B, A]."""

    logits: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Noise [B, A], uniform in [0, 1) -> actions long [B]: the largest of logits with Gumbel noise."""
        return (self.logits - (-_inside(noise).log()).log()).argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Actions long [B] -> [B]."""
        return self.logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """Nats [B]."""
        log_probs = self.logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


class Gaussian(NamedTuple):
    """A independent numbers around means [B, A] in (-1, 1), with standard deviations [A] that know no state.

    Environments clip what lies outside [-1, 1]. The density is that of the number drawn, before the clip, so PPO's
    ratio is exact. Squashed samples would have the same ratio, but no entropy in closed form; free means would wander
    off to where the clip hides them.
    """

    mean: Tensor
    std: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Noise [B, A], uniform in [0, 1) -> actions float32 [B, A], not clipped."""
        return self.mean + self.std * torch.special.ndtri(_inside(noise))

    def log_prob(self, actions: Tensor) -> Tensor:
        """Actions [B, A] -> log density [B]."""
        away = (actions - self.mean) / self.std
        return -(0.5 * away.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Nats [B], of the numbers before the clip."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).expand(len(self.mean))


def _inside(noise: Tensor) -> Tensor:
    return noise.clamp(NOISE_EDGE, 1.0 - NOISE_EDGE)


class PolicyOutput(NamedTuple):
    """What B actions are drawn from; value [B]: the return that the critic expects; facts [B, K] as it sees them."""

    actions: Choice | Gaussian
    value: Tensor
    facts: Tensor


class PixelPolicy(nn.Module):
    """Stacks of frames, uint8 [B, F, h, w, 3], oldest first, and what it is told, [B, N], if anything -> PolicyOutput.

    Convolutions whose kernels are twice their strides, and one of 3 x 3 after them (Mnih et al. 2015).
    Residual stages (IMPALA, Espeholt et al. 2018) took four times as long on a CPU, most of it while learning.

    With facts to see (where a target is, say), they are all that actor and critic go by, and what those want does not
    change how facts are read off the pictures. Whoever knows the facts while it learns is so told where to look, which
    reward takes far longer to tell; when it acts it has the pictures alone, and what it is told of itself (compare
    Jaderberg et al. 2017, Pinto et al. 2018).
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3 * config.frames, *config.channels)
        strides = (config.stride, *[2] * (len(config.channels) - 1))
        steps = zip(widths[:-1], widths[1:], strides, strict=True)
        layers = [nn.Conv2d(before, after, 2 * by, by, by // 2) for before, after, by in steps]
        layers.append(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
        side = config.size // config.shrinks_by
        self.trunk = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten())
        # In a Sequential, as policies were saved with.
        self.hidden = nn.Sequential(nn.Linear(widths[-1] * side * side, config.hidden))
        self.facts = nn.Linear(config.hidden, config.num_facts) if config.num_facts else None
        self.told = nn.Linear(config.num_told, config.hidden, bias=False) if config.num_told else None
        heard = config.num_facts + config.num_told
        self.will = _thoughts(heard) if config.num_facts else nn.Identity()
        self.worth = _thoughts(heard) if config.num_facts else nn.Identity()
        known = THOUGHTS if config.num_facts else config.hidden
        self.actor = nn.Linear(known, config.num_actions)
        self.spread = nn.Parameter(torch.zeros(config.num_actions)) if config.is_continuous else None
        self.widen(STD)
        self.critic = nn.Linear(known, 1)
        for layer in (*layers, self.hidden[0]):
            nn.init.orthogonal_(layer.weight, 2**0.5)  # pyright: ignore[reportArgumentType]
        # Nearly equal odds, or means of zero, at first: PPO's usual start.
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.orthogonal_(self.critic.weight, 1.0)
        for layer in (*layers, self.hidden[0], self.actor, self.critic):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.trunk.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def see(self, stacks: Tensor, told: Tensor | None = None) -> Tensor:
        """The facts [B, K] alone."""
        return self._tell(self._look(stacks, told))

    def _look(self, stacks: Tensor, told: Tensor | None) -> Tensor:
        """Hidden [B, H]. Raises ValueError for a policy that is told another number of numbers than these."""
        given = 0 if told is None else told.shape[1]
        if given != self.config.num_told:
            raise ValueError(f"this policy is told {self.config.num_told} numbers beside the pictures, not {given}")
        pixels = rearrange(stacks, "b f h w c -> b (f c) h w").contiguous(memory_format=torch.channels_last)
        hidden = self.hidden(self.trunk(pixels.float() / 255.0 - 0.5))
        return torch.relu(hidden if self.told is None else hidden + self.told(told))

    def _tell(self, hidden: Tensor) -> Tensor:
        return hidden[:, :0] if self.facts is None else self.facts(hidden)

    def forward(self, stacks: Tensor, told: Tensor | None = None) -> PolicyOutput:
        hidden = self._look(stacks, told)
        facts = self._tell(hidden)
        if self.facts is None:
            return PolicyOutput(*self._decide(hidden), facts)
        return PolicyOutput(*self.decide(facts.detach(), told), facts)

    def decide(self, facts: Tensor, told: Tensor | None = None) -> tuple[Choice | Gaussian, Tensor]:
        """Of a policy that goes by facts [B, K], and by what it is told [B, N]: what actions are drawn from, and the
        values [B]."""
        return self._decide(facts if told is None else torch.cat([facts, told], 1))

    def _decide(self, known: Tensor) -> tuple[Choice | Gaussian, Tensor]:
        value = rearrange(self.critic(self.worth(known)), "b 1 -> b")
        return self._to_actions(self.actor(self.will(known))), value

    @torch.no_grad()
    def widen(self, std: float) -> None:
        """Let the numbers of an action be drawn with standard deviation `std`. Raises ValueError where that is not
        inside STD_RANGE."""
        least, most = STD_RANGE
        if not least < std < most:
            raise ValueError(f"a standard deviation of {std}; it must lie between {least} and {most}")
        if self.spread is not None:
            self.spread.fill_(math.log((std - least) / (most - std)))

    def _to_actions(self, outputs: Tensor) -> Choice | Gaussian:
        if self.spread is None:
            return Choice(outputs)
        least, most = STD_RANGE
        return Gaussian(torch.tanh(outputs), least + (most - least) * torch.sigmoid(self.spread))


def _thoughts(num_facts: int) -> nn.Module:
    """What is made of facts before an actor or a critic sees them."""
    return nn.Sequential(nn.Linear(num_facts, THOUGHTS), nn.Tanh(), nn.Linear(THOUGHTS, THOUGHTS), nn.Tanh())


def open_stack(frames: Tensor, num_frames: int) -> Tensor:
    """First frames of episodes, uint8 [B, h, w, 3] -> stacks [B, F, h, w, 3] that show nothing else."""
    return repeat(frames, "b h w c -> b f h w c", f=num_frames)


def push_frames(stacks: Tensor, frames: Tensor, is_first: Tensor) -> Tensor:
    """Stacks [B, F, h, w, 3] one frame later; rows where `is_first` bool [B] open a new episode. New memory."""
    later = torch.cat([stacks[:, 1:], frames[:, None]], dim=1)
    return torch.where(rearrange(is_first, "b -> b 1 1 1 1"), open_stack(frames, stacks.shape[1]), later)


def save_policy(policy: PixelPolicy, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Write the policy to `path`, all of it or nothing; `facts` (plain JSON) say how it was trained."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    save_tensors(Path(path), tensors, {"format": FORMAT, "policy": asdict(policy.config), "facts": dict(facts)})


def load_policy(path: str | os.PathLike[str]) -> tuple[PixelPolicy, dict[str, Any]]:
    """A policy file, or the folder of a run -> the policy in eval mode without gradients, and the facts saved with it.

    Raises ValueError for a file that is missing, damaged or something else.
    """
    path = Path(path)
    path = path / POLICY_FILE if path.is_dir() else path
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} holds no policy; give a file or a run folder of examples/ppo_nav.py or ppo_hand.py")
    try:
        policy, facts = build_policy(header["policy"]), dict(header["facts"])
        policy.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the policy {path} does not fit its own description: {error!r}") from error
    return policy.requires_grad_(False).eval(), facts


def build_policy(config: Mapping[str, Any]) -> PixelPolicy:
    """A new policy from its description in a header; the caller's random numbers are left alone."""
    known = {**config, "channels": tuple(config["channels"])}
    with torch.random.fork_rng(devices=[]):
        return PixelPolicy(PolicyConfig(**known))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header to one file: a reader, or a power cut, finds the old file or the new one."""
    with whole_file(path) as partial:
        partial.write_bytes(save(dict(tensors), {"json": json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: tensors and header. Raises ValueError for a missing or damaged file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; train a policy with examples/ppo_nav.py or ppo_hand.py")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("json", "{}"))
            if not isinstance(header, dict):
                raise ValueError(f"its header is {type(header).__name__}, not a table")
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or another kind of file ({error}); write it again") from error
