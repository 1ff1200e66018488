"""Critic: tells made pictures from recorded ones, patch by patch, so that their maker learns to be sharp.

It sees each recorded picture beside its made twin and says by how much the first looks more real (relativistic pairing,
Jolicoeur-Martineau 2018, https://arxiv.org/abs/1807.00734). Its slope is kept small by asking for the same answer under
a little noise (approximate R1 and R2, as in Seaweed-APT, https://arxiv.org/abs/2501.08316).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.codec import RGBD_CHANNELS

NOISE = 0.03  # standard deviation of the noise that must not change the critic's mind
SMOOTHNESS = 10.0  # weight of that demand


class Critic(nn.Module):
    """RGB-D [B, 4, h, w] -> realness of overlapping patches [B, 1, h / 8, w / 8], any sign."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * RGBD_CHANNELS, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 3 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(3 * width, 1, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, rgbd: Tensor) -> Tensor:
        return self.layers(rgbd)


def make_critic(width: int, seed: int) -> Critic:
    """A critic that nothing has taught yet; the same for the same seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(width)


class CriticLosses(NamedTuple):
    """What the critic minimises, what the pictures' maker minimises, and how sure the critic is (no gradient)."""

    critic: Tensor
    maker: Tensor
    margin: Tensor


def critic_losses(critic: Critic, real: Tensor, made: Tensor, generator: torch.Generator) -> CriticLosses:
    """Losses on recorded pictures and their made twins, both [B, 4, h, w].

    Both can be minimised at once: `critic` sends no gradient into `made`, `maker` none into the critic.
    """
    pictures = torch.cat([real, made.detach()])
    noise = NOISE * torch.randn(pictures.shape, generator=generator, device=pictures.device)
    answers, shaken = critic(torch.cat([pictures, pictures + noise])).float().chunk(2)
    of_real, of_made = answers.chunk(2)
    smoothness = (answers - shaken).square().mean()
    fixed = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    judged = torch.func.functional_call(critic, fixed, (made,)).float()
    return CriticLosses(
        critic=F.softplus(of_made - of_real).mean() + SMOOTHNESS * smoothness,
        maker=F.softplus(of_real.detach() - judged).mean(),
        margin=(of_real - of_made).mean().detach(),
    )
