"""`worldscape check`: right recordings pass, and geometry that only looks right does not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.written import write_dataset
from worldscape import cli
from worldscape.conditioning.camera import apply_control, pose_from_state
from worldscape.data.check import check_dataset
from worldscape.data.check_motion import motion_between
from worldscape.data.episode import EpisodeReader
from worldscape.data.explore import explore
from worldscape.data.rollout import roll_episode

STEPS = 24


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Write three walks of the example's room whose info `change` had its way with."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from tiny_room import TinyRoom  # pyright: ignore[reportMissingImports]

    def write(change: Any, policy: Any = explore) -> Path:
        class Changed(TinyRoom):
            def _info(self, *args):
                info = super()._info(*args)
                change(info)
                return info

        env = Changed()
        episodes = (roll_episode(env, policy, seed=seed, num_steps=STEPS, index=seed) for seed in range(3))
        return write_dataset(tmp_path / "d", env, *episodes)

    return write


def nothing(info: dict[str, Any]) -> None:
    pass


def put(key: str, change: Any) -> Any:
    return lambda info: info.update({key: change(info[key])})


def turn_round(env, rng):
    return lambda observation, info: 5


def test_a_right_recording_passes_and_its_numbers_are_told(record, capsys):
    data = record(nothing)
    assert cli.main(["check", str(data)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["name"] == "check" and report["problems"] == report["warnings"] == []
    numbers = report["metrics"]
    assert (numbers["episodes"], numbers["steps"], numbers["shortest"], numbers["median"]) == (
        3,
        3 * STEPS,
        STEPS,
        STEPS,
    )
    assert 0 < numbers["depth_5"] < numbers["depth_50"] < numbers["depth_95"] < 9
    assert numbers["gain"] > 8 and numbers["gain_by_depth"] > 8
    assert numbers["off_control"] == numbers["off_pose"] == numbers["off_camera"] == 0
    assert report["fields"]["success"] and not report["fields"]["hand_state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("pose", lambda x: x @ np.diag([1, -1, -1, 1]).astype(np.float32)), "pose is probably OpenGL's"),
        (put("pose", lambda x: np.linalg.inv(x).astype(np.float32)), "pose is probably world to camera"),
        (put("depth", lambda x: 1000 * x), "depth does not explain .* not millimetres"),
        (put("pose", lambda x: x * np.array([[1, 1, 1, 1000]] * 3 + [[1] * 4], np.float32)), "units .* probably wrong"),
    ],
    ids=["OpenGL axes", "world to camera", "depth in mm", "path in mm"],
)
def test_geometry_that_does_not_explain_the_pictures_fails(record, capsys, change, message):
    """It was recorded and trained on to the end without a word."""
    data = record(change)
    assert cli.main(["check", str(data)]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert any(re.search(message, problem) for problem in report["problems"])


def test_what_is_missing_is_named_with_the_stages_that_need_it(record, capsys):
    data = record(lambda info: info.pop("depth"))
    assert cli.main(["check", str(data)]) == 1
    output = capsys.readouterr().out
    assert "wrong: no depth: no stage can be trained" in output and "no  every stage" in output


def test_actions_of_another_size_are_noticed(record):
    data = record(put("realised", lambda x: 2 * x))
    assert any("this has no info 'control'" in problem for problem in check_dataset(EpisodeReader(data)).problems)
    shutil.rmtree(data)
    told = record(lambda info: info.update(control=2.0 * info["realised"]))
    verdict = check_dataset(EpisodeReader(told))
    assert not verdict.problems and verdict.metrics["off_control"] == 1
    assert "most steps moved, without a collision, otherwise than 'control' says" in verdict.warnings[0]


def only(*parts: int) -> Any:
    """Turn these parts of a motion or a camera the other way round."""
    return np.where(np.isin(np.arange(6), parts), -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(realised=info["realised"] * only(3)), r"otherwise than 'realised' says \(.*yaw"),
        (lambda info: info.update(realised=info["realised"] * only(2)), r"otherwise than 'realised' says \(forward\)"),
        (lambda info: info.update(realised=np.rad2deg(info["realised"])), r"otherwise than 'realised' says"),
        (lambda info: info.update(camera=info["camera"] * only(3)), "'camera' is not the place and the angles of"),
        (lambda info: info.update(camera=info["camera"] * 100), "'camera' is not the place and the angles of"),
    ],
    ids=["yaw to the left", "back is forward", "degrees", "camera's yaw to the left", "camera in cm"],
)
def test_motion_that_is_not_that_of_the_poses_fails(record, change, message):
    """Controls say the same as `realised`, so that only the poses know better."""

    def told(info):
        change(info)
        info.update(control=info["realised"])

    verdict = check_dataset(EpisodeReader(record(told)))
    assert len(verdict.problems) == 1 and re.search(message, verdict.problems[0])


def test_what_poses_did_is_the_control_that_leads_there():
    rng = np.random.default_rng(0)
    state = torch.from_numpy(rng.uniform(-1, 1, (50, 6)))
    control = torch.from_numpy(rng.uniform(-0.5, 0.5, (50, 6)))
    before, after = pose_from_state(state), pose_from_state(apply_control(state, control, 1.5))
    torch.testing.assert_close(motion_between(before, after), control)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda env, rng: lambda observation, info: 0, "the camera stands still: nothing tells"),
        (turn_round, "the camera only turns: nothing tells whether depth is right"),
    ],
)
def test_what_nothing_can_tell_is_said(record, policy, message):
    verdict = check_dataset(EpisodeReader(record(nothing, policy)))
    assert not verdict.problems and message in verdict.warnings[0]
