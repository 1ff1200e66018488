"""Judges that are trained once: kept in a file, as long as config and source are what they were trained with."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def load_or_make(path: Path | None, model: Model, fingerprint: str, make: Callable[[], Model]) -> Model:
    """`model` with the weights kept at `path` when their fingerprint fits, else what `make` returns, kept there.

    Without a path nothing is read or written.
    """
    if path is not None and path.is_file():
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("config") == fingerprint:
                model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
                return model.eval()
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(made.state_dict(), path, metadata={"config": fingerprint})
    return made


def fingerprint_of(config: Any, source: str) -> str:
    """Digest of a config dataclass and of the module `source` that trains with it."""
    settings = json.dumps(asdict(config), sort_keys=True).encode()
    return hashlib.sha256(settings + Path(source).read_bytes()).hexdigest()[:16]
