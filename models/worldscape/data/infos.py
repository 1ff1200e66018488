"""What each info of a simulator must be, key by key: the recorder refuses others, and so does who reads datasets made
by others. Wrong axes or units have the right shape: `worldscape check` finds those.
"""

from typing import NamedTuple

import numpy as np

LARGEST_INTRINSICS = 10.0
"""Of a picture 1 wide, a view of 6 degrees; larger numbers are pixels."""
RIGID = 0.01
"""By how much a rotation's columns may miss being unit vectors at right angles."""


class Wanted(NamedTuple):
    """Shape of an info, None for the picture's [h, w], and what it is in words."""

    shape: tuple[int, ...] | None
    words: str


_MOTION = "(right, down, forward) in metres and (yaw, pitch, roll) in radians"
_FLAG = "one truth value"
INFOS = {
    "depth": Wanted(None, "metres along the view axis for each pixel of the picture, 0 or more"),
    "pose": Wanted((4, 4), "camera to world, a right-handed rotation and metres, with the last row 0 0 0 1"),
    "intrinsics": Wanted(
        (4,), "(fx/w, fy/h, cx/w, cy/h) with focal lengths above 0; divide pixels by the picture's width w and height h"
    ),
    "camera": Wanted((6,), "(x, y, z) in metres and (yaw, pitch, roll) in radians"),
    "goal_distance": Wanted((), "one number, metres"),
    "task_id": Wanted((), "one whole number"),
    "hand_keypoints": Wanted((2, 21, 3), "metres in world axes, left hand, then right"),
    "hand_present": Wanted((2,), "left hand, then right"),
    "hand_pixels": Wanted((2, 21, 2), "x right, y down, left hand, then right"),
    "hand_visible": Wanted((2, 21), "left hand, then right"),
    "hand_state": Wanted((2, 16), "left hand, then right"),
    "hand_command": Wanted((2, 16), "left hand, then right"),
    "object_pose": Wanted((4, 4), "object to world, metres"),
    "target": Wanted((3,), "metres in world axes"),
    "contact": Wanted((), _FLAG),
    "grasped": Wanted((), _FLAG),
    "lifted": Wanted((), _FLAG),
    "control": Wanted((6,), f"the commanded {_MOTION}"),
    "realised": Wanted((6,), f"the obtained {_MOTION}"),
    "collision": Wanted((), _FLAG),
    "success": Wanted((), _FLAG),
}


def check_infos(key: str, rows: np.ndarray, picture: tuple[int, int]) -> None:
    """Raise a ValueError that names info `key`, what came and what is wanted, unless each of its rows [N, ...] is as
    INFOS says. picture: (height, width) in pixels."""
    fault = _find_fault(key, rows, picture)
    if fault:
        shape, words = INFOS[key]
        wanted = f"numbers {list(picture if shape is None else shape)}" if shape != () else "a number"
        raise ValueError(f"info {key!r} {fault}; it must be {wanted}: {words}")


def _find_fault(key: str, rows: np.ndarray, picture: tuple[int, int]) -> str | None:
    if rows.dtype.kind not in "biuf":
        return f"is {rows.tolist()[0]!r}, which is no number"
    shape = INFOS[key].shape
    if rows.shape[1:] != (picture if shape is None else shape):
        return f"has the shape {list(rows.shape[1:])}"
    if not np.isfinite(rows).all():
        return "holds NaN or infinity"
    if key == "depth" and rows.min() < 0:
        return f"has {rows.min():.3g} in it"
    if key == "intrinsics" and ((rows[:, :2] <= 0).any() or np.abs(rows).max() > LARGEST_INTRINSICS):
        return f"is {rows[0].tolist()}"
    return _find_skew(rows) if key == "pose" else None


def _find_skew(pose: np.ndarray) -> str | None:
    """What keeps poses [N, 4, 4] from being rigid."""
    if np.abs(pose[:, 3] - [0, 0, 0, 1]).max() > RIGID:
        return f"has the last row {pose[0, 3].tolist()}"
    rotation = pose[:, :3, :3].astype(np.float64)
    if np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max() > RIGID:
        return "has a rotation whose columns are not unit vectors at right angles"
    return "has a left-handed rotation" if np.linalg.det(rotation).min() < 0 else None
