"""Policies scored from the same starts in simulator and dream."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.evaluate.corridor import BACK, FORWARD, Corridor, Finger, pointing, stubborn
from tests.evaluate.test_documented import DOCUMENTED
from worldscape.cli import main
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.evaluate import transfer
from worldscape.evaluate.arenas import Arenas, Walk, describe_actions
from worldscape.evaluate.kept_plays import KeptArenas
from worldscape.policy import POLICY_FILE, PixelPolicy, save_policy


@pytest.fixture(scope="module")
def arenas():
    with Arenas("debug", num_episodes=5, limit=6, batch=3, make_simulator=Corridor) as arenas:
        yield arenas


@pytest.fixture(scope="module")
def tables():
    with Arenas("debug", num_episodes=3, task="reach", limit=6, batch=2, make_simulator=Finger) as arenas:
        yield arenas


def test_the_way_to_the_goal_is_scored(arenas):
    play = arenas.play_simulator(stubborn(FORWARD), num_filmed=2)
    assert play.success.all() and (play.lengths == 3).all() and (play.spl == 1).all() and (play.returns == 1).all()
    assert [film.shape for film in play.films] == [(4, 64, 64, 3)] * 2
    play = arenas.play_simulator(stubborn(BACK), 2)
    assert len(play.success) == 2 and not play.success.any() and (play.lengths == 6).all() and (play.spl == 0).all()


def test_a_detour_costs_spl():
    place = np.array([3.0, 0.0, 4.0])
    walk = Walk(0, np.random.default_rng(0), np.zeros(3), place, walked=10.0, success=True)
    assert walk.spl() == pytest.approx(0.5)
    walk.success = False
    assert walk.spl() == 0


def test_random_actions_follow_from_the_episode(arenas):
    play, fewer = arenas.play_simulator(None), arenas.play_simulator(None, 2)
    np.testing.assert_array_equal(play.lengths[:2], fewer.lengths)
    assert not play.success.all()


def test_scores_in_the_dream_do_not_depend_on_the_slots(arenas):
    """Five episodes in three slots: a slot takes the next episode as soon as its own has ended."""
    play = arenas.play_dream(None, num_filmed=1)
    assert len(play.lengths) == 5 and (play.lengths <= 6).all()
    assert np.abs(play.films[0][0].astype(int) - 100).mean() < 3  # the simulator's grey picture opens the dream
    with Arenas("debug", num_episodes=5, limit=6, batch=1, make_simulator=Corridor) as one_by_one:
        alone = one_by_one.play_dream(None)
    for name in ("success", "lengths"):
        np.testing.assert_array_equal(getattr(play, name), getattr(alone, name))
    np.testing.assert_allclose(play.returns, alone.returns)


def test_the_return_of_a_hand_counts_what_success_would_have_gone_on_to_earn(tables):
    """Nearer by 0.2 each step: rewards of 0.2, 0.4 and 1 on success in the third, and then one for each of the three
    steps that are left. Who never comes near earns nothing in six steps."""
    play = tables.play_simulator(pointing(1.0), num_filmed=1)
    assert play.success.all() and (play.lengths == 3).all() and ((play.spl > 0.9) & (play.spl <= 1)).all()
    np.testing.assert_allclose(play.returns, 0.2 + 0.4 + 1 + 3, rtol=1e-6)
    play = tables.play_simulator(pointing(-1.0))
    assert not play.success.any() and (play.lengths == 6).all()
    np.testing.assert_allclose(play.returns, 0, atol=1e-6)


@pytest.mark.parametrize("where", ["simulator", "dream"])
def test_a_policy_that_is_told_of_its_hand_hears_where_it_is_now(tables, where):
    """Three episodes in two slots: what each step is told is the row of `hand_state` that its picture shows."""
    told, known = [], []
    config = replace(pointing(1.0).config, num_told=16)

    class Listening(PixelPolicy):
        def forward(self, stacks, told_now=None):
            assert told_now is not None
            told.append(told_now.clone())
            return super().forward(stacks, told_now)

    policy = Listening(config).requires_grad_(False).eval()
    envs = tables._simulator if where == "simulator" else tables._dream
    step, reset = envs.step, envs.reset

    def note(result):
        known.append(result[-1]["hand_state"][:, 1].copy())
        return result

    envs.step, envs.reset = lambda actions: note(step(actions)), lambda **options: note(reset(**options))
    try:
        play = tables.play_simulator(policy) if where == "simulator" else tables.play_dream(policy)
    finally:
        envs.step, envs.reset = step, reset
    assert len(told) >= play.lengths.max()
    opened = np.concatenate([known[envs.num_envs - 1][:, :3] / 0.2, known[envs.num_envs - 1][:, 3:]], 1)
    np.testing.assert_allclose(told[0].numpy(), opened, atol=1e-6)
    assert any((now - before).abs().max() > 0.05 for before, now in itertools.pairwise(told))
    moved = [[*row[:3] / 0.2, *row[3:]] for rows in known for row in rows]
    for row in torch.cat(told).numpy():
        assert np.abs(np.array(moved) - row).max(1).min() < 1e-5


def test_random_hands_stay_in_the_box_of_actions(tables):
    simulator: Any = tables._simulator.envs[0].unwrapped
    simulator.actions.clear()
    tables.play_simulator(None)
    actions = np.concatenate(simulator.actions)
    assert (
        np.abs(actions).max() <= 1 and np.abs(actions.mean()) < 0.1 and actions.std() == pytest.approx(0.58, abs=0.05)
    )


def test_a_dream_opens_with_the_hand_of_the_simulator(tables):
    """Picture, depth, pose and hand: the score is paired only if all four are."""
    truth = tables._simulator.envs[0].reset(seed=HELD_OUT_SEED)[1]
    frames, infos = tables._dream.reset(seed=0, options={"start": 0})
    assert np.abs(frames[0].astype(int) - 100).mean() < 3
    assert infos["hand_present"][0].tolist() == [False, True]
    np.testing.assert_allclose(infos["hand_state"][0, 1], truth["hand_state"][1], atol=1e-4)
    np.testing.assert_allclose(infos["hand_keypoints"][0, 1, 0], truth["hand_keypoints"][1, 0], atol=1e-3)
    np.testing.assert_allclose(infos["camera"][0], truth["camera"], atol=1e-5)


def test_scores_of_a_dreamed_hand_do_not_depend_on_the_slots(tables):
    play = tables.play_dream(pointing(0.5))
    assert len(play.lengths) == 3 and ((play.returns >= 0) & (play.returns <= 6)).all()
    with Arenas("debug", num_episodes=3, task="reach", limit=6, batch=1, make_simulator=Finger) as one_by_one:
        alone = one_by_one.play_dream(pointing(0.5))
    np.testing.assert_array_equal(play.lengths, alone.lengths)
    np.testing.assert_allclose(play.returns, alone.returns, atol=1e-3)


def test_a_policy_for_something_else_is_refused(arenas, tables):
    with pytest.raises(ValueError, match="sees 32 pixels, these weights dream 64"):
        arenas.play_dream(stubborn(FORWARD, size=32))
    with pytest.raises(ValueError, match="does not act in Discrete.* it is none for goal_object"):
        arenas.play_simulator(pointing(1.0))
    with pytest.raises(ValueError, match="does not act in Box.* it is none for reach"):
        tables.play_dream(stubborn(FORWARD))
    stranger = PixelPolicy(replace(stubborn(FORWARD).config, num_told=16))
    with pytest.raises(ValueError, match="told 16 numbers beside the pictures, goal_object tells 0"):
        arenas.play_simulator(stranger)
    with pytest.raises(ValueError, match="no policy here acts in MultiDiscrete"):
        describe_actions(spaces.MultiDiscrete([3, 3]))
    with pytest.raises(ValueError, match="task 'juggle' has no simulator"):
        Arenas("debug", num_episodes=1, task="juggle")
    with pytest.raises(ValueError, match="hand_actions is 'grasp'; WorldScape-Nav-v0 .* take none: it has no hands"):
        Arenas("debug", num_episodes=1, hand_actions="grasp")


def test_bootstrap_interval():
    values = np.random.default_rng(1).random(200) < 0.3
    mean, low, high = transfer.bootstrap_mean(values)
    spread = 1.96 * values.std() / math.sqrt(200)
    assert mean == values.mean()
    assert (low, high) == (pytest.approx(mean - spread, abs=0.015), pytest.approx(mean + spread, abs=0.015))
    assert transfer.bootstrap_mean(np.ones(7)) == (1, 1, 1)


def test_judgement(arenas):
    """One policy knows the way, the other walks off; checkpoints between them are ranked."""
    checkpoints = [stubborn(BACK), stubborn(BACK), stubborn(FORWARD)]
    runs = {
        "dream": transfer.Trained(stubborn(FORWARD), 100, checkpoints),
        "simulator": transfer.Trained(stubborn(BACK), 100, []),
    }
    found = transfer.judge_transfer(arenas, runs, checkpoint_episodes=2)
    assert found.metrics["success_dream_policy_in_simulator"] == 1
    assert found.metrics["success_simulator_policy_in_simulator_high"] == 0
    assert math.isnan(found.metrics["transfer_over_simulator"])
    assert found.metrics["num_checkpoints"] == 3 and found.metrics["policy_steps"] == 100
    assert [row[2] for row in found.tables[1].rows] == [0, 0, 1]
    assert undocumented(found.metrics) == set()
    assert undocumented(["success_dream_policy_in_heaven"]) != set()


class Counting:
    """Arenas that say how often they were asked."""

    def __init__(self, arenas):
        self.arenas, self.asked = arenas, []
        self.task, self.num_episodes = arenas.task, arenas.num_episodes

    def play_simulator(self, policy, num_episodes=None, *, num_filmed=0):
        self.asked.append("simulator")
        return self.arenas.play_simulator(policy, num_episodes, num_filmed=num_filmed)

    def play_dream(self, policy, num_episodes=None, *, num_filmed=0):
        self.asked.append("dream")
        return self.arenas.play_dream(policy, num_episodes, num_filmed=num_filmed)


def test_a_judgement_that_was_stopped_goes_on(arenas, tmp_path):
    """What was played is not played again, and is what it was; another policy, count, film, commit is another play."""
    forward = stubborn(FORWARD)
    counting, settings = Counting(arenas), {"simulator": 1, "dream": {"weights": "debug"}}
    kept = KeptArenas(counting, tmp_path, settings, "abc")
    first = kept.play_simulator(forward, num_filmed=2)
    dreamed = kept.play_dream(None, 3)
    again = KeptArenas(counting, tmp_path, settings, "abc")
    second = again.play_simulator(forward, num_filmed=2)
    assert counting.asked == ["simulator", "dream"] and not list(tmp_path.glob("*.partial"))
    for name in ("success", "returns", "spl", "lengths"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert [film.tolist() for film in first.films] == [film.tolist() for film in second.films]
    assert [steps.tolist() for steps in again.play_dream(None, 3).actions] == [
        steps.tolist() for steps in dreamed.actions
    ]
    again.play_simulator(stubborn(BACK), num_filmed=2)
    again.play_simulator(forward, 2, num_filmed=2)
    again.play_simulator(forward)
    again.play_dream(None)
    KeptArenas(counting, tmp_path, settings, "def").play_dream(None, 3)
    KeptArenas(counting, tmp_path, {**settings, "dream": 2}, "abc").play_dream(None, 3)
    assert counting.asked[2:] == ["simulator"] * 3 + ["dream"] * 3


@pytest.mark.parametrize("commit", ["unknown", "abc-dirty"])
def test_a_changed_program_keeps_no_plays(arenas, tmp_path, commit):
    KeptArenas(arenas, tmp_path, {"simulator": 1, "dream": 1}, commit).play_simulator(None, 1)
    assert not list(tmp_path.iterdir())


def undocumented(names) -> set[str]:
    """Metric names whose form, policy and arena written as P and A, docs/metrics.md does not explain."""
    missing = set()
    for name in names:
        form = name.removesuffix("_low").removesuffix("_high")
        for policy in (*transfer.TRAINED, "random"):
            form = form.replace(f"_{policy}_policy_in_", "_P_policy_in_").replace(f"over_{policy}", "over_P")
        for arena in transfer.TRAINED:
            form = form.replace(f"_in_{arena}", "_in_A")
        missing |= {form} - DOCUMENTED
    return missing


def write_run(folder: Path, policy: PixelPolicy, **facts) -> str:
    save_policy(policy, folder / POLICY_FILE, {"steps": 64, "task": "goal_object", **facts})
    save_policy(policy, folder / transfer.POLICY_FOLDER / "step_64.safetensors", {})
    return str(folder)


@pytest.mark.parametrize(
    ("task", "simulator", "policies"),
    [
        ("goal_object", "rooms_gl", (stubborn(FORWARD), stubborn(BACK))),
        ("reach", "tabletop_gl", (pointing(0.5), pointing(-0.5))),
    ],
)
def test_command_line(task, simulator, policies, capsys, tmp_path):
    pytest.importorskip(f"worldscape.data.{simulator}", exc_type=ImportError)
    dream = write_run(tmp_path / "dream", policies[0], trained_in="dream", task=task)
    other = write_run(tmp_path / "other", policies[1], trained_in="simulator", task=task)
    options = ["--weights", "debug", "--episodes", "2", "--limit", "4", "--checkpoint-episodes", "1", "--batch", "2"]
    runs = ["--dream-run", dream, "--simulator-run", other, "--out", str(tmp_path / "out")]
    assert main(["eval", "transfer", "--task", task, *options, *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["name"] == "transfer" and report["metrics"]["num_episodes"] == 2
    assert f"{task}, held-out layouts" in lines
    assert (tmp_path / "out" / "transfer.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ((("dream", 64), ("simulator", 32)), "different numbers of steps, {'dream': 64, 'simulator': 32}"),
        ((("simulator", 64), ("simulator", 64)), "was trained in the simulator, not in the dream"),
        ((("dream", 64), None), "there is no file"),
        ((None, None), "there is no file"),
    ],
)
def test_runs_that_cannot_be_compared(capsys, tmp_path, runs, message):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, run in zip(folders, runs, strict=True):
        folder.mkdir()
        if run is not None:
            write_run(folder, stubborn(FORWARD), trained_in=run[0], steps=run[1])
    options = ["--weights", "debug", "--dream-run", str(folders[0]), "--simulator-run", str(folders[1])]
    assert main(["eval", "transfer", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_run_for_another_task_is_refused(tmp_path):
    folder = write_run(tmp_path, pointing(1.0), trained_in="dream", task="push")
    with pytest.raises(ValueError, match="was trained for the task push, not for reach; give --task"):
        transfer.load_run(Path(folder), "dream", "reach")
