"""What the PPO examples have in common around the algorithm: that a stopped run ends as one that was not."""

import gymnasium as gym
import pytest
import torch

from worldscape.evaluate.transfer import load_run
from worldscape.policy import load_policy, load_tensors, save_tensors
from ws_gym import ppo, ppo_run
from ws_gym.ppo_run import Lesson, checkpoint_marks, teach

WALK, HAND = Lesson(tasks=("goal_object",)), Lesson(tasks=("reach", "push", "pick_place"))


class Stopped(Exception): ...


@pytest.fixture
def without_arenas(monkeypatch):
    """Scoring and filming have tests of their own."""

    class Arenas:
        def __init__(self, *args, **options): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def play_dream(self, policy, num_episodes=None, *, num_filmed=0):
            return None

        play_simulator = play_dream

    class Table:
        def to_text(self):
            return ""

    monkeypatch.setattr(ppo_run, "Arenas", Arenas)
    for name in ("film", "save_films"):
        monkeypatch.setattr(ppo_run, name, lambda *_: None)
    monkeypatch.setattr(ppo_run, "tabulate_plays", lambda plays, task: Table())


@pytest.mark.parametrize(("lesson", "task"), [(WALK, "goal_object"), (HAND, "push")])
def test_a_stopped_run_ends_with_the_same_weights(lesson, task, without_arenas, monkeypatch, tmp_path, capsys):
    """Stopped in the middle of its second half: what was learned since the checkpoint is learned again."""
    options = ["--preset", "debug", "--starts", "drawn", "--task", task, "--out"]
    teach(lesson, "", [*options, str(tmp_path / "whole")])
    improve, calls = ppo.improve, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return improve(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ppo, "improve", stop)
        teach(lesson, "", [*options, str(tmp_path / "stopped")])
    capsys.readouterr()
    teach(lesson, "", [*options, str(tmp_path / "stopped")])
    assert "step 64: " in capsys.readouterr().out
    (whole, header), (stopped, stopped_header) = (
        load_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "stopped")
    )
    assert header == stopped_header and header["num_done"] == 4
    assert any("adam" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name
    kept = sorted(path.name for path in (tmp_path / "stopped" / "policies").iterdir())
    assert kept == ["step_000000032.safetensors", "step_000000064.safetensors"]
    policy, facts = load_policy(tmp_path / "stopped")
    assert (facts["task"], facts["trained_in"], facts["steps"]) == (task, "dream", 64)
    assert policy.config.is_continuous == (lesson is HAND)


def test_a_checkpoint_from_before_there_were_temperatures_is_of_1(without_arenas, tmp_path, capsys):
    options = ["--preset", "debug", "--out", str(tmp_path)]
    teach(WALK, "", options)
    tensors, header = load_tensors(tmp_path / "checkpoint.safetensors")
    assert header["identity"].pop("temperature") == 1 and header["identity"].pop("hand_actions") is None
    save_tensors(tmp_path / "checkpoint.safetensors", tensors, header)
    teach(WALK, "", options)
    with pytest.raises(ValueError, match="a run with another temperature"):
        teach(WALK, "", [*options, "--temperature", "1.3"])


def test_temperature_is_the_dream_s_while_learning_and_no_simulator_has_any(without_arenas, tmp_path, monkeypatch):
    told = []
    made = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **options: told.append(options) or made(*args, **options))
    options = ["--preset", "debug", "--temperature", "1.3", "--out", str(tmp_path)]
    teach(WALK, "", options)
    assert [each["temperature"] for each in told] == [1.3]
    with pytest.raises(ValueError, match="temperature is 1.3, and WorldScape-Rooms-v0 is no dream; leave it at 1"):
        teach(WALK, "", [*options, "--env", "WorldScape-Rooms-v0"])


def test_a_hand_learns_to_move_and_close(without_arenas, tmp_path):
    options = ["--preset", "debug", "--out", str(tmp_path)]
    teach(HAND, "", [*options, "--hand-actions", "grasp"])
    policy, facts = load_policy(tmp_path)
    assert policy.config.num_actions == 4 and facts["hand_actions"] == "grasp"
    assert load_run(tmp_path, "dream", "reach").hand_actions == "grasp"
    with pytest.raises(ValueError, match="a run with another hand_actions, policy"):
        teach(HAND, "", options)


def test_another_runs_folder_is_refused(without_arenas, tmp_path):
    options = ["--preset", "debug", "--out", str(tmp_path)]
    teach(WALK, "", options)
    with pytest.raises(ValueError, match="a run with another limit, seed; give another --out"):
        teach(WALK, "", [*options, "--limit", "4", "--seed", "1"])
    with pytest.raises(ValueError, match="a run with another env, hand_actions, policy, task; give another --out"):
        teach(HAND, "", options)
    with pytest.raises(ValueError, match="a run with another temperature; give another --out"):
        teach(WALK, "", [*options, "--temperature", "1.3"])
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged"):
        teach(WALK, "", options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "'0' is no whole number of at least 1"), (["--task", "reach"], "invalid choice: 'reach'")],
)
def test_options_are_checked(arguments, message, capsys):
    with pytest.raises(SystemExit):
        teach(WALK, "", arguments)
    assert message in capsys.readouterr().err


def test_checkpoints_are_denser_early_and_the_last_update_has_one():
    assert sorted(checkpoint_marks(320, 12)) == [2, 5, 10, 20, *range(40, 321, 40)]
    assert checkpoint_marks(10, 1) == {10}
    assert checkpoint_marks(4, 12) == {1, 2, 3, 4}
