"""Fidelity: a perfect dream scores perfectly, a frozen one equals copy-the-start, masks and collisions count right."""

import math

import numpy as np
import pytest
import torch
from einops import repeat

from tests.evaluate.panorama import CopyEngine, PerfectEngine
from worldscape.evaluate import fidelity
from worldscape.evaluate.dream import dream_episodes
from worldscape.evaluate.metrics import PSNR_CEILING

CONFIG = fidelity.FidelityConfig(horizons=(1, 4, 8), context=2)


def half_warp(start, pose):
    """Warp-only for a world without geometry: the start frame, its left half covered."""
    covered = torch.zeros(start.frames.shape[0], *start.frames.shape[2:4], dtype=torch.bool)
    covered[:, :, :16] = True
    return fidelity.Warped(start.frames[:, -1], covered)


def test_a_perfect_dream_scores_perfectly(episodes):
    found = fidelity.judge_fidelity(PerfectEngine(2), episodes, half_warp, CONFIG).metrics
    for horizon in CONFIG.horizons:
        assert found[f"psnr_model_h{horizon}"] == pytest.approx(PSNR_CEILING)
        assert found[f"ssim_uncovered_model_h{horizon}"] == pytest.approx(1, abs=1e-5)
        assert found[f"sharpness_ratio_h{horizon}"] == pytest.approx(1)
        assert found[f"collision_agreement_h{horizon}"] == 1
        assert found[f"depth_abs_rel_h{horizon}"] == 0 and found[f"covered_share_h{horizon}"] == 0.5
        assert found[f"position_error_h{horizon}"] < 1e-6 and found[f"rotation_error_h{horizon}"] < 0.1
    assert found["psnr_gain_copy_h4"] > 20 and found["action_gain_db"] > 20


def test_a_frozen_dream_equals_copy_the_start(episodes):
    found = fidelity.judge_fidelity(CopyEngine(5), episodes, half_warp, CONFIG).metrics
    for name in ("psnr", "psnr_pooled", "ssim", "psnr_covered", "psnr_uncovered"):
        for horizon in CONFIG.horizons:
            assert found[f"{name}_model_h{horizon}"] == found[f"{name}_copy_h{horizon}"]
    assert found["action_gain_db"] == 0 and found["psnr_gain_copy_h8"] == 0


def test_means_have_standard_errors_and_dreams_compare_in_pairs(episodes):
    """A perfect dream exceeds a frozen one by what it gains over the frozen picture, and is told with the same error;
    what is nearer by as much in every episode has none."""
    engines = PerfectEngine(5), CopyEngine(5)
    near, far = (fidelity.judge_fidelity(engine, episodes, half_warp, CONFIG) for engine in engines)
    each = near.psnr[4] - far.psnr[4]
    assert each.shape == (5,) and far.metrics["psnr_gain_copy_h4"] == 0 == far.metrics["psnr_gain_copy_error_h4"]
    assert near.metrics["psnr_gain_copy_h4"] == pytest.approx(each.mean(), abs=1e-4)
    assert near.metrics["psnr_gain_copy_error_h4"] == pytest.approx(np.std(each) / np.sqrt(len(each) - 1))
    gains = fidelity.compare_psnr(far.psnr, near.psnr)
    assert gains["psnr_model_gain_h4"] == pytest.approx(each.mean())
    assert gains["psnr_model_gain_error_h4"] == pytest.approx(near.metrics["psnr_gain_copy_error_h4"])
    assert set(gains) == {f"psnr_model_{kind}_h{h}" for kind in ("gain", "gain_error") for h in CONFIG.horizons}
    shifted = {horizon: values + 0.5 for horizon, values in far.psnr.items()}
    found = fidelity.compare_psnr(far.psnr, shifted)
    assert found["psnr_model_gain_h8"] == pytest.approx(0.5) and found["psnr_model_gain_error_h8"] < 1e-9
    alone = fidelity.judge_fidelity(PerfectEngine(1), episodes.rows([0]), half_warp, CONFIG).metrics
    assert math.isnan(alone["psnr_model_error_h4"])


def test_covered_and_uncovered_are_scored_apart():
    target = torch.full((3, 32, 32, 3), 100, dtype=torch.uint8)
    frames = target.clone()
    frames[:, :, :16] += 51  # one fifth of the range: 13.98 dB
    covered = torch.zeros(3, 32, 32, dtype=torch.bool)
    covered[:, :, :16] = True
    found = fidelity.score_frames(frames, target, covered)
    assert found["psnr_covered"] == pytest.approx(-20 * math.log10(0.2), abs=1e-3)
    assert found["psnr_uncovered"] == PSNR_CEILING and found["uncovered_error_share"] == 0
    frames[:, :, 16:24] += 51
    assert fidelity.score_frames(frames, target, covered)["uncovered_error_share"] == pytest.approx(1 / 3)
    assert math.isnan(fidelity.score_frames(target, target, covered)["uncovered_error_share"])
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.04 / 2), abs=1e-3)


def test_pooled_psnr_is_not_lifted_by_one_perfect_frame():
    target = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    frames = target.clone()
    frames[0] += 51
    found = fidelity.score_frames(frames, target, torch.ones(2, 32, 32, dtype=torch.bool))
    assert found["psnr_pooled"] == pytest.approx(-10 * math.log10(0.04 / 2), abs=1e-3)
    assert found["psnr"] == pytest.approx((PSNR_CEILING + 13.979) / 2, abs=1e-3)


def test_collisions_are_counted_on_walking_steps():
    walk, turn, still = np.array([0, 0, 0.25, 0, 0, 0]), np.array([0, 0, 0, 0.3, 0, 0]), np.zeros(6)
    controls = np.stack([walk, walk, walk, walk, turn])
    true = np.stack([still, still, walk, walk, turn])
    dreamed = np.stack([still, walk, still, walk, still])
    found = fidelity.compare_collisions(controls, dreamed, true)
    assert found == {
        "collision_share": 0.5,
        "collision_agreement": 0.5,
        "collision_recall": 0.5,
        "collision_precision": 0.5,
    }
    free = fidelity.compare_collisions(controls[2:], true[2:], true[2:])
    assert free["collision_agreement"] == 1 and math.isnan(free["collision_recall"])


def test_a_dream_does_not_depend_on_the_number_of_slots(episodes):
    one, many = (dream_episodes(PerfectEngine(slots), episodes, num_steps=6) for slots in (1, 4))
    assert np.array_equal(one.frames, many.frames) and one.frames.shape[:2] == (5, 6)
    assert np.array_equal(many.frames[:, 3], episodes.frames[:, 4])


def test_pictures_are_written(episodes, tmp_path):
    config = fidelity.FidelityConfig(horizons=(1, 4))
    dream = fidelity.judge_fidelity(PerfectEngine(5), episodes, half_warp, config).dream
    paths = fidelity.save_pictures(tmp_path, dream, episodes, half_warp, config, num_shown=2)
    assert [path.name for path in paths] == ["fidelity_00.png", "fidelity_01.png", "fidelity.mp4"]
    import cv2

    picture = cv2.imread(str(paths[0]))
    assert picture is not None and picture.shape == (14 + 4 * (14 + 96), 2 * 96, 3)
    simulator = repeat(episodes.frames[0, 1], "h w c -> (h a) (w b) c", a=3, b=3)
    assert np.array_equal(picture[28:124, :96, ::-1], simulator)
    assert paths[-1].stat().st_size > 1000


@pytest.mark.parametrize("horizons", [(), (0, 4), (4, 1), (4, 4)])
def test_bad_horizons_are_refused(horizons):
    with pytest.raises(ValueError, match="horizons"):
        fidelity.FidelityConfig(horizons=horizons)


def test_short_episodes_are_refused(episodes):
    with pytest.raises(ValueError, match="walk longer"):
        fidelity.judge_fidelity(PerfectEngine(1), episodes, half_warp, fidelity.FidelityConfig())
