"""What a world tells of its memory and of how far it may be trusted; the limit on drift; the map."""

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList

from tests.gym.helpers import DREAM, assert_same, core_of, make_env, make_vec, row_of
from worldscape.snapshot import Snapshot
from ws_gym.env import WorldScapeEnv
from ws_gym.vector_env import WorldScapeVectorEnv

TURN = 6
PATIENCE = 4
LIMIT = {"max_drift": 0.5, "drift_patience": PATIENCE}
HALF_TURN = 12
GROUPS = {
    "memory": {"pages_used", "pool_size", "frames_seen", "anchor_ages", "retrieved_ages", "novelty"},
    "trust": {"drift", "steps_since_real"},
}


def turn(envs, steps: int) -> list:
    """Slot 0 turns right, the others wait -> what each step returned."""
    actions = np.zeros(envs.num_envs, int)
    actions[0] = TURN
    return [envs.step(actions) for _ in range(steps)]


class TestInfo:
    def test_a_start_is_real_and_a_turn_leaves_it(self):
        env = make_env()
        _, info = env.reset(seed=0)
        assert info["trust"] == {"drift": 0.0, "steps_since_real": 0}
        assert info["memory"]["frames_seen"] == info["memory"]["pages_used"] == 1
        assert info["memory"]["anchor_ages"].tolist() == [-1, -1] and info["memory"]["novelty"] == 1.0
        turned = [env.step(TURN)[4] for _ in range(HALF_TURN)]
        assert turned[0]["memory"]["anchor_ages"].tolist() == [1, -1]
        assert turned[0]["trust"]["drift"] < 0.4 < 0.9 < turned[-1]["trust"]["drift"]
        assert turned[-1]["trust"]["steps_since_real"] > 3 and turned[-1]["memory"]["frames_seen"] == HALF_TURN + 1

    def test_groups_are_complete_and_of_pythons_own_types(self):
        info = make_env().reset(seed=0)[1]
        for group, names in GROUPS.items():
            assert info[group].keys() == names
        kinds = {name: type(value) for group in GROUPS for name, value in info[group].items()}
        arrays = {"anchor_ages", "retrieved_ages"}
        assert all(kinds[name] is np.ndarray for name in arrays)
        assert all(kinds[name] is float for name in ("novelty", "drift"))
        assert all(kinds[name] is int for name in kinds.keys() - arrays - {"novelty", "drift"})

    def test_vector_infos_are_built_as_gymnasium_builds_them(self):
        ours, theirs = make_vec(2), make_vec(2, vectorization_mode="sync")
        (_, mine), (_, other) = ours.reset(seed=0), theirs.reset(seed=0)
        for _ in range(3):
            for group, names in GROUPS.items():
                assert mine[group].keys() == other[group].keys() == names | {f"_{name}" for name in names}
                for name in mine[group]:
                    assert mine[group][name].shape == other[group][name].shape
                    np.testing.assert_allclose(mine[group][name], other[group][name], rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(mine[f"_{group}"], other[f"_{group}"])
            mine, other = ours.step(np.array([TURN, 1]))[4], theirs.step(np.array([TURN, 1]))[4]

    def test_only_the_rows_that_were_reset_are_marked(self):
        envs = make_vec(2)
        envs.reset(seed=0)
        turn(envs, 2)
        mask = np.array([False, True])
        infos = envs.reset(options={"reset_mask": mask})[1]
        np.testing.assert_array_equal(infos["_memory"], mask)
        np.testing.assert_array_equal(infos["memory"]["_frames_seen"], mask)
        np.testing.assert_array_equal(infos["memory"]["frames_seen"], [3, 1])

    def test_gymnasiums_wrapper_splits_the_groups(self):
        _, infos = DictInfoToList(make_vec(2)).reset(seed=0)
        assert infos[1]["trust"] == {"drift": 0.0, "steps_since_real": 0}
        assert infos[0]["memory"].keys() == GROUPS["memory"]

    def test_tensors_stay_tensors(self):
        arrays, tensors = make_vec(2), make_vec(2, output="torch")
        mine, other = arrays.reset(seed=0)[1], tensors.reset(seed=0)[1]
        for name, value in mine["memory"].items():
            np.testing.assert_array_equal(value, other["memory"][name].numpy())

    def test_infos_are_the_users_to_change(self):
        env, twin = make_env(), make_env()
        for world in (env, twin):
            world.reset(seed=0)
        for action in (TURN, 1):
            info, expected = env.step(action)[4], twin.step(action)[4]
            assert_same(info, expected)
            info["memory"]["anchor_ages"][:] = 7
            info["trust"].clear()


class TestMaxDrift:
    @pytest.mark.parametrize("mode", list(AutoresetMode))
    def test_a_slot_that_drifts_is_truncated_and_the_others_go_on(self, mode):
        envs = make_vec(2, **LIMIT, autoreset_mode=mode)
        envs.reset(seed=0)
        streak, ended = 0, None
        while ended is None:
            *_, truncated, infos = turn(envs, 1)[0]
            final = infos["final_info"] if truncated[0] and mode is AutoresetMode.SAME_STEP else infos
            streak = streak + 1 if final["trust"]["drift"][0] > 0.5 else 0
            assert truncated.tolist() == [streak == PATIENCE, False]
            ended = infos if truncated[0] else None
        if mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(ended["final_info"]["_trust"], [True, False])
            np.testing.assert_array_equal(ended["final_info"]["trust"]["_drift"], [True, False])
            assert ended["trust"]["drift"][0] == 0.0 and ended["memory"]["frames_seen"][0] == 1
        if mode is AutoresetMode.DISABLED:
            with pytest.raises(ResetNeeded):
                turn(envs, 1)
            envs.reset(options={"reset_mask": np.array([True, False])})
        results = turn(envs, PATIENCE)
        assert not any(result[3].any() for result in results)
        if mode is AutoresetMode.NEXT_STEP:
            assert results[0][4]["trust"]["drift"][0] == 0.0

    def test_single_and_vector_end_alike(self):
        env, envs = make_env(**LIMIT), make_vec(1, **LIMIT, autoreset_mode="DISABLED")
        env.reset(seed=0)
        envs.reset(seed=0)
        truncated = False
        while not truncated:
            _, _, _, truncated, info = env.step(TURN)
            result = turn(envs, 1)[0]
            assert result[3].tolist() == [truncated]
            assert row_of(result[4], 0)["trust"] == pytest.approx(info["trust"])

    def test_without_the_option_nothing_is_truncated(self):
        envs = make_vec(1)
        envs.reset(seed=0)
        assert not any(result[3].any() for result in turn(envs, HALF_TURN))

    def test_the_streak_is_part_of_a_snapshot(self):
        env = WorldScapeEnv(**LIMIT, **DREAM)
        env.reset(seed=0)
        while env.step(TURN)[4]["trust"]["drift"] <= 0.5:
            pass
        saved = Snapshot.from_bytes(env.snapshot().to_bytes())
        ends = [env.step(TURN)[3] for _ in range(PATIENCE - 1)]
        assert ends == [False] * (PATIENCE - 2) + [True]
        other = WorldScapeEnv(**LIMIT, **DREAM)
        other.restore(saved)
        assert [other.step(TURN)[3] for _ in range(PATIENCE - 1)] == ends
        copies = WorldScapeVectorEnv(2, **LIMIT, autoreset_mode="DISABLED", **DREAM)
        copies.restore(saved)
        truncations = [copies.step(np.array([TURN, TURN]))[3].tolist() for _ in range(PATIENCE - 1)]
        assert truncations == [[end, end] for end in ends]

    @pytest.mark.parametrize("patience", [0, -3, 1.5, None, True])
    def test_other_patience_is_refused(self, patience):
        with pytest.raises(ValueError, match=r"drift_patience=.* is no count; give a whole number of at least 1\."):
            make_env(drift_patience=patience)

    @pytest.mark.parametrize("limit", [-0.1, 1.0, "0.5", True, float("nan")])
    def test_other_limits_are_refused(self, limit):
        with pytest.raises(ValueError, match=r"max_drift=.* is no share of a picture; give a number from 0 to below 1"):
            make_env(max_drift=limit)


def test_trust_survives_snapshots_and_forks():
    env = make_env().unwrapped
    env.reset(seed=0)
    infos = [env.step(TURN)[4] for _ in range(5)]
    saved = env.snapshot()
    ahead = env.step(TURN)[4]
    told = env.restore(saved)[1]
    assert_same((told["memory"], told["trust"]), (infos[-1]["memory"], infos[-1]["trust"]))
    assert_same(env.step(TURN)[4]["trust"], ahead["trust"])
    env.restore(saved)
    copies = env.fork(2)
    forked = copies.step(np.array([TURN, 0]))[4]["trust"]["drift"]
    assert forked[0] == pytest.approx(ahead["trust"]["drift"], abs=1e-4)
    assert forked[1] == pytest.approx(infos[-1]["trust"]["drift"], abs=0.05)


class TestMap:
    def test_it_shows_where_one_has_been(self):
        env = make_env().unwrapped
        env.reset(seed=0)
        before = env.draw_map()
        assert before.shape == (512, 512, 3) and before.dtype == np.uint8
        np.testing.assert_array_equal(env.draw_map(), before)
        env.step(1)
        assert (env.draw_map() != before).any()
        assert env.draw_map(300).shape == (300, 300, 3)

    @pytest.mark.parametrize("sampler", ["blockwise", "rolling"])
    def test_the_path_leads_from_the_oldest_place_that_is_kept_to_where_one_stands(self, sampler, monkeypatch):
        monkeypatch.setattr("ws_gym.core.TRAIL_STEPS", 6)
        env = make_env(actions="continuous", sampler=sampler, steps_per_frame=3)
        env.reset(seed=0)
        seen = [env.step(np.array([0.0, 1.0, 0.0, 0.0], np.float32))[4]["camera"] for _ in range(10)]
        place = core_of(env).place(0)
        np.testing.assert_allclose(place.path, np.stack(seen)[-6:, [0, 2]], atol=1e-6)
        assert len(np.unique(place.path[:, 0])) == 6

    def test_rows_have_maps_of_their_own(self):
        envs, env = make_vec(2), make_env().unwrapped
        envs.reset(seed=0)
        env.reset(seed=0)
        np.testing.assert_array_equal(envs.draw_map(), env.draw_map())
        assert (envs.draw_map(1) != envs.draw_map(0)).any()
        with pytest.raises(ValueError, match="no choice of slots"):
            envs.draw_map(2)

    def test_the_path_is_part_of_a_snapshot(self):
        env, other = make_env().unwrapped, make_env().unwrapped
        env.reset(seed=0)
        for action in (1, 1, TURN, 1):
            env.step(action)
        other.restore(env.snapshot())
        np.testing.assert_array_equal(other.draw_map(), env.draw_map())

    def test_the_path_is_that_of_the_last_steps(self, monkeypatch):
        monkeypatch.setattr("ws_gym.core.TRAIL_STEPS", 4)
        env = make_env().unwrapped
        cameras = [env.reset(seed=0)[1]["camera"]]
        for length in range(2, 8):
            cameras.append(env.step(TURN if length == 4 else 1)[4]["camera"])
            expected = np.stack(cameras[-4:])[:, [0, 2]]
            np.testing.assert_array_equal(core_of(env).place(0).path, expected)
        env.reset()
        assert len(core_of(env).place(0).path) == 1

    def test_what_cannot_be_drawn_is_refused(self):
        env = make_env().unwrapped
        with pytest.raises(ResetNeeded):
            env.draw_map()
        env.reset(seed=0)
        for pixels in (64, 512.0, True):
            with pytest.raises(ValueError, match="cannot be read; give a whole number of at least 256"):
                env.draw_map(pixels)
        env.close()
        with pytest.raises(ClosedEnvironmentError):
            env.draw_map()
