"""Frames given their past: reading history once equals running the whole clip, and flows end where they should."""

from __future__ import annotations

import torch

from worldscape.config import CodecConfig, MemoryConfig, TransformerConfig
from worldscape.flow import follow_flow, sampling_levels
from worldscape.scoring import clean_inputs, cut, estimate_end, estimate_next, join, read_history
from worldscape.transformer import WorldTransformer

CODEC = CodecConfig(size=32, widths=(8, 8, 8, 8), latent_channels=6)
MEMORY = MemoryConfig(num_sink=1, local_window=3, num_keyframes=4, num_anchors=2)
CLIPS, TIMES = 2, 5


def build(is_causal: bool = True) -> WorldTransformer:
    config = TransformerConfig(width=24, num_layers=2, num_heads=2, mlp_width=48, is_causal=is_causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldTransformer(config, CODEC, MEMORY)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def clip() -> dict[str, torch.Tensor]:
    rng, shape = torch.Generator().manual_seed(0), (CLIPS, TIMES, CODEC.num_tokens)
    return {
        "latent": torch.randn(*shape, CODEC.latent_channels, generator=rng),
        "guess": torch.randn(*shape, CODEC.latent_channels, generator=rng),
        "coverage": torch.rand(shape, generator=rng),
        "rays": torch.randn(CLIPS, TIMES, 6, 2 * CODEC.grid, 2 * CODEC.grid, generator=rng),
    }


def test_a_frame_after_history_equals_the_end_of_the_whole_clip():
    model, frames = build(), clean_inputs(clip(), 0.1)
    noised, level = torch.randn_like(frames.latent[:, -1:]), torch.tensor([0.3, 0.8])
    history = read_history(model, cut(frames, slice(0, -1)))
    alone = estimate_next(model, cut(frames, slice(-1, None)), noised, level[:, None], history)
    torch.testing.assert_close(alone, estimate_end(model, frames, noised, level), atol=2e-5, rtol=1e-4)


def test_an_estimate_of_the_end_ignores_the_clean_end():
    model, frames = build(), clean_inputs(clip(), 0.1)
    noised, level = torch.randn_like(frames.latent[:, -2:]), torch.tensor([0.3, 0.8])
    other = join([cut(frames, slice(0, -2)), cut(frames, slice(-2, None))._replace(latent=torch.zeros_like(noised))])
    assert torch.equal(estimate_end(model, frames, noised, level), estimate_end(model, other, noised, level))


def test_only_a_teacher_sees_later_frames():
    for is_causal in (True, False):
        model, frames = build(is_causal), clean_inputs(clip(), 0.0)
        positions = torch.arange(TIMES).expand(CLIPS, -1)
        changed = frames._replace(latent=frames.latent.clone())
        changed.latent[:, -1] += 1.0
        one, other = (model(inputs, positions).latent[:, :-1] for inputs in (frames, changed))
        assert torch.equal(one, other) == is_causal


def test_a_flow_of_one_call_is_the_answer_to_noise():
    model, frames = build(), clean_inputs(clip(), 0.0)
    last, history = cut(frames, slice(-1, None)), read_history(model, cut(frames, slice(0, -1)))
    noise = torch.randn_like(last.latent)
    path = follow_flow(
        lambda latent, level: estimate_next(model, last, latent, torch.full_like(last.level, level), history),
        noise,
        sampling_levels(1),
    )
    torch.testing.assert_close(path[-1], estimate_end(model, frames, noise, torch.ones(CLIPS)), atol=2e-5, rtol=1e-4)
