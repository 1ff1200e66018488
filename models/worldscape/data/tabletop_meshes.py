"""The hand's shells, coarser: what a picture of 256 pixels does not show is not drawn.

Half of the triangles go, and an eighth of the time of a picture with them.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

CELL = 0.0025  # metres; vertices closer than this become one

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


class Mesh(NamedTuple):
    """vertices float64 [V, 3] in metres, faces int32 [F, 3]."""

    vertices: np.ndarray
    faces: np.ndarray


@lru_cache(maxsize=32)
def load_coarse_mesh(path: Path) -> Mesh:
    """A binary STL file in millimetres -> its mesh with the vertices of each cell of a grid merged into their mean.

    Raises ValueError when the file is no binary STL.
    """
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little")
    if len(data) != 84 + count * _TRIANGLE.itemsize:
        raise ValueError(f"{path} is not a binary STL file; install gymnasium-robotics again.")
    corners = np.frombuffer(data, _TRIANGLE, count, 84)["corners"].reshape(-1, 3).astype(np.float64) / 1000
    _, cell = np.unique(np.floor(corners / CELL), axis=0, return_inverse=True)
    cell = cell.ravel()
    sums = np.stack([np.bincount(cell, corners[:, axis]) for axis in range(3)], -1)
    faces = cell.reshape(-1, 3)
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return Mesh(sums / np.bincount(cell)[:, None], faces[whole].astype(np.int32))
