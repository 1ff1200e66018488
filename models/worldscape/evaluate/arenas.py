"""The same held-out places twice, in the simulator and in the dream, and policies that are played in them.

A dream opens on the picture, depth and pose that the simulator's reset shows, so both score a policy from one start.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from worldscape.checkpoint import load_world
from worldscape.data.episode import HELD_OUT_SEED
from worldscape.data.starts import Starts, save_starts
from worldscape.policy import PixelPolicy, open_stack, push_frames
from worldscape.progress import Progress

DREAM = "ws_gym:WorldScape-Nav-v0"


class Opening(NamedTuple):
    """How an episode is opened: seed and options of its reset."""

    seed: int
    options: dict[str, Any]


class Play(NamedTuple):
    """N episodes that a policy walked: success bool, returns, Euclidean SPL and lengths in steps, each [N].

    films: frames uint8 [T, h, w, 3] of the first episodes, as many as were asked for.
    """

    success: np.ndarray
    returns: np.ndarray
    spl: np.ndarray
    lengths: np.ndarray
    films: list[np.ndarray]


@dataclass(slots=True)
class Walk:
    """One episode being walked; the number -1 fills a slot for which no episode is left."""

    number: int
    rng: np.random.Generator
    start: np.ndarray
    place: np.ndarray
    walked: float = 0.0
    total: float = 0.0
    length: int = 0
    success: bool = False
    frames: list[np.ndarray] = field(default_factory=list)

    def spl(self) -> float:
        """Success * straight way / way walked, the straight way being that to where the episode ended (Euclidean)."""
        straight = float(np.hypot(*(self.place - self.start)[[0, 2]]))
        return float(self.success) * (straight / self.walked if self.walked > straight else 1.0)


class Player:
    """Walks every opening once with a policy (None: actions at random), in as many slots as `envs` has.

    Actions are drawn from the policy, each episode with its own generator: a score does not depend on the slots.
    """

    def __init__(
        self, envs: VectorEnv, policy: PixelPolicy | None, openings: Sequence[Opening], num_filmed: int
    ) -> None:
        if envs.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError("a player opens each episode itself; make the environment with autoreset_mode='DISABLED'")
        self.envs, self.policy, self.num_filmed = envs, policy, num_filmed
        self.num_actions = int(envs.single_action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
        self.num_episodes = len(openings)
        self._openings = itertools.chain(enumerate(openings), itertools.repeat((-1, openings[0])))
        self._finished: dict[int, Walk] = {}

    @torch.inference_mode()
    def play(self, unit: str) -> Play:
        """Walk until every episode has ended; `unit` names them in the progress bar."""
        num_slots = self.envs.num_envs
        num_frames = 1 if self.policy is None else self.policy.config.frames
        shape = self.envs.single_observation_space.shape or ()
        stacks = torch.zeros(num_slots, num_frames, *shape, dtype=torch.uint8)
        walks = [self._open(row, stacks) for row in range(num_slots)]
        nothing_new = torch.zeros(num_slots, dtype=torch.bool)
        with Progress(unit, total=self.num_episodes) as progress:
            while len(self._finished) < self.num_episodes:
                frames, rewards, terminated, truncated, infos = self.envs.step(self._act(stacks, walks))
                stacks = push_frames(stacks, torch.from_numpy(frames), nothing_new)
                for row, walk in enumerate(walks):
                    self._follow(walk, frames[row], float(rewards[row]), {name: infos[name][row] for name in FOLLOWED})
                for row in np.flatnonzero(terminated | truncated).tolist():
                    if walks[row].number >= 0:
                        self._finished[walks[row].number] = walks[row]
                        progress.update()
                    walks[row] = self._open(row, stacks)
        return self._summarise()

    def _open(self, row: int, stacks: Tensor) -> Walk:
        """Open the next episode in slot `row` and show it in `stacks`, in place."""
        number, opening = next(self._openings)
        mask = np.arange(self.envs.num_envs) == row
        seeds = np.where(mask, opening.seed, 0).tolist()
        frames, infos = self.envs.reset(seed=seeds, options={**opening.options, "reset_mask": mask})
        stacks[row] = open_stack(torch.from_numpy(frames[row : row + 1]), stacks.shape[1])[0]
        place = np.array(infos["camera"][row][:3])
        walk = Walk(number, np.random.default_rng((max(number, 0), 1)), place, place)
        if 0 <= number < self.num_filmed:
            walk.frames.append(frames[row].copy())
        return walk

    def _act(self, stacks: Tensor, walks: list[Walk]) -> np.ndarray:
        logits = np.zeros((len(walks), self.num_actions))
        if self.policy is not None:
            device = next(self.policy.parameters()).device
            logits = self.policy(stacks.to(device)).logits.cpu().numpy()
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = np.stack([walk.rng.gumbel(size=self.num_actions) for walk in walks])
        return (logits + noise).argmax(axis=1)

    def _follow(self, walk: Walk, frame: np.ndarray, reward: float, info: dict[str, Any]) -> None:
        walk.length += 1
        walk.total += reward
        walk.walked += float(np.hypot(*info["realised"][[0, 2]]))
        walk.place, walk.success = np.array(info["camera"][:3]), bool(info["success"])
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
        )


FOLLOWED = ("camera", "realised", "success")


class Arenas:
    """Episodes of goal_object on the layouts `first_seed`, `first_seed` + 1, ..., in simulator and dream.

    Args:
        weights: of the dream: a shipped name, or a directory.
        limit: steps after which an episode is truncated.
        batch: dreams that run side by side.
        make_simulator: builds the simulator for a picture size; replaces the rooms (tests).
    """

    def __init__(
        self,
        weights: str,
        *,
        num_episodes: int,
        limit: int = 300,
        first_seed: int = HELD_OUT_SEED,
        batch: int = 16,
        device: str = "cpu",
        steps_per_frame: int | None = None,
        make_simulator: Callable[[int], gym.Env] | None = None,
    ) -> None:
        if num_episodes < 1 or limit < 1 or batch < 1:
            raise ValueError(f"{num_episodes} episodes of {limit} steps, {batch} at once: each must be at least 1")
        self.size = load_world(weights, device).config.codec.size
        make = make_simulator or make_rooms
        self._simulator = SyncVectorEnv(
            [lambda: TimeLimit(make(self.size), limit)], autoreset_mode=AutoresetMode.DISABLED
        )
        self._layouts = range(first_seed, first_seed + num_episodes)
        with tempfile.TemporaryDirectory() as folder:
            starts = Path(folder) / "starts.safetensors"
            save_starts(show_starts(self._simulator.envs[0], self._layouts), starts)
            self._dream = gym.make_vec(
                DREAM,
                num_envs=min(batch, num_episodes),
                max_episode_steps=limit,
                autoreset_mode="DISABLED",
                weights=weights,
                device=device,
                steps_per_frame=steps_per_frame,
                starts=str(starts),
                task="goal_object",
            )

    def play_simulator(
        self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0
    ) -> Play:
        """The first episodes (default: all) walked in the simulator. Raises ValueError for a policy of other size."""
        self._check(policy)
        openings = [Opening(seed, {}) for seed in self._layouts[:num_episodes]]
        return Player(self._simulator, policy, openings, num_filmed).play("episodes in the simulator")

    def play_dream(self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0) -> Play:
        """The first episodes (default: all) dreamed from the same starts. Raises ValueError as `play_simulator`."""
        self._check(policy)
        openings = [Opening(seed, {"start": index}) for index, seed in enumerate(self._layouts[:num_episodes])]
        return Player(self._dream, policy, openings, num_filmed).play("episodes in the dream")

    def _check(self, policy: PixelPolicy | None) -> None:
        if policy is not None and policy.config.size != self.size:
            raise ValueError(
                f"the policy sees {policy.config.size} pixels, these weights dream {self.size}; "
                "score it with the weights that it was trained in"
            )

    def __enter__(self) -> Arenas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dream.close()
        self._simulator.close()


def make_rooms(size: int) -> gym.Env:
    """The simulator of the rooms for pictures of `size` pixels."""
    from worldscape.data.rooms import RoomsEnv

    return RoomsEnv(size=size)


def show_starts(simulator: gym.Env, seeds: Sequence[int]) -> Starts:
    """What the simulator's reset shows on these layouts, one frame each."""
    shown = [simulator.reset(seed=seed) for seed in seeds]

    def stack(name: str, dtype: type) -> np.ndarray:
        return np.stack([info[name] for _, info in shown]).astype(dtype)

    return Starts(
        frames=np.stack([frame for frame, _ in shown])[:, None],
        seeds=np.asarray(seeds, np.int64),
        depth=stack("depth", np.float16)[:, None],
        pose=stack("pose", np.float32)[:, None],
        intrinsics=stack("intrinsics", np.float32),
        camera=stack("camera", np.float32)[:, None],
    )
