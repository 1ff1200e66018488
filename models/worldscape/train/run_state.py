"""What a run must remember to go on bit for bit, and how it lies on disk.

OUT/checkpoints/step_00000500 holds model, ema and optimizer as safetensors and the scalars in state.json. A checkpoint
is written beside its place, checksummed, renamed, and only then are older ones dropped; the last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldscape.train.config import TrainConfig
from worldscape.train.optim import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from worldscape.world import WorldModel

KEEP = 2
MUST_MATCH = ("seed", "batch_size", "optimizer")
ORIGINS = {"data": "recordings (--data)", "init": "weights (--init)", "teacher": "weights of a --teacher"}
TENSOR_FILES = ("model", "ema", "optimizer")


@dataclass
class RunState:
    """The moving parts of a run. step: optimiser steps done; seconds: training time so far, over all calls."""

    module: nn.Module
    average: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a checkpoint must share with the run that resumes from it."""

    stage: str
    model: dict[str, Any]
    train: dict[str, Any]
    frozen: str  # digest of the tensors that this stage does not train
    origin: dict[str, str | None]  # checksums of the recordings, of the weights it began with and of its teacher's
    world_size: int

    def to_dict(self) -> dict[str, Any]:
        # Through JSON, so that it compares equal to what is read back (tuples become lists).
        return json.loads(json.dumps(vars(self)))


def identify(
    stage_name: str,
    model: WorldModel,
    module: nn.Module,
    config: TrainConfig,
    origin: dict[str, str | None],
    world_size: int,
) -> RunIdentity:
    """The identity of a run that trains `module`, a part of `model`."""
    return RunIdentity(
        stage=stage_name,
        model=model.config.to_dict(),
        train=config.to_dict(),
        frozen=digest_frozen(model, module),
        origin=origin,
        world_size=world_size,
    )


def digest_frozen(model: nn.Module, module: nn.Module) -> str:
    """Checksum of all tensors of `model` that are not in `module`."""
    trained = {tensor.data_ptr() for tensor in module.state_dict().values()}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() not in trained:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, state: RunState, identity: RunIdentity) -> Path:
    """Write folder/step_N atomically and keep the last two. Returns its path."""
    path = folder / f"step_{state.step:08d}"
    partial = folder / f".partial_{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contents = {
        "model": state.module.state_dict(),
        "ema": state.average.state_dict(),
        "optimizer": optimizer_tensors(state.optimizers),
    }
    for name, tensors in contents.items():
        save_file(detach(tensors), partial / f"{name}.safetensors")
    files = {f"{name}.safetensors": digest_file(partial / f"{name}.safetensors") for name in contents}
    scalars = {"step": state.step, "seconds": state.seconds, "files": files, "identity": identity.to_dict()}
    (partial / "state.json").write_text(json.dumps(scalars, indent=1))
    sync_folder(partial)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_[0-9]*"))


def resume(folder: Path, state: RunState, identity: RunIdentity) -> list[str]:
    """Load the newest whole checkpoint into `state`, in place. Returns notices for the user (empty: nothing to resume).

    Raises ValueError when the checkpoint belongs to another run, or when there are checkpoints and all are damaged.
    """
    notices = []
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            scalars, tensors = read_checkpoint(path)
        except ValueError as error:
            notices.append(f"skipped: {error}")
            continue
        notices += check_identity(path, scalars["identity"], identity)
        _load_module(path, state.module, tensors["model"])
        _load_module(path, state.average, tensors["ema"])
        load_optimizer_tensors(state.optimizers, tensors["optimizer"])
        state.step, state.seconds = scalars["step"], scalars["seconds"]
        return [*notices, f"resumed from {path}"]
    if checkpoints:
        raise ValueError(f"no checkpoint in {folder} is whole ({'; '.join(notices)}): delete it or use another --out")
    return []


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The scalars and the tensors of one checkpoint. Raises ValueError when anything is missing or damaged."""
    try:
        scalars = json.loads((path / "state.json").read_text())
        for name, expected in scalars["files"].items():
            if digest_file(path / name) != expected:
                raise ValueError(f"checkpoint {path} is damaged: {name} does not match its checksum")
        return scalars, {name: load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} is damaged: {error!r}") from error


def check_identity(path: Path, found: dict[str, Any], identity: RunIdentity) -> list[str]:
    """Notices about settings that changed since the checkpoint. Raises ValueError where resuming makes no sense."""
    wanted = identity.to_dict()
    found = {"origin": wanted["origin"], **found}  # which checkpoints did not tell before
    for key in ("stage", "model", "origin", "frozen"):
        if found[key] != wanted[key]:
            raise ValueError(f"checkpoint {path} is of another run: {_describe(key, found, wanted)}; use another --out")
    changed = {key: (found["train"].get(key), value) for key, value in wanted["train"].items()}
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    for key in MUST_MATCH:
        if key in changed:
            was, now = changed[key]
            raise ValueError(f"checkpoint {path} has {key} = {was!r}, not {now!r}: keep it or use another --out")
    if found["world_size"] != identity.world_size:
        changed["world_size"] = (found["world_size"], identity.world_size)
    return [f"resuming with {key} = {now!r} (was {was!r})" for key, (was, now) in changed.items()]


def _describe(key: str, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if key == "stage":
        return f"stage {found[key]!r}, not {wanted[key]!r}"
    if key == "frozen":
        return "the weights that this stage does not train differ (was --init another one?)"
    keys = found[key].keys() | wanted[key].keys()
    names = sorted(name for name in keys if found[key].get(name) != wanted[key].get(name))
    if key == "origin":
        return f"it began with other {' and '.join(ORIGINS[name] for name in names)}"
    return f"the model config differs in {', '.join(names)}"


def _load_module(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {path} does not fit this model: {error}") from error


def detach(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies: safetensors refuses tensors that share memory."""
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def digest_file(path: Path) -> str:
    """sha256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush every file of a folder to disk, so that a rename after it survives a power cut."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
