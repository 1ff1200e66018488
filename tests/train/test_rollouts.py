"""Which stretches are rolled out, what counts as a refusal, and the cache that keeps slow results."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from worldscape.config import preset
from worldscape.data.clips import FrameStore, fingerprint
from worldscape.train import cache, prepare
from worldscape.train.cache import cached
from worldscape.train.heads import arriving
from worldscape.train.motion_heads import is_refused, is_repeated_refusal, is_walk, mirror_some
from worldscape.train.rollouts import RolloutPlan

WALK, TURN, STAND = (0, 0, 0.25, 0, 0, 0), (0, 0, 0, 0.26, 0, 0), (0, 0, 0, 0, 0, 0)


def store(controls: list, realised: list, sizes: tuple[int, ...]) -> FrameStore:
    """A store that holds motion only."""
    total = sum(sizes)
    nothing = np.zeros((total, 0))
    return FrameStore(
        frames=nothing,
        depth=nothing,
        pose=nothing,
        camera=nothing,
        controls=np.array(controls or [STAND] * total, np.float32),
        realised=np.array(realised or [STAND] * total, np.float32),
        reward=nothing,
        success=nothing,
        terminated=nothing,
        goal_distance=nothing,
        intrinsics=np.zeros((total, 4)),
        starts=np.concatenate([[0], np.cumsum(sizes)]),
    )


def test_stretches_stay_in_their_episode_and_leave_a_successor():
    frames = RolloutPlan(episodes=3, dreamed=300, recorded=100, length=4, seed=0).draw(store([], [], (5, 9, 6, 50)))
    assert frames.shape == (400, 4)
    assert (frames.diff(dim=1) == 1).all()
    first, ends = frames[:, 0].numpy(), np.array([5, 14, 20])
    assert (first + 4 < ends[np.searchsorted(ends, first, side="right")]).all()
    assert set(first.tolist()) == {0, *range(5, 10), 14, 15}  # every place, and none of the fourth episode


def test_short_episodes_are_left_out_and_refused_where_all_are(capsys):
    """One episode that ended early stopped a training for which all others were long enough."""
    plan = RolloutPlan(episodes=3, dreamed=50, recorded=1, length=4, seed=0)
    frames = plan.draw(store([], [], (9, 4, 6)))
    assert set(frames[:, 0].tolist()) == {*range(5), 13, 14}
    assert "1 episodes are left out: rollouts of 4 frames need longer ones" in capsys.readouterr().out
    plan.draw(store([], [], (9, 5, 6)))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="episodes have 2 to 4 frames; rollouts of 4 need .* or lower dream_frames"):
        plan.draw(store([], [], (2, 4, 4)))


@pytest.mark.parametrize(
    ("sizes", "length"),
    [([100] * 9 + [2], 64), ([64] * 2, 64), ([50] * 9 + [100], 50), ([40, 41], 40), ([30, 2, 2], 30)],
)
def test_one_short_episode_does_not_shorten_all_dreams(sizes, length):
    assert prepare.dream_length(np.array(sizes), 64) == length


def test_dreams_are_prepared_of_the_episodes_that_are_long_enough(monkeypatch, capsys):
    """One episode of three frames made every dream three frames long."""
    monkeypatch.setattr(prepare, "_replay", lambda model, memory, store, rows, *_: {"latent": rows})
    model, memory = cast(Any, nn.Linear(1, 1)), preset("debug").memory
    frames = prepare._replay_all(model, memory, store([], [], (9, 3, 8)), 6, 0, 0)["frames"]
    alone = prepare._replay_all(model, memory, store([], [], (9, 8)), 6, 0, 0)["frames"]
    assert (frames - alone).tolist() == [[0] * 6, [3] * 6] and (frames.diff(dim=1) == 1).all()
    assert capsys.readouterr().out == "1 episodes are left out: they are shorter than dreams of 6 frames\n"


def test_only_the_first_of_equal_refusals_counts():
    controls = [STAND, WALK, WALK, WALK, TURN, WALK, WALK]
    realised = [STAND, WALK, STAND, STAND, TURN, STAND, WALK]
    moves, index = store(controls, realised, (7,)), np.arange(7)
    assert is_walk(moves, index).tolist() == [False, True, True, True, False, True, True]
    assert is_refused(moves, index).tolist() == [False, False, True, True, False, True, False]
    assert is_repeated_refusal(moves, index).tolist() == [False, False, False, True, False, False, False]


def test_who_stays_at_the_goal_arrives_once():
    """Two episodes: one that begins there, leaves, comes back, stays and looks in again; one that ends there."""
    paid = np.array([1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    arrives = np.flatnonzero(arriving(paid, np.array([0, 12, 16])))
    assert arrives.tolist() == [4, 5, 6, 10, 13, 14, 15]
    assert np.flatnonzero(arriving(paid[:12], np.array([0, 12, 16]))).tolist() == [4, 5, 6, 10]


def test_about_half_of_the_surroundings_are_mirrored():
    near = torch.arange(4.0).expand(200, 2, 3, 4)
    mirrored = mirror_some(near, np.random.default_rng(0))
    is_flipped = (mirrored == near.flip(-1)).flatten(1).all(1)
    assert (is_flipped | (mirrored == near).flatten(1).all(1)).all()
    assert 70 < is_flipped.sum() < 130


def test_the_cache_asks_once_for_the_same_inputs(tmp_path):
    calls, layer = [], nn.Linear(2, 2)

    def make():
        calls.append(1)
        return {"number": torch.tensor([len(calls)])}

    def ask(settings):
        return int(cached(data, settings, [layer], make)["number"])

    data = write_dataset(tmp_path / "rooms", b"frames")
    assert [ask([1]), ask([1]), ask([2]), ask([1])] == [1, 1, 2, 1]
    nn.init.zeros_(layer.weight)
    assert ask([1]) == 3
    assert not list((tmp_path / ".rooms-prepared").glob("*.partial"))


def write_dataset(folder: Path, frames: bytes) -> Path:
    """What tells one dataset from another: its files."""
    (folder / "0").mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "0" / "part-0.arrow").write_bytes(frames)
    return folder


def test_recordings_are_known_by_what_is_in_them(tmp_path):
    """Other ones of the same size under the same name, and the same ones elsewhere; of several datasets each counts."""
    one, other = (write_dataset(tmp_path / part / "rooms", part.encode()) for part in ("a", "b"))
    known = [fingerprint(one), fingerprint([one, other]), fingerprint([one, write_dataset(tmp_path / "c", b"c")])]
    assert len(set(known)) == 3
    shutil.copytree(one, tmp_path / "elsewhere")
    shutil.rmtree(one)
    assert fingerprint(write_dataset(one, b"A")) != known[0] == fingerprint(tmp_path / "elsewhere")
    long = bytes(300_000)
    assert fingerprint(write_dataset(one, long + b"1")) != fingerprint(write_dataset(one, long + b"2"))


def test_a_damaged_cache_is_made_anew_and_one_that_cannot_be_kept_serves_once(tmp_path, capsys, monkeypatch):
    data = write_dataset(tmp_path / "rooms", b"frames")

    def ask(number: int) -> int:
        return int(cached(data, [], [], lambda: {"number": torch.tensor(number)})["number"])

    assert ask(1) == ask(2) == 1
    (kept,) = (tmp_path / ".rooms-prepared").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:20])
    assert ask(3) == ask(4) == 3 and "is damaged: it is made anew" in capsys.readouterr().out
    kept.unlink()
    monkeypatch.setattr(cache, "save_file", lambda *_: (_ for _ in ()).throw(OSError("Read-only file system")))
    assert ask(5) == 5 and ask(6) == 6
    assert "is not kept for another run: Read-only file system" in capsys.readouterr().out
