"""TorchRL's PPO on a batch of dreams: one model call steps them all.

pip install "worldscape[torchrl]", then python examples/torchrl_ppo.py --steps 200000
TorchRL takes a vector environment in DISABLED and resets the rows that ended itself; in SAME_STEP it cannot read
infos that are grouped. Leave `output` at "numpy": TorchRL 0.14 gives rewards that are tensors a wrong shape.
"""

# TorchRL is an extra that may be missing where types are checked.
# pyright: reportMissingImports=false

import argparse
from typing import Any

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymWrapper, RewardSum, ToTensorImage, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import ws_gym  # noqa: F401  (registers the ids)

MINIBATCH = 256


def make_worlds(args: argparse.Namespace) -> TransformedEnv:
    """`num_envs` dreams with pictures float32 [3, h, w] in [0, 1] under "observation"."""
    envs: Any = gym.make_vec(
        "WorldScape-Nav-v0",
        num_envs=args.num_envs,
        weights=args.preset,
        max_episode_steps=args.limit,
        autoreset_mode="DISABLED",
    )
    worlds = GymWrapper(envs, categorical_action_encoding=True)
    worlds.set_seed(args.seed)
    transforms = ToTensorImage(in_keys=["observation"]), RewardSum()
    return TransformedEnv(worlds, Compose(*transforms))  # pyright: ignore[reportCallIssue]


class Network(nn.Module):
    """Pictures [..., 3, h, w] -> [..., num_outputs]."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(16 * 32, 128), nn.ReLU(), nn.Linear(128, num_outputs))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(pictures.flatten(0, -4))).unflatten(0, pictures.shape[:-3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200_000, help="env steps, all worlds together")
    parser.add_argument("--rollout", type=int, default=128, help="steps of each world between updates")
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    worlds = make_worlds(args)
    keys: Any = worlds.action_spec.space
    logits = TensorDictModule(Network(keys.n), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(Network(1), in_keys=["observation"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    objective = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-4)

    per_update = args.num_envs * args.rollout
    sizes = {"frames_per_batch": per_update, "total_frames": args.steps}
    collector = Collector(worlds, actor, auto_register_policy_transforms=False, **sizes)
    for update, rollout in enumerate(collector, 1):
        with torch.no_grad():
            advantage(rollout)
        steps = rollout.reshape(-1)
        for _ in range(3):
            for rows in torch.randperm(len(steps)).split(MINIBATCH):
                losses = objective(steps[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                torch.nn.utils.clip_grad_norm_(objective.parameters(), 0.5)
                optimizer.step()
        returns = rollout["next", "episode_reward"][rollout["next", "done"]]
        mean = f"{returns.mean():.2f}" if len(returns) else "-"
        print(f"{update * per_update} steps: {len(returns)} episodes ended, mean return {mean}", flush=True)
    collector.shutdown()


if __name__ == "__main__":
    main()
