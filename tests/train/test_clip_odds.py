"""Which clips the world stage draws: those of which memory shows little come more often, left-out dreams never."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldscape.config import MemoryConfig
from worldscape.train.prepare import PreparedFrames
from worldscape.train.world import NUM_SAMPLES, clip_odds, clip_places, mean_where, novelty, odds_of_one_kind

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


def test_batches_are_of_one_kind_and_every_clip_keeps_its_odds():
    rng, has_hands = np.random.default_rng(0), np.array([True, False, False, True])
    each = np.array([[0.1, 0.1], [0.05, 0.35], [0.0, 0.2], [0.2, 0.0]])
    drawn = np.zeros(8)
    for _ in range(4000):
        found = np.diff(odds_of_one_kind(np.cumsum(each), has_hands, rng), prepend=0.0)
        assert len({bool(has_hands[place // 2]) for place in np.flatnonzero(found > 1e-12)}) == 1
        drawn += found / 4000
    np.testing.assert_allclose(drawn, each.flatten(), atol=0.02)


def test_one_kind_alone_needs_no_draw():
    rng, odds = np.random.default_rng(0), np.cumsum([0.25, 0.75])
    for has_hands in (np.array([True, True]), np.array([False, False])):
        assert odds_of_one_kind(odds, has_hands, rng) is odds
    assert rng.random() == np.random.default_rng(0).random()


def test_what_memory_shows_wrongly_is_as_new_as_what_it_does_not_show():
    """A hand over a table that the camera always sees: covered all of it, and yet it moves."""
    latent = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    guess = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert novelty(latent, guess, torch.ones(3)).tolist() == [0.0, 1.0, 1.0]
    assert novelty(latent, guess, torch.tensor([0.2, 1.0, 1.0])).tolist() == [pytest.approx(0.8), 1.0, 1.0]


def test_mean_where():
    values, where = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert mean_where(values, where) == 3.5
    assert mean_where(values, torch.zeros(3, dtype=torch.bool)) == 0.0
