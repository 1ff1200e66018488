"""Tasks judged on frames made by hand."""

import math
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch

from worldscape.engine_frames import EngineFrame
from worldscape.heads import SeenGoal
from ws_gym.tasks import Coverage, GoalImage, GoalObject, GoalPose, Push, Task, TaskResult, make_task
from ws_gym.tasks.base import checked_result

AnyTask = TypeVar("AnyTask", bound=Task)
CPU = torch.device("cpu")


def make_frame(num_slots: int, **changes) -> EngineFrame:
    """Slots that stand at the origin before a wall 5 m away and see grey."""
    frame = EngineFrame(
        rgbd=torch.zeros(num_slots, 4, 16, 16),
        pose=torch.eye(4).repeat(num_slots, 1, 1),
        camera=torch.zeros(num_slots, 6),
        commanded=torch.zeros(num_slots, 6),
        realised=torch.zeros(num_slots, 6),
        events=torch.zeros(num_slots, 2),
        coverage=torch.full((num_slots,), 0.75),
        latent=torch.zeros(num_slots, 16, 8),
        steps=torch.zeros(num_slots, dtype=torch.long),
        model_calls=1,
    )
    frame.depth = torch.full((num_slots, 16, 16), 5.0)
    for name, value in changes.items():
        setattr(frame, name, torch.as_tensor(value))
    return frame


def start(task: AnyTask, num_slots: int, frame: EngineFrame | None = None, **options) -> AnyTask:
    task.bind(num_slots, CPU)
    rngs = [np.random.default_rng(row) for row in range(num_slots)]
    task.reset(frame or make_frame(num_slots), torch.ones(num_slots, dtype=torch.bool), rngs, options)
    return task


def step(task: Task, frame: EngineFrame, elapsed: int = 1, active=None) -> TaskResult:
    active = torch.ones(task.num_slots, dtype=torch.bool) if active is None else torch.tensor(active)
    return task.step(frame, torch.full((task.num_slots,), elapsed), active)


def at(*places: tuple[float, float, float]) -> EngineFrame:
    """Slots at (x, z, yaw)."""
    return make_frame(len(places), camera=[[x, 0.0, z, yaw, 0.0, 0.0] for x, z, yaw in places])


class TestGoalObject:
    def test_reward_falls_with_time_from_one_to_four_fifths(self):
        task = start(GoalObject(horizon=100), 1)
        hit = make_frame(1, reward=[0.9])
        assert [step(task, hit, t).reward.item() for t in (0, 50, 100, 900)] == pytest.approx([1.0, 0.9, 0.8, 0.8])

    def test_reached_is_where_the_heads_agree_and_ends_the_episode(self):
        task = start(GoalObject(), 4)
        frame = make_frame(4, reward=[0.9, 0.5, 0.4, 0.0], end=[0.0, 0.0, 0.0, 0.8])
        result = step(task, frame, 30)
        assert result.success.tolist() == [True, False, False, False]
        assert result.terminated.tolist() == [True, False, False, True]
        assert result.reward.tolist() == pytest.approx([0.98, 0, 0, 0])
        assert result.terms["end_probability"][3].item() == pytest.approx(0.8)


def seeing(places: list[float | None], nearer: float = 0.0) -> EngineFrame:
    """Slots that have walked `nearer` metres ahead and see the goal ahead at z, or not."""
    frame = make_frame(len(places), camera=[[0.0, 0.0, nearer, 0.0, 0.0, 0.0]] * len(places))
    seen = torch.tensor([-1.0 if z is None else 1.0 for z in places])
    frame.goal = SeenGoal(seen, torch.tensor([[0.0, 0.4, 99.0 if z is None else z] for z in places]))
    return frame


class TestDenseGoalObject:
    def test_the_way_is_paid_for_once_the_goal_was_seen(self):
        """At 6 m of 8 when it is seen for the first time, then 2 m nearer without seeing it, then all the way back."""
        task = start(GoalObject(dense=True), 1, seeing([None]))
        assert step(task, seeing([None], 1.0)).reward.item() == 0
        first = step(task, seeing([7.0], 1.0))
        assert first.reward.item() == first.terms["goal_nearness"].item() == pytest.approx(2 / 8)
        assert step(task, seeing([None], 3.0)).reward.item() == pytest.approx(2 / 8)
        assert step(task, seeing([None], -1.0)).reward.item() == pytest.approx(-4 / 8)

    def test_a_goal_in_sight_at_first_is_no_merit(self):
        task = start(GoalObject(dense=True, horizon=100), 1, seeing([4.0]))
        hit = seeing([4.0], 3.0)
        hit.reward = torch.tensor([0.9])
        assert step(task, hit, 50).reward.item() == pytest.approx(0.9 + 3 / 8)

    def test_other_slots_and_new_episodes_keep_to_themselves(self):
        task = start(GoalObject(dense=True), 2, seeing([4.0, None]))
        assert step(task, seeing([None, 4.0]), active=[True, False]).reward.tolist() == [0, 0]
        assert task.is_known.tolist() == [True, False]
        task.reset(seeing([None, 4.0]), torch.tensor([True, False]), [np.random.default_rng(0)], {})
        assert task.is_known.tolist() == [False, False] and task.nearness.tolist() == [0, 0]
        assert set(task.state()) == {"goal", "is_known", "nearness"}

    def test_weights_that_cannot_find_goals_are_refused(self):
        with pytest.raises(ValueError, match="cannot tell where the goal is"):
            start(GoalObject(dense=True), 1)


class TestGoalPose:
    def test_reward_is_progress_and_bonus_on_arrival(self):
        task = start(GoalPose(slack=-0.01, bonus=1.0, radius=0.3), 1, goal=(2.0, 0.0))
        assert step(task, at((0.0, 1.0, 0.0))).reward.item() == pytest.approx(0.99)
        back = step(task, at((0.0, 0.5, 0.0)))
        assert back.reward.item() == pytest.approx(-0.51) and not back.terminated
        arrived = step(task, at((0.0, 1.8, 0.0)))
        assert arrived.reward.item() == pytest.approx(1.3 - 0.01 + 1.0)
        assert arrived.success.item() and arrived.terminated.item()
        # 2 m straight; walked 1 + 0.5 + 1.3 m.
        assert arrived.terms["euclidean_spl"].item() == pytest.approx(2.0 / 2.8)

    def test_goals_are_relative_to_where_the_start_looks(self):
        frame = at((1.0, 1.0, math.pi / 2), (1.0, 1.0, 0.0))
        task = start(GoalPose(), 2, frame, goal=(2.0, 1.0))
        torch.testing.assert_close(task.goal, torch.tensor([[3.0, 0.0], [2.0, 3.0]]))
        bearing = step(task, frame).terms["goal_bearing"]
        torch.testing.assert_close(bearing, torch.full((2,), math.atan2(1.0, 2.0)))

    def test_each_row_may_have_its_own_goal(self):
        task = start(GoalPose(), 2, goal=[(2.0, 0.0), (0.0, -2.0)])
        torch.testing.assert_close(task.goal, torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))

    def test_drawn_goals_lie_in_sight_and_in_front_of_the_wall(self):
        task = start(GoalPose(nearest=1.0, farthest=9.0), 50, make_frame(50, depth=torch.full((50, 16, 16), 3.0)))
        right, forward = task.goal.unbind(-1)
        assert (forward < 3.0).all() and forward.max() > 2.0
        assert (torch.atan2(right, forward).abs() <= math.radians(30) + 1e-6).all()
        assert (torch.hypot(right, forward) >= 1.0 - 1e-6).all()

    def test_rows_that_rest_keep_their_state(self):
        task = start(GoalPose(slack=0.0), 2, goal=(2.0, 0.0))
        step(task, at((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)), active=[True, False])
        assert step(task, at((0.0, 1.0, 0.0), (0.0, 1.0, 0.0))).reward.tolist() == pytest.approx([0.0, 1.0])

    @pytest.mark.parametrize("goal", [(1.0,), (np.nan, 1.0), np.zeros((3, 2)), "door"])
    def test_malformed_goals_are_refused(self, goal):
        with pytest.raises(ValueError, match="goal|could not convert"):
            start(GoalPose(), 2, goal=goal)


class TestGoalImage:
    def shade(self, *values: int) -> EngineFrame:
        return make_frame(
            len(values), frame=torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 16, 16, 3)
        )

    def test_without_a_goal_the_start_must_be_left_and_found_again(self):
        task = start(GoalImage(), 1, self.shade(100))
        assert not step(task, self.shade(105)).terminated.item()
        away = step(task, self.shade(151))
        assert away.terms["image_distance"].item() == pytest.approx(0.2) and away.terms["has_left"].item()
        home = step(task, self.shade(105))
        assert home.success.item() and home.terminated.item()
        assert home.reward.item() == pytest.approx(46 / 255 + 1.0)

    def test_a_given_goal_is_found_by_its_picture(self):
        task = start(GoalImage(), 2, self.shade(0, 0), goal_image=np.full((40, 30, 3), 200, np.uint8))
        result = step(task, self.shade(100, 198))
        assert result.success.tolist() == [False, True]
        assert result.reward.tolist() == pytest.approx([100 / 255, 198 / 255 + 1.0])

    def test_a_view_differs_from_its_mirror_image(self):
        picture = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        picture[:, :, :8] = 255
        task = start(GoalImage(), 1, make_frame(1, frame=picture))
        assert step(task, make_frame(1, frame=picture.flip(2))).terms["image_distance"].item() == pytest.approx(1.0)


class TestCoverage:
    def test_new_cells_and_directions_are_rewarded_once(self):
        task = start(Coverage(cell=0.5, target=4), 1)
        walk = [(0, 0, 0.0), (0, 0.5, 0.0), (0, 0.5, 1.5), (0, 0, 0.0), (0.5, 0, 0.0)]
        results = [step(task, at(place)) for place in walk]
        assert [result.reward.item() for result in results] == [0, 1, 1, 0, 1]
        assert [result.terms["visited"].item() for result in results] == [1, 2, 3, 3, 4]
        assert [result.terminated.item() for result in results] == [False] * 4 + [True]
        assert results[0].terms["novelty"].item() == pytest.approx(0.25)

    def test_cells_are_relative_to_the_start(self):
        frame = at((0.24, 7.3, 3.0))
        task = start(Coverage(cell=0.5), 1, frame)
        assert step(task, at((0.44, 7.1, -3.1))).reward.item() == 0

    def test_rows_that_rest_keep_their_state(self):
        task = start(Coverage(), 2)
        step(task, at((0, 1, 0), (0, 1, 0)), active=[True, False])
        assert step(task, at((0, 1, 0), (0, 1, 0))).reward.tolist() == [0, 1]

    def test_a_reset_forgets_its_row_only(self):
        task = start(Coverage(), 2)
        step(task, at((0, 1, 0), (0, 1, 0)))
        task.reset(make_frame(2), torch.tensor([True, False]), [np.random.default_rng(0)], {})
        assert step(task, at((0, 1, 0), (0, 1, 0))).reward.tolist() == [1, 0]


class TestHandTasks:
    hands = SimpleNamespace(
        reward=torch.tensor([[0.1, 0.2, 0.3], [0.4, 1.0, 0.6]]),
        success=torch.tensor([[0.9, 0.3, 0.9], [0.1, 0.8, 0.1]]),
    )

    @pytest.mark.parametrize(("mode", "paid"), [("dense", [0.2, 1.0]), ("missing", [-0.8, 0.0]), ("sparse", [0, 1])])
    def test_each_mode_pays_its_own_and_success_ends_the_episode(self, mode, paid):
        frame = make_frame(2)
        frame.hands = cast(Any, self.hands)
        result = step(start(Push(reward_mode=mode), 2), frame)
        assert result.reward.tolist() == pytest.approx(paid)
        assert result.success.tolist() == result.terminated.tolist() == [False, True]
        assert checked_result(result, 2).reward.dtype == torch.float32

    def test_success_can_go_on_being_paid(self):
        frame = make_frame(2)
        frame.hands = cast(Any, self.hands)
        result = step(start(Push(goal_terminates=False), 2), frame)
        assert result.success.tolist() == [False, True] and not result.terminated.any()

    def test_an_unknown_mode_is_refused(self):
        with pytest.raises(ValueError, match="reward_mode is 'big'; choose one of dense, missing, sparse"):
            make_task("push", {"reward_mode": "big"})


class TestMakeTask:
    def test_options_reach_the_task(self):
        task = make_task("goal_pose", {"radius": 0.5})
        assert isinstance(task, GoalPose) and task.radius == 0.5
        assert isinstance(make_task(Coverage, {"target": 9}), Coverage)

    def test_a_users_task_is_copied(self):
        mine = Coverage()
        task = make_task(mine)
        assert isinstance(task, Coverage) and task is not mine

    def test_a_function_is_a_reward(self):
        task = make_task(lambda frame, elapsed: frame.coverage * elapsed)
        result = step(start(task, 2), make_frame(2), elapsed=4)
        assert result.reward.tolist() == [3.0, 3.0] and not result.terminated.any()

    @pytest.mark.parametrize(
        ("task", "options", "message"),
        [
            ("goal", None, r"task='goal' is unknown; choose one of \['coverage', 'goal_image'"),
            ("goal_pose", {"radios": 1}, r"\['radios'\] are unknown to GoalPose; it takes .*'radius'"),
            (3, None, "task=3 is no task"),
            (Coverage(), {"cell": 1}, "need a task by name or class"),
            ("goal_object", {"threshold": 1.0}, "threshold is 1.0; give a probability"),
            ("goal_object", {"horizon": 0}, "horizon is 0"),
            ("goal_pose", {"radius": -1.0}, "radius -1.0"),
            ("goal_pose", {"max_bearing": 2.0}, "max_bearing is 2.0"),
            ("goal_image", {"threshold": 0.5}, "threshold 0.5"),
            ("coverage", {"cell": 0.0}, "cell is 0.0"),
            ("coverage", {"target": 1}, "target is 1"),
        ],
    )
    def test_unknown_tasks_and_options_are_refused(self, task, options, message):
        with pytest.raises(ValueError, match=message):
            make_task(task, options)
