"""Scenes of Gaussians for the tests, and the rasteriser's naive twin: loops over pixels and Gaussians in NumPy."""

import math

import numpy as np
import torch

from worldscape.conditioning.camera import pose_from_state
from worldscape.splats.gaussians import Gaussians

INTRINSICS = (0.6, 0.7, 0.5, 0.47)


def random_scene(batch: int, number: int, *, seed: int = 0, degree: int = 1, dtype=torch.float64) -> Gaussians:
    """Gaussians of all shapes, some behind the origin, some beside the view."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Gaussians(
        means=normal(batch, number, 3) * torch.tensor([1.5, 1.5, 2.0]) + torch.tensor([0.0, 0.0, 3.0]),
        quaternions=normal(batch, number, 4),
        log_scales=0.6 * normal(batch, number, 3) - 2.0,
        opacity_logits=1.5 * normal(batch, number) + 0.5,
        harmonics=0.5 * normal(batch, number, (degree + 1) ** 2, 3),
    )


def one_gaussian(
    *, mean=(0.0, 0.0, 2.0), scale=(0.2, 0.2, 0.2), opacity=0.8, colour=(1.0, 0.5, 0.25), quaternion=(1, 0, 0, 0)
):
    """A scene of one Gaussian of one colour, float64."""
    tensor = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return Gaussians(
        means=tensor([[mean]]),
        quaternions=tensor([[quaternion]]),
        log_scales=tensor([[scale]]).log(),
        opacity_logits=torch.logit(tensor([[opacity]])),
        harmonics=(tensor([[[colour]]]) - 0.5) / 0.28209479177387814,
    )


def join(*scenes: Gaussians) -> Gaussians:
    """All Gaussians of several scenes in one."""
    return Gaussians(*(torch.cat(parts, 1) for parts in zip(*scenes, strict=True)))


def views(batch: int, number: int, *, seed: int = 1, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses [B, V, 4, 4] around the origin, and intrinsics [B, V, 4]; the first pose is the identity."""
    state = 0.3 * torch.randn(batch, number, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    state[:, 0] = 0.0
    return pose_from_state(state), torch.tensor(INTRINSICS, dtype=dtype).expand(batch, number, 4)


def draw_naively(scene: Gaussians, pose: torch.Tensor, intrinsics: torch.Tensor, size: int) -> np.ndarray:
    """One scene (B = 1) from one camera, straight from the formulas -> [h, w, 5]: RGB, depth, alpha."""
    means, quaternions, log_scales, logits, harmonics = (part[0].detach().double().numpy() for part in scene)
    to_camera = np.linalg.inv(pose.double().numpy())
    fx, fy, cx, cy = intrinsics.double().numpy() * size
    found = []
    for mean, quaternion, log_scale, logit, shape in zip(
        means, quaternions, log_scales, logits, harmonics, strict=True
    ):
        x, y, z = to_camera[:3, :3] @ mean + to_camera[:3, 3]
        if z <= 0.05:
            continue
        axes = to_camera[:3, :3] @ rotation(quaternion) @ np.diag(np.exp(log_scale))
        tx = z * np.clip(x / z, -(cx / fx + 0.15 * size / fx), (size - cx) / fx + 0.15 * size / fx)
        ty = z * np.clip(y / z, -(cy / fy + 0.15 * size / fy), (size - cy) / fy + 0.15 * size / fy)
        jacobian = np.array([[fx / z, 0, -fx * tx / z**2], [0, fy / z, -fy * ty / z**2]])
        covariance = jacobian @ axes @ axes.T @ jacobian.T + 0.3 * np.eye(2)
        direction = (mean - pose[:3, 3].numpy()) / np.linalg.norm(mean - pose[:3, 3].numpy())
        centre = np.array([fx * x / z + cx, fy * y / z + cy])
        found.append((z, centre, np.linalg.inv(covariance), 1 / (1 + math.exp(-logit)), colour(shape, direction)))
    found.sort(key=lambda item: item[0])
    picture = np.zeros((size, size, 5))
    for row in range(size):
        for column in range(size):
            picture[row, column] = blend(found, np.array([column + 0.5, row + 0.5]))
    return picture


def blend(found: list, pixel: np.ndarray) -> np.ndarray:
    total, passes = np.zeros(5), 1.0
    for z, centre, inverse, opacity, shade in found:
        alpha = min(opacity * math.exp(-0.5 * (pixel - centre) @ inverse @ (pixel - centre)), 0.999)
        if alpha >= 1 / 255:
            total += passes * alpha * np.array([*shade, z, 1.0])
            passes *= 1 - alpha
    total[3] /= max(total[4], 1e-8)
    return total


def colour(harmonics: np.ndarray, direction: np.ndarray) -> np.ndarray:
    x, y, z = direction
    basis = [0.28209479177387814, -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    return np.maximum(0.5 + sum(b * h for b, h in zip(basis, harmonics, strict=False)), 0.0)


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """By Rodrigues' formula rather than the polynomial that the package uses."""
    w, *axis = quaternion / np.linalg.norm(quaternion)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross
