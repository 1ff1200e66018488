"""Hands and the object they handle in a view: shown before its frame is dreamed, recognised when that is finished."""

from __future__ import annotations

from torch import Tensor

from worldscape.conditioning.hands import HANDS
from worldscape.heads import Heads
from worldscape.slot_hands import SlotHands, draw_hands
from worldscape.slots import KNOWN, Handled, NewFrame, ShownHands, SlotState, View


def show_hands(
    heads: Heads, which: str, state: SlotState, hands: SlotHands, pose: Tensor, before: Handled | None
) -> ShownHands:
    """Hands (`which` of them, an option `hands=`) as a view from `pose` [B, 4, 4] shows them, and their object where
    they move it; before: both a step earlier, None: in the slots' current frames."""
    limbs = hands.limbs(pose, HANDS[which])
    picture = draw_hands(limbs, pose, state.intrinsics, state.rgbd.shape[-1])
    if heads.object is None:
        return ShownHands(hands, limbs, picture)
    before = state.handled(hands.table(pose)) if before is None else before
    thing = before.thing._replace(present=before.thing.present & limbs.present.any(1))
    motion = heads.object(before.keypoints, limbs.keypoints, limbs.present, thing, before.shift)
    shift = motion.likely() * thing.present[:, None]
    thing = thing._replace(centre=thing.centre + shift, moved=thing.moved + shift)
    return ShownHands(hands, limbs._replace(thing=thing), picture, motion, shift)


def recognise(heads: Heads, state: SlotState, new: NewFrame, view: View) -> View:
    """A view with what its finished picture shows: where things are, and what that is worth."""
    if view.hands is None:
        return view
    assert heads.things is not None
    limbs, pose, things = view.hands.limbs, view.pose, None
    if new.is_real or not state.knows_places(view.hands):
        keypoints = (limbs.keypoints - pose[:, None, None, :3, 3]) @ pose[:, None, :3, :3]
        things = heads.things(new.rgbd, keypoints, limbs.present, state.intrinsics)
    news = state.judged(things, view.hands, pose, new.places)
    if limbs.thing is not None:
        known = (news["spread"][:, 0] < KNOWN) & limbs.present.any(1)
        limbs = limbs._replace(thing=limbs.thing._replace(centre=news["places"][:, 0], present=known))
    return view._replace(hands=view.hands._replace(limbs=limbs, news=news))
