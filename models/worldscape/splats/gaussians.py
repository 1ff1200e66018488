"""3D Gaussians in the standard parametrisation of Gaussian splatting (Kerbl et al. 2023), B scenes of N each.

All tensors are unconstrained, so any optimiser may move them. A Gaussian that cannot be drawn (not finite, without
area, a quaternion of length zero) is no error: it is left out of every picture and gets gradient zero.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

HARMONIC_0 = 0.28209479177387814  # Y_0: 1 / (2 sqrt(pi))
HARMONIC_1 = 0.4886025119029199  # Y_1 over the direction: sqrt(3 / (4 pi))
LARGEST_POSITION = 1e6  # metres
LARGEST_SCALE, SMALLEST_SCALE = 1e4, 1e-6  # metres


class Gaussians(NamedTuple):
    """means [B, N, 3] metres, world axes; quaternions [B, N, 4] (w, x, y, z) of any length, Gaussian to world;
    log_scales [B, N, 3], log of the standard deviations in metres; opacity_logits [B, N]; harmonics [B, N, K, 3],
    spherical harmonics of RGB in [0, 1], degree 0 (K = 1) or 1 (K = 4), in the order of 3DGS.
    """

    means: Tensor
    quaternions: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    harmonics: Tensor

    def rows(self, rows: slice) -> "Gaussians":
        """The chosen scenes."""
        return Gaussians(*(part[rows] for part in self))


def check_gaussians(gaussians: Gaussians) -> None:
    """Raise ValueError when the shapes do not belong together."""
    batch = gaussians.means.shape[:2]
    shapes = {"means": (3,), "quaternions": (4,), "log_scales": (3,), "opacity_logits": ()}
    for name, tail in shapes.items():
        found = getattr(gaussians, name).shape
        if len(batch) != 2 or tuple(found) != (*batch, *tail):
            raise ValueError(f"{name} has shape {tuple(found)}; Gaussians are [B, N, ...], here {(*batch, *tail)}.")
    found = gaussians.harmonics.shape
    if len(found) != 4 or found[:2] != batch or found[2] not in (1, 4) or found[3] != 3:
        raise ValueError(f"harmonics have shape {tuple(found)}; give [B, N, K, 3] with K = 1 or 4 (degree 0 or 1).")


def is_drawable(gaussians: Gaussians) -> Tensor:
    """Which Gaussians can be drawn, bool [B, N]: finite, with a rotation, and with area (two scales above zero)."""
    finite = torch.stack([torch.isfinite(rearrange(part, "b n ... -> b n (...)")).all(-1) for part in gaussians])
    is_placed = (gaussians.means.abs() <= LARGEST_POSITION).all(-1)
    length = gaussians.quaternions.square().sum(-1)
    has_rotation = (length > 1e-12) & (length < 1e12)
    middle, largest = gaussians.log_scales.sort(-1).values[..., 1:].unbind(-1)
    has_area = (middle >= math.log(SMALLEST_SCALE)) & (largest <= math.log(LARGEST_SCALE))
    return finite.all(0) & is_placed & has_rotation & has_area


def replace_undrawable(gaussians: Gaussians, drawable: Tensor) -> Gaussians:
    """The Gaussians with harmless ones in place of those that are not drawable: no NaN, and no gradient, from them."""
    harmless = (0.0, 1.0, 0.0, 0.0, 0.0)
    parts = []
    for part, value in zip(gaussians, harmless, strict=True):
        keep = drawable.reshape(*drawable.shape, *[1] * (part.ndim - 2))
        parts.append(torch.where(keep, part, torch.full_like(part, value)))
    return Gaussians(*parts)


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Quaternions (w, x, y, z) [..., 4] of any length but zero -> rotations [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """Rotations [..., 3, 3] -> unit quaternions (w, x, y, z) [..., 4], of either sign (Shepperd's method)."""
    r = rotation
    d0, d1, d2 = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    a, b, c = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    p, q, s = r[..., 1, 0] + r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0], r[..., 2, 1] + r[..., 1, 2]
    by_largest = torch.stack(
        [
            torch.stack([1 + d0 + d1 + d2, a, b, c], -1),
            torch.stack([a, 1 + d0 - d1 - d2, p, q], -1),
            torch.stack([b, p, 1 - d0 + d1 - d2, s], -1),
            torch.stack([c, q, s, 1 - d0 - d1 + d2], -1),
        ],
        -2,
    )
    largest = torch.diagonal(by_largest, dim1=-2, dim2=-1).argmax(-1)
    chosen = by_largest.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    return torch.nn.functional.normalize(chosen, dim=-1)


def multiply_quaternions(left: Tensor, right: Tensor) -> Tensor:
    """Hamilton product [..., 4]: the rotation `right`, then `left`."""
    a, b, c, d = left.unbind(-1)
    w, x, y, z = right.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        -1,
    )


def harmonics_to_colour(harmonics: Tensor, direction: Tensor) -> Tensor:
    """Harmonics [..., K, 3] seen along unit directions [..., 3] (camera to Gaussian) -> RGB [..., 3], 0 or more."""
    colour = 0.5 + HARMONIC_0 * harmonics[..., 0, :]
    if harmonics.shape[-2] == 4:
        x, y, z = direction[..., None].unbind(-2)
        tilt = -y * harmonics[..., 1, :] + z * harmonics[..., 2, :] - x * harmonics[..., 3, :]
        colour = colour + HARMONIC_1 * tilt
    return colour.clamp_min(0.0).expand_as(direction)


def colour_to_harmonics(colour: Tensor) -> Tensor:
    """RGB in [0, 1] [..., 3] -> harmonics of degree 0, [..., 1, 3]."""
    return ((colour - 0.5) / HARMONIC_0)[..., None, :]


def rotate_harmonics(harmonics: Tensor, rotation: Tensor) -> Tensor:
    """Harmonics [..., K, 3] in axes that `rotation` [..., 3, 3] takes to the world's -> harmonics in world axes.

    Degree 1 is a vector: in the order of 3DGS its (x, y, z) stand at (-3, -1, +2).
    """
    if harmonics.shape[-2] == 1:
        return harmonics
    constant, y, z, x = harmonics.unbind(-2)
    x, y, z = (rotation @ torch.stack([-x, -y, z], -2)).unbind(-2)
    return torch.stack([constant, -y, z, -x], -2)
