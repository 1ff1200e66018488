"""Rollouts of self-forcing: the student dreams on from openings, in an engine of its own, and what it saw is kept.

One model call of each frame of the window carries gradient, history none. What comes out are clips as the generator
saw them, for teacher and critic to judge.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.config import MemoryConfig
from worldscape.engine import WorldEngine
from worldscape.engine_frames import RecordedHands
from worldscape.engines import open_engine
from worldscape.scoring import Clip, compose_clip
from worldscape.slot_hands import SlotHands
from worldscape.transformer import FrameInputs
from worldscape.world import WorldModel


def roll_out(
    model: WorldModel, batch: dict[str, Tensor], window: int, sampler: str = "blockwise", *, is_causal: bool = True
) -> Clip:
    """Dream on from openings (DistillStage.batch) in an engine of their own -> clips as the generator saw them.

    Where gradients are on, the latents of the last `window` frames carry one model call's worth each. A rolling sampler
    takes up frames that are never shown behind the last one: they repeat its motion. is_causal False: clips for a
    bidirectional teacher, the window shown by memory as it stood before it.
    """
    controls, engine = batch["controls"].unbind(1), _engine(model, batch, sampler)
    state, active, latency = engine.state, torch.ones_like(engine.state.is_open), engine.action_latency
    frames, ahead = [], []
    hands = _hand_frames(batch)
    for index, (rgbd, pose) in enumerate(zip(batch["rgbd"].unbind(1), batch["pose"].unbind(1), strict=True)):
        with torch.no_grad():
            view = engine.commit_real(state, rgbd, pose, hands[index] if hands else None)
        frames.append(view.inputs(state.latent, engine.config.context_level))
    for step in range(len(controls) + latency):
        taken_up, shown = min(step, len(controls) - 1), step - latency
        if not is_causal and shown == len(controls) - window:
            ahead = _foresee(engine, batch, hands, shown)
        with torch.set_grad_enabled(shown >= len(controls) - window and torch.is_grad_enabled()):
            moved = _hands_after(engine, batch, hands, taken_up)
            latent, view = engine.advance(state, controls[taken_up], active, moved)
        if shown >= 0:
            frames.append(view.inputs(latent, engine.config.context_level))
    if not is_causal:
        frames[-window:] = [
            frame._replace(anchor=known.anchor, coverage=known.coverage)
            for frame, known in zip(frames[-window:], ahead, strict=True)
        ]
    return compose(frames, state.memory.tables.retrieved, engine.config.memory, is_causal=is_causal)


@torch.no_grad()
def _foresee(
    engine: WorldEngine, batch: dict[str, Tensor], hands: list[RecordedHands], first: int
) -> list[FrameInputs]:
    """What memory shows now of the frames to which controls number `first` and those after it will lead."""
    ahead, cameras, held = engine.state, [], []
    for step in range(first, batch["controls"].shape[1]):
        camera, _ = engine.move(ahead, batch["controls"][:, step])
        held.append(_hands_after(engine, batch, hands, step))
        cameras.append(camera)
        ahead = ahead.moved_on(camera, held[-1])
    return [view.inputs(engine.state.latent, 1.0) for view in engine.look_ahead(engine.state, cameras, held)]


def _hands_after(
    engine: WorldEngine, batch: dict[str, Tensor], hands: list[RecordedHands], step: int
) -> SlotHands | None:
    """Where controls number `step` find the recorded hands (_hand_frames); None where there are none."""
    place = batch["pose"].shape[1] + step
    return engine.state.hands.placed(*hands[place], batch["poses"][:, place]) if hands else None


def compose(frames: list[FrameInputs], retrieved: Tensor, memory: MemoryConfig, *, is_causal: bool = True) -> Clip:
    """The clip whose target is the last of these frames, all there are of B rollouts: the first num_sink, those that
    the target read as retrieved, long [B, R] (numbers, -1: none), and the last local_window + 1, or as many as there
    are. Retrieved frames come from before the window, so what is noised there is not seen clean. is_causal: as
    sight's.
    """
    sink, tail = frames[: memory.num_sink], frames[memory.num_sink :][-memory.local_window - 1 :]
    return compose_clip(sink, tail, frames, retrieved, is_causal=is_causal)


def leave_alone(clip: Clip, window: int, alone: Tensor) -> Clip:
    """The clip without memory, and its last `window` frames without sight of those before, where bool [B] `alone`."""
    frames, times = clip.frames, clip.frames.level.shape[1]
    earlier = torch.ones(len(alone), times, times, dtype=torch.bool, device=alone.device).tril()
    sees = earlier if clip.sees is None else clip.sees.clone()
    sees[alone, -window:, :-window] = False
    kept = ~alone[:, None, None]
    return Clip(frames._replace(anchor=frames.anchor * kept[..., None], coverage=frames.coverage * kept), sees)


def _hand_frames(batch: dict[str, Tensor]) -> list[RecordedHands]:
    """The hands of each frame, openings first; nothing in recordings without hands."""
    if "poses" not in batch:
        return []
    parts = (batch[f"hand_{name}"].unbind(1) for name in RecordedHands._fields)
    return [RecordedHands(*frame) for frame in zip(*parts, strict=True)]


def _engine(model: WorldModel, batch: dict[str, Tensor], sampler: str) -> WorldEngine:
    """An engine whose pool is no larger than the rollout can fill; fast where nothing needs a gradient."""
    memory, num_frames = model.config.memory, batch["pose"].shape[1] + batch["controls"].shape[1]
    least = max(memory.num_anchors, memory.num_sink + memory.num_retrieved)
    memory = replace(memory, num_keyframes=min(memory.num_keyframes, max(least, memory.num_sink + num_frames)))
    use_fast = not torch.is_grad_enabled()
    hands = None
    if "poses" in batch:
        hands = "both" if batch["hand_present"][..., 0].any() else "right"
    slots, device = len(batch["seeds"]), batch["rgbd"].device
    options = {
        "device": device,
        "num_calls": int(batch["num_calls"]),
        "use_fast": use_fast,
        "hands": hands,
        "memory": memory,
    }
    engine = open_engine(model, slots, sampler=sampler, **options)
    engine.rebuild = reproject_fast  # memory takes no gradient at all
    engine.state.seeds, engine.state.intrinsics = batch["seeds"], batch["intrinsics"]
    return engine
