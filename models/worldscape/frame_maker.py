"""FrameMaker: how a frame comes about, as functions of the slots' states; `commit` alone writes to one.

The motion head says what the world lets happen, memory is reprojected into the new view, `denoise` refines noise
against fixed history, the codec decodes it, `commit` appends exactly one frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worldscape.codec import normalise_tokens, token_coverage
from worldscape.conditioning.camera import (
    angle_difference,
    apply_control,
    invert_pose,
    level_pose,
    pose_from_state,
    state_from_pose,
)
from worldscape.conditioning.hands import HANDS
from worldscape.conditioning.made_once import kept_while_equal
from worldscape.conditioning.reproject import reproject, settle
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.conditioning.sharpen import sharpen
from worldscape.config import WorldConfig
from worldscape.engine_frames import RecordedHands
from worldscape.flow import euler_step
from worldscape.handling import recognise, show_hands
from worldscape.memory.surroundings import surroundings_along
from worldscape.memory.tables import write_active
from worldscape.memory.values import Frame, Recall
from worldscape.noise import slot_noise
from worldscape.precision import choose_dtype
from worldscape.rewrites import fast_codec, fast_generator
from worldscape.slot_hands import SlotHands, resting_hands
from worldscape.slots import Dreamed, Handled, NewFrame, ShownHands, SlotState, View
from worldscape.transformer import Levels, PlacedHistory, Prediction, frame_rays
from worldscape.world import WorldModel


class FrameMaker:
    """Makes frames of slots with one world model.

    Args:
        model: the world model; moved to `device`, set to eval.
        config: the model's, or one with another memory.
        levels: noise levels from 1 down to that at which a frame is taken as finished.
        hands, precision, use_fast, temperature: as WorldEngine's.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        config: WorldConfig,
        device: torch.device,
        levels: list[float],
        hands: str | None,
        precision: str,
        use_fast: bool,
        temperature: float,
    ):
        self.config, self.device, self.levels, self.hands = config, device, levels, hands
        self.temperature = temperature
        self.model = model.to(device).eval()
        self.dtype = choose_dtype(precision, device) if use_fast else torch.float32
        self.generator, codec = self.model.transformer, self.model.codec
        self.codec = codec if hands is None else codec.for_hands()
        if use_fast:
            if config.transformer.is_causal:  # a teacher refines whole clips, which have no rewrite
                self.generator = fast_generator(self.model, self._fast_levels, self.dtype)
            self.codec = fast_codec(self.model, self.dtype, hands=hands is not None)
        self.rebuild = reproject_fast if use_fast else reproject
        self._rays = kept_while_equal(_rays)

    def heat(self, noise: Tensor, coverage: Tensor) -> Tensor:
        """Noise [..., P, C] at the engine's temperature: one above 1 as far as memory shows nothing of a token, by its
        coverage [..., P]. More noise where a place is known would repaint it (docs/LOG.md, 2026-11-29)."""
        if self.temperature <= 1:
            return self.temperature * noise
        return noise * (1 + (self.temperature - 1) * (1 - coverage))[..., None]

    def ahead(self, state: SlotState) -> SlotState:
        """The slots as the next control finds them."""
        return state

    def realise(self, state: SlotState, controls: Tensor) -> Tensor:
        """What the world lets happen of the controls [B, 6].

        A walk is refused that leads nearer to a remembered surface than the body's radius, or that the motion head
        takes for blocked.
        """
        body, surfaces, here = self.config.body, state.memory.surfaces(), state.camera[:, :3]
        there = apply_control(state.camera, controls, self.config.controls.max_pitch)[:, :3]
        before, after = (surfaces.clearance(position, body) for position in (here, there))
        near = surroundings_along(surfaces, state.surfaces(), here, there - here, body)
        logit = self.model.heads.motion(near, (there - here).norm(dim=1))
        is_free = ((after >= body.radius) | (after >= before)) & (logit > self.config.heads.blocked_logit)
        return torch.cat([controls[:, :3] * is_free[:, None], controls[:, 3:]], 1)

    def realise_hands(self, state: SlotState, actions: Tensor) -> SlotHands:
        """Where the hands get to with actions [B, 2, 13]: the kinematic hand, held back by what the wrist head sees."""
        scale, wrist = self.config.hands, self.model.heads.wrist
        assert wrist is not None and self.hands is not None
        goal = state.hands.told(actions.clamp(-1.0, 1.0), scale)
        lag = wrist(state.features, state.latent, state.hand_state, goal, HANDS[self.hands])
        return state.hands.moved(goal, lag, scale)

    def place_hands(self, state: SlotState, realised: Tensor, reached: Tensor) -> SlotHands:
        """The hands at states [B, 2, 16] in world axes that they reached while the camera moved by `realised`."""
        camera = apply_control(state.camera, realised, self.config.controls.max_pitch)
        return state.hands.placed(reached, reached, state.hand_present, pose_from_state(camera))

    def move(self, state: SlotState, realised: Tensor) -> tuple[Tensor, Tensor]:
        """Where motion `realised` [B, 6] leads: the camera [B, 6], and the motion with the turn that it really made."""
        if realised.device.type == "cpu" and not any(map(any, realised.tolist())):
            return state.camera, realised
        camera = apply_control(state.camera, realised, self.config.controls.max_pitch)
        return camera, torch.cat([realised[:, :3], angle_difference(camera, state.camera)], 1)

    def advance(
        self,
        state: SlotState,
        realised: Tensor,
        active: Tensor,
        hands: SlotHands | None = None,
        commanded: Tensor | None = None,
    ) -> Dreamed:
        """Dream the frame that motion `realised` [B, 6] leads to and append it to the active slots.

        hands: where they are then; None: where they were, as seen from the eyes. commanded [B, 6]: what was asked for;
        None: what took place.

        Where gradients are on, the last model call carries any, and what it is told of the view; what is committed does
        not, so none flows through memory or history.
        """
        commanded = realised if commanded is None else commanded
        camera, realised = self.move(state, realised)
        view = self.look(state, camera, state.pose, hands)
        history = self.read(state, view)
        latent, history = self.denoise(state, view, history)
        with torch.no_grad():
            finished = latent.detach()
            new = NewFrame(camera, realised, self.decode(finished, view), finished, commanded)
            self.commit(state, new, view, history, active)
        return Dreamed(latent, view)

    def decode(self, latent: Tensor, view: View) -> Tensor:
        """A finished latent [B, P, C] -> the frame, RGB-D [B, 4, h, w]: painted, then settled where hands are, or
        sharpened."""
        rgbd = self.paint(latent, view)
        if view.hands is not None:
            return settle(rgbd, view.anchor, view.hands.limbs.present.any(1))
        return sharpen(rgbd, view.recall.real, self.config.sharpen) if self.config.sharpen.is_on else rgbd

    def paint(self, latent: Tensor, view: View) -> Tensor:
        """A finished latent [B, P, C] -> RGB-D [B, 4, h, w] as the codec decodes it, with what memory shows of the
        view."""
        drawn = None if view.hands is None else view.hands.picture
        return self.codec.decode(latent, view.anchor, view.guess.skips, drawn).float().clamp(-1.0, 1.0)

    def look(
        self,
        state: SlotState,
        camera: Tensor,
        previous: Tensor,
        hands: SlotHands | None = None,
        before: Handled | None = None,
    ) -> View:
        """Rays and anchor of the view from `camera` [B, 6]; `previous` is the camera-to-world pose [B, 4, 4] before.

        hands: those in the view; None takes the slots' own. before: hands and object a step earlier; None takes those
        of the current frame.
        """
        pose = state.pose if camera is state.camera else pose_from_state(camera)
        shown = limbs = None
        if self.hands is not None:
            hands = state.hands if hands is None else hands
            shown = show_hands(self.model.heads, self.hands, state, hands, pose, before)
            limbs = shown.limbs
        use_anchor = self.config.transformer.anchor
        recall = state.memory.recall(pose, state.intrinsics, use_anchor=use_anchor, rebuild=self.rebuild, limbs=limbs)
        return self._view(pose, previous, recall, state.intrinsics, shown)

    def look_ahead(self, state: SlotState, cameras: Sequence[Tensor], hands: Sequence[SlotHands | None]) -> list[View]:
        """The views of frames that follow one another, from cameras [B, 6] each and with these hands, as far as memory
        shows them now."""
        views, previous, before = [], state.pose, None
        for camera, held in zip(cameras, hands, strict=True):
            view = self.look(state, camera, previous, held, before)
            previous, before = view.pose, None if view.hands is None else view.hands.handled
            views.append(view)
        return views

    def read(self, state: SlotState, view: View) -> PlacedHistory:
        """History as this step's model calls read it."""
        present = view.told.present
        return self.generator.place(state.memory.read(view.recall.retrieved, self.generator.room(present)), present)

    def denoise(self, state: SlotState, view: View, history: PlacedHistory) -> tuple[Tensor, PlacedHistory]:
        """Refine this step's noise into the new frame's latent [B, P, C]; reads history, writes nothing.

        Only the last model call carries gradient. Returns the latent, and the history for `commit`, in which is what
        that call made of the pose video: to look at it again would take 2 % of a step and gain 0.1 dB (docs/LOG.md).
        """
        shape, levels = state.latent.shape[1:], self.levels
        noise = slot_noise(state.seeds, state.memory.count, shape.numel()).reshape(-1, *shape)
        positions = state.memory.next_positions()
        latent = self.heat(noise, view.token_coverage)[:, None]
        for level, next_level in zip(levels[:-1], levels[1:], strict=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and next_level == levels[-1]):
                found = self.generator.refine(latent, level, view.told, positions, history)
                latent = euler_step(latent, found.latent, level, next_level)
        return normalise_tokens(found.latent[:, 0].float()), history._replace(hands=found.hands)

    def commit(self, state: SlotState, new: NewFrame, view: View, history: PlacedHistory, active: Tensor) -> None:
        """Run the finished frame once, append it to the active slots' memory and make it their current frame."""
        view = recognise(self.model.heads, state, new, view)
        level, positions = self.config.context_level, state.memory.next_positions()
        prediction = self.generator.refine(new.latent[:, None], level, view.told, positions, history)
        frame = Frame(prediction.layers, new.rgbd, view.pose, state.intrinsics, new.is_real, view.limbs)
        state.memory.append(frame, view.recall, active)
        self._finish(state, new, prediction, view, active)

    def commit_real(
        self,
        state: SlotState,
        rgbd: Tensor,
        pose: Tensor,
        hands: RecordedHands | None = None,
        places: Tensor | None = None,
    ) -> View:
        """Take real frames, RGB-D [B, 4, h, w] seen from poses [B, 4, 4], into history; returns what memory showed.

        hands: those in the frames, [B, 2, ...]; None in an engine with hands: they rest in front of the eyes. places
        [B, 2, 3]: as in `Start`.
        """
        camera, active = state_from_pose(pose), torch.ones_like(state.is_open)
        is_first = state.memory.count == 0
        previous = torch.where(is_first[:, None, None], pose, state.pose)
        seen = None
        if self.hands is not None:
            resting = resting_hands(len(pose), HANDS[self.hands], pose)
            seen = resting if hands is None else resting.placed(*hands, pose)
        view = self.look(state, camera, previous, seen)
        latent = self.codec.encode(rgbd).float()
        nothing = torch.zeros_like(camera)
        new = NewFrame(camera, nothing, rgbd, latent, nothing, is_real=True, places=places)
        self.commit(state, new, view, self.read(state, view), active)
        state.steps.zero_()
        return view

    def _finish(self, state: SlotState, new: NewFrame, prediction: Prediction, view: View, active: Tensor) -> None:
        """Write the new frame's results into the active slots."""
        features = prediction.features[:, 0].float()
        seen = {
            "camera": new.camera,
            "pose": view.pose,
            "realised": new.realised,
            "commanded": new.commanded,
            "rgbd": new.rgbd,
            "latent": new.latent,
        }
        told = {"features": features, "coverage": view.recall.coverage, "steps": state.steps + 1}
        if self.hands is None:  # those of hands are another head's business
            told["events"] = self.model.heads.happens(new.rgbd)
        hands = {} if view.hands is None else view.hands.fields()
        write_active(state, active, {**seen, **told, **hands})

    def _view(
        self, pose: Tensor, previous: Tensor, recall: Recall, intrinsics: Tensor, hands: ShownHands | None
    ) -> View:
        rays = self._rays(pose, previous, intrinsics, self.config.codec.grid)
        guess = self.codec.encode_anchor(recall.anchor)
        coverage = token_coverage(recall.anchor.mask, self.config.codec.grid)
        drawn = None if hands is None else hands.picture[:, None]
        told = self.generator.embed_view(rays[:, None], guess.latent[:, None].float(), coverage[:, None], drawn)
        return View(pose, rays, coverage, told, recall, guess, hands)

    @property
    def _fast_levels(self) -> list[Levels]:
        """The levels that the generator will be asked for."""
        return [*self.levels[:-1], self.config.context_level]


def _rays(pose: Tensor, previous: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Rays through the cells of a view after `previous`."""
    return frame_rays(pose, invert_pose(level_pose(previous)), intrinsics, size)
