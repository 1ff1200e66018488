"""Stage `ode`: the student learns to jump to where its teacher's flow would carry the same noise in many calls.

The answer to pure noise then depends on the noise: a sample, no longer the mean of all rooms. The teacher is the frozen
causal generator (a bidirectional one would send the same noise to several ends); its flows are followed once, because
that costs more than the training on them, and lie beside the dataset.

Cost: `flows` times (a clip's history, read once, and `teacher_calls` frames) in advance; a step then reads the
history of batch_size clips without gradient and learns on one frame of each, less than half a step of stage `world`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from worldscape.checkpoint import load_world
from worldscape.codec import normalise_tokens
from worldscape.config import WorldConfig
from worldscape.data.clips import Datasets
from worldscape.engine import SAMPLER_SHIFT
from worldscape.flow import follow_flow, sampling_levels
from worldscape.noise import slot_noise
from worldscape.progress import Progress
from worldscape.scoring import clean_inputs, cut, estimate_next, read_history
from worldscape.train.cache import cached, digest
from worldscape.train.config import DEBUG, TrainConfig
from worldscape.train.rollouts import of_one_kind
from worldscape.train.runtime import choose_device, rows_at_once
from worldscape.train.world import WorldStage, WorldTrainConfig, mean_where
from worldscape.train.world import build_stage as build_world_stage
from worldscape.world import WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeTrainConfig(WorldTrainConfig):
    """WorldTrainConfig of the ode stage.

    flows: clips on which the teacher's flow is followed, each from its own noise, in teacher_calls steps.
    student_calls: the student learns to answer at the levels of a sampler of so many calls (so of 1, 2 and 4).
    noise_share: share of the rows that start from pure noise; the others at any of those levels.
    """

    flows: int = 8192
    teacher_calls: int = 8
    student_calls: int = 4
    noise_share: float = 0.6

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.flows < 1 or self.student_calls < 1 or self.teacher_calls % self.student_calls:
            raise ValueError(
                f"flows {self.flows} and student_calls {self.student_calls} must be at least 1, and student_calls a "
                f"divisor of teacher_calls {self.teacher_calls}"
            )
        if not 0 <= self.noise_share <= 1:
            raise ValueError(f"noise_share is {self.noise_share}; it is a share of the rows in [0, 1]")


DEFAULTS: dict[str, TrainConfig] = {
    "debug": OdeTrainConfig(**DEBUG, batch_size=4, dream_frames=16, flows=8, teacher_calls=4, student_calls=2),
    "nano": OdeTrainConfig(
        steps=1500, batch_size=64, lr=5e-4, warmup=50, ema=0.995, optimizer="muon", precision="bf16", threads=2
    ),
    "small": OdeTrainConfig(
        steps=3000, batch_size=128, lr=3e-4, warmup=100, optimizer="muon", precision="bf16", flows=65536
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeStage:
    """Regression onto the ends of the teacher's flows.

    flows: dreams long [E] and places long [E, T] (which clips), state float16 [E, S + 1, P, C] (the last frame's latent
    from noise to the end, at the levels of a sampler of S calls).
    """

    clips: WorldStage
    config: OdeTrainConfig
    flows: dict[str, Tensor]
    name: str = "ode"

    def trainable(self, model: WorldModel) -> nn.Module:
        """The transformer."""
        return model.transformer

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Clips (WorldStage.gather), a state of their last frame's flow [B, 1, P, C], its level [B, 1], and the end."""
        rng, size = np.random.default_rng([self.config.seed, step, rank, 9]), self.config.batch_size
        rows = torch.from_numpy(rng.choice(self._of_one_kind(rng), size=size))
        calls = rng.integers(self.config.student_calls, size=size)
        calls = torch.from_numpy(np.where(rng.random(size) < self.config.noise_share, 0, calls))
        levels = torch.tensor(sampling_levels(self.config.student_calls, SAMPLER_SHIFT))
        clips = self.clips.gather(self.flows["dreams"][rows].numpy(), self.flows["places"][rows].numpy())
        return clips | {
            "state": self.flows["state"][rows, calls].float()[:, None],
            "level": levels[calls][:, None],
            "end": normalise_tokens(self.flows["state"][rows, -1].float()),
        }

    def _of_one_kind(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of flows of one kind, with hands or without."""
        return of_one_kind(self.clips.prepared.has_hands[self.flows["dreams"].numpy()], rng)

    def loss(self, model: WorldModel, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Squared distance from the student's answer to the end of the flow; no gradient through history."""
        clip = clean_inputs(batch, model.config.context_level)
        with torch.no_grad():
            history = read_history(model.transformer, cut(clip, slice(0, -1)), batch.get("sees"))
        last = cut(clip, slice(-1, None))
        answer = estimate_next(model.transformer, last, batch["state"], batch["level"], history)[:, 0]
        error = (answer - batch["end"]).square().mean(2)
        is_noise = (batch["level"] == 1.0).expand_as(error)
        is_novel = is_noise & (last.coverage[:, 0] < 0.1)
        return {
            "loss": error.mean(),
            "from_noise": mean_where(error, is_noise).detach(),
            "novel": mean_where(error, is_novel).detach(),
            "novel_energy": mean_where(answer.square().mean(2), is_novel).detach(),
        }

    def samples(self, model: WorldModel, step: int) -> dict[str, np.ndarray]:
        """As the world stage's."""
        return self.clips.samples(model, step)


def take_flows(teacher: WorldModel, clips: WorldStage, config: OdeTrainConfig, dataset: Datasets) -> dict[str, Tensor]:
    """The teacher's flows on clips drawn as the world stage draws them (OdeStage.flows). Made once for what memory
    shows of these clips, which may be dreams of the model's own."""
    drawn = {name: asdict(config)[name] for name in ("flows", "teacher_calls", "student_calls", "precision")}
    clips_drawn = {name: asdict(config)[name] for name in ("dream_frames", "novelty_share", "seed", "dreams_seed")}
    settings = [clips.store.recording, "flows", teacher.config.to_dict(), drawn, clips_drawn]
    settings.append(digest(clips.prepared.guess))
    modules = [teacher.codec, teacher.transformer]
    return cached(dataset, settings, modules, lambda: _follow_all(teacher, clips, config))


def _follow_all(teacher: WorldModel, clips: WorldStage, config: OdeTrainConfig) -> dict[str, Tensor]:
    dreams, places = clips.draw_clips(np.random.default_rng([config.seed, 10]), config.flows)
    by_kind = np.argsort(clips.prepared.has_hands[dreams], kind="stable")  # clips without hands cost half
    dreams, places, states = dreams[by_kind], places[by_kind], []
    device = next(teacher.parameters()).device
    with Progress("flows followed", total=config.flows) as progress:
        for rows in torch.arange(config.flows).split(rows_at_once(device)):
            clip = clips.gather(dreams[rows.numpy()], places[rows.numpy()])
            states.append(_follow(teacher, clip, rows, config))
            progress.update(len(rows))
    return {"dreams": torch.from_numpy(dreams), "places": torch.from_numpy(places), "state": torch.cat(states)}


@torch.no_grad()
def _follow(teacher: WorldModel, clip: dict[str, Tensor], rows: Tensor, config: OdeTrainConfig) -> Tensor:
    """Flows of the last frames of clips [B, T]; flow number `rows` [B] begins at noise that is its own."""
    device = next(teacher.parameters()).device
    clip = {name: part.to(device) for name, part in clip.items()}
    frames = clean_inputs(clip, teacher.config.context_level)
    last, shape = cut(frames, slice(-1, None)), clip["latent"].shape[2:]
    noise = slot_noise(rows + (config.seed << 32), torch.zeros_like(rows), shape.numel())
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        history = read_history(teacher.transformer, cut(frames, slice(0, -1)), clip.get("sees"))
        states = follow_flow(
            lambda latent, level: estimate_next(
                teacher.transformer, last, latent, torch.full_like(last.level, level), history
            ),
            noise.reshape(-1, 1, *shape).to(device),
            sampling_levels(config.teacher_calls, SAMPLER_SHIFT),
            keep_every=config.teacher_calls // config.student_calls,
        )
    return states[:, :, 0].transpose(0, 1).to("cpu", torch.float16).contiguous()


def build_stage(
    model_config: WorldConfig, train_config: TrainConfig, dataset: Datasets, init: str | None, teacher: str
) -> OdeStage:
    """The stage for a dataset, over the codec of `init`; the flows are those of `teacher`.

    Raises ValueError when the student is to take another number of calls than it would learn to answer.
    """
    assert isinstance(train_config, OdeTrainConfig)
    if train_config.student_calls % model_config.steps_per_frame:
        raise ValueError(
            f"student_calls {train_config.student_calls} is no multiple of the model's steps_per_frame "
            f"{model_config.steps_per_frame}: change either"
        )
    clips = build_world_stage(model_config, train_config, dataset, init)
    flows = take_flows(load_world(teacher, choose_device(train_config.device)), clips, train_config, dataset)
    return OdeStage(clips=clips, config=train_config, flows=flows)
