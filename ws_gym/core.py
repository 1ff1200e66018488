"""The one place where worlds are stepped: engine, task, starts and time limit for B slots.

`WorldScapeEnv` is a view of a core with one slot, `WorldScapeVectorEnv` of one with many; neither has logic of its own
beyond Gymnasium's conventions. Which rows to reset, and when, is the caller's decision.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, Error, ResetNeeded
from torch import Tensor

from worldscape.checkpoint import load_aggregator
from worldscape.codec import rgbd_to_frame
from worldscape.conditioning.reproject import decode_depth
from worldscape.engine import WorldEngine
from worldscape.engine_frames import EngineFrame
from worldscape.memory.report import report_memory, report_trust
from worldscape.snapshot import Snapshot, as_snapshot
from worldscape.splats.gaussians import Gaussians
from worldscape.splats.reconstruct import aggregate
from worldscape.splats.unproject import unproject
from ws_gym.batch import Batch
from ws_gym.forks import FORKED, leave_the_parents_threads
from ws_gym.hand_actions import choose_action_mode
from ws_gym.infos import describe_hands, describe_motion, resize_depth, resize_frames
from ws_gym.maps import Place
from ws_gym.observations import OBSERVATIONS
from ws_gym.options import WorldOptions, open_worlds
from ws_gym.places import TRAIL_STEPS, describe_place
from ws_gym.starts import START_OPTIONS, choose_starts, fit_hands, lone_snapshot, open_starts, start_number
from ws_gym.tasks import TaskResult, make_task
from ws_gym.tasks.base import checked_result
from ws_gym.threads import alone


class WorldCore:
    """B worlds in one model. `needs_reset` bool [B] is True for rows that were never opened or whose episode ended.

    is_for_numpy: batches lie on the CPU, whatever the worlds' device is.
    """

    def __init__(self, options: WorldOptions, num_slots: int, *, is_for_numpy: bool = False) -> None:
        self.device = options.torch_device
        self.num_slots = num_slots
        self.is_for_numpy = is_for_numpy
        self.max_episode_steps = options.max_episode_steps
        self.max_drift, self.drift_patience = options.max_drift, options.drift_patience
        self._process = os.getpid()
        self.busy = threading.Lock()
        leave_the_parents_threads()
        self.task = make_task(options.task, options.task_options)
        self._options = options
        self.engine: WorldEngine | None = open_worlds(options, num_slots)
        self.actions = choose_action_mode(options, self.engine.config)
        side = self.engine.config.codec.size
        self.frame_size = (side, side)
        self.size = options.picture_size or self.frame_size
        self.observation = OBSERVATIONS[options.obs](self.engine.config, self.size, options.hands)
        self.starts = open_starts(options.starts, self.frame_size, options.weights)
        self.task.bind(num_slots, self.device)
        self.needs_reset = np.ones(num_slots, dtype=bool)
        self._elapsed = torch.zeros(num_slots, dtype=torch.long, device=self.device)
        self._adrift = torch.zeros_like(self._elapsed)  # steps for which drift has been above max_drift
        self._trail = torch.zeros(num_slots, TRAIL_STEPS, 2, device=self.device)  # (x, z), step t in place t mod length

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: they share the weights, and go on with a snapshot of the worlds."""
        rows = [] if self.engine is None else np.flatnonzero(self.engine.state.is_open.cpu().numpy()).tolist()
        made = (self._options, self.num_slots, self.is_for_numpy)
        worlds = self.snapshot(rows) if rows else None
        return {"made": made, "task": self.task, "is_closed": self.engine is None, "rows": rows, "worlds": worlds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options, num_slots, is_for_numpy = state["made"]
        WorldCore.__init__(self, options, num_slots, is_for_numpy=is_for_numpy)
        self.task = state["task"]
        if state["is_closed"]:
            self.close()
        elif state["rows"]:
            self.restore(state["worlds"], state["rows"])

    @property
    def action_latency(self) -> int:
        """Steps from an action to the frame that shows it, beyond the very next one."""
        return self._running_engine().action_latency

    @property
    def num_starts(self) -> int:
        """Starts that the reset option "start" can name: those that suit the task, in their order."""
        return len(self.starts.suiting(self.task.recorded_as))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(rows, columns, C) of a frame's tokens."""
        codec = self.observation.codec
        return codec.grid, codec.grid, codec.latent_channels

    @alone
    @torch.no_grad()
    def reset(self, rows: np.ndarray, rngs: Sequence[np.random.Generator], options: Mapping[str, Any]) -> Batch:
        """Open new episodes in `rows` bool [B], or a snapshot's; only these rows of the result mean anything.

        `rngs` has one generator per slot; a slot draws its start, its noise seed and its task's goal from its own.
        Raises ValueError for unknown or malformed `options`, ClosedEnvironmentError after close.
        """
        engine, numbers = self._running_engine(), np.flatnonzero(rows).tolist()
        if (snapshot := lone_snapshot(options)) is not None:
            return self._restore(engine, snapshot, torch.tensor(numbers, device=self.device))
        task_options = self._task_options(options)
        chosen = [rngs[number] for number in numbers]
        source = choose_starts(options, self.starts, self.frame_size)
        start = fit_hands(source.draw(chosen, start_number(options), self.task.recorded_as), self._options.hands)
        seeds = torch.tensor([int(rng.integers(2**62)) for rng in chosen])
        self.needs_reset = self.needs_reset | rows  # until all is done: what fails from here on leaves half a world
        frame = engine.open(start, seeds, torch.tensor(numbers))
        mask = torch.as_tensor(rows, device=self.device)
        self._elapsed = self._elapsed.masked_fill(mask, 0)
        self._adrift = self._adrift.masked_fill(mask, 0)
        self._leave_trail(frame)
        self.task.reset(frame, mask, chosen, task_options)
        self.needs_reset = self.needs_reset & ~rows
        return self._describe(frame)

    @alone
    @torch.no_grad()
    def step(self, actions: Any, active: np.ndarray) -> Batch:
        """Step the rows in `active` bool [B]; only these rows of the result mean anything.

        Raises ValueError for malformed actions, ResetNeeded for a row that has no episode, ClosedEnvironmentError.
        """
        engine = self._running_engine()
        # A list is searched in a fraction of the time that a small array or tensor takes.
        if True in self.needs_reset.tolist() and (self.needs_reset & active).any():
            rows = np.flatnonzero(self.needs_reset & active).tolist()
            raise ResetNeeded(f"slots {rows} have no running episode; reset them before stepping.")
        controls = torch.from_numpy(self.actions.to_controls(actions, active)).to(self.device)
        hands = self.actions.to_hands(actions, active, engine.ahead(engine.state).hand_command)
        mask = torch.from_numpy(active).to(self.device)
        frame = engine.step(controls, mask, hands=hands)
        self._elapsed = self._elapsed + mask
        self._leave_trail(frame)
        result = checked_result(self.task.step(frame, self._elapsed, mask), self.num_slots)
        batch = self._batch(frame, result, self._truncate(engine, mask))
        flags = torch.stack([batch.terminated | batch.truncated, ~batch.reward.isfinite()])
        ended, is_wrong = flags.cpu().numpy() & active  # the first wait for a GPU, so the last thing done
        if ended.any():
            self.needs_reset = self.needs_reset | ended
        if is_wrong.any():
            rows, rewards = np.flatnonzero(is_wrong).tolist(), batch.reward.cpu().numpy()[is_wrong].tolist()
            raise ValueError(f"the task rewarded slots {rows} with {rewards}; rewards are finite numbers.")
        return batch

    def _truncate(self, engine: WorldEngine, mask: Tensor) -> Tensor:
        """Which slots have reached a limit, of steps or of drift: bool [B]."""
        truncated = torch.zeros_like(mask)
        if self.max_episode_steps is not None:
            truncated = self._elapsed >= self.max_episode_steps
        if self.max_drift is not None:
            is_adrift = report_trust(engine.state.memory.tables).drift > self.max_drift
            self._adrift = torch.where(mask, (self._adrift + 1) * is_adrift, self._adrift)
            truncated = truncated | (self._adrift >= self.drift_patience)
        return truncated

    def _leave_trail(self, frame: EngineFrame) -> None:
        """Note where the slots stand; those that stood still have noted the same before."""
        place = (self._elapsed % TRAIL_STEPS)[:, None, None].expand(-1, 1, 2)
        self._trail.scatter_(1, place, frame.camera[:, None, 0:3:2])

    @alone
    def snapshot(self, rows: Any = None) -> Snapshot:
        """The worlds of slots `rows` (numbers; None: all) with their task's state, as a value of its own.

        Raises ValueError for rows that are no slots, ResetNeeded for one that was never opened.
        """
        engine, numbers = self._running_engine(), self._numbers(rows)
        self._check_open(engine, numbers)
        beside = {name: value[numbers].clone() for name, value in self._own_state().items()}
        return engine.snapshot(numbers).with_beside(beside)

    @alone
    @torch.no_grad()
    def restore(self, snapshot: Snapshot | bytes, rows: Any = None) -> Batch:
        """Go on with the worlds of a snapshot in slots `rows` (numbers; None: all); one world may fill any number.

        Only these rows of the result mean anything. Raises ValueError for what is no snapshot, another number of
        worlds, and a snapshot of other weights, config, memory or task.
        """
        return self._restore(self._running_engine(), as_snapshot(snapshot), self._numbers(rows))

    @alone
    @torch.no_grad()
    def fork(self, row: int, rows: Any) -> Batch:
        """Make slots `rows` copies of slot `row`; they share its memory until their dreams part."""
        engine, source, numbers = self._running_engine(), self._numbers([row]), self._numbers(rows)
        self._check_open(engine, source)
        own = {name: value[source].expand(len(numbers), *value.shape[1:]) for name, value in self._own_state().items()}
        return self._go_on(engine.fork(row, numbers), numbers, {name: value.clone() for name, value in own.items()})

    def _own_state(self) -> dict[str, Tensor]:
        """What is known of the slots outside the engine, [B, ...] by name."""
        name = type(self.task).__name__
        ended = torch.as_tensor(self.needs_reset, device=self.device)
        task = {f"{name}.{key}": value for key, value in self.task.state().items()}
        clock = {"elapsed": self._elapsed, "adrift": self._adrift, "has_ended": ended}
        return {**clock, "trail": self._trail, **task}

    def _restore(self, engine: WorldEngine, snapshot: Snapshot, numbers: Tensor) -> Batch:
        own = snapshot.fitted_beside(self._own_state(), len(numbers))
        return self._go_on(engine.restore(snapshot, numbers), numbers, own)

    def _go_on(self, frame: EngineFrame, numbers: Tensor, own: dict[str, Tensor]) -> Batch:
        for name, kept in (("elapsed", self._elapsed), ("adrift", self._adrift), ("trail", self._trail)):
            kept[numbers] = own[name].to(self.device)
        self.needs_reset[numbers.cpu().numpy()] = own["has_ended"].cpu().numpy()
        prefix = f"{type(self.task).__name__}."
        self.task.load(numbers, {name.removeprefix(prefix): own[name] for name in own if name.startswith(prefix)})
        return self._describe(frame)

    def _numbers(self, rows: Any) -> Tensor:
        """Slot numbers long [R]. Raises ValueError unless they are different slots of this core."""
        if rows is None:
            return torch.arange(self.num_slots, device=self.device)
        numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        is_fine = numbers.ndim == 1 and numbers.size > 0 and np.issubdtype(numbers.dtype, np.integer)
        known = set(range(self.num_slots)).intersection(numbers.tolist()) if is_fine else set()
        if not known or len(known) < numbers.size:
            raise ValueError(f"rows {rows!r} are no choice of slots; give different numbers below {self.num_slots}.")
        return torch.as_tensor(numbers, dtype=torch.long, device=self.device)

    def _check_open(self, engine: WorldEngine, numbers: Tensor) -> None:
        closed = numbers[~engine.state.is_open[numbers]].tolist()
        if closed:
            raise ResetNeeded(f"slots {closed} hold no world yet; reset them first.")

    @alone
    @torch.inference_mode()
    def pictures(self) -> np.ndarray:
        """What all slots show now, uint8 [B, h, w, 3], whatever is observed of it.

        Raises ResetNeeded when none was opened yet, ClosedEnvironmentError after close.
        """
        return resize_frames(rgbd_to_frame(self._shown()), self.size).cpu().numpy()

    @alone
    @torch.inference_mode()
    def depths(self) -> np.ndarray:
        """How far what all slots show is, float32 [B, h, w] in metres along the view axis. Raises as `pictures`."""
        return resize_depth(decode_depth(self._shown()[:, 3]), self.size).cpu().numpy()

    @alone
    @torch.inference_mode()
    def reconstruct(self, slot: int) -> Gaussians:
        """The place that `slot` remembers, as Gaussians of one scene (B = 1) in world axes, on the core's device.

        By the aggregator saved with the weights; without one, the remembered pictures are unprojected by their depth.
        Raises ResetNeeded for a slot that was never opened, ClosedEnvironmentError after close.
        """
        engine = self._running_engine()
        if not bool(engine.state.is_open[slot]):
            raise ResetNeeded(f"slot {slot} holds no world to reconstruct; reset it first.")
        rgbd, poses, valid, _ = (part[slot] for part in engine.state.memory.remembered())
        frames = (rgbd[valid][None], poses[valid][None], engine.state.intrinsics[slot][None])
        aggregator = load_aggregator(os.fspath(self._options.weights), self.device)
        if aggregator is None:
            return unproject(*frames)
        return aggregate(aggregator, engine.model.codec, engine.model.transformer, *frames, is_clip=False)

    @alone
    @torch.inference_mode()
    def place(self, slot: int) -> Place:
        """What `slot` remembers and where it has been, to be drawn as a map.

        Raises ValueError for a slot that there is not, ResetNeeded for one that was never opened.
        """
        engine, number = self._running_engine(), self._numbers([slot])
        self._check_open(engine, number)
        return describe_place(engine.state, self._trail[slot], int(self._elapsed[slot]), slot, engine.config.body)

    @alone
    def reopen(self) -> None:
        """Make the engine of a closed core again; nothing to do for an open one."""
        if self.engine is None:
            self.engine = open_worlds(self._options, self.num_slots)
            self.needs_reset[:] = True

    @alone
    def close(self) -> None:
        """Free the engine's memory; may be called twice."""
        if self.engine is None:
            return
        self.engine.close()
        self.engine = None
        if self.device.type == "cuda" and os.getpid() == self._process:
            torch.cuda.empty_cache()

    def _shown(self) -> Tensor:
        """RGB-D [B, 4, H, W] that all slots show now."""
        state = self._running_engine().state
        if not state.is_open.any():
            raise ResetNeeded("there is nothing to render yet; call reset() first.")
        return state.rgbd

    def _describe(self, frame: EngineFrame) -> Batch:
        """What the slots show before anything is done in them."""
        result = checked_result(self.task.describe(frame), self.num_slots)
        none = torch.zeros_like(result.terminated)
        result = replace(result, reward=torch.zeros_like(result.reward), terminated=none)
        return self._batch(frame, result, none)

    def _running_engine(self) -> WorldEngine:
        if self.engine is None:
            raise ClosedEnvironmentError("the environment was closed; reset it to open it again.")
        leave_the_parents_threads()
        if self.device.type == "cuda" and os.getpid() != self._process:
            raise Error(FORKED)
        return self.engine

    def _task_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = START_OPTIONS | self.task.reset_options
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"reset options {unknown} are unknown; with this task choose from {sorted(known)}.")
        return {name: value for name, value in options.items() if name in self.task.reset_options}

    def _batch(self, frame: EngineFrame, result: TaskResult, truncated: Tensor) -> Batch:
        state, info = self._running_engine().state, describe_motion(frame)
        if frame.hands is not None:
            info |= describe_hands(frame.hands, frame.pose, state.intrinsics, self.size)
        info |= self.observation.describe(frame)
        info["success"] = result.success
        info["model_calls"] = torch.full_like(self._elapsed, frame.model_calls)
        info["action_latency"] = torch.full_like(self._elapsed, self.action_latency)
        tables = state.memory.tables
        info["memory"], info["trust"] = report_memory(tables)._asdict(), report_trust(tables)._asdict()
        if not result.terms.keys().isdisjoint(info):
            taken = sorted(info.keys() & result.terms.keys())
            raise ValueError(f"the task's info terms {taken} are names that the environment uses itself; rename them.")
        batch = Batch(
            observation=self.observation.observe(frame),
            reward=result.reward.float(),
            terminated=result.terminated,
            truncated=truncated,
            info={**info, **result.terms},
        )
        return batch.on_cpu() if self.is_for_numpy else batch
