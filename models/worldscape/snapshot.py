"""Snapshot: worlds as a value. Everything the engine knows of some slots, to be restored, branched, saved and sent.

Bytes are safetensors with JSON metadata, never pickle. A snapshot names the weights and the config that it needs, and
carries a checksum of its tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from worldscape.memory.pages import PAGE_AXES, Page

FORMAT = "worldscape-snapshot"
FORMAT_VERSION = 2
LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
PAGE_NUMBERS = ("table.pages", "table.latest")
BESIDE = "beside."  # before the names of what a caller keeps with its worlds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Worlds of R slots. kind: plain JSON, what an engine must share to go on with them (weights, config, memory).

    tensors: what each slot is, [R, ...] by name of its field; its memory's tables [R, ...] under `table.`; and the
    pages they share, each once, under `page.`. beside: tensors [R, ...] that a caller keeps with its worlds (a task's
    state, say); the engine ignores them. They are not to be written to.
    """

    kind: dict[str, Any]
    tensors: dict[str, Tensor]
    beside: dict[str, Tensor] = field(default_factory=dict)

    def with_beside(self, beside: Mapping[str, Tensor]) -> Snapshot:
        """This snapshot with these tensors [R, ...] beside it."""
        return replace(self, beside=dict(beside))

    @property
    def num_worlds(self) -> int:
        """Slots that were saved, R."""
        return len(self.tensors["steps"])

    @property
    def num_pages(self) -> int:
        """Frames that the worlds remember between them."""
        return len(self.tensors["page.frame"])

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in [*self.tensors.values(), *self.beside.values()])

    def check_kind(self, kind: dict[str, Any]) -> None:
        """Raises ValueError, naming the first difference, when an engine of `kind` cannot go on with these worlds."""
        for name in sorted(kind.keys() | self.kind.keys()):
            ours, theirs = self.kind.get(name), kind.get(name)
            if ours != theirs:
                difference = _first_difference(ours, theirs)
                raise ValueError(
                    f"this snapshot was taken with other {name} than this engine has ({difference}); restore it into "
                    "an engine with the same weights, config, memory and budget a slot."
                )

    def fitted(self, likes: dict[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        """The tensors for num_rows slots; a single world is repeated. `likes` has the names, dtypes and row shapes.

        Raises ValueError for another number of worlds, and for tensors that do not fit.
        """
        self._check_number(num_rows)
        _check_fit(self.tensors, likes)
        return {name: _repeat(name, tensor, num_rows) for name, tensor in self.tensors.items()}

    def fitted_beside(self, likes: dict[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        """What lies beside, for num_rows slots; `likes` [B, ...] has the names, dtypes and row shapes.

        Raises ValueError for another number of worlds, and when other things lie beside them, or of another shape.
        """
        self._check_number(num_rows)
        if self.beside.keys() != likes.keys():
            ours, theirs = (", ".join(sorted(names)) or "nothing" for names in (self.beside, likes))
            raise ValueError(f"this snapshot was taken with other task state ({ours}) than is kept here ({theirs}).")
        for name, like in likes.items():
            found = self.beside[name]
            if found.dtype != like.dtype or found.shape != (self.num_worlds, *like.shape[1:]):
                _fail(f"{name} is {found.dtype} {tuple(found.shape)} for {self.num_worlds} worlds")
        return {name: _repeat(name, tensor, num_rows) for name, tensor in self.beside.items()}

    def _check_number(self, num_rows: int) -> None:
        if self.num_worlds not in (1, num_rows):
            raise ValueError(f"this snapshot holds {self.num_worlds} worlds; give as many rows, not {num_rows}.")

    def to_bytes(self) -> bytes:
        """This snapshot as bytes, for `from_bytes`."""
        named = {**self.tensors, **{f"{BESIDE}{name}": tensor for name, tensor in self.beside.items()}}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": self.kind, "sha256": _digest(tensors)}
        return dump_tensors(tensors, {FORMAT: json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """The inverse of to_bytes, on the CPU. Raises ValueError for bytes that are truncated, corrupt or foreign."""
        header = _read_header(data)
        try:
            tensors = load_tensors(data)
        except SafetensorError as error:
            _fail(f"it is truncated or corrupt ({error})", error)
        if header.get("sha256") != _digest(tensors):
            _fail("it does not match its own checksum, so it is corrupt")
        if "steps" not in tensors or tensors["steps"].ndim != 1 or not isinstance(header.get("kind"), dict):
            _fail("it holds no worlds")
        beside = {name.removeprefix(BESIDE): tensors.pop(name) for name in list(tensors) if name.startswith(BESIDE)}
        return cls(header["kind"], tensors, beside)


def as_snapshot(value: Any) -> Snapshot:
    """A snapshot, or its bytes -> the snapshot. Raises ValueError for anything else."""
    if isinstance(value, bytes):
        return Snapshot.from_bytes(value)
    if not isinstance(value, Snapshot):
        raise ValueError(
            f"a {type(value).__name__} is no snapshot; give what snapshot() returned, or the bytes of its to_bytes()."
        )
    return value


def _repeat(name: str, tensor: Tensor, num_rows: int) -> Tensor:
    """Rows for num_rows slots; pages are shared, not repeated."""
    if name.startswith("page.") or len(tensor) == num_rows:
        return tensor
    return tensor.expand(num_rows, *tensor.shape[1:])


def _check_fit(tensors: dict[str, Tensor], likes: dict[str, Tensor]) -> None:
    """Raises ValueError unless names, dtypes and shapes fit, and the tables name pages that there are."""
    if tensors.keys() != likes.keys():
        _fail(f"it has other fields than this version's: {sorted(tensors.keys() ^ likes.keys())}")
    rows, pages = len(tensors["steps"]), len(tensors["page.frame"])
    for name, like in likes.items():
        axis = PAGE_AXES[Page._fields.index(name.removeprefix("page."))] if name.startswith("page.") else 0
        shape = list(like.shape)
        shape[axis] = pages if name.startswith("page.") else rows
        # A GPU may keep keys in half precision where a CPU does not.
        is_keys = name == f"page.{Page._fields[0]}"
        is_alike = tensors[name].dtype == like.dtype or is_keys and tensors[name].is_floating_point()
        if list(tensors[name].shape) != shape or not is_alike:
            _fail(f"{name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, not {like.dtype} {tuple(shape)}")
    for name in PAGE_NUMBERS:
        if ((tensors[name] < 0) | (tensors[name] > pages)).any():
            _fail(f"{name} names pages that it does not hold")


def _first_difference(ours: Any, theirs: Any, where: str = "") -> str:
    """The first setting in which two values of plain JSON differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        name = next(key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key))
        return _first_difference(ours.get(name), theirs.get(name), f"{where}{name}.")
    return f"{where.rstrip('.')} {ours!r} instead of {theirs!r}".strip()


def _read_header(data: bytes) -> dict[str, Any]:
    """The JSON that to_bytes put into the metadata, after the format was checked."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    try:
        header = json.loads(json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"][FORMAT])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _fail("they are truncated, or something else", error)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        _fail(f"they are no {FORMAT}")
    if header.get("format_version") != FORMAT_VERSION:
        _fail(f"it has format version {header.get('format_version')!r}, this version reads {FORMAT_VERSION}")
    return header


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fail(what: str, cause: BaseException | None = None) -> NoReturn:
    raise ValueError(f"these bytes are not a snapshot of worlds that can be read: {what}.") from cause
