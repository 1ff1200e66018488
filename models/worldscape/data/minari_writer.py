"""Writing Minari datasets: episodes appended by several processes, whole episodes only.

Lossless, with Minari's own arrow storage, one folder per episode. An episode is written in a scratch folder and moved
by renames; then the dataset's metadata is replaced by one more: whatever is killed whenever, what is left is a dataset.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium import spaces

from worldscape.atomic import whole_file
from worldscape.data.episode import SPARSE_INFOS
from worldscape.data.minari_io import (
    METADATA,
    SETTINGS,
    DatasetFolder,
    import_storage,
    info_names,
    read_episode_metadata,
)

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from minari.data_collector import EpisodeBuffer

_PENDING = ".pending"
_SCRATCH = ".scratch-"


class DatasetWriter:
    """Appends episodes to a dataset in order of their index, each by one rename.

    Args:
        path: folder of the dataset; created when missing, continued when the same `settings` recorded it.
        observation_space, action_space: of the env.
        spec: of the env, so that Minari can recover it; left out when it cannot be written as JSON.
        settings: everything that determines the content of an episode; plain JSON types.

    Raises:
        ValueError: when `path` is in use by something else, or was recorded with other settings or spaces.
    """

    def __init__(
        self,
        path: Path,
        *,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        spec: EnvSpec | None,
        settings: dict[str, Any],
    ) -> None:
        self.path = path
        if not (path / METADATA).exists():
            _create_dataset(path, observation_space, action_space, spec, settings)
        folder = DatasetFolder(path)
        _check_same(folder, observation_space, action_space, settings)
        (path / _PENDING).mkdir(exist_ok=True)
        _remove_dead_scratch(path)
        self.metadata = folder.metadata
        self.num_episodes = self.num_steps = self.num_bytes = 0
        self.adopt_pending()

    def is_done(self, index: int) -> bool:
        """Whether episode `index` is on disk, in place or waiting for its predecessors."""
        return (self.path / str(index)).exists() or (self.path / _PENDING / str(index)).exists()

    def adopt_pending(self) -> None:
        """Move the finished episodes whose predecessors are all there into place and count them in the metadata, each
        before the next is moved: who is killed leaves one uncounted at most.

        Raises ValueError for an episode whose infos are others than the first one's, and removes it.
        """
        while self.is_done(self.num_episodes):
            folder = self.path / str(self.num_episodes)
            is_new = not folder.exists()
            if is_new:
                self._check_infos(self.path / _PENDING / folder.name)
                os.rename(self.path / _PENDING / folder.name, folder)
            self.num_steps += read_episode_metadata(folder)["total_steps"]
            self.num_bytes += _size(folder)
            self.num_episodes += 1
            if is_new:
                self._count()
        self._count()

    def _check_infos(self, pending: Path) -> None:
        if self.num_episodes == 0:
            return
        names, first = info_names(pending), info_names(self.path / "0")
        differing = (names ^ first) - set(SPARSE_INFOS)
        if differing:
            shutil.rmtree(pending)
            has, lacks = (pending.name, "0") if differing & names else ("0", pending.name)
            raise ValueError(
                f"the env's info had {', '.join(map(repr, sorted(differing)))} in episode {has} but not in {lacks}; it "
                "must offer the same infos in every episode, or none"
            )

    def _count(self) -> None:
        """Write how many episodes are in place, unless the metadata says so already."""
        counted = {
            "total_episodes": self.num_episodes,
            "total_steps": self.num_steps,
            "dataset_size": round(self.num_bytes / 1e6, 1),
        }
        if any(self.metadata.get(name) != value for name, value in counted.items()):
            self.metadata.update(counted)
            _write_json(self.path / METADATA, self.metadata)


class EpisodeWriter:
    """Writes finished episodes for a `DatasetWriter` to adopt; one per worker process.

    Args:
        path: folder of the dataset, made by a `DatasetWriter`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Absolute, because Minari's arrow storage joins a relative path to itself.
        self._scratch = path.resolve() / f"{_SCRATCH}{os.getpid()}"
        self.close()  # a dead process may have had our id
        folder = DatasetFolder(path)
        self._storage = import_storage().new(
            self._scratch, folder.observation_space, folder.action_space, data_format="arrow", jpeg_encoding=False
        )

    def write(self, index: int, buffer: EpisodeBuffer) -> None:
        """Write one episode, all of it or nothing; an episode that another process finished first stays.

        Raises OSError when the disk is full; the unfinished files are removed.
        """
        try:
            self._storage.update_episodes([buffer])
        except OSError:
            self.close()
            raise
        target = self.path / _PENDING / str(index)
        if target.exists() or (self.path / str(index)).exists():
            shutil.rmtree(self._scratch / str(index))
        else:
            os.rename(self._scratch / str(index), target)

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self._scratch, ignore_errors=True)


def _check_same(
    folder: DatasetFolder, observation_space: spaces.Space, action_space: spaces.Space, settings: dict[str, Any]
) -> None:
    recorded = folder.metadata.get(SETTINGS)
    if recorded is None:
        raise ValueError(f"{folder.path} holds a dataset that `worldscape record` did not make; choose another --out")
    changed = [name for name in settings if recorded.get(name) != settings[name]]
    if changed:
        names = ", ".join(f"{name} {recorded.get(name)!r} (now {settings[name]!r})" for name in changed)
        raise ValueError(f"{folder.path} was recorded with {names}; use the same settings or choose another --out")
    if (folder.observation_space, folder.action_space) != (observation_space, action_space):
        raise ValueError(f"{folder.path} was recorded from an env with other spaces; choose another --out")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _create_dataset(
    path: Path,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    spec: EnvSpec | None,
    settings: dict[str, Any],
) -> None:
    """Write an empty dataset beside `path` and rename it, so that `path` never holds half of one."""
    storage_class = import_storage()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not a dataset; choose a new or empty folder for --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".{path.name}.new-{os.getpid()}"
    try:
        storage = storage_class.new(
            new, observation_space, action_space, _json_spec(spec), "arrow", jpeg_encoding=False
        )
        name = re.sub(r"[^-\w]", "-", re.sub(r"-v\d+$", "", path.name))
        identity = {"dataset_id": f"{name}-v0", "minari_version": version("minari"), SETTINGS: settings}
        storage.update_metadata(identity)
        os.rename(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _json_spec(spec: EnvSpec | None) -> EnvSpec | None:
    """The spec itself when it can be written as JSON, else None (entry points that are functions cannot)."""
    try:
        if spec is not None:
            spec.to_json()
    except (TypeError, ValueError):
        return None
    return spec


def _remove_dead_scratch(path: Path) -> None:
    """Remove what killed workers left behind; folders of live processes stay."""
    for scratch in path.glob(f"{_SCRATCH}*"):
        if not _is_alive(int(scratch.name.removeprefix(_SCRATCH))):
            shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value))
