"""The inference-only rewrite against the plain generator."""

import pytest
import torch

from worldscape.engine import Start, WorldEngine
from worldscape.fast import FastTransformer
from worldscape.memory.pages import PageShape
from worldscape.memory.world_memory import WorldMemory
from worldscape.transformer import FrameInputs
from worldscape.world import debug_world


def test_a_fast_dream_is_the_plain_dream_to_rounding():
    """Long enough for the window to slide; a rounded colour may differ by one level of 255. What memory shows jumps
    where a depth is compared, and random weights make much of one pixel: with this seed rounding decides none."""
    model, rng = debug_world(), torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 1, 64, 64, 3), generator=rng, dtype=torch.uint8)
    start = Start(frames, torch.full((3, 1, 64, 64), 3.0), torch.eye(4).repeat(3, 1, 1, 1))
    engines = [WorldEngine(model, 3, steps_per_frame=2, use_fast=fast) for fast in (True, False)]
    for engine in engines:
        engine.open(start, torch.arange(3))
    for step in range(10):
        controls = 0.2 * torch.randn(3, 6, generator=rng)
        active = torch.tensor([True, step != 4, True])
        fast, plain = (engine.step(controls, active) for engine in engines)
        torch.testing.assert_close(fast.latent, plain.latent, atol=2e-4, rtol=1e-3)
        assert int((fast.frame.int() - plain.frame.int()).abs().max()) <= 1


@pytest.mark.parametrize("level", [1.0, 0.3])
def test_a_first_frame_without_history(level):
    world = debug_world()
    model, config = world.transformer, world.transformer.config
    fast = FastTransformer(model, [1.0, 0.3])
    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 1, 16, 8, generator=rng)
    rays, anchor = torch.randn(2, 1, 6, 8, 8, generator=rng), torch.randn(2, 1, 16, 8, generator=rng)
    coverage, positions = torch.rand(2, 1, 16, generator=rng), torch.zeros(2, 1, dtype=torch.long)
    inputs = FrameInputs(latent, torch.full((2, 1), level), rays, anchor, coverage)
    shape = PageShape(config.num_layers, 16, config.num_heads, config.head_width, size=64)
    memory = WorldMemory.empty(world.config.memory, 2, shape, latent)
    empty = fast.place(memory.read(memory.tables.retrieved))
    found = fast.refine(latent, level, fast.embed_view(rays, anchor, coverage), positions, empty)
    expected = model(inputs, positions)
    torch.testing.assert_close(found.latent, expected.latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-4)
