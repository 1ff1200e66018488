"""The parts of examples/ppo_nav.py, and that a stopped run ends as one that was not."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.gym.helpers import EndAt, make_vec
from worldscape.policy import PixelPolicy, PolicyConfig, load_tensors, open_stack

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "ppo_nav.py"


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppo_nav", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_rollout(ppo, **columns) -> Any:
    """A rollout [T, B] with the given columns, and zeros or False elsewhere."""
    shape = next(iter(columns.values())).shape
    empty = dict.fromkeys(ppo.Rollout._fields, torch.zeros(shape))
    flags = dict.fromkeys(("terminated", "ended", "success"), torch.zeros(shape, dtype=torch.bool))
    counts = {"counts": torch.ones(shape, dtype=torch.bool)}
    return ppo.Rollout(**{**empty, **flags, **counts, **columns})


def flag(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)[:, None]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


class TestAdvantages:
    def test_without_ends_they_are_the_mixture_of_n_step_returns(self, ppo):
        """(1 - lambda) * sum of lambda^(n-1) * n-step advantage, the last one weighted with the rest."""
        rewards, values, last = torch.randn(5, 2), torch.randn(5, 2), torch.randn(2)
        gamma, mix = 0.9, 0.7
        found = ppo.estimate_advantages(make_rollout(ppo, rewards=rewards, values=values), last, gamma, mix)
        known = torch.cat([values, last[None]])
        for step in range(5):
            expected = torch.zeros(2)
            for n in range(1, 6 - step):
                gains = sum(gamma**k * rewards[step + k] for k in range(n)) + gamma**n * known[step + n]
                weight = mix ** (n - 1) * ((1 - mix) if step + n < 5 else 1)
                expected += weight * (gains - values[step])
            torch.testing.assert_close(found[step], expected)

    def test_nothing_is_expected_after_a_termination(self, ppo):
        rollout = make_rollout(
            ppo, rewards=column(1, 2, 0), values=column(10, 20, 30), terminated=flag(0, 1, 0), ended=flag(0, 1, 0)
        )
        found = ppo.estimate_advantages(rollout, torch.tensor([40.0]), 0.5, 0.5)
        last = 2 - 20
        torch.testing.assert_close(found[:2], column(1 + 0.5 * 20 - 10 + 0.25 * last, last))

    def test_a_truncation_is_credited_with_the_value_of_its_last_picture(self, ppo):
        """NEXT_STEP: the row after the end still shows the old episode's last picture, valued 30 here."""
        rollout = make_rollout(ppo, rewards=column(1, 2, 0), values=column(10, 20, 30), ended=flag(0, 1, 0))
        found = ppo.estimate_advantages(rollout, torch.tensor([40.0]), 0.5, 0.5)
        last = 2 + 0.5 * 30 - 20
        torch.testing.assert_close(found[:2], column(1 + 0.5 * 20 - 10 + 0.25 * last, last))


class DebugWorlds:
    """`Worlds` on a debug dream whose episodes end as `lengths` say."""

    def __init__(self, ppo, lengths, **options) -> None:
        self.device = torch.device("cpu")
        self.envs = make_vec(len(lengths), output="torch", task=EndAt(lengths), **options)
        self.step = lambda actions: ppo.Worlds.step(self, actions)


def test_steps_that_open_an_episode_do_not_count(ppo):
    """Slot 0 terminates after 2 steps, slot 1 is truncated after 3; each next row only shows the new beginning."""
    worlds = DebugWorlds(ppo, [[2], [99]], max_episode_steps=3)
    first = worlds.envs.reset(seed=0)[0]
    present = ppo.Present(open_stack(first, 2), torch.zeros(2, dtype=torch.bool))
    policy = PixelPolicy(PolicyConfig(num_actions=9, frames=2, channels=(4, 4), hidden=8))
    rollout, last_values = ppo.collect(worlds, policy, present, 8, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(rollout.counts.T, [[1, 1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(rollout.ended.T, [[0, 1, 0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(rollout.terminated.T, [[0, 1, 0, 0, 1, 0, 0, 1], [0] * 8])
    assert (rollout.rewards[~rollout.counts] == 0).all()
    # What is seen in the row after an end goes on from the old episode; one row later it shows nothing but the new one.
    assert torch.equal(rollout.stacks[2, 0, 0], rollout.stacks[1, 0, 1])
    assert torch.equal(rollout.stacks[3, 0, 0], rollout.stacks[3, 0, 1])
    assert not torch.equal(rollout.stacks[2, 0, 0], rollout.stacks[2, 0, 1])
    torch.testing.assert_close(policy(present.stacks).value, last_values)
    torch.testing.assert_close(policy(rollout.stacks[4]).value, rollout.values[4])


def test_steps_that_do_not_count_teach_nothing(ppo):
    """Whatever stands in them, the weights after an update are the same."""
    torch.manual_seed(0)
    config = PolicyConfig(num_actions=3, size=8, frames=1, channels=(4,), hidden=8)
    counts = torch.tensor([[1, 1], [0, 1], [1, 1]], dtype=torch.bool)
    columns = {
        "stacks": torch.randint(0, 256, (3, 2, 1, 8, 8, 3), dtype=torch.uint8),
        "actions": torch.randint(0, 3, (3, 2)),
        "log_probs": torch.full((3, 2), -1.1),
        "values": torch.randn(3, 2),
        "rewards": torch.randn(3, 2),
        "ended": torch.tensor([[1, 0], [0, 0], [0, 0]], dtype=torch.bool),
        "counts": counts,
    }
    other = {name: part.clone() for name, part in columns.items()}
    other["actions"][1, 0], other["rewards"][1, 0] = (columns["actions"][1, 0] + 1) % 3, 50.0
    weights = []
    for given in (columns, other):
        torch.manual_seed(1)
        policy = PixelPolicy(config)
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
        rollout = ppo.Rollout(**{"terminated": counts & False, "success": counts & False, **given})
        ppo.improve(policy, optimizer, rollout, torch.zeros(2), ppo.Recipe(), torch.Generator().manual_seed(2))
        weights.append(torch.cat([weight.flatten() for weight in policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_the_objective_is_clipped_where_the_policy_has_moved_enough(ppo):
    """Two actions, the better one already 1.5 times as likely as when it was taken: no more gradient towards it."""
    policy = PixelPolicy(PolicyConfig(num_actions=2, size=8, frames=1, channels=(4,), hidden=8))
    stacks = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    actions = torch.tensor([0, 1])
    now = policy(stacks).logits.log_softmax(-1)[[0, 1], actions].detach()
    batch = {"stacks": stacks, "actions": actions, "advantages": torch.tensor([1.0, -1.0]), "returns": torch.zeros(2)}
    recipe = ppo.Recipe(clip=0.2)

    def pull(log_probs: torch.Tensor) -> float:
        policy.zero_grad()
        ppo.ppo_loss(policy, {**batch, "log_probs": log_probs}, recipe).policy.backward()
        assert policy.actor.bias.grad is not None
        return float(policy.actor.bias.grad.abs().sum())

    moved = torch.tensor([1.5, 0.5]).log()
    assert pull(now) > 0.1
    assert pull(now - moved) == 0
    assert pull(now + moved) > 0.1


class Colours:
    """Two worlds of one-step episodes: the shade of the picture says which of three actions is rewarded."""

    def __init__(self, ppo) -> None:
        self.ppo, self.rng, self.opens = ppo, torch.Generator().manual_seed(0), False

    def _draw(self) -> torch.Tensor:
        self.answers = torch.randint(0, 3, (16,), generator=self.rng)
        return (self.answers * 100).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)

    def open(self) -> torch.Tensor:
        return self._draw()

    def step(self, actions: torch.Tensor) -> Any:
        right, self.opens = (actions == self.answers) & (not self.opens), not self.opens
        ended = torch.full((16,), self.opens)
        return self.ppo.Shown(self._draw(), right.float(), ended, ended, right)


def test_it_learns_what_a_picture_asks_for(ppo):
    torch.manual_seed(0)
    worlds, recipe = Colours(ppo), ppo.Recipe(num_steps=16, minibatches=2)
    policy = PixelPolicy(PolicyConfig(num_actions=3, size=8, frames=1, channels=(8,), hidden=16))
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    present = ppo.Present(open_stack(worlds.open(), 1), torch.zeros(16, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(15):
        rollout, last_values = ppo.collect(worlds, policy, present, recipe.num_steps, generator)
        ppo.improve(policy, optimizer, rollout, last_values, recipe, generator)
        shares.append(rollout.success[rollout.counts].float().mean().item())
    assert shares[0] < 0.5 and shares[-1] > 0.9


def test_episodes_are_counted_once(ppo):
    episodes = ppo.Episodes(1, [])
    columns = {"rewards": column(1, 2, 50, 4), "ended": flag(0, 1, 0, 1), "counts": flag(1, 1, 0, 1)}
    episodes.add(make_rollout(ppo, success=flag(0, 1, 1, 0), **columns))
    assert list(episodes.recent) == [[3, 1], [4, 0]]
    assert episodes.means() == {"return": 3.5, "success": 0.5}


class Stopped(Exception): ...


@pytest.fixture
def without_arenas(ppo, monkeypatch):
    """Scoring and filming have tests of their own."""

    class Arenas:
        size = 64

        def __init__(self, *args, **options): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def play_dream(self, policy):
            return self

        play_simulator = play_dream

    monkeypatch.setattr(ppo, "Arenas", Arenas)
    monkeypatch.setattr(ppo, "film", lambda *_: None)
    monkeypatch.setattr(ppo, "tabulate_plays", lambda plays: ppo)
    monkeypatch.setattr(ppo, "to_text", lambda: "", raising=False)


def test_a_stopped_run_ends_with_the_same_weights(ppo, without_arenas, monkeypatch, tmp_path, capsys):
    """Stopped in the middle of its second half: what was learned since the checkpoint is learned again."""
    ppo.main(["--preset", "debug", "--out", str(tmp_path / "whole")])
    improve, calls = ppo.improve, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return improve(*arguments)

    arguments = ["--preset", "debug", "--out", str(tmp_path / "stopped")]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ppo, "improve", stop)
        ppo.main(arguments)
    capsys.readouterr()
    ppo.main(arguments)
    assert "step 64: " in capsys.readouterr().out
    (whole, header), (stopped, stopped_header) = (
        load_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "stopped")
    )
    assert header == stopped_header and header["num_done"] == 4
    assert any("adam" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name
    kept = sorted(path.name for path in (tmp_path / "stopped" / "policies").iterdir())
    assert kept == ["step_000000032.safetensors", "step_000000064.safetensors"]


def test_another_runs_folder_is_refused(ppo, without_arenas, tmp_path):
    ppo.main(["--preset", "debug", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="a run with another limit, seed; give another --out"):
        ppo.main(["--preset", "debug", "--out", str(tmp_path), "--limit", "4", "--seed", "1"])
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged"):
        ppo.main(["--preset", "debug", "--out", str(tmp_path)])


def test_counts_are_checked(ppo, capsys):
    with pytest.raises(SystemExit):
        ppo.main(["--steps", "0"])
    assert "'0' is no whole number of at least 1" in capsys.readouterr().err
