"""Layers of remembered pictures: the still scene, and hands and their object, taken along to where they are now.

A hand is a chain of rigid parts: the palm with the forearm, and the bones of its fingers. Each pixel of a hand belongs
to one of them and moves with it, so a hand that was seen once can be shown wherever it is and however it is bent now.
What no picture shows of it takes its colour from what they show closely around.
The object that hands are about is one part more, which belongs to the scene until it was moved.
The other pixels are a picture without them, behind which older pictures show the scene.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.camera import camera_axes, invert_pose, pixel_centres
from worldscape.conditioning.hand_model import BONES, NUM_FINGERS, NUM_PARTS
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.repose import Reposed, least_with_number, repose
from worldscape.conditioning.reproject import FAR, MIN_DEPTH, believed, encode_depth, pixelwise
from worldscape.conditioning.shapes import Window, is_static, windows_around

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
    the picture outside of which no pixel is of it or of its rim; within that, inner, outside of which no core of it is
    nor what is closely around one; and in there cores [B, h', w'], metres to the nearest core in each pixel, FAR where
    there is none."""

    centres: Tensor
    window: Window
    inner: Window
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
        thing = _identity(hands.device, hands.dtype).expand(len(hands), 1, 4, 4).clone()
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
    owner, points, anatomy = torch.zeros_like(depth), _surface(depth, intrinsics), _anatomy(depth.device)
    for hand, seen in zip(limbs.rows, limbs.silhouettes or silhouettes(limbs, pose, intrinsics, size), strict=True):
        rows, columns = seen.window.rows, seen.window.columns
        surface, reach = points[..., rows, columns], anatomy.reach * limbs.present[:, hand, None]
        reached = _reaches(surface.flatten(2), seen.centres, reach, anatomy.part).view_as(surface[:, 0])
        is_own = reached >= 0
        is_own[(slice(None), *seen.inner.within(seen.window))].logical_or_(seen.cores < FAR)
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
        window, inner = _windows(places, metre, anatomy, size)
        pixels = pixel_centres(size, pose.device, pose.dtype)[inner.rows, inner.columns]
        flat = pixels.flatten(0, 1).mT.expand(len(pose), -1, -1)
        is_outside = _beyond(flat, places, metre * anatomy.core) >= 0.0
        nearest = torch.where(is_outside, FAR, z - anatomy.core[:, None]).amin(1)
        found.append(Silhouette(centres, window, inner, nearest.view(-1, *pixels.shape[:2])))
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
    """Owners [B, h, w] of surface points [B, 3, h, w] in camera axes, where the object has what no hand owns of its
    surroundings, above the table."""
    centre = pose[:, :3, :3].mT @ (thing.centre - pose[:, :3, 3])[..., None]
    away = points - centre[..., None]
    below = (away * pose[:, 1, :3, None, None]).sum(1)
    is_above = below < (thing.table - thing.centre[:, 1] - ABOVE_TABLE)[:, None, None]
    is_free = (owner == NOBODY) & thing.present[:, None, None]
    is_own = (away.square().sum(1) < OBJECT_REACH**2) & is_above & is_free
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
    is_free = (still.owner == NOBODY) | ~moves[:, None, None, None]
    if limbs.thing is not None:
        stands = ~_is_carried(still, limbs.thing)[..., None, None]
        is_free = is_free | (((still.owner == OBJECT) | (still.owner == OBJECT_RIM)) & stands)
    valid = pixelwise(still.valid, still.rgbd) & is_free
    scene = Layers(still.rgbd, still.poses, believed(still.rgbd, still.poses, valid, target, intrinsics, moves))
    moved = parts[:, None] @ invert_pose(hands.parts)
    to_view = invert_pose(target)[:, None, None] @ moved @ hands.poses[:, :, None]
    part = (hands.owner.int() - 1).clamp(0, NUM_MOVING - 1)
    picture = repose(hands.rgbd, part, _shows(hands, limbs), to_view, _joined(part.device), intrinsics)
    for seen in limbs.silhouettes or silhouettes(limbs, target, intrinsics, picture.rgbd.shape[-1]):
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
        own = (hands.owner - (NUM_PARTS * hand + 1)) < NUM_PARTS  # what is below 0 is large in uint8
        shows = shows | (own & limbs.present[:, hand, None, None, None])
    if limbs.thing is not None:
        shows = shows | ((hands.owner == OBJECT) & _is_carried(hands, limbs.thing)[..., None, None])
    return shows & hands.valid[..., None, None]


def _mend(picture: Reposed, hand: Silhouette) -> None:
    """Add as much of a hand as is certain to a picture of hands (`repose`): where cores of it are that no pixel shows,
    the mean colour of what is shown of hands closely around."""
    window = (..., hand.inner.rows, hand.inner.columns)
    rgbd, mask, cores = picture.rgbd[window], picture.mask[window], hand.cores[:, None]
    counts = (mask & ~picture.is_last[window]).to(rgbd)
    near = _near(picture.rgbd.shape[-1], rgbd.device, rgbd.dtype)
    over, across = (near[:side, :side] for side in mask.shape[-2:])
    total, number = (over @ torch.cat([rgbd[:, :3] * counts, counts], 1) @ across).split([3, 1], 1)
    is_mended = (cores < FAR) & ~mask & (number > 0.5)
    patch = torch.cat([total / number.clamp_min(1.0), encode_depth(cores)], 1)
    picture.rgbd[window] = torch.where(is_mended, patch, rgbd)
    picture.mask[window] = mask | is_mended


@made_once
def _near(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 where rows (or columns) are at most PATCH apart, else 0: [size, size]."""
    return torch.ones(size, size, dtype=dtype, device=device).triu(-PATCH).tril(PATCH)


@made_once
def _identity(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.eye(4, dtype=dtype, device=device)


@made_once
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


@made_once
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


def _reaches(surface: Tensor, centres: Tensor, reach: Tensor, part: Tensor) -> Tensor:
    """Which part's points reach the surfaces [B, 3, P] from centres [B, K, 3], both in camera axes, with reaches [B, K]
    in metres: long [B, P], the one that reaches farthest beyond it; -1 where none does. part int32 [K]."""
    middle = centres.mean(1, keepdim=True)  # near zero, or single precision loses the millimetres
    least, number = least_with_number(_beyond(surface - middle.mT, centres - middle, reach), part[:, None], 1)
    return torch.where(least < 0.0, number, -1)


def _windows(places: Tensor, metre: Tensor, anatomy: _Anatomy, size: int) -> tuple[Window, Window]:
    """`window` and `inner` of a Silhouette; all of the picture where shapes are to be static. places [B, K, 2] (pixels)
    of points in a hand, and metre [B, K]: how many pixels a metre is there, 0 for points that do not show."""
    if is_static(places):
        return Window(0, size, 0, size), Window(0, size, 0, size)
    # What lies nearer than the centre is larger in the picture, hence the half more; and a pixel beyond the rim.
    radii = torch.stack([1.5 * metre * anatomy.reach + (1.0 + RIM_OF_DREAMED), metre * anatomy.core + (1.0 + PATCH)])
    radii = torch.where(metre > 0.0, radii, -torch.inf)[..., None]
    outer, inner = windows_around(torch.cat([radii - places, radii + places], -1), (size, size))
    return outer, inner


def _surface(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Depth [B, h, h] in metres -> the points that are seen, in camera axes, [B, 3, h, h]."""
    x, y = camera_axes(intrinsics, depth.shape[-1]).unbind(1)
    return torch.stack([x[:, None] * depth, y[..., None] * depth, depth], 1)


def _beyond(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """By how much points [B, C, P] are beyond balls of radius [B, K] around centres [B, K, C]: the difference of
    squares, [B, K, P]."""
    excess = centres.square().sum(-1, keepdim=True) - radius.square()[..., None]
    return torch.baddbmm(excess, centres, points, alpha=-2.0).add_(points.square().sum(1, keepdim=True))
