"""The inference-only codec against the plain one."""

import pytest
import torch

from worldscape.codec import shuffled
from worldscape.conditioning.reproject import Anchor
from worldscape.fast_codec import FastCodec
from worldscape.world import debug_world

pytestmark = pytest.mark.skipif(not FastCodec.runs_on(torch.device("cpu")), reason="this torch has no oneDNN")


def anchors(rows: int) -> Anchor:
    rng = torch.Generator().manual_seed(rows)
    rgbd = 2 * torch.rand(rows, 4, 64, 64, generator=rng) - 1
    return Anchor(rgbd, (torch.rand(rows, 1, 64, 64, generator=rng) > 0.3).float())


@pytest.mark.parametrize("rows", [1, 5])
@torch.inference_mode()
def test_the_fast_codec_is_the_plain_one_to_rounding(rows):
    plain, anchor = debug_world().codec, anchors(rows)
    fast = FastCodec(plain)
    found, expected = fast.encode_anchor(anchor), plain.encode_anchor(anchor)
    torch.testing.assert_close(found.latent, expected.latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.skips, expected.skips, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast.encode(anchor.rgbd), plain.encode(anchor.rgbd), atol=1e-5, rtol=1e-4)
    latent = expected.latent.flip(1)
    for hands in (None, torch.rand(rows, 4, 64, 64, generator=torch.Generator().manual_seed(1))):
        pictures = [codec.decode(latent, anchor, expected.skips, hands) for codec in (fast, plain)]
        torch.testing.assert_close(*pictures, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_decoding_leaves_what_it_is_given():
    """It adds in place, but only to what it made itself."""
    fast, anchor = FastCodec(debug_world().codec), anchors(2)
    guess = fast.encode_anchor(anchor)
    given = (guess.latent, *guess.skips, *anchor, torch.rand(2, 4, 64, 64))
    kept = [part.clone() for part in given]
    fast.decode(guess.latent, anchor, guess.skips, given[-1])
    for before, after in zip(kept, given, strict=True):
        assert torch.equal(before, after)


def test_shuffled_is_pixel_shuffle_with_channels_last():
    x = torch.randn(3, 12, 4, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    found = shuffled(x)
    assert torch.equal(found, torch.nn.functional.pixel_shuffle(x, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)
