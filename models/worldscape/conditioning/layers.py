"""Layers of remembered pictures: the still scene, and hands, which are taken along to where they are now.

A hand is a chain of rigid parts: the palm with the forearm, and the bones of its fingers. Each pixel of a hand belongs
to one of them and moves with it, so a hand that was seen once can be shown wherever it is and however it is bent now.
The other pixels are a picture without the hand, behind which older pictures show the scene.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.hand_model import BONES, NUM_FINGERS, NUM_PARTS
from worldscape.conditioning.repose import Reposed, least_with_number, repose
from worldscape.conditioning.reproject import MIN_DEPTH, believed, decode_depth, pixelwise

NOBODY = 0  # owner of pixels of the still scene; part p of hand k owns those with NUM_PARTS k + p + 1
RIM = 255  # owner of pixels that show a little of both, or a hand at a depth where it is not: of use to neither
FOREARM = 0.32  # metres behind the wrist that move with it
ALONG_BONES = (0.5, 1.0)  # places on each bone whose surroundings are looked at
ALONG_PALM = (0.25, 0.5, 0.75, 1.0)  # the same on the long first bones of the fingers
ALONG_FOREARM = 12  # points on the forearm
FLESH, SLEEVE = 0.028, 0.04  # metres around points of bones and forearm: surfaces there are the hand's
CORE_OF_FINGER, CORE_OF_PALM, CORE_OF_SLEEVE = 0.009, 0.016, 0.024  # metres around those points: whatever is seen there


class Limbs(NamedTuple):
    """Hands in world axes: parts [B, 2, 16, 4, 4] part to world (`hand_model.hand_parts`), keypoints [B, 2, 21, 3]
    metres, present bool [B, 2]; left hand, then right. rows: the hands that can be present at all (`hands.HANDS`).
    """

    parts: Tensor
    keypoints: Tensor
    present: Tensor
    rows: tuple[int, ...]


class Pictures(NamedTuple):
    """Stored pictures: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N], owner uint8
    [B, N, h, w] (`owned_by`), parts [B, N, 2, 16, 4, 4] of the hands in them."""

    rgbd: Tensor
    poses: Tensor
    valid: Tensor
    owner: Tensor
    parts: Tensor


class Layers(NamedTuple):
    """Pictures as `reproject` takes them: rgbd [B, M, 4, h, w], poses [B, M, 4, 4], valid bool [B, M, h, w]."""

    rgbd: Tensor
    poses: Tensor
    valid: Tensor


def owned_by(depth: Tensor, pose: Tensor, intrinsics: Tensor, limbs: Limbs) -> Tensor:
    """Depth [B, h, w] in metres seen from poses [B, 4, 4], intrinsics [B, 4] -> who owns each pixel, uint8 [B, h, w]:
    NOBODY, RIM, or one more than the number of a part: 16 of the left hand, then 16 of the right one.

    A part owns the surfaces within its reach. RIM is where only its core lies in the pixel, whatever is seen there
    (dreamed depth is not to be relied on), and around all those. Carried along with the hand, such pixels fell off it
    at the depth of the table and lay about as debris; left in the scene, they are the outlines of hands that are gone.
    """
    size = depth.shape[-1]
    owner = torch.zeros_like(depth)
    for hand in limbs.rows:
        body = _body(limbs, hand)
        centres = (body.centres - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        rows, columns = _window(centres, body, limbs.present[:, hand], intrinsics, size)
        seen = depth[:, rows, columns]
        rays = camera_rays(intrinsics, size)[:, rows, columns] * seen[..., None]
        reached = _reaches(rearrange(rays, "b h w c -> b (h w) c"), centres, body)
        covered = _covers(centres, body, intrinsics, size, rows, columns)
        reached = torch.where(limbs.present[:, hand, None], reached, -1).view_as(seen)
        is_own = (reached >= 0) | (covered & limbs.present[:, hand, None]).view_as(seen)
        is_around = F.max_pool2d(is_own[:, None].to(depth), 3, 1, 1)[:, 0] > 0
        code = torch.where(is_around, RIM, owner[:, rows, columns])
        part = (NUM_PARTS * hand + 1 + reached).to(depth)
        owner[:, rows, columns] = torch.where(reached >= 0, part, code)
    return owner.to(torch.uint8)


def split_layers(still: Pictures, hands: Pictures, limbs: Limbs, target: Tensor, intrinsics: Tensor) -> Layers:
    """Pictures of a scene (the latest first) and pictures to take hands from (best first) -> what to rebuild the view
    from `target` [B, 4, 4] from, in which the hands are where `limbs` says: a picture of the hands, and after it those
    of the scene without.

    Rows without hands keep their pictures as they are.
    """
    moves = limbs.present.any(1)
    depth = decode_depth(still.rgbd[:, :, 3])
    valid = pixelwise(still.valid, still.rgbd) & ((still.owner == NOBODY) | ~moves[:, None, None, None])
    scene = Layers(still.rgbd, still.poses, believed(depth, still.poses, valid, intrinsics, moves))
    moved = limbs.parts[:, None] @ invert_pose(hands.parts)
    to_view = invert_pose(target)[:, None, None, None] @ moved @ hands.poses[:, :, None, None]
    to_view = rearrange(to_view, "b n hands parts r c -> b n (hands parts) r c")
    part = (hands.owner.long() - 1).clamp(0, 2 * NUM_PARTS - 1)
    shown = repose(hands.rgbd, part, _shows(hands, limbs), to_view, _joined(part.device), intrinsics)
    hand = Layers(_first_of(shown), target[:, None], shown.mask.any(1, keepdim=True))
    return Layers(*(torch.cat(pair, 1) for pair in zip(hand, scene, strict=True)))


def _shows(hands: Pictures, limbs: Limbs) -> Tensor:
    """Which pixels of pictures belong to a hand that is present now, bool [B, N, h, w]."""
    shows = torch.zeros_like(hands.owner, dtype=torch.bool)
    for hand in limbs.rows:
        own = (hands.owner > NUM_PARTS * hand) & (hands.owner <= NUM_PARTS * (hand + 1))
        shows = shows | (own & limbs.present[:, hand, None, None, None])
    return shows & hands.valid[..., None, None]


def _first_of(shown: Reposed) -> Tensor:
    """One picture of several [B, N, 4, h, w]: at each pixel the first that shows anything. [B, 1, 4, h, w]."""
    first, mask = shown.rgbd[:, 0], shown.mask[:, 0, None]
    for rgbd, more in zip(shown.rgbd[:, 1:].unbind(1), shown.mask[:, 1:].unbind(1), strict=True):
        first, mask = torch.where(mask, first, rgbd), mask | more[:, None]
    return first[:, None]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _joined(device: torch.device) -> Tensor:
    """Which of the parts of two hands go on into each other, bool [32, 32]: each into itself, bones into the next one,
    the palm into the roots of the fingers."""
    joined = torch.eye(NUM_PARTS, dtype=torch.bool)
    for finger in range(NUM_FINGERS):
        root = 3 * finger + 1
        for one, other in ((0, root), (root, root + 1), (root + 1, root + 2)):
            joined[one, other] = joined[other, one] = True
    return torch.block_diag(joined, joined).bool().to(device)


class _Body(NamedTuple):
    """Points inside a hand and its forearm: centres [B, K, 3] in world axes, reach and core [K] metres around them, and
    the part [K] that each belongs to."""

    centres: Tensor
    reach: Tensor
    core: Tensor
    part: Tensor


def _body(limbs: Limbs, hand: int) -> _Body:
    points, wrist, skeleton = limbs.keypoints[:, hand], limbs.parts[:, hand, 0], _anatomy(limbs.parts.device)
    along = points[:, skeleton.first].lerp(points[:, skeleton.second], skeleton.share[:, None])
    back = torch.linspace(0.0, FOREARM, ALONG_FOREARM, device=wrist.device, dtype=wrist.dtype)
    forearm = wrist[:, None, :3, 3] - back[:, None] * wrist[:, None, :3, 2]
    return _Body(torch.cat([along, forearm], 1), skeleton.reach, skeleton.core, skeleton.part)


class _Anatomy(NamedTuple):
    """Points on bones: long first, second [M] keypoints and the share [M] of the way between them; and of those points
    and of the ALONG_FOREARM ones after them: reach and core [K] metres, and the part [K], int32."""

    first: Tensor
    second: Tensor
    share: Tensor
    reach: Tensor
    core: Tensor
    part: Tensor


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _anatomy(device: torch.device) -> _Anatomy:
    points = []
    for number, (first, second) in enumerate(BONES):
        finger, bone = divmod(number, len(BONES) // NUM_FINGERS)
        core = CORE_OF_PALM if bone == 0 else CORE_OF_FINGER
        part = 0 if bone == 0 else 3 * finger + bone
        places = ALONG_PALM if bone == 0 else ALONG_BONES
        points += [(first, second, share, FLESH, core, part) for share in places]
    first, second, share, reach, core, part = zip(*points, strict=True)
    sleeve = (1.0,) * ALONG_FOREARM
    tensor = lambda values, dtype: torch.tensor(values, dtype=dtype, device=device)  # noqa: E731
    return _Anatomy(
        tensor(first, torch.long),
        tensor(second, torch.long),
        tensor(share, torch.float32),
        tensor((*reach, *(SLEEVE * one for one in sleeve)), torch.float32),
        tensor((*core, *(CORE_OF_SLEEVE * one for one in sleeve)), torch.float32),
        tensor((*part, *(0,) * ALONG_FOREARM), torch.int32),
    )


def _reaches(surface: Tensor, centres: Tensor, body: _Body) -> Tensor:
    """Which part's points reach the surfaces [B, P, 3], centres [B, K, 3], both in camera axes: long [B, P], the one
    that reaches farthest beyond it; -1 where none does."""
    middle = centres.mean(1, keepdim=True)  # near zero, or single precision loses the millimetres
    return _part_around(surface - middle, centres - middle, body.reach.expand(centres.shape[:2]), body.part)


def _covers(centres: Tensor, body: _Body, intrinsics: Tensor, size: int, rows: slice, columns: slice) -> Tensor:
    """Whether a core, around centres [B, K, 3] in camera axes, lies in the pixels of a window, if nothing is before it:
    bool [B, P]."""
    places, radius = _project(centres, body.core, intrinsics, size)
    along = torch.arange(size, device=places.device, dtype=places.dtype) + 0.5
    down, across = torch.meshgrid(along[rows], along[columns], indexing="ij")
    pixels = torch.stack([across, down], -1).flatten(0, 1)
    return _part_around(pixels.expand(len(places), -1, -1), places, radius, body.part) >= 0


def _project(centres: Tensor, radius: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Balls of radius [K] metres around centres [B, K, 3] in camera axes -> their places [B, K, 2] and radii [B, K] in
    pixels, 0 for those behind the camera."""
    x, y, z = centres.unbind(-1)
    focal, centre = intrinsics[:, None, :2] * size, intrinsics[:, None, 2:] * size
    ahead = z.clamp_min(MIN_DEPTH)
    places = torch.stack([x, y], -1) / ahead[..., None] * focal + centre
    return places, torch.where(z > MIN_DEPTH, radius * focal[..., 0] / ahead, 0.0)


def _window(centres: Tensor, body: _Body, present: Tensor, intrinsics: Tensor, size: int) -> tuple[slice, slice]:
    """Rows and columns, at least one, outside of which no row's hand owns a pixel; all of them where shapes are to be
    static."""
    if centres.device.type != "cpu" or torch.compiler.is_compiling():
        return slice(0, size), slice(0, size)
    places, radius = _project(centres, body.reach, intrinsics, size)
    counts = present[:, None] & (centres[..., 2] > MIN_DEPTH)
    if not counts.any():
        return slice(0, 1), slice(0, 1)
    # What lies nearer than the centre is larger in the picture, hence the half more; and two pixels for the rim.
    reach = (1.5 * radius[counts] + 2.0)[:, None]
    low = (places[counts] - reach).amin(0).clamp(0, size - 1).int().tolist()
    high = (places[counts] + reach).amax(0).ceil().clamp(1, size).int().tolist()
    (left, top), (right, bottom) = low, high
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _part_around(points: Tensor, centres: Tensor, radius: Tensor, part: Tensor) -> Tensor:
    """Points [B, P, C], balls of radius [B, K] around centres [B, K, C] that belong to parts int32 [K] -> the part of
    the ball that holds each point, the one that it is deepest in; -1 where none does. long [B, P]."""
    excess = centres.square().sum(-1, keepdim=True) - radius.square()[..., None]
    excess = torch.baddbmm(excess, centres, points.mT, alpha=-2.0) + points.square().sum(-1)[:, None]
    least, number = least_with_number(excess, part[:, None], 1)
    return torch.where(least < 0.0, number, -1)
