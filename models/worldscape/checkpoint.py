"""Finished weights on disk and in memory: one safetensors file per part of the model, one config.json with checksums.

Files are float16, or of 8 bits a weight (eight_bit.py); models are float32. No pickle anywhere. Loaded models are
shared within the process for as long as somebody holds them, so treat them as read-only and copy before training or
rewriting one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from worldscape import eight_bit

if TYPE_CHECKING:
    from worldscape.config import WorldConfig
    from worldscape.splats.aggregator import Aggregator
    from worldscape.world import WorldModel

FORMAT = "worldscape-weights"
FORMAT_VERSION = 2
PARTS = ("codec", "transformer", "heads")
AGGREGATOR = "aggregator"  # saved beside the parts where there is one; no dream needs it
HAND_DECODER = "hand_decoder"  # there where hands are known
FILES = {
    "encoder": "codec.encoder",
    "decoder": "codec.decoder",
    HAND_DECODER: "codec.hand_decoder",
    "transformer": "transformer",
    "heads": "heads",
    AGGREGATOR: AGGREGATOR,
}
"""What each file holds: NAME.safetensors the tensors of this module."""
LAYOUTS = {1: {part: part for part in (*PARTS, AGGREGATOR)}, FORMAT_VERSION: FILES}
"""The same by format version; the first had the codec in one file."""
BITS = (16, 8)
"""How many a weight may take."""
CONFIG_FILE = "config.json"
DEBUG = "debug"
SHIPPED = Path(__file__).parent / "weights"

_loaded: WeakValueDictionary[tuple[str, int, str], WorldModel] = WeakValueDictionary()
_lock = threading.Lock()


def save_world(model: WorldModel, directory: str | Path, provenance: Mapping[str, Any], bits: int = 16) -> Path:
    """Write `model` (and its aggregator) to `directory`, replacing earlier weights. Returns the directory.

    bits: 16 writes float16; 8 rounds all matrices and kernels of the model to 8 bits (eight_bit.py), for half the size.
    The new directory is made beside the old one and swapped in by renaming, so a reader never sees a mixture.
    Raises ValueError when the directory holds other files, when a weight does not fit into float16, or for other bits.
    """
    if bits not in BITS:
        raise ValueError(f"weights are written in {' or '.join(map(str, BITS))} bits, not {bits!r}")
    directory = Path(directory)
    _refuse_foreign(directory)
    halves = _halve(model, tuple(FILES.values()))
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {}
    for file, module in FILES.items():
        tensors = _take(halves, module)
        if tensors:
            data = dump_tensors(eight_bit.pack(tensors) if bits == 8 else tensors)
            _write(partial / f"{file}.safetensors", data)
            files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model.config.to_dict()}
    if model.aggregator is not None:
        header[AGGREGATOR] = model.aggregator.config.to_dict()
    text = json.dumps({**header, "files": files, "provenance": dict(provenance)}, indent=1)
    _write(partial / CONFIG_FILE, text.encode())
    _swap(partial, directory)
    return directory


def load_world(name_or_path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Weights by name ("nano"), by directory or by run directory -> WorldModel: float32, eval mode, no gradients.

    "debug" is a randomly initialised model of the debug preset, always the same one, without files.
    Loading the same files for the same device twice gives the same object while the first is alive: do not change it.
    Raises ValueError for an unknown name and for corrupt, truncated or mismatched files.
    """
    path = None if name_or_path == DEBUG else resolve_weights(name_or_path)
    device = torch.device(device)
    key = (DEBUG, 0, str(device)) if path is None else (str(path), (path / CONFIG_FILE).stat().st_mtime_ns, str(device))
    with _lock:
        model = _loaded.get(key)
        if model is None:
            model = _build_debug() if path is None else _read(path)
            model = model.to(device).requires_grad_(False).eval()
            _loaded[key] = model
    return model


def load_aggregator(name_or_path: str | Path, device: str | torch.device = "cpu") -> Aggregator | None:
    """The aggregator that was trained on space with these weights: float32, eval mode, no gradients; None without one.

    Raises like load_world.
    """
    from worldscape.config import WorldConfig
    from worldscape.splats.aggregator import Aggregator
    from worldscape.splats.config import AggregatorConfig

    path = None if name_or_path == DEBUG else resolve_weights(name_or_path)
    header = {} if path is None else _read_config(path)
    if path is None or AGGREGATOR not in header:
        return None
    model, config = WorldConfig.from_dict(header["model"]), AggregatorConfig.from_dict(header[AGGREGATOR])
    with torch.random.fork_rng(devices=[]):
        aggregator = Aggregator(config, model.codec, model.transformer.width)
    tensors = _read_part(path / f"{AGGREGATOR}.safetensors", header["files"].get(AGGREGATOR))
    _check_fit(path, aggregator.state_dict(), tensors)
    aggregator.load_state_dict(tensors)
    return aggregator.to(device).requires_grad_(False).eval()


def resolve_weights(name_or_path: str | Path) -> Path:
    """The directory of a shipped name, a weights directory or a run (its weights). Raises ValueError when unknown."""
    given = Path(name_or_path)
    for candidate in (SHIPPED / given, given, given / "weights"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate.resolve()
    names = ", ".join([DEBUG, *list_weights()])
    what = "holds no weights" if given.exists() else "is neither a shipped name nor a directory"
    raise ValueError(f"weights {str(name_or_path)!r}: this {what}; choose {names}, or a directory with {CONFIG_FILE}")


def list_weights() -> list[str]:
    """Names of the weights that ship with the package."""
    return sorted(config.parent.name for config in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def read_provenance(name_or_path: str | Path) -> dict[str, Any]:
    """Where weights come from: by stage, as train() wrote it. Raises like load_world."""
    return {} if name_or_path == DEBUG else _read_config(resolve_weights(name_or_path))["provenance"]


def weights_id(model: WorldModel) -> str:
    """Checksum of config and weights, 16 hex digits; the same before saving as float16 and after loading."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for part in PARTS:
        for name, tensor in sorted(_halve(model, (part,)).items()):
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _halve(model: WorldModel, modules: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of these modules, on the CPU, floating ones as float16. Raises ValueError when one does not fit."""
    halves = {}
    for name, tensor in model.state_dict().items():
        assert name.startswith(tuple(f"{module}." for module in FILES.values())), f"{name} belongs to no file"
        if not name.startswith(tuple(f"{module}." for module in modules)):
            continue
        half = tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype, copy=True)
        if not torch.isfinite(half).all():
            raise ValueError(f"weight {name} does not fit into float16 (or is not finite): train with a lower lr")
        halves[name] = half.contiguous()
    return halves


def _take(tensors: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """Those of one module, by their names within it."""
    return {name[len(module) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}


def _refuse_foreign(directory: Path) -> None:
    own = {CONFIG_FILE, *(f"{file}.safetensors" for files in LAYOUTS.values() for file in files)}
    foreign = sorted(p.name for p in directory.iterdir() if p.name not in own) if directory.is_dir() else []
    if foreign or directory.is_file():
        what = f"holds other files ({', '.join(foreign[:3])})" if foreign else "is a file"
        raise ValueError(f"{directory} {what}: weights replace their whole directory, so give an empty or new one")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(partial: Path, directory: Path) -> None:
    """Put `partial` in the place of `directory`; between the two renames the directory is absent for an instant."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(partial, directory)
    shutil.rmtree(old, ignore_errors=True)


def _build_debug() -> WorldModel:
    from worldscape.world import debug_world

    return debug_world()


def _read(path: Path) -> WorldModel:
    from worldscape.config import WorldConfig
    from worldscape.world import WorldModel

    header = _read_config(path)
    try:
        config = WorldConfig.from_dict(header["model"])
    except (ValueError, TypeError, KeyError) as error:
        _fail(path / CONFIG_FILE, f"has a model config that this version does not read ({error})", error)
    layout, listed = LAYOUTS[header["format_version"]], header["files"]
    needed = [file for file in layout if file != AGGREGATOR and (file in listed or file != HAND_DECODER)]
    parts = {file: _read_part(path / f"{file}.safetensors", listed.get(file)) for file in needed}
    tensors = {f"{layout[file]}.{name}": tensor for file, part in parts.items() for name, tensor in part.items()}
    _check_size(path, config, sum(tensor.numel() for tensor in tensors.values()))
    with torch.random.fork_rng(devices=[]):
        model = WorldModel(config)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    wanted = model.state_dict()
    _check_fit(path, wanted, tensors)
    model.load_state_dict(tensors)
    return model


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE
    try:
        header = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        _fail(file, f"is not readable JSON ({error})", error)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        _fail(file, f"is not a {FORMAT} file")
    if header.get("format_version") not in list(LAYOUTS):
        known = " and ".join(map(str, LAYOUTS))
        _fail(file, f"has format version {header.get('format_version')!r}, this version reads {known}")
    for key in ("model", "files", "provenance"):
        if not isinstance(header.get(key), dict):
            _fail(file, f"lacks the section {key!r}")
    return header


def _read_part(file: Path, expected: Any) -> dict[str, Tensor]:
    """The tensors of one part, after size and checksum were compared with config.json."""
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        _fail(file.with_name(CONFIG_FILE), f"lists no size and checksum for {file.name}")
    try:
        data = file.read_bytes()
    except OSError as error:
        _fail(file, f"is not readable ({error})", error)
    if len(data) != expected["bytes"]:
        _fail(file, f"has {len(data)} bytes instead of {expected['bytes']}: it is truncated or another file")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        _fail(file, f"does not match its checksum in {CONFIG_FILE}: it is corrupt or another file")
    try:
        return eight_bit.unpack(load_tensors(data))
    except (SafetensorError, ValueError) as error:
        _fail(file, f"is not readable ({error})", error)


def _check_size(path: Path, config: WorldConfig, held: int) -> None:
    """Before a model is built: one much larger than what the files hold would take all memory, or for ever. Counts
    some of its matrices."""
    generator = config.transformer
    least = generator.num_layers * generator.width * (generator.width + generator.mlp_width)
    least += config.heads.width**2 + sum(width**2 for width in config.codec.widths)
    if least > held:
        _fail(path / CONFIG_FILE, f"describes a model of {least:,} numbers or more, and the files hold {held:,}")


def _check_fit(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            _fail(path, f"{'lacks' if name not in found else 'has an unknown'} tensor {name!r}")
        if wanted[name].shape != found[name].shape:
            shapes = f"{tuple(found[name].shape)}, the model config wants {tuple(wanted[name].shape)}"
            _fail(path, f"has {name!r} of shape {shapes}")


def _fail(path: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    raise ValueError(f"weights {path}: this {what}; download or save these weights again") from cause
