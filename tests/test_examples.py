"""Every example, and the demo, run as users run them: a process of its own, random weights, no display."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from tests.videos import read_video

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOT_RUN_ALONE = {"tiny_room.py"}  # the simulator that bring_your_simulator.py records


def run_python(*arguments: object, cwd: Path) -> str:
    """Output of a Python process that finds the packages of this working tree, warns of nothing and has no display."""
    env = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "models"), str(ROOT)]), "SDL_VIDEODRIVER": "dummy"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def run_example(tmp_path: Path):
    """Run an example with `--preset debug` in an empty folder."""

    def run(name: str, *arguments: object) -> str:
        return run_python(EXAMPLES / name, "--preset", "debug", *arguments, cwd=tmp_path)

    return run


def test_each_example_has_a_test():
    """So that a new example cannot be forgotten here."""
    names = {path.name for path in EXAMPLES.glob("*.py")} - NOT_RUN_ALONE
    source = Path(__file__).read_text()
    assert {name for name in names if f'"{name}"' not in source} == set()


def test_random_agent(run_example):
    assert run_example("random_agent.py", "--steps", 20).startswith("20 steps, ")


def test_plan_by_forking(run_example):
    """Commanded motion is what the task rewards, so planning helps even in a world of noise."""
    arguments = ["--episodes", 3, "--walks", 6, "--length", 6, "--execute", 3, "--limit", 12]
    table = run_example("plan_by_forking.py", *arguments).splitlines()
    returns = {line.split()[0]: float(line.split()[1]) for line in table[1:]}
    assert returns["planned"] > returns["unplanned"]


def test_vector_rollout(run_example):
    assert run_example("vector_rollout.py", "--num-envs", 3, "--steps", 10).startswith("3 worlds, ")


def test_play_keyboard(run_example):
    run_example("play_keyboard.py", "--frames", 5, "--fps", 100)


def test_record_video(run_example, tmp_path: Path):
    output = run_example("record_video.py", "--steps", 10)
    frames = read_video(tmp_path / "dream.mp4")
    assert output == f"{len(frames)} frames in {tmp_path / 'dream.mp4'}\n"
    assert 2 <= len(frames) <= 11


def test_walk_from_photo(run_example, tmp_path: Path):
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "photo.png", photo)
    run_example("walk_from_photo.py", "--image", "photo.png")
    assert len(read_video(tmp_path / "walk.mp4")) == 29


def test_bring_your_simulator(run_example, tmp_path: Path):
    output = run_example("bring_your_simulator.py", "--steps", 2, "--out", "run")
    assert "weights='run/heads/weights'" in output
    assert (tmp_path / "run" / "heads" / "weights" / "config.json").is_file()


SMALL_RUN = ("--num-envs", 2, "--rollout", 8, "--limit", 3)


def test_sb3_ppo(run_example, tmp_path: Path):
    output = run_example("sb3_ppo.py", *SMALL_RUN, "--steps", 16, "--episodes", 2)
    assert "\nafter 16 steps: return " in output
    assert (tmp_path / "ppo.zip").stat().st_size > 10_000


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where the package is missing; it is not imported here, which some packages do not forgive at the exit."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@needs("torchrl")
def test_torchrl_ppo(run_example):
    lines = run_example("torchrl_ppo.py", *SMALL_RUN, "--steps", 32).splitlines()
    # Each world ends an episode after steps 3 and 6 of its first 8, and after 9, 12 and 15 of its second.
    ended = [int(line.split()[2]) for line in lines]
    assert ended[0] >= 4 and ended[1] >= 6


@needs("ray")
def test_rllib_ppo(run_example):
    output = run_example("rllib_ppo.py", *SMALL_RUN, "--iterations", 2)
    assert output.splitlines()[-1].startswith("iteration 2: 16 steps, ")


@pytest.mark.parametrize(
    ("name", "env", "where"),
    [
        ("ppo_nav.py", "WorldScape-Nav-v0", "dream"),
        ("ppo_nav.py", "WorldScape-Rooms-v0", "simulator"),
        ("ppo_hand.py", "WorldScape-Hand-v0", "dream"),
        ("ppo_hand.py", "WorldScape-Tabletop-v0", "simulator"),
    ],
)
def test_ppo(run_example, tmp_path: Path, name: str, env: str, where: str):
    for module in ("rooms_gl", "tabletop_gl"):
        pytest.importorskip(f"worldscape.data.{module}", exc_type=ImportError)
    table = run_example(name, "--out", "run", "--env", env).splitlines()
    rows = [line.split()[:2] for line in table[-4:]]
    assert rows == [[where, "simulator"], [where, "dream"], ["random", "simulator"], ["random", "dream"]]
    assert table[-6] == ("reach" if name == "ppo_hand.py" else "goal_object") + ", held-out layouts"
    assert len(list((tmp_path / "run" / "policies").iterdir())) == 2
    assert list((tmp_path / "run" / "tb").iterdir()) and (tmp_path / "run" / "curve.png").stat().st_size > 1000
    assert len(read_video(tmp_path / "run" / "videos" / "step_000000064.mp4")) > 2
    assert len(read_video(tmp_path / "run" / "videos" / "final.mp4")) > 2


def test_demo_needs_only_the_core_dependencies(tmp_path: Path):
    """As after `pip install worldscape`: without the simulator, and so without OpenGL, datasets and training tools."""
    extras = ("miniworld", "pyglet", "minari", "pyarrow", "tensorboard", "tqdm", "stable_baselines3", "pygame")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({extras!r}))\n"
        "sys.argv = ['demo', '--weights', 'debug', '--steps', '45', '--out', 'out']\n"
        "runpy.run_module('ws_gym.demo', run_name='__main__')"
    )
    output = run_python("-c", code, cwd=tmp_path)
    assert "steps/s (45 steps" in output
    assert str(tmp_path / "out" / "walk.mp4") in output
    assert read_video(tmp_path / "out" / "walk.mp4").shape == (45, 320, 320, 3)
    assert iio.imread(tmp_path / "out" / "contact_sheet.png").shape == (5 * 160, 8 * 160, 3)
