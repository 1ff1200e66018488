"""The tabletop's tasks: staged dense rewards in [0, 1] and success, from facts that the simulator knows.

Stages follow ManiSkill (reach, then grasp, then carry; to push, first be behind; each term is 1 - tanh(5 distance);
success gives the largest reward), the radius of success Meta-World and Fetch (a few centimetres).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from worldscape.hand_tasks import PLACE_RADIUS, PUSH_GAP, REACH_RADIUS

STILL = 0.05  # metres a second


class Facts(NamedTuple):
    """What a task looks at. Points [3] in world axes, metres (y points down, the table is y = 0)."""

    fingertip: np.ndarray
    palm: np.ndarray
    object: np.ndarray
    target: np.ndarray
    object_speed: float
    contact: bool
    grasped: bool
    lifted: bool
    was_lifted: bool


class Verdict(NamedTuple):
    """reward in [0, 1]; success; distance that is left to the goal in metres; the reward's terms by name."""

    reward: float
    success: bool
    distance: float
    terms: dict[str, float]


def judge_reach(facts: Facts) -> Verdict:
    """reach: the index fingertip within 2.5 cm of the marker. reward = 0.8 near + 0.2 success."""
    distance = float(np.linalg.norm(facts.fingertip - facts.target))
    success = distance < REACH_RADIUS
    near = _nearness(distance)
    return Verdict(0.8 * near + 0.2 * success, success, distance, {"near": near})


def judge_push(facts: Facts) -> Verdict:
    """push: the object's centre within 4 cm of the disc's, on the table and not held.

    reward = (behind + moved) / 3, or 1 on success. behind: palm to the place 7 cm behind the object's centre, seen from
    the disc. moved: object to disc.
    """
    distance = _on_table(facts.object, facts.target)
    success = distance < PLACE_RADIUS and not facts.lifted and not facts.grasped
    way = (facts.target - facts.object) * [1, 0, 1]
    place = facts.object - PUSH_GAP * way / max(float(np.linalg.norm(way)), 1e-6)
    behind, moved = _nearness(float(np.linalg.norm(facts.palm - place))), _nearness(distance)
    return Verdict(1.0 if success else (behind + moved) / 3, success, distance, {"behind": behind, "moved": moved})


def judge_pick_place(facts: Facts) -> Verdict:
    """pick_place: the object was lifted by 3 cm, lies within 4 cm of the disc's centre, released and still.

    reward = (near + grasped + lifted + carried + placed) / 6, or 1 on success. near: palm to object. grasped: thumb and
    fingers hold it. lifted: it is 3 cm up and held. carried: object to disc on the floor plan, while lifted or once
    placed. placed: it was lifted and is within 4 cm of the disc's centre on the table.
    """
    distance = _on_table(facts.object, facts.target)
    placed = facts.was_lifted and distance < PLACE_RADIUS and not facts.lifted
    success = placed and not facts.contact and facts.object_speed < STILL
    held_up = facts.lifted and facts.grasped
    terms = {
        "near": _nearness(float(np.linalg.norm(facts.palm - facts.object))),
        "grasped": float(facts.grasped or placed),
        "lifted": float(held_up or placed),
        "carried": _nearness(distance) if held_up or placed else 0.0,
        "placed": float(placed),
    }
    return Verdict(1.0 if success else sum(terms.values()) / 6, success, distance, terms)


TASKS: dict[str, Callable[[Facts], Verdict]] = {
    "reach": judge_reach,
    "push": judge_push,
    "pick_place": judge_pick_place,
}


def _nearness(distance: float) -> float:
    return float(1.0 - np.tanh(5.0 * distance))


def _on_table(point: np.ndarray, target: np.ndarray) -> float:
    return float(np.hypot(*(point - target)[[0, 2]]))
