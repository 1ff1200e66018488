"""What a generator makes of frames whose past is known: one new frame after clean history, or the end of a whole clip.

Both see what the engine would show them: clean frames at the level at which the engine commits, and times that start
at 0. `sees` bool [B, T, T] says which frame of the whole clip sees which (sight.py); None: each sees all before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.flow import follow_flow
from worldscape.sight import present, sight
from worldscape.transformer import FrameInputs, History, PlacedHistory, Prediction, WorldTransformer


class Clip(NamedTuple):
    """Sink, retrieved frames, local window, targets, as the generator is told of them; and which of them sees which,
    bool [B, T, T] (sight.py; None where nothing is ever retrieved).
    """

    frames: FrameInputs
    sees: Tensor | None


def clean_inputs(clip: dict[str, Tensor], context_level: float) -> FrameInputs:
    """A batch of the world stage's clips (WorldStage.gather) as finished frames of history."""
    level = torch.full_like(clip["latent"][:, :, 0, 0], context_level)
    return FrameInputs(clip["latent"], level, clip["rays"], clip["guess"], clip["coverage"], told_hands(clip))


def told_hands(clip: dict[str, Tensor]) -> Tensor | None:
    """The pose video of a batch of clips, if it has one: uint8, as it travels to the device, -> [0, 1]."""
    return clip["hands"].float() / 255.0 if "hands" in clip else None


def cut(frames: FrameInputs, times: slice) -> FrameInputs:
    """Some of the T frames."""
    return _each(frames, lambda part: part[:, times])


def pick(frames: FrameInputs, places: Tensor) -> FrameInputs:
    """Frames at places long [B, R] of each row."""
    rows = torch.arange(len(places), device=places.device)[:, None]
    return _each(frames, lambda part: part[rows, places])


def join(frames: list[FrameInputs]) -> FrameInputs:
    """Frames one after another; all with a pose video, or none."""
    columns = zip(*(frame[:5] for frame in frames), strict=True)
    latent, level, rays, anchor, coverage = (torch.cat(parts, 1) for parts in columns)
    hands = [frame.hands for frame in frames if frame.hands is not None]
    return FrameInputs(latent, level, rays, anchor, coverage, torch.cat(hands, 1) if hands else None)


def compose_clip(
    sink: list[FrameInputs],
    tail: list[FrameInputs],
    known: list[FrameInputs],
    retrieved: Tensor,
    *,
    is_causal: bool = True,
) -> Clip:
    """The clip of these frames, and between them those of the `known` ones that were retrieved, long [B, R] (numbers,
    -1: none). is_causal: as sight's.
    """
    if retrieved.shape[1] == 0:
        return Clip(join([*sink, *tail]), None)
    chosen = pick(join(known), retrieved.clamp_min(0))
    return Clip(join([*sink, chosen, *tail]), sight(retrieved >= 0, len(sink), len(tail), is_causal))


def _each(frames: FrameInputs, change: Callable[[Tensor], Tensor]) -> FrameInputs:
    latent, level, rays, anchor, coverage = (change(part) for part in frames[:5])
    return FrameInputs(latent, level, rays, anchor, coverage, None if frames.hands is None else change(frames.hands))


def read_history(transformer: WorldTransformer, frames: FrameInputs, sees: Tensor | None = None) -> PlacedHistory:
    """Finished frames [B, T - 1, ...] as the history of the one that follows and ends the clip."""
    positions = _positions(frames)
    valid = torch.ones_like(positions, dtype=torch.bool) if sees is None else present(sees)[:, :-1]
    layers = transformer(frames, positions, sees=None if sees is None else sees[:, :-1, :-1]).layers
    keys, values = torch.stack([new.keys for new in layers]), torch.stack([new.values for new in layers])
    return transformer.place(History(keys, values, positions, valid))


def estimate_next(
    transformer: WorldTransformer, frame: FrameInputs, latent: Tensor, level: Tensor, history: PlacedHistory
) -> Tensor:
    """The clean latent behind `latent` [B, 1, P, C] at level [B, 1] of the frame after the history, float32."""
    positions = torch.full_like(level, history.valid.shape[1], dtype=torch.long)
    return transformer(frame._replace(latent=latent, level=level), positions, history).latent.float()


def estimate_end(
    transformer: WorldTransformer, clip: FrameInputs, noised: Tensor, level: Tensor, sees: Tensor | None = None
) -> Tensor:
    """The clean latents behind a clip's last W frames `noised` [B, W, P, C], all at level [B], float32.

    The frames before them are history, as clean as the clip has them.
    """
    return predict_end(transformer, Clip(clip, sees), noised, level).latent[:, -noised.shape[1] :].float()


def predict_end(transformer: WorldTransformer, clip: Clip, noised: Tensor, level: Tensor) -> Prediction:
    """What the generator makes of a whole clip whose last W frames are `noised`; as estimate_end."""
    frames, window = clip.frames, noised.shape[1]
    levels = torch.cat([frames.level[:, :-window], level[:, None].expand(-1, window)], 1)
    frames = frames._replace(latent=torch.cat([frames.latent[:, :-window], noised], 1), level=levels)
    return transformer(frames, _positions(frames), sees=clip.sees)


class Sampled(NamedTuple):
    """A clip's new frames: latent [B, N, P, C] clean, and the features [B, N, P, D] of the last model call."""

    latent: Tensor
    features: Tensor


def sample_clip(transformer: WorldTransformer, clip: Clip, noise: Tensor, levels: list[float]) -> Sampled:
    """Refine a clip's last N frames together, from noise [B, N, P, C] down the sampler's levels, from 1 to 0.

    The frames before them are looked at as they are.
    """
    num_new, last = noise.shape[1], []

    def estimate(latent: Tensor, level: float) -> Tensor:
        found = predict_end(transformer, clip, latent, torch.full_like(clip.frames.level[:, 0], level))
        last[:] = [found.features[:, -num_new:]]
        return found.latent[:, -num_new:].float()

    return Sampled(follow_flow(estimate, noise, levels)[-1], *last)


def _positions(frames: FrameInputs) -> Tensor:
    clips, times = frames.level.shape
    return torch.arange(times, device=frames.level.device).expand(clips, -1)
