"""Each task's dream and simulator, where their infos say the agent is, and what a policy had better learn to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.hand_model import FINGERTIPS
from worldscape.conditioning.hands import ACTION_WIDTHS, HAND_STATE_WIDTH, HANDS
from worldscape.hand_tasks import HAND_TASKS, fingertip_and_palm

FACT_UNIT = 0.2
"""Metres that are 1 in what policies of hands are taught to see: about as far as a hand has to go."""


def find_walker(infos: Mapping[str, Any], row: int) -> np.ndarray:
    """Where the walker of a row stands on the floor, [2] metres."""
    return np.array(infos["camera"][row])[[0, 2]]


def find_fingertip(infos: Mapping[str, Any], row: int) -> np.ndarray:
    """Where the right index finger of a row ends, [3] metres."""
    return np.array(infos["hand_keypoints"][row])[HANDS["right"][0], FINGERTIPS[1]]


def tell_reach(infos: Mapping[str, Any]) -> Tensor:
    """From the infos of B worlds: the way from the index fingertip to the target, [B, 3], in camera axes, in
    FACT_UNIT."""
    fingertip, _ = fingertip_and_palm(_told(infos, "hand_keypoints"), _told(infos, "hand_present") > 0)
    return _in_view(infos, _told(infos, "target") - fingertip)


def tell_object(infos: Mapping[str, Any]) -> Tensor:
    """As tell_reach, the ways from palm to object and from object to target, [B, 6]."""
    _, palm = fingertip_and_palm(_told(infos, "hand_keypoints"), _told(infos, "hand_present") > 0)
    is_dream = "object_position" in infos
    thing = _told(infos, "object_position") if is_dream else _told(infos, "object_pose")[:, :3, 3]
    return torch.cat([_in_view(infos, way) for way in (thing - palm, _told(infos, "target") - thing)], 1)


def tell_hand(infos: Mapping[str, Any]) -> Tensor:
    """The right hand's row of `hand_state`, [B, 16], its place in FACT_UNIT: what `obs="pixels+hands"` tells."""
    state = _told(infos, "hand_state")[:, HANDS["right"][0]]
    return torch.cat([state[:, :3] / FACT_UNIT, state[:, 3:]], 1)


def _told(infos: Mapping[str, Any], name: str) -> Tensor:
    return torch.as_tensor(infos[name]).float()


def _in_view(infos: Mapping[str, Any], ways: Tensor) -> Tensor:
    """Ways [B, 3] in world axes, metres -> in camera axes, in FACT_UNIT."""
    return (ways[:, None] @ _told(infos, "pose")[:, :3, :3])[:, 0] / FACT_UNIT


class Facts(NamedTuple):
    """Numbers about a world, `num` of them; tell: infos of B worlds -> [B, num]."""

    num: int
    tell: Callable[[Mapping[str, Any]], Tensor]


def tell_nothing(infos: Mapping[str, Any]) -> Tensor:
    """[B, 0]."""
    return torch.zeros(len(infos["camera"]), 0)


NOTHING = Facts(0, tell_nothing)


class Counterparts(NamedTuple):
    """The dream and the simulator of one task.

    dream, simulator: ids of the environments; options: of the simulator beside its picture size; limit: steps of an
    episode; find: where the agent is, whose way SPL measures.
    has_dense: both can reward the way to the goal as well (an option `dense`, which scores leave out);
    hand_actions: what both take for an option of that name, the first one by default; none where there are no hands.
    held_reward: what a success would go on to earn each step if it did not end the episode; 0 where the task rewards it
    once. A dense reward needs it: who hovers beside the goal would otherwise earn more than who reaches it.
    facts: what infos say that a policy had better learn to see; NOTHING where reward alone teaches it. told: what it is
    told beside the pictures when it acts, too, as a robot knows where its hand is; NOTHING where it has pictures alone.
    """

    dream: str
    simulator: str
    limit: int
    find: Callable[[Mapping[str, Any], int], np.ndarray]
    held_reward: float = 0.0
    has_dense: bool = False
    hand_actions: tuple[str, ...] = ()

    @property
    def usual_hand_actions(self) -> str | None:
        """The default."""
        return self.hand_actions[0] if self.hand_actions else None

    options: Mapping[str, Any] = {}
    facts: Facts = NOTHING
    told: Facts = NOTHING


NAV = Counterparts("WorldScape-Nav-v0", "WorldScape-Rooms-v0", 300, find_walker, has_dense=True)
HAND = Counterparts(
    "WorldScape-Hand-v0",
    "WorldScape-Tabletop-v0",
    150,
    find_fingertip,
    held_reward=1.0,
    hand_actions=tuple(ACTION_WIDTHS),
    told=Facts(HAND_STATE_WIDTH, tell_hand),
)
WAYS = {"reach": Facts(3, tell_reach), "push": Facts(6, tell_object), "pick_place": Facts(6, tell_object)}
COUNTERPARTS = {
    "goal_object": NAV,
    **{task: HAND._replace(options={"task": task}, facts=WAYS[task]) for task in HAND_TASKS},
}
"""Of each task that policies are trained for."""


def choose_hand_actions(pair: Counterparts, hand_actions: str | None) -> dict[str, Any]:
    """The option for both environments of a task; None: its default. Raises ValueError where it takes no such one."""
    if hand_actions is None:
        return {}
    if hand_actions not in pair.hand_actions:
        choices = ", ".join(pair.hand_actions) or "none: it has no hands"
        raise ValueError(f"hand_actions is {hand_actions!r}; {pair.dream} and {pair.simulator} take {choices}")
    return {"hand_actions": hand_actions}
