"""Hands and the object they handle in a view: shown before its frame is dreamed, recognised when that is finished."""

from __future__ import annotations

import torch
from torch import Tensor

from worldscape.conditioning.hands import HANDS
from worldscape.conditioning.layers import silhouettes
from worldscape.hand_heads import Things
from worldscape.hand_tasks import Facts, Touch, fingertip_and_palm, held_up, judge
from worldscape.heads import Heads
from worldscape.slot_hands import SlotHands, draw_hands
from worldscape.slots import KNOWN, Handled, NewFrame, ShownHands, SlotState, View
from worldscape.steady import sigmoid


def show_hands(
    heads: Heads, which: str, state: SlotState, hands: SlotHands, pose: Tensor, before: Handled | None
) -> ShownHands:
    """Hands (`which` of them, an option `hands=`) as a view from `pose` [B, 4, 4] shows them, and their object where
    they move it; before: both a step earlier, None: in the slots' current frames."""
    workspace = hands.workspace(pose)
    limbs = hands.limbs(workspace, HANDS[which])
    limbs = limbs._replace(silhouettes=silhouettes(limbs, pose, state.intrinsics, state.rgbd.shape[-1]))
    picture = draw_hands(limbs, pose, state.intrinsics, state.rgbd.shape[-1])
    if heads.object is None:
        return ShownHands(hands, limbs, picture)
    before = state.handled(workspace[:, 1, 3]) if before is None else before
    thing = before.thing._replace(present=before.thing.present & limbs.present.any(1))
    motion = heads.object(before.keypoints, limbs.keypoints, limbs.present, thing, before.shift, limbs.rows)
    shift = motion.likely() * thing.present[:, None]
    thing = thing._replace(centre=thing.centre + shift, moved=thing.moved + shift)
    return ShownHands(hands, limbs._replace(thing=thing), picture, motion, shift)


def recognise(heads: Heads, state: SlotState, new: NewFrame, view: View) -> View:
    """A view with what its finished picture shows: where things are, and what that is worth."""
    if view.hands is None:
        return view
    assert heads.things is not None
    limbs, pose, things = view.hands.limbs, view.pose, None
    if new.is_real or not knows_places(state, view.hands):
        keypoints = (limbs.keypoints - pose[:, None, None, :3, 3]) @ pose[:, None, :3, :3]
        things = heads.things(new.rgbd, keypoints, limbs.present, state.intrinsics)
    news = judged(state, things, view.hands, pose, new.places)
    if limbs.thing is not None:
        known = (news["spread"][:, 0] < KNOWN) & limbs.present.any(1)
        limbs = limbs._replace(thing=limbs.thing._replace(centre=news["places"][:, 0], present=known))
    return view._replace(hands=view.hands._replace(limbs=limbs, news=news))


def knows_places(state: SlotState, hands: ShownHands) -> bool:
    """Whether no picture could say better where object and target are, in any slot, or what hands touch: a start
    told of them, and a head says what became of them. False where that would have to be read back from a GPU."""
    if hands.limbs.thing is None or hands.motion is None or state.spread.device.type != "cpu":
        return False
    return not state.spread.any() and bool(hands.limbs.present.any(1).all())


def judged(
    state: SlotState, things: Things | None, hands: ShownHands, pose: Tensor, told: Tensor | None = None
) -> dict[str, Tensor]:
    """What is new of the slots, by name, when a frame seen from `pose` [B, 4, 4] shows these hands and things.

    things: None where `knows_places`. told: places [B, 2, 3] that a recording knows, NaN where it does not.
    """
    limbs, expected, spread = hands.limbs, state.places, state.spread
    if limbs.thing is not None:
        expected = torch.stack([limbs.thing.centre, expected[:, 1]], 1)
    if things is None:
        assert hands.motion is not None
        places, touch = expected, hands.motion.touch
    else:
        places, spread = _placed(state, things, pose, expected, told, is_object_known=limbs.thing is not None)
        touch = things.touch
        if limbs.thing is not None and hands.motion is not None:
            touch = torch.where(limbs.thing.present[:, None], hands.motion.touch, touch)
    probable = Touch(*sigmoid(touch).unbind(1))
    was_lifted = torch.maximum(state.was_lifted, held_up(probable).to(state.was_lifted))
    thing_place, target = places.unbind(1)
    tip, palm = fingertip_and_palm(limbs.keypoints, limbs.present, limbs.rows)
    facts = Facts(tip, palm, thing_place, target, probable, was_lifted)
    return {
        "tasks": torch.stack(judge(facts), 1),
        "places": places,
        "spread": spread,
        "touch": torch.stack(probable, 1),
        "was_lifted": was_lifted,
    }


def _placed(
    state: SlotState, things: Things, pose: Tensor, expected: Tensor, told: Tensor | None, *, is_object_known: bool
) -> tuple[Tensor, Tensor]:
    """Places [B, 2, 3] and spread [B, 2] of what is expected at `expected` [B, 2, 3] and seen as `things`.

    A target stays where it is, and of an object it is known how it moves, so the frame that showed them best
    decides: often the first, before the hand hides them. Without an object head every frame decides anew. What a
    recording told of counts before all that is seen.
    """
    found = torch.stack([things.object, things.target], 1) @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    spread = things.spread
    if told is not None:
        is_told = told.isfinite().all(-1)
        found, spread = torch.where(is_told[..., None], told, found), torch.where(is_told, -1.0, spread)
    is_better = spread < state.spread
    if not is_object_known:
        is_better = is_better | (torch.arange(2, device=pose.device) == 0)
    return torch.where(is_better[..., None], found, expected), torch.minimum(spread, state.spread).clamp_min(0.0)
