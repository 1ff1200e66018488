"""One world as a Gymnasium environment."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, DependencyNotInstalled, Error, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from tests.gym.helpers import NAV, EndAt, assert_same, core_of, engine_of, make_env, make_vec
from worldscape.checkpoint import save_world
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel, debug_world
from ws_gym import core as core_module
from ws_gym.actions import ACTION_MODES
from ws_gym.env import WorldScapeEnv
from ws_gym.tasks import TASKS, Task, TaskResult

VARIANTS = [
    *({"actions": actions} for actions in ACTION_MODES),
    *({"task": task} for task in TASKS),
    {"task": "goal_pose", "task_options": {"radius": 0.5}, "size": (48, 80), "steps_per_frame": 3},
    {"sampler": "rolling", "steps_per_frame": 2},
    {"starts": "train", "max_episode_steps": 20},
]


def roll(env: gym.Env, actions: list) -> list:
    return [env.reset(seed=3), *(env.step(action) for action in actions)]


def stop_at_limit(env: gym.Env, limit: int) -> list[tuple[bool, bool]]:
    env.reset(seed=0)
    return [env.step(0)[2:4] for _ in range(limit)]


class TestCheckers:
    @pytest.mark.parametrize("options", VARIANTS, ids=str)
    def test_gymnasium(self, options):
        env = make_env(render_mode="rgb_array", **options)
        check_env(env.unwrapped)
        env.close()

    @pytest.mark.parametrize("options", VARIANTS, ids=str)
    def test_stable_baselines3(self, options):
        env = make_env(render_mode="rgb_array", **options)
        check_env_sb3(env, skip_render_check=False)
        env.close()

    @pytest.mark.parametrize("env_id", [NAV, "WorldScape-Hand-v0", "WorldScape-Universal-v0"])
    def test_depth_is_rendered(self, env_id):
        for check in (check_env, check_env_sb3):
            check(gym.make(env_id, render_mode="depth_array", weights="debug", starts="drawn").unwrapped)

    def test_make_without_import(self):
        env = gym.make(f"ws_gym:{NAV}", weights="debug")
        check_env(env.unwrapped)
        env.close()


class TestDeterminism:
    @pytest.mark.parametrize("options", [{"task": "goal_pose"}, {"actions": "continuous", "size": 80}], ids=str)
    def test_twins_with_the_same_seed_agree_for_50_steps(self, options):
        first, second = make_env(**options), make_env(**options)
        first.action_space.seed(1)
        actions = [first.action_space.sample() for _ in range(50)]
        for one, other in zip(roll(first, actions), roll(second, actions), strict=True):
            assert_same(one, other)

    def test_resetting_with_a_seed_repeats_and_without_goes_on(self):
        env = make_env()
        first, again = env.reset(seed=5)[0], env.reset()[0]
        assert not np.array_equal(first, again)
        np.testing.assert_array_equal(env.reset(seed=5)[0], first)
        np.testing.assert_array_equal(env.reset()[0], again)

    def test_numpys_numbers_are_seeds(self):
        env = make_env(size=(np.int64(64), 64))
        np.testing.assert_array_equal(env.reset(seed=np.int64(5))[0], make_env().reset(seed=5)[0])
        for seed in (1.5, True, -1, "1"):
            with pytest.raises(ValueError, match="is no seed; give a whole number"):
                env.unwrapped.reset(seed=seed)

    def test_other_seeds_are_other_dreams(self):
        env = make_env()
        assert not np.array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])


class TestStep:
    def test_types_are_pythons_own(self):
        env = make_env().unwrapped
        env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(np.int64(1))
        assert observation.dtype == np.uint8 and observation.shape == (64, 64, 3)
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        kinds = {name: type(value) for name, value in info.items() if not isinstance(value, np.ndarray)}
        assert kinds["collision"] is kinds["success"] is bool
        assert kinds["model_calls"] is int and kinds["coverage"] is float

    def test_info_tells_where_the_camera_is_and_what_it_was_told(self):
        env = make_env()
        _, info = env.reset(seed=0)
        np.testing.assert_array_equal(info["control"], np.zeros(6))
        turned = env.step(6)[4]
        np.testing.assert_allclose(turned["control"], [0, 0, 0, math.radians(15), 0, 0], rtol=1e-6)
        assert turned["camera"][3] - info["camera"][3] == pytest.approx(math.radians(15), abs=1e-5)
        yaw = math.atan2(turned["pose"][0, 2], turned["pose"][2, 2])
        assert yaw == pytest.approx(turned["camera"][3], abs=1e-5)
        assert turned["depth"].shape == (64, 64) and (turned["depth"] > 0).all()
        assert turned.keys() == info.keys()

    def test_more_steps_per_frame_are_more_model_calls(self):
        calls = []
        for steps_per_frame in (1, 3):
            env = make_env(steps_per_frame=steps_per_frame)
            env.reset(seed=0)
            calls.append(env.step(1)[4]["model_calls"])
        assert calls[1] - calls[0] == 2

    def test_temperature_makes_worlds_of_one_start_differ(self):
        """At 0 all seeds dream the same, in vector environments too."""
        for temperature, is_same in ((0.0, True), (1.0, False)):
            envs = gym.make_vec("WorldScape-Nav-v0", num_envs=2, weights="debug", temperature=temperature)
            envs.reset(seed=3, options={"start": 0})
            observations = envs.step(np.array([5, 5]))[0]
            assert np.array_equal(observations[0], observations[1]) == is_same
            envs.close()

    def test_a_rolling_sampler_says_when_actions_show(self):
        """Three calls a frame, one a step: the second turn is told of two steps after it was commanded."""
        env = make_env(sampler="rolling", steps_per_frame=3)
        start, info = env.reset(seed=0)
        assert env.unwrapped.action_latency == info["action_latency"] == 2
        shown = [env.step(action) for action in (5, 6, 0, 0)]
        assert all(found[4]["model_calls"] == 1 for found in shown)
        turned = [round(math.degrees(found[4]["control"][3])) for found in shown]
        assert turned == [0, 0, -15, 15]
        assert np.array_equal(shown[0][0], start) and not np.array_equal(shown[2][0], start)
        yaws = [found[4]["camera"][3] - info["camera"][3] for found in shown]
        np.testing.assert_allclose(np.degrees(yaws), [0, 0, -15, 0], atol=1e-3)
        assert make_env().unwrapped.action_latency == 0

    def test_results_are_the_users_to_change(self):
        env, twin = make_env(), make_env()
        for one, other in zip(roll(env, []), roll(twin, []), strict=True):
            assert_same(one, other)
        for action in (1, 5, 1):
            result = env.step(action)
            assert_same(result, twin.step(action))
            for value in (result[0], *result[4].values()):
                if isinstance(value, np.ndarray):
                    value[:] = 0

    def test_a_step_into_a_wall_is_a_collision(self, monkeypatch):
        env = make_env().unwrapped
        env.reset(seed=0)
        engine = engine_of(env)
        step = engine.step

        def blocked(controls, active=None, hands=None):
            frame = step(controls, active, hands=hands)
            return replace(frame, realised=torch.zeros_like(frame.realised))

        monkeypatch.setattr(engine, "step", blocked)
        assert [env.step(action)[4]["collision"] for action in (1, 0, 5)] == [True, False, False]


class TestTimeLimit:
    def test_gymnasium_makes_300_steps_the_limit(self):
        assert gym.spec(NAV).max_episode_steps == 300

    def test_the_wrapper_and_the_environment_truncate_alike(self):
        task = EndAt([[99]])
        wrapped = make_env(max_episode_steps=4, task=task)
        own = WorldScapeEnv(weights="debug", starts="drawn", max_episode_steps=4, task=task)
        assert stop_at_limit(wrapped, 4) == stop_at_limit(own, 4) == [(False, False)] * 3 + [(False, True)]

    def test_stepping_a_finished_episode_asks_for_a_reset(self):
        env = make_env(task=EndAt([[2]])).unwrapped
        assert stop_at_limit(env, 2) == [(False, False), (True, False)]
        with pytest.raises(ResetNeeded, match="no running episode"):
            env.step(0)
        env.reset()
        env.step(0)


class TestRender:
    def test_frames_are_the_observation_enlarged_and_fresh(self):
        env = make_env(render_mode="rgb_array")
        observation, _ = env.reset(seed=0)
        frame = env.render()
        assert isinstance(frame, np.ndarray) and frame.shape == (256, 256, 3) and frame.dtype == np.uint8
        assert abs(frame.mean() - observation.mean()) < 2
        frame[:] = 0
        observation[:] = 0
        again = env.render()
        assert isinstance(again, np.ndarray) and again.mean() > 10

    @pytest.mark.parametrize("options", [{}, {"size": (48, 80)}, {"sampler": "rolling", "steps_per_frame": 2}], ids=str)
    def test_depth_is_infos_and_fresh(self, options):
        env = make_env(render_mode="depth_array", **options)
        assert "depth_array" in env.metadata["render_modes"]
        infos = [env.reset(seed=0)[1]]
        for action in (1, 5, 1):
            depth = env.render()
            assert isinstance(depth, np.ndarray) and depth.dtype == np.float32
            np.testing.assert_array_equal(depth, infos[-1]["depth"])
            depth[:] = 0
            infos.append(env.step(action)[4])
            assert infos[-1]["depth"].all()

    def test_depth_can_be_collected_and_seen_beside_latents(self):
        env = make_env(render_mode="depth_array_list", obs="latent")
        roll(env, [1, 5])
        frames: Any = env.render()
        assert [frame.shape for frame in frames] == [(64, 64)] * 3

    def test_without_a_mode_nothing_is_rendered(self):
        env = make_env().unwrapped
        env.reset()
        assert env.render() is None

    def test_a_window_without_a_display_is_a_clear_error(self, monkeypatch):
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(DependencyNotInstalled, match="no window can be opened"):
            WorldScapeEnv(weights="debug", render_mode="human")
        with pytest.raises(DependencyNotInstalled, match="no window can be opened"):  # and Gymnasium opens none instead
            make_env(render_mode="human")

    def test_a_display_that_does_not_answer_is_a_clear_error(self, monkeypatch):
        def refuse(fps):
            raise OSError("SDL draws offscreen")

        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        monkeypatch.setattr("ws_gym.viewer._has_pygame", lambda: True)
        monkeypatch.setattr("ws_gym.viewer.KeyWindow", refuse)
        with pytest.raises(DependencyNotInstalled, match="no window can be opened"):
            make_env(render_mode="human")

    def test_human_mode_shows_each_frame(self, monkeypatch):
        shown = []

        class FakeViewer:
            def __init__(self, title, fps): ...

            def show(self, frame):
                shown.append(frame.copy())

            def close(self):
                shown.append("closed")

        monkeypatch.setattr("ws_gym.env.Viewer", FakeViewer)
        env = WorldScapeEnv(weights="debug", starts="drawn", render_mode="human")
        first, _ = env.reset(seed=0)
        second = env.step(1)[0]
        assert env.render() is None
        env.close()
        env.close()
        assert shown.pop() == "closed"
        for frame, expected in zip(shown, (first, second, second), strict=True):
            np.testing.assert_array_equal(frame, expected)

    def test_windows_are_closed_and_opened_again(self, monkeypatch):
        """Closing one took the other's away, and a world that was opened again had none."""
        pygame = pytest.importorskip("pygame")
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

        def open_window() -> WorldScapeEnv:
            env = WorldScapeEnv(weights="debug", starts="drawn", task="coverage", render_mode="human")
            env.reset(seed=0)
            return env

        def is_shown() -> bool:
            surface = pygame.display.get_surface() if pygame.display.get_init() else None
            return surface is not None and pygame.surfarray.array3d(surface).std() > 5

        first, second = open_window(), open_window()
        second.close()
        assert not is_shown()
        first.step(1)
        assert is_shown()
        twin = copy.deepcopy(first)
        first.close()
        twin.step(1)
        assert not is_shown()
        first.reset()
        assert is_shown()
        first.close()
        with pytest.raises(ValueError, match="gigantic"):
            WorldScapeEnv(weights="gigantic", render_mode="human")
        assert not pygame.display.get_init()

    def test_keys_to_action_pass_through_gymnasiums_wrappers(self):
        keys = make_env().get_wrapper_attr("get_keys_to_action")()
        assert keys[(ord("w"),)] == 1 and len(keys) == 8


class TestStarts:
    def test_a_users_picture_is_where_the_dream_begins(self):
        photo = np.zeros((100, 80, 3), np.uint8)
        photo[:, :, 0] = 255
        env = make_env()
        red = env.reset(seed=0, options={"image": photo})[0]
        assert np.abs(red.astype(int) - [255, 0, 0]).mean() < 1
        video = np.stack([photo, photo[:, :, ::-1]])
        blue = env.reset(seed=0, options={"video": video})[0]
        assert np.abs(blue.astype(int) - [0, 0, 255]).mean() < 1

    def test_options_hold_for_one_reset_and_are_left_alone(self):
        env, options = make_env(), {"start": 4}
        chosen = env.reset(seed=0, options=options)[0]
        assert options == {"start": 4}
        np.testing.assert_array_equal(env.reset(seed=9, options=options)[0], chosen)
        assert not np.array_equal(env.reset(seed=9)[0], chosen)

    def test_the_size_option_resizes_observation_and_depth(self):
        large, small = make_env(), make_env(size=(32, 48))
        frame, info = large.reset(seed=0)
        observation, small_info = small.reset(seed=0)
        assert observation.shape == (32, 48, 3) and observation in small.observation_space
        assert small_info["depth"].shape == (32, 48)
        assert np.isin(small_info["depth"], info["depth"]).all()
        assert abs(observation.mean() - frame.mean()) < 1
        np.testing.assert_array_equal(info["pose"], small_info["pose"])


class TestTasks:
    def test_a_users_reward_function(self):
        env = make_env(task=lambda frame, elapsed: elapsed * 2.0)
        env.reset(seed=0)
        assert [env.step(0)[1] for _ in range(3)] == [2.0, 4.0, 6.0]

    def test_goals_come_through_reset_options(self):
        env = make_env(task="goal_pose")
        _, info = env.reset(seed=0, options={"goal": (3.0, 0.0)})
        assert info["goal_distance"] == pytest.approx(3.0)
        turned = env.step(6)[4]
        assert turned["goal_bearing"] == pytest.approx(-math.radians(15), abs=1e-5)

    def test_a_reset_that_fails_leaves_nothing_to_step(self):
        """Its picture would be the new episode's, its goal the old one's. Options that nobody knows change nothing."""
        env = make_env(task="goal_pose")
        env.reset(seed=0)
        with pytest.raises(ValueError, match="are unknown"):
            env.unwrapped.reset(options={"gaol": (1, 0)})
        env.unwrapped.step(0)
        with pytest.raises(ValueError, match="goal"):
            env.unwrapped.reset(options={"goal": (1, 2, 3)})
        with pytest.raises(ResetNeeded):
            env.unwrapped.step(0)

    def test_a_refused_reset_leaves_the_random_numbers_alone(self):
        env, twin = make_env(task="goal_pose"), make_env(task="goal_pose")
        for one in (env, twin):
            one.reset(seed=0)
        with pytest.raises(ValueError, match="goal"):
            env.reset(seed=7, options={"goal": (1, 2, 3)})
        np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])

    def test_environments_do_not_share_a_users_task(self):
        task = EndAt([[3]])
        first, second = make_env(task=task), make_env(task=task)
        assert stop_at_limit(first, 2) == stop_at_limit(second, 2)
        assert not hasattr(task, "episodes")

    def test_terms_with_the_environments_own_names_are_refused(self):
        class Clash(Task):
            def step(self, frame, elapsed, active):
                none = self.none()
                return TaskResult(reward=frame.reward, terminated=none, success=none, terms={"pose": frame.reward})

        with pytest.raises(ValueError, match=r"info terms \['pose'\]"):
            make_env(task=Clash()).reset()

    @pytest.mark.parametrize("name", ["frame", "latent", "camera"])
    def test_a_network_may_judge(self, name):
        """Rewards had gradients, of which no number can be made, or frames were no food for layers with weights."""
        net = torch.nn.LazyLinear(1)

        def judge(frame, elapsed):
            return net(getattr(frame, name).float().flatten(1))[:, 0]

        env, envs = make_env(task=judge), make_vec(2, task=judge, output="torch")
        env.reset(seed=3)
        envs.reset(seed=3)
        reward, rewards = env.step(1)[1], envs.step(np.array([1, 5]))[1]
        assert rewards[0].item() == pytest.approx(reward, rel=1e-3) and reward != 0
        assert not rewards.requires_grad and net.weight.requires_grad

    def test_a_task_with_weights_hands_out_plain_numbers(self):
        class Learned(Task):
            def bind(self, num_slots, device):
                super().bind(num_slots, device)
                self.worth = torch.nn.Parameter(torch.full((num_slots,), 3.0))

            def step(self, frame, elapsed, active):
                terms: dict[str, torch.Tensor] = {"worth": self.worth}
                return TaskResult(reward=self.worth, terminated=self.none(), success=self.none(), terms=terms)

        env = make_env(task=Learned())
        env.reset(seed=0)
        _, reward, _, _, info = env.step(0)
        assert reward == info["worth"] == 3.0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"reward": np.zeros(1)}, "the task's reward is ndarray; return a torch tensor with one row per slot"),
            ({"reward": torch.zeros(1, dtype=torch.long)}, r"reward is a tensor of torch.int64; convert .* \.float"),
            ({"reward": torch.zeros(1, 1)}, r"reward has shape \(1, 1\); return one per slot, \(1,\)"),
            ({"terminated": torch.zeros(1)}, r"terminated is a tensor of torch.float32; convert .* \.bool"),
            ({"success": True}, "the task's success is bool; return a torch tensor"),
            ({"terms": {"far": np.zeros(1)}}, "the task's info term 'far' is ndarray"),
            ({"terms": {"far": torch.tensor(1.0)}}, r"info term 'far' has shape \(\); return one per slot"),
            ({"terms": {"far": torch.zeros(2, 1)}}, r"info term 'far' has shape \(2, 1\)"),
        ],
    )
    def test_judgements_of_another_kind_are_refused(self, changes, message):
        class Wrong(Task):
            def step(self, frame, elapsed, active):
                fine = {"reward": frame.coverage, "terminated": self.none(), "success": self.none()}
                return TaskResult(**{**fine, **changes})

        with pytest.raises(ValueError, match=message):
            make_env(task=Wrong()).reset()

    def test_a_judgement_must_be_a_result(self):
        class Forgetful(Task):
            def step(self, frame, elapsed, active): ...  # pyright: ignore[reportIncompatibleMethodOverride]

        with pytest.raises(ValueError, match="judged a step with NoneType; return a ws_gym.tasks.TaskResult"):
            make_env(task=Forgetful()).reset()

    @pytest.mark.parametrize("given", [float("nan"), float("inf")])
    def test_rewards_must_be_finite(self, given):
        """Those of steps: at a reset none is paid."""
        env = make_env(task=lambda frame, elapsed: torch.where(elapsed == 2, given, 0.0))
        env.reset(seed=0)
        env.step(env.action_space.sample())
        with pytest.raises(ValueError, match=rf"rewarded slots \[0\] with \[{given}\]; rewards are finite"):
            env.step(env.action_space.sample())
        envs = make_vec(num_envs=2, task=lambda frame, elapsed: torch.where(elapsed == 0, given, 0.0))
        envs.reset(seed=0)
        assert np.isfinite(envs.step(envs.action_space.sample())[1]).all()

    def test_rewards_must_be_finite_as_they_are_handed_out(self):
        """float32, on the batch's device: a float64 may be larger."""

        class Generous(Task):
            def step(self, frame, elapsed, active):
                return TaskResult(
                    reward=torch.full((1,), 1e300, dtype=torch.float64), terminated=self.none(), success=self.none()
                )

        env = make_env(task=Generous())
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"rewarded slots \[0\] with \[inf\]"):
            env.step(env.action_space.sample())

    @pytest.mark.parametrize("given", [None, "much", {}])
    def test_a_function_must_return_rewards(self, given):
        with pytest.raises(ValueError, match="the reward function returned .*; return one reward per slot"):
            make_env(task=lambda frame, elapsed: given).reset()

    def test_rewards_of_the_wrong_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"the task's reward has shape \(2,\); return one per slot, \(1,\)"):
            make_env(task=lambda frame, elapsed: torch.zeros(2)).reset()


@pytest.fixture(scope="module")
def running() -> tuple[Any, Any]:
    """Twins that have been reset with the same seed."""
    twins = make_env(), make_env()
    for env in twins:
        env.reset(seed=0)
    return twins


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weights": "gigantic"}, "'gigantic': this is neither a shipped name nor a directory"),
            ({"weights": 3}, "weights=3 is neither a name nor a path"),
            ({"actions": "keys"}, "actions='keys' is not an action mode"),
            ({"task": "fly"}, "task='fly' is unknown; choose one of"),
            ({"task": "goal_pose", "task_options": {"speed": 1}}, r"\['speed'\] are unknown to GoalPose"),
            ({"task": "goal_pose", "task_options": {"radius": "wide"}}, "do not suit GoalPose: '<' not supported"),
            ({"starts": "test"}, "the dataset test does not exist"),
            ({"size": 0}, "size=0 is too small"),
            ({"size": -64}, "size=-64 is too small"),
            ({"size": 64.0}, "size=64.0 is no picture size"),
            ({"size": (64, 64, 3)}, "is no picture size"),
            ({"size": (64, 8)}, "is too small"),
            ({"steps_per_frame": 0}, "steps_per_frame=0 is no count"),
            ({"steps_per_frame": 1.5}, "steps_per_frame=1.5 is no count"),
            ({"temperature": -1}, "temperature=-1 is none; give a number of at least 0"),
            ({"temperature": True}, "temperature=True is none"),
            ({"temperature": float("nan")}, "temperature=nan is none"),
            ({"sampler": "sideways"}, "sampler='sideways' is unknown; choose one of blockwise, rolling"),
            ({"sampler": "rolling", "steps_per_frame": 9}, "keeps 9 frames in flight"),
            ({"device": "gpu"}, "device='gpu' is not a torch device"),
        ],
    )
    def test_wrong_options_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_env(**options)

    def test_unknown_options_are_refused(self):
        with pytest.raises(TypeError, match="argument 'wieghts'; WorldScape takes weights, device"):
            make_env(wieghts="debug")

    def test_a_missing_cuda_device_is_named(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="finds no CUDA device; give device='cpu'"):
            make_env(device="cuda")

    def test_a_teachers_weights_are_called_that(self, tmp_path):
        """They were refused at reset with "a teacher's slots are opened together: leave out rows"."""
        save_world(WorldModel(adapt_model(debug_world().config)), tmp_path, {})
        for make in (make_env, partial(make_vec, 2)):
            with pytest.raises(ValueError, match="are a teacher's.*worldscape dream --weights.*train distill"):
                make(weights=tmp_path)

    def test_wrong_limits_and_render_modes_are_refused(self):
        with pytest.raises(ValueError, match="max_episode_steps=-5 is no count"):
            WorldScapeEnv(weights="debug", max_episode_steps=-5)
        with pytest.raises(ValueError, match="render_mode='ansi' is not supported"):
            WorldScapeEnv(weights="debug", render_mode="ansi")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"pitcure": "a.png"},
                r"reset options \['pitcure'\] are unknown; with this task choose from \['fov', 'image', 's",
            ),
            ({"goal": (1, 0)}, r"reset options \['goal'\] are unknown"),
            ({"start": -1}, "start -1 does not exist"),
            ({"start": "first"}, "start='first' is no whole number"),
            ({"image": np.zeros((64, 64, 3), np.float32)}, "give uint8 RGB"),
            ({"image": "nowhere.jpg"}, "does not exist"),
        ],
    )
    def test_wrong_reset_options_are_refused_and_the_running_world_goes_on(self, running, options, message):
        env, twin = running
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
        assert_same(env.step(1), twin.step(1))

    @pytest.mark.parametrize("action", [9, -1, np.nan, "w", [1], None, 0.5, np.zeros((1, 1)), [[1], [1, 2]]])
    def test_wrong_actions_are_refused_and_the_world_goes_on(self, running, action):
        env, twin = running
        with pytest.raises(ValueError, match="action"):
            env.step(action)
        assert_same(env.step(1), twin.step(1))

    def test_stepping_and_rendering_before_reset(self):
        env = WorldScapeEnv(weights="debug", render_mode="rgb_array")
        with pytest.raises(ResetNeeded):
            env.step(0)
        with pytest.raises(ResetNeeded):
            env.render()

    def test_using_a_closed_environment(self):
        env = make_env()
        env.reset()
        env.close()
        env.close()
        with pytest.raises(ClosedEnvironmentError):
            env.step(0)

    def test_a_reset_opens_a_closed_environment_again(self):
        """SB3's checker resets the environment that it has just closed."""
        env, twin = make_env(), make_env()
        env.reset(seed=0)
        env.close()
        for one, other in zip(roll(env, [1, 5]), roll(twin, [1, 5]), strict=True):
            assert_same(one, other)

    def test_a_forked_process_is_told_to_use_slots(self, monkeypatch):
        """CUDA cannot be used after a fork; torch's own message does not say what to do instead."""
        env = make_env()
        env.reset()
        core_of(env).device = torch.device("cuda")
        monkeypatch.setattr(core_module, "leave_the_parents_threads", lambda: None)
        monkeypatch.setattr(core_module.os, "getpid", lambda: -1)
        with pytest.raises(Error, match=r"forked process; .*gym\.make_vec"):
            env.step(0)

    def test_building_a_world_in_a_forked_process_is_told_the_same(self, monkeypatch):
        def fail(*_):
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, ...")

        monkeypatch.setattr("ws_gym.options.load_world", fail)
        with pytest.raises(Error, match=r"gym\.make_vec"):
            make_env()


class TestSpec:
    def test_round_trip_through_json(self):
        env = make_env(task="goal_pose", task_options={"radius": 0.4}, size=48, render_mode="rgb_array")
        spec = EnvSpec.from_json(env.spec.to_json())
        twin = gym.make(spec)
        assert spec.entry_point == "ws_gym.env:WorldScapeEnv"
        assert twin.observation_space == env.observation_space
        assert_same(roll(twin, [1, 5]), roll(env, [1, 5]))

    def test_weights_are_loaded_once_per_process(self):
        first, second = make_env(), make_env()
        assert engine_of(first).model is engine_of(second).model
