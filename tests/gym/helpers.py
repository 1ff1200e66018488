"""What the tests of the environments share: worlds with random weights that need no files, and comparisons."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import ws_gym  # noqa: F401  (registers the ids)
from worldscape.engine import WorldEngine
from ws_gym.core import WorldCore
from ws_gym.tasks import Task, TaskResult

NAV = "WorldScape-Nav-v0"

DREAM = {"weights": "debug", "starts": "drawn", "task": "coverage"}
"""Random weights see red boxes everywhere; a task that does not ask their heads gives episodes of any length."""


def make_env(**options: Any) -> Any:
    return gym.make(NAV, **{**DREAM, **options})


def make_vec(num_envs: int, **options: Any) -> Any:
    return gym.make_vec(NAV, num_envs=num_envs, **{**DREAM, **options})


class EndAt(Task):
    """Ends episode n of slot i after `lengths[i][n]` steps, for ever the last one; reward is the step's number."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = lengths

    def bind(self, num_slots: int, device: torch.device) -> None:
        super().bind(num_slots, device)
        self.episodes = [-1] * num_slots

    def reset(self, frame, rows, rngs, options) -> None:
        for row in rows.nonzero()[:, 0].tolist():
            self.episodes[row] += 1

    def step(self, frame, elapsed, active) -> TaskResult:
        limits = [
            lengths[min(max(n, 0), len(lengths) - 1)] for lengths, n in zip(self.lengths, self.episodes, strict=True)
        ]
        ended = elapsed >= torch.tensor(limits)
        episode = torch.tensor(self.episodes)
        return TaskResult(reward=elapsed.float(), terminated=ended, success=ended, terms={"number": episode})


def assert_same(first: Any, second: Any) -> None:
    """Equal values, types and keys, to the last bit, in nested dicts, tuples and arrays."""
    _compare(first, second, np.testing.assert_array_equal)


def assert_close(first: Any, second: Any) -> None:
    """Equal but for what the number of rows in a matrix product may change: the last bits of floats (1e-4 of their
    size), and a colour that rounds the other way in at most one pixel of a thousand."""
    _compare(first, second, _compare_values)


def _compare(first: Any, second: Any, compare_values: Callable[[Any, Any], None]) -> None:
    assert type(first) is type(second), (first, second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _compare(first[key], second[key], compare_values)
    elif isinstance(first, (tuple, list)):
        for one, other in zip(first, second, strict=True):
            _compare(one, other, compare_values)
    else:
        compare_values(first, second)


def _compare_values(first: Any, second: Any) -> None:
    first, second = np.asarray(first), np.asarray(second)
    assert first.dtype == second.dtype and first.shape == second.shape
    if first.dtype == np.uint8:
        difference = np.abs(first.astype(int) - second)
        assert difference.max() <= 1 and difference.mean() < 1e-3
    else:
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def row_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """One slot's info out of vector infos, as the single environment gives it."""
    picked = {}
    for name, value in infos.items():
        if not name.startswith(("_", "final_")):
            assert infos[f"_{name}"][row]
            if isinstance(value, dict):
                picked[name] = row_of(value, row)
            else:
                picked[name] = value[row].copy() if value.ndim > 1 else value[row].item()
    return picked


def core_of(env: Any) -> WorldCore:
    """The core behind any wrappers."""
    return env.unwrapped._core


def engine_of(env: Any) -> WorldEngine:
    engine = core_of(env).engine
    assert engine is not None
    return engine


def drop_calls(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name != "model_calls"}
