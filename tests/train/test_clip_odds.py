"""Which clips the world stage draws: those of which memory shows little come more often, left-out dreams never."""

from __future__ import annotations

import numpy as np
import torch

from worldscape.config import MemoryConfig
from worldscape.train.prepare import PreparedFrames
from worldscape.train.world import NUM_SAMPLES, clip_odds, clip_places, mean_where

MEMORY = MemoryConfig(num_sink=1, local_window=2)
DREAMS, FRAMES = NUM_SAMPLES + 3, 8
PLACES = FRAMES - 3


def prepared(coverage: torch.Tensor) -> PreparedFrames:
    empty = torch.zeros(DREAMS, FRAMES, 4, 2)
    frames = torch.arange(DREAMS * FRAMES).reshape(DREAMS, FRAMES)
    nothing = torch.empty(DREAMS, FRAMES, 0, dtype=torch.long)
    return PreparedFrames(latent=empty, guess=empty, coverage=coverage, frames=frames, retrieved=nothing)


def probabilities(coverage: torch.Tensor, novelty_share: float) -> np.ndarray:
    frames = prepared(coverage)
    assert clip_places(frames, MEMORY) == PLACES
    return np.diff(clip_odds(frames, MEMORY, novelty_share), prepend=0.0).reshape(DREAMS, PLACES)


def test_novel_clips_are_drawn_in_proportion():
    """Frame 5 of dream 1 is half unseen: the three clips whose tail holds it share the novel draws."""
    coverage = torch.ones(DREAMS, FRAMES, 4)
    coverage[1, 5] = 0.5
    odds = probabilities(coverage, novelty_share=0.6)
    even = 0.4 / (3 * PLACES)
    expected = np.full((DREAMS, PLACES), even)
    expected[1, 2:5] += 0.6 / 3
    expected[3:] = 0.0
    np.testing.assert_allclose(odds, expected, atol=1e-12)


def test_left_out_dreams_are_never_drawn_however_novel():
    coverage = torch.ones(DREAMS, FRAMES, 4)
    coverage[3:] = 0.0
    odds = probabilities(coverage, novelty_share=1.0)
    np.testing.assert_allclose(odds[:3], 1 / (3 * PLACES), atol=1e-12)  # nothing novel is left: evenly
    assert (odds[3:] == 0).all()


def test_the_largest_random_number_still_finds_a_clip():
    coverage = torch.rand(DREAMS, FRAMES, 4, generator=torch.Generator().manual_seed(0))
    odds = clip_odds(prepared(coverage), MEMORY, 0.7)
    assert np.searchsorted(odds, np.nextafter(1.0, 0.0), side="right") < 3 * PLACES


def test_mean_where():
    values, where = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert mean_where(values, where) == 3.5
    assert mean_where(values, torch.zeros(3, dtype=torch.bool)) == 0.0
