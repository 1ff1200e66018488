"""The judge's episodes: the simulator driven on chosen layouts by the recorder's policies, kept in memory as arrays.

Held-out layouts (seeds from HELD_OUT_SEED on) judge dreams; training layouts teach judges such as inverse dynamics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import numpy as np

from worldscape.conditioning.controls import DISCRETE_ACTIONS, ControlScale, discrete_controls
from worldscape.data import explore as recorder
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.data.rollout import Act, Policy
from worldscape.evaluate.hand_truth import HandTruth, concatenate_truth, stack_truth
from worldscape.progress import Progress

HAND_MOVES = 1e-3
"""Metres that a keypoint moves in a step in which a hand counts as moving."""

SOURCES = ("rooms", "tabletop")


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeBatch:
    """N episodes of T steps. Row t of a frame quantity is the view before step t; the last row is the final view.

    frames uint8 [N, T+1, h, w, 3]; depth float32 [N, T+1, h, w] metres; pose float32 [N, T+1, 4, 4] camera to world;
    intrinsics float32 [N, 4]; actions int64 [N, T]; controls (commanded) and realised (obtained) float32 [N, T, 6];
    collision, success bool [N, T]; seeds int64 [N] of the layouts; hands, where the simulator has any (actions and
    controls, those of the camera, are then no-ops).
    """

    frames: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    intrinsics: np.ndarray
    actions: np.ndarray
    controls: np.ndarray
    realised: np.ndarray
    collision: np.ndarray
    success: np.ndarray
    seeds: np.ndarray
    hands: HandTruth | None = None

    def __len__(self) -> int:
        """Number of episodes N."""
        return len(self.seeds)

    @property
    def num_steps(self) -> int:
        """Steps per episode T."""
        return self.actions.shape[1]

    def rows(self, selection: slice | Sequence[int]) -> "EpisodeBatch":
        """The chosen episodes."""
        chosen = {name: getattr(self, name)[selection] for name in ARRAYS}
        return EpisodeBatch(**chosen, hands=None if self.hands is None else self.hands.rows(selection))

    def cut(self, first: int, num_steps: int) -> "EpisodeBatch":
        """Steps first .. first + num_steps - 1 of every episode, as episodes of their own."""
        if first < 0 or num_steps < 1 or first + num_steps > self.num_steps:
            raise ValueError(f"steps {first} to {first + num_steps} do not lie within episodes of {self.num_steps}")
        frames, steps = slice(first, first + num_steps + 1), slice(first, first + num_steps)
        return replace(
            self,
            **{name: getattr(self, name)[:, frames] for name in ("frames", "depth", "pose")},
            **{
                name: getattr(self, name)[:, steps]
                for name in ("actions", "controls", "realised", "collision", "success")
            },
            hands=None if self.hands is None else self.hands.cut(first, num_steps),
        )

    def segments(self, num_steps: int) -> "EpisodeBatch":
        """Every episode chopped into consecutive pieces of `num_steps` steps (a shorter rest is dropped)."""
        pieces = [self.cut(first, num_steps) for first in range(0, self.num_steps - num_steps + 1, num_steps)]
        return concatenate_batches(pieces)

    def effective_actions(self) -> np.ndarray:
        """Actions int64 [N, T], with no-op where the simulator let nothing happen (wall ahead, pitch at its limit)."""
        return np.where(np.abs(self.realised).max(axis=-1) > 1e-6, self.actions, 0)

    def moves(self) -> np.ndarray:
        """Whether camera or hands moved in each step, bool [N, T]."""
        moves = np.abs(self.realised).max(axis=-1) > 1e-6
        if self.hands is not None:
            moves |= np.abs(np.diff(self.hands.keypoints, axis=1)).max(axis=(2, 3, 4)) > HAND_MOVES
        return moves


ARRAYS = tuple(field.name for field in fields(EpisodeBatch) if field.name != "hands")


class Judge:
    """Collects episodes from a simulator and keeps them, so that evaluations of one process share them.

    Args:
        source: the simulator, one of SOURCES.
        policy: who walks or moves the hand, one of policies_of(source), or a callable of that kind.
        size: picture height and width in pixels.
        make_env: builds the env for a number of steps; replaces `source` (tests).
    """

    def __init__(
        self,
        source: str = "rooms",
        policy: str | Policy = "explore",
        size: int = 64,
        make_env: Callable[[int], gym.Env] | None = None,
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"unknown source {source!r}; choose one of {', '.join(SOURCES)}")
        self.size = size
        self._policy = find_policy(policy, source) if isinstance(policy, str) else policy
        self._make_env = make_env or (self._make_rooms if source == "rooms" else self._make_tabletop)
        self._kept: dict[tuple[int, int, int], EpisodeBatch] = {}

    def episodes(
        self,
        num_episodes: int,
        num_steps: int,
        *,
        first_seed: int = HELD_OUT_SEED,
    ) -> EpisodeBatch:
        """Episodes on layouts first_seed, first_seed + 1, ...; each goes on for `num_steps`, through any success.

        Raises ValueError for counts below 1 and for an env whose info lacks what judging needs.
        """
        if num_episodes < 1 or num_steps < 1:
            raise ValueError(f"got {num_episodes} episodes of {num_steps} steps; both must be at least 1")
        key = (num_episodes, num_steps, first_seed)
        if key not in self._kept:
            self._kept[key] = self._collect(num_episodes, num_steps, first_seed)
        return self._kept[key]

    def _collect(self, num_episodes: int, num_steps: int, first_seed: int) -> EpisodeBatch:
        env = self._make_env(num_steps)
        episodes = []
        try:
            with Progress("episodes walked", total=num_episodes) as progress:
                for seed in range(first_seed, first_seed + num_episodes):
                    episodes.append(walk_episode(env, self._policy, seed, num_steps))
                    progress.update()
        finally:
            env.close()
        return concatenate_batches(episodes)

    def _make_rooms(self, num_steps: int) -> gym.Env:
        from worldscape.data.rooms import RoomsEnv

        return RoomsEnv(size=self.size, goal_terminates=False, max_episode_steps=num_steps)

    def _make_tabletop(self, num_steps: int) -> gym.Env:
        from worldscape.data.tabletop import TabletopEnv

        return TabletopEnv(task="any", size=self.size, goal_terminates=False, max_episode_steps=num_steps, masks=True)


def walk_episode(env: gym.Env, policy: Policy, seed: int, num_steps: int) -> EpisodeBatch:
    """One episode of `num_steps` on layout `seed` -> EpisodeBatch of N = 1; layout and walk depend on the seed only."""
    observation, info = env.reset(seed=seed)
    _check_info(info)
    act = policy(env.unwrapped, np.random.default_rng(seed))
    frames, infos, actions, rewards = [observation], [info], [], []
    for _ in range(num_steps):
        actions.append(np.asarray(act(observation, info)))
        observation, reward, _, _, info = env.step(actions[-1])
        frames.append(observation)
        infos.append(info)
        rewards.append(float(reward))
    return _stack_episode(frames, infos, actions, rewards, seed)


def concatenate_batches(batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
    """Batches with the same number of steps -> one batch, in order."""
    arrays = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ARRAYS}
    return EpisodeBatch(**arrays, hands=concatenate_truth([batch.hands for batch in batches]))


def find_policy(name: str, source: str = "rooms") -> Policy:
    """A policy of a source's recorder by name, or `restless`; raises ValueError for another name."""
    known = policies_of(source)
    if name not in known:
        raise ValueError(f"unknown policy {name!r}; for {source} choose one of {', '.join(known)}")
    return known[name]


def policies_of(source: str) -> dict[str, Policy]:
    """Who may walk, or move the hand, in a source."""
    if source == "rooms":
        return {**recorder.POLICIES, "restless": restless}
    from worldscape.data.tabletop_policies import POLICIES

    return {**POLICIES, "restless": restless_hand}


def restless(env: gym.Env, rng: np.random.Generator) -> Act:
    """Exploration in which every other action is a random key, so that all nine actions occur often."""
    walk = recorder.explore(env, rng)

    def act(observation: np.ndarray, info: dict[str, Any]) -> int:
        planned = int(walk(observation, info))
        return planned if rng.random() < 0.5 else int(rng.integers(len(DISCRETE_ACTIONS)))

    return act


def restless_hand(env: gym.Env, rng: np.random.Generator) -> Act:
    """Playing about in which every other action is random."""
    from worldscape.data.tabletop_policies import explore

    play, shape = explore(env, rng), env.action_space.shape

    def act(observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        planned = play(observation, info)
        return planned if rng.random() < 0.5 else rng.uniform(-1, 1, shape).astype(np.float32)

    return act


def _stack_episode(
    frames: list[np.ndarray], infos: list[dict[str, Any]], told: list[np.ndarray], rewards: list[float], seed: int
) -> EpisodeBatch:
    table, hands = discrete_controls(ControlScale()), stack_truth(infos, told, rewards)
    actions = [int(action) for action in told] if hands is None else [0] * len(told)

    def stack(name: str, rows: list[dict[str, Any]], dtype: type) -> np.ndarray:
        return np.asarray([row[name] for row in rows], dtype=dtype)[None]

    return EpisodeBatch(
        frames=np.stack(frames)[None],
        depth=stack("depth", infos, np.float32),
        pose=stack("pose", infos, np.float32),
        intrinsics=np.asarray(infos[0]["intrinsics"], np.float32)[None],
        actions=np.asarray(actions, np.int64)[None],
        controls=table[actions].astype(np.float32)[None],
        realised=stack("realised", infos[1:], np.float32),
        collision=stack("collision", infos[1:], np.bool_),
        success=stack("success", infos[1:], np.bool_),
        seeds=np.asarray([seed], np.int64),
        hands=hands,
    )


def _check_info(info: dict[str, Any]) -> None:
    missing = {"depth", "pose", "intrinsics", "realised", "collision", "success"} - set(info)
    if missing:
        raise ValueError(
            f"the simulator's info lacks {', '.join(sorted(missing))}, which judging needs; choose another source"
        )
