"""The generator: causality, cached dreaming against recomputing, attention backends, rope."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from tests.model.memory_worlds import INTRINSICS, SIZE, picture, pose
from worldscape.config import CodecConfig, MemoryConfig, TransformerConfig
from worldscape.memory.naive import NaiveMemory
from worldscape.memory.pages import Levels, PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.nn.attention import attend
from worldscape.nn.blocks import KeysValues
from worldscape.nn.rope import Rotation, rotate, space_angles, time_angles
from worldscape.scoring import join
from worldscape.transformer import FrameInputs, History, WorldTransformer

CODEC = CodecConfig(size=32, widths=(8, 8, 8, 8), latent_channels=6)
MEMORY = MemoryConfig(num_sink=1, local_window=3, num_keyframes=4, num_anchors=2)
LEVELS = Levels(num_sink=1, num_pool=3, num_local=3)
CONFIG = TransformerConfig(width=24, num_layers=3, num_heads=2, mlp_width=48)


def build(**changes) -> WorldTransformer:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    model = WorldTransformer(config, CODEC, MEMORY)
    for parameter in model.parameters():  # no zero-initialised part may hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def frames(batch: int, num: int, seed: int = 0) -> FrameInputs:
    rng = torch.Generator().manual_seed(seed)
    tokens, channels = CODEC.num_tokens, CODEC.latent_channels
    return FrameInputs(
        latent=torch.randn(batch, num, tokens, channels, generator=rng),
        level=torch.rand(batch, num, generator=rng),
        rays=torch.randn(batch, num, 6, 2 * CODEC.grid, 2 * CODEC.grid, generator=rng),
        anchor=torch.randn(batch, num, tokens, channels, generator=rng),
        coverage=torch.rand(batch, num, tokens, generator=rng),
    )


def cut(inputs: FrameInputs, rows: slice, times: slice) -> FrameInputs:
    latent, level, rays, anchor, coverage = (part[rows, times] for part in inputs[:5])
    return FrameInputs(latent, level, rays, anchor, coverage)


def remembering(slots: int) -> WorldMemory:
    """Memory for the generator's keys and values, with tiny pictures."""
    return WorldMemory.empty(MEMORY, slots, PageShape(3, CODEC.num_tokens, 2, 12, SIZE), torch.zeros(()))


def recalled(memory: WorldMemory) -> History:
    return memory.read(memory.tables.retrieved)


def remember(memory: WorldMemory, new: list[KeysValues], active: torch.Tensor) -> None:
    """Commit a frame's keys and values with a blank picture, always seen from the same place."""
    many = len(active)
    frame = Frame(new, picture(0.0).repeat(many, 1, 1, 1), pose().repeat(many, 1, 1), INTRINSICS.repeat(many, 1))
    memory.append(frame, memory.recall(frame.pose, frame.intrinsics, use_anchor=False), active)


def positions(batch: int, num: int) -> torch.Tensor:
    return torch.arange(num).expand(batch, -1)


def test_a_later_frame_never_changes_an_earlier_one():
    model, first, second = build(), frames(2, 4), frames(2, 4, seed=1)
    mixed = join([cut(first, slice(None), slice(0, 3)), cut(second, slice(None), slice(3, 4))])
    one, other = model(first, positions(2, 4)).latent, model(mixed, positions(2, 4)).latent
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3], other[:, 3])


def test_an_earlier_frame_does_change_a_later_one():
    model, first, second = build(), frames(1, 3), frames(1, 3, seed=1)
    mixed = join([cut(second, slice(None), slice(0, 1)), cut(first, slice(None), slice(1, 3))])
    assert not torch.allclose(model(first, positions(1, 3)).latent[:, 2], model(mixed, positions(1, 3)).latent[:, 2])


def test_paged_history_equals_its_naive_twin_over_a_sliding_window():
    """Also just after frames were evicted: 12 frames pass through a window of 1 + 3."""
    model, inputs = build(), frames(2, 12)
    cache = remembering(2)
    twins = [NaiveMemory(MEMORY, LEVELS), NaiveMemory(MEMORY, LEVELS)]
    for step in range(12):
        now = cut(inputs, slice(None), slice(step, step + 1))
        ours = model(now, cache.next_positions(), model.place(recalled(cache)))
        for row, twin in enumerate(twins):
            one = cut(now, slice(row, row + 1), slice(None))
            history = model.place(twin.read([])) if twin.frames else None
            theirs = model(one, twin.next_positions(), history)
            torch.testing.assert_close(ours.latent[row : row + 1], theirs.latent, atol=2e-5, rtol=1e-4)
            twin.append(theirs.layers, picture(0.0), pose(), INTRINSICS)
        remember(cache, ours.layers, torch.ones(2, dtype=torch.bool))


def test_cached_dreaming_equals_running_the_whole_clip():
    model, inputs = build(), frames(2, MEMORY.num_context + 1)
    whole = model(inputs, positions(2, MEMORY.num_context + 1)).latent
    cache = remembering(2)
    for step in range(MEMORY.num_context + 1):
        result = model(
            cut(inputs, slice(None), slice(step, step + 1)), cache.next_positions(), model.place(recalled(cache))
        )
        torch.testing.assert_close(result.latent[:, 0], whole[:, step], atol=2e-5, rtol=1e-4)
        remember(cache, result.layers, torch.ones(2, dtype=torch.bool))


def test_inactive_slots_keep_their_cache_bit_for_bit():
    model, inputs = build(), frames(3, 6)
    cache = remembering(3)
    for step in range(6):
        active = torch.tensor([True, step % 2 == 0, False])
        result = model(
            cut(inputs, slice(None), slice(step, step + 1)), cache.next_positions(), model.place(recalled(cache))
        )
        still = (~active).nonzero()[:, 0]
        before = cache.save(still)
        remember(cache, result.layers, active)
        after = cache.save(still)
        assert all(torch.equal(after[name], before[name]) for name in before)
    assert cache.count.tolist() == [6, 3, 0]


def test_without_anchor_memory_is_ignored():
    model, inputs = build(anchor=False), frames(1, 2)
    other = inputs._replace(anchor=torch.zeros_like(inputs.anchor), coverage=torch.zeros_like(inputs.coverage))
    assert torch.equal(model(inputs, positions(1, 2)).latent, model(other, positions(1, 2)).latent)


def test_new_weights_repeat_what_memory_suggests():
    """Injections start at zero: an untrained generator passes the anchor on, scaled by its initial trust."""
    torch.manual_seed(0)
    model, inputs = WorldTransformer(CONFIG, CODEC, MEMORY), frames(1, 1)
    expected = torch.sigmoid(torch.tensor(1.0)) * inputs.anchor
    torch.testing.assert_close(model(inputs, positions(1, 1)).latent, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_backends_agree(masked):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=rng) for length in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7, generator=rng) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, mask, "sdpa"), attend(q, k, v, mask, "reference"))


def test_unknown_attention_backend_is_refused():
    with pytest.raises(ValueError, match="choose reference or sdpa"):
        nothing = torch.zeros(1, 1, 1, 2)
        attend(nothing, nothing, nothing, None, "quick")


def test_rope_depends_on_relative_time_only():
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 1, 12, generator=rng) for _ in range(2))

    def score(query_time: int, key_time: int) -> float:
        angles = [time_angles(torch.tensor([[t]]), 12, 100.0) for t in (query_time, key_time)]
        turned = [rotate(x, Rotation.of(a)) for x, a in zip((q, k), angles, strict=True)]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(9, 6), abs=1e-5)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)


def test_rope_keeps_lengths_and_leaves_the_first_token_alone():
    x = torch.randn(1, 2, 4, 3, 12, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, Rotation.of(space_angles(2, 12, 100.0, x.device)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_naive_history_lists_sink_and_window():
    twin = NaiveMemory(MEMORY, LEVELS)
    for number in range(9):
        new = [KeysValues(*(torch.full((1, 1, 1, 1, 2), float(number)),) * 2)]
        twin.append(new, picture(0.0), pose(), INTRINSICS)
    assert rearrange(twin.read([]).keys, "1 1 s 1 1 k -> s k")[:, 0].tolist() == [0, 6, 7, 8]
