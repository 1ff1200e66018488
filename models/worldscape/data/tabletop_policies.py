"""Scripted hands for recording: reaching, pushing, picking and placing, well or badly, and playing about.

A policy is a factory `policy(env, rng)` called after each reset; it returns `act(observation, info) -> action`. Scripts
are generators of actions that look at the simulator's truth (`env.world`) as they go; when one has ended, the hand
plays about until the episode does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldscape.conditioning.hand_model import HandState, keypoints_in_hand
from worldscape.conditioning.hands import HandScale, action_between, rotation_from_vector
from worldscape.data.rollout import Act

Script = Iterator[np.ndarray]

GRASP_PITCH, GRASP_ROLL = 0.29, 0.345  # radians: fingers down, thumb side up
ROUND_YAW = -0.3  # radians: fingers to the left, so that the sleeve does not hide the grasp
GRASP_POINT = np.array([-0.009, 0.04, 0.115])  # what is grasped, in hand axes, metres
OPPOSED = 0.967
PUSH_PITCH = 1.15
UP = np.array([0.0, -1.0, 0.0])
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How well a script is played: tremor added to actions, error of aim in metres, a hand that opens too soon, and how
    often it tries."""

    tremor: float = 0.0
    aim: float = 0.0
    drops: bool = False
    attempts: int = ATTEMPTS


def expert(env: gym.Env, rng: np.random.Generator) -> Act:
    """The script of the env's current task, played well."""
    return _play(env, rng, Style())


def perturbed(env: gym.Env, rng: np.random.Generator) -> Act:
    """The script of the env's current task with tremor and an aim about a centimetre off."""
    return _play(env, rng, Style(tremor=float(rng.uniform(0.05, 0.35)), aim=0.008))


def failing(env: gym.Env, rng: np.random.Generator) -> Act:
    """The script of the env's current task, tried once, with the aim several centimetres off or a hand that lets go."""
    drops = bool(rng.random() < 0.5)
    return _play(env, rng, Style(tremor=0.1, aim=0.005 if drops else 0.045, drops=drops, attempts=1))


def explore(env: gym.Env, rng: np.random.Generator) -> Act:
    """Playing about: the hand goes here and there, opens and closes, and often near the object."""
    return _act(_roam(_world(env), rng), rng, 0.05)


def mixed(env: gym.Env, rng: np.random.Generator) -> Act:
    """Of ten episodes five played well, two perturbed, one failing, two playing about."""
    policies = (expert, perturbed, failing, explore)
    return policies[int(rng.choice(4, p=[0.5, 0.2, 0.1, 0.2]))](env, rng)


POLICIES = {
    "expert": expert,
    "perturbed": perturbed,
    "failing": failing,
    "explore": explore,
    "mixed": mixed,
}


def _world(env: gym.Env) -> Any:
    world = getattr(env.unwrapped, "world", None)
    if not hasattr(world, "command"):
        raise ValueError(f"Scripted hands need WorldScape-Tabletop, which knows its hand and objects; got {env!r}.")
    return world


def _play(env: gym.Env, rng: np.random.Generator, style: Style) -> Act:
    world = _world(env)
    scripts = {"reach": _reach, "push": _push, "pick_place": _pick_place}
    task: str = env.get_wrapper_attr("current_task")

    def script() -> Script:
        yield from scripts[task](world, rng, style)
        yield from _roam(world, rng)

    return _act(script(), rng, style.tremor)


def _act(script: Script, rng: np.random.Generator, tremor: float) -> Act:
    sway = np.zeros(13)

    def act(observation: Any, info: dict[str, Any]) -> np.ndarray:
        nonlocal sway
        sway = 0.7 * sway + tremor * rng.normal(size=13)
        return np.clip(next(script) + sway, -1.0, 1.0).astype(np.float32)

    return act


def _turned(pitch: float, roll: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    """A hand turned fingers down by pitch, thumb side up by roll, fingers to the right by yaw (radians)."""
    turns = (rotation_from_vector(torch.tensor(turn)) for turn in ([0, yaw, 0], [-pitch, 0, 0], [0, 0, roll]))
    yawed, pitched, rolled = (turn.float() for turn in turns)
    return yawed @ rolled @ pitched


def _fingers(curl: float, opposition: float = 0.0, spread: float = 0.0) -> torch.Tensor:
    return torch.tensor([curl] * 5 + [opposition, spread])


def _state(position: np.ndarray, rotation: torch.Tensor, fingers: torch.Tensor) -> HandState:
    return HandState(torch.from_numpy(np.asarray(position, np.float32)), rotation, fingers)


def _go(world: Any, goal: HandState, limit: int, speed: float = 1.0) -> Script:
    """Towards a goal until it is commanded, at most `limit` steps."""
    scale: HandScale = world.scale
    for _ in range(limit):
        action = action_between(world.command, goal, scale).numpy()
        if np.abs(action).max() < 0.03:
            return
        yield action * speed


def _reach(world: Any, rng: np.random.Generator, style: Style) -> Script:
    """Point at the target and bring the index fingertip there."""
    fingers = torch.tensor([0.4, 0.0, *[float(rng.uniform(0.0, 0.9))] * 3, float(rng.uniform(0.0, 0.8)), 0.0])
    rotation = _turned(float(rng.uniform(0.1, 0.5)), float(rng.uniform(-0.2, 0.4)), float(rng.uniform(-0.4, 0.1)))
    error = style.aim * rng.normal(size=3)
    tip = keypoints_in_hand(fingers)[8]
    target = np.array(world.plan.target) + error
    speed = float(rng.uniform(0.4, 1.0))
    yield from _go(world, _state(target - (rotation @ tip).numpy(), rotation, fingers), 30, speed)
    for _ in range(10):
        miss = target - world.keypoints()[8]
        yield from _go(world, _state(world.command.position.numpy() + miss, rotation, fingers), 1)


def _pick_place(world: Any, rng: np.random.Generator, style: Style) -> Script:
    """Grasp from above, lift, carry, put down, let go; again when it slipped."""
    pitch, roll = np.array([GRASP_PITCH, GRASP_ROLL]) + 0.03 * rng.normal(size=2)
    opened, closed = _fingers(0.03, OPPOSED), torch.tensor([0.89, 1.0, 1.0, 1.0, 1.0, OPPOSED, 0.0])
    for _ in range(style.attempts):
        rotation = _turned(float(pitch), float(roll), _grasp_yaw(world))
        reach = (rotation @ torch.from_numpy(GRASP_POINT).float()).numpy()
        aim = world.object_pose()[:3, 3] - reach + style.aim * rng.normal(size=3)
        yield from _go(world, _state(aim + 0.08 * UP, rotation, opened), 22)
        yield from _go(world, _state(aim, rotation, opened), 7, speed=0.7)
        yield from _go(world, _state(aim, rotation, closed), 8, speed=0.75)
        yield from _go(world, _state(aim + 0.1 * UP, rotation, closed), 6, speed=0.8)
        if world.is_lifted():
            yield from _carry(world, rotation, closed, _fingers(0.1, 0.5) if style.drops else closed)
            yield from _put_down(world, rotation, closed, opened)
        else:
            yield from _go(world, _state(aim + 0.1 * UP, rotation, opened), 8)
        if _is_placed(world) or _is_lost(world):
            return


def _grasp_yaw(world: Any) -> float:
    """Across a box or a lying capsule, as far as the arm turns; anyhow for what is round."""
    if world.plan.objects[0].shape not in ("box", "capsule"):
        return ROUND_YAW
    pose = world.object_pose()
    turn = float(np.arctan2(-pose[2, 0], pose[0, 0]))
    symmetry = np.pi / 2 if world.plan.objects[0].shape == "box" else np.pi
    return float(np.clip((turn + symmetry / 2) % symmetry - symmetry / 2, -0.7, 0.5))


def _carry(world: Any, rotation: torch.Tensor, closed: torch.Tensor, held: torch.Tensor) -> Script:
    """Over the target, by what the object still lacks; `held` is what the fingers do on the second half of the way."""
    for step in range(14):
        missing = np.array(world.plan.target) - world.object_pose()[:3, 3]
        missing[1] = 0.0
        if np.hypot(*missing[[0, 2]]) < 0.012:
            return
        fingers = closed if step < 4 else held
        yield from _go(world, _state(world.command.position.numpy() + missing, rotation, fingers), 1, speed=0.8)


def _put_down(world: Any, rotation: torch.Tensor, closed: torch.Tensor, opened: torch.Tensor) -> Script:
    for _ in range(10):
        drop = -world.object_pose()[1, 3] - world.rest_height
        if drop < 0.006:
            break
        lower = world.command.position.numpy() - min(drop, 0.02) * UP
        yield from _go(world, _state(lower, rotation, closed), 1)
    place = world.command.position.numpy()
    yield from _go(world, _state(place, rotation, opened), 10, speed=0.5)
    yield from _go(world, _state(place + 0.1 * UP, rotation, opened), 8, speed=0.6)


def _is_placed(world: Any) -> bool:
    missing = np.array(world.plan.target) - world.object_pose()[:3, 3]
    return bool(np.hypot(*missing[[0, 2]]) < 0.035)


def _is_lost(world: Any) -> bool:
    """Whether the object fell off the table or lies out of reach."""
    x, y, z = world.object_pose()[:3, 3]
    return bool(y > 0.1 or abs(x) > 0.28 or not -0.2 < z < 0.36)


def _push(world: Any, rng: np.random.Generator, style: Style) -> Script:
    """Fingertips down behind the object, then drive it to the target; again when it got away."""
    fingers = _fingers(0.12, 0.6)
    tips = keypoints_in_hand(fingers)[[8, 12, 16]].mean(0)
    error = style.aim * rng.normal(size=3) * [1, 0, 1]
    for _ in range(style.attempts):
        heading = _heading(world)
        rotation = _turned(PUSH_PITCH, 0.0, _yaw_across(heading))
        reach = (rotation @ tips).numpy()
        gap = world.plan.objects[0].radius + 0.03
        behind = world.object_pose()[:3, 3] * [1, 0, 1] - gap * heading + error - reach + 0.016 * UP
        yield from _go(world, _state(behind + 0.1 * UP, rotation, fingers), 22)
        yield from _go(world, _state(behind, rotation, fingers), 7)
        yield from _drive(world, rotation, fingers, reach, error)
        yield from _go(world, _state(world.command.position.numpy() + 0.1 * UP, rotation, fingers), 6)
        if _is_placed(world) or _is_lost(world):
            return


def _drive(world: Any, rotation: torch.Tensor, fingers: torch.Tensor, reach: np.ndarray, error: np.ndarray) -> Script:
    """Keep the fingertips on the far side of the object from the target and go ahead, until it is there or lost."""
    for _ in range(25):
        centre, heading = world.object_pose()[:3, 3] * [1, 0, 1], _heading(world)
        tips = world.command.position.numpy() + reach
        left = np.hypot(*(np.array(world.plan.target) - centre)[[0, 2]])
        offset = (tips - centre) * [1, 0, 1]
        aside = offset - (offset @ heading) * heading
        if left < 0.015 or offset @ heading > 0 or np.linalg.norm(offset) > 0.12:
            return
        step = heading * min(0.022, left) - 0.7 * (aside - error)
        yield from _go(world, _state(world.command.position.numpy() + step, rotation, fingers), 1)


def _heading(world: Any) -> np.ndarray:
    """Unit direction on the table from the object to the target."""
    way = (np.array(world.plan.target) - world.object_pose()[:3, 3]) * [1, 0, 1]
    return way / max(float(np.linalg.norm(way)), 1e-6)


def _yaw_across(heading: np.ndarray) -> float:
    """Turn of the hand, at most 50 degrees, that sets the row of fingertips across the way."""
    across = np.arctan2(heading[0], abs(heading[2])) * np.sign(heading[2] if heading[2] else 1.0)
    return float(np.clip(across, -0.9, 0.9))


def _roam(world: Any, rng: np.random.Generator) -> Script:
    """For ever: to a random place, often near the object, with a random hand."""
    low, high = np.array([-0.16, -0.24, -0.16]), np.array([0.18, -0.09, 0.06])
    while True:
        place = rng.uniform(low, high)
        if rng.random() < 0.45:
            place = world.object_pose()[:3, 3] + rng.uniform([-0.06, -0.14, -0.16], [0.08, -0.06, -0.06])
        rotation = _turned(*(float(value) for value in rng.uniform([-0.2, -0.4, -0.5], [0.9, 0.6, 0.4])))
        curls = np.clip(rng.uniform(-0.2, 1.0) + 0.3 * rng.normal(size=5), 0.0, 1.0)
        fingers = torch.tensor([*curls, rng.random(), max(0.0, rng.uniform(-0.5, 1.0))]).float()
        speed = float(rng.uniform(0.35, 1.0))
        yield from _go(world, _state(place, rotation, fingers), int(rng.integers(5, 16)), speed)
        for _ in range(int(rng.integers(0, 4))):
            yield np.zeros(13)
