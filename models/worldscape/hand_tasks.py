"""What a frame is worth to the tasks of a hand, from where hand, object and target are in it.

The rewards are the tabletop's (`data/tabletop_tasks.py`, whose docstrings define them), in batches and of what a dream
knows: places that a head reads off the picture and probabilities in place of facts. An object's speed is not known, so
what nothing touches counts as still. Tests hold both against each other.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.made_once import made_once
from worldscape.steady import sigmoid

HAND_TASKS = ("reach", "push", "pick_place")
"""What hands are rewarded for, in the order of the recorded `task_id`."""

REACH_RADIUS = 0.025  # metres between fingertip and target
PLACE_RADIUS = 0.04  # metres on the table between the object's and the target's centre
PUSH_GAP = 0.07  # metres from the object's centre to where a palm pushes it from
SOFTNESS = 0.005  # metres over which the probability of being within a radius falls
FINGERTIP = 8  # keypoint that reaches
PALM = slice(5, 14, 4)  # keypoints whose mean is the palm's place: three knuckles

REWARD_MODES = ("dense", "missing", "sparse")
"""What a step can be paid: the task's dense reward; what that lacks to the best, so that whoever ends the episode with
a success earns more than whoever hovers beside it; or success alone."""


def check_reward_mode(mode: Any) -> str:
    """Raises ValueError for what is none of REWARD_MODES."""
    if mode not in REWARD_MODES:
        raise ValueError(f"reward_mode is {mode!r}; choose one of {', '.join(REWARD_MODES)}.")
    return mode


def pay(mode: str, dense: Any, success: Any) -> Any:
    """What steps are paid in one of REWARD_MODES, from dense rewards in [0, 1] and successes, of one world or many."""
    if mode == "sparse":
        return 1.0 * success
    return dense - 1.0 if mode == "missing" else dense


class Touch(NamedTuple):
    """Probabilities [B] that hand and object touch, that thumb and fingers hold it, and that it is lifted."""

    contact: Tensor
    grasped: Tensor
    lifted: Tensor


class Facts(NamedTuple):
    """What the tasks look at: points [B, 3] in world axes, metres (y points down); touch; was_lifted [B], 0 or 1, held
    up at any time since the world was opened.
    """

    fingertip: Tensor
    palm: Tensor
    object: Tensor
    target: Tensor
    touch: Touch
    was_lifted: Tensor


class Worth(NamedTuple):
    """Of a frame, for each of HAND_TASKS, [B, 3] each: dense reward and probability of success, in [0, 1]."""

    reward: Tensor
    success: Tensor


def fingertip_and_palm(keypoints: Tensor, present: Tensor, rows: tuple[int, ...] = (0, 1)) -> tuple[Tensor, Tensor]:
    """Keypoints [B, 2, 21, 3], present bool [B, 2] -> fingertip and palm [B, 3] of the right hand, or of the left one
    where there is no other. rows: the hands that can be present at all."""
    points = keypoints[:, 1]
    if rows != (1,):
        points = torch.where(present[:, 1, None, None] | ~present[:, :1, None], points, keypoints[:, 0])
    return points[:, FINGERTIP], points[:, PALM].mean(1)


def judge(facts: Facts) -> Worth:
    """What a frame is worth to each task."""
    touch, known = facts.touch, _known(facts.target.device, facts.target.dtype)
    is_lifted, is_grasped = (touch.lifted > 0.5).float(), (touch.grasped > 0.5).float()
    is_down = 1.0 - is_lifted
    way = (facts.target - facts.object) * known.counts[2]
    behind = facts.object - PUSH_GAP * way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    ways = torch.stack([facts.palm, facts.fingertip, facts.object, facts.palm])
    ways = (ways - torch.stack([facts.object, facts.target, facts.target, behind])) * known.counts
    # From palm to object, from fingertip to target, on the table from object to it, from palm to behind the object.
    distances = ways.norm(dim=-1)
    near, tip_near, disc_near, behind_near = (1.0 - torch.tanh(5.0 * distances)).unbind(0)
    reached, on_disc = sigmoid((known.radii - distances[1:3]) / SOFTNESS).unbind(0)
    is_there = on_disc * is_down
    pushed = is_there * (1.0 - is_grasped)
    is_placed = facts.was_lifted * is_down * (distances[2] < PLACE_RADIUS).float()
    placed = facts.was_lifted * is_there * (1.0 - touch.contact)
    either = torch.maximum(is_lifted * is_grasped, is_placed)
    grasped = torch.maximum(is_grasped, is_placed)
    success = torch.stack([reached, pushed, placed], -1)
    is_done = success > 0.5
    rewards = (
        0.8 * tip_near + 0.2 * is_done[:, 0],
        torch.where(is_done[:, 1], 1.0, (behind_near + disc_near) / 3),
        torch.where(is_done[:, 2], 1.0, (near + grasped + either + either * disc_near + is_placed) / 6),
    )
    return Worth(torch.stack(rewards, -1), success)


def held_up(touch: Touch) -> Tensor:
    """Whether the object is lifted and held, bool [B]."""
    return (touch.lifted > 0.5) & (touch.grasped > 0.5)


class _Known(NamedTuple):
    """counts [4, 1, 3]: which axes of four ways count (y points down, and the table is flat); radii [2, 1], metres,
    around fingertip and object."""

    counts: Tensor
    radii: Tensor


@made_once
def _known(device: torch.device, dtype: torch.dtype) -> _Known:
    counts = torch.tensor([[[1, 1, 1]], [[1, 1, 1]], [[1, 0, 1]], [[1, 1, 1]]], device=device, dtype=dtype)
    return _Known(counts, torch.tensor([[REACH_RADIUS], [PLACE_RADIUS]], device=device, dtype=dtype))
