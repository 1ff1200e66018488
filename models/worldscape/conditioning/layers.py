"""Layers of remembered pictures: the still scene, and hands and their object, taken along to where they are now.

A hand is a chain of rigid parts: the palm with the forearm, and the bones of its fingers. Each pixel of a hand belongs
to one of them and moves with it, so a hand that was seen once can be shown wherever it is and however it is bent now.
What no picture shows of it takes its colour from what they show closely around.
The object that hands are about is one part more, which belongs to the scene until it was moved.
The other pixels are a picture without them, behind which older pictures show the scene.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_rays, invert_pose
from worldscape.conditioning.hand_model import BONES, NUM_FINGERS, NUM_PARTS
from worldscape.conditioning.repose import Reposed, least_with_number, repose
from worldscape.conditioning.reproject import FAR, MIN_DEPTH, believed, decode_depth, encode_depth, pixelwise
from worldscape.conditioning.shapes import Window, is_static, window_around

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
PATCH = 3  # pixels around one of a hand that no picture shows, whose colours it may take


class Thing(NamedTuple):
    """The object that hands are about, in world axes (y points down), metres: centre [B, 3], moved [B, 3] since anybody
    began to count (only differences matter), table [B] (y of what it stands on), present bool [B]: it is known."""

    centre: Tensor
    moved: Tensor
    table: Tensor
    present: Tensor


class Silhouette(NamedTuple):
    """A hand in a view, if nothing is before it: points in it, centres [B, K, 3] in camera axes (metres); the window of
    the picture outside of which no pixel is of it or of its rim; and in there cores [B, h', w'], metres to the nearest
    core of it in each pixel, FAR where there is none."""

    centres: Tensor
    window: Window
    cores: Tensor


class Limbs(NamedTuple):
    """Hands in world axes: parts [B, 2, 16, 4, 4] part to world (`hand_model.hand_parts`), keypoints [B, 2, 21, 3]
    metres, present bool [B, 2]; left hand, then right. rows: the hands that can be present at all (`hands.HANDS`).
    thing: what they move, where anybody knows of it. silhouettes: of `rows` in the view that they are shown in; None
    where that is still to be found out.
    """

    parts: Tensor
    keypoints: Tensor
    present: Tensor
    rows: tuple[int, ...]
    thing: Thing | None = None
    silhouettes: tuple[Silhouette, ...] | None = None

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
    anatomy = _anatomy(depth.device)
    for hand, seen in zip(limbs.rows, limbs.silhouettes or silhouettes(limbs, pose, intrinsics, size), strict=True):
        rows, columns = seen.window.rows, seen.window.columns
        surface, reach = points[:, rows, columns].flatten(1, 2), anatomy.reach * limbs.present[:, hand, None]
        reached = _reaches(surface, seen.centres, reach, anatomy.part).view_as(seen.cores)
        is_own = (reached >= 0) | (seen.cores < FAR)
        is_around = _around(is_own, rim)
        code = torch.where(is_around, RIM, owner[:, rows, columns])
        part = (NUM_PARTS * hand + 1 + reached).to(depth)
        owner[:, rows, columns] = torch.where(reached >= 0, part, code)
    if limbs.thing is not None:
        owner = _own_object(owner, points, pose, limbs.thing)
    return owner.to(torch.uint8)


def silhouettes(limbs: Limbs, pose: Tensor, intrinsics: Tensor, size: int) -> tuple[Silhouette, ...]:
    """The hands `limbs.rows` in the view from `pose` [B, 4, 4] of size x size pixels."""
    anatomy, found = _anatomy(pose.device), []
    focal, middle = (intrinsics * size)[:, None].split(2, -1)
    for hand in limbs.rows:
        centres = (_points_in(limbs, hand) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        z = centres[..., 2:]
        ahead = z.clamp_min(MIN_DEPTH)
        places = torch.addcmul(middle, centres[..., :2] / ahead, focal)
        is_shown = (z > MIN_DEPTH) & limbs.present[:, hand, None, None]
        metre = torch.where(is_shown, focal[..., :1] / ahead, 0.0)[..., 0]  # in pixels
        window = _window(places, metre * anatomy.reach, size)
        pixels = _pixels(size, pose.device)[window.rows, window.columns]
        flat = pixels.flatten(0, 1).expand(len(pose), -1, -1)
        is_outside = _beyond(flat, places, metre * anatomy.core) >= 0.0
        nearest = torch.where(is_outside, FAR, z - anatomy.core[:, None]).amin(1)
        found.append(Silhouette(centres, window, nearest.view(-1, *pixels.shape[:2])))
    return tuple(found)


def _around(mask: Tensor, reach: int) -> Tensor:
    """Pixels at most `reach` rows and columns from those of a mask bool [B, h, w]; a tenth of `max_pool2d`'s time."""
    mask = F.pad(mask, (reach,) * 4)
    for axis in (1, 2):
        width = 1  # of the neighbours that are joined already
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            length = mask.shape[axis] - step
            mask, width = mask.narrow(axis, 0, length) | mask.narrow(axis, step, length), width + step
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
    picture = _first_of(shown)
    for seen in limbs.silhouettes or silhouettes(limbs, target, intrinsics, depth.shape[-1]):
        _mend(picture, seen)
    hand = Layers(picture.rgbd[:, None], target[:, None], picture.mask)
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


def _first_of(shown: Reposed) -> Reposed:
    """One picture of several: at each pixel the first that shows anything. rgbd [B, 4, h, w], mask and is_last
    [B, 1, h, w]."""
    first, mask, is_last = shown.rgbd[:, 0], shown.mask[:, :1], shown.is_last[:, :1]
    for place in range(1, shown.rgbd.shape[1]):
        one = slice(place, place + 1)
        first = torch.where(mask, first, shown.rgbd[:, place])
        is_last = torch.where(mask, is_last, shown.is_last[:, one])
        mask = mask | shown.mask[:, one]
    return Reposed(first, mask, is_last)


def _mend(picture: Reposed, hand: Silhouette) -> None:
    """Add as much of a hand as is certain to a picture of hands (_first_of): where cores of it are that no pixel shows,
    the mean colour of what is shown of hands closely around."""
    window, size = (..., hand.window.rows, hand.window.columns), 2 * PATCH + 1
    rgbd, mask, cores = picture.rgbd[window], picture.mask[window], hand.cores[:, None]
    counts = (mask & ~picture.is_last[window]).to(rgbd)
    total, share = F.avg_pool2d(torch.cat([rgbd[:, :3] * counts, counts], 1), size, 1, PATCH).split([3, 1], 1)
    is_mended = (cores < FAR) & ~mask & (share > 0.5 / size**2)
    patch = torch.cat([total / share.clamp_min(0.5 / size**2), encode_depth(cores)], 1)
    picture.rgbd[window] = torch.where(is_mended, patch, rgbd)
    picture.mask[window] = mask | is_mended


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


def _points_in(limbs: Limbs, hand: int) -> Tensor:
    """Points inside a hand and its forearm [B, K, 3] in world axes, in the order of `_Anatomy`."""
    points, wrist, anatomy = limbs.keypoints[:, hand], limbs.parts[:, hand, 0], _anatomy(limbs.parts.device)
    along = points[:, anatomy.first].lerp(points[:, anatomy.second], anatomy.share)
    forearm = torch.addcmul(wrist[:, None, :3, 3], wrist[:, None, :3, 2], anatomy.back, value=-1.0)
    return torch.cat([along, forearm], 1)


class _Anatomy(NamedTuple):
    """Points on bones: long first, second [M] keypoints and the share [M, 1] of the way between them; points on the
    forearm: metres back [ALONG_FOREARM, 1] from the wrist. And of all those, in this order: reach and core [K] metres
    around them, and the part [K] that they belong to, int32."""

    first: Tensor
    second: Tensor
    share: Tensor
    back: Tensor
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
        tensor(share, torch.float32)[:, None],
        torch.linspace(0.0, FOREARM, ALONG_FOREARM, device=device)[:, None],
        tensor((*reach, *(SLEEVE * one for one in sleeve)), torch.float32),
        tensor((*core, *(CORE_OF_SLEEVE * one for one in sleeve)), torch.float32),
        tensor((*part, *(0,) * ALONG_FOREARM), torch.int32),
    )


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _pixels(size: int, device: torch.device) -> Tensor:
    """Centres of pixels [size, size, 2]: column, row."""
    along = torch.arange(size, device=device) + 0.5
    return torch.stack([along.expand(size, size), along[:, None].expand(size, size)], -1)


def _reaches(surface: Tensor, centres: Tensor, reach: Tensor, part: Tensor) -> Tensor:
    """Which part's points reach the surfaces [B, P, 3] from centres [B, K, 3], both in camera axes, with reaches [B, K]
    in metres: long [B, P], the one that reaches farthest beyond it; -1 where none does. part int32 [K]."""
    middle = centres.mean(1, keepdim=True)  # near zero, or single precision loses the millimetres
    least, number = least_with_number(_beyond(surface - middle, centres - middle, reach), part[:, None], 1)
    return torch.where(least < 0.0, number, -1)


def _window(places: Tensor, radius: Tensor, size: int) -> Window:
    """The part of the picture outside of which no pixel is of a hand or its rim, by places [B, K, 2] and radius [B, K]
    in pixels of points in it, radius 0 for those that do not show; all of it where shapes are to be static."""
    if is_static(places):
        return Window(0, size, 0, size)
    # What lies nearer than the centre is larger in the picture, hence the half more; and a pixel beyond the rim.
    reach = torch.where(radius > 0.0, 1.5 * radius + (1.0 + RIM_OF_DREAMED), -torch.inf)[..., None]
    return window_around(torch.cat([reach - places, reach + places], -1), (size, size))


def _beyond(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """By how much points [B, P, C] are beyond balls of radius [B, K] around centres [B, K, C]: the difference of
    squares, [B, K, P]."""
    excess = centres.square().sum(-1, keepdim=True) - radius.square()[..., None]
    return torch.baddbmm(excess, centres, points.mT, alpha=-2.0).add_(points.square().sum(-1)[:, None])
