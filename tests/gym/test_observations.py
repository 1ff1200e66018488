"""Latents as observations: the same dreams, without the pictures being made."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from tests.gym.helpers import DREAM, assert_same, core_of, engine_of, make_env, make_vec
from worldscape import engine_frames
from worldscape.data.rollout import load_policy, roll_episode
from ws_gym.env import WorldScapeEnv
from ws_gym.infos import resize_frames
from ws_gym.observations import Latent
from ws_gym.sb3 import make_vec_env

VARIANTS = [{}, {"actions": "continuous"}, {"task": "goal_image"}, {"task": "goal_pose", "steps_per_frame": 2}]
ACTIONS = [1, 5, 1, 6, 6, 3, 2, 7]


def latents_of(env) -> np.ndarray:
    """What the engine holds, [B, P * C]."""
    return engine_of(env).state.latent.flatten(1).numpy()


def without_depth(info: dict) -> dict:
    return {name: value for name, value in info.items() if name not in ("depth", "_depth")}


@pytest.fixture
def made_pictures(monkeypatch) -> list:
    """Notes each time that RGB-D becomes a picture or a depth map for somebody who holds an EngineFrame."""
    made = []
    for name in ("rgbd_to_frame", "decode_depth"):
        make = getattr(engine_frames, name)
        monkeypatch.setattr(engine_frames, name, lambda x, make=make, name=name: [made.append(name), make(x)][1])
    return made


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasiums_and_sb3s_checkers_pass(options):
    env = make_env(obs="latent", render_mode="rgb_array", **options)
    check_env(env.unwrapped)
    check_env_sb3(env, skip_render_check=False)
    env.close()


@pytest.mark.parametrize("options", [{"task": "coverage"}, {"task": "goal_image"}, {"task": "goal_pose"}], ids=str)
def test_the_dream_is_that_of_the_pixels(options):
    """Same seed, same actions: the latents that the other engine holds; rewards, ends and infos to the last bit."""
    env, pixels = make_env(obs="latent", **options), make_env(**options)
    observation, info = env.reset(seed=4)
    info_of_pixels = pixels.reset(seed=4)[1]
    np.testing.assert_array_equal(observation, latents_of(pixels)[0])
    assert_same(info, without_depth(info_of_pixels))
    for action in ACTIONS:
        observation, *outcome, info = env.step(action)
        _, *outcome_of_pixels, info_of_pixels = pixels.step(action)
        np.testing.assert_array_equal(observation, latents_of(pixels)[0])
        assert outcome == outcome_of_pixels
        assert_same(info, without_depth(info_of_pixels))


def test_the_grid_is_that_of_the_picture():
    """Row by row from the upper left: the codec reads a picture whose right half is white."""
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[:, 32:] = 255
    env = make_env(obs="latent").unwrapped
    latent = env.reset(seed=0, options={"image": photo})[0].reshape(env.latent_shape)
    state, codec = engine_of(env).state, engine_of(env).codec
    np.testing.assert_allclose(latent, codec.encode(state.rgbd)[0].reshape(4, 4, 8).numpy(), atol=1e-6)
    upside_down = codec.encode(state.rgbd.flip(2))[0].reshape(4, 4, 8).numpy()
    assert np.abs(latent[1:3, 0] - latent[1:3, 3]).mean() > 3 * np.abs(latent - upside_down)[1:3].mean()


def test_numbers_stay_within_the_bounds():
    env = make_env(obs="latent")
    space = env.observation_space
    assert space.dtype == np.float32 and space.shape == (16 * 8,) and space.high.max() == np.float32(math.sqrt(8))
    observation, _ = env.reset(seed=0)
    for action in ACTIONS:
        assert observation in space
        tokens = observation.reshape(env.unwrapped.latent_shape)
        np.testing.assert_allclose(np.square(tokens).mean(-1), 1.0, atol=1e-3)
        observation = env.step(action)[0]


def test_a_token_with_one_channel_alone_does_not_pass_the_bound():
    """Rounding could: the bound is what the space promises."""
    kind = Latent(engine_of(make_env(obs="latent")).config, (64, 64))
    env = make_env(obs="latent")
    env.reset(seed=0)
    frame = engine_of(env).step(torch.zeros(1, 6))
    frame.latent = torch.zeros_like(frame.latent)
    frame.latent[..., 0] = math.sqrt(8) * (1 + 1e-6)
    assert kind.observe(frame)[0].numpy() in kind.space


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_vectorised(mode, output):
    options = {"autoreset_mode": mode, "output": output, "max_episode_steps": 3 if mode != "DISABLED" else None}
    envs, pixels = make_vec(2, obs="latent", **options), make_vec(2, **options)
    assert envs.observation_space == gym.vector.utils.batch_space(envs.single_observation_space, 2)
    observation, _ = envs.reset(seed=3)
    pixels.reset(seed=3)
    for action in ACTIONS:
        np.testing.assert_array_equal(np.asarray(observation), latents_of(pixels))
        assert isinstance(observation, torch.Tensor) == (output == "torch")
        observation, *outcome, info = envs.step(np.array([action, 6]))
        _, *outcome_of_pixels, info_of_pixels = pixels.step(np.array([action, 6]))
        for one, other in zip(outcome, outcome_of_pixels, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(info["pose"], info_of_pixels["pose"])
        assert "depth" not in info and "depth" in info_of_pixels
        if "final_obs" in info:
            assert np.stack(list(np.asarray(info["final_obs"]))).shape == (2, 128)
    assert np.asarray(observation).dtype == np.float32


def test_no_picture_is_made_that_nobody_asks_for(made_pictures):
    env = make_env(obs="latent", task="coverage")
    env.reset(seed=0)
    env.step(1)
    assert made_pictures == []
    pixels = make_env(task="coverage")
    pixels.reset(seed=0)
    assert sorted(made_pictures) == ["decode_depth", "rgbd_to_frame"]


def test_a_task_that_looks_gets_the_picture_once(made_pictures):
    env = make_env(obs="latent", task="goal_image")
    env.reset(seed=0)
    made_pictures.clear()
    distance = env.step(5)[4]["image_distance"]
    assert made_pictures == ["rgbd_to_frame"]
    pixels = make_env(task="goal_image")
    pixels.reset(seed=0)
    assert pixels.step(5)[4]["image_distance"] == distance > 0


def test_a_reward_function_of_ones_own_sees_the_picture():
    def brightness(frame, elapsed):
        return frame.frame.float().mean((1, 2, 3)) + frame.depth.mean((1, 2))

    env, pixels = (make_env(task=brightness, obs=obs) for obs in ("latent", "pixels"))
    env.reset(seed=0)
    pixels.reset(seed=0)
    assert env.step(1)[1] == pixels.step(1)[1] > 1


@pytest.mark.parametrize("num_envs", [1, 2])
def test_render_shows_the_picture(num_envs):
    options = {"render_mode": "rgb_array"}
    if num_envs == 1:
        envs, pixels = make_env(obs="latent", **options), make_env(**options)
    else:
        envs, pixels = make_vec(2, obs="latent", **options), make_vec(2, **options)
    envs.reset(seed=1)
    pixels.reset(seed=1)
    for _ in range(3):
        np.testing.assert_array_equal(envs.render(), pixels.render())
        action = 6 if num_envs == 1 else np.array([6, 1])
        envs.step(action)
        pixels.step(action)


def test_a_window_shows_the_picture(monkeypatch):
    shown = []

    class FakeViewer:
        def __init__(self, title, fps): ...

        def show(self, frame):
            shown.append(frame)

        def close(self): ...

    monkeypatch.setattr("ws_gym.env.Viewer", FakeViewer)
    env, pixels = WorldScapeEnv(**DREAM, obs="latent", render_mode="human"), make_env()
    env.reset(seed=0)
    np.testing.assert_array_equal(shown[0], pixels.reset(seed=0)[0])


def test_worlds_are_values_with_latents_too():
    env = make_env(obs="latent").unwrapped
    env.reset(seed=0)
    saved = env.snapshot()
    after = [env.step(action)[0] for action in ACTIONS[:3]]
    env.restore(saved)
    np.testing.assert_array_equal([env.step(action)[0] for action in ACTIONS[:3]], after)
    env.restore(saved)
    copies = env.fork(2)
    np.testing.assert_allclose(copies.step(np.array([1, 1]))[0], [after[0]] * 2, rtol=1e-4, atol=1e-5)


def test_stable_baselines3_learns_from_them():
    from stable_baselines3 import PPO

    options: dict[str, Any] = {**DREAM, "obs": "latent"}
    vec_env = make_vec_env(n_envs=2, **options)
    model = PPO("MlpPolicy", vec_env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8)
    action, _ = model.predict(vec_env.reset())
    assert action.shape == (2,)


def test_hands_have_latents_too():
    options: dict[str, Any] = {"weights": "debug", "starts": "drawn"}
    env = gym.make("WorldScape-Hand-v0", obs="latent", **options)
    pixels = gym.make("WorldScape-Hand-v0", **options)
    env.reset(seed=0)
    pixels.reset(seed=0)
    observation, _, _, _, info = env.step(np.full(13, 0.5, np.float32))
    info_of_pixels = pixels.step(np.full(13, 0.5, np.float32))[4]
    np.testing.assert_array_equal(observation, latents_of(pixels)[0])
    assert_same(info, without_depth(info_of_pixels))


HAND: dict[str, Any] = {"weights": "debug", "starts": "drawn", "obs": "pixels+hands"}
HAND_IDS = ["WorldScape-Hand-v0", "WorldScape-Universal-v0", "WorldScape-Tabletop-v0"]


def hand_env(name: str, **options: Any) -> gym.Env:
    simulated = name == "WorldScape-Tabletop-v0"
    return gym.make(f"ws_gym:{name}", **({"obs": HAND["obs"]} if simulated else HAND), **options)


@pytest.mark.parametrize("name", HAND_IDS)
def test_checkers_pass_with_a_picture_and_what_a_robot_knows_of_itself(name):
    env = hand_env(name, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env, skip_render_check=False)
    env.close()


@pytest.mark.parametrize("name", HAND_IDS)
def test_hands_are_told_as_info_tells_them_and_the_picture_is_the_same(name):
    env = hand_env(name)
    options = {} if name == "WorldScape-Tabletop-v0" else {key: HAND[key] for key in ("weights", "starts")}
    pixels = gym.make(f"ws_gym:{name}", **options)
    (observation, info), (picture, _) = env.reset(seed=3), pixels.reset(seed=3)
    for _ in range(3):
        assert observation in env.observation_space and observation["hands"].shape == (16,)
        np.testing.assert_array_equal(observation["pixels"], picture)
        np.testing.assert_array_equal(observation["hands"], info["hand_state"][1])
        action = np.full(env.action_space.shape or (), 0.4, np.float32)
        observation, *_, info = env.step(action)
        picture = pixels.step(action)[0]


def test_both_hands_are_told_the_left_one_first():
    env = hand_env("WorldScape-Hand-v0", hands="both")
    env.reset(seed=0)
    observation, *_, info = env.step(np.linspace(-1, 1, 26, dtype=np.float32))
    np.testing.assert_array_equal(observation["hands"], info["hand_state"].reshape(-1))
    assert not np.array_equal(*info["hand_state"])


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_pictures_and_hands_vectorised(mode, output):
    options: dict[str, Any] = {"num_envs": 2, "autoreset_mode": mode, "output": output, **HAND}
    options["max_episode_steps"] = None if mode == "DISABLED" else 2
    options["task_options"] = {"goal_terminates": False}
    envs = gym.make_vec("WorldScape-Hand-v0", **options)
    assert envs.observation_space == gym.vector.utils.batch_space(envs.single_observation_space, 2)
    observation, _ = envs.reset(seed=3)
    for step in range(4):
        assert {name: tuple(part.shape) for name, part in observation.items()} == {
            "pixels": (2, 64, 64, 3),
            "hands": (2, 16),
        }
        assert all(isinstance(part, torch.Tensor) == (output == "torch") for part in observation.values())
        kept = observation["hands"].copy() if output == "numpy" else observation["hands"].clone()
        after, *_, info = envs.step(np.full((2, 13), 0.3, np.float32))
        assert np.array_equal(observation["hands"], kept), "what was handed out is the user's own"
        if mode == "SAME_STEP" and step == 1:
            if output == "torch":
                assert info["final_obs"]["hands"].shape == (2, 16)
                assert not torch.equal(info["final_obs"]["hands"], after["hands"])
            else:
                assert info["final_obs"][1]["hands"].shape == (16,)
                assert not np.array_equal(info["final_obs"][1]["hands"], after["hands"][1])
        observation = after


def test_worlds_with_hands_told_are_values():
    env: Any = hand_env("WorldScape-Hand-v0").unwrapped
    env.reset(seed=0)
    saved, action = env.snapshot(), np.full(13, 0.5, np.float32)
    after = env.step(action)[0]
    assert_same(env.restore(saved)[1], env.restore(saved)[1])
    assert_same(env.step(action)[0], after)


def test_stable_baselines3_learns_from_pictures_and_hands():
    from stable_baselines3 import PPO

    vec_env = make_vec_env("WorldScape-Hand-v0", n_envs=2, max_episode_steps=3, **HAND)
    model = PPO("MultiInputPolicy", vec_env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8)
    observation: Any = vec_env.reset()
    assert model.predict(observation)[0].shape == (2, 13)


def test_a_recording_keeps_what_hands_were_told():
    env = hand_env("WorldScape-Tabletop-v0", task="reach", goal_terminates=False)
    episode = roll_episode(env, load_policy("mixed", env), seed=4, num_steps=3, index=0)
    told: Any = episode.observations
    assert episode.infos is not None
    np.testing.assert_array_equal(told["hands"], episode.infos["hand_state"][:, 1])
    assert told["pixels"].shape == (4, 64, 64, 3)


def test_a_frame_shown_earlier_does_not_change_with_a_reset():
    """Its picture is made when somebody asks, which may be after other rows were opened on something else."""
    envs, twin = make_vec(2), make_vec(2)
    for each in (envs, twin):
        each.reset(seed=0)
    frame, same = (engine_of(each).step(torch.zeros(2, 6)) for each in (envs, twin))
    picture = same.frame.clone()
    envs.reset(options={"reset_mask": np.array([True, True])})
    assert not torch.equal(engine_of(envs).state.rgbd, same.rgbd)
    assert torch.equal(frame.frame, picture)
    np.testing.assert_array_equal(core_of(twin).pictures(), resize_frames(picture, (64, 64)).numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs": "pixels+hands"}, "tells of hands, and there are none; make WorldScape-Hand-v0"),
        ({"obs": "features"}, "choose one of pixels, pixels.hands, latent"),
        ({"obs": "latent", "size": 32}, "leave size out"),
    ],
)
def test_wrong_choices_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        make_env(**options)


def test_a_simulator_explains_a_wrong_choice():
    with pytest.raises(ValueError, match="choose one of pixels, pixels.hands"):
        gym.make("WorldScape-Tabletop-v0", obs="latent")
