"""The inference-only rewrite against the plain generator."""

import pytest
import torch

from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.fast import FastTransformer
from worldscape.memory.pages import PageShape
from worldscape.memory.world_memory import WorldMemory
from worldscape.transformer import EmbeddedView, FrameInputs, History
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


LEVELS = (0.0, 0.3, 1.0)  # of a finished frame and two that are refined together


@pytest.mark.parametrize("has_hands", [False, True])
def test_a_window_of_frames_at_their_own_levels(has_hands):
    """Three new frames after three of history, of which the first new one does not see the second; its place in the
    clip's own mask tells the plain generator the same, given the whole clip at once."""
    model, rng = debug_world().transformer.eval(), torch.Generator().manual_seed(1)
    fast = FastTransformer(model, [LEVELS, 0.0])
    clip = random_clip(6, rng, has_hands)
    sees = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, -1, -1).clone()
    sees[:, 3, 1], sees[0, 4, 2], sees[1, 5, 3] = False, False, False
    level = torch.tensor([0.0, 0.0, 0.0, *LEVELS]).expand(2, -1)
    positions = torch.arange(6).expand(2, -1)
    whole = model(clip._replace(level=level), positions, sees=sees)
    for generator in (fast, model):
        past = clip_history(generator, clip, sees[:, :3, :3])
        view = seen(generator, clip, slice(3, None))
        placed = generator.place(past._replace(valid=sees[:, 3:, :3]), view.present, sees[:, 3:, 3:])
        found = generator.refine(clip.latent[:, 3:], LEVELS, view, positions[:, 3:], placed)
        torch.testing.assert_close(found.latent, whole.latent[:, 3:], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found.features, whole.features[:, 3:], atol=2e-5, rtol=1e-4)
        if generator is model:
            torch.testing.assert_close(found.layers[-1].keys, whole.layers[-1].keys[:, 3:], atol=2e-5, rtol=1e-4)
            continue
        alone = seen(fast, clip, slice(3, 4))
        own = fast.place(past._replace(valid=sees[:, 3, :3]), alone.present)
        single = fast.refine(clip.latent[:, 3:4], 0.0, alone, positions[:, 3:4], own)
        for one, many in zip(single.layers, found.layers, strict=True):
            torch.testing.assert_close(many.keys[:, :1], one.keys, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(many.values[:, :1], one.values, atol=2e-5, rtol=1e-4)


def test_a_pose_video_is_looked_at_in_the_first_call_of_a_step_alone():
    """What that call made of it, the calls after it read: the same call again gives the same, whatever the pose video
    has become, and a call at another level gives what the plain generator's does."""
    model, rng = debug_world().transformer.eval(), torch.Generator().manual_seed(2)
    fast, clip = FastTransformer(model, [0.3, 0.0]), random_clip(4, rng, has_hands=True)
    sees, now, committed = torch.ones(2, 4, 4, dtype=torch.bool).tril(), slice(3, None), []
    for generator in (fast, model):
        past, view = clip_history(generator, clip, sees[:, :3, :3]), seen(generator, clip, now)
        assert view.hands is not None and view.present is not None and view.present.tolist() == [[False], [True]]
        placed, positions = generator.place(past, view.present), torch.full((2, 1), 3)
        first = generator.refine(clip.latent[:, now], 0.3, view, positions, placed)
        assert first.hands is not None
        known, blind = placed._replace(hands=first.hands), view._replace(hands=view.hands * torch.nan)
        again = generator.refine(clip.latent[:, now], 0.3, blind, positions, known)
        torch.testing.assert_close(again.latent, first.latent, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(again.features, first.features, atol=2e-5, rtol=1e-4)
        last = generator.refine(clip.latent[:, now], 0.0, blind, positions, known)
        values = last.layers[-1].values.clone()  # the next call of a fast one writes to the same place
        committed.append((last.latent, last.features, values))
        anew = generator.refine(clip.latent[:, now], 0.0, view, positions, placed)
        torch.testing.assert_close(last.latent[0], anew.latent[0], atol=2e-5, rtol=1e-4)  # shows no hand
        assert not torch.allclose(last.latent[1], anew.latent[1], atol=1e-4)
    for one, other in zip(*committed, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("has_hands", [False, True])
def test_history_with_room_is_written_into_and_placed_alike(has_hands):
    fast, rng = FastTransformer(debug_world().transformer.eval(), [0.3, 0.0]), torch.Generator().manual_seed(4)
    clip, sees = random_clip(4, rng, has_hands), torch.ones(2, 4, 4, dtype=torch.bool).tril()
    past, view = clip_history(fast, clip, sees[:, :3, :3]), seen(fast, clip, slice(3, None))
    room = fast.room(view.present)
    keys, values = (torch.cat([part, torch.full_like(part[:, :, :room], 7.0)], 2) for part in (past.keys, past.values))
    copied, written = fast.place(past, view.present), fast.place(past._replace(keys=keys, values=values), view.present)
    assert written.keys.data_ptr() == keys.data_ptr() and written.values.data_ptr() == values.data_ptr()
    assert copied.keys.data_ptr() != past.keys.data_ptr()
    found = [fast.refine(clip.latent[:, 3:], 0.3, view, torch.full((2, 1), 3), placed) for placed in (copied, written)]
    assert torch.equal(found[0].latent, found[1].latent)


@pytest.mark.parametrize("has_hands", [False, True])
def test_attention_may_read_half_precision(has_hands):
    """What is committed is float32, whatever memory makes of it, and as near to the plain generator as halves allow."""
    model, rng = debug_world().transformer.eval(), torch.Generator().manual_seed(3)
    clip, sees, now = random_clip(4, rng, has_hands), torch.ones(2, 4, 4, dtype=torch.bool).tril(), slice(3, None)
    found = []
    for keys_dtype in (torch.float32, torch.bfloat16):
        fast = FastTransformer(model, [0.3, 0.0], keys_dtype=keys_dtype)
        past, view = clip_history(fast, clip, sees[:, :3, :3]), seen(fast, clip, now)
        assert past.keys.dtype == past.values.dtype == torch.float32
        placed = fast.place(past, view.present)
        assert placed.keys.dtype == placed.values.dtype == keys_dtype
        first = fast.refine(clip.latent[:, now], 0.3, view, torch.full((2, 1), 3), placed)
        last = fast.refine(
            first.latent, 0.0, view, torch.full((2, 1), 3), placed._replace(hands=first.hands) if has_hands else placed
        )
        found.append((first.latent, last.latent, last.features, past.keys, past.values))
    for one, other in zip(*found, strict=True):
        error = (one - other).square().mean().sqrt() / one.square().mean().sqrt()
        assert 0 < float(error) < 0.02


def random_clip(times: int, rng: torch.Generator, has_hands: bool) -> FrameInputs:
    hands = torch.rand(2, times, 4, 64, 64, generator=rng) if has_hands else None
    if hands is not None:
        hands[0, -1] = 0.0
    return FrameInputs(
        latent=torch.randn(2, times, 16, 8, generator=rng),
        level=torch.zeros(2, times),
        rays=torch.randn(2, times, 6, 8, 8, generator=rng),
        anchor=torch.randn(2, times, 16, 8, generator=rng),
        coverage=torch.rand(2, times, 16, generator=rng),
        hands=hands,
    )


def seen(generator, clip: FrameInputs, now: slice) -> EmbeddedView:
    hands = None if clip.hands is None else clip.hands[:, now]
    return generator.embed_view(clip.rays[:, now], clip.anchor[:, now], clip.coverage[:, now], hands)


def clip_history(generator, clip: FrameInputs, sees: torch.Tensor) -> History:
    """The first three frames of a clip, committed one after another."""
    layers, positions = [], torch.arange(3).expand(2, -1)
    for time in range(3):
        now = slice(time, time + 1)
        view = seen(generator, clip, now)
        past = History(*joined(generator, layers), positions[:, :time], sees[:, time, :time])
        found = generator.refine(clip.latent[:, now], 0.0, view, positions[:, now], generator.place(past, view.present))
        layers.append(found.layers)
    return History(*joined(generator, layers), positions, sees[:, -1])


def joined(generator, layers: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [L, 2, S, P, H, K] of frames committed one by one."""
    config = generator.config
    none = torch.zeros(config.num_layers, 2, 0, 16, config.num_heads, config.head_width)
    keys, values = (
        torch.cat([none, *(torch.stack([getattr(layer, name) for layer in frame]) for frame in layers)], 2)
        for name in ("keys", "values")
    )
    return keys, values
