"""Layers of remembered pictures: the still scene, and hands and their object, taken along to where they are now.

A hand is a chain of rigid parts: the palm with the forearm, and the bones of its fingers. Each pixel of a hand belongs
to one of them and moves with it, so a hand that was seen once can be shown wherever it is and however it is bent now.
The object that hands are about is one part more, which belongs to the scene until it was moved.
The other pixels are a picture without them, behind which older pictures show the scene.
"""

from functools import lru_cache, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.hand_model import BONES, NUM_FINGERS, NUM_PARTS
from worldscape.conditioning.repose import Reposed, least_with_number, repose
from worldscape.conditioning.reproject import MIN_DEPTH, believed, decode_depth, pixelwise
from worldscape.conditioning.shapes import is_static

NOBODY = 0  # owner of pixels of the still scene; part p of hand k owns those with NUM_PARTS k + p + 1
NUM_MOVING = 2 * NUM_PARTS + 1  # parts of two hands, and the object
OBJECT = NUM_MOVING  # owner of the object's pixels: one more than its place among those parts
RIM = 255  # owner of pixels that show a little of both, or a hand at a depth where it is not: of use to neither
OBJECT_RIM = 254  # the same around the object: of the scene, as long as the object was not moved
FOREARM = 0.32  # metres behind the wrist that move with it
ALONG_BONES = (0.5, 1.0)  # places on each bone whose surroundings are looked at
ALONG_PALM = (0.25, 0.5, 0.75, 1.0)  # the same on the long first bones of the fingers
ALONG_FOREARM = 12  # points on the forearm
RIM_OF_REAL, RIM_OF_DREAMED = 1, 3  # pixels around a hand that are of no use: a dream draws its outline less exactly
FLESH, SLEEVE = 0.028, 0.04  # metres around points of bones and forearm: surfaces there are the hand's
OBJECT_REACH = 0.05  # metres around an object's centre: what is seen there, above the table, is the object's
ABOVE_TABLE = 0.006  # metres that it has to be above it
CARRIED = 0.006  # metres that an object was moved by, at least, to be no longer where a picture shows it
CORE_OF_FINGER, CORE_OF_PALM, CORE_OF_SLEEVE = 0.009, 0.016, 0.024  # metres around those points: whatever is seen there


class Thing(NamedTuple):
    """The object that hands are about, in world axes (y points down), metres: centre [B, 3], moved [B, 3] since anybody
    began to count (only differences matter), table [B] (y of what it stands on), present bool [B]: it is known."""

    centre: Tensor
    moved: Tensor
    table: Tensor
    present: Tensor


class Limbs(NamedTuple):
    """Hands in world axes: parts [B, 2, 16, 4, 4] part to world (`hand_model.hand_parts`), keypoints [B, 2, 21, 3]
    metres, present bool [B, 2]; left hand, then right. rows: the hands that can be present at all (`hands.HANDS`).
    thing: what they move, where anybody knows of it.
    """

    parts: Tensor
    keypoints: Tensor
    present: Tensor
    rows: tuple[int, ...]
    thing: Thing | None = None

    def moving(self) -> Tensor:
        """Poses of all that moves, part to world: those of two hands, then the object's, [B, 33, 4, 4]."""
        hands = self.parts.flatten(1, 2)
        thing = torch.eye(4, dtype=hands.dtype, device=hands.device).repeat(len(hands), 1, 1, 1)
        if self.thing is not None:
            thing[:, 0, :3, 3] = self.thing.moved
        return torch.cat([hands, thing], 1)


class Pictures(NamedTuple):
    """Stored pictures: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N], owner uint8
    [B, N, h, w] (`owned_by`), parts [B, N, 33, 4, 4] of what moves in them (`Limbs.moving`)."""

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


def owned_by(depth: Tensor, pose: Tensor, intrinsics: Tensor, limbs: Limbs, is_real: bool = True) -> Tensor:
    """Depth [B, h, w] in metres seen from poses [B, 4, 4], intrinsics [B, 4] -> who owns each pixel, uint8 [B, h, w]:
    NOBODY, RIM, OBJECT_RIM, or one more than the number of a part: 16 of the left hand, 16 of the right one, OBJECT.

    A part owns the surfaces within its reach. RIM is where only its core lies in the pixel, whatever is seen there
    (dreamed depth is not to be relied on), and around all those, wider where the picture is no recorded one. Carried
    along with the hand, such pixels fell off it at the depth of the table and lay about as debris; left in the scene,
    they are the outlines of hands that are gone.
    """
    size, rim = depth.shape[-1], RIM_OF_REAL if is_real else RIM_OF_DREAMED
    owner, points = torch.zeros_like(depth), camera_rays(intrinsics, size) * depth[..., None]
    for hand in limbs.rows:
        body = _body(limbs, hand)
        centres = (body.centres - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        rows, columns = _window(centres, body, limbs.present[:, hand], intrinsics, size, rim)
        seen = points[:, rows, columns]
        reached = _reaches(seen.flatten(1, 2), centres, body)
        covered = _covers(centres, body, intrinsics, size, rows, columns)
        reached = torch.where(limbs.present[:, hand, None], reached, -1).view(seen.shape[:3])
        is_own = (reached >= 0) | (covered & limbs.present[:, hand, None]).view_as(reached)
        is_around = _around(is_own, rim)
        code = torch.where(is_around, RIM, owner[:, rows, columns])
        part = (NUM_PARTS * hand + 1 + reached).to(depth)
        owner[:, rows, columns] = torch.where(reached >= 0, part, code)
    if limbs.thing is not None:
        owner = _own_object(owner, points, pose, limbs.thing)
    return owner.to(torch.uint8)


def _around(mask: Tensor, reach: int) -> Tensor:
    """Pixels at most `reach` rows and columns from those of a mask bool [B, h, w]; a tenth of `max_pool2d`'s time."""
    for axis in (1, 2):
        padded = F.pad(mask, (reach, reach) if axis == 2 else (0, 0, reach, reach))
        parts = [padded.narrow(axis, start, mask.shape[axis]) for start in range(2 * reach + 1)]
        mask = reduce(torch.logical_or, parts)
    return mask


def _own_object(owner: Tensor, points: Tensor, pose: Tensor, thing: Thing) -> Tensor:
    """Owners [B, h, w] of surface points [B, h, w, 3] in camera axes, where the object has what no hand owns of its
    surroundings, above the table."""
    centre = (thing.centre - pose[:, :3, 3])[:, None] @ pose[:, :3, :3]
    away = points - centre[:, None]
    below = (away @ pose[:, None, 1, :3, None])[..., 0]
    is_above = below < (thing.table - thing.centre[:, 1] - ABOVE_TABLE)[:, None, None]
    is_free = (owner == NOBODY) & thing.present[:, None, None]
    is_own = (away.square().sum(-1) < OBJECT_REACH**2) & is_above & is_free
    is_around = _around(is_own, 1) & is_free
    return torch.where(is_own, OBJECT, torch.where(is_around, OBJECT_RIM, owner))


def split_layers(still: Pictures, hands: Pictures, limbs: Limbs, target: Tensor, intrinsics: Tensor) -> Layers:
    """Pictures of a scene (the latest first) and pictures to take hands from (best first) -> what to rebuild the view
    from `target` [B, 4, 4] from, in which the hands are where `limbs` says: a picture of the hands, and after it those
    of the scene without.

    Rows without hands keep their pictures as they are.
    """
    moves = limbs.present.any(1)
    parts = limbs.moving()
    depth = decode_depth(still.rgbd[:, :, 3])
    is_free = (still.owner == NOBODY) | ~moves[:, None, None, None]
    if limbs.thing is not None:
        stands = ~_is_carried(still, limbs.thing)[..., None, None]
        is_free = is_free | (((still.owner == OBJECT) | (still.owner == OBJECT_RIM)) & stands)
    valid = pixelwise(still.valid, still.rgbd) & is_free
    scene = Layers(still.rgbd, still.poses, believed(depth, still.poses, valid, intrinsics, moves))
    moved = parts[:, None] @ invert_pose(hands.parts)
    to_view = invert_pose(target)[:, None, None] @ moved @ hands.poses[:, :, None]
    part = (hands.owner.long() - 1).clamp(0, NUM_MOVING - 1)
    shown = repose(hands.rgbd, part, _shows(hands, limbs), to_view, _joined(part.device), intrinsics)
    hand = Layers(_first_of(shown), target[:, None], shown.mask.any(1, keepdim=True))
    return Layers(*(torch.cat(pair, 1) for pair in zip(hand, scene, strict=True)))


def _is_carried(pictures: Pictures, thing: Thing) -> Tensor:
    """Whether the object has been moved since pictures were taken, bool [B, N]."""
    since = thing.moved[:, None] - pictures.parts[:, :, -1, :3, 3]
    return (since.norm(dim=-1) > CARRIED) & thing.present[:, None]


def _shows(hands: Pictures, limbs: Limbs) -> Tensor:
    """Which pixels of pictures belong to a hand that is present now, or to an object that was moved: bool
    [B, N, h, w]."""
    shows = torch.zeros_like(hands.owner, dtype=torch.bool)
    for hand in limbs.rows:
        own = (hands.owner > NUM_PARTS * hand) & (hands.owner <= NUM_PARTS * (hand + 1))
        shows = shows | (own & limbs.present[:, hand, None, None, None])
    if limbs.thing is not None:
        shows = shows | ((hands.owner == OBJECT) & _is_carried(hands, limbs.thing)[..., None, None])
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
    """Which of the parts that move go on into each other, bool [33, 33]: each into itself, bones into the next one, the
    palm into the roots of the fingers."""
    joined = torch.eye(NUM_PARTS, dtype=torch.bool)
    for finger in range(NUM_FINGERS):
        root = 3 * finger + 1
        for one, other in ((0, root), (root, root + 1), (root + 1, root + 2)):
            joined[one, other] = joined[other, one] = True
    return torch.block_diag(joined, joined, torch.ones(1, 1)).bool().to(device)


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
    return _beyond(pixels.expand(len(places), -1, -1), places, radius).amin(1) < 0.0


def _project(centres: Tensor, radius: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Balls of radius [K] metres around centres [B, K, 3] in camera axes -> their places [B, K, 2] and radii [B, K] in
    pixels, 0 for those behind the camera."""
    x, y, z = centres.unbind(-1)
    focal, centre = intrinsics[:, None, :2] * size, intrinsics[:, None, 2:] * size
    ahead = z.clamp_min(MIN_DEPTH)
    places = torch.stack([x, y], -1) / ahead[..., None] * focal + centre
    return places, torch.where(z > MIN_DEPTH, radius * focal[..., 0] / ahead, 0.0)


def _window(
    centres: Tensor, body: _Body, present: Tensor, intrinsics: Tensor, size: int, rim: int
) -> tuple[slice, slice]:
    """Rows and columns, at least one, outside of which no pixel is of a row's hand or its rim; all of them where shapes
    are to be static."""
    if is_static(centres):
        return slice(0, size), slice(0, size)
    places, radius = _project(centres, body.reach, intrinsics, size)
    counts = present[:, None] & (centres[..., 2] > MIN_DEPTH)
    if not counts.any():
        return slice(0, 1), slice(0, 1)
    # What lies nearer than the centre is larger in the picture, hence the half more; and a pixel beyond the rim.
    reach = (1.5 * radius[counts] + 1.0 + rim)[:, None]
    low = (places[counts] - reach).amin(0).clamp(0, size - 1).int().tolist()
    high = (places[counts] + reach).amax(0).ceil().clamp(1, size).int().tolist()
    (left, top), (right, bottom) = low, high
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _part_around(points: Tensor, centres: Tensor, radius: Tensor, part: Tensor) -> Tensor:
    """Points [B, P, C], balls of radius [B, K] around centres [B, K, C] that belong to parts int32 [K] -> the part of
    the ball that holds each point, the one that it is deepest in; -1 where none does. long [B, P]."""
    least, number = least_with_number(_beyond(points, centres, radius), part[:, None], 1)
    return torch.where(least < 0.0, number, -1)


def _beyond(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """By how much points [B, P, C] are beyond balls of radius [B, K] around centres [B, K, C]: the difference of
    squares, [B, K, P]."""
    excess = centres.square().sum(-1, keepdim=True) - radius.square()[..., None]
    return torch.baddbmm(excess, centres, points.mT, alpha=-2.0).add_(points.square().sum(-1)[:, None])
