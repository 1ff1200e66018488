"""PPO on tensors in one file: roll out in many worlds at once, estimate advantages, improve the policy; and again.

`learn` at the end is the algorithm; `examples/ppo_nav.py` and `ppo_hand.py` run it, `ppo_run.py` keeps what they make.
All worlds are in Gymnasium's autoreset mode NEXT_STEP: the step that ends an episode shows its last picture, whose
value is credited to an episode that the time limit cut; the step after it only opens the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.checkpoint import load_world
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.evaluate.arenas import describe_actions
from worldscape.evaluate.counterparts import COUNTERPARTS, NOTHING, Facts, choose_hand_actions
from worldscape.policy import STD, PixelPolicy, PolicyConfig, open_stack, push_frames
from worldscape.train.optim import set_lr
from ws_gym.seeing import Looks, Views, learn_to_see, look_again, look_around

TRAINING_SEEDS = HELD_OUT_SEED - 100_000
"""Worlds that are opened count on from the seed: far enough below those that are held out."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The usual settings of PPO for small pictures; `num_steps` of each world make one update.

    `lr_end` is the share of `lr` that is left at the last update; between them it falls in a straight line.
    `reward_scale` multiplies rewards where the critic learns from them: returns far from 1 make its errors drown all
    else that the shared layers could learn (Andrychowicz et al. 2021). `std`: of numbers of an action at first.

    A policy with facts to see learns to act from them as it saw them, and to see them for itself (seeing.py): from
    `looks` openings of episodes, 0 for none, `look_epochs` times over before the first step, and after each rollout
    from its pictures and as many looks, `see_epochs` times in `see_minibatches`. Seeing wants many small steps, acting
    few that see much.
    """

    num_steps: int = 128
    epochs: int = 3
    minibatches: int = 8
    lr: float = 3e-4
    lr_end: float = 0.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    std: float = STD
    looks: int = 0
    look_epochs: int = 12
    see_epochs: int = 4
    see_minibatches: int = 32
    reward_scale: float = 1.0
    max_grad_norm: float = 0.5


class Shown(NamedTuple):
    """One step of B worlds: frames uint8 [B, h, w, 3], what a policy is told, [B, N], and the facts [B, K] of what they
    show, rewards float [B]; terminated, ended, success bool [B]."""

    frames: Tensor
    told: Tensor
    facts: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    success: Tensor


@dataclass
class Present:
    """What the agent sees now: stacks uint8 [B, F, h, w, 3]; `ended` bool [B]: the next step only opens an episode.
    Of the last frames: what it is told, [B, N], and the facts [B, K] that it learns to see, NaN where nobody knows."""

    stacks: Tensor
    ended: Tensor
    told: Tensor
    facts: Tensor


class Worlds:
    """The worlds to learn in, as tensors on one device: dreams in one model, or simulators one after another.

    `facts` are what a policy shall learn to see, `told` what it is told beside the pictures, if anything.
    """

    def __init__(self, envs: Any, device: str | torch.device, facts: Facts = NOTHING, told: Facts = NOTHING) -> None:
        self.envs, self.device, self.facts, self.told = envs, torch.device(device), facts, told
        self._takes_tensors = getattr(envs.unwrapped, "output", "numpy") == "torch"

    def open(self, seed: int, num_frames: int) -> Present:
        """New episodes in all worlds, seen as stacks of `num_frames`."""
        frames, infos = self.envs.reset(seed=seed)
        frames = torch.as_tensor(frames, device=self.device)
        has_ended = torch.zeros(len(frames), dtype=torch.bool, device=self.device)
        return Present(open_stack(frames, num_frames), has_ended, *self._known(infos))

    def step(self, actions: Tensor) -> Shown:
        """Actions long [B] or float [B, A] -> what follows. A Box clips what lies outside."""
        frames, rewards, terminated, truncated, infos = self.envs.step(
            actions if self._takes_tensors else actions.cpu().numpy()
        )
        shown = (frames, rewards, terminated, terminated | truncated, infos["success"])
        frames, rewards, terminated, ended, success = (torch.as_tensor(value, device=self.device) for value in shown)
        return Shown(frames, *self._known(infos), rewards.float(), terminated, ended, success)

    def _known(self, infos: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return self.told.tell(infos).to(self.device), self.facts.tell(infos).to(self.device)

    def close(self) -> None:
        """Free the worlds."""
        self.envs.close()


def make_worlds(
    task: str,
    env: str,
    weights: str,
    *,
    num_envs: int,
    limit: int,
    device: str = "cpu",
    starts: str | None = None,
    dense: bool = False,
    temperature: float = 1.0,
    hand_actions: str | None = None,
) -> Worlds:
    """Worlds of a task: its dream or its simulator, whichever has the id `env`, with episodes of `limit` steps.

    weights: of the dream, whose picture size the simulator takes; starts: of the dream, None for its own default;
    dense: reward the way to the goal too, in a task that can; temperature: of the dream. Where success ends a reward of
    every step, worlds pay what is missing to the best, so that reaching the goal is worth more than staying near it.
    hand_actions: of hands, None for their own default. Raises ValueError for weights that do not know the task's
    controls, for a simulator with a temperature, and for actions of hands that there are not.
    """
    pair = COUNTERPARTS[task]
    options: dict[str, Any] = {"num_envs": num_envs, "max_episode_steps": limit}
    options |= choose_hand_actions(pair, hand_actions)
    paid = {"reward_mode": "missing"} if pair.held_reward else {"dense": True} if dense else {}
    if env == pair.dream:
        options |= {"weights": weights, "device": device, "output": "torch", "task": task, "temperature": temperature}
        options |= {} if starts is None else {"starts": starts}
        options |= {"task_options": paid} if paid else {}
    elif temperature != 1:
        raise ValueError(f"temperature is {temperature}, and {env} is no dream; leave it at 1")
    else:
        size = load_world(weights).config.codec.size
        options |= {"vectorization_mode": "sync", "size": size, **pair.options, **paid}
    return Worlds(gym.make_vec(env, **options), device, pair.facts, pair.told)


def fit_policy(worlds: Worlds, **widths: Any) -> PolicyConfig:
    """The policy that sees the pictures of these worlds and acts in them; `widths` are settings of PolicyConfig."""
    envs = worlds.envs
    is_continuous, num_actions = describe_actions(envs.single_action_space)
    num_facts, num_told = worlds.facts.num, worlds.told.num
    acts = {"num_actions": num_actions, "is_continuous": is_continuous}
    return PolicyConfig(
        **acts, num_facts=num_facts, num_told=num_told, size=envs.single_observation_space.shape[0], **widths
    )


class Rollout(NamedTuple):
    """T steps of B worlds, [T, B, ...] each; `counts` is False for steps that only opened an episode. facts: as they
    are, NaN where nobody knows; seen: as the policy saw them."""

    stacks: Tensor
    told: Tensor
    facts: Tensor
    seen: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    success: Tensor
    counts: Tensor


@torch.no_grad()
def collect(
    worlds: Worlds, policy: PixelPolicy, present: Present, num_steps: int, generator: torch.Generator
) -> tuple[Rollout, Tensor]:
    """Act for `num_steps`, moving `present` along -> the rollout, and the values [B] of what is seen after it."""
    steps = []
    for _ in range(num_steps):
        stacks, told, facts, counts = present.stacks, present.told, present.facts, ~present.ended
        odds, values, seen = policy(stacks, told)
        shape = (len(stacks), policy.config.num_actions)
        actions = odds.draw(torch.rand(shape, generator=generator, device=stacks.device))
        shown = worlds.step(actions)
        present.stacks = push_frames(stacks, shown.frames, present.ended)
        present.ended, present.told, present.facts = shown.ended, shown.told, shown.facts
        steps.append((stacks, told, facts, seen, actions, odds.log_prob(actions), values, *shown[3:], counts))
    last_values = policy(present.stacks, present.told).value
    return Rollout(*(torch.stack(column) for column in zip(*steps, strict=True))), last_values


def estimate_advantages(rollout: Rollout, last_values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [T, B] (Schulman et al. 2016): A_t = d_t + gamma lambda A_(t+1), with
    d_t = r_t + gamma V_(t+1) - V_t, V_(t+1) = 0 after a termination, and A_(t+1) = 0 after any end.

    In NEXT_STEP, V_(t+1) at a truncation is the value of the episode's own last picture.
    """
    next_values = torch.cat([rollout.values[1:], last_values[None]])
    goes_on, has_future = (~rollout.ended).float(), (~rollout.terminated).float()
    errors = rollout.rewards + gamma * next_values * has_future - rollout.values
    advantages, later = torch.zeros_like(errors), torch.zeros_like(last_values)
    for step in reversed(range(len(errors))):
        later = errors[step] + gamma * gae_lambda * goes_on[step] * later
        advantages[step] = later
    return advantages


class Losses(NamedTuple):
    """Scalars of one minibatch; `total` is minimised."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor


def ppo_loss(policy: PixelPolicy, batch: Mapping[str, Tensor], recipe: Recipe) -> Losses:
    """The clipped objective on M steps: stacks (or facts as they were seen, of a policy that goes by them), what was
    told, actions, log_probs, advantages and returns, each [M, ...]."""
    if policy.config.num_facts:
        odds, values = policy.decide(batch["seen"], batch["told"])
    else:
        odds, values, _ = policy(batch["stacks"], batch["told"])
    log_ratio = odds.log_prob(batch["actions"]) - batch["log_probs"]
    ratio, advantages = log_ratio.exp(), batch["advantages"]
    advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    clipped = ratio.clamp(1 - recipe.clip, 1 + recipe.clip)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    value_loss = 0.5 * (values - batch["returns"]).square().mean()
    entropy = odds.entropy().mean()
    total = policy_loss + recipe.value * value_loss - recipe.entropy * entropy
    return Losses(total, policy_loss, value_loss, entropy, ((ratio - 1) - log_ratio).mean())


def improve(
    policy: PixelPolicy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    last_values: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    looks: Looks | None = None,
) -> dict[str, float]:
    """Some epochs of minibatches over the steps that count; then a policy with facts to see goes on learning that ->
    the mean of each loss."""
    scaled = rollout._replace(rewards=recipe.reward_scale * rollout.rewards)
    advantages = estimate_advantages(scaled, last_values, recipe.gamma, recipe.gae_lambda)
    looked_at = {"seen": rollout.seen} if policy.config.num_facts else {"stacks": rollout.stacks}
    parts = {
        **looked_at,
        "told": rollout.told,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "advantages": advantages,
        "returns": advantages + rollout.values,
    }
    counted = rearrange(rollout.counts, "t b -> (t b)").nonzero()[:, 0]
    flat = {name: rearrange(part, "t b ... -> (t b) ...") for name, part in parts.items()}
    losses = []
    for rows in minibatches(counted, recipe.epochs, recipe.minibatches, generator):
        loss = ppo_loss(policy, {name: part[rows] for name, part in flat.items()}, recipe)
        descend(policy, optimizer, loss.total, recipe.max_grad_norm)
        losses.append(torch.stack(loss).detach())
    means = dict(zip(Losses._fields, torch.stack(losses).mean(0).tolist(), strict=True))
    if not policy.config.num_facts:
        return means
    views, off = Views(*(part.flatten(0, 1) for part in (rollout.stacks, rollout.told, rollout.facts))), []
    for rows in minibatches(counted, recipe.see_epochs, recipe.see_minibatches, generator):
        loss = look_again(views.at(rows), looks, generator).off(policy)
        descend(policy, optimizer, loss, recipe.max_grad_norm)
        off.append(loss.detach())
    return {**means, "facts": float(torch.stack(off).mean())}


def minibatches(rows: Tensor, epochs: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows [M], `epochs` times over in random orders, each in `count` parts."""
    for _ in range(epochs):
        yield from rows[torch.randperm(len(rows), generator=generator, device=rows.device)].chunk(count)


def descend(policy: PixelPolicy, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """One step of the optimiser; what the loss does not depend on stays as it is."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    optimizer.step()


class Update(NamedTuple):
    """One update that is done: its number, whether all worlds were opened anew before it, the steps, the losses."""

    number: int
    is_opening: bool
    rollout: Rollout
    losses: dict[str, float]
    lr: float


def learn(
    worlds: Worlds,
    policy: PixelPolicy,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    updates: range,
    reopen_at: Collection[int],
    seed: int,
) -> Iterator[Update]:
    """PPO: each update rolls out and improves the policy in place. `updates` may begin in the middle: every random
    number follows from `seed` and the update's, and all worlds are opened anew at the updates in `reopen_at`."""
    present, looks = None, None
    if updates and recipe.looks and policy.config.num_facts:
        looks = look_around(worlds, recipe.looks, seed % TRAINING_SEEDS)
        if updates.start == 0:
            learn_to_see(policy, looks, recipe.look_epochs, torch.Generator(worlds.device).manual_seed(seed))
    for number in updates:
        drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        generator = torch.Generator(worlds.device).manual_seed(drawn)
        is_opening = present is None or number in reopen_at
        if present is None or is_opening:
            present = worlds.open(drawn % TRAINING_SEEDS, policy.config.frames)
        lr = recipe.lr * (1 - (1 - recipe.lr_end) * number / updates.stop)
        set_lr([optimizer], lr)
        rollout, last_values = collect(worlds, policy, present, recipe.num_steps, generator)
        losses = improve(policy, optimizer, rollout, last_values, recipe, generator, looks)
        yield Update(number, is_opening, rollout, losses, lr)
