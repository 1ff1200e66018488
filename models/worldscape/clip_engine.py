"""ClipEngine: dreams of a bidirectional teacher, which refines whole clips and so has to be told its controls ahead.

It has the slots, memory, heads and codec of WorldEngine and the same way of stepping, so everything that judges dreams
judges a teacher's too. A clip holds sink, retrieved frames, the last finished ones and new ones, half of its local
window and target (`MemoryConfig.num_refined`). What memory shows of the new frames, and what a wall refuses, is asked
of what is known when the clip begins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.checks import check_controls, check_hands
from worldscape.codec import normalise_tokens
from worldscape.conditioning.hands import HAND_ACTION_WIDTH, HAND_STATE_WIDTH
from worldscape.config import MemoryConfig
from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame, Start
from worldscape.handling import recognise
from worldscape.memory.pages import PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.noise import slot_noise
from worldscape.scoring import Clip, compose_clip, sample_clip
from worldscape.slot_hands import SlotHands
from worldscape.slots import NewFrame, SlotState, View
from worldscape.snapshot import Snapshot
from worldscape.transformer import FrameInputs, PlacedHistory, Prediction
from worldscape.world import WorldModel

CALLS = 16  # that refine a clip, unless somebody asks for another number


class Plan(NamedTuple):
    """What slots will be told: controls [B, S, 6], hands [B, S, 2, ...] or None, and whether all that took place."""

    controls: Tensor
    hands: Tensor | None
    is_realised: bool

    def says(self, place: int, controls: Tensor, hands: Tensor | None, is_realised: bool) -> bool:
        """Whether step `place` is to be told just this: controls [B, 6], hands [B, 2, ...] or None."""
        if is_realised != self.is_realised or (hands is None) != (self.hands is None):
            return False
        told = [(controls, self.controls)] + ([] if hands is None else [(hands, self.hands)])
        return all(torch.equal(given.to(whole), whole[:, place]) for given, whole in told if whole is not None)


class Motion(NamedTuple):
    """Where a frame is seen from: camera, commanded and realised [B, 6] each; and the hands in it, if there are any."""

    camera: Tensor
    commanded: Tensor
    realised: Tensor
    hands: SlotHands | None


class Refined(NamedTuple):
    """A frame that was refined and is not yet shown: its motion, latent [B, P, C] and features [B, P, D]."""

    motion: Motion
    latent: Tensor
    features: Tensor


class ClipEngine(WorldEngine):
    """Opens B slots of one teacher together and steps them along controls that were foreseen.

    Args: as WorldEngine's; steps_per_frame is the number of model calls that refine a clip (None: 16). All slots are
    opened at once, none stands still, and there are no copies of them.

    Raises ValueError as WorldEngine does, and for a causal student.
    """

    is_causal = False

    def __init__(
        self,
        model: WorldModel,
        num_slots: int,
        *,
        device: str | torch.device = "cpu",
        steps_per_frame: int | None = None,
        precision: str = "fp32",
        hands: str | None = None,
        memory: MemoryConfig | None = None,
        temperature: float = 1.0,
    ):
        calls = CALLS if steps_per_frame is None else steps_per_frame
        super().__init__(
            model,
            num_slots,
            device=device,
            steps_per_frame=calls,
            precision=precision,
            hands=hands,
            memory=memory,
            temperature=temperature,
        )
        self.generator = self.model.transformer
        self._frames: list[FrameInputs] = []
        self._ready: list[Refined] = []
        self._features = self.state.features
        self._plan: Plan | None = None
        self._place = 0

    @torch.inference_mode()
    def open(self, start: Start, seeds: Tensor, rows: Tensor | None = None) -> EngineFrame:
        """As WorldEngine's, of all slots; what was foreseen is forgotten."""
        if rows is not None:
            raise ValueError("a teacher's slots are opened together: leave out rows.")
        self._frames, self._ready, self._plan, self._place = [], [], None, 0
        self._features = torch.zeros_like(self.state.features)
        return super().open(start, seeds)

    def foresee(self, controls: Tensor, *, hands: Tensor | None = None, is_realised: bool = False) -> None:
        """Say what the next S steps will be told: controls [B, S, 6] and hands [B, S, 2, ...], as step takes them.

        Raises ValueError for another number of slots, and for what WorldEngine.step refuses.
        """
        if controls.ndim != 3 or len(controls) != self.num_slots or controls.shape[2] != 6:
            raise ValueError(f"controls have shape {tuple(controls.shape)}; give [{self.num_slots}, S, 6].")
        if hands is not None and hands.shape[:2] != controls.shape[:2]:
            raise ValueError(
                f"hands have shape {tuple(hands.shape)}; give [{self.num_slots}, {controls.shape[1]}, ...]."
            )
        is_open, width = self.state.is_open, HAND_STATE_WIDTH if is_realised else HAND_ACTION_WIDTH
        for place in range(controls.shape[1]):
            check_controls(controls[:, place], torch.ones_like(is_open), is_open)
            if hands is not None:
                check_hands(hands[:, place], width, is_open, self.hands)
        own = {"device": self.device, "dtype": torch.float32, "copy": True}
        self._plan = Plan(controls.to(**own), None if hands is None else hands.to(**own), is_realised)
        self._ready, self._place = [], 0

    @torch.inference_mode()
    def step(
        self,
        controls: Tensor,
        active: Tensor | None = None,
        *,
        hands: Tensor | None = None,
        is_realised: bool = False,
    ) -> EngineFrame:
        """Show the next foreseen frame; the first of a clip costs the clip's model calls, the others none.

        Raises ValueError for a step that was not foreseen so.
        """
        plan, place = self._plan, self._place
        if plan is None or place == plan.controls.shape[1]:
            raise ValueError("a teacher refines clips: say with foresee() what the next steps will be told.")
        if not plan.says(place, controls, hands, is_realised):
            raise ValueError(f"step {place} is told something else than was foreseen.")
        if active is not None and not bool(active.all()):
            raise ValueError("a teacher's slots advance together: none can stand still.")
        calls = 0
        if not self._ready:
            self._ready, calls = self._refine(plan), len(self.levels) - 1
        self._show(self._ready.pop(0))
        self._place += 1
        return self._present(calls)

    @property
    def clip_length(self) -> int:
        """Frames of a clip without retrieved ones."""
        return self.config.memory.num_sink + self.config.memory.local_window + 1

    def snapshot(self, rows: Tensor | None = None) -> Snapshot:
        """Raises ValueError: a clip that is half shown cannot be kept."""
        raise _not_kept()

    def restore(self, snapshot: Snapshot, rows: Tensor | None = None) -> EngineFrame:
        """Raises ValueError, as snapshot."""
        raise _not_kept()

    def fork(self, row: int, rows: Tensor) -> EngineFrame:
        """Raises ValueError, as snapshot."""
        raise _not_kept()

    def read(self, state: SlotState, view: View) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing: a teacher has no stored history."""

    def commit(
        self, state: SlotState, new: NewFrame, view: View, history: PlacedHistory | None, active: Tensor
    ) -> None:
        """Remember the finished frame, and keep it as later clips see it."""
        view = recognise(self.model.heads, state, new, view)
        frame = Frame([], new.rgbd, view.pose, state.intrinsics, new.is_real, view.limbs)
        state.memory.append(frame, view.recall, active)
        self._frames.append(view.inputs(new.latent, self.config.context_level))
        self._finish(state, new, Prediction(new.latent[:, None], self._features[:, None], []), view, active)

    def _refine(self, plan: Plan) -> list[Refined]:
        """Refine the next clip's new frames together."""
        num_new = min(self.config.memory.num_refined, plan.controls.shape[1] - self._place)
        motions = self._move(plan, num_new)
        clip = self._compose(motions)
        shape = self.state.latent.shape[1:]
        noise = slot_noise(self.state.seeds, self.state.memory.count, num_new * shape.numel())
        noise = self.heat(noise.reshape(-1, num_new, *shape), clip.frames.coverage[:, -num_new:])
        found = sample_clip(self.generator, clip, noise, self.levels)
        latents, features = normalise_tokens(found.latent).unbind(1), found.features.float().unbind(1)
        return [Refined(*parts) for parts in zip(motions, latents, features, strict=True)]

    def _move(self, plan: Plan, num_new: int) -> list[Motion]:
        """Where the next steps lead, as far as can be told now."""
        ahead, motions = self.state, []
        for place in range(self._place, self._place + num_new):
            controls, hands, moved = plan.controls[:, place], None, None
            realised = controls if plan.is_realised else self.realise(ahead, controls)
            if self.hands is not None:
                hands, moved = ahead.hands, None if plan.hands is None else plan.hands[:, place]
            if moved is not None:
                hands = (
                    self.place_hands(ahead, realised, moved) if plan.is_realised else self.realise_hands(ahead, moved)
                )
            camera, realised = self.move(ahead, realised)
            motions.append(Motion(camera, controls, realised, hands))
            ahead = ahead.moved_on(camera, hands)
        return motions

    def _compose(self, motions: list[Motion]) -> Clip:
        """The clip in which the next frames are refined, all of them shown by memory as it stands."""
        state, memory, num_new = self.state, self.config.memory, len(motions)
        views = self.look_ahead(state, [motion.camera for motion in motions], [motion.hands for motion in motions])
        opening = self._frames
        if len(opening) + num_new > self.clip_length:
            opening = opening[: memory.num_sink] + opening[memory.num_sink + num_new - self.clip_length :]
        frames = [*opening, *(view.inputs(torch.zeros_like(state.latent), 1.0) for view in views)]
        numbers = state.memory.store.fields.frame[views[-1].recall.retrieved]
        sink, tail = frames[: memory.num_sink], frames[memory.num_sink :]
        return compose_clip(sink, tail, self._frames, numbers, is_causal=False)

    def _show(self, refined: Refined) -> None:
        """Decode a refined frame with what memory shows of it now, and make it the slots' current one."""
        state, motion = self.state, refined.motion
        view = self.look(state, motion.camera, state.pose, motion.hands)
        self._features = refined.features
        rgbd = self.decode(refined.latent, view)
        new = NewFrame(motion.camera, motion.realised, rgbd, refined.latent, motion.commanded)
        self.commit(state, new, view, None, torch.ones_like(state.is_open))

    def _memory(self, slots: int, budget: int | None) -> WorldMemory:
        size, has_hands = self.config.codec.size, self.hands is not None
        shape = PageShape(layers=0, tokens=0, heads=0, head_width=0, size=size, has_hands=has_hands)
        return WorldMemory.empty(self.config.memory, slots, shape, torch.zeros((), device=self.device), budget)


def _not_kept() -> ValueError:
    return ValueError("a teacher's slots cannot be kept or copied: use a causal student.")
