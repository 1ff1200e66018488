"""What a simulator offers beside its pictures: wrong shapes, units and gaps are refused where they come in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from tests.data.tiny_env import SIZE, TinyEnv, explore
from tests.data.written import write_dataset
from worldscape.conditioning.controls import discrete_controls
from worldscape.data import starts
from worldscape.data.clips import load_frames
from worldscape.data.episode import MAX_DEPTH, EpisodeReader
from worldscape.data.rollout import roll_episode

STEPS = 4
Change = Callable[[dict[str, Any], "ChangedEnv"], None]


class ChangedEnv(TinyEnv):
    """TinyEnv after `change` had its way with each info; every step does what its key says, times `scale`."""

    def __init__(self, change: Change | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.change, self.motion, self.scale = change, np.zeros(6, np.float32), scale

    def step(self, action):
        self.motion = self.scale * discrete_controls()[action]
        return super().step(action)

    def _info(self) -> dict[str, Any]:
        info = super()._info() | {"realised": self.motion, "collision": False}
        if self.change is not None:
            self.change(info, self)
        return info


def roll(change: Change | None, seed: int = 0, scale: float = 1.0) -> EpisodeBuffer:
    return roll_episode(ChangedEnv(change, scale), explore, seed=seed, num_steps=STEPS, index=seed)


def write(path: Path, *episodes: EpisodeBuffer, **options: Any) -> Path:
    return write_dataset(path, ChangedEnv(), *episodes, **options)


def infos(episode: EpisodeBuffer) -> dict[str, Any]:
    assert episode.infos is not None
    return episode.infos


def put(key: str, value: Any) -> Change:
    return lambda info, _: info.update({key: value(info[key]) if callable(value) else value})


def leave_out(key: str, when: Callable[["ChangedEnv"], bool]) -> Change:
    return lambda info, env: info.pop(key) if when(env) else None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("depth", lambda x: x[..., None]), r"info 'depth' has the shape \[6, 6, 1\]; it must be numbers \[6, 6\]"),
        (put("depth", lambda x: x[::2, ::2]), r"info 'depth' has the shape \[3, 3\]"),
        (put("depth", lambda x: -x), "info 'depth' has -.* in it; .* metres along the view axis"),
        (put("depth", lambda x: x * np.nan), "info 'depth' holds NaN or infinity"),
        (
            put("pose", lambda x: x[:3]),
            r"info 'pose' has the shape \[3, 4\]; .* \[4, 4\]: camera to world",
        ),
        (put("pose", np.full((4, 4), np.inf)), "info 'pose' holds NaN or infinity"),
        (put("pose", lambda x: x + 1), "info 'pose' has the last row"),
        (put("pose", lambda x: x @ np.diag([2, 2, 2, 1])), "not unit vectors at right angles"),
        (put("pose", lambda x: x @ np.diag([1, 1, -1, 1])), "info 'pose' has a left-handed rotation"),
        (put("intrinsics", np.eye(3)), r"info 'intrinsics' has the shape \[3, 3\]; it must be numbers \[4\]: \(fx/w"),
        (
            put("intrinsics", [38.4, 38.4, 32.0, 32.0]),
            r"is \[38.4, .*; divide pixels by the picture's width w",
        ),
        (put("intrinsics", [0.0, 0.6, 0.5, 0.5]), "focal lengths above 0"),
        (put("camera", lambda x: x[:3]), r"info 'camera' has the shape \[3\]"),
        (put("realised", [0.25, 0.0]), r"info 'realised' has the shape \[2\]; .* metres and .* radians"),
        (
            put("control", np.full(6, np.inf)),
            "info 'control' holds NaN or infinity; .*: the commanded",
        ),
        (put("target", "red box"), "info 'target' is .*red box.*, which is no number"),
        (put("target", [[1.0], [1.0, 2.0]]), "info 'target' is no array"),
        (put("collision", [True]), r"info 'collision' has the shape \[1\]; it must be a number: one truth value"),
    ],
)
def test_an_info_that_is_not_what_training_reads_is_refused_by_name(change, message):
    """Such recordings were made without a word, and trained on to the end or until torch did not know what to do."""
    with pytest.raises(ValueError, match=message):
        roll(change)


def test_depth_may_be_infinite_and_is_kept_as_far_away():
    depth = infos(roll(put("depth", np.full((SIZE, SIZE), np.inf))))["depth"]
    assert depth.dtype == np.float16 and (depth == MAX_DEPTH).all()


def test_a_camera_that_zooms_is_refused():
    with pytest.raises(ValueError, match="'intrinsics' changes within an episode; record with a camera that does not"):
        roll(lambda info, env: info.update(intrinsics=np.array([0.6 + 0.1 * env.steps, 0.6, 0.5, 0.5])))


@pytest.mark.parametrize("key", ["depth", "realised"])
def test_an_info_that_comes_late_is_refused(key):
    with pytest.raises(ValueError, match=f"the env's info has only now '{key}' at step 3; it must be in every step"):
        roll(leave_out(key, lambda env: env.steps < 3))


def test_success_that_is_only_told_when_it_happens_is_kept():
    """Whether it was kept was decided by the first step, so that it was lost."""
    assert infos(roll(leave_out("success", lambda env: env.steps != 4)))["success"] == [False] * 4 + [True]
    assert "success" not in infos(roll(leave_out("success", lambda _: True)))


def test_episodes_that_know_less_than_the_first_are_refused_and_not_kept(tmp_path):
    """Depth of every second episode alone gave NumPy's own error, once training began."""
    with pytest.raises(ValueError, match="info had 'depth' in episode 0 but not in 1; it must offer the same infos in"):
        write(tmp_path / "d", roll(None), roll(leave_out("depth", lambda _: True)))
    assert len(EpisodeReader(tmp_path / "d")) == 1
    with pytest.raises(ValueError, match="info had 'control' in episode 2 but not in 0"):
        write(tmp_path / "e", roll(None), roll(None), roll(put("control", np.zeros(6))))


def test_episodes_without_a_success_count_as_failed(tmp_path):
    failed, succeeded = (leave_out("success", lambda env, least=least: env.steps < least) for least in (9, 4))
    data = write(tmp_path / "d", roll(failed), roll(succeeded))
    assert load_frames(data, SIZE).success.tolist() == [0.0] * (2 * STEPS + 1) + [1.0]
    found = starts.collect_starts(EpisodeReader(data), starts.StartsConfig(num=1, min_depth=0, reaches_within=2))
    assert found.seeds.tolist() == [1]


def spoil(path: Path, monkeypatch, name: str, value: Any) -> None:
    """Let readers find this in episode 1 of a dataset."""
    whole = EpisodeReader.episode

    def episode(self, index):
        found = whole(self, index)
        return replace(found, **{name: value(getattr(found, name))}) if index == 1 else found

    monkeypatch.setattr(EpisodeReader, "episode", episode)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", lambda _: None, "episode 1 of the dataset .*/d has no depth, which this needs; .* offers 'depth'"),
        (
            "controls",
            lambda _: None,
            "episode 1 of .*/d has no controls, .* whose info offers 'control' at",
        ),
        ("depth", lambda x: x[:, ::2], r"episode 1 of the dataset .*/d: info 'depth' has the shape \[3, 6\]"),
        ("depth", lambda x: x * np.inf, "episode 1 of the dataset .*/d: info 'depth' holds NaN or infinity"),
        ("intrinsics", lambda x: 64 * x, "episode 1 of the dataset .*/d: info 'intrinsics' is"),
        ("controls", lambda x: x[:, :3], r"episode 1 of the dataset .*/d: info 'control' has the shape \[3\]"),
    ],
)
def test_training_names_the_episode_that_lacks_something(tmp_path, monkeypatch, name, value, message):
    data = write(tmp_path / "d", roll(None), roll(None, seed=1))
    spoil(data, monkeypatch, name, value)
    with pytest.raises(ValueError, match=message):
        load_frames(data, SIZE)


def test_starts_from_episodes_that_know_different_things_are_refused(tmp_path, monkeypatch):
    data = write(tmp_path / "d", roll(None), roll(None, seed=1))
    spoil(data, monkeypatch, "pose", lambda _: None)
    with pytest.raises(ValueError, match="only some episodes of .*/d have pose; leave the others out"):
        starts.collect_starts(EpisodeReader(data), starts.StartsConfig(num=2, min_depth=0))


def test_keys_that_move_otherwise_need_control(tmp_path):
    """Nine actions of another size were trained on as if each had been ours."""
    load_frames(write(tmp_path / "ours", roll(None)), SIZE)
    with pytest.raises(ValueError, match="no info 'control', .* its 'realised' is not what the nine keys"):
        load_frames(write(tmp_path / "large", roll(None, scale=2.0)), SIZE)
    told = roll(lambda info, env: info.update(control=env.motion), scale=2.0)
    np.testing.assert_array_equal(
        load_frames(write(tmp_path / "told", told), SIZE).controls[1:], infos(told)["realised"][1:]
    )


def test_seeds_of_others_are_no_layouts_of_ours(tmp_path):
    """Minari draws 64 bits, so that every episode of others was held out, and none could become a start."""
    large = 2**64 - 3
    with pytest.raises(ValueError, match="holds 1 held-out layouts"):
        load_frames(write(tmp_path / "ours", roll(None), seed=1_000_000), SIZE)
    data = write(tmp_path / "theirs", roll(None), is_ours=False, seed=large)
    assert load_frames(data, SIZE).num_episodes == 1
    found = starts.collect_starts(EpisodeReader(data), starts.StartsConfig(num=1, min_depth=0))
    assert found.seeds.dtype == np.int64 and found.seeds.tolist() == [2**63 - 3]
