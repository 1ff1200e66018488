"""The hand's simulator, as an environment like any other."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import ws_gym  # noqa: F401  (registers the ids)
from tests.test_project import ROOT, source_env

TABLETOP = "WorldScape-Tabletop-v0"


@pytest.fixture(scope="module")
def tabletop():
    env = gym.make(TABLETOP, render_mode="rgb_array")
    yield env
    env.close()


def test_gymnasium_accepts_it(tabletop):
    check_env(tabletop.unwrapped)


def test_stable_baselines3_accepts_it(tabletop):
    check_env_sb3(tabletop)


def test_an_episode_is_cut_after_150_steps_by_gym_make(tabletop):
    assert tabletop.spec.max_episode_steps == 150


def test_its_infos_are_those_of_the_rooms(tabletop):
    """Whatever reads the rooms' cameras reads these."""
    rooms = gym.make("WorldScape-Rooms-v0")
    walk, hand = rooms.reset(seed=0)[1], tabletop.reset(seed=0)[1]
    rooms.close()
    for name, value in walk.items():
        assert type(hand[name]) is type(value), name
        assert getattr(hand[name], "shape", None) == getattr(value, "shape", None)
        assert getattr(hand[name], "dtype", None) == getattr(value, "dtype", None)


def test_importing_the_face_imports_neither_torch_nor_mujoco():
    code = "import sys, ws_gym; print(*({'torch', 'mujoco', 'worldscape.data.tabletop'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=source_env(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == []


def test_two_simulators_of_two_kinds_draw_in_turns(tabletop):
    """MuJoCo's and MiniWorld's OpenGL contexts live in one process: neither may draw into the other's."""
    rooms = gym.make("WorldScape-Rooms-v0")
    room, table = rooms.reset(seed=3)[0], tabletop.reset(seed=3)[0]
    for _ in range(2):
        np.testing.assert_array_equal(rooms.step(0)[0], room)
        still = tabletop.step(np.zeros(13, np.float32))[0]
        assert np.abs(still.astype(int) - table).mean() < 1.0
    rooms.close()
    assert tabletop.reset(seed=3)[0].tobytes() == table.tobytes()


def test_a_process_that_forgets_to_close_it_ends_cleanly():
    """MuJoCo's own renderer prints an exception when the interpreter frees it too late."""
    code = f"import gymnasium, ws_gym; gymnasium.make('{TABLETOP}').reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=source_env(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
