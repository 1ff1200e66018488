"""Gaussians as a `.ply` file in the vertex layout of 3DGS, which ordinary viewers open; binary little endian, float32.

x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3: opacity is a logit, scales are logarithms, rotations
(w, x, y, z), and f_rest holds all coefficients of red, then of green, then of blue.
"""

import os
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from worldscape.atomic import whole_file
from worldscape.splats.gaussians import Gaussians, check_gaussians, is_drawable

COMMENTS = ("comment axes x right, y down, z forward", "comment unit metre")
NORMALS = ("nx", "ny", "nz")  # always zero; some viewers want them
TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1"}
TYPES |= {"char": "i1", "int8": "i1", "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2"}
TYPES |= {"int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4"}


def save_ply(gaussians: Gaussians, path: str | os.PathLike[str]) -> int:
    """Write one scene (B = 1) to `path`, all of it or nothing -> number of Gaussians written.

    Positions are in world axes and metres, as comments in the header say. Gaussians that cannot be drawn
    (`is_drawable`) are left out. Raises ValueError for several scenes in one.
    """
    check_gaussians(gaussians)
    if len(gaussians.means) != 1:
        raise ValueError(f"{len(gaussians.means)} scenes do not fit into one .ply; save them one by one.")
    keep = is_drawable(gaussians)[0]
    parts = [part[0][keep].detach().cpu().numpy() for part in gaussians]
    names = attribute_names(gaussians.harmonics.shape[2])
    vertices = np.zeros(len(parts[0]), dtype=[(name, "<f4") for name in names])
    for name, values in zip(names, _columns(*parts), strict=True):
        vertices[name] = values
    lines = [f"element vertex {len(vertices)}", *(f"property float {name}" for name in names)]
    header = "\n".join(["ply", "format binary_little_endian 1.0", *COMMENTS, *lines, "end_header\n"])
    with whole_file(path) as partial:
        partial.write_bytes(header.encode("ascii") + vertices.tobytes())
    return len(vertices)


def load_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read a 3DGS `.ply` -> one scene, float32 [1, N, ...]; further properties are ignored.

    Raises ValueError for a file that is none, is cut short, or has harmonics above degree 1.
    """
    path = Path(path)
    vertices = _read_vertices(path)
    found = vertices.dtype.names or ()
    num_rest = sum(name.startswith("f_rest_") for name in found)
    if num_rest not in (0, 9):
        raise ValueError(f"{path} has {num_rest} f_rest properties; this version draws harmonics of degree 0 or 1.")
    names = attribute_names(1 + num_rest // 3)
    missing = [name for name in names if name not in found and name not in NORMALS]
    if missing:
        raise ValueError(f"{path} lacks the 3DGS properties {', '.join(missing)}; export Gaussians, not points.")

    def columns(prefix: str) -> torch.Tensor:
        chosen = [vertices[name].astype(np.float32) for name in names if name.startswith(prefix)]
        return torch.from_numpy(np.stack(chosen, -1)) if chosen else torch.zeros(len(vertices), 0)

    rest = rearrange(columns("f_rest_"), "n (c k) -> n k c", c=3)
    position = torch.from_numpy(np.stack([vertices[axis].astype(np.float32) for axis in "xyz"], -1))
    harmonics = torch.cat([columns("f_dc_")[:, None], rest], 1)
    parts = (position, columns("rot_"), columns("scale_"), columns("opacity")[:, 0], harmonics)
    return Gaussians(*(part[None] for part in parts))


def attribute_names(num_harmonics: int) -> list[str]:
    """The vertex properties in the order of 3DGS, for K = 1 or 4 harmonics."""
    rest = [f"f_rest_{i}" for i in range(3 * (num_harmonics - 1))]
    colours = [f"f_dc_{i}" for i in range(3)]
    scales, rotations = [f"scale_{i}" for i in range(3)], [f"rot_{i}" for i in range(4)]
    return ["x", "y", "z", *NORMALS, *colours, *rest, "opacity", *scales, *rotations]


def _columns(means, quaternions, log_scales, opacity_logits, harmonics) -> np.ndarray:
    """The values in the order of attribute_names, [number of properties, N]."""
    normals = np.zeros_like(means)
    rest = rearrange(harmonics[:, 1:], "n k c -> n (c k)")
    rows = [means, normals, harmonics[:, 0], rest, opacity_logits[:, None], log_scales, quaternions]
    return np.concatenate(rows, 1).T


def _read_vertices(path: Path) -> np.ndarray:
    """The vertex element, whose first element it must be, as a structured array."""
    head, mark, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not mark or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise ValueError(f"{path} is no binary little endian .ply; convert it first.")
    words = [line.split() for line in lines[2:] if line and not line.startswith(("comment", "obj_info"))]
    elements = [index for index, word in enumerate(words) if word[0] == "element"]
    if not elements or words[elements[0]][1] != "vertex":
        raise ValueError(f"{path} does not begin with vertices; it holds no Gaussians.")
    last = elements[1] if len(elements) > 1 else len(words)
    properties = words[elements[0] + 1 : last]
    if any(len(word) != 3 or word[1] not in TYPES for word in properties):
        raise ValueError(f"{path} has vertex properties that are no plain numbers; it holds no Gaussians.")
    dtype, count = np.dtype([(name, TYPES[kind]) for _, kind, name in properties]), int(words[elements[0]][2])
    if len(body) < count * dtype.itemsize:
        raise ValueError(f"{path} is cut short: {len(body)} bytes for {count} Gaussians of {dtype.itemsize}.")
    return np.frombuffer(body, dtype, count)
