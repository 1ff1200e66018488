"""The tabletop simulator: reproducible, true geometry, an honest hand, rewards that say what happened."""

import colorsys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.data.written import write_dataset
from worldscape.conditioning.hand_model import HandState, hand_keypoints
from worldscape.conditioning.hands import action_between, rotation_from_vector, state_from_vector
from worldscape.data.episode import EpisodeReader
from worldscape.data.hand_tracks import read_tracks
from worldscape.data.rollout import roll_episode
from worldscape.data.starts import hands_as_seen
from worldscape.data.tabletop import TabletopEnv
from worldscape.data.tabletop_layout import SHAPES, draw_plan
from worldscape.data.tabletop_policies import POLICIES
from worldscape.data.tabletop_tasks import Facts, judge_pick_place, judge_push, judge_reach
from worldscape.data.tabletop_textures import PATTERNS, paint

STILL = np.zeros(13, np.float32)


@pytest.fixture(scope="module")
def env():
    env = TabletopEnv(task="pick_place", goal_terminates=False)
    yield env
    env.close()


def steer(env: TabletopEnv, position, turn=(0.0, 0.0, 0.0), curl=0.2, steps=25):
    """Send the hand to a pose, given relative to the first object's centre, and wait -> the last info."""
    centre = env.world.object_pose()[:3, 3]
    goal = HandState(
        torch.tensor(centre + np.array(position, np.float32)),
        rotation_from_vector(torch.tensor(turn)),
        torch.tensor([curl] * 5 + [0.0, 0.0]),
    )
    info = {}
    for _ in range(steps):
        info = env.step(action_between(env.world.command, goal, env.scale).numpy())[4]
    return info


def test_the_seed_decides_everything(env):
    def play(seed):
        observation, info = env.reset(seed=seed)
        rng = np.random.default_rng(0)
        shown = [observation, info["depth"], info["object_pose"]]
        for _ in range(5):
            observation, reward, _, _, info = env.step(rng.uniform(-1, 1, 13).astype(np.float32))
            shown += [observation, np.array(reward), info["hand_keypoints"], info["depth"]]
        return b"".join(np.ascontiguousarray(value).tobytes() for value in shown)

    first = play(11)
    assert play(12) != first
    assert play(11) == first


def test_plans_vary_and_are_reproducible():
    plans = [draw_plan(np.random.default_rng(seed), "push") for seed in range(80)]
    assert plans[3] == draw_plan(np.random.default_rng(3), "push")
    assert {plan.objects[0].shape for plan in plans} == set(SHAPES)
    assert {len(plan.objects) for plan in plans} == {1, 2, 3, 4}
    for plan in plans:
        places = [item.place for item in plan.objects] + [(plan.target[0], plan.target[2])]
        gaps = [np.hypot(*np.subtract(a, b)) for i, a in enumerate(places) for b in places[:i]]
        assert min(gaps) > 0.12


def test_the_object_that_is_meant_is_more_vivid_than_the_scenery():
    for seed in range(60):
        objects = draw_plan(np.random.default_rng(seed), "push").objects
        meant, *scenery = [colorsys.rgb_to_hsv(*item.surface.first) for item in objects]
        assert meant[1] >= 0.64
        assert all(saturation <= 0.23 for _, saturation, _ in scenery)


def test_every_texture_shows_two_shades():
    surface = draw_plan(np.random.default_rng(0), "push").table
    for pattern in PATTERNS:
        painted = paint(replace(surface, pattern=pattern, first=(0.9, 0.2, 0.1), second=(0.1, 0.3, 0.8)))
        assert painted.shape == (128, 128, 3) and painted.std() > 3, pattern


def test_depth_is_the_distance_to_the_table(env):
    """Rays through pixels that show the bare table, cut with the plane y = 0."""
    _, info = env.reset(seed=4)
    (fx, fy, cx, cy), pose, depth = info["intrinsics"], info["pose"], info["depth"]
    rows, columns = np.mgrid[0:64, 0:64]
    # The depth of a pixel is that of its upper left quarter, where two rows and columns of samples are averaged.
    x, y = (columns + 0.25) / 64, (rows + 0.25) / 64
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones((64, 64))], -1) @ pose[:3, :3].T
    expected = -pose[1, 3] / rays[..., 1]
    points = pose[:3, 3] + rays * depth[..., None]
    on_table = np.abs(points[..., 1]) < 0.003
    assert on_table.mean() > 0.4
    assert np.median(np.abs(depth - expected)[on_table]) < 0.001


def test_keypoints_are_where_the_hand_is_seen(env):
    """A visible keypoint lies under the picture's surface by less than a finger; a hidden one is deeper or outside."""
    _, info = env.reset(seed=5)
    assert info["hand_present"].tolist() == [False, True]
    assert not info["hand_keypoints"][0].any() and not info["hand_visible"][0].any()
    assert info["hand_visible"][1].sum() >= 12
    pixels, points = info["hand_pixels"][1].astype(int), info["hand_keypoints"][1]
    z = ((points - info["pose"][:3, 3]) @ info["pose"][:3, :3])[:, 2]
    for (column, row), depth, seen in zip(pixels, z, info["hand_visible"][1], strict=True):
        if seen:
            assert -0.03 < info["depth"][row, column] - depth < 0.03


def test_masks_are_where_hand_and_object_are_seen_and_nothing_else_changes(env):
    seeing, distances = TabletopEnv(task="pick_place", goal_terminates=False, masks=True), []
    for seed in range(4):
        plain, info = env.reset(seed=seed)
        shown, told = seeing.reset(seed=seed)
        for step in range(3):
            hand, thing = told["hand_mask"], told["object_mask"]
            # Two contexts of software OpenGL now and then round a few pixels to neighbouring levels.
            assert np.abs(shown.astype(int) - plain).max() <= 1 and (shown != plain).mean() < 0.005
            assert hand.dtype == thing.dtype == bool and hand.shape == thing.shape == (64, 64)
            assert (hand & thing).sum() < 20 and 0.01 < hand.mean() < 0.3 and thing.sum() < 400
            column, row = told["hand_pixels"][1][told["hand_visible"][1]].astype(int).T
            assert hand[row, column].mean() > 0.8  # a fingertip may be thinner than a pixel
            if thing.sum() > 4:  # the hand may hide it
                centre = np.linalg.inv(told["pose"]) @ np.append(told["object_pose"][:3, 3], 1.0)
                distances.append(float(np.median(told["depth"][thing])) - centre[2])
            action = np.random.default_rng(step).uniform(-1, 1, 13).astype(np.float32)
            plain = env.step(action)[0]
            shown, _, _, _, told = seeing.step(action)
    assert "hand_mask" not in info
    assert len(distances) >= 6 and np.abs(distances).max() < 0.06
    seeing.close()


def test_shadows_hide_nothing_from_masks(env):
    """They are drawn as discs, which would hide a fingertip near the table."""
    env.reset(seed=3)
    steer(env, (0.1, -0.06, 0.0))
    names = {env.world._model.geom(geom).name for geom in np.unique(env.world._camera.draw_geoms(64))}
    assert "object0" in names and "" in names
    _, thing = env.world.masks()
    env.world._shadows = lambda: np.zeros((0, 4))
    env.world.observe()
    without = env.world.masks()[1]
    del env.world._shadows
    np.testing.assert_array_equal(thing, without)


def test_a_hand_outside_the_picture_is_reported_as_not_visible(env):
    env.reset(seed=5)
    for _ in range(20):
        info = env.step(np.array([1, -1, 0, *[0] * 10], np.float32))[4]
    assert info["hand_command"][1, 0] == pytest.approx(env.scale.high[0])
    assert not info["hand_visible"][1].all()
    outside = ((info["hand_pixels"][1] < 0) | (info["hand_pixels"][1] >= 64)).any(-1)
    assert outside.any() and not info["hand_visible"][1][outside].any()


def test_the_kinematic_hand_is_the_simulated_one_in_free_space():
    """Mean error below 3 mm over random motion above the table, and below 0.5 mm once the hand has come to rest."""
    env = TabletopEnv(task="reach", goal_terminates=False)
    moving, resting = [], []
    rng = np.random.default_rng(2)
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(4):
            action = rng.uniform(-1, 1, 13).astype(np.float32)
            action[1] = -abs(action[1])
            for command in (action, action, STILL, STILL):
                info = env.step(command)[4]
                kinematic = hand_keypoints(env.world.command).numpy()
                error = np.linalg.norm(info["hand_keypoints"][1] - kinematic, axis=-1).mean()
                (resting if command is STILL else moving).append(error)
    env.close()
    assert np.mean(moving) < 0.003
    assert np.mean(resting[1::2]) < 0.0005


def test_what_a_reach_is_paid():
    """The same script in each mode, to the first success and one step farther."""
    paid = {}
    for mode in ("dense", "missing", "sparse"):
        env = TabletopEnv(task="reach", reward_mode=mode, goal_terminates=False)
        observation, info = env.reset(seed=3)
        act, rewards = POLICIES["expert"](env, np.random.default_rng(0)), []
        while not info["success"]:
            observation, reward, terminated, _, info = env.step(act(observation, info))
            rewards.append(reward)
            assert not terminated
        env.step(act(observation, info))
        env.close()
        paid[mode] = np.array(rewards)
    assert len(paid["dense"]) > 3 and (paid["dense"][:-1] < 0.8).all() and paid["dense"][-1] > 0.9
    np.testing.assert_allclose(paid["missing"], paid["dense"] - 1)
    np.testing.assert_array_equal(paid["sparse"], [0.0] * (len(paid["dense"]) - 1) + [1.0])
    with pytest.raises(ValueError, match="reward_mode is 'all'; choose one of dense, missing, sparse"):
        TabletopEnv(reward_mode="all")


def test_the_table_stops_the_hand_and_the_command_waits():
    env = TabletopEnv(task="reach", goal_terminates=False)
    env.reset(seed=1)
    for _ in range(25):
        info = env.step(np.array([0, 1, 0, -0.5, *[0] * 9], np.float32))[4]
    env.close()
    assert info["collision"]
    assert info["hand_keypoints"][1, :, 1].max() < 0.003
    assert np.linalg.norm(info["hand_state"][1, :3] - info["hand_command"][1, :3]) < 0.021


def test_a_start_shows_the_fingers_that_the_table_holds_back():
    """A hand pressed on the table and told to close: its fingers cannot, and a world opens with them where they are."""
    env = TabletopEnv(task="reach", goal_terminates=False)
    env.reset(seed=1)
    for close in (0.0, 0.6):
        for _ in range(12):
            info = env.step(np.array([0, 1, 0, 0, 0, 0, *[close] * 5, 0, 0], np.float32))[4]
    env.close()
    state, keypoints, present = (info[name][None] for name in ("hand_state", "hand_keypoints", "hand_present"))

    def distance(states) -> float:
        placed = hand_keypoints(state_from_vector(torch.from_numpy(states[0, 1])))
        return float((placed - torch.from_numpy(keypoints[0, 1])).norm(dim=-1).mean())

    assert distance(state) > 0.03 and distance(hands_as_seen(state, keypoints, present)) < 0.015


def test_a_hand_that_sweeps_over_the_table_pushes_the_object(env):
    _, info = env.reset(seed=2)
    start = info["object_pose"][:3, 3].copy()
    steer(env, (0.14, -0.1, -0.11))
    steer(env, (0.14, -0.01, -0.11))
    info = steer(env, (-0.1, -0.01, -0.11), steps=20)
    assert info["object_pose"][0, 3] - start[0] < -0.04
    assert not info["lifted"]


def facts(**changes) -> Facts:
    """A hand far from an object 10 cm from its target, with some facts changed."""
    far = np.array([0.3, -0.2, 0.0])
    values: dict[str, Any] = {"fingertip": far, "palm": far, "object": np.zeros(3), "target": np.array([0.1, 0.0, 0.0])}
    values |= {"object_speed": 0.0, "contact": False, "grasped": False, "lifted": False, "was_lifted": False}
    return Facts(**(values | changes))


def test_reaching_is_paid_by_distance_and_done_within_the_radius():
    target = facts().target
    rewards = [judge_reach(facts(fingertip=target + [0, -d, 0])).reward for d in (0.3, 0.1, 0.03, 0.02, 0.0)]
    assert rewards == sorted(rewards) and rewards[-1] == 1.0
    assert not judge_reach(facts(fingertip=target + [0, -0.03, 0])).success
    assert judge_reach(facts(fingertip=target + [0, -0.02, 0])).success


def test_pushing_counts_on_the_table_only():
    there = facts().target + [0.03, -0.03, 0]
    assert judge_push(facts(object=there)).success and judge_push(facts(object=there)).reward == 1.0
    assert not judge_push(facts(object=there, lifted=True)).success
    assert not judge_push(facts(object=there, grasped=True)).success


def test_pushing_begins_behind_the_object():
    """Seen from the disc, whatever is above the table; before it, or on the object, is paid less."""
    places = [np.array(place) for place in ([-0.07, 0.0, 0.0], [0.0, 0.0, 0.0], [0.07, 0.0, 0.0])]
    paid = [judge_push(facts(palm=place, target=np.array([0.1, 0.05, 0.0]))).reward for place in places]
    assert paid[0] == pytest.approx((1 + 1 - np.tanh(0.5)) / 3)
    assert paid[0] > paid[1] > paid[2]
    on_disc = facts(palm=places[0], object=facts().target, lifted=True)
    assert np.isfinite(judge_push(on_disc).reward)


def test_each_stage_of_pick_and_place_pays_more_than_the_one_before():
    up, target = np.array([0, -0.1, 0]), facts().target
    stages = [
        facts(),
        facts(palm=np.zeros(3), contact=True),
        facts(palm=np.zeros(3), contact=True, grasped=True),
        facts(palm=up, object=up, contact=True, grasped=True, lifted=True, was_lifted=True),
        facts(palm=target + up, object=target + up, contact=True, grasped=True, lifted=True, was_lifted=True),
        facts(palm=target, object=target, contact=True, grasped=True, was_lifted=True),
        facts(palm=target + up, object=target, was_lifted=True),
    ]
    verdicts = [judge_pick_place(stage) for stage in stages]
    rewards = [verdict.reward for verdict in verdicts]
    assert rewards == sorted(rewards) and len(set(rewards)) == len(rewards)
    assert [verdict.success for verdict in verdicts] == [False] * 6 + [True]


def test_an_object_that_was_pushed_there_is_not_placed():
    assert not judge_pick_place(facts(object=facts().target)).success
    assert not judge_pick_place(facts(object=facts().target, was_lifted=True, object_speed=0.2)).success


def test_success_ends_the_episode():
    env = TabletopEnv(task="reach")
    _, info = env.reset(seed=0)
    for _ in range(60):
        tip, wrist = info["hand_keypoints"][1, 8], env.world.command.position.numpy()
        goal = env.world.command._replace(position=torch.from_numpy(wrist + info["target"] - tip))
        _, reward, terminated, truncated, info = env.step(action_between(env.world.command, goal, env.scale).numpy())
        if terminated:
            break
    assert terminated and not truncated and info["success"] and 0.8 < reward <= 1.0
    with pytest.raises(gym.error.ResetNeeded):
        env.step(STILL)
    env.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(12), r"shape \(12,\); 1 hand\(s\) take 13 numbers"),
        (np.full(13, np.nan), "holds nan; every number must be finite"),
        (np.full(13, np.inf), "holds inf; every number must be finite"),
        (np.array(["a"] * 13), "not made of numbers"),
    ],
)
def test_bad_actions_are_refused(env, action, message):
    env.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_numbers_beyond_one_are_clipped(env):
    env.reset(seed=1)
    env.step(np.full(13, 7.0))
    wild = env.world.command
    env.reset(seed=1)
    env.step(np.ones(13))
    assert all(torch.equal(one, other) for one, other in zip(wild, env.world.command, strict=True))


@pytest.mark.parametrize(
    "settings", [{"size": 8}, {"size": 512}, {"task": "juggle"}, {"max_episode_steps": -1}, {"render_mode": "human"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TabletopEnv(**settings)


def test_larger_pictures_show_the_same_world():
    small, large = TabletopEnv(), TabletopEnv(size=256)
    one, other = small.reset(seed=9), large.reset(seed=9)
    shrunk = other[0].reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - one[0]).mean() < 3
    np.testing.assert_allclose(other[1]["hand_pixels"], 4 * one[1]["hand_pixels"], atol=1e-3)
    small.close()
    large.close()


def test_a_grasp_is_a_move_and_all_fingers_closing(tmp_path):
    """The same motion in the simulator, and recordings of it say the same of the hand's actions."""
    moved = [0.5, -0.4, 0.3]
    shown, told = [], []
    for kind, action in (("grasp", [*moved, 0.6]), ("delta", [*moved, 0, 0, 0, *[0.6] * 6, 0])):
        env = TabletopEnv(task="push", hand_actions=kind)
        steady = np.array(action, np.float32)
        policy = lambda _, rng, steady=steady: lambda observation, info: steady  # noqa: E731
        episode = roll_episode(env, policy, seed=4, num_steps=3, index=0)
        recorded = EpisodeReader(write_dataset(tmp_path / kind, env, episode)).episode(0)
        shown.append(recorded.hand_command)
        tracks = read_tracks([recorded])
        assert tracks is not None and tracks.is_told[1:, 1].all()
        told.append(tracks.action)
        with pytest.raises(ValueError, match=rf"has shape \(5,\); 1 hand\(s\) take {len(action)} numbers"):
            env.step(np.zeros(5))
        env.close()
    np.testing.assert_array_equal(*shown)
    np.testing.assert_array_equal(*told)
    assert (told[0][1:, 1, 6:12] == np.float32(0.6)).all()
    with pytest.raises(ValueError, match="hand_actions is 'keypoints'; choose one of delta, grasp"):
        TabletopEnv(hand_actions="keypoints")
