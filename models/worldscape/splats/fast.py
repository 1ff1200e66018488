"""gsplat's CUDA kernels behind the interface of `render`: the same conventions, so the same pictures (a gpu test)."""

import importlib.util

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.conditioning.camera import invert_pose
from worldscape.conditioning.reproject import MIN_DEPTH
from worldscape.splats.gaussians import Gaussians, is_drawable, replace_undrawable


def is_installed() -> bool:
    """Whether gsplat can be imported."""
    return importlib.util.find_spec("gsplat") is not None


def rasterise(gaussians: Gaussians, poses: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `render`, on CUDA -> rgb [B, V, 3, h, w], depth and alpha [B, V, h, w]. Raises ImportError without gsplat."""
    if not is_installed():
        raise ImportError("backend 'gsplat' needs gsplat on CUDA: `pip install gsplat`, or take backend='torch'.")
    drawable = is_drawable(gaussians)
    safe = replace_undrawable(gaussians, drawable)
    opacity = torch.where(drawable, safe.opacity_logits.sigmoid(), 0.0)
    scenes = [
        _draw_scene(safe.rows(slice(b, b + 1)), opacity[b], poses[b], intrinsics[b], size) for b in range(len(poses))
    ]
    colour, alpha = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    picture = rearrange(colour, "b v h w k -> b v k h w")
    return picture[:, :, :3], picture[:, :, 3], alpha[..., 0]


def _draw_scene(
    scene: Gaussians, opacity: Tensor, poses: Tensor, intrinsics: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """One scene from V views -> colour and expected depth [V, h, w, 4], alpha [V, h, w, 1]."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    means, quaternions, log_scales, _, harmonics = (part[0] for part in scene)
    colour, alpha, _ = rasterization(
        means,
        quaternions,
        log_scales.exp(),
        opacity,
        harmonics,
        invert_pose(poses),
        _camera_matrices(intrinsics, size),
        size,
        size,
        near_plane=MIN_DEPTH,
        sh_degree=0 if harmonics.shape[1] == 1 else 1,
        render_mode="RGB+ED",
    )
    return colour, alpha


def _camera_matrices(intrinsics: Tensor, size: int) -> Tensor:
    """Normalised intrinsics [V, 4] -> pinhole matrices in pixels [V, 3, 3]."""
    matrix = repeat(
        torch.eye(3, dtype=intrinsics.dtype, device=intrinsics.device), "r c -> v r c", v=len(intrinsics)
    ).clone()
    fx, fy, cx, cy = (intrinsics * size).unbind(-1)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2] = fx, fy, cx, cy
    return matrix
