"""Hands as the generator is told of them: tokens of a pose video beside those of the frame, a learned null without."""

from dataclasses import replace

import pytest
import torch

from worldscape.config import CodecConfig, MemoryConfig, TransformerConfig, preset
from worldscape.engine import WorldEngine
from worldscape.engine_frames import Start
from worldscape.nn.blocks import KeysValues
from worldscape.scoring import cut
from worldscape.train.cli import copy_parts
from worldscape.transformer import FrameInputs, History, PlacedHistory, WorldTransformer
from worldscape.world import WorldModel, debug_world

CODEC = CodecConfig(size=32, widths=(8, 8, 8, 8), latent_channels=6)
MEMORY = MemoryConfig(num_sink=1, local_window=3, num_keyframes=4, num_anchors=2)
CONFIG = TransformerConfig(width=24, num_layers=2, num_heads=2, mlp_width=48, hands=True)


def build(**changes) -> WorldTransformer:
    torch.manual_seed(0)
    model = WorldTransformer(replace(CONFIG, **changes), CODEC, MEMORY)
    for parameter in model.parameters():  # no zero-initialised part may hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def clip(batch: int = 2, times: int = 4, seed: int = 0) -> FrameInputs:
    """Frames with a hand in each but the first row's third."""
    rng = torch.Generator().manual_seed(seed)
    tokens, channels = CODEC.num_tokens, CODEC.latent_channels
    hands = torch.rand(batch, times, 4, CODEC.size, CODEC.size, generator=rng)
    hands[0, 2] = 0.0
    return FrameInputs(
        latent=torch.randn(batch, times, tokens, channels, generator=rng),
        level=torch.rand(batch, times, generator=rng),
        rays=torch.randn(batch, times, 6, 2 * CODEC.grid, 2 * CODEC.grid, generator=rng),
        anchor=torch.randn(batch, times, tokens, channels, generator=rng),
        coverage=torch.rand(batch, times, tokens, generator=rng),
        hands=hands,
    )


def positions(inputs: FrameInputs) -> torch.Tensor:
    return torch.arange(inputs.level.shape[1]).expand(len(inputs.level), -1)


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_dreaming_frame_by_frame_equals_the_whole_clip(attention):
    """The engine's way, history of finished frames, against the training's: hands stay with their own frame in both."""
    model, inputs = build(attention=attention), clip()
    whole, finished = model(inputs, positions(inputs)), []
    for time in range(4):
        past = place(model, finished) if finished else None
        now = model(cut(inputs, slice(time, time + 1)), positions(inputs)[:, time : time + 1], past)
        finished.append(now.layers)
        torch.testing.assert_close(now.latent[:, 0], whole.latent[:, time], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(now.features[:, 0], whole.features[:, time], atol=1e-5, rtol=1e-4)


def place(model: WorldTransformer, finished: list[list[KeysValues]]) -> PlacedHistory:
    """History of frames whose keys and values were kept, [layers] of each."""
    keys = torch.stack([torch.cat([new.keys for new in layer], 1) for layer in zip(*finished, strict=True)])
    values = torch.stack([torch.cat([new.values for new in layer], 1) for layer in zip(*finished, strict=True)])
    where = torch.arange(keys.shape[2]).expand(keys.shape[1], -1)
    return model.place(History(keys, values, where, torch.ones_like(where, dtype=torch.bool)))


def test_a_frame_whose_hand_is_absent_is_one_without_hands():
    """Rows of a batch with hands in it that have none themselves: the null, and no black pose video to look at."""
    model, inputs = build(), clip()
    assert inputs.hands is not None
    hands = inputs.hands.clone()
    hands[0] = 0.0
    mixed = model(inputs._replace(hands=hands), positions(inputs)).latent
    alone = model(inputs._replace(hands=None), positions(inputs)).latent
    torch.testing.assert_close(mixed[0], alone[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed[1], alone[1], atol=1e-2)


def test_a_hand_tells_of_its_own_frame_and_those_after_it():
    model, inputs = build(), clip()
    assert inputs.hands is not None
    hands = inputs.hands.clone()
    hands[:, 1] = hands[:, 1].flip(-1)
    one, other = model(inputs, positions(inputs)).latent, model(inputs._replace(hands=hands), positions(inputs)).latent
    assert torch.equal(one[:, 0], other[:, 0])
    assert all(not torch.allclose(one[:, time], other[:, time]) for time in (1, 2, 3))


def test_a_teacher_reads_each_hand_in_its_own_frame_only():
    """Without the causal mask a later hand reaches an earlier picture through the pictures alone: not in one layer."""
    model, inputs = build(is_causal=False, num_layers=1), clip()
    assert inputs.hands is not None
    hands = inputs.hands.clone()
    hands[:, 3] = hands[:, 3].flip(-1)
    one, other = model(inputs, positions(inputs)).latent, model(inputs._replace(hands=hands), positions(inputs)).latent
    assert torch.equal(one[:, :3], other[:, :3]) and not torch.allclose(one[:, 3], other[:, 3])


def test_weights_that_know_no_hands_say_so():
    inputs = clip()
    with pytest.raises(ValueError, match="without hands"):
        build(hands=False)(inputs, positions(inputs))
    bare = WorldModel(replace(preset("debug"), transformer=replace(preset("debug").transformer, hands=False)))
    with pytest.raises(ValueError, match="know no hands"):
        WorldEngine(bare, 1, hands="right")


def without_hands(model: WorldModel) -> WorldModel:
    """The same weights as they were before there were hands."""
    config = replace(model.config, transformer=replace(model.config.transformer, hands=False))
    bare = WorldModel(config).requires_grad_(False)
    bare.load_state_dict({name: model.state_dict()[name] for name in bare.state_dict()})
    return bare


def test_weights_from_before_hands_go_on_as_they_were():
    """Grown by what a hand needs, at its first values, they dream the same bits; and a stage may build on them."""
    before = without_hands(debug_world())
    torch.manual_seed(0)
    grown = WorldModel(preset("debug")).requires_grad_(False)
    assert copy_parts(before, grown)["transformer"] == 1.0
    for use_fast in (True, False):
        assert_same_bits(before, grown, use_fast)


def assert_same_bits(before: WorldModel, grown: WorldModel, use_fast: bool) -> None:
    """Both dream the same walk, without a hand."""
    start = Start(torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8), torch.full((2, 1, 64, 64), 2.0))
    engines = [WorldEngine(model, 2, use_fast=use_fast) for model in (before, grown)]
    opened = [engine.open(start, torch.arange(2)) for engine in engines]
    assert torch.equal(opened[0].frame, opened[1].frame)
    for move in 0.2 * torch.randn(4, 2, 6):
        one, other = (engine.step(move, is_realised=True) for engine in engines)
        assert torch.equal(one.frame, other.frame) and torch.equal(one.latent, other.latent)
