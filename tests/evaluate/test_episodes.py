"""Judged episodes: alignment of frames and steps, cutting, caching, held-out layouts, and refusals."""

import numpy as np
import pytest

from tests.evaluate.panorama import PanoramaEnv, draw_frame, draw_texture, move, random_keys
from worldscape.conditioning.controls import ControlScale, discrete_controls
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.evaluate.episodes import EpisodeBatch, Judge


def test_frames_and_steps_are_aligned(episodes):
    assert episodes.seeds.tolist() == [HELD_OUT_SEED + index for index in range(5)]
    table, state = discrete_controls(ControlScale()), np.zeros(6, np.float32)
    texture = draw_texture(int(episodes.seeds[2]))
    for step, action in enumerate(episodes.actions[2]):
        state, realised = move(state, table[action])
        assert np.array_equal(episodes.frames[2, step + 1], draw_frame(texture, state))
        assert np.array_equal(episodes.controls[2, step], table[action])
        assert np.array_equal(episodes.realised[2, step], realised)


def test_refused_steps_count_as_no_ops():
    env = PanoramaEnv()
    judge = Judge(policy=lambda env, rng: lambda observation, info: 1, make_env=lambda num_steps: env)
    walked = judge.episodes(1, 6)
    assert walked.effective_actions().tolist() == [[1, 1, 1, 0, 0, 0]]
    assert walked.collision.tolist() == [[False] * 3 + [True] * 3]


def test_episodes_are_walked_once_and_depend_on_the_seed_only(judge, episodes):
    assert judge.episodes(5, 12) is episodes
    later = judge.episodes(2, 12, first_seed=HELD_OUT_SEED + 3)
    assert np.array_equal(later.frames, episodes.frames[3:])


def test_cut_and_segments_keep_frames_beside_their_steps(episodes):
    segments = episodes.segments(5)
    assert len(segments) == 10 and segments.num_steps == 5
    assert np.array_equal(segments.frames[5:], episodes.frames[:, 5:11])
    assert np.array_equal(segments.actions[:5], episodes.actions[:, :5])
    assert np.array_equal(episodes.cut(4, 3).pose, episodes.pose[:, 4:8])
    with pytest.raises(ValueError, match="within"):
        episodes.cut(10, 3)


def test_restless_presses_every_key():
    walked = Judge(policy="restless", make_env=lambda num_steps: PanoramaEnv()).episodes(2, 60)
    assert (np.bincount(walked.actions.ravel(), minlength=9) >= 2).all()


def test_bad_requests_are_named(judge):
    with pytest.raises(ValueError, match="unknown source"):
        Judge("moon")
    with pytest.raises(ValueError, match="unknown policy"):
        Judge(policy="teleport")
    with pytest.raises(ValueError, match="at least 1"):
        judge.episodes(0, 5)


def test_a_simulator_without_depth_is_refused():
    class Bare(PanoramaEnv):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            return observation, {key: value for key, value in info.items() if key != "depth"}

    with pytest.raises(ValueError, match="lacks depth"):
        Judge(policy=random_keys, make_env=lambda num_steps: Bare()).episodes(1, 2)


def test_rooms_are_walked_on_held_out_layouts():
    pytest.importorskip("worldscape.data.rooms_gl", exc_type=ImportError)
    walked = Judge().episodes(1, 3)
    assert isinstance(walked, EpisodeBatch)
    assert walked.frames.shape == (1, 4, 64, 64, 3) and walked.frames.std() > 10
    assert 0.1 < np.median(walked.depth) < 50 and np.allclose(walked.pose[0, 0, 3], [0, 0, 0, 1])
