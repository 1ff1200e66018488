"""What goes into an engine and what comes out: starts and frames, plain values with a leading B."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.codec import rgbd_to_frame
from worldscape.conditioning.reproject import decode_depth
from worldscape.heads import SeenGoal


class RecordedHands(NamedTuple):
    """Hands in real frames, left then right: state and command float32 [..., 2, 16] in world axes
    (`hands.state_to_vector`), present bool [..., 2].
    """

    state: Tensor
    command: Tensor
    present: Tensor

    def at(self, frame: int) -> "RecordedHands":
        """Those of one frame of [R, F, 2, ...]."""
        return RecordedHands(*(part[:, frame] for part in self))


@dataclass(slots=True)
class Start:
    """Real frames that open R worlds, oldest first; the last is the current one.

    frames uint8 [R, F, h, w, 3]; depth float32 [R, F, h, w] metres, or None to let the depth head guess; pose float32
    [R, F, 4, 4] camera to world, or None (only with F = 1) for a level camera at the origin; intrinsics float32 [R, 4]
    normalised, or None for the config's field of view; hands, for an engine with hands (None: they rest in front of the
    eyes), [R, F, 2, ...]. places float32 [R, F, 2, 3]: where object and target of a hand's task are, world axes and
    metres, NaN where that is not known; None: they are looked for in the pictures.
    """

    frames: Tensor
    depth: Tensor | None = None
    pose: Tensor | None = None
    intrinsics: Tensor | None = None
    hands: RecordedHands | None = None
    places: Tensor | None = None


class HandFrame(NamedTuple):
    """Hands as the slots show them, left then right: keypoints [B, 2, 21, 3] metres in world axes, state and command
    [B, 2, 16] in the axes of their workspace, present bool [B, 2]; what the frame is worth to each of
    `hand_tasks.HAND_TASKS`, [B, 3] in [0, 1]: reward, probability of success; and why: object and target [B, 3] in
    world axes (metres), touch [B, 3]: probabilities of contact, grasped, lifted; moved [B, 3]: what hands have moved
    the object by since the slot was opened (metres), of weights with a head that says so.
    """

    keypoints: Tensor
    state: Tensor
    command: Tensor
    present: Tensor
    reward: Tensor
    success: Tensor
    object: Tensor
    target: Tensor
    touch: Tensor
    moved: Tensor


@dataclass
class EngineFrame:
    """What all B slots show now, on the engine's device: its own tensors, which later steps leave alone and nobody may
    change.

    rgbd float32 [B, 4, h, w] in [-1, 1]: `frame` and `depth` are made of it when somebody asks. pose [B, 4, 4]; camera
    [B, 6]; commanded [B, 6] control that the frame answers, realised [B, 6] what of it took place; coverage [B] share
    of pixels anchored in memory; latent [B, P, C]; steps long [B]: frames since opening; model_calls: transformer
    forwards made by this call; hands: of an engine that has them; events [B, 2]: probabilities of reward and end, or
    find_events, which looks for them in `rgbd`; find_goal: finds the goal in it, for weights that can.
    """

    rgbd: Tensor
    pose: Tensor
    camera: Tensor
    commanded: Tensor
    realised: Tensor
    coverage: Tensor
    latent: Tensor
    steps: Tensor
    model_calls: int
    events: Tensor | None = None
    find_events: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    hands: HandFrame | None = None
    find_goal: Callable[[Tensor], SeenGoal] | None = field(default=None, repr=False)

    @cached_property
    def _happens(self) -> Tensor:
        if self.events is not None:
            return self.events
        assert self.find_events is not None
        with torch.inference_mode():
            return self.find_events(self.rgbd)

    @cached_property
    def reward(self) -> Tensor:
        """Probability that a walker is paid for this frame [B]."""
        return self._happens[:, 0]

    @cached_property
    def end(self) -> Tensor:
        """Probability that a walker's episode ends with it [B]."""
        return self._happens[:, 1]

    @cached_property
    def goal(self) -> SeenGoal | None:
        """The walker's goal, if pictures show it, its place in world axes; None for weights that cannot tell."""
        if self.find_goal is None:
            return None
        with torch.inference_mode():
            found = self.find_goal(self.rgbd)
            place = (self.pose[:, :3, :3] @ found.place[..., None])[..., 0] + self.pose[:, :3, 3]
        return SeenGoal(found.seen, place)

    @cached_property
    def frame(self) -> Tensor:
        """The pictures, uint8 [B, h, w, 3]."""
        return rgbd_to_frame(self.rgbd)

    @cached_property
    def depth(self) -> Tensor:
        """Metres along the view axis, float32 [B, h, w]."""
        return decode_depth(self.rgbd[:, 3])
