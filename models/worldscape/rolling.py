"""RollingEngine: a sampler that makes one model call a step, however many refine a frame.

The last W = steps_per_frame frames are in flight at rising noise levels (Rolling Diffusion, Ruhe et al. 2024,
https://arxiv.org/abs/2402.09470; Rolling Forcing, Liu et al. 2025, https://arxiv.org/abs/2509.25161). A step takes up a
new frame as noise, and one call moves all of them one level on: the oldest is finished and shown, so a frame shows the
action of W - 1 steps before (`action_latency`). The same call takes in the frame that was finished the step before, in
place of a call that commits: frames see it and those before them, never later ones.

Where a walk leads is asked of what is known when it is commanded, W - 1 frames before it can be seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldscape.codec import normalise_tokens
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.layers import Thing
from worldscape.engine import SAMPLER_SHIFT, WorldEngine
from worldscape.flow import euler_step, sampling_levels
from worldscape.handling import recognise
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.noise import slot_noise
from worldscape.slot_hands import SlotHands
from worldscape.slots import Dreamed, Handled, InFlight, NewFrame, SlotState, View
from worldscape.transformer import EmbeddedView, Levels, PlacedHistory, Prediction
from worldscape.world import WorldModel

HANDS = ("hand_state", "hand_command", "hand_present", "hand_base")


class Taken(NamedTuple):
    """A frame that the next call takes up: noise [B, P, C], where it is seen from, and the hands in it."""

    noise: Tensor
    camera: Tensor
    commanded: Tensor
    realised: Tensor
    hands: SlotHands


class RollingEngine(WorldEngine):
    """Opens, steps and reopens B slots of one world model with one model call a step.

    Args: as WorldEngine's; with num_calls so many frames are in flight. Its frames are not those of WorldEngine, which
    refines each frame when all before it are finished. A slot that was opened shows its start for W - 1 steps.

    Raises ValueError as WorldEngine does, and for more frames in flight than the local window has places.
    """

    def __init__(
        self,
        model: WorldModel,
        num_slots: int,
        *,
        steps_per_frame: int | None = None,
        num_calls: int | None = None,
        **options: Any,
    ):
        steps = model.config.steps_per_frame if steps_per_frame is None else steps_per_frame
        self.num_flying = steps if num_calls is None else num_calls
        memory = options.get("memory") or model.config.memory
        if self.num_flying > memory.local_window:
            raise ValueError(
                f"steps_per_frame {steps} keeps {self.num_flying} frames in flight, and the local window has "
                f"{memory.local_window} places: take fewer calls, or sampler='blockwise'."
            )
        levels = sampling_levels(steps, SAMPLER_SHIFT)[: self.num_flying]
        self.call_levels = (model.config.context_level, *reversed(levels))
        super().__init__(model, num_slots, steps_per_frame=steps, num_calls=num_calls, **options)

    @property
    def calls_per_step(self) -> int:
        """One: it refines all frames in flight and takes in the finished one."""
        return 1

    @property
    def action_latency(self) -> int:
        """W - 1."""
        return self.num_flying - 1

    def ahead(self, state: SlotState) -> SlotState:
        """The slots where the frame that was taken up last will show them."""
        flight = _flight(state)
        hands = SlotHands(*(getattr(flight, name)[:, -1] for name in HANDS))
        return state.moved_on(flight.camera[:, -1], None if self.hands is None else hands)

    def advance(
        self,
        state: SlotState,
        realised: Tensor,
        active: Tensor,
        hands: SlotHands | None = None,
        commanded: Tensor | None = None,
    ) -> Dreamed:
        """Take up the frame that motion `realised` [B, 6] leads to, and finish the oldest one of the active slots.

        As WorldEngine's; where gradients are on, the call that finishes a frame carries one. The result is the frame
        in the oldest place, which is nobody's in slots that have taken up fewer than W.
        """
        ahead = self.ahead(state)
        camera, turned = self.move(ahead, realised)
        hands = ahead.hands if hands is None else hands
        noise = self._noise(state)
        self._take_up(state, Taken(noise, camera, realised if commanded is None else commanded, turned, hands), active)
        views = self._look_ahead(state)
        self._heat_newest(state, views[-1], active)
        prediction, finished = self.refine(state, views, active)
        oldest = views[0]
        with torch.no_grad():
            flight, is_done = _flight(state), active & (_flight(state).count == self.num_flying)
            latent = finished.detach()
            motion = (flight.camera[:, 0], flight.realised[:, 0])
            new = NewFrame(*motion, self.decode(latent, oldest), latent, flight.commanded[:, 0])
            oldest = recognise(self.model.heads, state, new, oldest)
            read = oldest.recall.retrieving(views[-1].recall)
            state.memory.append(Frame([], new.rgbd, oldest.pose, state.intrinsics, limbs=oldest.limbs), read, is_done)
            state.flight = _told(flight, oldest.told, is_done)
            self._finish(state, new, prediction, oldest, is_done)
        return Dreamed(finished, oldest)

    def commit(self, state: SlotState, new: NewFrame, view: View, history: PlacedHistory, active: Tensor) -> None:
        """Take a real frame in; nothing is in flight afterwards."""
        super().commit(state, new, view, history, active)
        places = self.num_flying
        hands = {name: _repeated(getattr(state, name), places) for name in HANDS}
        cameras = {"camera": _repeated(state.camera, places), "count": torch.zeros_like(state.steps)}
        state.flight = _told(_flight(state)._replace(**hands, **cameras), view.told, active)

    def _noise(self, state: SlotState) -> Tensor:
        """Noise [B, P, C] of the frame that is about to be taken up: a function of seed and number, as everywhere."""
        flight, shape = _flight(state), state.latent.shape[1:]
        waiting = flight.count.clamp_max(self.num_flying - 1)
        return slot_noise(state.seeds, state.memory.count + waiting, shape.numel()).reshape(-1, *shape)

    def _take_up(self, state: SlotState, taken: Taken, active: Tensor) -> None:
        """Put a frame behind those in flight of the active slots; the oldest place, finished or never filled, falls
        out."""
        flight = _flight(state)
        new = {"latent": taken.noise, "camera": taken.camera, "commanded": taken.commanded, "realised": taken.realised}
        new |= dict(zip(HANDS, taken.hands, strict=True))
        pushed = {name: torch.cat([getattr(flight, name)[:, 1:], value[:, None]], 1) for name, value in new.items()}
        pushed["count"] = (flight.count + 1).clamp_max(self.num_flying)
        state.flight = flight._replace(**{name: _where(active, pushed[name], getattr(flight, name)) for name in pushed})

    def _heat_newest(self, state: SlotState, view: View, active: Tensor) -> None:
        """Bring the noise of the frame taken up last, seen as in `view`, to the engine's temperature."""
        if self.temperature == 1:
            return
        flight = _flight(state)
        noise = self.heat(flight.latent[:, -1], view.token_coverage)
        latent = torch.cat([flight.latent[:, :-1], noise[:, None]], 1)
        state.flight = flight._replace(latent=_where(active, latent, flight.latent))

    def _look_ahead(self, state: SlotState) -> list[View]:
        """The views of all places in flight as far as memory shows them now, oldest first."""
        flight, previous, views = _flight(state), state.pose, []
        hands, before = None, None
        for place in range(self.num_flying):
            if self.hands is not None:
                hands = SlotHands(*(getattr(flight, name)[:, place] for name in HANDS))
            view = self.look(state, flight.camera[:, place], previous, hands, before)
            is_there = flight.count >= self.num_flying - place
            previous = torch.where(is_there[:, None, None], pose_from_state(flight.camera[:, place]), previous)
            handled = None if view.hands is None else view.hands.handled
            if handled is not None:
                earlier = state.handled(handled.thing.table) if before is None else before
                before = Handled(
                    _where(is_there, handled.keypoints, earlier.keypoints),
                    Thing(*(_where(is_there, *pair) for pair in zip(handled.thing, earlier.thing, strict=True))),
                    _where(is_there, handled.shift, earlier.shift),
                )
            views.append(view)
        return views

    def refine(self, state: SlotState, views: list[View], active: Tensor) -> tuple[Prediction, Tensor]:
        """The step's model call -> what it makes of the oldest frame, and that frame's clean latent [B, P, C]."""
        flight, latest = _flight(state), _told_again(_flight(state), self.hands is not None)
        told = _joined([latest, *(view.told for view in views)])
        room = self.generator.room(told.present, 1 + self.num_flying)
        history = state.memory.read_pending(views[-1].recall.retrieved, self.action_latency, room)
        placed = self.generator.place(history, told.present, self._sight(flight))
        latent = torch.cat([state.latent[:, None], flight.latent], 1)
        found = self.generator.refine(latent, self.call_levels, told, self._times(state), placed)
        with torch.no_grad():
            state.memory.take_in([type(new)(*(part[:, :1].detach() for part in new)) for new in found.layers], active)
            clean, levels = found.latent.detach().float(), self.call_levels[1:]
            steps = [
                euler_step(flight.latent[:, place], clean[:, 1 + place], levels[place], levels[place - 1])
                for place in range(1, self.num_flying)
            ]
            moved = torch.stack([clean[:, 1], *steps], 1)
            state.flight = flight._replace(latent=_where(active, moved, flight.latent))
        oldest = Prediction(found.latent[:, 1:2], found.features[:, 1:2], [])
        return oldest, normalise_tokens(found.latent[:, 1].float())

    def _times(self, state: SlotState) -> Tensor:
        """Relative positions [B, 1 + W] of the latest frame and of those in flight; places without one stand with the
        next."""
        memory, latency = state.memory, self.action_latency
        order = torch.arange(self.num_flying, device=self.device) - (self.num_flying - _flight(state).count)[:, None]
        flying = memory.next_positions(latency) + order.clamp_min(0)
        return torch.cat([memory.pending_positions(latency), flying], 1)

    def _sight(self, flight: InFlight) -> Tensor:
        """Which of the latest frame and those in flight sees which, bool [B, 1 + W, 1 + W]."""
        size = self.num_flying + 1
        order = torch.arange(size, device=self.device)
        is_there = (order == 0) | (order[None] > self.num_flying - flight.count[:, None])
        return ((order[:, None] > order) & is_there[:, None]) | torch.eye(size, dtype=torch.bool, device=self.device)

    def _empty(self, memory: WorldMemory) -> SlotState:
        state, config = super()._empty(memory), self.config
        slots, places, like = len(state.steps), self.num_flying, state.camera
        hands = {name: _repeated(getattr(state, name), places) for name in HANDS}
        tokens, width = state.latent.shape[1], config.transformer.width
        motion = {name: like.new_zeros(slots, places, 6) for name in ("camera", "commanded", "realised")}
        told = {name: like.new_zeros(slots, tokens, width) for name in ("told_tokens", "told_hands")}
        flight = InFlight(
            latent=_repeated(state.latent, places),
            count=torch.zeros_like(state.steps),
            told_anchor=torch.zeros_like(state.latent),
            told_present=torch.zeros_like(state.is_open),
            **motion,
            **hands,
            **told,
        )
        return replace(state, flight=flight)

    @property
    def _fast_levels(self) -> list[Levels]:
        return [self.call_levels, self.config.context_level]

    @property
    def _kind(self) -> dict[str, Any]:
        return {**super()._kind, "sampler": f"rolling, {self.num_flying} in flight"}


def _flight(state: SlotState) -> InFlight:
    assert state.flight is not None
    return state.flight


def _repeated(tensor: Tensor, places: int) -> Tensor:
    """[B, ...] -> [B, places, ...], a tensor of its own."""
    return tensor[:, None].repeat(1, places, *[1] * (tensor.ndim - 1))


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _told(flight: InFlight, told: EmbeddedView, active: Tensor) -> InFlight:
    """What the generator was told of the active slots' latest frame, [B, 1, ...] -> kept until its keys are made."""
    new = {"told_tokens": told.tokens[:, 0], "told_anchor": told.anchor[:, 0]}
    if told.hands is not None and told.present is not None:
        new |= {"told_hands": told.hands[:, 0], "told_present": told.present[:, 0]}
    old = {name: getattr(flight, name) for name in new}
    return flight._replace(**{name: _where(active, new[name].to(old[name].dtype), old[name]) for name in new})


def _told_again(flight: InFlight, has_hands: bool) -> EmbeddedView:
    """The inverse of _told."""
    hands = (flight.told_hands[:, None], flight.told_present[:, None]) if has_hands else (None, None)
    return EmbeddedView(flight.told_tokens[:, None], flight.told_anchor[:, None], *hands)


def _joined(told: list[EmbeddedView]) -> EmbeddedView:
    """Views of frames one after another; all with hands or none."""
    columns = list(zip(*told, strict=True))
    tokens, anchor, hands, present = (None if column[0] is None else torch.cat(column, 1) for column in columns)
    assert tokens is not None and anchor is not None
    return EmbeddedView(tokens, anchor, hands, present)
