"""EWA splatting (Zwicker et al. 2001): what each 3D Gaussian looks like in the plane of each picture.

Pinhole cameras, OpenCV axes, normalised intrinsics; the conventions of 3DGS and gsplat, so that pictures agree.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.conditioning.camera import invert_pose
from worldscape.conditioning.reproject import MIN_DEPTH
from worldscape.splats.gaussians import (
    Gaussians,
    harmonics_to_colour,
    is_drawable,
    replace_undrawable,
    rotation_from_quaternion,
)

LOW_PASS = 0.3  # pixels^2 added to every footprint, so that none falls between pixel centres
SMALLEST_ALPHA = 1.0 / 255.0  # what is fainter at a pixel is not drawn there
VIEW_MARGIN = 0.3  # share of the half view by which a mean may lie outside before its slope is held (as in 3DGS)


class Footprints(NamedTuple):
    """Gaussians as seen by V views: centre [B, V, N, 2] pixels (column, row); conic [B, V, N, 3], entries (xx, xy, yy)
    of the inverse 2-D covariance; depth [B, V, N] metres; colour [B, V, N, 3]; log_opacity [B, V, N]; reach
    [B, V, N, 2], half the box outside which alpha < 1/255; visible bool [B, V, N].
    """

    centre: Tensor
    conic: Tensor
    depth: Tensor
    colour: Tensor
    log_opacity: Tensor
    reach: Tensor
    visible: Tensor


class _Local(NamedTuple):
    """Means [B, V, N, 3] and square roots of the covariance [B, V, N, 3, 3] in camera axes."""

    means: Tensor
    roots: Tensor


def project(gaussians: Gaussians, poses: Tensor, intrinsics: Tensor, size: int) -> Footprints:
    """Gaussians of B scenes, poses [B, V, 4, 4], intrinsics [B, V, 4], pictures of size x size -> Footprints.

    Not visible: what cannot be drawn (`is_drawable`), lies nearer than 0.05 m or behind, is too faint, or off-screen.
    Those entries are finite, mean nothing and get no gradient.
    """
    drawable = is_drawable(gaussians)
    safe = replace_undrawable(gaussians, drawable)
    local = _to_camera(safe, poses)
    in_front = drawable[:, None] & (local.means[..., 2] > MIN_DEPTH)
    ahead = local.means.new_tensor([0.0, 0.0, 1.0])
    x, y, z = torch.where(in_front[..., None], local.means, ahead).unbind(-1)
    fx, fy, cx, cy = (repeat(value * size, "b v -> b v 1") for value in intrinsics.unbind(-1))
    centre = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    across = _slope(local.roots, _hold(x / z, fx, cx, size), z, fx, axis=0)
    down = _slope(local.roots, _hold(y / z, fy, cy, size), z, fy, axis=1)
    covariance, conic = _covariance(across, down)
    log_opacity = repeat(torch.nn.functional.logsigmoid(safe.opacity_logits), "b n -> b v n", v=poses.shape[1])
    reach = _reach(covariance, log_opacity)
    on_screen = ((centre + reach > 0) & (centre - reach < size)).all(-1)
    colour = harmonics_to_colour(safe.harmonics[:, None], _directions(safe.means, poses))
    return Footprints(centre, conic, z, colour, log_opacity, reach, in_front & on_screen & (reach > 0).all(-1))


def _to_camera(gaussians: Gaussians, poses: Tensor) -> _Local:
    to_camera = invert_pose(poses)
    rotation, shift = to_camera[..., :3, :3], to_camera[..., :3, 3]
    means = torch.einsum("bvij,bnj->bvni", rotation, gaussians.means) + shift[:, :, None]
    roots = rotation_from_quaternion(gaussians.quaternions) * gaussians.log_scales.exp()[..., None, :]
    return _Local(means, torch.einsum("bvij,bnjk->bvnik", rotation, roots))


def _hold(slope: Tensor, focal: Tensor, principal: Tensor, size: int) -> Tensor:
    """x / z limited to the view and a margin: far outside, the linearised projection would blow up."""
    margin = VIEW_MARGIN * 0.5 * size / focal
    return slope.clamp(-(principal / focal + margin), (size - principal) / focal + margin)


def _slope(roots: Tensor, held: Tensor, z: Tensor, focal: Tensor, axis: int) -> Tensor:
    """One row of the projection's Jacobian times the covariance's root: [B, V, N, 3] pixels."""
    return (focal / z)[..., None] * (roots[..., axis, :] - held[..., None] * roots[..., 2, :])


def _covariance(across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobian rows -> variances (xx, yy) [..., 2] and conic [..., 3].

    The determinant is summed from squares (Lagrange's identity): thin footprints lose no digits and never reach zero.
    """
    raw_xx, raw_yy, xy = across.square().sum(-1), down.square().sum(-1), (across * down).sum(-1)
    area = torch.linalg.cross(across, down).square().sum(-1)
    determinant = area + LOW_PASS * (raw_xx + raw_yy) + LOW_PASS**2
    variances = torch.stack([raw_xx, raw_yy], -1) + LOW_PASS
    xx, yy = variances.unbind(-1)
    return variances, torch.stack([yy, -xy, xx], -1) / determinant[..., None]


def _reach(variances: Tensor, log_opacity: Tensor) -> Tensor:
    """Half-width and half-height of the box outside which opacity * Gaussian < SMALLEST_ALPHA; 0: nowhere above."""
    fade = (log_opacity.detach() - torch.log(log_opacity.new_tensor(SMALLEST_ALPHA))).clamp_min(0.0)
    return (2.0 * fade[..., None] * variances.detach()).sqrt()


def _directions(means: Tensor, poses: Tensor) -> Tensor:
    """Unit vectors from the cameras to the Gaussians, world axes: [B, V, N, 3]."""
    away = means[:, None] - rearrange(poses[..., :3, 3], "b v xyz -> b v 1 xyz")
    return torch.nn.functional.normalize(away, dim=-1)
