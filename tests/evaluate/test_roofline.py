"""Work of a step counted by hand, and its place under the machine's peaks."""

from dataclasses import replace

import pytest
import torch

from benchmarks import roofline
from tests.evaluate.test_documented import undocumented
from worldscape.config import preset

DEBUG = preset("debug")
TOKENS, CHANNELS = DEBUG.codec.num_tokens, DEBUG.codec.latent_channels
D, MLP, LAYERS = DEBUG.transformer.width, DEBUG.transformer.mlp_width, DEBUG.transformer.num_layers
FRAMES = DEBUG.memory.num_context


def difference(attention: str) -> roofline.Work:
    """What one more model call adds to a step."""
    config = replace(DEBUG, transformer=replace(DEBUG.transformer, attention=attention))
    one, two = (roofline.count_work(config, calls) for calls in (1, 2))
    return roofline.Work(*(more - less for more, less in zip(two, one, strict=True)))


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_a_model_call_by_hand(attention):
    """Matrix products of the generator, attention over history and the frame itself; its weights; its history."""
    more, seen = difference(attention), (FRAMES + 1) * TOKENS
    level = 2 * 2 * D * D + 2 * D * 6 * D
    block = 2 * TOKENS * D * (3 * D + D + 2 * MLP) + 2 * 2 * TOKENS * seen * D
    assert more.flops == level + 2 * TOKENS * D * (CHANNELS + CHANNELS + 1) + LAYERS * block
    weights = (CHANNELS * D + D) + 2 * (D * D + D) + (6 * D * D + 6 * D) + (D * (CHANNELS + 1) + CHANNELS + 1)
    layer = 6 * D + (3 * D * D + 3 * D) + 2 * D + (D * D + D) + (D * MLP + MLP) + (MLP * D + D)
    assert more.weight_bytes == 4 * (weights + LAYERS * layer)
    assert more.history_bytes == 4 * 2 * LAYERS * FRAMES * TOKENS * D


def test_hands_are_more_work():
    without, with_hands = (roofline.count_work(DEBUG, 1, hands) for hands in (None, "right"))
    assert with_hands.flops > without.flops and with_hands.weight_bytes > without.weight_bytes


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    roofline.count_work(DEBUG, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_under_the_roof_by_hand():
    """Ten worlds of 1 GFLOP and 0.1 GB of history each, 1 GB of weights, in 0.1 s: bound by 2 GB at 40 GB/s."""
    work, peak = roofline.Work(10**9, 10**8, 10**9), roofline.Peak(1e12, 40e9)
    found = roofline.place_under_roof(work, peak, 0.1, 10)
    assert found == pytest.approx(
        {
            "step_gflop": 10.0,
            "step_read_mb": 2000.0,
            "gflop_per_second": 100.0,
            "gb_per_second": 20.0,
            "roofline_share": 0.5,
        }
    )
    slow_at_products = roofline.place_under_roof(work, roofline.Peak(1.25e11, 40e9), 0.1, 10)
    assert slow_at_products["roofline_share"] == pytest.approx(0.8)
    assert not undocumented(f"{name}_n1" for name in found)


def test_the_best_time_is_the_shortest(monkeypatch):
    """Of 3, 5 and 6 seconds, which use up a budget of 14; a first of 7 is not counted."""
    now, seconds = [0.0], iter([7.0, 3.0, 5.0, 6.0, 1.0])

    def work():
        now[0] += next(seconds)

    monkeypatch.setattr("benchmarks.roofline.time.perf_counter", lambda: now[0])
    assert roofline.best_seconds(work, "cpu", 14.0) == 3.0
    assert next(seconds) == 1.0


def test_peaks_are_those_of_a_product_and_a_copy(monkeypatch):
    """With everything taking 10 ms: 2 * 2048 ** 3 operations, and 256 MiB read and written."""
    monkeypatch.setattr(roofline, "best_seconds", lambda work, device, budget: [work(), 0.01][1])
    peak = roofline.measure_peak("cpu", budget=0.0)
    assert peak.flops_per_second == pytest.approx(2 * 2048**3 / 0.01)
    assert peak.bytes_per_second == pytest.approx(2 * 2**28 / 0.01)
