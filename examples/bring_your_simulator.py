"""From your own simulator to a learned world: record it, train on it, `gym.make` it.

python examples/bring_your_simulator.py --preset nano --out runs/tiny_room
The simulator is `tiny_room.py` beside this file; `MODULE:ID` names yours. Run again after an interruption: it goes on.
"""

import argparse
import sys
from pathlib import Path

import gymnasium as gym

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.cli import main as worldscape


def run(*arguments: object) -> None:
    """One `worldscape` command, as in a shell."""
    print("worldscape", *arguments, flush=True)
    code = worldscape([str(argument) for argument in arguments])
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="model size: debug, nano or small")
    parser.add_argument("--episodes", type=int, help="episodes to record (default: 256, with --preset debug 4)")
    parser.add_argument("--steps", type=int, help="steps of each of the four trainings (default: of the preset, or 4)")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_room"))
    args = parser.parse_args()
    is_trial = args.preset == "debug"
    episodes = args.episodes or (4 if is_trial else 256)
    steps = args.steps or (4 if is_trial else None)

    data, codec, world, decoder, heads = (args.out / name for name in ("data", "codec", "world", "decoder", "heads"))
    run("record", "--env", "tiny_room:TinyRoom-v0", "--episodes", episodes, "--out", data)
    run("check", data)
    settings = ["--preset", args.preset, "--data", data, *([] if steps is None else ["--steps", steps])]
    run("train", "codec", *settings, "--out", codec)
    run("train", "world", *settings, "--out", world, "--init", codec)
    run("train", "decoder", *settings, "--out", decoder, "--init", world)
    run("train", "heads", *settings, "--out", heads, "--init", decoder)

    env = gym.make("WorldScape-Nav-v0", weights=str(heads / "weights"), starts=str(data))
    env.reset(seed=0)
    for _ in range(20):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    env.close()
    print(f"the learned world is gym.make('WorldScape-Nav-v0', weights='{heads / 'weights'}', starts='{data}')")


if __name__ == "__main__":
    main()
