"""Step into your own photo: the picture becomes the first frame of a world, and the model dreams what lies around it.

python examples/walk_from_photo.py --image living_room.jpg --out walk.mp4
The shipped weights have seen rendered rooms only; a photo far from those is continued in their style.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.conditioning.controls import DISCRETE_ACTIONS
from worldscape.films import check_film, write_film

WALK = ["forward"] * 6 + ["turn left"] * 4 + ["turn right"] * 8 + ["turn left"] * 4 + ["back"] * 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="a picture file")
    parser.add_argument("--fov", type=float, help="of the picture, from its left to its right edge, degrees")
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("walk.mp4"))
    args = parser.parse_args()
    check_film(args.out)

    # The default task ends an episode where its learned head sees a red box; on a photo that would be chance.
    env = gym.make("WorldScape-Nav-v0", weights=args.preset, task="coverage", render_mode="rgb_array")
    env.reset(seed=args.seed, options={"image": args.image, "fov": args.fov})
    pictures = [env.render()]
    for name in WALK:
        env.step(DISCRETE_ACTIONS.index(name))
        pictures.append(env.render())
    write_film(args.out, np.asarray(pictures), env.metadata["render_fps"])
    env.close()
    print(f"{len(pictures)} frames in {args.out.resolve()}")


if __name__ == "__main__":
    main()
