"""Gaussians along pixel rays: where a picture's cells lie in the world, and a place straight from RGB-D pictures."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.conditioning.camera import camera_rays
from worldscape.conditioning.reproject import MIN_DEPTH, decode_depth
from worldscape.splats.gaussians import Gaussians, colour_to_harmonics

PIXEL_SCALE = 0.5  # standard deviation of a pixel's Gaussian, in pixels at its depth: solid also when magnified
PIXEL_LOGIT = 4.0  # opacity 0.98: surfaces are solid, and edges still blend


def unproject(rgbd: Tensor, poses: Tensor, intrinsics: Tensor, *, scale: float = PIXEL_SCALE) -> Gaussians:
    """One ball per pixel: rgbd [B, T, 4, h, h] (RGB and inverse depth in [-1, 1]), poses [B, T, 4, 4] camera to world,
    intrinsics [B, 4] -> Gaussians [B, T * h * h].

    scale: standard deviation of each, in pixels at its depth.
    Pixels that are not finite are given a logit of -inf, so that nothing draws or exports them.
    """
    depth = decode_depth(rgbd[:, :, 3])
    keep = torch.isfinite(rgbd).all(2) & (depth > MIN_DEPTH)
    depth = torch.where(keep, depth, 1.0)
    colour = torch.where(keep[:, :, None], rgbd[:, :, :3], 0.0) / 2 + 0.5
    means = place_on_rays(depth, torch.zeros_like(depth)[..., None].expand(*depth.shape, 2), poses, intrinsics)
    width = scale * cell_width(depth, intrinsics)
    flat = "b t h w ... -> b (t h w) ..."
    upright = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=rgbd.dtype, device=rgbd.device)
    means = rearrange(means, flat)
    return Gaussians(
        means=means,
        quaternions=upright.expand(*means.shape[:2], 4),
        log_scales=repeat(width.log(), "b t h w -> b (t h w) three", three=3),
        opacity_logits=rearrange(torch.where(keep, PIXEL_LOGIT, -torch.inf).to(rgbd.dtype), flat),
        harmonics=rearrange(colour_to_harmonics(rearrange(colour, "b t c h w -> b t h w c")), flat),
    )


def place_on_rays(depth: Tensor, offset: Tensor, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Depth [B, T, c, c] metres along the rays through c x c cells -> world points [B, T, c, c, 3].

    offset [B, T, c, c, 2]: how far right and down of its cell's centre a ray passes, in cells.
    """
    cells = depth.shape[-1]
    rays = camera_rays(intrinsics, cells)[:, None]
    shift = offset / (cells * intrinsics[:, None, None, None, :2])
    rays = rays + torch.nn.functional.pad(shift, (0, 1))
    points = torch.einsum("btij,bthwj->bthwi", poses[..., :3, :3], rays * depth[..., None])
    return points + poses[:, :, None, None, :3, 3]


def cell_width(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Metres that one of c x c cells covers across at depth [B, T, c, c]."""
    return depth / (depth.shape[-1] * intrinsics[:, 0, None, None, None])
