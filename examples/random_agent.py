"""A random agent in one dreamed world: the shortest use of the environment.

python examples/random_agent.py --steps 300
"""

import argparse

import gymnasium as gym

import ws_gym  # noqa: F401  (registers the ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    env = gym.make("WorldScape-Nav-v0", weights=args.preset)
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    episodes, returns = 0, 0.0
    for _ in range(args.steps):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        returns += float(reward)
        if terminated or truncated:
            episodes += 1
            env.reset()
    env.close()
    print(f"{args.steps} steps, {episodes} finished episodes, sum of rewards {returns:.3f}")


if __name__ == "__main__":
    main()
