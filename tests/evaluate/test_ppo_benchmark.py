"""The benchmark of PPO: rates by hand, and the whole script on the debug weights."""

import json

import pytest

from benchmarks import ppo
from tests.evaluate.test_documented import DOCUMENTED
from worldscape.evaluate.counterparts import COUNTERPARTS

SMALL = ["--weights", "debug", "--num-envs", "2", "--steps", "3", "--updates", "1", "--limit", "2"]


def undocumented(names) -> set[str]:
    """Metric names whose form, task and arena written as T and A, docs/metrics.md does not explain."""
    forms = set()
    for name in names:
        for task in COUNTERPARTS:
            name = name.replace(f"_{task}_in_", "_T_in_").replace(f"over_simulator_{task}", "over_simulator_T")
        for arena in ppo.ARENAS:
            name = name.replace(f"_in_{arena}", "_in_A")
        forms.add(name)
    return forms - DOCUMENTED


def test_rates_are_of_all_timed_updates_together():
    """40 steps each: the first update warms up, then 1 + 3 s of acting and 1 + 0 s of learning in the dream."""
    dream = [ppo.Spent(50, 50), ppo.Spent(1, 1), ppo.Spent(3, 0)]
    simulator = [ppo.Spent(50, 50), ppo.Spent(8, 2), ppo.Spent(8, 2)]
    assert ppo.summarise("reach", [dream, simulator], 40) == {
        "ppo_steps_per_second_reach_in_dream": 16,
        "rollout_steps_per_second_reach_in_dream": 20,
        "learner_share_reach_in_dream": 0.2,
        "ppo_steps_per_second_reach_in_simulator": 4,
        "rollout_steps_per_second_reach_in_simulator": 5,
        "learner_share_reach_in_simulator": 0.2,
        "dream_over_simulator_reach": 4,
    }


def test_the_script_ends_with_one_json_object(capsys):
    for simulator in ("rooms_gl", "tabletop_gl"):
        pytest.importorskip(f"worldscape.data.{simulator}", exc_type=ImportError)
    ppo.main(SMALL)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["name"] == "ppo" and line["preset"] == "debug"
    metrics = line["metrics"]
    assert not undocumented(metrics) and len(metrics) == 2 * 7 + 3
    assert metrics["steps_per_update"] == 6 and metrics["updates"] == 1
    for task in ("goal_object", "reach"):
        for arena in ppo.ARENAS:
            both, acting, share = (
                metrics[f"{name}_{task}_in_{arena}"]
                for name in ("ppo_steps_per_second", "rollout_steps_per_second", "learner_share")
            )
            assert both == pytest.approx(acting * (1 - share), rel=1e-3) and 0 < share < 1


def test_weights_that_there_are_not_are_one_clear_line():
    with pytest.raises(SystemExit, match="ppo: error: .*no-such-weights"):
        ppo.main(["--tasks", "reach", "--weights", "no-such-weights"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [(["--tasks", "reach,fly"], "--tasks fly unknown"), (["--updates", "0"], "--updates and --limit are at least 1")],
)
def test_bad_options_are_refused(bad, message, capsys):
    with pytest.raises(SystemExit):
        ppo.read_options(bad)
    assert message in capsys.readouterr().err
