"""What an engine keeps of its slots, and what passes between the parts of a step: plain values with a leading B."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.codec import Encoded
from worldscape.conditioning.hand_model import NUM_KEYPOINTS
from worldscape.conditioning.layers import Limbs, Thing
from worldscape.conditioning.reproject import Anchor
from worldscape.config import WorldConfig
from worldscape.engine_frames import EngineFrame, HandFrame
from worldscape.hand_heads import ObjectMotion
from worldscape.hand_tasks import HAND_TASKS
from worldscape.heads import Heads
from worldscape.memory.surroundings import Surfaces, points_shown
from worldscape.memory.values import Recall
from worldscape.memory.world_memory import WorldMemory
from worldscape.slot_hands import SlotHands
from worldscape.transformer import EmbeddedView, FrameInputs

KNOWN = 0.04  # metres: an object that may be farther off than this is not known


class InFlight(NamedTuple):
    """The last W frames of B slots that a rolling sampler took up, oldest first, and what it was told of the latest
    finished frame, whose keys and values are still to be made.

    latent [B, W, P, C] at rising noise levels; camera, commanded, realised [B, W, 6]; hands as SlotHands has them,
    [B, W, 2, ...] and hand_base [B, W, 4, 4]; count long [B]: frames taken up since the slot was opened, at most W, so
    that places before W - count hold none yet (their cameras stand where the slot was opened). told_tokens [B, P, D],
    told_anchor [B, P, C], told_hands [B, P, D] and told_present bool [B]: EmbeddedView of one frame.
    """

    latent: Tensor
    camera: Tensor
    commanded: Tensor
    realised: Tensor
    hand_state: Tensor
    hand_command: Tensor
    hand_present: Tensor
    hand_base: Tensor
    count: Tensor
    told_tokens: Tensor
    told_anchor: Tensor
    told_hands: Tensor
    told_present: Tensor


@dataclass(slots=True)
class SlotState:
    """All there is to know of the slots, each tensor with a leading B; memory indexes slots itself.

    pose is that of camera (`pose_from_state`): several ask for it in each step. Object and target: places [B, 2, 3] in
    world axes, spread [B, 2] metres by which they may be wrong; object_moved [B, 3] since the slot was opened and
    object_shift [B, 3] in the last step. flight: frames that are not finished, in an engine whose sampler keeps such
    between steps.
    """

    memory: WorldMemory
    camera: Tensor
    pose: Tensor
    intrinsics: Tensor
    seeds: Tensor
    steps: Tensor
    is_open: Tensor
    latent: Tensor
    features: Tensor
    rgbd: Tensor
    coverage: Tensor
    commanded: Tensor
    realised: Tensor
    events: Tensor = field(repr=False)
    hand_state: Tensor = field(repr=False)
    hand_command: Tensor = field(repr=False)
    hand_present: Tensor = field(repr=False)
    hand_base: Tensor = field(repr=False)
    keypoints: Tensor = field(repr=False)
    tasks: Tensor = field(repr=False)
    places: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    object_moved: Tensor = field(repr=False)
    object_shift: Tensor = field(repr=False)
    touch: Tensor = field(repr=False)
    was_lifted: Tensor = field(repr=False)
    flight: InFlight | None = field(default=None, repr=False)

    @classmethod
    def empty(cls, config: WorldConfig, memory: WorldMemory) -> "SlotState":
        """As many slots as `memory` has, on its device; they hold nothing."""
        slots, like, codec = len(memory.count), memory.store.fields.pose, config.codec
        numbers = torch.zeros(slots, dtype=torch.long, device=like.device)
        hands = SlotHands.absent(slots, like)
        return cls(
            memory=memory,
            camera=like.new_zeros(slots, 6),
            pose=torch.eye(4).to(like).repeat(slots, 1, 1),
            intrinsics=like.new_ones(slots, 4),  # empty slots are computed along with the others: no division by 0
            seeds=numbers,
            steps=numbers.clone(),
            is_open=torch.zeros_like(numbers, dtype=torch.bool),
            latent=like.new_zeros(slots, codec.num_tokens, codec.latent_channels),
            features=like.new_zeros(slots, codec.num_tokens, config.transformer.width),
            rgbd=like.new_zeros(slots, 4, codec.size, codec.size),
            coverage=like.new_zeros(slots),
            commanded=like.new_zeros(slots, 6),
            realised=like.new_zeros(slots, 6),
            events=like.new_zeros(slots, 2),
            hand_state=hands.state,
            hand_command=hands.command,
            hand_present=hands.present,
            hand_base=hands.base,
            keypoints=like.new_zeros(slots, 2, NUM_KEYPOINTS, 3),
            tasks=like.new_zeros(slots, 2, len(HAND_TASKS)),
            places=like.new_zeros(slots, 2, 3),
            spread=like.new_full((slots, 2), torch.inf),
            object_moved=like.new_zeros(slots, 3),
            object_shift=like.new_zeros(slots, 3),
            touch=like.new_zeros(slots, 3),
            was_lifted=like.new_zeros(slots),
        )

    @property
    def hands(self) -> SlotHands:
        """Both hands of the slots; absent in an engine that has none."""
        return SlotHands(self.hand_state, self.hand_command, self.hand_present, self.hand_base)

    def handled(self, table: Tensor) -> "Handled":
        """Hands and their object in the current frame; table [B]: y of what it stands on."""
        thing = Thing(self.places[:, 0], self.object_moved, table, self.spread[:, 0] < KNOWN)
        return Handled(self.keypoints, thing, self.object_shift)

    def moved_on(self, camera: Tensor, hands: SlotHands | None) -> "SlotState":
        """The same slots, asked where a step leads from a camera [B, 6] and hands that they have not got to yet."""
        moved = {} if hands is None else {f"hand_{name}": part for name, part in hands._asdict().items()}
        return replace(self, camera=camera, **moved)

    def surfaces(self) -> Surfaces:
        """Points that the current pictures show."""
        return Surfaces.of(points_shown(self.rgbd, self.pose, self.intrinsics))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; those of memory apart."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("memory", "flight")}
        flight = {} if self.flight is None else self.flight._asdict()
        return own | {f"flight_{name}": tensor for name, tensor in flight.items()}

    def write_rows(self, rows: Tensor, new: dict[str, Tensor]) -> None:
        """Replace `rows` [R] by tensors [R, ...] of the same names; memory stays, and so does what was shown before."""
        self.put({name: stored.index_copy(0, rows, new[name]) for name, stored in self.tensors().items()})

    def put(self, new: Mapping[str, Tensor]) -> None:
        """Let these tensors take the place of all of those that `tensors` names."""
        if self.flight is not None:
            self.flight = InFlight(*(new[f"flight_{name}"] for name in InFlight._fields))
        for name, tensor in new.items():
            if not name.startswith("flight_"):
                setattr(self, name, tensor)

    def present(self, model_calls: int, heads: Heads, has_hands: bool, is_overwritten: bool = False) -> EngineFrame:
        """The slots' current frames, after so many model calls, as tensors that later steps leave alone, also where
        these change the slots' tensors in place (is_overwritten) instead of making new ones."""
        own = Tensor.clone if is_overwritten else _as_it_is
        return EngineFrame(
            rgbd=own(self.rgbd),
            pose=own(self.pose),
            camera=own(self.camera),
            commanded=own(self.commanded),
            realised=own(self.realised),
            coverage=own(self.coverage),
            latent=own(self.latent),
            steps=own(self.steps),
            model_calls=model_calls,
            find_events=heads.happens,
            events=None if has_hands else own(self.events),
            hands=self._present_hands(own) if has_hands else None,
            find_goal=None if heads.goal is None else partial(heads.goal, intrinsics=own(self.intrinsics)),
        )

    def _present_hands(self, own: Callable[[Tensor], Tensor]) -> HandFrame:
        (reward, success), (thing, target) = own(self.tasks).unbind(1), own(self.places).unbind(1)
        return HandFrame(
            keypoints=own(self.keypoints),
            state=own(self.hand_state),
            command=own(self.hand_command),
            present=own(self.hand_present),
            reward=reward,
            success=success,
            object=thing,
            target=target,
            touch=own(self.touch),
            moved=own(self.object_moved),
        )


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class Handled(NamedTuple):
    """Hands and their object at one moment, in world axes: keypoints [B, 2, 21, 3], and by how much the object had just
    been moved, shift [B, 3]; metres."""

    keypoints: Tensor
    thing: Thing
    shift: Tensor


class ShownHands(NamedTuple):
    """Hands in a view, as the slots have them and in world axes, and the pose video's picture [B, 4, h, w].

    motion and shift [B, 3]: what becomes of their object on the way, where a head says so. news: of the slots, once the
    view's picture is finished.
    """

    hands: SlotHands
    limbs: Limbs
    picture: Tensor
    motion: ObjectMotion | None = None
    shift: Tensor | None = None
    news: dict[str, Tensor] | None = None

    @property
    def handled(self) -> Handled | None:
        """Hands and object in this view, for the next one; None where nobody says how objects move."""
        if self.limbs.thing is None or self.shift is None:
            return None
        return Handled(self.limbs.keypoints, self.limbs.thing, self.shift)

    def fields(self) -> dict[str, Tensor]:
        """What is new of the slots, by the names of SlotState's fields."""
        told = {
            "hand_state": self.hands.state,
            "hand_command": self.hands.command,
            "hand_present": self.hands.present,
            "hand_base": self.hands.base,
            "keypoints": self.limbs.keypoints,
        }
        moved = self.handled
        if moved is not None:
            told |= {"object_moved": moved.thing.moved, "object_shift": moved.shift}
        return told | (self.news or {})


class View(NamedTuple):
    """A view about to be dreamed from `pose` [B, 4, 4]: its rays [B, 6, R, R] and the share of each token that memory
    shows [B, P], both as the generator is `told` of them, what memory shows, and its latent; hands, if there are any.
    """

    pose: Tensor
    rays: Tensor
    token_coverage: Tensor
    told: EmbeddedView
    recall: Recall
    guess: Encoded
    hands: ShownHands | None = None

    @property
    def anchor(self) -> Anchor:
        """The view as far as memory shows it."""
        return self.recall.anchor

    @property
    def limbs(self) -> Limbs | None:
        """The hands in the view, and their object; None where there can be none."""
        return None if self.hands is None else self.hands.limbs

    def inputs(self, latent: Tensor, level: float) -> FrameInputs:
        """A frame of this view with latent [B, P, C] at one level, as the generator is told of it in a clip."""
        levels = torch.full((len(latent), 1), level, device=latent.device)
        guess, coverage = self.guess.latent[:, None].float(), self.token_coverage[:, None]
        hands = None if self.hands is None else self.hands.picture[:, None]
        return FrameInputs(latent[:, None], levels, self.rays[:, None], guess, coverage, hands)


class NewFrame(NamedTuple):
    """A finished frame of all slots: camera [B, 6], realised [B, 6], rgbd [B, 4, h, w], latent [B, P, C], and the
    control [B, 6] that was commanded. is_real: a recorded frame, not a dreamed one; places [B, 2, 3]: as in `Start`, of
    such a frame.
    """

    camera: Tensor
    realised: Tensor
    rgbd: Tensor
    latent: Tensor
    commanded: Tensor
    is_real: bool = False
    places: Tensor | None = None


class Dreamed(NamedTuple):
    """What one step made: latent [B, P, C], with gradient where gradients are on, and the view it was made for."""

    latent: Tensor
    view: View
