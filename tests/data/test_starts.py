"""Start frames: which frames are chosen, and that they survive the file."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from worldscape import cli
from worldscape.conditioning.hand_model import hand_keypoints
from worldscape.conditioning.hands import rotation_to_six, state_from_vector
from worldscape.data.episode import Episode, EpisodeReader
from worldscape.data.record import RecordConfig, record
from worldscape.data.starts import (
    StartsConfig,
    collect_starts,
    hands_as_seen,
    is_near_success,
    load_starts,
    save_starts,
)

STEPS = 8


class FakeReader(EpisodeReader):
    """Episodes made up in memory."""

    def __init__(self, *episodes: Episode) -> None:
        self.episodes, self.path = episodes, "made-up"  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        return self.episodes[index]


def make_episode(seed: int = 0, **changes) -> Episode:
    """Frame t is a chessboard of brightness 10 t, four metres away."""
    board = np.indices((4, 4)).sum(0) % 2
    frames = np.stack([np.repeat((board * 10 * t).astype(np.uint8)[..., None], 3, -1) for t in range(STEPS + 1)])
    flags = np.zeros(STEPS, bool)
    fields = {"depth": np.full((STEPS + 1, 4, 4), 4.0, np.float16)} | changes
    return Episode(
        frames=frames,
        actions=np.zeros(STEPS, np.int64),
        rewards=np.zeros(STEPS),
        terminations=flags,
        truncations=flags,
        seed=seed,
        **fields,
    )


def chosen_frames(episode: Episode, num: int, **settings) -> list[int]:
    """Which frames of the episode are taken when all that qualify are."""
    starts = collect_starts(FakeReader(episode), StartsConfig(num=num, **settings))
    return sorted((starts.frames[:, -1].max(axis=(1, 2, 3)) // 10).tolist())


def test_the_more_detailed_half_of_the_frames_qualifies():
    assert chosen_frames(make_episode(), 5) == [4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="only 5 of 6 starts found"):
        chosen_frames(make_episode(), 6)


def test_fingers_that_something_holds_back_are_where_they_are_seen():
    """A start had them curled, as they were told, while the picture showed them flat on the table: when the hand left,
    the dream kept four painted fingers there."""
    states = torch.zeros(3, 2, 16)
    states[..., 3:9] = rotation_to_six(torch.eye(3))
    states[..., 9:] = torch.tensor([0.4, 0.0, 0.6, 0.6, 0.6, 0.8, 0.0])
    seen = states.clone()
    seen[1, :, 9:] = torch.tensor([0.4, 0.1, 0.1, 0.2, 0.1, 0.8, 0.0])
    is_left = torch.tensor([True, False])
    keypoints = hand_keypoints(state_from_vector(seen), is_left).numpy()
    present = np.ones((3, 2), bool)
    present[2] = False
    keypoints[2] = 0.0
    shown = hands_as_seen(states.numpy(), keypoints, present)
    np.testing.assert_array_equal(shown[[0, 2]], states[[0, 2]])
    np.testing.assert_allclose(shown[1], seen[1], atol=0.01)


def test_a_curriculum_takes_frames_from_which_the_goal_was_reached_soon():
    """Reached in steps 3 and 6, which frames 4 and 7 show: two steps before are 2, 3 and 5, 6."""
    success = np.isin(np.arange(STEPS), [3, 6])
    near = is_near_success(make_episode(success=success), 2)
    assert np.flatnonzero(near).tolist() == [2, 3, 5, 6]
    assert chosen_frames(make_episode(success=success), 2, reaches_within=2) == [5, 6]
    assert not is_near_success(make_episode(success=np.zeros(STEPS, bool)), STEPS).any()
    with pytest.raises(ValueError, match="has no success, which this needs"):
        chosen_frames(make_episode(), 1, reaches_within=2)


def test_with_hands_one_is_in_view_and_nothing_was_touched_or_reached_yet():
    """Touched from frame 6 on, the target reached in step 6; in frames 0 and 3 most of the hand is out of view."""
    visible = np.zeros((STEPS + 1, 2, 21), bool)
    visible[:, 1] = True
    visible[0, 1], visible[3, 1, :12] = False, False
    contact, success = np.zeros(STEPS + 1, bool), np.zeros(STEPS, bool)
    contact[6], success[6] = True, True
    hands = {"hand_state": np.zeros((STEPS + 1, 2, 16), np.float32), "hand_visible": visible}
    assert chosen_frames(make_episode(**hands, contact=contact, success=success), 4) == [1, 2, 4, 5]
    assert chosen_frames(make_episode(**hands, success=success), 5) == [1, 2, 4, 5, 6]


def test_frames_before_a_wall_or_tilted_or_at_the_goal_do_not_qualify():
    depth = np.full((STEPS + 1, 4, 4), 4.0, np.float16)
    depth[8], depth[7, 0] = 2.0, 0.5
    camera = np.zeros((STEPS + 1, 6), np.float32)
    camera[6, 4] = 0.2
    goal_distance = np.full(STEPS + 1, 3.0, np.float32)
    goal_distance[5] = 1.0
    episode = make_episode(depth=depth, camera=camera, goal_distance=goal_distance)
    assert chosen_frames(episode, 3) == [2, 3, 4]
    assert chosen_frames(make_episode(depth=depth), 4) == [3, 4, 5, 6]
    assert chosen_frames(make_episode(depth=depth), 5, min_depth=0) == [4, 5, 6, 7, 8]


def test_every_layout_gives_a_start_before_any_gives_a_second():
    reader = FakeReader(*(make_episode(seed) for seed in range(6)))
    assert sorted(collect_starts(reader, StartsConfig(num=6)).seeds.tolist()) == list(range(6))
    seeds = collect_starts(reader, StartsConfig(num=9)).seeds.tolist()
    assert sorted(seeds[:6]) == list(range(6)) and len(set(seeds[6:])) == 3


def test_the_choice_follows_the_seed():
    reader = FakeReader(*(make_episode(seed) for seed in range(6)))
    first, again, other = (collect_starts(reader, StartsConfig(num=6, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.seeds.tolist() != other.seeds.tolist()


def test_context_frames_are_the_ones_before():
    starts = collect_starts(FakeReader(make_episode()), StartsConfig(num=3, frames=3))
    times = starts.frames.max(axis=(2, 3, 4)).astype(int) // 10
    np.testing.assert_array_equal(np.diff(times, axis=1), np.ones((3, 2)))
    assert starts.depth is not None and starts.depth.shape == (3, 3, 4, 4)


def test_command_collects_from_a_recording_and_the_file_keeps_every_value(tmp_path, capsys):
    config = RecordConfig(
        env="tests.data.tiny_env:Tiny-v0",
        out=tmp_path / "d",
        episodes=2,
        policy="tests.data.tiny_env:explore",
        steps_per_episode=STEPS,
    )
    record(config)
    command = ["starts", "--data", str(config.out), "--out", str(tmp_path / "s.safetensors"), "--num", "4"]
    assert cli.main([*command, "--min-depth", "1"]) == 0
    assert "4 starts from 2 layouts" in capsys.readouterr().out
    starts = load_starts(tmp_path / "s.safetensors")
    expected = collect_starts(EpisodeReader(config.out), StartsConfig(num=4, min_depth=1))
    assert starts.arrays().keys() == {"frames", "seeds", "depth", "pose", "intrinsics", "camera"}
    for name, value in expected.arrays().items():
        np.testing.assert_array_equal(starts.arrays()[name], value)
    assert cli.main([*command, "--min-depth", "90"]) == 1
    assert "only 0 of 4 starts found" in capsys.readouterr().err


def test_rows_select_starts():
    starts = collect_starts(FakeReader(*(make_episode(seed) for seed in range(4))), StartsConfig(num=4))
    np.testing.assert_array_equal(starts.rows(starts.seeds >= 2).seeds, starts.seeds[starts.seeds >= 2])
    np.testing.assert_array_equal(starts.rows(np.array([1])).frames, starts.frames[1:2])


def test_a_dataset_without_depth_needs_min_depth_zero():
    episode = make_episode(depth=None)
    with pytest.raises(ValueError, match="has no depth, which this needs"):
        chosen_frames(episode, 1)
    starts = collect_starts(FakeReader(episode), StartsConfig(num=2, min_depth=0))
    assert starts.depth is None and len(starts) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("num", 0), ("frames", 0), ("min_depth", -1.0), ("seed", -1), ("min_depth", np.nan)]
)
def test_wrong_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least"):
        StartsConfig(**({"num": 1} | {name: value}))


def test_damaged_foreign_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(ValueError, match="does not exist; write one with `worldscape starts`"):
        load_starts(path)
    save_starts(collect_starts(FakeReader(make_episode()), StartsConfig(num=2)), path)
    assert len(load_starts(path)) == 2
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        load_starts(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a starts file of version 1"):
        load_starts(path)
