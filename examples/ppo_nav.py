"""PPO in one file: an agent learns to find the red box inside the dream, or, with --env, in the simulator itself.

python examples/ppo_nav.py --out runs/ppo_dream
python examples/ppo_nav.py --out runs/ppo_rooms --env WorldScape-Rooms-v0
worldscape eval transfer --dream-run runs/ppo_dream --simulator-run runs/ppo_rooms

Needs pip install "worldscape[sim,train]". The run's folder gets TensorBoard curves (tb), films of held-out episodes
(videos) and the policies of all checkpoints (policies). Stop it when you like: the same command goes on from the last
checkpoint and ends with the same weights. A simulator cannot be saved, so all worlds are opened anew after each
checkpoint; every random number follows from the seed and the number of the update.

Both environments are in Gymnasium's autoreset mode NEXT_STEP: the step that ends an episode shows its last picture,
whose value is credited to an episode that the time limit cut; the step after it only opens the next one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.checkpoint import load_world
from worldscape.conditioning.controls import DISCRETE_ACTIONS
from worldscape.evaluate.arenas import Arenas
from worldscape.evaluate.transfer import POLICY_FOLDER, save_films, tabulate_plays
from worldscape.policy import (
    POLICY_FILE,
    PixelPolicy,
    PolicyConfig,
    load_tensors,
    open_stack,
    push_frames,
    save_policy,
    save_tensors,
)
from worldscape.progress import Progress
from worldscape.train.optim import load_optimizer_tensors, optimizer_tensors, set_lr

DREAM, SIMULATOR = "WorldScape-Nav-v0", "WorldScape-Rooms-v0"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The usual settings of PPO for small pictures; `num_steps` of each world make one update."""

    num_steps: int = 128
    epochs: int = 3
    minibatches: int = 8
    lr: float = 3e-4  # falls to zero in a straight line
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad_norm: float = 0.5


IDENTITY = ("env", "preset", "steps", "num_envs", "limit", "checkpoints", "seed")
"""Options that a run must keep to go on from its checkpoint."""
DEBUG_RECIPE = Recipe(num_steps=8, epochs=2, minibatches=2)
DEBUG_POLICY = {"frames": 2, "channels": (4, 4), "hidden": 16}
DEBUG_OPTIONS = {"steps": 64, "num_envs": 2, "limit": 5, "score_limit": 8, "episodes": 2, "checkpoints": 2}


class Shown(NamedTuple):
    """One step of B worlds: frames uint8 [B, h, w, 3], rewards float [B]; terminated, ended, success bool [B]."""

    frames: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    success: Tensor


class Worlds:
    """The worlds to learn in, as tensors on one device: dreams in one model, or simulators one after another."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        options: dict[str, Any] = {"num_envs": args.num_envs, "max_episode_steps": args.limit}
        if args.env == DREAM:
            options |= {"weights": args.preset, "device": args.device, "output": "torch", "task": "goal_object"}
        else:
            options |= {"vectorization_mode": "sync", "size": load_world(args.preset).config.codec.size}
        self.envs: Any = gym.make_vec(args.env, **options)

    def open(self, seed: int) -> Tensor:
        """First frames uint8 [B, h, w, 3] of new episodes."""
        return torch.as_tensor(self.envs.reset(seed=seed)[0], device=self.device)

    def step(self, actions: Tensor) -> Shown:
        given = actions if self.envs.spec.id == DREAM else actions.cpu().numpy()
        frames, rewards, terminated, truncated, infos = self.envs.step(given)
        shown = (frames, rewards, terminated, terminated | truncated, infos["success"])
        frames, rewards, terminated, ended, success = (torch.as_tensor(value, device=self.device) for value in shown)
        return Shown(frames, rewards.float(), terminated, ended, success)


@dataclass
class Present:
    """What the agent sees now: stacks uint8 [B, F, h, w, 3]; `ended` bool [B]: the next step only opens an episode."""

    stacks: Tensor
    ended: Tensor


class Rollout(NamedTuple):
    """T steps of B worlds, [T, B, ...] each; `counts` is False for steps that only opened an episode."""

    stacks: Tensor
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
        stacks, counts = present.stacks, ~present.ended
        logits, values = policy(stacks)
        actions = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        log_probs = pick(logits.log_softmax(-1), actions)
        shown = worlds.step(actions)
        present.stacks = push_frames(stacks, shown.frames, present.ended)
        present.ended = shown.ended
        steps.append((stacks, actions, log_probs, values, *shown[1:], counts))
    return Rollout(*(torch.stack(column) for column in zip(*steps, strict=True))), policy(present.stacks).value


def pick(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Log-probabilities [B, A] of all actions -> [B] of those taken."""
    return log_probs.gather(1, actions[:, None])[:, 0]


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


def ppo_loss(policy: PixelPolicy, batch: dict[str, Tensor], recipe: Recipe) -> Losses:
    """The clipped objective on M steps: stacks, actions, log_probs, advantages and returns, each [M, ...]."""
    logits, values = policy(batch["stacks"])
    log_probs = logits.log_softmax(-1)
    log_ratio = pick(log_probs, batch["actions"]) - batch["log_probs"]
    ratio, advantages = log_ratio.exp(), batch["advantages"]
    advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    clipped = ratio.clamp(1 - recipe.clip, 1 + recipe.clip)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    value_loss = 0.5 * (values - batch["returns"]).square().mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    total = policy_loss + recipe.value * value_loss - recipe.entropy * entropy
    return Losses(total, policy_loss, value_loss, entropy, ((ratio - 1) - log_ratio).mean())


def improve(
    policy: PixelPolicy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    last_values: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> dict[str, float]:
    """Some epochs of minibatches over the steps that count -> the mean of each loss."""
    advantages = estimate_advantages(rollout, last_values, recipe.gamma, recipe.gae_lambda)
    parts = {
        "stacks": rollout.stacks,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "advantages": advantages,
        "returns": advantages + rollout.values,
    }
    flat = {name: rearrange(part, "t b ... -> (t b) ...") for name, part in parts.items()}
    counted = rearrange(rollout.counts, "t b -> (t b)").nonzero()[:, 0]
    seen = []
    for _ in range(recipe.epochs):
        order = counted[torch.randperm(len(counted), generator=generator, device=counted.device)]
        for rows in order.chunk(recipe.minibatches):
            losses = ppo_loss(policy, {name: part[rows] for name, part in flat.items()}, recipe)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), recipe.max_grad_norm)
            optimizer.step()
            seen.append(torch.stack(losses).detach())
    return dict(zip(Losses._fields, torch.stack(seen).mean(0).tolist(), strict=True))


class Episodes:
    """Returns and successes of the last 100 episodes that ended while learning."""

    def __init__(self, num_envs: int, recent: list[list[float]]) -> None:
        self.recent: deque[list[float]] = deque(recent, maxlen=100)
        self.totals = np.zeros(num_envs)

    def add(self, rollout: Rollout) -> None:
        rewards, ended, success = (
            part.cpu().numpy() for part in (rollout.rewards * rollout.counts, rollout.ended, rollout.success)
        )
        for step in range(len(rewards)):
            self.totals += rewards[step]
            self.recent.extend([self.totals[row], float(success[step, row])] for row in np.flatnonzero(ended[step]))
            self.totals[ended[step]] = 0.0

    def means(self) -> dict[str, float]:
        if not self.recent:
            return {}
        return dict(zip(("return", "success"), np.mean(self.recent, axis=0).tolist(), strict=True))


class Run:
    """What a checkpoint holds: the policy, its optimiser, how many updates are done, the recent episodes."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe, config: PolicyConfig) -> None:
        self.path = args.out / "checkpoint.safetensors"
        torch.manual_seed(args.seed)
        self.policy = PixelPolicy(config).to(args.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=recipe.lr, eps=1e-5)
        self.num_done = 0
        self.recent: list[list[float]] = []
        known = {name: getattr(args, name) for name in IDENTITY} | {"recipe": asdict(recipe), "policy": asdict(config)}
        self.identity = json.loads(json.dumps(known))  # tuples become lists, as they do in the file

    def save(self) -> None:
        """Write the checkpoint in the place of the last one, all of it or nothing."""
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in optimizer_tensors([self.optimizer]).items()}
        header = {"identity": self.identity, "num_done": self.num_done, "recent": self.recent}
        save_tensors(self.path, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises ValueError for a damaged one, and for another run's."""
        if not self.path.exists():
            return
        tensors, header = load_tensors(self.path)
        if header["identity"] != self.identity:
            changed = sorted(name for name, value in self.identity.items() if header["identity"].get(name) != value)
            raise ValueError(f"{self.path} is of a run with another {', '.join(changed)}; give another --out")
        parts = {"policy": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.policy.load_state_dict(parts["policy"])
        load_optimizer_tensors([self.optimizer], parts["adam"])
        self.num_done, self.recent = header["num_done"], header["recent"]


def train(args: argparse.Namespace, recipe: Recipe, run: Run, arenas: Arenas) -> None:
    """Learn until args.steps env steps are done: roll out, improve, and now and then write down what there is."""
    from torch.utils.tensorboard import SummaryWriter

    per_update = args.num_envs * recipe.num_steps
    num_updates = math.ceil(args.steps / per_update)
    marks = {round((index + 1) * num_updates / args.checkpoints) for index in range(args.checkpoints)}
    worlds, present = Worlds(args), None
    episodes = Episodes(args.num_envs, run.recent)
    board = SummaryWriter(args.out / "tb", purge_step=run.num_done * per_update or None)
    with Progress("env steps", total=num_updates * per_update, done=run.num_done * per_update) as progress:
        for update in range(run.num_done, num_updates):
            seed = int(np.random.SeedSequence([args.seed, update]).generate_state(1)[0])
            generator = torch.Generator(args.device).manual_seed(seed)
            if present is None or update in marks:
                # Seeds from 1,000,000 on are held out.
                frames = worlds.open(seed % 900_000)
                nothing_ended = torch.zeros(args.num_envs, dtype=torch.bool, device=frames.device)
                present = Present(open_stack(frames, run.policy.config.frames), nothing_ended)
                episodes.totals[:] = 0.0
            lr = recipe.lr * (1 - update / num_updates)
            set_lr([run.optimizer], lr)
            rollout, last_values = collect(worlds, run.policy, present, recipe.num_steps, generator)
            losses = improve(run.policy, run.optimizer, rollout, last_values, recipe, generator)
            episodes.add(rollout)
            run.num_done, run.recent = update + 1, list(episodes.recent)
            num_steps = run.num_done * per_update
            for name, value in {**losses, **episodes.means(), "lr": lr}.items():
                board.add_scalar(name, value, num_steps)
            progress.update(per_update)
            if run.num_done in marks:
                facts = {**run.identity, "trained_in": trained_in(args), "steps": num_steps}
                save_policy(run.policy, args.out / POLICY_FOLDER / f"step_{num_steps:09d}.safetensors", facts)
                save_policy(run.policy, args.out / POLICY_FILE, facts)
                film(args, run.policy, arenas, num_steps)
                run.save()
                means = ", ".join(f"{name} {value:.2f}" for name, value in episodes.means().items())
                print(f"step {num_steps}: {means or 'no episode has ended yet'}", flush=True)
    board.close()
    worlds.envs.close()


def trained_in(args: argparse.Namespace) -> str:
    """ "dream" or "simulator"."""
    return "dream" if args.env == DREAM else "simulator"


def film(args: argparse.Namespace, policy: PixelPolicy, arenas: Arenas, num_steps: int) -> None:
    """Two held-out episodes, walked where the policy is trained, as an MP4."""
    play = arenas.play_dream if args.env == DREAM else arenas.play_simulator
    save_films(args.out / "videos" / f"step_{num_steps:09d}.mp4", {trained_in(args): play(policy, 2, num_filmed=2)})


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="weights of the dream; 'debug': random ones and a tiny run")
    parser.add_argument("--env", choices=(DREAM, SIMULATOR), default=DREAM, help="where to learn")
    parser.add_argument("--out", type=Path, default=Path("runs/ppo"))
    parser.add_argument("--steps", type=count, default=300_000, help="env steps, all worlds together")
    parser.add_argument("--num-envs", type=count, default=16)
    parser.add_argument("--limit", type=count, default=100, help="steps of an episode while learning")
    parser.add_argument("--checkpoints", type=count, default=12, help="how often to write one, over the whole run")
    parser.add_argument("--episodes", type=count, default=100, help="held-out episodes of the final table")
    parser.add_argument("--score-limit", type=count, default=300, help="steps of an episode that is scored or filmed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    is_debug = parser.parse_args(arguments).preset == "debug"
    if is_debug:
        parser.set_defaults(**DEBUG_OPTIONS)
    args = parser.parse_args(arguments)
    recipe = DEBUG_RECIPE if is_debug else Recipe()

    with Arenas(args.preset, num_episodes=args.episodes, limit=args.score_limit, device=args.device) as arenas:
        config = PolicyConfig(num_actions=len(DISCRETE_ACTIONS), size=arenas.size, **(DEBUG_POLICY if is_debug else {}))
        run = Run(args, recipe, config)
        run.resume()
        train(args, recipe, run, arenas)
        policies = {trained_in(args): run.policy, "random": None}
        plays = {
            name: {"simulator": arenas.play_simulator(policy), "dream": arenas.play_dream(policy)}
            for name, policy in policies.items()
        }
    print(tabulate_plays(plays).to_text())


if __name__ == "__main__":
    main()
