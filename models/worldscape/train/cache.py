"""Tensors that are slow to make and depend on a dataset and a model: made once, kept beside the dataset.

The file's name is a digest of everything its content depends on, so nothing has to be invalidated by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldscape.atomic import whole_file
from worldscape.data.clips import Datasets, dataset_paths


def cached(
    dataset: Datasets, settings: Sequence[Any], modules: Sequence[nn.Module], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` returns, or what it returned for the same settings (plain JSON) and weights of `modules`.

    It lies beside the first of several datasets.
    """
    first, *others = [Path(path) for path in dataset_paths(dataset)]
    path = _path(first, [*settings, *(other.name for other in others)], modules)
    if not path.exists():
        tensors = make()
        with whole_file(path) as partial:
            save_file(tensors, partial)
    return load_file(path)


def _path(dataset: Path, settings: Sequence[Any], modules: Sequence[nn.Module]) -> Path:
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return dataset.parent / f".{dataset.name}-prepared" / f"{digest.hexdigest()[:16]}.safetensors"
