"""Layers of remembered pictures: the still scene, and hands, which are taken along to where they are now.

A hand with its forearm moves as one piece when its wrist does, but for the fingers' curling. To see a moved piece from
a camera is to see the unmoved one from a camera moved the other way, so the pixels that a hand owns are one more
picture with a pose of its own, and the others a picture without the hand, behind which older pictures show the scene.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.hand_model import BONES
from worldscape.conditioning.reproject import believed, decode_depth, pixelwise

NOBODY = 0  # owner of pixels of the still scene; hand k owns those with k + 1
FLESH = 0.024  # metres around points of the bones that are the hand's
FOREARM = (0.32, 0.034)  # metres: length behind the wrist, and radius
ALONG_BONES = (0.5, 1.0)  # places on each bone whose surroundings are looked at
ALONG_PALM = (0.25, 0.5, 0.75)  # the same on the long first bones of the fingers
ALONG_FOREARM = 12  # points on the forearm


class Limbs(NamedTuple):
    """Hands in world axes: wrists [B, 2, 4, 4] hand axes to world, keypoints [B, 2, 21, 3] metres, present bool [B, 2];
    left hand, then right. rows: the hands that can be present at all (`hands.HANDS`).
    """

    wrists: Tensor
    keypoints: Tensor
    present: Tensor
    rows: tuple[int, ...]


class Pictures(NamedTuple):
    """Stored pictures: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N], owner uint8
    [B, N, h, w] (`owned_by`), wrists [B, N, 2, 4, 4] of the hands in them."""

    rgbd: Tensor
    poses: Tensor
    valid: Tensor
    owner: Tensor
    wrists: Tensor


class Layers(NamedTuple):
    """Pictures as `reproject` takes them: rgbd [B, M, 4, h, w], poses [B, M, 4, 4], valid bool [B, M, h, w]."""

    rgbd: Tensor
    poses: Tensor
    valid: Tensor


def owned_by(depth: Tensor, pose: Tensor, intrinsics: Tensor, limbs: Limbs) -> Tensor:
    """Depth [B, h, w] in metres seen from poses [B, 4, 4], intrinsics [B, 4] -> who owns each pixel, uint8 [B, h, w]:
    NOBODY, 1 for the left hand, 2 for the right one, where hand or forearm is within reach of the surface."""
    rays = camera_rays(intrinsics, depth.shape[-1]) * depth[..., None]
    points = rearrange(rays @ pose[:, None, :3, :3].mT + pose[:, None, None, :3, 3], "b h w c -> b (h w) c")
    owner = torch.zeros_like(depth, dtype=torch.uint8)
    for hand in limbs.rows:
        near = _distance(points, _body(limbs, hand)) < FLESH
        behind = _distance(points, _forearm(limbs, hand)) < FOREARM[1]
        is_own = ((near | behind) & limbs.present[:, hand, None]).unflatten(1, depth.shape[1:])
        owner = owner.masked_fill(_with_rim(is_own), hand + 1)
    return owner


def split_layers(still: Pictures, hands: Pictures, limbs: Limbs, intrinsics: Tensor) -> Layers:
    """Pictures of a scene (the latest first) and pictures to take hands from (best first) -> what to rebuild a view
    from in which the hands are where `limbs` says: first the hands, then the scene without them.

    Rows without hands keep their pictures as they are.
    """
    moves = limbs.present.any(1)
    depth = decode_depth(still.rgbd[:, :, 3])
    valid = pixelwise(still.valid, still.rgbd) & ((still.owner == NOBODY) | ~moves[:, None, None, None])
    parts = [Layers(still.rgbd, still.poses, believed(depth, still.poses, valid, intrinsics, moves))]
    for hand in reversed(limbs.rows):
        poses = limbs.wrists[:, None, hand] @ invert_pose(hands.wrists[:, :, hand]) @ hands.poses
        there = pixelwise(hands.valid & limbs.present[:, hand, None], hands.rgbd)
        there = believed(decode_depth(hands.rgbd[:, :, 3]), poses, there, intrinsics, moves)
        parts.insert(0, Layers(hands.rgbd, poses, there & (hands.owner == hand + 1)))
    return Layers(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _with_rim(is_own: Tensor) -> Tensor:
    """Pixels bool [B, h, w] and those next to them, which show a little of both."""
    return torch.nn.functional.max_pool2d(is_own[:, None].float(), 3, 1, 1)[:, 0] > 0


def _body(limbs: Limbs, hand: int) -> Tensor:
    """Points inside the hand, [B, K, 3] in world axes."""
    points = limbs.keypoints[:, hand]
    ends = torch.tensor(BONES, device=points.device)
    first, second = points[:, ends[:, 0]], points[:, ends[:, 1]]
    palm = ends[:, 0] == 0
    inside = [first.lerp(second, share) for share in ALONG_BONES]
    return torch.cat([*inside, *(first[:, palm].lerp(second[:, palm], share) for share in ALONG_PALM)], 1)


def _forearm(limbs: Limbs, hand: int) -> Tensor:
    """Points on the axis of the forearm, [B, K, 3] in world axes."""
    wrist = limbs.wrists[:, hand]
    back = torch.linspace(0.0, FOREARM[0], ALONG_FOREARM, device=wrist.device, dtype=wrist.dtype)
    return wrist[:, None, :3, 3] - back[:, None] * wrist[:, None, :3, 2]


def _distance(points: Tensor, others: Tensor) -> Tensor:
    """Metres from each of points [B, P, 3] to the nearest of others [B, K, 3]: [B, P]."""
    centre = others.mean(1, keepdim=True)  # near zero, or single precision loses the millimetres
    points, others = points - centre, others - centre
    cross = torch.baddbmm(others.square().sum(-1, keepdim=True), others, points.mT, alpha=-2.0)
    return (points.square().sum(-1) + cross.amin(1)).clamp_min(0.0).sqrt()
