"""Scripted policies for recording: exploration that comes back to places it left, and walks to the goal.

A policy is a factory `policy(env, rng)` called after each reset; it returns `act(observation, info) -> action`.
`explore` chains manoeuvres (turn away and back, out and return, loops, spins, wandering) and turns away from walls by
the depth in `info`; an env whose actions are not the nine discrete ones gets sticky random actions.
"""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from worldscape.data.rollout import Act

NOOP, FORWARD, LEFT, BACK, RIGHT, TURN_LEFT, TURN_RIGHT, LOOK_UP, LOOK_DOWN = range(9)
MIRROR = {
    FORWARD: BACK,
    BACK: FORWARD,
    LEFT: RIGHT,
    RIGHT: LEFT,
    TURN_LEFT: TURN_RIGHT,
    TURN_RIGHT: TURN_LEFT,
    LOOK_UP: LOOK_DOWN,
    LOOK_DOWN: LOOK_UP,
    NOOP: NOOP,
}
WALL_DISTANCE = 1.0  # metres of free depth below which a walker turns away
TURNS_AROUND = 12  # turns of 15 degrees that make half a circle
NEAR = 2.5  # metres from the goal within which it is kept aside
LOOK_TOLERANCE = math.radians(8)  # more than half of what a key looks up or down
LARGEST_ASIDE = math.radians(60)
LOWEST, HIGHEST = math.radians(-35), math.radians(15)  # where a walker looks that is to see the goal from everywhere

Manoeuvre = Iterator[int]


def explore(env: gym.Env, rng: np.random.Generator) -> Act:
    """Manoeuvres with revisits, chosen at random one after another."""
    if not (isinstance(env.action_space, gym.spaces.Discrete) and env.action_space.n == len(MIRROR)):
        return _sticky_random(env, rng)
    manoeuvres = (_turn_and_back, _out_and_return, _loop, _spin, _glance, _wander, _wander, _strafe, _strafe)

    def chain() -> Iterator[int]:
        while True:
            yield from manoeuvres[rng.integers(len(manoeuvres))](rng)

    return _avoid_walls(chain(), rng)


def goal(env: gym.Env, rng: np.random.Generator) -> Act:
    """Walk to the red box of a rooms world, with detours round obstacles and some noise; explores once there."""
    return _walk_to_goal(env, rng, 0.0)


def sidle(env: gym.Env, rng: np.random.Generator) -> Act:
    """As `goal`, but near the box it is kept at an angle drawn for the episode, up to 60 degrees to either side, and
    reached by walking sideways too, with the eyes up to 35 degrees down or 15 up: what learns how an arrival looks has
    to see it from everywhere."""
    return _walk_to_goal(env, rng, rng.uniform(-LARGEST_ASIDE, LARGEST_ASIDE), rng.uniform(LOWEST, HIGHEST))


def _walk_to_goal(env: gym.Env, rng: np.random.Generator, aside: float, pitch: float | None = None) -> Act:
    """aside: as _towards; pitch: where to look, radians upwards; None: wherever the eyes are."""
    world = getattr(env.unwrapped, "world", None)
    if world is None:
        raise ValueError(f"The goal policy needs an env that knows its goal, like WorldScape-Rooms; got {env!r}.")
    wander = explore(env, rng)
    detour: list[int] = []
    arrived = False

    def act(observation: Any, info: dict[str, Any]) -> int:
        nonlocal arrived
        arrived = arrived or (info["success"] and rng.random() < 0.5)
        if arrived or rng.random() < 0.08:
            return wander(observation, info)
        if info["collision"] and not detour:
            side = int(rng.choice([LEFT, RIGHT]))
            detour.extend([side] * int(rng.integers(2, 6)) + [FORWARD] * int(rng.integers(1, 4)))
        if pitch is not None and abs(pitch - info["camera"][4]) > LOOK_TOLERANCE:
            return LOOK_UP if pitch > info["camera"][4] else LOOK_DOWN
        return detour.pop(0) if detour else _towards(world.goal_position(), info["camera"], aside)

    return act


def mixed(env: gym.Env, rng: np.random.Generator) -> Act:
    """Exploration in seven episodes of ten, else a walk to the goal."""
    return explore(env, rng) if rng.random() < 0.7 else goal(env, rng)


POLICIES = {"explore": explore, "goal": goal, "mixed": mixed, "sidle": sidle}


def _towards(target: np.ndarray, camera: np.ndarray, aside: float) -> int:
    """The key that leads to `target` [3] from a camera [6]; within NEAR metres it is to be seen `aside` radians to the
    right of the middle, and the walk goes forward, left or right, whichever is nearest."""
    x, z = target[0] - camera[0], target[2] - camera[2]
    bearing = (math.atan2(x, z) - float(camera[3]) + math.pi) % (2 * math.pi) - math.pi
    wanted = aside if math.hypot(x, z) < NEAR else 0.0
    if abs(bearing - wanted) > math.radians(10):
        return TURN_RIGHT if bearing > wanted else TURN_LEFT
    if abs(bearing) <= math.radians(45):
        return FORWARD
    return RIGHT if bearing > 0 else LEFT


def _avoid_walls(plan: Manoeuvre, rng: np.random.Generator) -> Act:
    """Follow the plan; when walking ahead meets a wall, turn towards the more open side for a while instead."""
    escape: list[int] = []

    def act(observation: Any, info: dict[str, Any]) -> int:
        if escape:
            return escape.pop(0)
        action = next(plan)
        if action == FORWARD and _wall_ahead(info) and rng.random() < 0.9:
            turn = _open_side(info, rng)
            escape.extend([turn] * int(rng.integers(1, 6)))
            return turn
        if action in (LEFT, RIGHT, BACK) and info.get("collision", False) and rng.random() < 0.7:
            return int(rng.choice([TURN_LEFT, TURN_RIGHT]))
        return action

    return act


def _wall_ahead(info: dict[str, Any]) -> bool:
    depth = info.get("depth")
    if depth is None:
        return bool(info.get("collision", False))
    h, w = depth.shape
    return float(np.median(depth[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3])) < WALL_DISTANCE


def _open_side(info: dict[str, Any], rng: np.random.Generator) -> int:
    depth = info.get("depth")
    if depth is None:
        return int(rng.choice([TURN_LEFT, TURN_RIGHT]))
    half = depth.shape[1] // 2
    return TURN_LEFT if depth[:, :half].mean() > depth[:, half:].mean() else TURN_RIGHT


def _pause(rng) -> list[int]:
    return [NOOP] * int(rng.integers(0, 2))


def _there_and_back(path: list[int], rng) -> list[int]:
    return [*path, *_pause(rng), *(MIRROR[action] for action in reversed(path))]


def _turn_and_back(rng) -> Manoeuvre:
    turn = int(rng.choice([TURN_LEFT, TURN_RIGHT]))
    yield from _there_and_back([turn] * int(rng.integers(3, 13)), rng)


def _out_and_return(rng) -> Manoeuvre:
    out = [FORWARD] * int(rng.integers(3, 11))
    if rng.random() < 0.5:
        yield from _there_and_back(out, rng)
        return
    around = [int(rng.choice([TURN_LEFT, TURN_RIGHT]))] * TURNS_AROUND
    yield from [*out, *around, *out, *around]


def _loop(rng) -> Manoeuvre:
    turn = int(rng.choice([TURN_LEFT, TURN_RIGHT]))
    for _ in range(4):
        yield from [FORWARD] * int(rng.integers(2, 7))
        yield from [turn] * (TURNS_AROUND // 2)


def _spin(rng) -> Manoeuvre:
    yield from [int(rng.choice([TURN_LEFT, TURN_RIGHT]))] * (2 * TURNS_AROUND)


def _glance(rng) -> Manoeuvre:
    look = int(rng.choice([LOOK_UP, LOOK_DOWN]))
    amount = [look] * int(rng.integers(1, 3))
    middle = [int(rng.choice([TURN_LEFT, TURN_RIGHT, FORWARD]))] * int(rng.integers(0, 5))
    yield from [*amount, *middle, *(MIRROR[action] for action in amount)]


def _strafe(rng) -> Manoeuvre:
    yield from _there_and_back([int(rng.choice([LEFT, RIGHT, BACK]))] * int(rng.integers(3, 10)), rng)


def _wander(rng) -> Manoeuvre:
    for _ in range(int(rng.integers(2, 5))):
        yield from [int(rng.choice([TURN_LEFT, TURN_RIGHT]))] * int(rng.integers(0, 5))
        yield from [FORWARD] * int(rng.integers(2, 9))


def _sticky_random(env: gym.Env, rng: np.random.Generator) -> Act:
    """Random actions of the env's own space, each kept for one to six steps."""
    space = env.action_space
    space.seed(int(rng.integers(2**31)))
    held: list[Any] = []

    def act(observation: Any, info: dict[str, Any]) -> Any:
        if not held:
            held.extend([space.sample()] * int(rng.integers(1, 7)))
        return held.pop()

    return act
