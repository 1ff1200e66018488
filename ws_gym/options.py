"""The settings that one world and many worlds share, checked before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from gymnasium.error import Error

from worldscape.checkpoint import load_world
from worldscape.checks import checked_device
from worldscape.engine import WorldEngine
from worldscape.engines import SAMPLERS, open_engine
from worldscape.precision import PRECISIONS
from ws_gym.actions import check_action_mode
from ws_gym.forks import FORKED
from ws_gym.observations import OBSERVATIONS, Latent

MIN_SIZE = 16

HANDS_CHOICES = ("right", "left", "both")
HAND_MODES = ("hands", "universal")
HAND_KINDS = ("delta", "grasp", "keypoints", "egodex")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldOptions:
    """Keyword arguments of `WorldScapeEnv` and `WorldScapeVectorEnv`; see their docstrings. Raises ValueError."""

    weights: str | os.PathLike[str] = "nano"
    device: str | torch.device = "cpu"
    obs: str = "pixels"
    size: int | tuple[int, int] | None = None
    steps_per_frame: int | None = None
    sampler: str = "blockwise"
    precision: str = "auto"
    temperature: float = 1.0
    actions: str = "discrete"
    hands: str | None = None
    hand_actions: str = "delta"
    task: Any = "goal_object"
    task_options: Mapping[str, Any] | None = None
    starts: Any = "train"
    max_episode_steps: int | None = None
    max_drift: float | None = None
    drift_patience: int = 16

    def __post_init__(self) -> None:
        if self.hands is None:
            check_action_mode(self.actions)
        else:
            _check_choice("hands", self.hands, HANDS_CHOICES)
            if self.actions not in HAND_MODES:
                raise ValueError(
                    f"actions={self.actions!r} move no hands, and hands={self.hands!r}; make WorldScape-Hand-v0, whose "
                    "actions='hands', WorldScape-Universal-v0, whose actions='universal', or leave hands out."
                )
        _check_observation(self.obs, self.size)
        _check_choice("hand_actions", self.hand_actions, HAND_KINDS)
        _check_count("steps_per_frame", self.steps_per_frame)
        for name, choices in (("precision", PRECISIONS), ("sampler", SAMPLERS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}.")
        _check_temperature(self.temperature)
        _check_count("max_episode_steps", self.max_episode_steps)
        _check_share("max_drift", self.max_drift)
        _check_count("drift_patience", self.drift_patience, is_optional=False)
        if not isinstance(self.weights, (str, os.PathLike)):
            raise ValueError(f"weights={self.weights!r} is neither a name nor a path; pass e.g. 'nano'.")
        _ = self.picture_size, self.torch_device

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of observations, None for the model's own."""
        return None if self.size is None else _check_size(self.size)

    @property
    def torch_device(self) -> torch.device:
        """The device that all tensors are on."""
        return checked_device(self.device)

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> WorldOptions:
        """Options from an environment's keyword arguments. Raises TypeError for a name that does not exist, in Python's
        own words, by which TorchRL notices that an environment has no `frameskip`.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(keywords) - set(known))
        if unknown:
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}; WorldScape takes {', '.join(known)}.")
        return cls(**keywords)


def check_seed(seed: Any) -> int | None:
    """The seed as Python's own number. Raises ValueError for one that is neither None nor whole and at least 0."""
    if seed is None:
        return None
    if not is_whole(seed) or seed < 0:
        raise ValueError(f"seed={seed!r} is no seed; give a whole number of at least 0, or None.")
    return int(seed)


def is_whole(value: Any) -> bool:
    """Whether that is a whole number, Python's own or NumPy's."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; with hands choose one of {', '.join(choices)}.")


def _check_observation(obs: Any, size: Any) -> None:
    if obs not in OBSERVATIONS:
        raise ValueError(f"obs={obs!r} is unknown; choose one of {', '.join(OBSERVATIONS)}.")
    if obs == Latent.name and size is not None:
        raise ValueError(f"size={size!r} is a picture's, and obs={obs!r} shows none; leave size out.")


def _check_count(name: str, value: Any, *, is_optional: bool = True) -> None:
    if value is None and is_optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        otherwise = ", or None" if is_optional else ""
        raise ValueError(f"{name}={value!r} is no count; give a whole number of at least 1{otherwise}.")


def _check_share(name: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value < 1):
        raise ValueError(f"{name}={value!r} is no share of a picture; give a number from 0 to below 1, or None.")


def _check_temperature(value: Any) -> None:
    is_number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise ValueError(f"temperature={value!r} is none; give a number of at least 0, such as 1.0.")


def _check_size(size: Any) -> tuple[int, int]:
    pair = (size, size) if is_whole(size) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"size={size!r} is no picture size; give pixels, or (height, width).")
    if not all(is_whole(side) and side >= MIN_SIZE for side in pair):
        raise ValueError(f"size={size!r} is too small or not whole; give pixels of at least {MIN_SIZE}.")
    return int(pair[0]), int(pair[1])


def open_worlds(options: WorldOptions, num_slots: int) -> WorldEngine:
    """An engine with so many slots, as the options ask for. Raises ValueError for a teacher's weights, and as the
    engines do; Error where a forked process would use its parent's GPU."""
    try:
        model = load_world(os.fspath(options.weights), options.torch_device)
        if not model.config.transformer.is_causal:
            raise ValueError(
                f"weights={os.fspath(options.weights)!r} are a teacher's: it refines whole clips and answers no single "
                "action, so no environment steps it. Watch it with `worldscape dream --weights`, or give the student "
                "that `worldscape train distill` makes of it."
            )
        return open_engine(
            model,
            num_slots,
            sampler=options.sampler,
            device=options.torch_device,
            steps_per_frame=options.steps_per_frame,
            precision=options.precision,
            temperature=options.temperature,
            hands=options.hands,
        )
    except RuntimeError as error:
        if "forked subprocess" in str(error):
            raise Error(FORKED) from error
        raise
