"""WorldEngine: many dreamed worlds advanced together, each slot with its own pose, history, memory and noise.

How one frame comes about is its base's, FrameMaker; here slots are opened, stepped, copied and closed.
"""

import math
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from worldscape.checkpoint import weights_id
from worldscape.checks import check_controls, check_hands, check_hands_option, check_start, checked_rows
from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.hands import HAND_ACTION_WIDTH, HAND_STATE_WIDTH
from worldscape.conditioning.reproject import encode_depth
from worldscape.config import MemoryConfig
from worldscape.engine_frames import EngineFrame, Start
from worldscape.flow import sampling_levels
from worldscape.frame_maker import FrameMaker
from worldscape.graphs import StepGraphs
from worldscape.memory.pages import PageShape
from worldscape.memory.world_memory import WorldMemory
from worldscape.opening import complete_start
from worldscape.slots import SlotState
from worldscape.snapshot import Snapshot
from worldscape.world import WorldModel

SAMPLER_SHIFT = 3.0  # spends sampling steps where most is decided, near pure noise


class WorldEngine(FrameMaker):
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
        temperature: standard deviation of the noise that frames are made of. Weights learned with 1; above it dreams of
            one start differ more from each other and hold more things. Where memory shows the place it is at most 1.
        memory: policy and sizes of the slots' memory, for ablations; None takes the model's.
        memory_budget: bytes that the pages of all slots never exceed; a small one makes the pool smaller.
        use_graphs: on CUDA, steps are started as graphs (graphs.py) once two of their kind were made; of use_fast only.

    Raises ValueError for fewer than 1 slot, for a temperature that is no number of at least 0, for a budget in which
    sink and local window do not fit, for a teacher, and for hands with weights that know none.
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
        temperature: float = 1.0,
        memory: MemoryConfig | None = None,
        memory_budget: int | None = None,
        use_graphs: bool = True,
    ):
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}; an engine has at least 1 slot.")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; give a number of at least 0.")
        if model.config.transformer.is_causal is not self.is_causal:
            raise ValueError(
                "these weights are a teacher's, which sees a whole clip at once: step a causal student, or foresee the "
                "controls in a ClipEngine."
                if self.is_causal
                else "these weights are a causal student's: step them in a WorldEngine."
            )
        if hands is not None:
            check_hands_option(hands, model.config.transformer)
        calls = model.config.steps_per_frame if steps_per_frame is None else steps_per_frame
        if num_calls is not None and not 1 <= num_calls <= calls:
            raise ValueError(f"num_calls is {num_calls}; a frame takes from 1 to steps_per_frame {calls} of them.")
        super().__init__(
            model,
            config=model.config if memory is None else replace(model.config, memory=memory),
            device=torch.device(device),
            levels=sampling_levels(calls, SAMPLER_SHIFT)[: None if num_calls is None else num_calls + 1],
            hands=hands,
            precision=precision,
            use_fast=use_fast,
            temperature=temperature,
        )
        self.num_slots = num_slots
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
        # Who only turns, or uses hands, need not be asked whether walls are in the way.
        may_walk = check_controls(controls, active, state.is_open)
        controls = controls.to(self.device, torch.float32, copy=True)  # they become the slots' and the frame's own
        if hands is not None:
            check_hands(hands, HAND_STATE_WIDTH if is_realised else HAND_ACTION_WIDTH, state.is_open, self.hands)
            hands = hands.to(self.device, torch.float32)
        if self.graphs is None:
            self._go(controls, active, hands, is_realised=is_realised, may_walk=may_walk)
        else:
            go = partial(self._go, is_realised=is_realised, may_walk=may_walk)
            self.graphs.run((hands is not None, is_realised, may_walk), go, (controls, active, hands))
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

    def _empty(self, memory: WorldMemory) -> SlotState:
        """Slots that hold nothing, as many as `memory` has."""
        return SlotState.empty(self.config, memory)

    def _present(self, model_calls: int) -> EngineFrame:
        is_overwritten = self.graphs is not None and self.graphs.is_replaying
        return self.state.present(model_calls, self.model.heads, self.hands is not None, is_overwritten)

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
        sizes = (generator.num_layers, codec.num_tokens, generator.num_heads, generator.head_width, codec.size)
        shape = PageShape(*sizes, self.generator.keys_dtype, has_hands=self.hands is not None)
        return WorldMemory.empty(self.config.memory, slots, shape, torch.zeros((), device=self.device), budget)
