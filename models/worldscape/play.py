"""`worldscape play`: walk through a world with the keyboard, in a window or, without a display, into a film.

W A S D walk, J L turn, I K look up and down (in the window the arrow keys too); R opens another world, Esc ends.
With --hands, W A S D move a hand over a table, R F lift and lower it, G H close and open it; N opens another world.
A world goes on for as long as you like; Ctrl-C in the terminal does what Esc does. It is made through Gymnasium, like
any other env: starts, pictures and random weights work as they do there.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np

from worldscape.atomic import whole_file
from worldscape.data.rollout import make_env
from worldscape.films import check_film, open_film
from worldscape.snapshot import Snapshot
from worldscape.splats.ply import save_ply
from worldscape.window import KeyWindow

WORLD = "ws_gym:WorldScape-Nav-v0"
HAND_WORLD = "ws_gym:WorldScape-Hand-v0"
AXES = (("W", "S"), ("D", "A"), ("L", "J"), ("I", "K"))
"""Opposed keys of each axis of the world's combined actions: walk, strafe, turn, look."""
MAX_KEYS = 100_000
VIDEO_PIXELS = 384
WINDOW_PIXELS = 640
MAP_PIXELS = 768


class Keyboard(NamedTuple):
    """letters: keys that act. next_world: the one that opens another world. help: what to write, for people."""

    letters: str
    next_world: str
    help: str


WALKING = Keyboard("WASDJLIK", "R", "W A S D to walk, J L to turn, I K to look up and down")
HANDLING = Keyboard("WASDRFGH", "N", "W A S D to move the hand, R F to lift and lower it, G H to close and open it")


def parse_keys(text: str, keyboard: Keyboard = WALKING) -> list[str]:
    """Keys with optional counts ("W3L12.") -> one key per step, "." for none.

    Raises ValueError for unknown ones, and for more than MAX_KEYS.
    """
    compact = re.sub(r"\s", "", text).upper()
    if not re.fullmatch(rf"([{keyboard.letters}.]\d*)+", compact):
        raise ValueError(
            f"--keys {text!r} is not understood; write {keyboard.help}, a dot to "
            "wait, each with an optional count, such as W4L6W"
        )
    pairs = [(key, int(count or 1)) for key, count in re.findall(r"(\D)(\d*)", compact)]
    if (total := sum(count for _, count in pairs)) > MAX_KEYS:
        raise ValueError(f"--keys are {total} steps; walk at most {MAX_KEYS}")
    return [key for key, count in pairs for _ in range(count)]


def keys_to_action(held: Iterable[str]) -> np.ndarray:
    """Keys held together -> int64 [4], per axis 0 none, 1 the first key, 2 the opposite; opposite keys cancel out."""
    held = set(held)
    signs = [(first in held) - (second in held) for first, second in AXES]
    return np.array(signs, np.int64) % 3


def hand_action(held: Iterable[str], actions: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """Keys held together -> float32 [A], the sum of what each does alone (`get_keys_to_action`); at most 1 each."""
    moved = [actions[(ord(key.lower()),)] for key in held if key != "."]
    return np.clip(np.sum([np.zeros_like(next(iter(actions.values()))), *moved], 0), -1, 1)


class Walk:
    """One world after another, stepped by keys; only `open` leaves a world.

    Args:
        env: whose episodes do not end.
        seed: of the first world; the next ones follow from it.
        to_action: keys held together -> an action of the env.
        film: called with each new frame, uint8 [h, w, 3].
        snapshot: the world to go on with instead of the seed's.
        options: of every reset.

    Raises ValueError for a snapshot of other weights.
    """

    def __init__(
        self,
        env: gym.Env,
        seed: int,
        *,
        to_action: Callable[[Iterable[str]], np.ndarray] = keys_to_action,
        film: Callable[[np.ndarray], None] | None = None,
        snapshot: Snapshot | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._env, self._to_action, self._film, self._options = env, to_action, film, options
        self.num_frames = self.num_worlds = 0
        frame = env.reset(seed=seed, options=options)[0]
        world: Any = env.unwrapped
        self._begin(frame if snapshot is None else world.restore(snapshot)[0])

    def open(self) -> None:
        """Go to the next world."""
        self._begin(self._env.reset(options=self._options)[0])

    def step(self, held: Iterable[str]) -> None:
        """Step with these keys held."""
        self._show(self._env.step(self._to_action(held))[0])
        self.num_steps += 1

    def _begin(self, frame: np.ndarray) -> None:
        self.num_steps = 0
        self.num_worlds += 1
        self._show(frame)

    def _show(self, frame: np.ndarray) -> None:
        self.frame: np.ndarray = frame
        self.num_frames += 1
        if self._film is not None:
            self._film(frame)


def write_map(env: gym.Env, out: Path) -> None:
    """Write the map of what the env's world remembers as a picture. Raises OSError when it cannot be written."""
    world: Any = env.unwrapped
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(world.draw_map(MAP_PIXELS), cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {out}; is the disk full?")


def enlarge(frame: np.ndarray, pixels: int) -> np.ndarray:
    """Frame uint8 [h, w, 3] -> uint8 [pixels, pixels, 3]."""
    return cv2.resize(frame, (pixels, pixels), interpolation=cv2.INTER_CUBIC)


def play_in_window(walk: Walk, window: KeyWindow) -> None:
    """Step the world while keys are held, until the window is closed."""
    while window.is_open:
        window.show(enlarge(walk.frame, WINDOW_PIXELS), f"WorldScape: world {walk.num_worlds}, step {walk.num_steps}")
        if window.wants_reset:
            num_steps = walk.num_steps
            walk.open()
            print(f"world {walk.num_worlds} begins; the one before was left after {num_steps} steps", flush=True)
        elif window.held:
            walk.step(window.held)


def add_world_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which world is walked through; `make_world` reads them."""
    parser.add_argument("--weights", help="name or folder of the weights (default: the shipped ones)")
    parser.add_argument("--starts", help='"train", "heldout", "drawn", or a dataset, starts file, picture or video')
    parser.add_argument("--fov", type=float, help="horizontal field of view of a picture or video in --starts, degrees")
    parser.add_argument("--temperature", type=float, help="of the noise (default 1); above it worlds hold more things")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the world (default 0)")


def make_world(args: argparse.Namespace, *, hands: bool = False) -> gym.Env:
    """The world of these options, to walk in or with a hand, which goes on for ever; the seed is for its reset."""
    env_id, actions = (HAND_WORLD, "hands") if hands else (WORLD, "multi_discrete")
    names = ("weights", "starts", "temperature", "device")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return make_env(env_id, {"actions": actions, "task": never_ends, "max_episode_steps": -1, **options})


def reset_options(args: argparse.Namespace) -> dict[str, Any]:
    """What these options tell each reset of the world."""
    return {} if args.fov is None else {"fov": args.fov}


def never_ends(frame: Any, elapsed: Any) -> Any:
    """A task without rewards and ends: (frame, steps [B]) -> zeros [B]."""
    return 0.0 * elapsed


def add_parser(subparsers: Any) -> None:
    """Add the `play` command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_world_options(parser)
    parser.add_argument("--hands", action="store_true", help="move a hand over a table instead of walking")
    parser.add_argument("--fps", type=int, default=15, help="frames per second (default 15)")
    parser.add_argument("--keys", help='walk along these instead of opening a window, for instance "W4L6W4"')
    parser.add_argument("--out", type=Path, help="film to write of what is walked (.mp4, .gif)")
    parser.add_argument("--map", type=Path, help="picture (.png) to write in the end: the remembered place from above")
    parser.add_argument("--ply", type=Path, help="3D Gaussians (.ply) to write in the end: the remembered place")
    parser.add_argument("--save", type=Path, help="file to keep the world in at the end, for --load")
    parser.add_argument("--load", type=Path, help="go on with the world of this file, with the same weights")
    parser.set_defaults(func=_run)


def _check(args: argparse.Namespace) -> None:
    if args.keys is not None and args.out is None:
        raise ValueError("--keys and --out belong together: the keys to press and the film to write")
    if args.out is not None:
        check_film(args.out)
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; it must not be negative")
    if args.map is not None and not cv2.haveImageWriter(str(args.map)):
        raise ValueError(f"--map {args.map} is no name of a picture; end it in .png")
    if args.fps < 1:
        raise ValueError(f"--fps is {args.fps}; it must be at least 1 frame per second")


def _run(args: argparse.Namespace) -> int:
    _check(args)
    keyboard = HANDLING if args.hands else WALKING
    keys = None if args.keys is None else parse_keys(args.keys, keyboard)
    snapshot = None if args.load is None else Snapshot.from_bytes(args.load.read_bytes())
    window = KeyWindow(args.fps, keyboard.letters, keyboard.next_world) if keys is None else None
    env = make_world(args, hands=args.hands)
    to_action = functools.partial(hand_action, actions=_key_actions(env)) if args.hands else keys_to_action
    with ExitStack() as stack:
        film = None
        if args.out is not None:
            add_frame = stack.enter_context(open_film(args.out, args.fps))
            film = lambda frame: add_frame(enlarge(frame, VIDEO_PIXELS))  # noqa: E731
        walk = Walk(env, args.seed, to_action=to_action, film=film, snapshot=snapshot, options=reset_options(args))
        for key in keys or []:
            walk.step([key])
        if window is not None:
            with suppress(KeyboardInterrupt):  # in the terminal it means what Esc does in the window
                play_in_window(walk, window)
            window.close()
    if args.out is not None:
        print(f"{args.out}: {walk.num_frames} frames")
    _keep(env, args)
    env.close()
    return 0


def _keep(env: gym.Env, args: argparse.Namespace) -> None:
    """Write what is left of the walk: map, Gaussians, the world itself."""
    world: Any = env.unwrapped
    if args.map is not None:
        write_map(env, args.map)
        print(f"{args.map}: what the world remembers")
    if args.ply is not None:
        print(f"{args.ply}: {save_ply(world.reconstruct(), args.ply)} Gaussians")
    if args.save is not None:
        with whole_file(args.save) as partial:
            partial.write_bytes(world.snapshot().to_bytes())
        print(f"{args.save}: the world, to go on with --load")


def _key_actions(env: gym.Env) -> dict[tuple[int, ...], np.ndarray]:
    world: Any = env.unwrapped
    return world.get_keys_to_action()
