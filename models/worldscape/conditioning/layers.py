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
from worldscape.conditioning.reproject import MIN_DEPTH, believed, decode_depth, pixelwise

NOBODY = 0  # owner of pixels of the still scene; hand k owns those with k + 1
FOREARM = 0.32  # metres behind the wrist that move with it
ALONG_BONES = (0.5, 1.0)  # places on each bone whose surroundings are looked at
ALONG_PALM = (0.25, 0.5, 0.75)  # the same on the long first bones of the fingers
ALONG_FOREARM = 12  # points on the forearm
FLESH, SLEEVE = 0.024, 0.034  # metres around points of bones and forearm: surfaces there are the hand's
CORE_OF_FINGER, CORE_OF_PALM, CORE_OF_SLEEVE = 0.009, 0.016, 0.024  # metres around those points: whatever is seen there


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
    NOBODY, 1 for the left hand, 2 for the right one.

    Hand or forearm lies within reach of the surface there, or their core lies in the pixel, whatever its depth: in a
    dream that is not to be relied on.
    """
    size = depth.shape[-1]
    rays = camera_rays(intrinsics, size) * depth[..., None]
    surface = rearrange(rays, "b h w c -> b (h w) c")
    owner = torch.zeros_like(depth, dtype=torch.uint8)
    for hand in limbs.rows:
        body = _body(limbs, hand)
        centres = (body.centres - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        is_own = _reaches(surface, centres, body.reach) | _covers(centres, body.core, intrinsics, size)
        is_own = (is_own & limbs.present[:, hand, None]).unflatten(1, depth.shape[1:])
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


class _Body(NamedTuple):
    """Points inside a hand and its forearm: centres [B, K, 3] in world axes, reach and core [K] metres around them."""

    centres: Tensor
    reach: Tensor
    core: Tensor


def _body(limbs: Limbs, hand: int) -> _Body:
    points, wrist = limbs.keypoints[:, hand], limbs.wrists[:, hand]
    ends = torch.tensor(BONES, device=points.device)
    first, second = points[:, ends[:, 0]], points[:, ends[:, 1]]
    is_palm = ends[:, 0] == 0
    fingers = torch.cat([first.lerp(second, share)[:, ~is_palm] for share in ALONG_BONES], 1)
    palm = torch.cat([first.lerp(second, share)[:, is_palm] for share in (*ALONG_PALM, 1.0)], 1)
    back = torch.linspace(0.0, FOREARM, ALONG_FOREARM, device=wrist.device, dtype=wrist.dtype)
    forearm = wrist[:, None, :3, 3] - back[:, None] * wrist[:, None, :3, 2]
    counts = torch.tensor([fingers.shape[1], palm.shape[1], ALONG_FOREARM], device=wrist.device)
    reach, core = (
        wrist.new_tensor(radii).repeat_interleave(counts)
        for radii in ((FLESH, FLESH, SLEEVE), (CORE_OF_FINGER, CORE_OF_PALM, CORE_OF_SLEEVE))
    )
    return _Body(torch.cat([fingers, palm, forearm], 1), reach, core)


def _reaches(surface: Tensor, centres: Tensor, reach: Tensor) -> Tensor:
    """Which points [B, P, 3] lie within reach [K] of one of the centres [B, K, 3], both in camera axes: bool [B, P]."""
    middle = centres.mean(1, keepdim=True)  # near zero, or single precision loses the millimetres
    return _is_within(surface - middle, centres - middle, reach.expand(centres.shape[:2]))


def _covers(centres: Tensor, core: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Which pixels show a place within `core` [K] metres of one of the centres [B, K, 3] in camera axes, if nothing is
    before it: bool [B, P]."""
    x, y, z = centres.unbind(-1)
    focal, centre = intrinsics[:, None, :2] * size, intrinsics[:, None, 2:] * size
    ahead = z.clamp_min(MIN_DEPTH)
    places = torch.stack([x, y], -1) / ahead[..., None] * focal + centre
    radius = torch.where(z > MIN_DEPTH, core * focal[..., 0] / ahead, 0.0)
    along = torch.arange(size, device=z.device, dtype=z.dtype) + 0.5
    pixels = torch.stack([along.repeat(size), along.repeat_interleave(size)], -1)
    return _is_within(pixels.expand(len(z), -1, -1), places, radius)


def _is_within(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Which points [B, P, C] lie nearer than radius [B, K] to one of the centres [B, K, C]: bool [B, P]."""
    excess = centres.square().sum(-1, keepdim=True) - radius.square()[..., None]
    excess = torch.baddbmm(excess, centres, points.mT, alpha=-2.0).amin(1)
    return excess + points.square().sum(-1) < 0.0
