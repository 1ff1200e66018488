"""Recorded episodes: the schema that every part of the project reads, and the reader of datasets on disk.

An episode of T steps has T+1 frames. Frame quantities (depth, pose, ...) have T+1 rows; row 0 belongs to the reset.
Step quantities (rewards, realised motion, ...) have T rows; row t belongs to the step from frame t to frame t+1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldscape.data import minari_io
from worldscape.data.infos import check_infos

MAX_DEPTH = 50.0
"""Metres; everything farther away, sky included, is stored at this depth."""

HELD_OUT_SEED = 1_000_000
"""Layout seeds from here on are for evaluation only; training data has smaller ones."""

HAND_INFOS = (
    "hand_keypoints",
    "hand_present",
    "hand_pixels",
    "hand_visible",
    "hand_state",
    "hand_command",
    "object_pose",
    "target",
    "contact",
    "grasped",
    "lifted",
)
"""Frame infos of envs with hands; arrays of hands have two rows, left and right."""

FRAME_INFOS = ("depth", "pose", "intrinsics", "camera", "goal_distance", "task_id", *HAND_INFOS)
"""Info keys kept by the recorder that describe a frame: an env that offers one must offer it at reset too."""

STEP_INFOS = ("control", "realised", "collision", "success")
"""Info keys kept by the recorder that describe a step: what reset reports for them is not used."""

SPARSE_INFOS = ("collision", "success")
"""Those that an env may leave out of a step, or of a whole episode, in which they are False."""


_KEYS = {"controls": "control"}
"""Info keys of the fields of `Episode` that have another name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One recorded trajectory of T steps. Arrays may be read-only views of the file: copy before writing.

    frames uint8 [T+1, h, w, 3]; actions [T, ...]; rewards [T]; terminations, truncations bool [T]; seed of the layout.
    Optional, None when the simulator did not offer them: depth float16 [T+1, h, w] metres, at most `MAX_DEPTH`;
    pose float32 [T+1, 4, 4] camera to world; intrinsics float32 [4] = (fx/w, fy/h, cx/w, cy/h);
    camera float32 [T+1, 6] = (x, y, z, yaw, pitch, roll); goal_distance [T+1] metres; task_id [T+1] of envs
    with several tasks; controls float32 [T, 6] commanded and realised float32 [T, 6] obtained camera motion (right,
    down, forward metres; yaw, pitch, roll radians); collision, success bool [T].
    Hands, left then right: hand_present bool [T+1, 2]; hand_keypoints float32 [T+1, 2, 21, 3] metres, world axes;
    hand_pixels [T+1, 2, 21, 2] x right, y down; hand_visible bool [T+1, 2, 21]; hand_state and hand_command
    float32 [T+1, 2, 16], see `conditioning.hands.state_to_vector`. The object they act on: object_pose
    float32 [T+1, 4, 4], target [T+1, 3] metres; contact, grasped, lifted bool [T+1].
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    seed: int | None
    controls: np.ndarray | None = None
    depth: np.ndarray | None = None
    pose: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    camera: np.ndarray | None = None
    realised: np.ndarray | None = None
    collision: np.ndarray | None = None
    success: np.ndarray | None = None
    goal_distance: np.ndarray | None = None
    task_id: np.ndarray | None = None
    hand_keypoints: np.ndarray | None = None
    hand_present: np.ndarray | None = None
    hand_pixels: np.ndarray | None = None
    hand_visible: np.ndarray | None = None
    hand_state: np.ndarray | None = None
    hand_command: np.ndarray | None = None
    object_pose: np.ndarray | None = None
    target: np.ndarray | None = None
    contact: np.ndarray | None = None
    grasped: np.ndarray | None = None
    lifted: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.rewards)


class EpisodeReader:
    """Reads a Minari dataset with image observations, recorded by us or by others.

    Args:
        dataset: folder of a Minari dataset, or the id of one in Minari's local collection.

    Raises:
        ValueError: when there is no dataset, it is empty, foreign, truncated or has no image observations.
    """

    def __init__(self, dataset: str | os.PathLike[str]) -> None:
        self.path = minari_io.resolve_dataset(dataset)
        self._folder = minari_io.DatasetFolder(self.path)
        self.metadata = self._folder.metadata
        self.observation_space = self._folder.observation_space
        self.action_space = self._folder.action_space
        self.image_key = minari_io.find_image_key(self.observation_space)
        num_episodes = self._folder.count_episodes()
        if num_episodes == 0:
            raise ValueError(f"the dataset {self.path} has no episodes; record some with `worldscape record`")
        episodes = self._folder.episode_metadata(num_episodes)
        self.lengths = np.array([episode["total_steps"] for episode in episodes])
        self.seeds = [episode.get("seed") for episode in episodes]

    @property
    def settings(self) -> dict[str, Any] | None:
        """What `worldscape record` recorded with (env, env_kwargs, policy, ...); None for datasets made by others."""
        return self.metadata.get(minari_io.SETTINGS)

    @property
    def takes_actions_for_keys(self) -> bool:
        """Whether `Episode.controls` are a guess: what the nine keys of `WorldScape-Nav-v0` command."""
        return self.action_space == spaces.Discrete(9) and "control" not in self._folder.read(0).infos

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def episode(self, index: int) -> Episode:
        """Episode `index`; raises IndexError outside the dataset and ValueError when its file is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} does not exist: the dataset {self.path} has {len(self)} episodes")
        return self._from_columns(self._folder.read(index), index)

    def require(self, *names: str) -> None:
        """Raise a ValueError unless the first episode passes `checked`."""
        self.checked(0, *names)

    def checked(self, index: int, *names: str) -> Episode:
        """Episode `index`, which must have these optional fields, each as `infos.INFOS` says; raises ValueError that
        names what is missing or wrong."""
        episode = self.episode(index)
        where = f"the dataset {self.path}" if index == 0 else f"episode {index} of the dataset {self.path}"
        keys = {name: _KEYS.get(name, name) for name in names}
        missing = [name for name in names if getattr(episode, name) is None]
        if missing:
            offered = ", ".join(f"{keys[name]!r}" for name in missing)
            raise ValueError(
                f"{where} has no {', '.join(missing)}, which this needs; record it from an env whose info offers "
                f"{offered} at reset and step (see worldscape.data.episode: FRAME_INFOS and STEP_INFOS)"
            )
        for name, key in keys.items():
            rows = getattr(episode, name)
            try:
                check_infos(key, rows[None] if name == "intrinsics" else rows, episode.frames.shape[1:3])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return episode

    def _from_columns(self, columns: minari_io.EpisodeColumns, index: int) -> Episode:
        frames = columns.observations
        if self.image_key is not None:
            frames = frames[self.image_key]
        if not isinstance(columns.actions, np.ndarray):
            raise ValueError(f"actions of type {self.action_space} are not supported; use a space that is one array")
        num_steps = len(columns.rewards)
        if len(frames) != num_steps + 1:
            raise ValueError(
                f"episode {index} of {self.path} has {len(frames)} frames for {num_steps} steps; one more frame than "
                "steps is needed, so leave this episode out"
            )
        infos = _Infos(columns.infos, num_steps)
        return Episode(
            frames=frames,
            actions=columns.actions,
            rewards=columns.rewards,
            terminations=columns.terminations,
            truncations=columns.truncations,
            seed=self.seeds[index],
            controls=self._controls(columns.actions, infos),
            depth=infos.of_frames("depth"),
            pose=infos.of_frames("pose"),
            intrinsics=infos.constant("intrinsics"),
            camera=infos.of_frames("camera"),
            realised=infos.of_steps("realised"),
            collision=infos.of_steps("collision"),
            success=infos.of_steps("success"),
            goal_distance=infos.of_frames("goal_distance"),
            task_id=infos.of_frames("task_id"),
            **{name: infos.of_frames(name) for name in HAND_INFOS},
        )

    def _controls(self, actions: np.ndarray, infos: _Infos) -> np.ndarray | None:
        """Info `control` where offered; else the nine keys' table, for envs that report `realised` motion."""
        recorded = infos.of_steps("control")
        if recorded is not None:
            return recorded
        if infos.of_steps("realised") is None or self.action_space != spaces.Discrete(9):
            return None
        from worldscape.conditioning.controls import ControlScale, discrete_controls

        return discrete_controls(ControlScale())[actions].astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Infos:
    """Looks up info columns, which hold one row per frame, or one per step in datasets made by others."""

    values: dict[str, np.ndarray]
    num_steps: int

    def of_frames(self, name: str) -> np.ndarray | None:
        value = self.values.get(name)
        return value if value is not None and len(value) == self.num_steps + 1 else None

    def of_steps(self, name: str) -> np.ndarray | None:
        value = self.values.get(name)
        if value is None or len(value) == self.num_steps:
            return value
        return value[1:]

    def constant(self, name: str) -> np.ndarray | None:
        value = self.of_frames(name)
        if value is None:
            return None
        if not np.array_equal(value, np.broadcast_to(value[0], value.shape)):
            raise ValueError(f"{name} change within an episode; record with a camera that does not zoom")
        return value[0]
