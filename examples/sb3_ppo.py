"""Stable-Baselines3's PPO on a batch of dreams: one model call steps them all.

pip install "worldscape[sb3]", then python examples/sb3_ppo.py --steps 200000 --out ppo.zip
The adapter resets in the step that ends an episode, as SB3 wants it: SAME_STEP, with `terminal_observation`.
"""

import argparse
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor

from ws_gym.sb3 import make_vec_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200_000, help="env steps, all worlds together")
    parser.add_argument("--rollout", type=int, default=128, help="steps of each world between updates")
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--episodes", type=int, default=20, help="episodes on held-out starts that score the policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("ppo.zip"))
    args = parser.parse_args()

    options = {"weights": args.preset, "max_episode_steps": args.limit}
    envs, held_out = (
        VecFrameStack(VecMonitor(make_vec_env(n_envs=args.num_envs, seed=args.seed, starts=starts, **options)), 4)
        for starts in ("train", "heldout")
    )
    sizes = {"n_steps": args.rollout, "batch_size": min(256, args.rollout * args.num_envs), "n_epochs": 3}
    model = PPO("CnnPolicy", envs, ent_coef=0.01, seed=args.seed, **sizes)
    for name, num_steps in (("before", 0), ("after", args.steps)):
        if num_steps:
            model.learn(num_steps)
        mean, deviation = evaluate_policy(model, held_out, n_eval_episodes=args.episodes, deterministic=False)
        print(f"{name} {num_steps} steps: return {mean:.2f} +- {deviation:.2f}")
    model.save(args.out)
    held_out.close()
    envs.close()


if __name__ == "__main__":
    main()
