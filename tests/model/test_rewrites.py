"""Engines of one model share its rewrites, as long as its weights stay what they were."""

import gc

import torch

from worldscape import rewrites
from worldscape.engine import WorldEngine
from worldscape.world import debug_world


def test_engines_share_what_was_made_of_their_model():
    model = debug_world()
    first, second, other = (WorldEngine(model, 1, precision=name) for name in ("fp32", "fp32", "bf16"))
    assert first.generator is second.generator and first.codec is second.codec
    assert first.generator is not other.generator and first.codec is not other.codec
    assert WorldEngine(model, 1, steps_per_frame=2).generator is not first.generator
    assert WorldEngine(debug_world(), 1).generator is not first.generator


def test_weights_that_changed_are_rewritten():
    model = debug_world()
    before = WorldEngine(model, 1)
    with torch.no_grad():
        model.transformer.to_latent.weight.mul_(2.0)
    after = WorldEngine(model, 1)
    assert after.generator is not before.generator
    torch.testing.assert_close(after.generator.to_latent.weight, 2.0 * before.generator.to_latent.weight)


def test_a_model_that_is_gone_leaves_nothing():
    gc.collect()  # models of other tests that only wait to be found
    model = debug_world()
    WorldEngine(model, 1)
    count = len(rewrites._made)
    del model
    gc.collect()
    assert len(rewrites._made) == count - 1
