"""Geometry: a dream that equals the simulator scores as it does; wrong depth and a wobbling world are caught."""

import math

import numpy as np
import pytest
import torch

from tests.evaluate.panorama import PerfectEngine
from worldscape.evaluate import geometry
from worldscape.evaluate.dream import SEEDS_APART, make_start
from worldscape.evaluate.geometry import GeometryConfig, judge_geometry
from worldscape.splats.unproject import unproject

CONFIG = GeometryConfig(horizons=(1, 8), gaps=(1, 4))


class WarpedEngine(PerfectEngine):
    """Shows everything too far away, and every other frame inverted."""

    def _frame(self, realised):
        made = super()._frame(realised)
        made.depth = made.depth * 1.3
        if self.num_frames // self.num_slots % 2:
            made.frame = 255 - made.frame
        return made


def test_a_perfect_dream_scores_like_the_simulator(episodes):
    found = judge_geometry(PerfectEngine(5), episodes, unproject, CONFIG).metrics
    assert found["depth_abs_rel_h1"] == found["depth_abs_rel_h8"] == 0 and found["depth_delta_h8"] == 1
    assert found["psnr_realised_h8"] > 40
    for name in ("warp_psnr_{}_g1", "warp_psnr_{}_g4", "novel_psnr_{}", "nearest_psnr_{}", "novel_gain_{}"):
        assert found[name.format("dream")] == pytest.approx(found[name.format("simulator")], abs=1e-4)
    for gap in (1, 4):
        for kind in ("psnr", "share", "agree"):
            own, true = (found[f"warp_{kind}_{name}_g{gap}"] for name in ("own", "simulator"))
            assert own == pytest.approx(true, abs=1e-4)
    assert 0 < found["warp_share_own_g4"] <= found["warp_share_own_g1"] < found["warp_agree_own_g1"] <= 1


def test_wrong_depth_and_frames_that_disagree_are_caught(episodes):
    found = judge_geometry(WarpedEngine(5), episodes, unproject, CONFIG).metrics
    assert found["depth_abs_rel_h8"] == pytest.approx(0.3, abs=1e-3) and found["depth_delta_h8"] == 0
    for kind in ("covered", "uncovered", "median"):
        assert found[f"depth_abs_rel_{kind}_h8"] == pytest.approx(0.3, abs=1e-3)
    assert found["warp_psnr_dream_g1"] < found["warp_psnr_simulator_g1"] - 2
    assert found["warp_psnr_own_g1"] < found["warp_psnr_simulator_g1"] - 2


class WobblingEngine(PerfectEngine):
    """Shows every other frame too far away."""

    def _frame(self, realised):
        made = super()._frame(realised)
        if self.num_frames // self.num_slots % 2:
            made.depth = made.depth * 1.3
        return made


def test_depth_that_disagrees_with_itself_is_caught_by_the_dream_s_own(episodes):
    found = judge_geometry(WobblingEngine(5), episodes, unproject, CONFIG).metrics
    assert found["warp_psnr_dream_g1"] == pytest.approx(found["warp_psnr_simulator_g1"], abs=1e-4)
    assert found["warp_agree_own_g1"] < 0.2 * found["warp_agree_simulator_g1"]
    assert found["warp_agree_own_g4"] == pytest.approx(found["warp_agree_simulator_g4"], abs=0.2)


class FickleEngine(PerfectEngine):
    """Whether it shows places a quarter farther away, and darker, is left to the noise."""

    def open(self, start, seeds, rows=None):
        self.is_far = seeds >= SEEDS_APART
        return super().open(start, seeds, rows)

    def _frame(self, realised):
        made = super()._frame(realised)
        made.depth = torch.where(self.is_far[:, None, None], made.depth * 1.25, made.depth)
        made.frame = torch.where(self.is_far[:, None, None, None], made.frame // 2, made.frame)
        return made


def test_dreams_are_compared_with_the_same_drawn_again(episodes):
    found, same = (
        judge_geometry(engine(5), episodes, unproject, CONFIG).metrics for engine in (FickleEngine, PerfectEngine)
    )
    assert found["depth_abs_rel_h8"] == 0 and found["psnr_realised_h8"] > 40
    for kind in ("", "_covered", "_uncovered", "_median"):
        assert found[f"redrawn_depth_abs_rel{kind}_h8"] == pytest.approx(0.2, abs=1e-3)
        assert same[f"redrawn_depth_abs_rel{kind}_h8"] == 0
    assert found["redrawn_depth_delta_h8"] < 1 and same["redrawn_depth_delta_h8"] == 1
    assert found["redrawn_psnr_h8"] < 25 < same["redrawn_psnr_h8"]


@pytest.mark.parametrize("context", [1, 3])
def test_a_dream_may_begin_with_more_real_frames(episodes, context, tmp_path):
    config = GeometryConfig(horizons=(1, 4), gaps=(1,), context=context)
    walked = episodes.cut(0, config.num_walked)
    judged = judge_geometry(PerfectEngine(5), walked, unproject, config)
    assert judged.dream.frames.shape[1] == config.num_steps == config.num_walked - context + 1
    # The last real frames show more of what comes than the first alone, and truth stays the frames dreamed of.
    assert judged.metrics["psnr_realised_h4"] > 40 and judged.metrics["depth_abs_rel_h4"] == 0
    geometry.save_pictures(tmp_path, judged.dream, walked, unproject, config, num_shown=1)


def test_what_any_of_the_real_frames_shows_counts_as_covered(episodes):
    config = GeometryConfig(horizons=(1,), gaps=(1,), context=4)
    dream = judge_geometry(WarpedEngine(5), episodes, unproject, config).dream
    part = geometry.dreamed_part(episodes, config)
    seen = [
        geometry.warp_start(start, torch.from_numpy(part.pose[:, 1])).covered.sum()
        for start in (make_start(part, 1), make_start(episodes, 4))
    ]
    assert seen[1] > seen[0]
    found = geometry.measure_frames(dream, dream, part, 1, make_start(episodes, 4))
    assert found["depth_abs_rel_covered"] == pytest.approx(0.3, abs=1e-3)


def test_scores_without_a_number_do_not_count():
    assert geometry._mean(torch.tensor([1.0, math.nan, 3.0])) == 2.0
    assert math.isnan(geometry._mean(torch.tensor([math.nan])))


def test_pictures_are_written(episodes, tmp_path):
    dream = judge_geometry(PerfectEngine(5), episodes, unproject, CONFIG).dream
    paths = geometry.save_pictures(tmp_path, dream, episodes, unproject, CONFIG, num_shown=1)
    assert [path.name for path in paths] == ["geometry.png", "novel_views.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("settings", [{"horizons": (4, 1)}, {"horizons": ()}, {"gaps": (0,)}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match="increasing"):
        GeometryConfig(**settings)


def test_a_dream_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 real frame"):
        GeometryConfig(context=0)


def test_a_dream_is_long_enough_for_all_that_is_measured():
    assert GeometryConfig(horizons=(1,), gaps=(1,)).num_steps == geometry.CLIP
    assert GeometryConfig(horizons=(1,), gaps=(16,)).num_steps == 17
    assert np.arange(geometry.CLIP)[1::2].tolist() == [1, 3, 5]
