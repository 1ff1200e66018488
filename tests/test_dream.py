"""`worldscape dream`: a teacher's clips follow on each other, and a student's frames are the engine's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.walks import walk_store
from worldscape.data.clips import FrameStore
from worldscape.dream import ClipDreamer, dream_clips, dream_steps
from worldscape.train.cli import copy_parts
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel, debug_world


@pytest.fixture(scope="module")
def store() -> FrameStore:
    return walk_store()


@pytest.fixture(scope="module")
def teacher() -> WorldModel:
    student = debug_world()
    model = WorldModel(adapt_model(student.config))
    copy_parts(student, model)
    return model.eval().requires_grad_(False)


def test_clips_follow_on_each_other(store, teacher):
    """Five frames are one clip here; a longer walk begins with the same frames, whatever comes after."""
    walk = np.arange(9)
    short, long = (dream_clips(teacher, store, walk[:count], calls=2, seed=3) for count in (5, 9))
    assert np.array_equal(long[0], store.frames[0]) and long.shape == store.frames[:9].shape
    assert np.array_equal(short, long[:5])
    other = dream_clips(teacher, store, walk[:5], calls=2, seed=4)
    assert not any(np.array_equal(one, two) for one, two in zip(short[1:], other[1:], strict=True))


def test_a_clip_holds_sink_last_frames_and_blank_ones(store, teacher):
    dreamer = ClipDreamer(teacher, store, np.arange(9))
    for _ in range(6):
        dreamer.finish(None)
    clip, recorded = dreamer.clip(num_new=2), [frame.latent for frame in dreamer.frames]
    assert torch.equal(clip["latent"][:, :3], torch.stack([recorded[0], recorded[4], recorded[5]], 1))
    assert not clip["latent"][:, 3:].any()
    assert torch.equal(clip["rays"][:, 3:], torch.stack([dreamer.rays(6), dreamer.rays(7)], 1))
    assert float(clip["coverage"][:, 3].max()) > 0


def test_a_clip_holds_what_memory_retrieves_for_its_last_frame(store, teacher):
    """After 12 frames at most two of 1 to 8 join the sink and the last two; where there is one, the other is absent."""
    memory = replace(teacher.config.memory, num_retrieved=2)
    reader = WorldModel(replace(teacher.config, memory=memory)).requires_grad_(False)
    reader.load_state_dict(teacher.state_dict())
    dreamer = ClipDreamer(reader, store, np.arange(16))
    for _ in range(12):
        dreamer.finish(None)
    clip, chosen = dreamer.clip(num_new=2), dreamer.retrieve(13)
    assert len(chosen) == 2 and 1 <= chosen[0] < 12 - memory.local_window
    recorded = [frame.latent for frame in dreamer.frames]
    expected = [recorded[number] for number in (0, *(max(number, 0) for number in chosen), 10, 11)]
    assert torch.equal(clip["latent"][:, :5], torch.stack(expected, 1)) and not clip["latent"][:, 5:].any()
    assert clip["sees"][0, -1].tolist() == [True, *(number >= 0 for number in chosen), True, True, True, True]
    made = dream_clips(reader, store, np.arange(9), calls=2, seed=3)
    assert made.shape == store.frames[:9].shape


def test_a_student_is_stepped_along_the_walk(store):
    made = dream_steps(debug_world(), store, np.arange(4), calls=1, seed=3)
    assert np.array_equal(made[0], store.frames[0]) and len(made) == 4
    assert not np.array_equal(made[1], made[2])
