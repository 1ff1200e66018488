"""Walk through the dream with W A S D, and look around with the keys that `get_keys_to_action` names; Esc ends.

pip install "worldscape[play]", then python examples/play_keyboard.py
With --frames N it ends after N frames; SDL_VIDEODRIVER=dummy runs it without a display.
"""

import argparse
import os
from typing import Any

import gymnasium as gym

import ws_gym  # noqa: F401  (registers the ids)


class FrameLimit:
    """A callback of `gymnasium.utils.play` that closes the window after `num_frames` steps."""

    def __init__(self, num_frames: int):
        self.frames_left = num_frames

    def __call__(self, *step: Any) -> None:
        import pygame

        self.frames_left -= 1
        if self.frames_left == 0:
            pygame.event.post(pygame.event.Event(pygame.QUIT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="weights of the dream; 'debug' for random ones (default: the shipped)")
    parser.add_argument("--env", default="WorldScape-Nav-v0")
    parser.add_argument("--frames", type=int, default=0, help="end after this many frames (default: never)")
    parser.add_argument("--fps", type=int, default=15)
    args = parser.parse_args()
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gymnasium.utils.play import play

    options = {} if args.preset is None else {"weights": args.preset}
    env = gym.make(args.env, render_mode="rgb_array", **options)
    play(env, fps=args.fps, zoom=2.0, seed=0, callback=FrameLimit(args.frames))
    env.close()


if __name__ == "__main__":
    main()
