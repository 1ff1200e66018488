"""`eval retrieval`: true visibility in scenes known by hand, the oracle's choice, and the other choices."""

import torch

from tests.evaluate.panorama import PanoramaEnv, random_keys
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.reproject import encode_depth, visible_from
from worldscape.config import MemoryConfig
from worldscape.evaluate import retrieval
from worldscape.evaluate.episodes import Judge

INTRINSICS = torch.tensor([[0.5, 0.5, 0.5, 0.5]])  # 90 degrees


def wall(distance: float, size: int = 16) -> torch.Tensor:
    rgb = torch.zeros(1, 1, 3, size, size)
    return torch.cat([rgb, encode_depth(torch.full((1, 1, 1, size, size), distance))], 2)


def poses(*states: list[float]) -> torch.Tensor:
    return pose_from_state(torch.tensor([states]))


def test_a_picture_sees_what_lies_in_its_view_and_is_not_hidden():
    """A wall 2 m ahead; the view stands 1 m to the right, where a camera at the origin sees the left three quarters."""
    pictures = torch.cat([wall(2.0), wall(1.0), wall(2.0)], 1)
    stored = poses([0.0] * 6, [0.0] * 6, [0.0, 0, 0, 3.14159, 0, 0])
    target = pose_from_state(torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    valid = torch.ones(1, 3, dtype=torch.bool)
    sees = visible_from(pictures, stored, valid, torch.full((1, 16, 16), 2.0), target, INTRINSICS)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:, :12] = True
    assert torch.equal(sees[0, 0], expected)
    assert not sees[0, 1].any() and not sees[0, 2].any()  # a nearer wall in between; a camera that looks away
    assert not visible_from(pictures, stored, ~valid, torch.full((1, 16, 16), 2.0), target, INTRINSICS).any()


def test_the_oracle_takes_pictures_that_complement_each_other():
    """The two largest are the same; the best pair is one of them and the small one beside it."""
    sees = torch.zeros(1, 4, 10, dtype=torch.bool)
    sees[0, 0, :6] = sees[0, 1, :6] = True
    sees[0, 2, 6:9] = True
    sees[0, 3] = True  # holds no frame
    view = retrieval.View(sees, torch.tensor([[0, 1, 2, -1]]), torch.tensor([[0.1, 0.2, 0.9, 0.0]]))
    assert retrieval.choose_greedily(view, 2).tolist() == [[True, False, True, False]]
    assert retrieval.choose_highest(-view.distance, view.frames, 2).tolist() == [[True, True, False, False]]
    assert retrieval.choose_highest(view.frames.float(), view.frames, 3).tolist() == [[True, True, True, False]]


def test_shares_lie_between_chance_and_the_oracle():
    episodes = Judge(policy=random_keys, make_env=lambda num_steps: PanoramaEnv()).episodes(3, 24)
    config = MemoryConfig(num_keyframes=8, num_anchors=2, novelty=1.0)
    found = retrieval.judge_retrieval(config, episodes, every=3)
    assert found.metrics["num_views"] == 3 * 8  # steps 3, 6, ..., 24 of three episodes
    for method in retrieval.METHODS:
        assert 0 <= found.metrics[f"covered_{method}"] <= found.metrics["covered_oracle"] + 1e-6
