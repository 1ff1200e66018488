"""Engines of one model share its rewrites, as long as its weights stay what they were."""

import gc
from dataclasses import replace

import pytest
import torch

from worldscape import rewrites
from worldscape.codec import empty_anchor
from worldscape.config import preset
from worldscape.engine import WorldEngine
from worldscape.train.cli import copy_parts
from worldscape.world import WorldModel, debug_world


def test_engines_share_what_was_made_of_their_model():
    model = debug_world()
    first, second, other = (WorldEngine(model, 1, precision=name) for name in ("fp32", "fp32", "bf16"))
    assert first.generator is second.generator and first.codec is second.codec
    assert first.generator is not other.generator and first.codec is not other.codec
    assert WorldEngine(model, 1, steps_per_frame=2).generator is first.generator
    assert WorldEngine(model, 1, hands="both").codec is first.codec, "without a decoder of hands there is one codec"
    assert WorldEngine(debug_world(), 1).generator is not first.generator


@pytest.mark.parametrize("use_fast", [True, False])
def test_a_hand_decoder_paints_worlds_with_hands_and_no_others(use_fast):
    config = preset("debug")
    model = WorldModel(replace(config, codec=replace(config.codec, hand_decoder=True))).eval().requires_grad_(False)
    assert copy_parts(plain := debug_world(), model)["codec"] == 1.0
    guess = plain.codec.encode_anchor(anchor := empty_anchor(1, 64, torch.zeros(())))
    drawn = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))

    def paint(hands: str | None) -> torch.Tensor:
        codec = WorldEngine(model, 1, hands=hands, use_fast=use_fast).codec
        return codec.decode(guess.latent, anchor, guess.skips, None if hands is None else drawn)

    with torch.inference_mode():
        expected = [plain.codec.decode(guess.latent, anchor, guess.skips, one) for one in (None, drawn)]
        for hands, picture in zip((None, "right"), expected, strict=True):
            torch.testing.assert_close(paint(hands), picture, atol=1e-5, rtol=1e-4)
        assert model.codec.hand_decoder is not None and model.codec.hand_decoder.to_pixels.bias is not None
        model.codec.hand_decoder.to_pixels.bias.add_(0.25)
        torch.testing.assert_close(paint(None), expected[0], atol=1e-5, rtol=1e-4)
        assert (paint("right") - expected[1]).abs().max() > 0.1


def test_weights_that_changed_are_rewritten():
    model = debug_world()
    before = WorldEngine(model, 1)
    old_bias = model.transformer.to_latent.bias.clone()
    with torch.no_grad():
        model.transformer.to_latent.weight.mul_(2.0)
        model.transformer.to_latent.bias.add_(1.0)
    after = WorldEngine(model, 1)
    assert torch.equal(before.generator.to_latent.bias, old_bias), "an engine at work keeps all of its weights"
    assert after.generator is not before.generator
    torch.testing.assert_close(after.generator.to_latent.weight, 2.0 * before.generator.to_latent.weight)


@pytest.mark.parametrize("fused", [True, False])
def test_what_an_optimiser_changed_is_rewritten(fused):
    """Fused ones write weights without counting it in their version."""
    model = debug_world().requires_grad_(True)
    before = WorldEngine(model, 1)
    optimizer = torch.optim.AdamW(model.transformer.parameters(), lr=1e-2, fused=fused)
    for parameter in model.transformer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = WorldEngine(model, 1)
    weight = model.transformer.to_latent.weight.detach()
    assert torch.equal(after.generator.to_latent.weight, weight.t())
    assert not torch.equal(before.generator.to_latent.weight, weight.t())
    assert WorldEngine(model, 1).generator is after.generator
    assert after.codec is before.codec, "only the generator has learned"


def test_a_model_that_is_gone_leaves_nothing():
    gc.collect()  # models of other tests that only wait to be found
    model = debug_world()
    WorldEngine(model, 1)
    count = len(rewrites._made)
    del model
    gc.collect()
    assert len(rewrites._made) == count - 1
