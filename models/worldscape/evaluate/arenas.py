"""The same held-out places twice, in the simulator and in the dream, and policies that are played in them.

A dream opens on the picture, depth, pose and hands that the simulator's reset shows, so both score a policy from one
start.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from worldscape.checkpoint import load_world
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.data.starts import WINDOWED, Starts, save_starts
from worldscape.evaluate.counterparts import COUNTERPARTS, NOTHING, Counterparts, choose_hand_actions
from worldscape.policy import PixelPolicy, open_stack, push_frames
from worldscape.progress import Progress


class Opening(NamedTuple):
    """How an episode is opened: seed and options of its reset."""

    seed: int
    options: dict[str, Any]


Watch = Callable[[Mapping[str, Any], int], dict[str, Any]]
"""Infos of a step, row -> numbers or arrays to note of it, by name."""


class Play(NamedTuple):
    """N episodes that a policy played: success bool, returns, Euclidean SPL and lengths in steps, each [N].

    The return of an episode that ends early counts `held_reward` for each step that is left.
    films: frames uint8 [T + 1, h, w, 3] of the first episodes, as many as were asked for; actions: [T, ...] of each
    episode; noted: [N, ...] of what was watched, at the last step.
    """

    success: np.ndarray
    returns: np.ndarray
    spl: np.ndarray
    lengths: np.ndarray
    films: list[np.ndarray]
    actions: list[np.ndarray]
    noted: dict[str, np.ndarray]


class Replay(NamedTuple):
    """The same actions in the simulator: success bool [N], and how far it was from its goal at last, metres [N] (NaN
    where it does not tell)."""

    success: np.ndarray
    distance: np.ndarray


@dataclass(slots=True)
class Walk:
    """One episode being played; the number -1 fills a slot for which no episode is left."""

    number: int
    rng: np.random.Generator
    start: np.ndarray
    place: np.ndarray
    walked: float = 0.0
    total: float = 0.0
    length: int = 0
    success: bool = False
    frames: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    noted: dict[str, Any] = field(default_factory=dict)

    def spl(self) -> float:
        """Success * straight way / way taken, the straight way being that to where the episode ended (Euclidean)."""
        straight = float(np.linalg.norm(self.place - self.start))
        return float(self.success) * (straight / self.walked if self.walked > straight else 1.0)


class Player:
    """Plays every opening of a task once with a policy (None: actions at random), in as many slots as `envs` has.

    Actions are drawn from the policy, each episode with its own generator: a score does not depend on the slots.
    limit: steps of an episode.
    """

    def __init__(
        self,
        envs: VectorEnv,
        counterparts: Counterparts,
        limit: int,
        policy: PixelPolicy | None,
        openings: Sequence[Opening],
        num_filmed: int,
        watch: Watch | None = None,
    ) -> None:
        if envs.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError("a player opens each episode itself; make the environment with autoreset_mode='DISABLED'")
        self.envs, self.counterparts, self.limit = envs, counterparts, limit
        self.policy, self.num_filmed, self.watch = policy, num_filmed, watch
        self.told = counterparts.told if policy is not None and policy.config.num_told else NOTHING
        self.is_continuous, self.num_actions = describe_actions(envs.single_action_space)
        self.num_episodes = len(openings)
        self._openings = itertools.chain(enumerate(openings), itertools.repeat((-1, openings[0])))
        self._finished: dict[int, Walk] = {}

    @torch.inference_mode()
    def play(self, unit: str) -> Play:
        """Play until every episode has ended; `unit` names them in the progress bar."""
        num_slots = self.envs.num_envs
        num_frames = 1 if self.policy is None else self.policy.config.frames
        shape = self.envs.single_observation_space.shape or ()
        stacks = torch.zeros(num_slots, num_frames, *shape, dtype=torch.uint8)
        told = torch.zeros(num_slots, self.told.num)
        walks = [self._open(row, stacks, told) for row in range(num_slots)]
        nothing_new = torch.zeros(num_slots, dtype=torch.bool)
        with Progress(unit, total=self.num_episodes) as progress:
            while len(self._finished) < self.num_episodes:
                actions = self._act(stacks, told, walks)
                frames, rewards, terminated, truncated, infos = self.envs.step(actions)
                stacks, told = push_frames(stacks, torch.from_numpy(frames), nothing_new), self.told.tell(infos)
                for row, walk in enumerate(walks):
                    walk.actions.append(actions[row])
                    place, success = self.counterparts.find(infos, row), bool(infos["success"][row])
                    self._follow(walk, frames[row], float(rewards[row]), place, success)
                for row in np.flatnonzero(terminated | truncated).tolist():
                    if walks[row].number >= 0:
                        walks[row].noted = self.watch(infos, row) if self.watch else {}
                        self._finished[walks[row].number] = walks[row]
                        progress.update()
                    walks[row] = self._open(row, stacks, told)
        return self._summarise()

    def _open(self, row: int, stacks: Tensor, told: Tensor) -> Walk:
        """Open the next episode in slot `row` and show it in `stacks` and `told`, in place."""
        number, opening = next(self._openings)
        mask = np.arange(self.envs.num_envs) == row
        seeds = np.where(mask, opening.seed, 0).tolist()
        frames, infos = self.envs.reset(seed=seeds, options={**opening.options, "reset_mask": mask})
        stacks[row] = open_stack(torch.from_numpy(frames[row : row + 1]), stacks.shape[1])[0]
        told[row] = self.told.tell(infos)[row]
        place, rng = self.counterparts.find(infos, row), np.random.default_rng((max(number, 0), 1))
        walk = Walk(number, rng, place, place, total=self.counterparts.held_reward * self.limit)
        if 0 <= number < self.num_filmed:
            walk.frames.append(frames[row].copy())
        return walk

    def _act(self, stacks: Tensor, told: Tensor, walks: list[Walk]) -> np.ndarray:
        noise = np.stack([walk.rng.random(self.num_actions, np.float32) for walk in walks])
        if self.policy is not None:
            device = next(self.policy.parameters()).device
            odds = self.policy(stacks.to(device), told.to(device)).actions
            return odds.draw(torch.from_numpy(noise).to(device)).cpu().numpy()
        return 2.0 * noise - 1.0 if self.is_continuous else noise.argmax(axis=1)

    def _follow(self, walk: Walk, frame: np.ndarray, reward: float, place: np.ndarray, success: bool) -> None:
        walk.length += 1
        walk.total += reward - self.counterparts.held_reward
        walk.walked += float(np.linalg.norm(place - walk.place))
        walk.place, walk.success = place, success
        if walk.frames:
            walk.frames.append(frame.copy())

    def _summarise(self) -> Play:
        walks = [self._finished[number] for number in range(self.num_episodes)]
        return Play(
            success=np.array([walk.success for walk in walks]),
            returns=np.array([walk.total for walk in walks]),
            spl=np.array([walk.spl() for walk in walks]),
            lengths=np.array([walk.length for walk in walks]),
            films=[np.stack(walk.frames) for walk in walks[: self.num_filmed]],
            actions=[np.stack(walk.actions) for walk in walks],
            noted={name: np.array([walk.noted[name] for walk in walks]) for name in walks[0].noted},
        )


def describe_actions(space: spaces.Space) -> tuple[bool, int]:
    """An action space -> is it continuous, and how many choices, or numbers in [-1, 1], it has."""
    if isinstance(space, spaces.Discrete):
        return False, int(space.n)
    if isinstance(space, spaces.Box) and space.shape and (space.low == -1).all() and (space.high == 1).all():
        return True, int(np.prod(space.shape))
    raise ValueError(f"no policy here acts in {space}; use actions that are Discrete or a Box from -1 to 1")


class Arenas:
    """Episodes of a task on the layouts `first_seed`, `first_seed` + 1, ..., in simulator and dream.

    Args:
        weights: of the dream: a shipped name, or a directory.
        task: one of COUNTERPARTS.
        limit: steps after which an episode is truncated; None for the task's own.
        batch: dreams that run side by side.
        hand_actions: of hands, None for the task's own default.
        make_simulator: builds the simulator for a picture size; replaces the task's own (tests).
    """

    def __init__(
        self,
        weights: str,
        *,
        num_episodes: int,
        task: str = "goal_object",
        limit: int | None = None,
        first_seed: int = HELD_OUT_SEED,
        batch: int = 16,
        device: str = "cpu",
        steps_per_frame: int | None = None,
        sampler: str = "blockwise",
        precision: str = "auto",
        temperature: float = 1.0,
        hand_actions: str | None = None,
        make_simulator: Callable[[int], gym.Env] | None = None,
    ) -> None:
        if task not in COUNTERPARTS:
            raise ValueError(f"task {task!r} has no simulator that judges it; choose one of {', '.join(COUNTERPARTS)}")
        self.task, self.counterparts = task, COUNTERPARTS[task]
        self.limit = self.counterparts.limit if limit is None else limit
        if num_episodes < 1 or self.limit < 1 or batch < 1:
            raise ValueError(f"{num_episodes} episodes of {self.limit} steps, {batch} at once: each must be at least 1")
        acts = choose_hand_actions(self.counterparts, hand_actions)
        self._simulator_options = {**self.counterparts.options, **acts}
        self.size = load_world(weights, device).config.codec.size
        make = make_simulator or self._make_simulator
        self._simulator = SyncVectorEnv(
            [lambda: TimeLimit(make(self.size), self.limit)], autoreset_mode=AutoresetMode.DISABLED
        )
        self.num_episodes = num_episodes
        self._layouts = range(first_seed, first_seed + num_episodes)
        with tempfile.TemporaryDirectory() as folder:
            starts = Path(folder) / "starts.safetensors"
            save_starts(show_starts(self._simulator.envs[0], self._layouts), starts)
            self._dream = gym.make_vec(
                f"ws_gym:{self.counterparts.dream}",
                num_envs=min(batch, num_episodes),
                max_episode_steps=self.limit,
                autoreset_mode="DISABLED",
                weights=weights,
                device=device,
                steps_per_frame=steps_per_frame,
                sampler=sampler,
                precision=precision,
                temperature=temperature,
                starts=str(starts),
                task=task,
                **acts,
            )

    def _make_simulator(self, size: int) -> gym.Env:
        return gym.make(f"ws_gym:{self.counterparts.simulator}", size=size, **self._simulator_options).unwrapped

    def play_simulator(
        self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0
    ) -> Play:
        """The first episodes (default: all) played in the simulator. Raises ValueError for a policy of other pictures
        or actions."""
        openings = [Opening(seed, {}) for seed in self._layouts[:num_episodes]]
        return self._player(self._simulator, policy, openings, num_filmed).play("episodes in the simulator")

    def play_dream(
        self,
        policy: PixelPolicy | None,
        num_episodes: int | None = None,
        *,
        num_filmed: int = 0,
        watch: Watch | None = None,
    ) -> Play:
        """The first episodes (default: all) dreamed from the same starts. Raises ValueError as `play_simulator`."""
        openings = [Opening(seed, {"start": index}) for index, seed in enumerate(self._layouts[:num_episodes])]
        return self._player(self._dream, policy, openings, num_filmed, watch).play("episodes in the dream")

    def replay_simulator(self, actions: Sequence[np.ndarray]) -> Replay:
        """Take the actions [T, ...] of the first episodes in the simulator, each until they or its episode end."""
        env, success, distance = self._simulator.envs[0], [], []
        with Progress("episodes taken again", total=len(actions)) as progress:
            for seed, steps in zip(self._layouts, actions, strict=False):
                info = env.reset(seed=seed)[1]
                for action in steps:
                    _, _, terminated, truncated, info = env.step(action)
                    if terminated or truncated:
                        break
                success.append(bool(info.get("success", False)))
                distance.append(float(info.get("goal_distance", np.nan)))
                progress.update()
        return Replay(np.array(success), np.array(distance))

    def _player(
        self,
        envs: VectorEnv,
        policy: PixelPolicy | None,
        openings: list[Opening],
        num_filmed: int,
        watch: Watch | None = None,
    ) -> Player:
        if policy is not None and policy.config.size != self.size:
            raise ValueError(
                f"the policy sees {policy.config.size} pixels, these weights dream {self.size}; "
                "score it with the weights that it was trained in"
            )
        acts = describe_actions(envs.single_action_space)
        if policy is not None and (policy.config.is_continuous, policy.config.num_actions) != acts:
            raise ValueError(f"the policy does not act in {envs.single_action_space}; it is none for {self.task}")
        tells = self.counterparts.told.num
        if policy is not None and policy.config.num_told not in (0, tells):
            raise ValueError(
                f"the policy is told {policy.config.num_told} numbers beside the pictures, {self.task} tells {tells}"
            )
        return Player(envs, self.counterparts, self.limit, policy, openings, num_filmed, watch)

    def __enter__(self) -> Arenas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dream.close()
        self._simulator.close()


def show_starts(simulator: gym.Env, seeds: Sequence[int]) -> Starts:
    """What the simulator's reset shows on these layouts, one frame each, with hands where it has any."""
    shown = [simulator.reset(seed=seed) for seed in seeds]
    known = {name: np.stack([info[name] for _, info in shown])[:, None] for name in WINDOWED if name in shown[0][1]}
    return Starts(
        frames=np.stack([frame for frame, _ in shown])[:, None],
        seeds=np.asarray(seeds, np.int64),
        intrinsics=np.stack([info["intrinsics"] for _, info in shown]).astype(np.float32),
        **{**known, "depth": known["depth"].astype(np.float16)},
    )
