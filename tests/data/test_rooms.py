"""The rooms simulator: reproducible, solid walls, true geometry, the goal."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.camera import apply_control
from worldscape.conditioning.reproject import encode_depth, reproject
from worldscape.data.explore import FORWARD, POLICIES, TURN_LEFT, TURN_RIGHT, _sticky_random, explore, goal
from worldscape.data.rooms import RoomsEnv
from worldscape.data.rooms_layout import draw_plan


@pytest.fixture(scope="module")
def env():
    env = RoomsEnv(max_episode_steps=0)
    yield env
    env.close()


def picture(frame, info) -> torch.Tensor:
    depth = torch.from_numpy(info["depth"])[None]
    return frame_to_rgbd(torch.from_numpy(frame.copy())[None], encode_depth(depth))


def test_the_seed_decides_everything(env):
    first, info = env.reset(seed=11)
    other, _ = env.reset(seed=12)
    again, again_info = env.reset(seed=11)
    assert np.array_equal(first, again)
    assert np.array_equal(info["depth"], again_info["depth"])
    assert not np.array_equal(first, other)


def test_it_needs_no_fonts():
    """A bare machine has none, nor the library that reads them."""
    code = (
        "import sys; sys.modules['pyglet.font'] = None\n"
        "from worldscape.data.rooms import RoomsEnv\n"
        "print(RoomsEnv().reset(seed=1)[0].std() > 5)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "True", found.stderr


def test_plans_vary_and_are_reproducible():
    plans = [draw_plan(np.random.default_rng(seed)) for seed in range(60)]
    assert plans[3] == draw_plan(np.random.default_rng(3))
    assert {len(plan.rooms) for plan in plans} >= {1, 2, 4}
    assert 5 <= sum(plan.outdoor for plan in plans) <= 30
    assert all(room.max_x > room.min_x and room.max_z > room.min_z for plan in plans for room in plan.rooms)


def test_two_worlds_in_one_process_do_not_draw_each_other(env):
    """A bug's story: MiniWorld compiles every world into display list 1, so the last one built was drawn for all."""
    frame, _ = env.reset(seed=1)
    second = RoomsEnv(max_episode_steps=0)
    second.reset(seed=2)
    assert np.array_equal(env.step(0)[0], frame)
    second.close()
    assert np.array_equal(env.step(0)[0], frame)


def test_pose_depth_and_picture_belong_together(env):
    """What one frame shows, carried over by its depth and the two poses, is what a frame two turns on shows."""
    frame, info = env.reset(seed=5)
    before = picture(frame, info)
    for _ in range(2):
        frame, _, _, _, later = env.step(TURN_RIGHT)
    anchor = reproject(
        before[:, None],
        torch.from_numpy(info["pose"])[None, None],
        torch.ones(1, 1, dtype=torch.bool),
        torch.from_numpy(later["pose"])[None],
        torch.from_numpy(info["intrinsics"])[None],
    )
    shown = float(anchor.mask.mean())
    error = ((anchor.rgbd - picture(frame, later)) * anchor.mask)[:, :3].pow(2).sum() / (3 * anchor.mask.sum())
    assert 0.4 < shown < 0.8  # 30 of 80 degrees are new
    assert -10 * float(torch.log10(error / 4)) > 27  # dB


def test_the_camera_moves_as_the_realised_control_says(env):
    _, info = env.reset(seed=6)
    rng = np.random.default_rng(0)
    for _ in range(60):
        camera = torch.from_numpy(info["camera"])
        _, _, _, _, info = env.step(int(rng.integers(9)))
        expected = apply_control(camera, torch.from_numpy(info["realised"]), env.scale.max_pitch)
        difference = torch.from_numpy(info["camera"]) - expected
        difference[3] = torch.remainder(difference[3] + torch.pi, 2 * torch.pi) - torch.pi
        assert float(difference.abs().max()) < 1e-4


def test_walls_stop_the_walker(env):
    _, info = env.reset(seed=7)
    blocked = False
    for _ in range(80):
        camera = info["camera"]
        _, _, _, _, info = env.step(FORWARD)
        if info["collision"]:
            blocked = True
            assert np.array_equal(info["camera"], camera)
            assert np.array_equal(info["realised"], np.zeros(6))
    assert blocked


def test_looking_up_stops_at_the_limit(env):
    env.reset(seed=8)
    for _ in range(6):
        _, _, _, _, info = env.step(7)
    assert info["camera"][4] == pytest.approx(np.pi / 6, abs=1e-5)
    assert info["realised"][4] == pytest.approx(0.0, abs=1e-6)


def test_the_goal_policy_finds_the_box_and_is_paid():
    env = RoomsEnv(max_episode_steps=200)
    found = 0
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        act = goal(env, np.random.default_rng(seed))
        for step in range(1, 201):
            observation, reward, terminated, truncated, info = env.step(act(observation, info))
            if terminated:
                found += 1
                assert info["success"] and reward == pytest.approx(1 - 0.2 * step / 200)
                assert info["goal_distance"] < 1.3
            if terminated or truncated:
                break
    assert found >= 6
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.close()


def test_a_sidling_walker_arrives_from_all_sides():
    """Many of its arrivals have the box far from the middle of the picture, on either side, and the eyes up or down;
    few of goal's."""
    env = RoomsEnv(max_episode_steps=200)
    bearings: dict[str, list[float]] = {"goal": [], "sidle": []}
    pitches: dict[str, list[float]] = {"goal": [], "sidle": []}
    for name in bearings:
        for seed in range(24):
            observation, info = env.reset(seed=seed)
            act = POLICIES[name](env, np.random.default_rng(seed))
            terminated = truncated = False
            while not (terminated or truncated):
                observation, _, terminated, truncated, info = env.step(act(observation, info))
            if terminated:
                x, _, z = np.linalg.inv(info["pose"])[:3] @ np.append(env.world.goal_position(), 1.0)
                bearings[name].append(float(np.degrees(np.arctan2(x, z))))
                pitches[name].append(float(np.degrees(info["camera"][4])))
    straight, aside = (np.array(bearings[name]) for name in ("goal", "sidle"))
    assert len(straight) >= 12 and len(aside) >= 12
    assert (np.abs(straight) > 20).mean() < 0.3
    assert (aside > 20).sum() >= 3 and (aside < -20).sum() >= 3
    level, tilted = (np.array(pitches[name]) for name in ("goal", "sidle"))
    assert (np.abs(level) > 15).mean() < 0.2
    assert (tilted < -15).sum() >= 3 and (tilted > 5).sum() >= 1
    env.close()


def share_of_returns(env: RoomsEnv, policy, seed: int) -> float:
    """Share of frames that show a view again after having left it: within 0.3 m and 20 degrees of an earlier camera,
    with a camera more than 1 m or 60 degrees away in between.
    """
    observation, info = env.reset(seed=seed)
    act = policy(env, np.random.default_rng(seed))
    cameras = [info["camera"]]
    for _ in range(128):
        observation, _, _, _, info = env.step(act(observation, info))
        cameras.append(info["camera"])
    cameras = np.stack(cameras)
    distance = np.linalg.norm(cameras[:, None, :3] - cameras[None, :, :3], axis=-1)
    turn = np.abs((cameras[:, None, 3] - cameras[None, :, 3] + np.pi) % (2 * np.pi) - np.pi)
    same, other = (distance < 0.3) & (turn < np.radians(20)), (distance > 1) | (turn > np.radians(60))
    returned = [any(same[now, old] and other[now, old:now].any() for old in range(now)) for now in range(len(cameras))]
    return float(np.mean(returned))


def test_exploring_leaves_views_and_comes_back_to_them():
    """More often than a walker who keeps a random key pressed for a while."""
    env = RoomsEnv(goal_terminates=False)
    explored = np.mean([share_of_returns(env, explore, seed) for seed in range(8)])
    wandered = np.mean([share_of_returns(env, _sticky_random, seed) for seed in range(8)])
    env.close()
    assert explored > 0.18
    assert explored > 1.5 * wandered


@pytest.mark.parametrize(("action", "message"), [(9, "out of range"), (1.5, "whole number"), (True, "whole number")])
def test_bad_actions_are_refused(env, action, message):
    env.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize("settings", [{"size": -4}, {"size": 8}, {"max_episode_steps": -1}, {"render_mode": "human"}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RoomsEnv(**settings)


def test_turning_left_and_right_cancel(env):
    frame, _ = env.reset(seed=9)
    for action in (TURN_LEFT, TURN_LEFT, TURN_RIGHT, TURN_RIGHT):
        observation, *_ = env.step(action)
    assert np.abs(observation.astype(int) - frame).max() <= 2
