"""Worlds with hands as Gymnasium environments."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from tests.gym.helpers import assert_close, assert_same, core_of, engine_of, row_of
from tests.test_project import ROOT, source_env
from worldscape.checkpoint import save_world
from worldscape.conditioning.camera import level_pose
from worldscape.conditioning.hand_model import hand_keypoints
from worldscape.conditioning.hand_poses import egodex_from_states
from worldscape.conditioning.hands import state_from_vector
from worldscape.config import preset
from worldscape.world import WorldModel
from ws_gym.hand_env import UNIVERSAL
from ws_gym.tasks import HAND_TASKS

IDS = ("WorldScape-Hand-v0", "WorldScape-Universal-v0")
HAND, BOTH = IDS
DREAM: dict[str, Any] = {"weights": "debug", "starts": "drawn", "task_options": {"threshold": 0.999}}
"""Random weights see success everywhere; where the threshold is high they seldom do."""

VARIANTS = [
    *({"task": task} for task in HAND_TASKS),
    {"hands": "left"},
    {"hands": "both", "size": (48, 80), "steps_per_frame": 2},
    {"sampler": "rolling", "steps_per_frame": 2},
    {"hand_actions": "keypoints"},
    {"hand_actions": "grasp"},
    {"hands": "both", "hand_actions": "egodex"},
]


def make(env_id: str = HAND, **options: Any) -> Any:
    return gym.make(env_id, **{**DREAM, **options})


@pytest.mark.parametrize("env_id", IDS)
def test_both_checkers_accept_the_ids(env_id):
    env = make(env_id, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env, skip_render_check=False)
    env.close()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_accepts_every_option(options):
    env = make(**options)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "options", "width"),
    [
        (HAND, {}, 13),
        (HAND, {"hands": "both"}, 26),
        (HAND, {"hand_actions": "grasp"}, 4),
        (BOTH, {"hands": "both", "hand_actions": "grasp"}, 12),
        (HAND, {"hand_actions": "keypoints"}, 63),
        (HAND, {"hand_actions": "egodex"}, 48),
        (BOTH, {}, 17),
        (BOTH, {"hands": "both"}, 30),
    ],
)
def test_widths_of_actions(env_id, options, width):
    assert make(env_id, **options).action_space.shape == (width,)


def test_the_space_is_that_of_the_simulator():
    for kind in ("delta", "grasp"):
        simulator = gym.make("WorldScape-Tabletop-v0", hand_actions=kind)
        assert make(hand_actions=kind).action_space == simulator.action_space
        simulator.close()


def test_a_grasp_is_a_move_and_all_fingers_closing():
    short, long = make(hands="both", hand_actions="grasp"), make(hands="both")
    for env in (short, long):
        env.reset(seed=0)
    still = [0.0] * 13
    moved = [0.1, -0.2, 0.3, 0, 0, 0, *[0.5] * 6, 0]
    one = short.step(np.array([0, 0, 0, 0, 0.1, -0.2, 0.3, 0.5], np.float32))
    assert_same(one, long.step(np.array([*still, *moved], np.float32)))
    assert set(short.unwrapped.get_keys_to_action()) == set(long.unwrapped.get_keys_to_action())


def test_numbers_outside_are_clipped_and_nan_is_refused():
    one, other = make(), make()
    far, edge = np.full(13, 7.0, np.float32), np.ones(13, np.float32)
    for env in (one, other):
        env.reset(seed=0)
    assert_same(one.step(far), other.step(edge))
    wrong = {"must be finite": np.full(13, np.nan), "has shape": np.zeros(12), "not numbers": "grasp"}
    for message, bad in wrong.items():
        with pytest.raises(ValueError, match=message):
            one.unwrapped.step(bad)


def test_the_universal_layout_is_camera_then_hand():
    """Each part alone does what it does in the environment that has it alone."""
    world, walker = (
        make(BOTH, max_episode_steps=9),
        gym.make("WorldScape-Nav-v0", weights="debug", starts="drawn", task="coverage", actions="continuous"),
    )
    start, _ = world.reset(seed=3)[1], walker.reset(seed=3)
    info = world.step(np.array([0.5, 0, 1, 0] + [0] * 13, np.float32))[4]
    camera = walker.step(np.array([0.5, 0, 1, 0], np.float32))[4]
    assert_close(info["control"], camera["control"])
    np.testing.assert_array_equal(info["hand_command"][1, 3:], start["hand_command"][1, 3:])
    hand = world.step(np.array([0] * 4 + [1] + [0] * 12, np.float32))[4]
    assert not hand["control"].any()
    np.testing.assert_allclose((hand["hand_command"] - info["hand_command"])[1, 0], 0.03, atol=0.03)


def test_infos_are_those_of_the_simulator():
    dreamed = make().reset(seed=0)[1]
    simulator = gym.make("WorldScape-Tabletop-v0")
    simulated = simulator.reset(seed=0)[1]
    simulator.close()
    for name in ("hand_present", "hand_keypoints", "hand_pixels", "hand_state", "hand_command", "target"):
        assert dreamed[name].shape == simulated[name].shape and dreamed[name].dtype == simulated[name].dtype, name
    assert dreamed["object_position"].shape == simulated["object_pose"][:3, 3].shape
    for name in ("contact", "grasped", "lifted"):
        assert np.asarray(dreamed[name]).dtype == np.asarray(simulated[name]).dtype == bool, name
    assert 0 <= dreamed["success_probability"] <= 1


@pytest.mark.parametrize("kind", ["keypoints", "egodex"])
def test_absolute_actions_go_where_they_say(kind):
    """A goal within one step's reach is reached by the command at once; the wrist then follows as the head says."""
    env = make(hands="both", hand_actions=kind)
    command = torch.from_numpy(env.reset(seed=1)[1]["hand_command"])
    goal = command.clone()
    goal[:, :3] += torch.tensor([0.01, -0.01, 0.005])
    states = state_from_vector(goal)
    is_left = torch.tensor([True, False])
    action = hand_keypoints(states, is_left) if kind == "keypoints" else egodex_from_states(states)
    moved = core_of(env).actions.to_hands(action.flatten()[None].numpy(), np.ones(1, bool), command[None])
    assert moved is not None
    told = engine_of(env).state.hands.told(moved, engine_of(env).config.hands)
    torch.testing.assert_close(told[0, :, :9], goal[:, :9], atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["blockwise", "rolling"])
def test_absolute_actions_come_to_rest_where_they_say(sampler):
    """With frames in flight too, what is still to go is counted from where the hand was last told to be."""
    env = make(
        hand_actions="keypoints", sampler=sampler, steps_per_frame=3, task="push", task_options={"threshold": 0.9999}
    )
    start = torch.from_numpy(env.reset(seed=1)[1]["hand_command"])
    goal = start.clone()
    goal[:, 0] += 0.05
    action = hand_keypoints(state_from_vector(goal), torch.tensor([True, False]))[1].numpy().ravel()
    for _ in range(8):
        info = env.step(action)[4]
    assert info["hand_command"][1, 0] == pytest.approx(float(goal[1, 0]), abs=5e-3)


def test_a_row_of_many_is_a_world_of_its_own():
    vector, single = gym.make_vec(BOTH, num_envs=3, **DREAM), make(BOTH)
    observations, infos = vector.reset(seed=5)
    assert_close((observations[1], row_of(infos, 1)), single.reset(seed=6))
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.uniform(-1, 1, (3, 17)).astype(np.float32)
        observations, rewards, _, _, infos = vector.step(actions)
        observation, reward, _, _, info = single.step(actions[1])
        assert_close((observations[1], row_of(infos, 1)["hand_keypoints"]), (observation, info["hand_keypoints"]))
        assert rewards[1] == pytest.approx(reward, abs=1e-4)


def test_snapshots_and_forks_carry_hands():
    env = make(BOTH)
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    future = rng.uniform(-1, 1, (3, 17)).astype(np.float32)
    env.step(future[0])
    saved = env.unwrapped.snapshot()
    first = [env.step(action) for action in future]
    env.unwrapped.restore(saved)
    assert_same([env.step(action)[0] for action in future], [step[0] for step in first])
    env.unwrapped.restore(saved)
    copies = env.unwrapped.fork(2)
    assert copies.step(np.stack([future[0]] * 2))[4]["hand_keypoints"].shape == (2, 2, 21, 3)


def test_starts_of_a_recording_keep_their_hands(tmp_path):
    from worldscape.cli import main

    options = ["--episodes", "1", "--steps-per-episode", "4", "--policy", "random", "--out", str(tmp_path / "data")]
    assert main(["record", "--env", "WorldScape-Tabletop-v0", *options]) == 0
    starts = ["starts", "--data", str(tmp_path / "data"), "--num", "1", "--out", str(tmp_path / "starts.safetensors")]
    assert main(starts) == 0
    simulator = gym.make("WorldScape-Tabletop-v0")
    known = simulator.reset(seed=0)[1]
    simulator.close()
    for path in (tmp_path / "data", tmp_path / "starts.safetensors"):
        env = make(starts=str(path), hands="both")
        info = env.reset(seed=0, options={"start": 0})[1]
        assert info["hand_present"].all()
        left, wrist = info["hand_keypoints"][:, 0]
        assert np.linalg.norm(wrist - known["hand_keypoints"][1, 0]) < 0.15
        eyes = level_pose(torch.from_numpy(info["pose"])).numpy()
        seen_left, seen_right = (np.linalg.inv(eyes) @ [*place, 1] for place in (left, wrist))
        np.testing.assert_allclose(seen_left * [-1, 1, 1, 1], seen_right, atol=1e-5)
        walker = gym.make("WorldScape-Nav-v0", weights="debug", task="coverage", starts=str(path))
        assert "hand_present" not in walker.reset(seed=0)[1]


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        (HAND, {"hands": "third"}, "hands='third' is unknown"),
        (HAND, {"hand_actions": "mind"}, "hand_actions='mind' is unknown"),
        (HAND, {"actions": "discrete"}, "actions='discrete' move no hands, and hands='right'; make "),
        ("WorldScape-Nav-v0", {"hands": "right"}, "make WorldScape-Hand-v0, .*WorldScape-Universal-v0"),
        ("WorldScape-Nav-v0", {"actions": "universal"}, "is not an action mode"),
        (HAND, {"starts": "hands-moon"}, "hands-moon"),
        (HAND, {"task_options": {"reward_mode": "much"}}, "reward_mode is 'much'; choose one of dense, missing"),
    ],
)
def test_bad_options(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        gym.make(env_id, **{**DREAM, "task_options": {}, **options})


def test_how_a_hand_is_paid_is_an_option_of_its_task():
    paid = {}
    for mode in ("dense", "missing", "sparse"):
        env = make(task="reach", task_options={"reward_mode": mode})
        env.reset(seed=1)
        paid[mode] = [env.step(np.full(13, 0.3, np.float32))[1] for _ in range(3)]
        env.close()
    assert 0 < min(paid["dense"]) and max(paid["dense"]) < 0.8
    np.testing.assert_allclose(paid["missing"], np.array(paid["dense"]) - 1, atol=1e-6)
    assert paid["sparse"] == [0.0] * 3


def test_a_task_of_hands_needs_hands():
    env = gym.make("WorldScape-Nav-v0", weights="debug", starts="drawn", task="push")
    with pytest.raises(ValueError, match="hands='right'"):
        env.reset(seed=0)


def test_weights_without_hands_say_so(tmp_path):
    """As trained on rooms alone, with `--model transformer.hands=false`."""
    config = preset("debug")
    walker = WorldModel(replace(config, transformer=replace(config.transformer, hands=False)))
    save_world(walker, tmp_path / "walker", {})
    with pytest.raises(ValueError, match="know no hands"):
        gym.make(HAND, weights=str(tmp_path / "walker"), starts="drawn")


def test_the_shipped_hand_moves_as_told_over_a_still_table():
    """Three steps up and away: the pictures change where the hand was and is, and most of the rest not at all (the
    forearm moves too)."""
    env = gym.make(HAND)
    before, info = env.reset(seed=3)
    places = [info["hand_pixels"][1]]
    after = before
    for _ in range(3):
        after, _, _, _, info = env.step(np.array([1, -1, 0, *[0] * 10], np.float32))
        places.append(info["hand_pixels"][1])
    env.close()
    assert np.linalg.norm(places[-1] - places[0], axis=-1).mean() > 8
    near = np.zeros((64, 64), bool)
    rows, columns = np.mgrid[:64, :64] + 0.5
    for x, y in np.concatenate(places):
        near |= (columns - x) ** 2 + (rows - y) ** 2 < 8**2
    change = np.abs(after.astype(float) - before).mean(-1)
    assert change[near].mean() > 10 and np.median(change[~near]) < 3


def test_sb3_steps_them():
    from ws_gym.sb3 import make_vec_env

    env = make_vec_env(BOTH, 2, seed=0, **DREAM)
    env.reset()
    observations, rewards, dones, infos = env.step(np.zeros((2, 17), np.float32))
    assert isinstance(observations, np.ndarray) and observations.shape == (2, 64, 64, 3)
    assert rewards.shape == dones.shape == (2,)
    assert infos[0]["hand_keypoints"].shape == (2, 21, 3) and UNIVERSAL["actions"] == "universal"
    env.close()


def test_registering_imports_no_torch():
    code = "import sys, ws_gym, gymnasium; gymnasium.spec('WorldScape-Hand-v0'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=source_env(), capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
