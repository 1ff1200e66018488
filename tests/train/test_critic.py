"""The critic learns to tell blurred pictures from sharp ones, and its two losses do not touch each other's weights."""

import torch
import torch.nn.functional as F

from worldscape.train.critic import Critic, critic_losses


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(8, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_each_loss_moves_only_its_own_side():
    torch.manual_seed(0)
    critic, real, made = Critic(8), pictures(1), pictures(2).requires_grad_()
    losses = critic_losses(critic, real, made, torch.Generator().manual_seed(3))
    losses.critic.backward(retain_graph=True)
    assert made.grad is None and all(p.grad is not None for p in critic.parameters())
    critic.zero_grad(set_to_none=True)
    losses.maker.backward()
    assert made.grad is not None and all(p.grad is None for p in critic.parameters())


def test_it_learns_to_see_blur():
    torch.manual_seed(0)
    critic = Critic(8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    for step in range(60):
        real = pictures(step)
        losses = critic_losses(critic, real, F.avg_pool2d(real, 3, 1, 1), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        losses.critic.backward()
        optimizer.step()
    real = pictures(1000)
    held_out = critic_losses(critic, real, F.avg_pool2d(real, 3, 1, 1), torch.Generator().manual_seed(0))
    assert held_out.margin > 0.2
