"""WorldEngine: many dreamed worlds advanced together, each slot with its own pose, history, memory and noise.

One step: the motion head says what the world lets happen, memory is reprojected into the new view, `denoise` refines
noise against fixed history (writes nothing), the codec decodes it, `commit` appends exactly one frame.
"""

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from worldscape.checkpoint import weights_id
from worldscape.checks import check_controls, check_hands, check_hands_option, check_start, checked_rows
from worldscape.codec import frame_to_rgbd, normalise_tokens, token_coverage
from worldscape.conditioning.camera import (
    angle_difference,
    apply_control,
    invert_pose,
    level_pose,
    pose_from_state,
    state_from_pose,
)
from worldscape.conditioning.hands import HAND_ACTION_WIDTH, HAND_STATE_WIDTH, HANDS
from worldscape.conditioning.made_once import kept_while_equal
from worldscape.conditioning.reproject import encode_depth, reproject, settle
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.conditioning.sharpen import sharpen
from worldscape.config import MemoryConfig
from worldscape.flow import euler_step, sampling_levels
from worldscape.graphs import StepGraphs
from worldscape.handling import recognise, show_hands
from worldscape.memory.pages import PageShape
from worldscape.memory.surroundings import surroundings_along
from worldscape.memory.world_memory import Frame, Recall, WorldMemory
from worldscape.noise import slot_noise
from worldscape.opening import complete_start
from worldscape.precision import choose_dtype
from worldscape.rewrites import fast_codec, fast_generator
from worldscape.slot_hands import SlotHands, resting_hands
from worldscape.slots import (
    Dreamed,
    EngineFrame,
    Handled,
    NewFrame,
    RecordedHands,
    ShownHands,
    SlotState,
    Start,
    View,
)
from worldscape.snapshot import Snapshot
from worldscape.transformer import Levels, PlacedHistory, Prediction, frame_rays
from worldscape.world import WorldModel

SAMPLER_SHIFT = 3.0  # spends sampling steps where most is decided, near pure noise


class WorldEngine:
    """Opens, steps and reopens B slots of one world model.

    Args:
        model: the world model; moved to `device`, set to eval.
        num_slots: B, worlds advanced together.
        device: torch device.
        steps_per_frame: denoising model calls a frame; None takes the config's. num_calls: finish frames early, after
            so many of them.
        use_fast: run the inference-only rewrites (fast.py, fast_codec.py, reproject_fast.py); same results to rounding.
        precision: "fp32", "bf16", or "auto" for what this machine is fastest in (precision.py); of use_fast only.
        hands: "left", "right" or "both" for slots that have hands; None for slots that walk only, which costs less.
        memory: policy and sizes of the slots' memory, for ablations; None takes the model's.
        memory_budget: bytes that the pages of all slots never exceed; a small one makes the pool smaller.
        use_graphs: on CUDA, steps are started as graphs (graphs.py) once two of their kind were made; of use_fast only.

    Raises ValueError for fewer than 1 slot, for a budget in which sink and local window do not fit, for a teacher, and
    for hands with weights that know none.
    """

    is_causal = True

    def __init__(
        self,
        model: WorldModel,
        num_slots: int,
        *,
        device: str | torch.device = "cpu",
        steps_per_frame: int | None = None,
        num_calls: int | None = None,
        use_fast: bool = True,
        precision: str = "fp32",
        hands: str | None = None,
        memory: MemoryConfig | None = None,
        memory_budget: int | None = None,
        use_graphs: bool = True,
    ):
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}; an engine has at least 1 slot.")
        if model.config.transformer.is_causal is not self.is_causal:
            raise ValueError(
                "these weights are a teacher's, which sees a whole clip at once: step a causal student, or foresee the "
                "controls in a ClipEngine."
                if self.is_causal
                else "these weights are a causal student's: step them in a WorldEngine."
            )
        if hands is not None:
            check_hands_option(hands, model.config.transformer)
        self.hands = hands
        calls = model.config.steps_per_frame if steps_per_frame is None else steps_per_frame
        self.config = model.config if memory is None else replace(model.config, memory=memory)
        self.num_slots = num_slots
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.levels = sampling_levels(calls, SAMPLER_SHIFT)[: None if num_calls is None else num_calls + 1]
        self.dtype = choose_dtype(precision, self.device) if use_fast else torch.float32
        self.generator, codec = self.model.transformer, self.model.codec
        self.codec = codec if hands is None else codec.for_hands()
        if use_fast:
            self.generator = fast_generator(self.model, self._fast_levels, self.dtype)
            self.codec = fast_codec(self.model, self.dtype, hands=hands is not None)
        self.rebuild = reproject_fast if use_fast else reproject
        self._rays = kept_while_equal(_rays)
        self.state = self._empty(self._memory(num_slots, memory_budget))
        is_recorded = use_graphs and use_fast and self.device.type == "cuda"
        self.graphs = StepGraphs(self.state) if is_recorded else None

    @property
    def calls_per_step(self) -> int:
        """Model calls that a step makes: those that refine, and the one that commits."""
        return len(self.levels)

    @property
    def action_latency(self) -> int:
        """Steps from an action to the frame that shows it, beyond the very next one."""
        return 0

    @torch.inference_mode()
    def open(self, start: Start, seeds: Tensor, rows: Tensor | None = None) -> EngineFrame:
        """Open the slots `rows` (long [R]; None: all) on R starts with seeds long [R]; other slots stay as they are.

        Returns all slots. Raises ValueError when shapes disagree.
        """
        rows = checked_rows(rows, self.num_slots, self.device)
        check_start(start, self.config.codec.size, len(seeds), len(rows), self.hands)
        start = complete_start(start, self.model, self.device)
        self.state.memory.clear(rows)
        fresh = self._empty(self.state.memory.empty_rows(len(rows)))
        fresh.seeds = seeds.to(self.device, torch.long)
        fresh.is_open[:] = True
        assert start.intrinsics is not None and start.depth is not None and start.pose is not None
        fresh.intrinsics = start.intrinsics
        for index in range(start.frames.shape[1]):
            rgbd = frame_to_rgbd(start.frames[:, index], encode_depth(start.depth[:, index]))
            hands = None if start.hands is None else start.hands.at(index)
            places = None if start.places is None else start.places[:, index]
            self.commit_real(fresh, rgbd, start.pose[:, index], hands, places)
        self.state.memory.adopt(fresh.memory, rows)
        self.state.write_rows(rows, fresh.tensors())
        return self._present(start.frames.shape[1])

    @torch.inference_mode()
    def step(
        self,
        controls: Tensor,
        active: Tensor | None = None,
        *,
        hands: Tensor | None = None,
        is_realised: bool = False,
    ) -> EngineFrame:
        """Advance every active slot by one frame; controls float [B, 6] in metres and radians, active bool [B].

        hands: actions float [B, 2, 13] in [-1, 1] of the left and the right hand (`HandScale`), clipped; None keeps
        them still. is_realised: the controls are motion that took place (recorded, say) and `hands` the states
        [B, 2, 16] in world axes that the hands reached, so nothing is asked of the heads.
        Raises ValueError for a wrong shape, a non-finite control, an active slot that was never opened, and hands that
        the engine does not have.
        """
        state = self.state
        active = torch.ones_like(state.is_open) if active is None else active.to(self.device)
        check_controls(controls, active, state.is_open)
        # Told on the host: who only turns, or uses hands, need not be asked whether walls are in the way.
        may_walk = controls.device.type != "cpu" or bool(controls[:, :3].any())
        controls = controls.to(self.device, torch.float32)
        if hands is not None:
            check_hands(hands, HAND_STATE_WIDTH if is_realised else HAND_ACTION_WIDTH, state.is_open, self.hands)
            hands = hands.to(self.device, torch.float32)
        if self.graphs is None:
            self._go(controls, active, hands, is_realised=is_realised, may_walk=may_walk)
        else:
            go, kind = partial(self._go, is_realised=is_realised, may_walk=may_walk), (hands is not None, is_realised)
            self.graphs.run(kind, go, (controls, active, hands))
        return self._present(self.calls_per_step)

    def _go(self, controls: Tensor, active: Tensor, hands: Tensor | None, *, is_realised: bool, may_walk: bool) -> None:
        """A step of checked inputs; on a GPU it must not wait for the device, or it could not be recorded."""
        state = self.state
        ahead = self.ahead(state)
        realised = self.realise(ahead, controls) if may_walk and not is_realised else controls
        moved = None
        if hands is not None:
            moved = self.place_hands(ahead, realised, hands) if is_realised else self.realise_hands(ahead, hands)
        self.advance(state, realised, active, hands=moved, commanded=controls)

    def close(self) -> None:
        """Free the slots' memory; the engine cannot be used afterwards."""
        self.state, self.graphs = self._empty(self._memory(0, None)), None
        self.num_slots = 0

    @torch.inference_mode()
    def snapshot(self, rows: Tensor | None = None) -> Snapshot:
        """All there is to know of the slots `rows` (long [R]; None: all), as a value of its own."""
        rows = checked_rows(rows, self.num_slots, self.device)
        slots = {name: tensor[rows] for name, tensor in self.state.tensors().items()}
        return Snapshot(self._kind, {**slots, **self.state.memory.save(rows)})

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot, rows: Tensor | None = None) -> EngineFrame:
        """Put the worlds of a snapshot into the slots `rows` (long [R]; None: all); other slots stay as they are.

        A snapshot of one world may go into any number of slots. The same actions then give the same frames, bit for
        bit on the same device and batch shape. Returns all slots. Raises ValueError for another number of rows, and
        for a snapshot that was taken with other weights, config or memory.
        """
        rows = checked_rows(rows, self.num_slots, self.device)
        snapshot.check_kind(self._kind)
        memory = self.state.memory
        likes = {**self.state.tensors(), **memory.save(rows[:0])}
        tensors = {name: tensor.to(self.device) for name, tensor in snapshot.fitted(likes, len(rows)).items()}
        memory.load(tensors, rows)
        self.state.write_rows(rows, tensors)
        return self._present(0)

    @torch.inference_mode()
    def fork(self, row: int, rows: Tensor) -> EngineFrame:
        """Make the slots `rows` (long [R]) copies of slot `row`, sharing its pages until their dreams part.

        Noise is a function of seed and step, so the copies differ in what is done in them only. Returns all slots.
        """
        checked_rows(torch.tensor([row]), self.num_slots, self.device)
        rows = checked_rows(rows, self.num_slots, self.device)
        self.state.memory.fork(row, rows)
        copies = {name: tensor[torch.full_like(rows, row)] for name, tensor in self.state.tensors().items()}
        self.state.write_rows(rows, copies)
        return self._present(0)

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
        if realised.device.type == "cpu" and not realised.any():
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

    def read(self, state: SlotState, view: View) -> PlacedHistory:
        """History as this step's model calls read it."""
        return self.generator.place(state.memory.read(view.recall.retrieved), view.told.present)

    def denoise(self, state: SlotState, view: View, history: PlacedHistory) -> tuple[Tensor, PlacedHistory]:
        """Refine this step's noise into the new frame's latent [B, P, C]; reads history, writes nothing.

        Only the last model call carries gradient. Returns the latent, and the history for `commit`, in which is what
        that call made of the pose video: to look at it again would take 2 % of a step and gain 0.1 dB (docs/LOG.md).
        """
        shape, levels = state.latent.shape[1:], self.levels
        noise = slot_noise(state.seeds, state.memory.count, shape.numel()).reshape(-1, *shape)
        positions = state.memory.next_positions()
        latent = noise[:, None]
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
        is_everyone = active.device.type == "cpu" and bool(active.all())
        for name, value in {**seen, **told, **hands}.items():
            old = getattr(state, name)
            value = value.to(old.dtype)
            if not is_everyone:
                value = torch.where(active.reshape(-1, *[1] * (value.ndim - 1)), value, old)
            setattr(state, name, value)

    def _empty(self, memory: WorldMemory) -> SlotState:
        """Slots that hold nothing, as many as `memory` has."""
        return SlotState.empty(self.config, memory)

    def _present(self, model_calls: int) -> EngineFrame:
        is_overwritten = self.graphs is not None and self.graphs.is_replaying
        return self.state.present(model_calls, self.model.heads, self.hands is not None, is_overwritten)

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

    @cached_property
    def _kind(self) -> dict[str, Any]:
        """What a snapshot shares with every engine that can go on with it."""
        return {
            "weights": weights_id(self.model),
            "config": self.config.to_dict(),
            "levels": self.state.memory.tables.levels._asdict(),
            "generator": type(self.generator).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "hands": self.hands,
        }

    def _memory(self, slots: int, budget: int | None) -> WorldMemory:
        codec, generator = self.config.codec, self.config.transformer
        shape = PageShape(generator.num_layers, codec.num_tokens, generator.num_heads, generator.head_width, codec.size)
        return WorldMemory.empty(self.config.memory, slots, shape, torch.zeros((), device=self.device), budget)


def _rays(pose: Tensor, previous: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Rays through the cells of a view after `previous`."""
    return frame_rays(pose, invert_pose(level_pose(previous)), intrinsics, size)
