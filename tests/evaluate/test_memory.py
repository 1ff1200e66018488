"""`eval memory`: which steps are revisits, what a perfect and a forgetful memory score, how the policies differ."""

import numpy as np
import pytest

from tests.evaluate.panorama import PanoramaEnv
from worldscape.conditioning.camera import pose_from_state_numpy
from worldscape.config import MemoryConfig, preset
from worldscape.data.explore import FORWARD, TURN_LEFT, TURN_RIGHT
from worldscape.evaluate import memory
from worldscape.evaluate.dream import Dream
from worldscape.evaluate.episodes import EpisodeBatch, Judge
from worldscape.world import debug_world


@pytest.fixture(scope="module")
def walk() -> EpisodeBatch:
    """Two turns right, two left, in two layouts: steps 3 and 4 show again what steps 1 and 0 showed."""
    path = (TURN_RIGHT, TURN_RIGHT, TURN_LEFT, TURN_LEFT)
    return Judge(policy=memory.follow(path), make_env=lambda num_steps: PanoramaEnv()).episodes(2, 4)


def dream_of(frames: np.ndarray, episodes: EpisodeBatch) -> Dream:
    return Dream(frames=frames, depth=episodes.depth[:, 1:], pose=episodes.pose[:, 1:], realised=episodes.realised)


def test_revisits_are_poses_that_recur_after_the_gap(walk):
    revisits = memory.find_revisits(walk.pose, gap=2)
    assert list(zip(*(part.tolist() for part in revisits), strict=True)) == [(0, 1, 3), (0, 0, 4), (1, 1, 3), (1, 0, 4)]
    assert memory.find_revisits(walk.pose, gap=3).before.tolist() == [0, 0]


def test_a_revisit_needs_both_place_and_view():
    states = np.zeros((1, 4, 6), np.float32)
    states[0, 1, 0], states[0, 2, 3], states[0, 3, :4] = 0.2, 0.1, [0.01, 0, 0, 2 * np.pi]
    revisits = memory.find_revisits(pose_from_state_numpy(states), gap=1)
    assert (revisits.before.tolist(), revisits.now.tolist()) == ([0], [3])


def test_a_perfect_memory_and_one_that_dreams_anew(walk):
    revisits = memory.find_revisits(walk.pose, gap=2)
    perfect = memory.score_revisits(dream_of(walk.frames[:, 1:], walk), walk, revisits)
    assert perfect["revisit_psnr"] == perfect["symmetry_psnr"] == perfect["return_psnr"] == 60.0
    other = 255 - walk.frames[:, 1:]  # consistent with itself, except where it returns to the real start
    wrong = memory.score_revisits(dream_of(other, walk), walk, revisits)
    assert wrong["return_psnr"] < 12 and wrong["revisit_psnr"] < 12
    assert wrong["symmetry_psnr"] == pytest.approx((60.0 + wrong["return_psnr"]) / 2, abs=1e-3)


def test_policies_have_the_same_context():
    base = MemoryConfig(num_sink=1, local_window=3, num_keyframes=6, num_anchors=2, num_retrieved=2)
    for name in ("maco", "full", "sink+local", "local"):
        config = memory.with_policy(base, name, num_steps=40)
        num_sink = 0 if name == "local" else config.num_sink
        assert config.policy == name
        assert num_sink + config.num_retrieved + config.local_window == base.num_context
    assert memory.with_policy(base, "full", 40).num_keyframes == 41
    with pytest.raises(ValueError, match="policy 'best'"):
        memory.with_policy(base, "best", 40)


def test_a_walk_that_never_returns_is_refused():
    walk = Judge(policy=memory.follow((FORWARD,) * 3), make_env=lambda num_steps: PanoramaEnv()).episodes(1, 3)
    with pytest.raises(ValueError, match="no place is seen again"):
        memory.judge_memory(debug_world(), {"ahead": walk}, ("maco",), batch=1)


def test_paths_return_to_where_they_began():
    """In the open, every named path ends at its start or passes it late enough to need memory."""
    for name, path in memory.PATHS.items():
        env = Judge(policy=memory.follow(path), make_env=lambda num_steps: PanoramaEnv())
        assert len(path) > preset("nano").memory.num_context + 1, name
        if name in ("spin", "turn_and_back"):
            episodes = env.episodes(1, len(path))
            assert (memory.find_revisits(episodes.pose, 8).before == 0).any(), name
