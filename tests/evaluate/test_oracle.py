"""A generator that is always right: each frame's latent is the true frame's, whatever the batch, and the rest is a
dream."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.reproject import encode_depth
from worldscape.evaluate.dream import dream_episodes, make_start
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.oracle import OracleEngine
from worldscape.world import debug_world


@pytest.fixture(scope="module")
def large(episodes: EpisodeBatch) -> EpisodeBatch:
    """The toy simulator's episodes, twice as large."""
    frames, depth = (part.repeat(2, 2).repeat(2, 3) for part in (episodes.frames, episodes.depth))
    return replace(episodes, frames=frames, depth=depth)


class Watched(OracleEngine):
    """Keeps the latent of every frame."""

    def step(self, controls, active=None, **options):
        frame = super().step(controls, active, **options)
        self.latents = [*getattr(self, "latents", []), self.state.latent.clone()]
        return frame


@pytest.mark.parametrize("context", [1, 3])
def test_latents_are_those_of_the_true_frames(large, context):
    """Of five episodes in batches of two, the last of which is filled up with the fifth again."""
    model, steps = debug_world(), 4
    assert model.config.codec.size == large.frames.shape[2]
    engine = Watched(model, 2)
    dream = dream_episodes(engine, large, num_steps=steps, context=context, is_realised=True)
    found = torch.stack(engine.latents).unflatten(0, (3, steps)).transpose(1, 2).flatten(0, 1)[: len(large)]
    frames, depth = (torch.from_numpy(part[:, context:][:, :steps]) for part in (large.frames, large.depth))
    truth = frame_to_rgbd(frames.flatten(0, 1), encode_depth(depth.float()).flatten(0, 1))
    wanted = model.codec.encode(truth).unflatten(0, frames.shape[:2])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    alone = dream_episodes(OracleEngine(model, 5), large, num_steps=steps, context=context, is_realised=True)
    assert np.abs(dream.frames.astype(int) - alone.frames).max() <= 1 and dream.frames.std() > 0


def test_as_many_episodes_as_slots(large):
    engine = OracleEngine(debug_world(), 2)
    engine.open(make_start(large.rows([0, 1]), 1), torch.arange(2))
    with pytest.raises(ValueError, match="5 episodes are told to 2 slots"):
        engine.tell(large, 1)
