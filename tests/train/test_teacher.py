"""The bidirectional teacher: what of a clip is clean, what memory may show, and sampling a clip at once."""

from __future__ import annotations

import pytest
import torch

from tests.train.test_scoring import CLIPS, TIMES, build, clip
from worldscape.engine import WorldEngine
from worldscape.flow import sampling_levels
from worldscape.scoring import Clip, clean_inputs, estimate_end, hide_later, sample_clip
from worldscape.train.cli import choose_model
from worldscape.train.teacher import adapt_model, draw_clip_levels
from worldscape.world import WorldModel


def test_a_clip_opens_clean_and_goes_on_at_one_level():
    level, is_shown = draw_clip_levels(4000, TIMES, 2, torch.Generator().manual_seed(0))
    is_clean = level == 0.0
    opening = is_clean.sum(1)
    assert (is_clean == (torch.arange(TIMES) < opening[:, None])).all()
    assert set(opening.tolist()) == {2, 3, 4}
    rest = torch.where(is_clean, torch.nan, level)
    spread = rest.nan_to_num(-1.0).amax(1) - rest.nan_to_num(2.0).amin(1)
    assert float(spread.abs().max()) == 0.0
    assert 0.17 < float((level[:, -1] == 1.0).float().mean()) < 0.23
    assert torch.equal(is_shown, torch.arange(TIMES) <= opening[:, None])


def test_memory_shows_nothing_after_the_first_new_frame():
    frames = clean_inputs(clip(), 0.0)
    hidden = hide_later(frames, num_new=3)
    assert torch.equal(hidden.anchor[:, :3], frames.anchor[:, :3])
    assert torch.equal(hidden.coverage[:, :3], frames.coverage[:, :3])
    assert not hidden.anchor[:, 3:].any() and not hidden.coverage[:, 3:].any()


def test_a_clip_sampled_in_one_call_is_the_answer_to_noise():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(adapt_model(choose_model("debug", [])))
    assert not model.transformer.config.is_causal
    model.transformer = build(is_causal=False)
    noise = torch.randn(CLIPS, 3, *clip()["latent"].shape[2:], generator=torch.Generator().manual_seed(1))
    frames = clean_inputs(clip(), model.config.context_level)
    made = sample_clip(model.transformer, Clip(frames, None), noise, sampling_levels(1)).latent
    frames = hide_later(frames, 3)
    torch.testing.assert_close(made, estimate_end(model.transformer, frames, noise, torch.ones(CLIPS)))


def test_a_teacher_cannot_be_stepped():
    with torch.random.fork_rng(devices=[]):
        model = WorldModel(adapt_model(choose_model("debug", [])))
    with pytest.raises(ValueError, match="sees a whole clip at once: step a causal student"):
        WorldEngine(model, 1)
