"""Which engine steps which weights, and in which way frames are sampled."""

from __future__ import annotations

from typing import Any

from worldscape.clip_engine import ClipEngine
from worldscape.engine import WorldEngine
from worldscape.rolling import RollingEngine
from worldscape.world import WorldModel

SAMPLERS = {"blockwise": WorldEngine, "rolling": RollingEngine}
"""blockwise: a frame is finished in the step that asks for it. rolling: one model call a step, frames come later."""


def open_engine(model: WorldModel, num_slots: int, *, sampler: str = "blockwise", **options: Any) -> WorldEngine:
    """The engine for these weights: of a teacher ClipEngine, of others the sampler's; `options` are its own.

    Raises ValueError for an unknown sampler, and as the engines do.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}.")
    kind = SAMPLERS[sampler] if model.config.transformer.is_causal else ClipEngine
    return kind(model, num_slots, **options)
