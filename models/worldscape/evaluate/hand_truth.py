"""What the tabletop's simulator knows of the judged episodes beside pictures and cameras."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import camera_rays
from worldscape.conditioning.hand_model import BONES
from worldscape.conditioning.hands import HAND_ACTION_WIDTH
from worldscape.engine_frames import RecordedHands

MOVED = 0.02
"""Metres from where it stood at the start at which an object counts as moved."""
FLESH = 0.03  # metres from a bone within which a surface belongs to the hand (the back of the palm is that thick)
ABOVE_TABLE = 0.004  # metres above y = 0 from which on a surface is not the table's

FRAME_INFOS = (
    "hand_state",
    "hand_command",
    "hand_present",
    "hand_keypoints",
    "hand_pixels",
    "object_pose",
    "target",
    "lifted",
    "hand_mask",
    "object_mask",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HandTruth:
    """Hands and object of N episodes of T steps; left hand, then right.

    Frame rows [N, T+1, ...]: state and command [2, 16] in world axes, present bool [2], keypoints [2, 21, 3] metres,
    pixels [2, 21, 2], object and target [3] metres, world axes, lifted bool, hand_mask and object_mask bool [h, w]:
    where they are seen. Step rows [N, T, ...]: actions [2, 13], reward. task int64 [N].
    """

    state: np.ndarray
    command: np.ndarray
    present: np.ndarray
    keypoints: np.ndarray
    pixels: np.ndarray
    object: np.ndarray
    target: np.ndarray
    lifted: np.ndarray
    hand_mask: np.ndarray
    object_mask: np.ndarray
    actions: np.ndarray
    reward: np.ndarray
    task: np.ndarray

    def rows(self, selection: slice | Sequence[int]) -> "HandTruth":
        """The chosen episodes."""
        return HandTruth(**{field.name: getattr(self, field.name)[selection] for field in fields(self)})

    def cut(self, first: int, num_steps: int) -> "HandTruth":
        """Steps first .. first + num_steps - 1 of every episode."""
        steps = {name: getattr(self, name)[:, first : first + num_steps] for name in ("actions", "reward")}
        frames = {
            field.name: getattr(self, field.name)[:, first : first + num_steps + 1]
            for field in fields(self)
            if field.name not in (*steps, "task")
        }
        return HandTruth(**frames, **steps, task=self.task)

    def recorded(self, num_frames: int) -> RecordedHands:
        """The hands in the first frames, as a start has them."""
        parts = (self.state, self.command, self.present)
        return RecordedHands(*(torch.from_numpy(part[:, :num_frames]) for part in parts))

    def places(self, num_frames: int) -> torch.Tensor:
        """Object and target in the first frames, as a start has them: float32 [N, F, 2, 3]."""
        return torch.from_numpy(np.stack([self.object, self.target], 2)[:, :num_frames])

    def moved(self) -> np.ndarray:
        """Whether the object is away from where it stood in the first frame, bool [N, T+1]."""
        return np.linalg.norm(self.object - self.object[:, :1], axis=-1) > MOVED


def stack_truth(infos: list[dict[str, Any]], actions: list[np.ndarray], rewards: list[float]) -> HandTruth | None:
    """Infos of T + 1 frames -> truth of one episode; None where the simulator has no hands."""
    if "hand_state" not in infos[0]:
        return None
    rows = {name: np.stack([np.asarray(info[name]) for info in infos])[None] for name in FRAME_INFOS}
    told = np.zeros((len(actions), 2, HAND_ACTION_WIDTH), np.float32)
    told[:, 1:] = rearrange(np.stack(actions), "t (hands a) -> t hands a", a=HAND_ACTION_WIDTH).clip(-1.0, 1.0)
    return HandTruth(
        state=rows["hand_state"].astype(np.float32),
        command=rows["hand_command"].astype(np.float32),
        present=rows["hand_present"].astype(bool),
        keypoints=rows["hand_keypoints"].astype(np.float32),
        pixels=rows["hand_pixels"].astype(np.float32),
        object=rows["object_pose"][..., :3, 3].astype(np.float32),
        target=rows["target"].astype(np.float32),
        lifted=rows["lifted"].astype(bool),
        hand_mask=rows["hand_mask"].astype(bool),
        object_mask=rows["object_mask"].astype(bool),
        actions=told[None],
        reward=np.asarray(rewards, np.float32)[None],
        task=np.asarray([infos[0]["task_id"]], np.int64),
    )


def concatenate_truth(parts: Sequence[HandTruth | None]) -> HandTruth | None:
    """Truths of batches -> one, in order; None where they have none."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    names = [field.name for field in fields(HandTruth)]
    return HandTruth(**{name: np.concatenate([getattr(part, name) for part in known]) for name in names})


def hand_surface(depth: Tensor, pose: Tensor, intrinsics: Tensor, keypoints: Tensor) -> Tensor:
    """Depth [M, h, w] metres seen from poses [M, 4, 4], intrinsics [M, 4], keypoints [M, 21, 3] world metres -> bool
    [M, h, w]: surfaces above the table within FLESH of a bone, which is what can be told of a hand from geometry."""
    rays = camera_rays(intrinsics, depth.shape[-1]) * depth[..., None]
    points = rays @ pose[:, None, :3, :3].mT + pose[:, None, None, :3, 3]
    nearest = torch.full_like(depth, torch.inf)
    for first, second in BONES:
        start, along = (end[:, None, None] for end in (keypoints[:, first], keypoints[:, second] - keypoints[:, first]))
        offset = points - start
        share = ((offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-9)).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - share[..., None] * along).norm(dim=-1))
    return (nearest < FLESH) & (points[..., 1] < -ABOVE_TABLE)
