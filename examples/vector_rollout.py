"""A batch of dreamed worlds behind one model, stepped together; each world resets on its own.

python examples/vector_rollout.py --num-envs 8 --steps 200
"""

import argparse
import time

import gymnasium as gym
import numpy as np

import ws_gym  # noqa: F401  (registers the ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    envs = gym.make_vec("WorldScape-Nav-v0", num_envs=args.num_envs, weights=args.preset)
    envs.action_space.seed(args.seed)
    envs.reset(seed=args.seed)
    finished = np.zeros(args.num_envs, dtype=int)
    begin = time.perf_counter()
    for _ in range(args.steps):
        _, _, terminations, truncations, _ = envs.step(envs.action_space.sample())
        finished += terminations | truncations
    seconds = time.perf_counter() - begin
    envs.close()
    print(f"{args.num_envs} worlds, {args.num_envs * args.steps / seconds:.1f} env steps/s, episodes ended {finished}")


if __name__ == "__main__":
    main()
