"""Stage `ode`: flows begin at their own noise, states lie where a sampler asks, and the ends are what is learned."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldscape.codec import normalise_tokens
from worldscape.engine import SAMPLER_SHIFT
from worldscape.flow import sampling_levels
from worldscape.train.config import override
from worldscape.train.ode import DEFAULTS, OdeStage, OdeTrainConfig, take_flows
from worldscape.world import debug_world

MODEL = debug_world()
TIMES = MODEL.config.memory.num_context + 1


class RandomClips:
    """Stands in for the world stage: clip number n is drawn from a generator with that seed."""

    store = SimpleNamespace(recording="")

    def draw_clips(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(size), np.tile(np.arange(TIMES), (size, 1))

    def gather(self, dreams: np.ndarray, places: np.ndarray) -> dict[str, torch.Tensor]:
        clips = [self._clip(int(dream)) for dream in dreams]
        return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}

    def _clip(self, seed: int) -> dict[str, torch.Tensor]:
        rng, codec = torch.Generator().manual_seed(seed), MODEL.config.codec
        shape = (TIMES, codec.num_tokens)
        return {
            "latent": normalise_tokens(torch.randn(*shape, codec.latent_channels, generator=rng)),
            "guess": normalise_tokens(torch.randn(*shape, codec.latent_channels, generator=rng)),
            "coverage": torch.rand(shape, generator=rng).round(),
            "rays": torch.randn(TIMES, 6, 2 * codec.grid, 2 * codec.grid, generator=rng),
        }


def build(tmp_path, guess: float = 0.0, **changes: Any) -> OdeStage:
    config = override(DEFAULTS["debug"], {"flows": 6, "batch_size": 16, **changes})
    assert isinstance(config, OdeTrainConfig)
    clips: Any = RandomClips()
    clips.prepared = SimpleNamespace(has_hands=np.zeros(64, bool), guess=torch.full((1,), guess))
    return OdeStage(clips=clips, config=config, flows=take_flows(MODEL, clips, config, tmp_path / "rooms"))


def test_a_student_that_is_its_teacher_answers_the_end_of_a_flow_of_one_call(tmp_path):
    stage = build(tmp_path, teacher_calls=1, student_calls=1)
    parts = stage.loss(copy.deepcopy(MODEL), stage.batch(0, 0, 1), torch.Generator())
    rng = np.random.default_rng([stage.config.seed, 0, 0, 9])
    rng.random()  # with hands or without
    rows = rng.choice(6, size=16)
    ends = stage.flows["state"][rows, -1].float()
    expected = (ends - normalise_tokens(ends)).square().mean()
    torch.testing.assert_close(parts["loss"], expected, atol=1e-4, rtol=1e-2)
    assert float(parts["from_noise"]) == pytest.approx(float(parts["loss"]), rel=1e-5)


def test_a_batch_has_clips_of_one_kind(tmp_path):
    stage = build(tmp_path, flows=12)
    stage.clips.prepared.has_hands[::3] = True
    kinds = []
    for step in range(40):
        rng = np.random.default_rng([0, step])
        kinds.append({bool(stage.clips.prepared.has_hands[dream]) for dream in stage._of_one_kind(rng)})
    assert all(len(kind) == 1 for kind in kinds)
    assert 5 <= sum(True in kind for kind in kinds) <= 22


def test_states_lie_at_the_levels_of_the_students_sampler(tmp_path):
    stage = build(tmp_path, teacher_calls=4, student_calls=2, noise_share=0.5)
    batch, levels = stage.batch(0, 0, 1), sampling_levels(2, SAMPLER_SHIFT)
    assert {round(float(level), 5) for level in batch["level"]} == {round(level, 5) for level in levels[:2]}
    noise = stage.flows["state"][:, 0].float()
    is_noise = batch["level"][:, 0] == 1.0
    for state in batch["state"][is_noise, 0]:
        assert (noise == state).all((1, 2)).any()
    for state in batch["state"][~is_noise, 0]:
        assert not (noise == state).all((1, 2)).any()
    torch.testing.assert_close(batch["end"].square().mean(2), torch.ones_like(batch["end"][..., 0]), atol=1e-3, rtol=0)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1) and not torch.equal(noise[0], noise[1])


def test_flows_are_followed_once(tmp_path):
    one, other = build(tmp_path), build(tmp_path)
    assert len(list((tmp_path / ".rooms-prepared").iterdir())) == 1
    assert torch.equal(one.flows["state"], other.flows["state"])
    build(tmp_path, guess=1.0)
    assert len(list((tmp_path / ".rooms-prepared").iterdir())) == 2, "memory shows something else"


def test_calls_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a divisor of teacher_calls 8"):
        override(DEFAULTS["nano"], {"student_calls": 3})
