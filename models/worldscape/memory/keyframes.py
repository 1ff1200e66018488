"""Keyframe memory: pictures with depth and pose that are reprojected into each new view, one bounded set per slot.

A frame becomes a keyframe when memory showed too little of it. Retrieval is a greedy set cover: each pick adds the most
cells of the new view that the picks before did not show. Over budget, the keyframe most like another one goes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.reproject import MIN_DEPTH, Anchor, decode_depth, reproject
from worldscape.config import BodyConfig, MemoryConfig
from worldscape.memory.surroundings import plan_view

PROBES = 16  # points a side that stand for a keyframe when views are compared
CELLS = 8  # cells a side of the new view that the picks shall cover
METRES_PER_RADIAN = 2.0  # how far apart two cameras must be to differ as much as one radian of turn


class Picks(NamedTuple):
    """Chosen places, long [B, K], oldest picture first; valid bool [B, K]."""

    index: Tensor
    valid: Tensor


class Remembered(NamedTuple):
    """Pictures in memory: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N]."""

    rgbd: Tensor
    poses: Tensor
    valid: Tensor


@dataclass(slots=True)
class KeyframeMemory:
    """rgbd [B, N + 1, 4, h, w], poses [B, N + 1, 4, 4], probes [B, N + 1, M, 3] (world points), frames long
    [B, N + 1] (number of the frame held, -1: none). Place 0 is the sink, place N always holds the latest frame.
    """

    config: MemoryConfig
    rgbd: Tensor
    poses: Tensor
    probes: Tensor
    frames: Tensor

    @classmethod
    def empty(cls, config: MemoryConfig, slots: int, size: int, like: Tensor) -> "KeyframeMemory":
        """Memory for `slots` slots of size x size pictures; device and dtype of `like`."""
        places = config.num_keyframes + 1
        return cls(
            config=config,
            rgbd=like.new_zeros(slots, places, 4, size, size),
            poses=torch.eye(4, dtype=like.dtype, device=like.device).repeat(slots, places, 1, 1),
            probes=like.new_zeros(slots, places, PROBES**2, 3),
            frames=torch.full((slots, places), -1, dtype=torch.long, device=like.device),
        )

    def recall(self, target: Tensor, intrinsics: Tensor) -> Anchor:
        """What memory shows of the view from `target` [B, 4, 4]; intrinsics [B, 4]."""
        picks = self.select(target, intrinsics)
        rows = torch.arange(len(target), device=target.device)[:, None]
        return reproject(self.rgbd[rows, picks.index], self.poses[rows, picks.index], picks.valid, target, intrinsics)

    def select(self, target: Tensor, intrinsics: Tensor) -> Picks:
        """Greedy set cover of the new view's cells; ties go to the older picture, which lies nearer to a real one."""
        shown = self._shown_cells(target, intrinsics)
        taken = torch.zeros_like(self.frames, dtype=torch.bool)
        chosen = []
        for _ in range(self.config.num_anchors):
            gain = shown.sum(-1) + 0.5 / (self.frames.clamp_min(0) + 1)
            best = torch.where(taken | (self.frames < 0), -1.0, gain).argmax(1, keepdim=True)
            chosen.append(best)
            taken = taken.scatter(1, best, True)
            covered = shown.gather(1, repeat(best, "b 1 -> b 1 c", c=CELLS**2))
            shown = shown * (1 - covered)
        index = torch.cat(chosen, 1)
        frames = self.frames.gather(1, index)
        order = torch.where(frames < 0, torch.iinfo(torch.long).max, frames).argsort(dim=1, stable=True)
        return Picks(index.gather(1, order), frames.gather(1, order) >= 0)

    def remembered(self) -> Remembered:
        """All pictures that are held, each once, as tensors of their own."""
        valid = self.frames >= 0
        valid[:, -1] &= (self.frames[:, :-1] != self.frames[:, -1:]).all(1)
        return Remembered(self.rgbd.clone(), self.poses.clone(), valid)

    def clearance(self, position: Tensor, body: BodyConfig) -> Tensor:
        """Metres on the floor plan from `position` [B, 3] to the nearest remembered surface at body height: [B]."""
        offset = self.probes - position[:, None, None]
        is_in_way = (offset[..., 1] > -body.above) & (offset[..., 1] < body.below) & (self.frames >= 0)[..., None]
        distance = offset[..., 0::2].square().sum(-1)
        return torch.where(is_in_way, distance, torch.inf).amin((1, 2)).sqrt()

    def surroundings(self, position: Tensor, walk: Tensor, body: BodyConfig) -> Tensor:
        """Plan view of the remembered surfaces around `position` [B, 3], ahead along `walk` [B, 3]: [B, 2, G, G]."""
        known = repeat(self.frames >= 0, "b n -> b (n m)", m=PROBES**2)
        return plan_view(rearrange(self.probes, "b n m xyz -> b (n m) xyz"), known, position, walk, body)

    def admit(self, rgbd: Tensor, pose: Tensor, intrinsics: Tensor, coverage: Tensor, frame: Tensor, active: Tensor):
        """Take in a finished frame of each active slot.

        rgbd [B, 4, h, w], pose [B, 4, 4], coverage [B] (share of its pixels that memory showed), frame long [B] (its
        number), active bool [B]. It always becomes the latest; it becomes a keyframe when coverage < novelty.
        """
        probes = world_probes(rgbd, pose, intrinsics)
        latest = torch.full_like(frame, self.config.num_keyframes)
        self._write(latest, rgbd, pose, probes, frame, active)
        self._write(self._place_for_new(), rgbd, pose, probes, frame, active & (coverage < self.config.novelty))

    def _write(self, place: Tensor, rgbd: Tensor, pose: Tensor, probes: Tensor, frame: Tensor, where: Tensor) -> None:
        rows = torch.arange(len(place), device=place.device)
        for stored, new in ((self.rgbd, rgbd), (self.poses, pose), (self.probes, probes), (self.frames, frame)):
            keep = where.reshape(-1, *[1] * (new.ndim - 1))
            stored[rows, place] = torch.where(keep, new.to(stored.dtype), stored[rows, place])

    def _place_for_new(self) -> Tensor:
        """The first free place, else that of the keyframe nearest to another one; the sink stays."""
        pool = self.frames[:, :-1]
        position, axis = self.poses[:, :-1, :3, 3], self.poses[:, :-1, :3, 2]
        turn = torch.acos((axis @ axis.transpose(1, 2)).clamp(-1.0, 1.0))
        distance = torch.cdist(position, position) / METRES_PER_RADIAN + turn
        distance = distance + torch.diag(torch.full((pool.shape[1],), torch.inf, device=pool.device))
        nearest = distance.amin(2)
        nearest[:, 0] = torch.inf
        return torch.where(pool < 0, -1.0, nearest).argmin(1)

    def _shown_cells(self, target: Tensor, intrinsics: Tensor) -> Tensor:
        """Which cells of the new view each keyframe's probes fall into: 0 or 1, float [B, N + 1, CELLS ** 2]."""
        to_view = invert_pose(target)
        seen = self.probes @ to_view[:, None, :3, :3].transpose(-1, -2) + to_view[:, None, None, :3, 3]
        x, y, z = seen.unbind(-1)
        fx, fy, cx, cy = (repeat(value, "b -> b 1 1") for value in intrinsics.unbind(-1))
        depth = z.clamp_min(MIN_DEPTH)
        column = ((x / depth * fx + cx) * CELLS).floor().long()
        row = ((y / depth * fy + cy) * CELLS).floor().long()
        inside = (z > MIN_DEPTH) & (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
        index = torch.where(inside, row * CELLS + column, CELLS**2)
        cells = self.probes.new_zeros(*index.shape[:2], CELLS**2 + 1)
        return cells.scatter(2, index, 1.0)[..., :-1]


def world_probes(rgbd: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """A regular sample of a picture's surface points in world axes: [B, PROBES ** 2, 3] metres."""
    size = rgbd.shape[-1]
    rays = camera_rays(intrinsics, size) * decode_depth(rgbd[:, 3])[..., None]
    step = max(size // PROBES, 1)
    points = rearrange(rays[:, step // 2 :: step, step // 2 :: step], "b h w c -> b (h w) c")
    return points @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
