"""Half precision: close to full precision, the same in any batch, and chosen only where it is fast."""

import pytest
import torch

from tests.model.test_fast_codec import anchors
from worldscape import precision
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.fast_codec import FastCodec, HalfCodec
from worldscape.precision import choose_dtype
from worldscape.world import debug_world

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "device", "is_native", "expected"),
    [
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("bf16", "cpu", False, torch.bfloat16),
        ("bf16", "cuda", False, torch.bfloat16),
        ("fp32", "cpu", True, torch.float32),
    ],
)
def test_what_is_chosen(asked, device, is_native, expected, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda _device: is_native)
    assert choose_dtype(asked, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("has_amx", "has_vectors", "vendor", "expected"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_a_processor_is_given_bf16_only_where_it_is_faster_in_it(has_amx, has_vectors, vendor, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_vectors)
    monkeypatch.setattr(precision, "cpu_vendor", lambda: vendor)
    assert precision.has_fast_bf16(CPU) == expected


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="precision='fp8' is unknown; choose one of auto, fp32, bf16"):
        WorldEngine(debug_world(), 1, precision="fp8")


@pytest.mark.parametrize(
    "rewrite",
    [
        pytest.param(
            FastCodec, marks=pytest.mark.skipif(not FastCodec.runs_on(CPU), reason="this torch has no oneDNN")
        ),
        HalfCodec,
    ],
)
@torch.inference_mode()
def test_the_codec_is_close_and_gives_full_precision_back(rewrite):
    plain, anchor = debug_world().codec, anchors(2)
    half = rewrite(plain, torch.bfloat16)
    assert 0 < (half.encode(anchor.rgbd) - plain.encode(anchor.rgbd)).abs().mean() < 0.02
    found, expected = half.encode_anchor(anchor), plain.encode_anchor(anchor)
    assert found.latent.dtype == torch.float32 and found.skips[0].dtype == torch.bfloat16
    assert 0 < (found.latent - expected.latent).abs().mean() < 0.02
    pictures = half.decode(found.latent, anchor, found.skips), plain.decode(expected.latent, anchor, expected.skips)
    assert pictures[0].dtype == torch.float32 and 0 < (pictures[0] - pictures[1]).abs().mean() < 0.02


def start(rows: slice = slice(None)) -> Start:
    rng = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)[rows]
    return Start(frames, torch.full((len(frames), 1, 64, 64), 3.0), torch.eye(4).repeat(len(frames), 1, 1, 1))


def turn(engine: WorldEngine, opening: Start, seeds: torch.Tensor) -> torch.Tensor:
    """Frames of six steps, [6, B, h, w, 3]."""
    engine.open(opening, seeds)
    control = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.0, 0.0])
    return torch.stack([engine.step(control.repeat(len(seeds), 1)).frame for _ in range(6)])


def test_a_dream_is_the_same_in_any_batch_and_near_that_in_full_precision():
    model, seeds = debug_world(), torch.arange(4)
    together = turn(WorldEngine(model, 4, precision="bf16"), start(), seeds)
    for row in range(4):
        alone = turn(WorldEngine(model, 1, precision="bf16"), start(slice(row, row + 1)), seeds[row : row + 1])
        assert torch.equal(alone[:, 0], together[:, row])
    full = turn(WorldEngine(model, 4), start(), seeds)
    assert 0 < (together[0].float() - full[0].float()).abs().mean() < 3  # of 255


def test_a_snapshot_goes_on_in_its_own_precision_only():
    engines = [WorldEngine(debug_world(), 1, precision=name) for name in ("bf16", "fp32")]
    for engine in engines:
        engine.open(start(slice(1)), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="other dtype .*'bfloat16' instead of 'float32'"):
        engines[1].restore(engines[0].snapshot())
    engines[0].restore(engines[0].snapshot())
