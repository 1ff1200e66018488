"""The training loop that every stage shares: one visible page.

A Stage says what is trained, on which batch, with which loss; `train` does the rest. Batches and random numbers are
pure functions of (seed, step, rank), so a run stopped anywhere and resumed ends with the same weights, bit for bit.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from worldscape.checkpoint import save_world
from worldscape.locked import locked
from worldscape.train.config import TrainConfig
from worldscape.train.log import RunLog
from worldscape.train.optim import build_optimizers, ema_decay_at, lease_spent, lr_at, set_lr, update_ema
from worldscape.train.run_state import RunState, identify, list_checkpoints, resume, save_checkpoint
from worldscape.train.runtime import Place, StopSignals, occupy, step_seed

if TYPE_CHECKING:
    from worldscape.world import WorldModel

Provenance = Callable[[str, TrainConfig, RunState], dict[str, Any]]
"""Name of a stage, its settings and where it is -> what is told of the weights (`describe`)."""


class Stage(Protocol):
    """One kind of training. Its methods may be called in any order and any number of times."""

    name: str

    def trainable(self, model: WorldModel) -> nn.Module:
        """What is optimised and averaged: a submodule of `model`, or several modules in one; all else is frozen."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """CPU tensors of this rank's share of a step: a pure function of its arguments (and the stage's own seed)."""
        ...

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars; "loss" (a mean over the batch) is minimised, the others are logged; the same keys at every step."""
        ...

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """Pictures uint8 [h,w,3] and videos uint8 [T,h,w,3] made with the averaged model, for OUT/samples."""
        ...


def train(
    stage: Stage,
    model: WorldModel,
    config: TrainConfig,
    out: str | Path,
    provenance: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    origin: dict[str, str | None] | None = None,
) -> WorldModel:
    """Train `stage.trainable(model)` in place, going on where `out` stopped; returns the averaged model.

    The result is in eval mode, without gradients; `out/weights` holds it too. Its config.json holds `provenance`, of
    what the model began with, and beside it this run's, with `facts` about it. origin: checksums of what it began with
    (RunIdentity), with which alone it may go on.
    Ends after config.steps or config.lease. Stops early (resumable) after config.minutes and at SIGTERM or SIGINT;
    out/status.json says why it ended.
    Raises ValueError when `out` holds another run or another process trains there, FloatingPointError when the loss or
    a gradient is not finite.
    """
    with occupy(config) as place:
        told = partial(describe, provenance or {}, facts or {})
        with locked(Path(out)) if place.is_main else nullcontext():
            return train_at(stage, model, config, Path(out), told, origin or {}, place)


def train_at(
    stage: Stage,
    model: WorldModel,
    config: TrainConfig,
    out: Path,
    told: Provenance,
    origin: dict[str, str | None],
    place: Place,
) -> WorldModel:
    """`train` on the ranks that are there; a function of its own, so that nothing of it outlives their group."""
    with StopSignals() as signals:
        model.to(place.device).requires_grad_(False).eval()
        module = stage.trainable(model).to(place.device).requires_grad_(True).train()
        identity = identify(stage.name, model, module, config, origin, place.world_size)
        step_loss = wrap(StepLoss(stage, model, module), place)
        average = copy.deepcopy(model).requires_grad_(False).eval()
        state = RunState(module, stage.trainable(average), build_optimizers(module, config))
        notices = resume(out / "checkpoints", state, identity)
        if config.compile:
            compile_parts(module)

        with RunLog(out, stage.name, config, state.step, place.is_main) as log:
            for notice in notices:
                log.say(notice)
            started, seconds_before, last_log = time.perf_counter(), state.seconds, state.step
            why = "finished"
            batches = draw_batches(stage, config, state.step, place)
            is_end = is_over(config, state, place)
            while not is_end:
                batch = {name: tensor.to(place.device, non_blocking=True) for name, tensor in next(batches).items()}
                seed = step_seed(config.seed, state.step, place.rank)
                torch.manual_seed(seed)  # dropout and the like; the caller's state comes back at the end
                generator = torch.Generator(place.device).manual_seed(seed)
                with torch.autocast(place.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    parts = step_loss(batch, generator)
                parts["loss"].backward()
                grad_norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip or math.inf)
                check_finite(parts["loss"], grad_norm, state.step + 1, out)

                lr = lr_at(config, state.step, shared_seconds(config, state, place))
                set_lr(state.optimizers, lr)
                for optimizer in state.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                update_ema(state.average, module, ema_decay_at(config, state.step))
                state.step += 1
                state.seconds = seconds_before + time.perf_counter() - started

                log.add({**{name: part.detach() for name, part in parts.items()}, "grad_norm": grad_norm})
                is_over_budget = bool(config.minutes) and time.perf_counter() - started > 60 * config.minutes
                if place.any_rank(signals.name is not None or is_over_budget):
                    why = signals.name or "minutes"
                is_end = why != "finished" or is_over(config, state, place)
                if is_end or state.step % config.log_every == 0:
                    log.write(state.step, place.mean(log.flush()), lr, state.step - last_log)
                    last_log = state.step
                with log.clock_stopped():
                    if place.is_main and (is_end or state.step % config.checkpoint_every == 0):
                        save_checkpoint(out / "checkpoints", state, identity)
                        save_world(average, out / "weights", told(stage.name, config, state))
                    if place.is_main and is_sample_step(state.step, config):
                        with torch.no_grad():
                            log.write_samples(stage.samples(average, state.step), state.step)
            log.end(state.step, why)
    return average


def compile_parts(module: nn.Module) -> None:
    """torch.compile what stages call, in place: a module that has a forward; of one that has none, its parts."""
    if type(module).forward is nn.Module.forward or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for part in module.children():
            compile_parts(part)
    else:
        module.compile()


class StepBatches(Dataset[dict[str, Tensor]]):
    """What a rank draws at each step, by the number of the step."""

    def __init__(self, stage: Stage, place: Place) -> None:
        self.stage, self.rank, self.world_size = stage, place.rank, place.world_size

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.stage.batch(step, self.rank, self.world_size)


def draw_batches(stage: Stage, config: TrainConfig, first: int, place: Place) -> Iterator[dict[str, Tensor]]:
    """The batches of the steps from `first` on, drawn ahead by config.loaders processes."""
    is_ahead = config.loaders > 0
    loader = DataLoader(
        StepBatches(stage, place),
        batch_size=None,
        sampler=range(first, config.steps),
        num_workers=config.loaders,
        # Forked, so that a stage's frames are shared; batches are CPU tensors, so no process touches the GPU.
        multiprocessing_context="fork" if is_ahead else None,
        prefetch_factor=4 if is_ahead else None,
        pin_memory=is_ahead and place.device.type == "cuda",
    )
    return iter(loader)


class StepLoss(nn.Module):
    """Makes the loss of a stage the forward of a module, which is what DistributedDataParallel wants.

    module: what is trained; it may hold more than parts of the model.
    """

    def __init__(self, stage: Stage, model: WorldModel, module: nn.Module) -> None:
        super().__init__()
        self.stage, self.model, self.module = stage, model, module

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return self.stage.loss(self.model, batch, generator)


def wrap(step_loss: StepLoss, place: Place) -> nn.Module:
    """Average gradients over ranks; rank 0's weights go to all. A single process needs nothing."""
    if place.world_size == 1:
        return step_loss
    # A step may leave a part out (a dropped condition), so unused parameters are no error.
    return DistributedDataParallel(step_loss, find_unused_parameters=True)


def is_over(config: TrainConfig, state: RunState, place: Place) -> bool:
    """Whether the run has taken all its steps, or used up its lease."""
    return state.step >= config.steps or lease_spent(config, shared_seconds(config, state, place)) >= 1.0


def shared_seconds(config: TrainConfig, state: RunState, place: Place) -> float:
    """Seconds of training so far, the same on all ranks; 0 where nothing depends on them."""
    if not config.lease:
        return 0.0
    return float(place.mean({"seconds": torch.tensor(state.seconds, device=place.device)})["seconds"])


def is_sample_step(step: int, config: TrainConfig) -> bool:
    """Every sample_every steps, and at the end."""
    return config.sample_every > 0 and (step % config.sample_every == 0 or step == config.steps)


def check_finite(loss: Tensor, grad_norm: Tensor, step: int, out: Path) -> None:
    """Raises FloatingPointError, naming the step and the last good checkpoint, before the weights are touched."""
    if math.isfinite(float(loss.detach() + grad_norm)):
        return
    checkpoints = list_checkpoints(out / "checkpoints")
    remedy = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
    raise FloatingPointError(
        f"step {step}: loss {float(loss.detach())}, gradient norm {float(grad_norm)}: training stopped; {remedy}. "
        "Try a lower lr, a longer warmup or precision=fp32"
    )


def describe(
    before: dict[str, Any], facts: dict[str, Any], stage_name: str, config: TrainConfig, state: RunState
) -> dict[str, Any]:
    """Provenance of the weights: what was known `before` of those that the run began with, and the run itself under
    its stage's name; where that stage was trained before, under STAGE-2, and so on."""
    names = itertools.chain([stage_name], (f"{stage_name}-{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in before)
    run = {**facts, "steps": state.step, "seconds": round(state.seconds), "config": config.to_dict()}
    return json.loads(json.dumps({**before, name: run}))
