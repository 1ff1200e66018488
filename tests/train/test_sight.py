"""Clips with retrieved frames: who sees whom, and one forward over a clip equals the engine's cached calls."""

from __future__ import annotations

import pytest
import torch

from tests.model.memory_worlds import INTRINSICS, SIZE, numbers, picture, pose
from tests.model.test_transformer import CODEC, build, cut, frames, positions
from worldscape.config import MemoryConfig
from worldscape.fast import FastTransformer
from worldscape.memory.pages import PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.nn.blocks import KeysValues
from worldscape.sight import present, sight
from worldscape.transformer import FrameInputs

MEMORY = MemoryConfig(num_sink=1, local_window=3, num_keyframes=8, num_anchors=2, num_retrieved=2)
TIMES = MEMORY.num_context + 1
LEVEL = 0.3  # of the target
IS_HELD = torch.tensor([[True, True], [True, False], [False, False]])  # of three clips' places for retrieved frames


def test_who_sees_whom():
    """Sink, two retrieved of which the second is absent, one local frame, target."""
    sees = sight(torch.tensor([[True, False]]), 1, 2)
    assert present(sees).tolist() == [[True, True, False, True, True]]
    sees = sees[0].int().tolist()
    assert sees == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    both = sight(torch.tensor([[True, True]]), 1, 2)[0].int().tolist()
    assert both == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_a_teachers_frames_see_all_that_is_there():
    sees = sight(torch.tensor([[True, False]]), 1, 1, is_causal=False)[0].int().tolist()
    assert sees == [[1, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 0, 1]]


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_what_stands_in_the_place_of_an_absent_frame_changes_nothing(attention, is_causal):
    model, inputs = build(attention=attention, is_causal=is_causal), frames(3, TIMES)
    sees = sight(IS_HELD, 1, 4, is_causal)
    is_there = present(sees)
    other = FrameInputs(*(torch.where(expand_to(is_there, part), part, 3.0 * part) for part in inputs[:5]))
    one, two = (model(clip, positions(3, TIMES), sees=sees).latent for clip in (inputs, other))
    assert torch.equal(one[is_there], two[is_there]) and not torch.allclose(one, two)
    seen = inputs._replace(latent=inputs.latent.clone())
    seen.latent[:, 1] += 1.0
    changes = (model(seen, positions(3, TIMES), sees=sees).latent != one)[:, -1].any((1, 2))
    assert changes.tolist() == [True, True, False], "the target reads what was retrieved for it"


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("use_fast", [False, True])
def test_the_target_of_a_clip_is_what_the_engine_makes_of_retrieved_pages(attention, use_fast):
    """Three slots whose keys are those of the clips' frames; a fourth page that nobody retrieves lies between."""
    model, inputs = build(attention=attention), frames(3, TIMES)
    inputs.level[:, -1] = LEVEL
    whole = model(inputs, positions(3, TIMES), sees=sight(IS_HELD, 1, 4))
    memory = WorldMemory.empty(MEMORY, 3, PageShape(3, CODEC.num_tokens, 2, 12, SIZE), torch.zeros(()))
    for place, yaw in ((0, 0.0), (1, -1.1), (2, -1.6), (6, -1.1), (3, 1.6), (4, 1.6), (5, 1.6)):
        layers = [KeysValues(new.keys[:, [place]], new.values[:, [place]]) for new in whole.layers]
        layers = [KeysValues(paired(new.keys), new.values) for new in layers] if use_fast else layers
        remember(memory, layers, pose(yaw).repeat(3, 1, 1))
    recall = memory.recall(torch.cat([pose(-1.35), pose(-1.1), pose(1.2)]), INTRINSICS.repeat(3, 1), use_anchor=False)
    assert numbers(memory, recall.retrieved) == [[1, 2], [1, -1], [-1, -1]]
    history, times = memory.read(recall.retrieved), memory.next_positions()
    target = cut(inputs, slice(None), slice(-1, None))
    if use_fast:
        fast = FastTransformer(model, [LEVEL])
        view = fast.embed_view(target.rays, target.anchor, target.coverage)
        found = fast.refine(target.latent, LEVEL, view, times, fast.place(history)).latent
    else:
        found = model(target, times, model.place(history)).latent
    torch.testing.assert_close(found[:, 0], whole.latent[:, -1], atol=3e-5, rtol=1e-4)


def test_a_clip_that_opens_a_dream_is_what_the_engine_makes_step_by_step():
    """Nothing can be retrieved yet; positions leave room for it all the same."""
    model, inputs = build(), frames(2, TIMES)
    whole = model(inputs, positions(2, TIMES), sees=sight(IS_HELD[[2, 2]], 1, 4)).latent
    memory = WorldMemory.empty(MEMORY, 2, PageShape(3, CODEC.num_tokens, 2, 12, SIZE), torch.zeros(()))
    for place in (0, 3, 4, 5, 6):
        now, where = cut(inputs, slice(None), slice(place, place + 1)), pose().repeat(2, 1, 1)
        recall = memory.recall(where, INTRINSICS.repeat(2, 1), use_anchor=False)
        made = model(now, memory.next_positions(), model.place(memory.read(recall.retrieved)))
        torch.testing.assert_close(made.latent[:, 0], whole[:, place], atol=2e-5, rtol=1e-4)
        remember(memory, made.layers, where)


def expand_to(is_there: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return is_there.reshape(*is_there.shape, *[1] * (part.ndim - 2))


def paired(keys: torch.Tensor) -> torch.Tensor:
    """Keys as FastTransformer commits them: rotary partners side by side."""
    return torch.stack(keys.chunk(2, -1), -1).flatten(-2)


def remember(memory: WorldMemory, layers: list[KeysValues], where: torch.Tensor) -> None:
    """Commit a wall seen from `where` as if memory had shown nothing of it."""
    frame = Frame(layers, picture(0.0).repeat(len(where), 1, 1, 1), where, INTRINSICS.repeat(len(where), 1))
    recall = memory.recall(where, frame.intrinsics, use_anchor=False)
    memory.append(frame, recall, torch.ones(len(where), dtype=torch.bool))
