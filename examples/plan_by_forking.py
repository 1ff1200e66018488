"""Plan inside the dream: fork the world, try random walks in the copies, take the first steps of the best, repeat.

python examples/plan_by_forking.py --episodes 5
The table compares this random-shooting planner with its own random walks unplanned, from the same starts to the same
goals. A group of rollouts from one state, as GRPO wants it, is the same call: `envs.restore(env.unwrapped.snapshot())`.
"""

import argparse

import gymnasium as gym
import numpy as np

import ws_gym  # noqa: F401  (registers the ids)

FORWARD, TURN_LEFT, TURN_RIGHT = 1, 5, 6


def draw_walk(rng: np.random.Generator, length: int) -> np.ndarray:
    """Actions [length]: turn some way to one side, then walk on, since a walker that dithers gets nowhere."""
    num_turns = rng.integers(0, min(5, length))
    walk = np.full(length, FORWARD)
    walk[:num_turns] = rng.choice([TURN_LEFT, TURN_RIGHT])
    return walk


def plan(env, envs, rng: np.random.Generator, length: int) -> np.ndarray:
    """The walk with the highest return among one for each copy in `envs`; the world in `env` stays as it is."""
    walks = np.stack([draw_walk(rng, length) for _ in range(envs.num_envs)])
    envs.restore(env.unwrapped.snapshot())
    returns, running = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=bool)
    for actions in walks.T:
        _, rewards, terminations, _, _ = envs.step(actions)
        returns += rewards * running
        running &= ~terminations
    return walks[returns.argmax()]


def run_episode(env, envs, seed: int, args: argparse.Namespace) -> tuple[float, bool]:
    """Return and success of one episode; `envs` None: walks are not planned."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        walk = draw_walk(rng, args.length) if envs is None else plan(env, envs, rng, args.length)
        for action in walk[: args.execute]:
            _, reward, terminated, truncated, info = env.step(action)
            total += reward
            done = terminated or truncated
            if done:
                break
    return total, bool(info["success"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--walks", type=int, default=16, help="walks tried at each decision, side by side")
    parser.add_argument("--length", type=int, default=10, help="steps of a walk that is tried")
    parser.add_argument("--execute", type=int, default=5, help="of which so many are taken")
    parser.add_argument("--limit", type=int, default=40, help="steps of an episode")
    args = parser.parse_args()

    options = {"weights": args.preset, "task": "goal_pose", "task_options": {"max_bearing": 1.2}, "starts": "heldout"}
    env = gym.make("WorldScape-Nav-v0", max_episode_steps=args.limit, **options)
    # A copy whose episode ends goes on with another one, whose reward the planner does not count.
    envs = gym.make_vec("WorldScape-Nav-v0", num_envs=args.walks, **options)
    print(f"{'':10} {'mean return':>12} {'success':>8}   ({args.episodes} episodes of at most {args.limit} steps)")
    for name, copies in (("planned", envs), ("unplanned", None)):
        results = [run_episode(env, copies, seed, args) for seed in range(args.episodes)]
        returns, successes = np.array(results).T
        print(f"{name:10} {returns.mean():12.2f} {successes.mean():8.0%}")
    envs.close()
    env.close()


if __name__ == "__main__":
    main()
