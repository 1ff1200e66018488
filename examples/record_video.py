"""Record one episode of any registered environment as a film: the dream, or the simulator it was learned from.

python examples/record_video.py --env WorldScape-Nav-v0 --out dream.mp4
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.films import check_film, write_film


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="weights of the dream; 'debug' for random ones (default: the shipped)")
    parser.add_argument("--env", default="WorldScape-Nav-v0")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("dream.mp4"))
    args = parser.parse_args()
    check_film(args.out)

    options = {} if args.preset is None else {"weights": args.preset}
    env = gym.make(args.env, render_mode="rgb_array", **options)
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    pictures = [env.render()]
    for step in range(args.steps):
        if step % 4 == 0:  # an action is held for four steps, which is easier to watch
            action = env.action_space.sample()
        _, _, terminated, truncated, _ = env.step(action)
        pictures.append(env.render())
        if terminated or truncated:
            break
    write_film(args.out, np.asarray(pictures), env.metadata["render_fps"])
    env.close()
    print(f"{len(pictures)} frames in {args.out.resolve()}")


if __name__ == "__main__":
    main()
