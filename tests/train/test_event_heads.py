"""What the head of rewards learns from, and how rare it takes arrivals to be."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldscape.heads import Events
from worldscape.train.heads import PAID_SHARE, PAID_WEIGHT, draw_events, event_losses

ARRIVALS, NEAR, WALKS = np.arange(0, 10), np.arange(100, 110), np.arange(1000, 1100)


@pytest.mark.parametrize(
    ("arrivals", "near", "expected"),
    [(ARRIVALS, NEAR, (8, 28, 28)), (ARRIVALS, NEAR[:0], (8, 0, 56)), (ARRIVALS[:0], NEAR, (0, 32, 32))],
)
def test_half_of_the_frames_that_are_not_paid_for_are_near_misses(arrivals, near, expected):
    frames, paid = draw_events(arrivals, near, WALKS, 64, np.random.default_rng(0))
    assert tuple(np.isin(frames, kind).sum() for kind in (ARRIVALS, NEAR, WALKS)) == expected
    assert np.array_equal(paid == 1, np.isin(frames, ARRIVALS))


def test_arrivals_are_taken_to_be_rarer_than_they_are_in_a_batch():
    """Who knows nothing is right to say so many to one against a reward."""
    logit = torch.zeros(64, requires_grad=True)
    heads: Any = SimpleNamespace(events=lambda rgbd: Events(logit.mean().expand(64), logit.mean().expand(64)))
    paid = (torch.arange(64) < 64 // PAID_SHARE).float()
    batch = {"event_rgbd": torch.zeros(64, 4, 8, 8), "reward": paid, "end": paid}
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = event_losses(heads, batch)["events"]
        total.backward()
        return total

    optimizer.step(loss)
    assert float(logit.detach().mean()) == pytest.approx(math.log(PAID_WEIGHT / (PAID_SHARE - 1)), abs=1e-2)
