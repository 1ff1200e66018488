"""Recording: what is on disk equals what the env showed, whatever is killed, resumed or run in parallel."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest

from tests.data.tiny_env import SIZE, TinyEnv, explore
from worldscape import cli
from worldscape.data.episode import HELD_OUT_SEED, MAX_DEPTH, EpisodeReader
from worldscape.data.minari_writer import DatasetWriter, EpisodeWriter
from worldscape.data.record import RecordConfig, record
from worldscape.data.rollout import load_policy, make_env, roll_episode

STEPS = 8
TINY = "tests.data.tiny_env"


def tiny_config(out: Path, **changes) -> RecordConfig:
    settings = {
        "env": f"{TINY}:Tiny-v0",
        "policy": f"{TINY}:explore",
        "episodes": 3,
        "steps_per_episode": STEPS,
    }
    return RecordConfig(out=out, **(settings | changes))


def content(path: Path) -> dict[str, bytes]:
    """Every byte of every episode."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.glob("[0-9]*/*"))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "tiny"
    record(tiny_config(path))
    return path


def expected_episode(seed: int) -> dict[str, np.ndarray]:
    """Replays the env by hand."""
    env = TinyEnv()
    observation, info = env.reset(seed=seed)
    act = explore(env, np.random.default_rng((seed, 1)))
    rows = {"frames": [observation], "depth": [info["depth"]], "pose": [info["pose"]], "actions": [], "success": []}
    for _ in range(STEPS):
        action = act(observation, info)
        observation, _, _, _, info = env.step(action)
        rows["actions"].append(action)
        rows["success"].append(info["success"])
        for name, value in (("frames", observation), ("depth", info["depth"]), ("pose", info["pose"])):
            rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


def test_episodes_hold_exactly_what_the_env_showed(dataset):
    reader = EpisodeReader(dataset)
    assert len(reader) == 3
    assert reader.seeds == [0, 1, 2]
    for seed, episode in enumerate(reader):
        expected = expected_episode(seed)
        assert len(episode) == STEPS
        np.testing.assert_array_equal(episode.frames, expected["frames"])
        np.testing.assert_array_equal(episode.actions, expected["actions"])
        np.testing.assert_array_equal(episode.pose, expected["pose"])
        np.testing.assert_array_equal(episode.success, expected["success"])
        np.testing.assert_array_equal(episode.depth, np.minimum(expected["depth"], MAX_DEPTH).astype(np.float16))
        np.testing.assert_array_equal(episode.rewards, expected["actions"] == 1)


def test_depth_beyond_the_limit_is_clipped_and_flags_are_those_of_the_steps(dataset):
    episode = EpisodeReader(dataset).episode(0)
    assert episode.depth is not None and episode.collision is not None and episode.realised is not None
    assert episode.depth[3].max() == MAX_DEPTH
    np.testing.assert_array_equal(episode.collision, [True, False] * (STEPS // 2))
    np.testing.assert_array_equal(episode.realised[:, 2], np.full(STEPS, 0.25))


def test_a_cut_episode_is_truncated_and_a_finished_one_terminated(dataset, tmp_path):
    cut = EpisodeReader(dataset).episode(0)
    assert cut.truncations.tolist() == [False] * (STEPS - 1) + [True] and not cut.terminations.any()
    record(tiny_config(tmp_path / "d", episodes=1, env_kwargs={"terminate_at": 3}))
    finished = EpisodeReader(tmp_path / "d").episode(0)
    assert finished.terminations.tolist() == [False, False, True] and not finished.truncations.any()


def test_discrete_actions_become_controls(dataset):
    episode = EpisodeReader(dataset).episode(1)
    assert episode.controls is not None
    np.testing.assert_array_equal(episode.controls[:, 2], 0.25 * (episode.actions == 1) - 0.25 * (episode.actions == 3))


def test_minari_itself_opens_and_iterates_the_dataset(dataset):
    ours = EpisodeReader(dataset)
    theirs = minari.MinariDataset(dataset)
    assert (theirs.total_episodes, theirs.total_steps) == (3, 3 * STEPS)
    for index, episode in enumerate(theirs.iterate_episodes()):
        np.testing.assert_array_equal(episode.observations, ours.episode(index).frames)
        np.testing.assert_array_equal(episode.infos["depth"], ours.episode(index).depth)
        np.testing.assert_array_equal(episode.infos["success"][1:], ours.episode(index).success)
        assert "note" not in episode.infos


def test_two_workers_record_the_same_bytes_as_one(dataset, tmp_path):
    record(tiny_config(tmp_path / "two", workers=2))
    assert content(tmp_path / "two") == content(dataset)


def test_the_folder_may_be_relative(dataset, tmp_path, monkeypatch):
    """Minari's arrow storage joins a relative path to itself, so nothing was found where it had been written."""
    monkeypatch.chdir(tmp_path)
    record(tiny_config(Path("new") / "tiny"))
    assert content(tmp_path / "new" / "tiny") == content(dataset)


def test_recording_more_episodes_continues_the_dataset(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "more")
    summary = record(tiny_config(tmp_path / "more", episodes=4))
    assert (summary.episodes, summary.steps) == (4, 4 * STEPS)
    assert {name: data for name, data in content(tmp_path / "more").items() if name[0] != "3"} == content(dataset)


@pytest.mark.parametrize("kill_group", [True, False])
def test_killed_recording_leaves_a_dataset_and_resumes_to_the_same_bytes(tmp_path, kill_group):
    """Kill -9 hits the recorder, with its workers or alone, while they are writing."""
    slow = {"delay": 0.02}
    kwargs = [
        "--env-kwargs",
        json.dumps(slow),
        "--steps-per-episode",
        str(STEPS),
        "--policy",
        f"{TINY}:explore",
    ]
    command = ["record", "--env", f"{TINY}:Tiny-v0", "--episodes", "8", "--workers", "2", *kwargs]
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "worldscape.cli", *command, "--out", str(out)],
        env=environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (out / "1" / "metadata.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    (os.killpg if kill_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()

    in_place = EpisodeReader(out)
    assert 2 <= len(in_place) < 8
    assert all(len(episode) == STEPS for episode in in_place)
    assert minari.MinariDataset(out).total_episodes in (len(in_place), len(in_place) - 1)

    config = tiny_config(out, episodes=8, workers=1, env_kwargs=slow)
    record(config)
    record(replace(config, out=tmp_path / "whole", workers=2))
    assert content(out) == content(tmp_path / "whole")
    assert minari.MinariDataset(out).total_steps == 8 * STEPS


def open_writers(out: Path):
    """A new dataset's config, its two writers, and what rolls and writes the episode of an index."""
    config = tiny_config(out)
    env = make_env(config.env, {})
    policy = load_policy(config.policy, env)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    dataset = DatasetWriter(config.out, **spaces, spec=env.spec, settings=config.settings)
    writer = EpisodeWriter(config.out)

    def write(index: int) -> None:
        writer.write(index, roll_episode(env, policy, seed=index, num_steps=STEPS, index=index))

    return config, dataset, writer, write


def test_episodes_finished_out_of_order_wait_for_their_predecessors(tmp_path):
    config, dataset, writer, write = open_writers(tmp_path / "d")
    for index, num_in_place in ((1, 0), (0, 2)):
        write(index)
        dataset.adopt_pending()
        assert dataset.is_done(index)
        assert minari.MinariDataset(config.out).total_episodes == num_in_place
    writer.close()


def test_each_episode_is_counted_before_the_next_is_moved(tmp_path, monkeypatch):
    """Three wait for one another, and whoever moves them dies before the third."""
    config, dataset, writer, write = open_writers(tmp_path / "d")
    for index in (2, 1, 0):
        write(index)
    rename = os.rename

    def dies(source, target):
        if Path(target).name == "2":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        dataset.adopt_pending()
    assert len(EpisodeReader(config.out)) == minari.MinariDataset(config.out).total_episodes == 2
    writer.close()


def test_a_deleted_episode_is_recorded_again(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "hole")
    shutil.rmtree(tmp_path / "hole" / "1")
    record(tiny_config(tmp_path / "hole"))
    assert content(tmp_path / "hole") == content(dataset)
    assert minari.MinariDataset(tmp_path / "hole").total_episodes == 3


def test_dict_observations_are_kept_and_their_image_becomes_the_frames(tmp_path):
    record(tiny_config(tmp_path / "d", episodes=1, env_kwargs={"fault": "dict"}))
    np.testing.assert_array_equal(EpisodeReader(tmp_path / "d").episode(0).frames, expected_episode(0)["frames"])
    observations = minari.MinariDataset(tmp_path / "d")[0].observations
    assert observations["speed"].shape == (STEPS + 1, 2)


def test_a_worker_that_dies_is_reported_and_the_rest_is_kept(tmp_path):
    config = tiny_config(tmp_path / "d", env_kwargs={"fault": "die", "break_at": STEPS + 1})
    record(config)
    fragile = tiny_config(tmp_path / "e", env_kwargs={"fault": "die", "break_at": 2})
    with pytest.raises(RuntimeError, match="exit code 7.*run the same command again"):
        record(fragile)
    assert minari.MinariDataset(tmp_path / "e").total_episodes == 0


def test_a_full_disk_is_reported_with_the_remedy(tmp_path):
    with pytest.raises(OSError, match="disk is full.*free some space and run the same command again") as raised:
        record(tiny_config(tmp_path / "d", env_kwargs={"fault": "full", "break_at": 2}))
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_too_small_for_the_rest_is_reported_early(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("worldscape.data.record.shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match="remaining [12] episodes need about"):
        record(tiny_config(tmp_path / "d", env_kwargs={"delay": 0.05}))
    assert 1 <= len(EpisodeReader(tmp_path / "d")) < 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "NoSuchEnv-v0"}, "cannot make the env 'NoSuchEnv-v0'"),
        ({"env": "no_such_module:Env-v0"}, "cannot make the env 'no_such_module:Env-v0'"),
        ({"env_kwargs": {"colour": 1}}, "cannot make the env .* with {'colour': 1}"),
        ({"env": f"{TINY}:TinyState-v0"}, "has 0 images; exactly one Box of uint8"),
        ({"policy": "wander"}, "unknown policy 'wander'"),
        ({"policy": f"{TINY}:nothing"}, "cannot load the policy 'tests.data.tiny_env:nothing'"),
        ({"policy": f"{TINY}:SIZE"}, "is a int; it must be a function"),
        ({"env_kwargs": {"fault": "no reset pose"}}, "'pose' at step but not at reset"),
        ({"env_kwargs": {"fault": "lost depth"}}, "lost 'depth' at step 2"),
        ({"env_kwargs": {"fault": "wrong shape"}}, r"returned the observation uint8 \(5, 6, 3\)"),
    ],
)
def test_unsuitable_envs_and_policies_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        record(tiny_config(tmp_path / "d", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"steps_per_episode": 0}, "steps_per_episode is 0"),
        ({"seed": -5}, "seed is -5"),
        ({"seed": HELD_OUT_SEED - 1}, "mix training seeds with the held-out ones"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"recorded with seed 0 \(now 7\)"),
        ({"policy": "random"}, r"policy 'tests.data.tiny_env:explore' \(now 'random'\)"),
        ({"steps_per_episode": 9}, r"steps_per_episode 8 \(now 9\)"),
    ],
)
def test_a_dataset_is_not_continued_with_other_settings(dataset, changes, message):
    before = content(dataset)
    with pytest.raises(ValueError, match=message):
        record(tiny_config(dataset, **changes))
    assert content(dataset) == before


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(ValueError, match="exists and is not a dataset"):
        record(tiny_config(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_command_line_records_and_names_errors_in_one_line(tmp_path, capsys):
    options = [
        "--env",
        f"{TINY}:Tiny-v0",
        "--policy",
        "random",
        "--episodes",
        "1",
        "--steps-per-episode",
        "3",
    ]
    assert cli.main(["record", *options, "--out", str(tmp_path / "d")]) == 0
    assert "1 episodes, 3 steps" in capsys.readouterr().out
    assert len(EpisodeReader(tmp_path / "d").episode(0)) == 3
    assert cli.main(["record", *options, "--out", str(tmp_path / "e"), "--env-kwargs", "{size: 3}"]) == 1
    assert "--env-kwargs '{size: 3}' is not JSON" in capsys.readouterr().err
    assert cli.main(["record", *options, "--out", str(tmp_path / "e"), "--env-kwargs", "[3]"]) == 1
    assert "must be a JSON object" in capsys.readouterr().err


def test_help_lists_every_command_without_importing_torch():
    code = "\n".join(
        [
            "import sys; from worldscape import cli",
            "try: cli.main(['--help'])",
            "except SystemExit: print('torch' in sys.modules)",
        ]
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.endswith("False\n")
    assert all(command in output.stdout for command in cli.COMMANDS)


def test_the_package_itself_is_the_command():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "worldscape", "record"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: worldscape record")


def test_tiny_env_is_as_small_as_it_says():
    assert TinyEnv().observation_space.shape == (SIZE, SIZE, 3)


def test_rooms_are_recorded_with_all_that_training_needs(tmp_path):
    """The shipped simulator, for a few steps: what is stored is what a second run of the env shows."""
    rooms = {"env": "ws_gym:WorldScape-Rooms-v0", "policy": "mixed", "env_kwargs": {"goal_terminates": False}}
    record(tiny_config(tmp_path / "d", episodes=1, seed=3, **rooms))
    reader = EpisodeReader(tmp_path / "d")
    reader.require("controls", "depth", "pose", "intrinsics", "camera", "realised", "collision", "success")
    episode = reader.episode(0)
    assert episode.frames.shape == (STEPS + 1, 64, 64, 3)
    assert episode.pose is not None and episode.depth is not None
    env = make_env(rooms["env"], rooms["env_kwargs"])
    _, info = env.reset(seed=3)
    for step, action in enumerate(episode.actions):
        observation, _, _, _, info = env.step(int(action))
        np.testing.assert_array_equal(episode.frames[step + 1], observation)
        np.testing.assert_array_equal(episode.pose[step + 1], info["pose"])
        np.testing.assert_array_equal(episode.depth[step + 1], info["depth"].astype(np.float16))
    env.close()
