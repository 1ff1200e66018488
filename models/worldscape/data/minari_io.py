"""Reading Minari datasets from disk: those written by `minari_writer`, and those made by others.

Lossless arrow files are mapped into memory and their arrays are views of the file; all else goes through Minari.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage

METADATA = "metadata.json"
SETTINGS = "worldscape_record"
"""Key in the metadata under which the recorder keeps what it recorded with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeColumns:
    """What one episode's file holds: T steps, T+1 observations, infos with a row per observation."""

    observations: Any
    actions: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    infos: dict[str, np.ndarray]


def find_image_key(space: spaces.Space) -> str | None:
    """Which key of `space` holds the image; None when the space is the image itself.

    Raises ValueError unless there is exactly one Box of uint8 [h, w, 3].
    """
    if _is_image(space):
        return None
    images = [key for key, value in space.items() if _is_image(value)] if isinstance(space, spaces.Dict) else []
    if len(images) != 1:
        raise ValueError(
            f"the observation space {space} has {len(images)} images; exactly one Box of uint8 [h, w, 3] is needed: "
            "wrap the env, for instance with gymnasium.wrappers.AddRenderObservation"
        )
    return images[0]


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def resolve_dataset(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of the dataset: the path itself, its `data` subfolder, or a Minari id; raises ValueError otherwise."""
    path = Path(name_or_path).expanduser()
    candidates = [path, path / "data"]
    if re.fullmatch(r"[-\w/]+-v\d+", str(name_or_path)) and not path.exists():
        local = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))
        candidates.append(local / str(name_or_path) / "data")
    for candidate in candidates:
        if (candidate / METADATA).is_file():
            return candidate
    state = "holds no Minari dataset (no metadata.json)" if path.exists() else "does not exist"
    raise ValueError(f"the dataset {path} {state}; record one with `worldscape record --env ID --out {path}`")


def import_storage() -> type[MinariStorage]:
    """Minari's storage class; raises ImportError that names the extra."""
    try:
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise ImportError("datasets need Minari; install it with `pip install 'worldscape[sim]'`") from error
    return MinariStorage


class DatasetFolder:
    """A Minari dataset on disk, read only.

    Args:
        path: folder that holds the dataset's metadata.json.

    Raises:
        ValueError: when the folder is not a Minari dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = read_metadata(path)
        self.storage = import_storage().read(path)
        self.observation_space = self.storage.observation_space
        self.action_space = self.storage.action_space

    @property
    def has_folders(self) -> bool:
        """Whether each episode has a folder of its own (arrow, parquet)."""
        return self.metadata["data_format"] != "hdf5"

    def count_folders(self) -> int:
        """Number of whole episodes that are in place: the unbroken run of episode folders from 0."""
        count = 0
        while (self.path / str(count) / METADATA).is_file():
            count += 1
        return count

    def count_episodes(self) -> int:
        """Number of whole episodes; raises ValueError when there are fewer than the metadata says."""
        expected = self.metadata["total_episodes"]
        count = self.count_folders() if self.has_folders else expected
        if count < expected:
            raise ValueError(
                f"{self.path} is truncated: episode {count} of {expected} is missing; run the same "
                "`worldscape record` command again to fill it in, or copy the dataset again"
            )
        return count

    def episode_metadata(self, num_episodes: int) -> list[dict[str, Any]]:
        """Metadata (`id`, `total_steps`, mostly `seed`) of the first `num_episodes` episodes; raises ValueError for a
        damaged file."""
        if self.has_folders:
            return [read_episode_metadata(self.path / str(index)) for index in range(num_episodes)]
        return list(self.storage.get_episode_metadata(range(num_episodes)))

    def read(self, index: int) -> EpisodeColumns:
        """One episode; raises ValueError when its file is damaged."""
        import pyarrow

        try:
            if self.metadata["data_format"] == "arrow" and not self.storage.jpeg_encoding:
                return self._map(index)
            episode = next(iter(self.storage.get_episodes([index])))
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"episode {index} of {self.path} is damaged ({error}); delete its folder and run the same "
                "`worldscape record` command again"
            ) from error
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        return EpisodeColumns(infos=episode.get("infos") or {}, **{name: episode[name] for name in names})

    def _map(self, index: int) -> EpisodeColumns:
        import pyarrow

        files = sorted((self.path / str(index)).glob("*.arrow"))
        if len(files) != 1:
            raise OSError(f"{len(files)} data files instead of one")
        with pyarrow.memory_map(str(files[0])) as source:
            table = pyarrow.ipc.open_file(source).read_all()
        columns = {name: _single_chunk(table.column(name)) for name in table.column_names}
        return EpisodeColumns(
            observations=_decode_space(self.observation_space, columns["observations"]),
            actions=_decode_space(self.action_space, columns["actions"][:-1]),
            rewards=_to_numpy(columns["rewards"][:-1], ()),
            terminations=_to_numpy(columns["terminations"][:-1], ()),
            truncations=_to_numpy(columns["truncations"][:-1], ()),
            infos=_decode_infos(columns["infos"]) if "infos" in columns else {},
        )


def read_episode_metadata(episode: Path) -> dict[str, Any]:
    """The metadata in an episode's folder; raises ValueError that names the file when it is damaged."""
    remedy = "delete the episode's folder and run the same `worldscape record` command again"
    metadata = _read_json(episode / METADATA, remedy)
    if not isinstance(metadata.get("total_steps"), int):
        raise ValueError(f"{episode / METADATA} is damaged (it tells no total_steps); {remedy}")
    return metadata


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged (it holds no table); {remedy}")
    return values


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the dataset at `path`; raises ValueError when it is not that of a Minari dataset."""
    metadata = _read_json(path / METADATA, "restore it or record the dataset again")
    missing = {"data_format", "total_episodes", "total_steps"} - set(metadata)
    if missing:
        raise ValueError(
            f"{path} is not a Minari dataset: its metadata.json lacks {', '.join(sorted(missing))}; "
            "point to a folder written by `worldscape record` or by Minari"
        )
    return metadata


def info_names(episode: Path) -> set[str]:
    """Names of the infos in the folder of an episode as the recorder writes it."""
    import pyarrow

    (file,) = episode.glob("*.arrow")
    with pyarrow.memory_map(str(file)) as source:
        schema = pyarrow.ipc.open_file(source).schema
    return {field.name for field in schema.field("infos").type} if "infos" in schema.names else set()


def _single_chunk(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_space(space: spaces.Space, array: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _decode_space(value, array.field(key)) for key, value in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_decode_space(value, array.field(str(i))) for i, value in enumerate(space))
    if space.shape is None:
        return array.to_pylist()
    return _to_numpy(array, space.shape)


def _decode_infos(array: Any) -> dict[str, np.ndarray]:
    infos = {}
    for index, field in enumerate(array.type):
        shape = (field.metadata or {}).get(b"shape", b"").decode()
        infos[field.name] = _to_numpy(array.field(index), tuple(int(size) for size in shape.split(",") if size))
    return infos


def _to_numpy(array: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = array.flatten() if hasattr(array, "flatten") and array.type.num_fields else array
    return values.to_numpy(zero_copy_only=False).reshape(len(array), *shape)
