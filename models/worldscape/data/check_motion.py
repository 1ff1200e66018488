"""Whether what a dataset says of the camera's motion agrees with its poses, for `worldscape check`.

A dream adds up controls and what of them was realised; its pictures belong to poses. Where a recording turned left and
called it right, its keys are the wrong way round in the dream, and nothing else tells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldscape.conditioning.camera import angle_difference, pose_from_state, state_from_pose
from worldscape.data.clips import share_off_control
from worldscape.data.episode import Episode

PARTS = ("right", "down", "forward", "yaw", "pitch", "roll")
"""Of a motion: metres along the axes of the levelled camera after its turn, radians."""
SMALL = np.array([0.01, 0.01, 0.01, 0.02, 0.02, 0.02])
"""Metres and radians that never matter."""
TOLERANCE = 0.25
"""By which share of the way, or of the turn, a step may be off."""
SELDOM = 0.01
"""Share of the steps that may be off whatever they are."""
TOO_MANY = 0.5
"""Share of the steps, or frames, that may not be off."""


class Motion(NamedTuple):
    """What S steps did by the poses, and by `realised`: float64 [S, 6] each."""

    posed: np.ndarray
    told: np.ndarray

    def share_off(self) -> tuple[float, list[str]]:
        """Share of the steps that move which are off in one of PARTS, and which of these are so in most of the steps
        in which they matter."""
        size = np.stack([np.repeat(_lengths(of), 3, axis=1) for of in self]).max(0)  # of the way and the turn, [S, 6]
        allowed, moves = np.maximum(SMALL, TOLERANCE * size), (size > SMALL).any(1)
        matters = np.maximum(np.abs(self.posed), np.abs(self.told))[moves] > allowed[moves]
        off = (np.abs(self.posed - self.told) > allowed)[moves]
        counts = zip(PARTS, off.sum(0), matters.sum(0), strict=True)
        wrong = [name for name, missed, all_of in counts if missed > max(TOO_MANY * all_of, SELDOM * len(off))]
        return float(off.any(1).mean()) if len(off) else 0.0, wrong


def find_motion(episodes: list[Episode]) -> Motion:
    """The motion of every step, by the poses and as it was told."""
    posed = [motion_between(*(_poses(episode)[part] for part in (slice(-1), slice(1, None)))) for episode in episodes]
    told = [np.asarray(episode.realised, np.float64) for episode in episodes]
    return Motion(torch.cat(posed).numpy(), np.concatenate(told))


def motion_between(before: Tensor, after: Tensor) -> Tensor:
    """Poses [S, 4, 4] one step apart -> the controls [S, 6] that lead from the first to the second ones: the inverse of
    `apply_control`."""
    here, there = state_from_pose(before), state_from_pose(after)
    way, (sin, cos) = there[:, :3] - here[:, :3], (there[:, 3].sin(), there[:, 3].cos())
    right, forward = cos * way[:, 0] - sin * way[:, 2], sin * way[:, 0] + cos * way[:, 2]
    return torch.cat([torch.stack([right, way[:, 1], forward], 1), angle_difference(there, here)], 1)


def check_motion(episodes: list[Episode], is_guess: bool) -> tuple[dict[str, float], list[str], list[str]]:
    """Episodes with poses, cameras, controls and realised motion -> numbers by name, and in words what is wrong and
    what looks wrong. is_guess: controls are those of the nine keys, and the dataset says nothing of them."""
    metrics, problems, warnings = {}, [], []
    metrics["off_control"] = share = share_off_control(episodes)
    if share > TOO_MANY and is_guess:
        problems.append("this has no info 'control', and 'realised' is not what the nine keys do")
    elif share > TOO_MANY:
        warnings.append(
            "most steps moved, without a collision, otherwise than 'control' says: has it the scale of 'realised'?"
        )
    metrics["off_pose"], parts = find_motion(episodes).share_off()
    if parts:
        problems.append(
            f"poses moved otherwise than 'realised' says ({', '.join(parts)}): it is (right, down, forward) in metres "
            "along the axes of the levelled camera, after its turn, and (yaw, pitch, roll) in radians, positive to the "
            "right, up and clockwise"
        )
    metrics["off_camera"] = share = _share_off_camera(episodes)
    if share > TOO_MANY:
        problems.append(
            "'camera' is not the place and the angles of 'pose': (x, y, z) in metres, and (yaw, pitch, roll) in "
            "radians with yaw positive to the right and pitch up, about y, x and z in this order"
        )
    return metrics, problems, warnings


def _share_off_camera(episodes: list[Episode]) -> float:
    """Share of the frames whose `camera` stands or looks elsewhere than their pose."""
    told = torch.from_numpy(np.concatenate([np.asarray(episode.camera, np.float64) for episode in episodes]))
    miss = (pose_from_state(told) - torch.cat([_poses(episode) for episode in episodes]))[:, :3].abs().amax(1)
    return float((miss > torch.from_numpy(SMALL[[3, 3, 3, 0]])).any(1).double().mean())


def _poses(episode: Episode) -> Tensor:
    return torch.from_numpy(np.asarray(episode.pose, np.float64))


def _lengths(motion: np.ndarray) -> np.ndarray:
    """Of the way and of the turn of motions [S, 6]: [S, 2]."""
    return np.linalg.norm(motion.reshape(-1, 2, 3), axis=2)
