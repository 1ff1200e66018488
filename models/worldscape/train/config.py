"""TrainConfig: the numbers of one training run, checked once, and how text from the command line changes them.

A stage that needs more numbers subclasses TrainConfig (and ends its own `__post_init__` with
`TrainConfig.__post_init__(self)`: the zero-argument `super()` does not work in a dataclass with slots).
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from worldscape.config import MemoryConfig
    from worldscape.data.clips import FrameStore

SCHEDULES = ("wsd", "cosine")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
DEBUG: dict[str, Any] = {
    "steps": 20,
    "lr": 1e-3,
    "warmup": 2,
    "sample_every": 20,
    "checkpoint_every": 10,
    "log_every": 5,
}
"""What the preset `debug` of every stage sets: a run of seconds, with all that a long one does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run; every value is checked, unknown keys are errors.

    steps: optimiser steps in all; the learning-rate schedule is a pure function of the step and of this number.
    batch_size: clips (or frames) that each process takes per step.
    lr: peak learning rate; warmup: steps of linear warm-up; schedule: "wsd" (flat, then linear to 0 over the last
        `decay_fraction` of the steps) or "cosine" (to 0).
    weight_decay: of matrices and convolutions, never of vectors; betas: of AdamW; clip: largest gradient norm (0: off).
    ema: decay of the averaged weights, ramped up as (1 + step) / (10 + step); 0 keeps the plain weights.
    optimizer: "adamw", or "muon" for the matrices of the repeated blocks with AdamW for all else.
    precision: "bf16" runs the loss under autocast; parameters and gradients stay float32.
    compile: torch.compile the trained submodule. device: "auto" takes the GPU when there is one.
    checkpoint_every, sample_every, log_every: steps; sample_every 0 draws no samples.
    minutes: stop early (resumable) after so many minutes in this call; 0: no limit. The schedule ignores it.
    lease: minutes of training, all calls together, at which the run is finished if its steps are not done before; the
        schedule falls towards the earlier of both ends. For machines that are lent; the result depends on their speed.
    threads: intra-op threads inside train(); 0 leaves the caller's setting. loaders: processes that draw batches ahead,
        for a GPU that would wait for them; 0 draws each when it is needed. tensorboard: write OUT/tb.
    """

    steps: int = 1000
    batch_size: int = 16
    lr: float = 3e-4
    warmup: int = 100
    schedule: str = "wsd"
    decay_fraction: float = 0.4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.999
    optimizer: str = "adamw"
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    checkpoint_every: int = 500
    sample_every: int = 500
    log_every: int = 20
    minutes: float = 0.0
    lease: float = 0.0
    seed: int = 0
    threads: int = 0
    loaders: int = 0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "warmup",
            "weight_decay",
            "clip",
            "sample_every",
            "minutes",
            "lease",
            "seed",
            "threads",
            "loaders",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in (field.name for field in fields(self)):
            if isinstance(getattr(self, name), float):
                require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        require(0 <= self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "in [0, 1]")
        is_pair = len(self.betas) == 2 and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas)
        require(is_pair, "betas", self.betas, "two numbers in [0, 1)")
        for name, allowed in _CHOICES.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {', '.join(allowed)}")

    def check_episodes(self, store: FrameStore, memory: MemoryConfig) -> None:
        """Raise ValueError where no episode to train on is long enough for the stage."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of to_dict. Raises ValueError for unknown keys."""
        return override(cls(), values)


_CHOICES = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "precision": PRECISIONS, "device": DEVICES}
Config = TypeVar("Config", bound=TrainConfig)


def require(is_fine: bool, name: str, value: object, rule: str) -> None:
    """Raise ValueError, naming setting, value and rule, unless it is fine."""
    if not is_fine:
        raise ValueError(f"{name} = {value!r} is not allowed: it must be {rule}; change it with --set {name}=...")


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of config with `values` put in; text is read as the field's own type.

    Raises ValueError for an unknown key or a value that does not read as its type.
    """
    known = {field.name for field in fields(config)}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown config key {key!r}: choose one of {', '.join(sorted(known))}")
    hints = typing.get_type_hints(type(config))
    return replace(config, **{key: _read(key, value, hints[key]) for key, value in values.items()})


def parse_assignments(texts: list[str], option: str = "--set") -> dict[str, str]:
    """["lr=1e-3", "clip=0"] -> {"lr": "1e-3", "clip": "0"}. Raises ValueError where there is no "="."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {text!r} does not read as key=value: write for example {option} lr=3e-4")
        pairs[key.strip()] = value.strip()
    return pairs


def _read(key: str, value: Any, hint: Any) -> Any:
    """The value as its field's type: text is parsed as JSON where it reads so, whole numbers pass for floats."""
    if isinstance(value, str) and hint is not str:
        try:
            value = json.loads(value.lower())
        except json.JSONDecodeError as error:
            raise _misread(key, value, hint) from error
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if typing.get_origin(hint) is tuple:
        raise _misread(key, value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise _misread(key, value, hint)
    return value


def _misread(key: str, value: object, hint: Any) -> ValueError:
    kind = "a list such as [0.9, 0.95]" if typing.get_origin(hint) is tuple else getattr(hint, "__name__", hint)
    return ValueError(f"{key} = {value!r} does not read as {kind}: give a value of that type")
