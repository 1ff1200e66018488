"""PPO part by part, on choices and on continuous actions: what counts, what is learned from, that it learns."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.gym.helpers import EndAt, make_vec
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.data.starts import save_starts
from worldscape.evaluate.arenas import show_starts
from worldscape.evaluate.counterparts import COUNTERPARTS
from worldscape.policy import Gaussian, PixelPolicy, PolicyConfig, open_stack
from ws_gym import ppo
from ws_gym.ppo_run import Episodes

HAND_DREAM: dict[str, Any] = {"weights": "debug", "starts": "drawn", "output": "torch"}


def make_rollout(**columns) -> Any:
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
    def test_without_ends_they_are_the_mixture_of_n_step_returns(self):
        """(1 - lambda) * sum of lambda^(n-1) * n-step advantage, the last one weighted with the rest."""
        rewards, values, last = torch.randn(5, 2), torch.randn(5, 2), torch.randn(2)
        gamma, mix = 0.9, 0.7
        found = ppo.estimate_advantages(make_rollout(rewards=rewards, values=values), last, gamma, mix)
        known = torch.cat([values, last[None]])
        for step in range(5):
            expected = torch.zeros(2)
            for n in range(1, 6 - step):
                gains = sum(gamma**k * rewards[step + k] for k in range(n)) + gamma**n * known[step + n]
                weight = mix ** (n - 1) * ((1 - mix) if step + n < 5 else 1)
                expected += weight * (gains - values[step])
            torch.testing.assert_close(found[step], expected)

    def test_nothing_is_expected_after_a_termination(self):
        rollout = make_rollout(
            rewards=column(1, 2, 0), values=column(10, 20, 30), terminated=flag(0, 1, 0), ended=flag(0, 1, 0)
        )
        found = ppo.estimate_advantages(rollout, torch.tensor([40.0]), 0.5, 0.5)
        last = 2 - 20
        torch.testing.assert_close(found[:2], column(1 + 0.5 * 20 - 10 + 0.25 * last, last))

    def test_a_truncation_is_credited_with_the_value_of_its_last_picture(self):
        """NEXT_STEP: the row after the end still shows the old episode's last picture, valued 30 here."""
        rollout = make_rollout(rewards=column(1, 2, 0), values=column(10, 20, 30), ended=flag(0, 1, 0))
        found = ppo.estimate_advantages(rollout, torch.tensor([40.0]), 0.5, 0.5)
        last = 2 + 0.5 * 30 - 20
        torch.testing.assert_close(found[:2], column(1 + 0.5 * 20 - 10 + 0.25 * last, last))


def test_steps_that_open_an_episode_do_not_count():
    """Slot 0 terminates after 2 steps, slot 1 is truncated after 3; each next row only shows the new beginning."""
    envs = make_vec(2, output="torch", task=EndAt([[2], [99]]), max_episode_steps=3)
    worlds = ppo.Worlds(envs, "cpu")
    present = worlds.open(0, 2)
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


def test_steps_that_do_not_count_teach_nothing():
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
        "facts": torch.zeros(3, 2, 0),
        "told": torch.zeros(3, 2, 0),
        "seen": torch.zeros(3, 2, 0),
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


def test_the_objective_is_clipped_where_the_policy_has_moved_enough():
    """Two actions, the better one already 1.5 times as likely as when it was taken: no more gradient towards it."""
    policy = PixelPolicy(PolicyConfig(num_actions=2, size=8, frames=1, channels=(4,), hidden=8))
    stacks = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    actions = torch.tensor([0, 1])
    now = policy(stacks).actions.log_prob(actions).detach()
    batch = {"stacks": stacks, "actions": actions, "advantages": torch.tensor([1.0, -1.0]), "returns": torch.zeros(2)}
    batch["told"] = torch.zeros(2, 0)
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


def test_acting_is_learned_from_the_facts_as_they_were_seen():
    """Whatever the eye makes of the pictures by now: the objective does not look at them."""
    policy = PixelPolicy(PolicyConfig(num_actions=2, num_facts=3, size=8, frames=1, channels=(4,), hidden=8))
    seen = torch.randn(5, 3)
    batch = {
        "seen": seen,
        "told": torch.zeros(5, 0),
        "actions": torch.tensor([0, 1, 0, 1, 1]),
        "returns": torch.zeros(5),
    }
    batch |= {"log_probs": torch.full((5,), -0.7), "advantages": torch.randn(5)}
    ppo.ppo_loss(policy, batch, ppo.Recipe()).total.backward()
    learned = {name.split(".")[0] for name, weight in policy.named_parameters() if weight.grad is not None}
    assert learned == {"will", "worth", "actor", "critic"}


def test_a_rollout_keeps_what_was_seen_and_an_update_teaches_acting_and_seeing():
    torch.manual_seed(0)
    policy = PixelPolicy(PolicyConfig(num_actions=3, num_facts=1, size=8, frames=1, channels=(8,), hidden=16))
    worlds: Any = Shades(is_told=True)
    rollout, last = ppo.collect(worlds, policy, worlds.open(0, 1), 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rollout.seen.flatten(0, 1), policy.see(rollout.stacks.flatten(0, 1)))
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    recipe = ppo.Recipe(minibatches=2, see_minibatches=2)
    losses = ppo.improve(policy, optimizer, rollout, last, recipe, torch.Generator().manual_seed(1))
    assert losses["facts"] > 0 and losses["value"] > 0
    assert not any(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())


def test_the_learning_rate_falls_to_its_share():
    policy = PixelPolicy(PolicyConfig(num_actions=3, size=8, frames=1, channels=(4,), hidden=8))
    worlds: Any = Shades()
    recipe = ppo.Recipe(num_steps=2, minibatches=1, lr=0.1, lr_end=0.5)
    updates = ppo.learn(
        worlds, policy, torch.optim.Adam(policy.parameters()), recipe, updates=range(5), reopen_at=(), seed=0
    )
    assert [update.lr for update in updates] == pytest.approx([0.1, 0.09, 0.08, 0.07, 0.06])


class Shades:
    """Sixteen worlds of one-step episodes: the shade of the picture, 0 to 2, says which action is rewarded.

    A choice is right or wrong; two numbers shall be shade - 1 and its opposite, within 0.5. What lies outside [-1, 1]
    is clipped. The shade is told, too, in a third of the worlds, if it is to be.
    """

    def __init__(self, is_told: bool = False) -> None:
        self.device, self.opens, self.is_told = torch.device("cpu"), False, is_told
        self.rng = torch.Generator().manual_seed(0)

    def _draw(self) -> torch.Tensor:
        self.answers = torch.randint(0, 3, (16,), generator=self.rng)
        return (self.answers * 100).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)

    def _facts(self) -> torch.Tensor:
        told = torch.where(torch.arange(16) % 3 == 0, self.answers - 1.0, torch.nan)
        return told[:, None] if self.is_told else torch.zeros(16, 0)

    def open(self, seed: int, num_frames: int) -> ppo.Present:
        nothing = torch.zeros(16, dtype=torch.bool)
        return ppo.Present(open_stack(self._draw(), num_frames), nothing, torch.zeros(16, 0), self._facts())

    def step(self, actions: torch.Tensor) -> ppo.Shown:
        if actions.ndim == 1:
            right, rewards = actions == self.answers, (actions == self.answers).float()
        else:
            aims = torch.stack([self.answers - 1.0, 1.0 - self.answers], -1)
            away = (actions.clamp(-1, 1) - aims).norm(dim=-1)
            right, rewards = away < 0.5, -away
        right, rewards, self.opens = right & (not self.opens), rewards * (not self.opens), not self.opens
        ended = torch.full((16,), self.opens)
        return ppo.Shown(self._draw(), torch.zeros(16, 0), self._facts(), rewards, ended, ended, right)


@pytest.mark.parametrize(
    ("is_continuous", "is_told", "num_updates", "settings"),
    [
        (False, False, 60, {"lr": 3e-3, "entropy": 0.05}),
        (True, False, 60, {"lr": 1e-2, "entropy": 0.0}),
        (True, True, 120, {"lr": 3e-3, "entropy": 0.001, "reward_scale": 0.1}),
    ],
)
def test_it_learns_what_a_picture_asks_for(is_continuous, is_told, num_updates, settings):
    torch.manual_seed(0)
    recipe = ppo.Recipe(num_steps=16, minibatches=2, **settings)
    actions = {"num_actions": 2 if is_continuous else 3, "is_continuous": is_continuous}
    policy = PixelPolicy(PolicyConfig(**actions, num_facts=int(is_told), size=8, frames=1, channels=(16,), hidden=64))
    optimizer = torch.optim.Adam(policy.parameters())
    worlds: Any = Shades(is_told)
    updates = ppo.learn(worlds, policy, optimizer, recipe, updates=range(num_updates), reopen_at=(), seed=0)
    shares = [update.rollout.success[update.rollout.counts].float().mean().item() for update in updates]
    assert shares[0] < 0.5 and shares[-1] > 0.85
    seen = policy(open_stack(worlds._draw(), 1))
    if is_continuous:
        assert seen.actions.std.max() < 0.4
    if is_told:
        assert (seen.facts[:, 0] - (worlds.answers - 1.0)).abs().max() < 0.3


@pytest.mark.parametrize("num_updates", [0, 1])
def test_looks_are_taken_in_training_worlds_and_only_where_there_is_something_to_learn(num_updates):
    seeds = []

    class Watched(Shades):
        def open(self, seed: int, num_frames: int) -> ppo.Present:
            seeds.append(seed)
            return super().open(seed, num_frames)

    policy = PixelPolicy(PolicyConfig(num_actions=3, num_facts=1, size=8, frames=1, channels=(8,), hidden=16))
    recipe = ppo.Recipe(num_steps=2, minibatches=2, looks=40, look_epochs=1)
    optimizer = torch.optim.Adam(policy.parameters())
    worlds: Any = Watched(is_told=True)
    updates = range(num_updates)
    list(ppo.learn(worlds, policy, optimizer, recipe, updates=updates, reopen_at=(), seed=HELD_OUT_SEED + 5))
    assert len(seeds) == (4 if num_updates else 0)  # three times sixteen worlds, and once to act in them
    assert all(0 <= seed < HELD_OUT_SEED - 50_000 for seed in seeds)


def hand_worlds(num_envs: int, **options: Any) -> ppo.Worlds:
    """Debug dreams of a hand that succeed never, since random weights see success everywhere."""
    options = {"task": "reach", "task_options": {"threshold": 0.999}, "max_episode_steps": 3, **options}
    return ppo.Worlds(gym.make_vec("WorldScape-Hand-v0", num_envs=num_envs, **HAND_DREAM, **options), "cpu")


@pytest.mark.parametrize("env", [COUNTERPARTS["reach"].dream, COUNTERPARTS["reach"].simulator])
def test_hands_learn_from_what_is_missing_to_the_best_reward(env):
    worlds = ppo.make_worlds("reach", env, "debug", num_envs=2, limit=5)
    worlds.open(3, 1)
    paid = worlds.step(torch.linspace(-1, 1, 26).reshape(2, 13)).rewards
    worlds.close()
    assert ((paid > -1) & (paid < 0)).all()


def test_a_hand_in_a_dream_hears_numbers_outside_as_the_nearest_inside():
    """The policy's density is that of what it drew; the world is the one that clips."""
    worlds, clipped = hand_worlds(2), hand_worlds(2)
    worlds.open(3, 1)
    clipped.open(3, 1)
    actions = 3 * torch.randn(2, 13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(worlds.step(actions).frames, clipped.step(actions.clamp(-1, 1)).frames)


def test_a_rollout_of_hands_keeps_the_density_of_what_was_drawn():
    worlds = hand_worlds(2)
    policy = PixelPolicy(ppo.fit_policy(worlds, frames=2, channels=(4, 4), hidden=8))
    assert policy.spread is not None
    torch.nn.init.constant_(policy.spread, 3.0)  # wide enough to draw what a Box clips
    assert policy.config.is_continuous and policy.config.num_actions == 13
    rollout, _ = ppo.collect(worlds, policy, worlds.open(0, 2), 5, torch.Generator().manual_seed(0))
    assert rollout.actions.shape == (5, 2, 13) and rollout.actions.abs().max() > 1
    odds = policy(rollout.stacks.flatten(0, 1)).actions
    assert isinstance(odds, Gaussian)
    known = torch.distributions.Normal(odds.mean, odds.std).log_prob(rollout.actions.flatten(0, 1)).sum(-1)
    torch.testing.assert_close(rollout.log_probs.flatten(), known)
    np.testing.assert_array_equal(rollout.ended.T, [[0, 0, 1, 0, 0]] * 2)


@pytest.mark.parametrize("task", ["reach", "pick_place"])
def test_dream_and_simulator_tell_the_same_facts(task, tmp_path):
    """Of one start: the ways in metres that the simulator's own info gives, in the axes of its camera."""
    pair = COUNTERPARTS[task]
    simulator = gym.make_vec(pair.simulator, num_envs=2, vectorization_mode="sync", **pair.options)
    path = tmp_path / "starts.safetensors"
    save_starts(show_starts(gym.make(pair.simulator, **pair.options), [5]), path)
    dream = gym.make_vec(pair.dream, num_envs=1, task=task, weights="debug", starts=str(path))
    told = simulator.reset(seed=5)[1]
    both = [ppo.Worlds(envs, "cpu", pair.facts, pair.told) for envs in (simulator, dream)]
    assert pair.facts is not None
    known, dreamed = pair.facts.tell(told), pair.facts.tell(dream.reset(seed=5)[1])
    assert known.shape == (2, pair.facts.num) and [ppo.fit_policy(w).num_facts for w in both] == [pair.facts.num] * 2
    torch.testing.assert_close(known[:1], dreamed, atol=1e-3, rtol=1e-3)
    assert pair.told is not None
    of_hand = [pair.told.tell(envs.reset(seed=5)[1]) for envs in (simulator, dream)]
    torch.testing.assert_close(of_hand[0][:1], of_hand[1], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(of_hand[0][0, :3], told["hand_state"][0, 1, :3] / 0.2, rtol=1e-5)
    np.testing.assert_allclose(of_hand[0][0, 3:], told["hand_state"][0, 1, 3:], rtol=1e-5)
    assert [ppo.fit_policy(w).num_told for w in both] == [16, 16]
    target, points = told["target"][0], told["hand_keypoints"][0, 1]
    thing = told["object_pose"][0, :3, 3]
    start, end = (points[8], target) if task == "reach" else (thing, target)
    place = 3 if task == "pick_place" else 0
    way = 0.2 * known[0, place : place + 3].numpy()
    np.testing.assert_allclose(told["pose"][0, :3, :3] @ way, end - start, atol=1e-5)


def test_episodes_are_counted_once():
    episodes = Episodes(1, [], 0.0, 2)
    columns = {"rewards": column(1, 2, 50, 4), "ended": flag(0, 1, 0, 1), "counts": flag(1, 1, 0, 1)}
    episodes.add(make_rollout(success=flag(0, 1, 1, 0), **columns), is_opening=True)
    assert list(episodes.recent) == [[3, 1], [4, 0]]
    assert episodes.means() == {"return": 3.5, "success": 0.5}


def test_an_episode_that_succeeds_at_once_returns_more_than_one_that_hovers():
    """Ten steps at most, a dense reward: 1 on success, 0.9 beside the goal. Added up as it comes, hovering would be
    worth nine times as much."""
    episodes = Episodes(2, [], 10.0, 10)
    rewards = torch.full((10, 2), 0.9 - 1)
    rewards[0, 0] = 1.0 - 1
    ended = torch.zeros(10, 2, dtype=torch.bool)
    ended[0, 0] = ended[9, 1] = True
    counts = torch.ones(10, 2, dtype=torch.bool)
    counts[1:, 0] = False
    episodes.add(make_rollout(rewards=rewards, ended=ended, counts=counts), is_opening=True)
    assert episodes.recent[0][0] == pytest.approx(10) and episodes.recent[1][0] == pytest.approx(9)


def test_episodes_that_were_given_up_do_not_count():
    episodes = Episodes(1, [], 0.0, 2)
    half = make_rollout(rewards=column(1, 2), ended=flag(0, 0))
    episodes.add(half, is_opening=True)
    episodes.add(make_rollout(rewards=column(4, 8), ended=flag(0, 1)), is_opening=True)
    assert list(episodes.recent) == [[12, 0]]


def test_an_early_success_waits_for_those_who_take_longer():
    """Two worlds of four steps at most: one succeeds at once, again and again; the other never does."""
    episodes = Episodes(2, [], 0.0, 4)
    ended = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 1], [1, 0], [1, 0]]).bool()
    success = ended & torch.tensor([True, False])
    found = []
    for step in range(6):
        rollout = make_rollout(rewards=success[[step]].float(), ended=ended[[step]], success=success[[step]])
        episodes.add(rollout, is_opening=step == 0)
        found.append(episodes.means().get("success"))
    assert found == [None, None, None, 0.5, pytest.approx(2 / 3), 0.75]
    rollout = make_rollout(rewards=success[[5]].float(), ended=ended[[5]], success=success[[5]])
    episodes.add(rollout, is_opening=True)
    assert episodes.means()["success"] == 0.75, "those that were given up never count"
