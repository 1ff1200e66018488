"""Judges that are trained once, and kept in a file as long as config and source are what they were trained with."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldscape.atomic import whole_file
from worldscape.progress import Progress

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """Width of the first layer, and how it is trained: pairs of frames of episodes on training layouts."""

    name: ClassVar[str] = "judge"
    width: int = 32
    num_episodes: int = 48
    num_steps: int = 96
    first_seed: int = 900_000
    batch_size: int = 64
    updates: int = 1200
    lr: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("num_episodes", "num_steps", "batch_size", "updates"):
            if getattr(self, field) < 1:
                raise ValueError(f"{self.name} with {field} {getattr(self, field)}: it must be at least 1")


def fit(kind: Callable[[int], Model], config: JudgeConfig, draw_loss: Callable[[Model], Tensor]) -> Model:
    """A new judge of this kind after config.updates steps on `draw_loss`, its loss on a batch drawn each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = kind(config.width)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.updates)
    with Progress(f"{config.name.replace(' ', '-')} updates", total=config.updates) as progress:
        for _ in range(config.updates):
            loss = draw_loss(model)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.update()
    return model.eval()


def load_or_make(path: Path | None, model: Model, fingerprint: str, make: Callable[[], Model]) -> Model:
    """`model` with the weights kept at `path` when they are whole and their fingerprint fits, else what `make` returns,
    kept there.

    Without a path nothing is read or written.
    """
    if path is not None and path.is_file():
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("config") == fingerprint:
                    model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
                    return model.eval()
        except SafetensorError as error:
            print(f"{path} is damaged ({error}): the judge is trained anew", file=sys.stderr)
    made = make()
    if path is not None:
        with whole_file(path) as partial:
            save_file(made.state_dict(), partial, metadata={"config": fingerprint})
    return made


def fingerprint_of(config: Any, *sources: str) -> str:
    """Digest of a config dataclass, of the modules `sources` that train with it, and of this one."""
    settings = json.dumps(asdict(config), sort_keys=True).encode()
    parts = [settings, *(Path(source).read_bytes() for source in (*sources, __file__))]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
