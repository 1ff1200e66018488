"""The hands of slots: where they are, where they were told to be, and how the generator is shown them.

Their numbers stand in the axes of a workspace that goes with the eyes: it moves and turns with the levelled camera, so
hands come along when one walks. Where the camera stands still, its axes are those of the world.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.camera import invert_pose, level_pose
from worldscape.conditioning.hand_model import HandState, hand_parts, is_left_of_both, keypoints_of
from worldscape.conditioning.hands import (
    HANDS,
    HandScale,
    apply_hand_action,
    leash,
    rotation_from_vector,
    state_from_vector,
    state_to_vector,
)
from worldscape.conditioning.layers import Limbs
from worldscape.conditioning.made_once import kept_while_equal
from worldscape.conditioning.pose_video import draw_pose_video

HANDS_UNDER_EYES = (
    0.0,
    0.39,
    0.27,
)  # metres right, down, forward of the eyes to the workspace's origin: the tabletop's
RESTING = (0.1, -0.2, 0.15)  # metres in the workspace: where a right hand begins that no recording placed
HALF_OPEN = 0.4


_levelled = kept_while_equal(level_pose)  # hands are used where one stands


class SlotHands(NamedTuple):
    """Both hands of B slots, left then right: state (where they are) and command (where they were told to be)
    [B, 2, 16] in workspace axes (`hands.state_to_vector`), present bool [B, 2], and base [B, 4, 4]: the workspace, seen
    from the levelled eyes.
    """

    state: Tensor
    command: Tensor
    present: Tensor
    base: Tensor

    @classmethod
    def absent(cls, slots: int, like: Tensor) -> "SlotHands":
        """Slots without hands, with the device and dtype of `like`."""
        state, present = like.new_zeros(slots, 2, 16), torch.zeros(slots, 2, dtype=torch.bool, device=like.device)
        return cls(state, state.clone(), present, torch.eye(4).to(like).repeat(slots, 1, 1))

    def told(self, actions: Tensor, scale: HandScale) -> Tensor:
        """Delta actions [B, 2, 13] in [-1, 1] -> the states [B, 2, 16] that they command."""
        return state_to_vector(apply_hand_action(state_from_vector(self.command), actions, scale))

    def moved(self, goal: Tensor, lag: Tensor, scale: HandScale) -> "SlotHands":
        """Hands that were told to be at `goal` [B, 2, 16] and miss it by `lag` [B, 2, 6], in steps of `scale`.

        The command waits for a wrist that is held back, as in the simulator.
        """
        wanted = state_from_vector(goal, is_exact=True)
        position = wanted.position + scale.move * lag[..., :3]
        rotation = rotation_from_vector(scale.turn * lag[..., 3:]) @ wanted.rotation
        command = wanted._replace(position=leash(wanted.position, position))
        state = HandState(position, rotation, wanted.fingers)
        return self._replace(state=state_to_vector(state), command=state_to_vector(command))

    def placed(self, state: Tensor, command: Tensor, present: Tensor, pose: Tensor) -> "SlotHands":
        """Hands where a recording has them: states in world axes, seen by a camera at `pose` [B, 4, 4]."""
        state, command = (state_to_vector(state_from_vector(one)) for one in (state, command))
        return SlotHands(state, command, present, invert_pose(level_pose(pose)))

    def workspace(self, pose: Tensor) -> Tensor:
        """The workspace in world axes [B, 4, 4], with the camera at `pose` [B, 4, 4]. Its floor is the table."""
        return _levelled(pose) @ self.base

    def limbs(self, workspace: Tensor, rows: tuple[int, ...]) -> Limbs:
        """The hands in world axes, with the workspace there [B, 4, 4]; rows: those that can be present at all."""
        parts = hand_parts(state_from_vector(self.state, is_exact=True), is_left_of_both(self.state))
        parts = workspace[:, None, None] @ parts
        return Limbs(parts, keypoints_of(parts), self.present, rows)


def draw_hands(limbs: Limbs, pose: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Hands seen from cameras at `pose` [B, 4, 4] -> what the generator is told of them [B, 4, size, size].

    Joints count as visible: what hides them is not known before the frame is dreamed.
    """
    keypoints, present = limbs.keypoints, limbs.present
    if limbs.rows == HANDS["right"]:
        keypoints, present = keypoints[:, 1:], present[:, 1:]
    return draw_pose_video(keypoints, None, present, pose, intrinsics, (size, size)).picture


def resting_hands(slots: int, rows: tuple[int, ...], like: Tensor) -> SlotHands:
    """Hands `rows` half open in front of level eyes, for worlds whose start shows none."""
    sides = torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).to(like)
    position = (sides * torch.tensor(RESTING).to(like)).expand(slots, 2, 3)
    fingers = like.new_full((slots, 2, 7), HALF_OPEN)
    state = state_to_vector(HandState(position, torch.eye(3).to(like).expand(slots, 2, 3, 3), fingers))
    hands = SlotHands.absent(slots, like)
    hands.base[:, :3, 3] = torch.tensor(HANDS_UNDER_EYES).to(like)
    hands.present[:, list(rows)] = True
    return hands._replace(state=state, command=state.clone())


def limit_to(rows: tuple[int, ...], state: Tensor, present: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Recorded states [..., 2, 16] in world axes and present [..., 2], seen by cameras at `pose` [..., 4, 4], with the
    hands `rows` and no others: one that the recording lacks begins as the mirror image of the other, left and right of
    the eyes exchanged; where it has neither, both stay absent."""
    wanted = torch.zeros_like(present)
    wanted[..., list(rows)] = present.any(-1, keepdim=True)
    mirrored = mirror_states(state.flip(-2), level_pose(pose)[..., None, :, :])
    return torch.where(present[..., None], state, mirrored), wanted


def mirror_states(state: Tensor, eyes: Tensor) -> Tensor:
    """States [..., 16] of hands in world axes -> those of the other hand in the plane of a mirror that exchanges left
    and right (x) of `eyes` [..., 4, 4]."""
    mirror = torch.eye(4).to(state)
    mirror[0, 0] = -1.0
    swap = eyes @ mirror @ invert_pose(eyes)
    hand = state_from_vector(state)
    position = (swap[..., :3, :3] @ hand.position[..., None])[..., 0] + swap[..., :3, 3]
    rotation = swap[..., :3, :3] @ hand.rotation @ mirror[:3, :3]
    return state_to_vector(HandState(position, rotation, hand.fingers))
