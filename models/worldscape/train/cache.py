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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldscape.atomic import whole_file
from worldscape.data.clips import Datasets, dataset_paths


def cached(
    dataset: Datasets, settings: Sequence[Any], modules: Sequence[nn.Module], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` returns, or what it returned for the same settings (plain JSON) and weights of `modules`.

    The settings must tell what was recorded (FrameStore.recording). It lies beside the first of several datasets. Where
    nothing can be written it is not kept, which is said; a file that is damaged is made anew.
    """
    path = _path(dataset, settings, modules)
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError:
            print(f"{path} is damaged: it is made anew", flush=True)
    tensors = make()
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        print(f"what was prepared of {dataset} is not kept for another run: {error}", flush=True)
        return tensors
    return load_file(path)


def digest(tensor: Tensor) -> str:
    """Digest of a tensor's numbers, for settings."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _path(dataset: Datasets, settings: Sequence[Any], modules: Sequence[nn.Module]) -> Path:
    first = Path(dataset_paths(dataset)[0]).resolve()
    known = hashlib.sha256(json.dumps(list(settings)).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            known.update(name.encode() + tensor.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return first.parent / f".{first.name}-prepared" / f"{known.hexdigest()[:16]}.safetensors"
