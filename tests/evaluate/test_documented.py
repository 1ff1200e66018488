"""Every metric name that a JSON line prints is explained in docs/metrics.md."""

import re
from pathlib import Path

import numpy as np

from tests.evaluate.panorama import PerfectEngine
from tests.evaluate.test_fidelity import half_warp
from worldscape.evaluate import actions, drift, fidelity, geometry, trust
from worldscape.evaluate import inverse_dynamics as inverse
from worldscape.splats.unproject import unproject

DOCUMENTED = set(re.findall(r"`([a-zA-Z0-9_]+)`", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()))


def undocumented(names) -> set[str]:
    """Names that docs/metrics.md lacks; in a sweep _k2 and _s64 may follow _n16."""
    plain = (re.sub(r"_([hgn])\d+(_k\d+)?(_s\d+)?$", r"_\1\1", name) for name in names)
    return {name for name in plain if name not in documented()}


def documented() -> set[str]:
    """Names in backticks, endings _hH as _hh (so _gG, _nN), S replaced by each statistic of `eval drift`; of `eval
    trust` S by each signal and M by each motion."""
    names = {re.sub(r"_([hgn])[HGN]$", r"_\1\1", name) for name in DOCUMENTED}
    for statistic in DOCUMENTED & set(drift.STATISTICS):
        names |= {statistic + name.removeprefix("S") for name in DOCUMENTED if name.startswith("S_")}
    return names | {
        f"{signal}{name.removeprefix('S').removesuffix('M')}{motion}"
        for signal in ("", *(DOCUMENTED & set(trust.SIGNALS)))
        for name in DOCUMENTED
        for motion in trust.MOTIONS
        if name.endswith("_M") and name.startswith("S_") == bool(signal)
    }


def test_fidelity_names(episodes):
    found = fidelity.judge_fidelity(PerfectEngine(5), episodes, half_warp, fidelity.FidelityConfig(horizons=(1, 4)))
    assert not undocumented(found.metrics) and len(found.metrics) > 70
    assert not undocumented(fidelity.compare_psnr(found.psnr, found.psnr))


def test_action_names(episodes):
    found = actions.judge_actions(PerfectEngine(5), episodes, inverse.InverseDynamics(8).eval())
    assert not undocumented(found.metrics) and "action_accuracy_ratio" in found.metrics


def test_drift_names(episodes):
    found = drift.judge_drift(PerfectEngine(5), episodes, window=6)
    assert not undocumented(found.metrics) and "within" in found.metrics


def test_geometry_names(episodes):
    config = geometry.GeometryConfig(horizons=(1, 4), gaps=(1, 4))
    found = geometry.judge_geometry(PerfectEngine(5), episodes, unproject, config)
    assert not undocumented(found.metrics) and "warp_psnr_dream_g4" in found.metrics


def test_trust_names():
    signals = {name: np.random.default_rng(0).random((3, 4)) for name in trust.SIGNALS}
    found = trust.score_signals(signals, signals["drift"], signals["drift"])
    names = [f"{name}_{motion}" for name in found for motion in trust.MOTIONS]
    assert not undocumented(names) and "drift_psnr_same_step_realised" in names


def test_an_invented_name_is_noticed():
    assert undocumented(["psnr_model_h4", "psnr_magic_h4"]) == {"psnr_magic_hh"}
