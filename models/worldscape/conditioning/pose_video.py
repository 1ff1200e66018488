"""Pose video: hand keypoints drawn as WorldScape conditions on them, a finger-coloured skeleton on black, with depth.

Bones are capsules with soft edges, the nearer one in front at each pixel; a bone fades towards a joint that is hidden.
There is no loop over slots, and on a GPU or compiled, shapes are static, so a step can be captured; elsewhere only the
window that the hands reach is drawn.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from worldscape.conditioning.hand_model import BONES, NUM_KEYPOINTS
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.shapes import Window, is_static, windows_around

RADIUS = 0.007  # metres, half the thickness of a drawn bone
SMALLEST_RADIUS = 0.55  # pixels, so that far hands stay visible
NEAR = 0.02  # metres in front of the eyes from which on a joint can be drawn
HIDDEN = 0.35  # opacity of a hidden joint
CLOSE = 0.2  # metres from the eyes at which nearness is 1
NOT_DRAWN = -1e3  # reach in pixels
POSE_CHANNELS = 4

_RIGHT_COLOURS = ((1.0, 0.2, 0.2), (1.0, 0.75, 0.1), (0.25, 0.95, 0.25), (0.2, 0.6, 1.0), (0.85, 0.35, 1.0))
_LEFT_TINT = 0.6
"""Thumb red, index yellow, middle green, ring blue, little violet; the left hand's colours are darker."""


class PoseVideo(NamedTuple):
    """picture [B, 4, h, w], which the generator is told: image and nearness; present bool [B, hands]."""

    picture: Tensor
    present: Tensor

    @property
    def image(self) -> Tensor:
        """[B, 3, h, w] in [0, 1], black where no hand is."""
        return self.picture[:, :-1]

    @property
    def nearness(self) -> Tensor:
        """[B, 1, h, w] in [0, 1]: `CLOSE` over the depth of what is drawn, as opaque as that is."""
        return self.picture[:, -1:]


class _Capsules(NamedTuple):
    """Bones [B, N] in pictures: start and end [..., 2] in pixels; at both ends [..., 2] depth, reach (how far from
    there they are seen, pixels; below 0 where they are not drawn), and opacity, None where all of it is visible."""

    start: Tensor
    end: Tensor
    depth: Tensor
    reach: Tensor
    opacity: Tensor | None


def draw_pose_video(
    keypoints: Tensor,
    visible: Tensor | None,
    present: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
) -> PoseVideo:
    """Hands in front of cameras -> pictures of their skeletons.

    keypoints [B, H, 21, 3] in world axes (metres), visible [B, H, 21] in [0, 1] or bool (None: all are), present bool
    [B, H] (the rows of absent hands are ignored, whatever they hold); H is 2 (left, right) or 1 (right). pose [B, 4, 4]
    camera to world, intrinsics [B, 4] over the picture size; size = (h, w) in pixels. Frames of a video go into B.
    Raises ValueError for other shapes.
    """
    _check(keypoints, visible, present)
    keypoints = torch.where(present[..., None, None], keypoints, torch.zeros_like(keypoints))
    capsules = _project(keypoints, visible, present, pose, intrinsics, size)
    window = Window(0, size[0], 0, size[1]) if is_static(keypoints) else _window(capsules, size)
    colours = _skeleton(keypoints.shape[1], keypoints.device, keypoints.dtype).colours
    around = (window.left, size[1] - window.right, window.top, size[0] - window.bottom)
    return PoseVideo(pad(_composite(capsules, window, colours), around), present)


def bone_colours(num_hands: int) -> Tensor:
    """Colour of each bone [20 * num_hands, 3], hands in the order (left, right), or the right one alone."""
    right = torch.tensor(_RIGHT_COLOURS).repeat_interleave(4, 0)
    return torch.cat([_LEFT_TINT * right, right]) if num_hands == 2 else right


class _Skeleton(NamedTuple):
    """ends: keypoints that each of 20 bones joins, long [20, 2]; colours [20 * hands, 3]."""

    ends: Tensor
    colours: Tensor


@made_once
def _skeleton(num_hands: int, device: torch.device, dtype: torch.dtype) -> _Skeleton:
    return _Skeleton(torch.tensor(BONES, device=device), bone_colours(num_hands).to(device, dtype))


def _project(
    keypoints: Tensor, visible: Tensor | None, present: Tensor, pose: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> _Capsules:
    points = (keypoints - pose[:, None, None, :3, 3]) @ pose[:, None, :3, :3]
    z = points[..., 2]
    depth = z.clamp_min(NEAR)
    both = torch.stack([intrinsics[:, 0::2] * size[1], intrinsics[:, 1::2] * size[0]], -1)
    focal, middle = both[:, None, None].unbind(-2)
    pixels = torch.addcmul(middle, points[..., :2] / depth[..., None], focal)
    reach = (RADIUS * focal[..., 0] / depth).clamp_min(SMALLEST_RADIUS) + 0.5
    ends = _skeleton(keypoints.shape[1], keypoints.device, keypoints.dtype).ends
    is_drawn = (z > NEAR)[..., ends].all(-1) & present[..., None]
    start, end = pixels[..., ends, :].flatten(1, 2).unbind(2)
    depth, reach = torch.stack([depth, reach])[..., ends].unbind(0)
    reach = torch.where(is_drawn[..., None], reach, NOT_DRAWN)
    opacity = None
    if visible is not None:
        opacity = (HIDDEN + (1 - HIDDEN) * visible.to(keypoints.dtype).clamp(0.0, 1.0))[..., ends].flatten(1, 2)
    return _Capsules(start, end, depth.flatten(1, 2), reach.flatten(1, 2), opacity)


def _window(capsules: _Capsules, size: tuple[int, int]) -> Window:
    """The part of the picture, of at least a pixel, outside of which no bone of any row is drawn."""
    reach = capsules.reach.amax(-1, keepdim=True) + 0.5
    reach = torch.where(reach > 0.0, reach, -torch.inf)
    ends = torch.cat(
        [reach - torch.minimum(capsules.start, capsules.end), reach + torch.maximum(capsules.start, capsules.end)], -1
    )
    return windows_around(ends[None], size)[0]


def _composite(capsules: _Capsules, window: Window, colours: Tensor) -> Tensor:
    """What each pixel of the window shows of N bones of these colours [N, 3], the nearest in front: image and nearness
    [B, 4, h, w]."""
    # Bones last and in one piece: sorting them is most of the drawing's time, and a third faster like this.
    alpha, depth = (value.permute(0, 2, 3, 1) for value in _cover(capsules, window))
    shape = alpha.shape[:3]
    if is_static(alpha):
        drawn = torch.cat(_blend(alpha.contiguous(), depth.contiguous(), colours), -1)
    else:  # most of a window is black
        where = (alpha > 0.0).any(-1).nonzero().unbind(1)
        shown = torch.cat(_blend(alpha[where], depth[where], colours), -1)
        drawn = shown.new_zeros(*shape, POSE_CHANNELS).index_put(where, shown)
    return drawn.permute(0, 3, 1, 2)


def _blend(alpha: Tensor, depth: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and depth of each bone at each pixel [..., N] -> colours [..., 3] and nearness [..., 1]."""
    order = depth.argsort(dim=-1, stable=True)  # fingers meet at the wrist at equal depth
    alpha = alpha.gather(-1, order)
    behind = torch.cumprod(1.0 - alpha, dim=-1)
    weight = alpha * torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], -1)
    weight = torch.zeros_like(weight).scatter(-1, order, weight)
    return weight @ colours, (weight * (CLOSE / depth.clamp_min(CLOSE))).sum(-1, keepdim=True)


def _cover(capsules: _Capsules, window: Window) -> tuple[Tensor, Tensor]:
    """-> opacity and depth of each bone at each pixel of the window, [B, N, h, w] each."""
    like = {"device": capsules.start.device, "dtype": capsules.start.dtype}
    rows, columns = (torch.arange(first + 0.5, last, **like) for first, last in (window[:2], window[2:]))
    along = capsules.end - capsules.start
    per_length = along / along.square().sum(-1, keepdim=True).clamp_min(1e-6)
    x0, y0, across, down, a, b = torch.cat([capsules.start, along, per_length], -1)[..., None, None].unbind(2)
    x, y = columns - x0, rows[:, None] - y0
    share = torch.addcmul(x * a, y, b).clamp(0.0, 1.0)
    aside, above = torch.addcmul(x, share, across, value=-1.0), torch.addcmul(y, share, down, value=-1.0)
    distance = torch.addcmul(aside.square() + 1e-12, above, above).sqrt()
    alpha = (_between(capsules.reach, share) - distance).clamp(0.0, 1.0)
    alpha = alpha if capsules.opacity is None else alpha * _between(capsules.opacity, share)
    return alpha, _between(capsules.depth, share)


def _between(ends: Tensor, share: Tensor) -> Tensor:
    """Values [B, N, 2] at the ends of bones -> at shares [B, N, h, w] of the way."""
    one, other = ends[..., None, None].unbind(2)
    return torch.addcmul(one, share, other - one)


def _check(keypoints: Tensor, visible: Tensor | None, present: Tensor) -> None:
    batch, hands = keypoints.shape[:2] if keypoints.ndim == 4 else (0, 0)
    expected = ((batch, hands, NUM_KEYPOINTS, 3), (batch, hands, NUM_KEYPOINTS), (batch, hands))
    given = tuple(
        tuple(value.shape) for value in (keypoints, keypoints[..., 0] if visible is None else visible, present)
    )
    if hands not in (1, 2) or given != expected:
        raise ValueError(
            f"keypoints, visible and present have shapes {given}; give [B, H, 21, 3], [B, H, 21] and [B, H] "
            "for H = 1 or 2 hands."
        )
