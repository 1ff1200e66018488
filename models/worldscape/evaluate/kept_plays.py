"""Episodes that were played already: kept in a folder, so that a long evaluation goes on where it was stopped.

A play is a pure function of the policy, the arena and this program; its file is named by a digest of all three.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from worldscape.atomic import whole_file
from worldscape.evaluate.arenas import Play
from worldscape.policy import PixelPolicy

SCORES = ("success", "returns", "spl", "lengths")
UNKNOWN = "unknown"
"""The commit of a program that does not know its own; it keeps nothing."""


class Arena(Protocol):
    """Where policies are played: `Arenas`, or one that keeps what they played."""

    task: str
    num_episodes: int

    def play_simulator(
        self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0
    ) -> Play: ...

    def play_dream(
        self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0
    ) -> Play: ...


class KeptArenas:
    """`arenas`, whose plays are kept in `folder`.

    settings: what plays depend on beside the policy, plain JSON: "simulator" of those there, "dream" of those in it;
    commit: of this program (`report.find_commit`); with changed files, or unknown, nothing is kept.
    """

    def __init__(self, arenas: Arena, folder: Path, settings: Mapping[str, Any], commit: str) -> None:
        self._arenas, self._folder, self._settings, self._commit = arenas, folder, settings, commit
        self.task, self.num_episodes = arenas.task, arenas.num_episodes

    def play_simulator(
        self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0
    ) -> Play:
        """As Arenas.play_simulator."""
        return self._kept("simulator", self._arenas.play_simulator, policy, num_episodes, num_filmed)

    def play_dream(self, policy: PixelPolicy | None, num_episodes: int | None = None, *, num_filmed: int = 0) -> Play:
        """As Arenas.play_dream, for plays that nobody watches."""
        return self._kept("dream", self._arenas.play_dream, policy, num_episodes, num_filmed)

    def _kept(
        self,
        arena: str,
        play: Callable[..., Play],
        policy: PixelPolicy | None,
        num_episodes: int | None,
        num_filmed: int,
    ) -> Play:
        if self._commit == UNKNOWN or self._commit.endswith("-dirty"):
            return play(policy, num_episodes, num_filmed=num_filmed)
        count = self.num_episodes if num_episodes is None else num_episodes
        settings = [self._commit, arena, self._settings[arena], count, num_filmed]
        path = self._folder / f"{arena}_{digest_play(policy, settings)}.safetensors"
        if not path.exists():
            save_play(play(policy, num_episodes, num_filmed=num_filmed), path)
        return load_play(path)


def digest_play(policy: PixelPolicy | None, settings: list[Any]) -> str:
    """16 hex digits of a policy (None: random actions) and of what else its plays depend on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if policy is not None:
        digest.update(json.dumps(asdict(policy.config), sort_keys=True).encode())
        for name, tensor in sorted(policy.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_play(play: Play, path: Path) -> None:
    """Write a play; at `path` there is all of it or nothing."""
    arrays = {name: np.ascontiguousarray(getattr(play, name)) for name in SCORES}
    for name in ("actions", "films"):
        arrays |= {f"{name}.{index}": np.ascontiguousarray(row) for index, row in enumerate(getattr(play, name))}
    with whole_file(path) as partial:
        save_file(arrays, partial)


def load_play(path: Path) -> Play:
    """What save_play wrote."""
    arrays = load_file(path)
    counts = {name: sum(key.startswith(f"{name}.") for key in arrays) for name in ("actions", "films")}
    actions, films = ([arrays[f"{name}.{index}"] for index in range(count)] for name, count in counts.items())
    success, returns, spl, lengths = (arrays[name] for name in SCORES)
    return Play(success, returns, spl, lengths, films=films, actions=actions, noted={})
