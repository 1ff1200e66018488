"""Warp-only: what geometry gives without a network. The start frames, reprojected; holes filled from around them."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from worldscape.conditioning.reproject import encode_depth, reproject
from worldscape.engine_frames import Start
from worldscape.evaluate.fidelity import Warped

ROWS = 8  # starts warped at once: as many as caches hold the pictures of


def warp_start(start: Start, pose: Tensor) -> Warped:
    """Start frames with depth and poses, target pose [B, 4, 4] -> the view from there, the newest frame first choice.

    Raises ValueError for a start without depth or poses.
    """
    if start.depth is None or start.pose is None or start.intrinsics is None:
        raise ValueError("warp-only needs starts with depth, pose and intrinsics; choose a source that has them")
    parts = [tensor.flip(dims=[1]) for tensor in (start.frames, start.depth, start.pose)]  # newest first
    parts += [start.intrinsics, pose]
    warped = [_warp(*rows) for rows in zip(*(part.split(ROWS) for part in parts), strict=True)]
    return Warped(*(torch.cat(part) for part in zip(*warped, strict=True)))


def _warp(frames: Tensor, depth: Tensor, poses: Tensor, intrinsics: Tensor, pose: Tensor) -> Warped:
    colour = rearrange(frames.float() / 127.5 - 1, "b f h w c -> b f c h w")
    rgbd = torch.cat([colour, rearrange(encode_depth(depth.float()), "b f h w -> b f 1 h w")], dim=2)
    valid = torch.ones(frames.shape[:2], dtype=torch.bool)
    anchor = reproject(rgbd, poses, valid, pose, intrinsics)
    filled = fill_holes(anchor.rgbd[:, :3], anchor.mask, colour.mean(dim=(1, 3, 4)))
    picture = ((filled + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Warped(rearrange(picture, "b c h w -> b h w c"), anchor.mask[:, 0] > 0.5)


def fill_holes(picture: Tensor, mask: Tensor, fallback: Tensor) -> Tensor:
    """Picture [B, C, h, w] with mask [B, 1, h, w] of known pixels -> holes filled by push-pull (Gortler et al. 1996).

    A hole takes the mean of the known pixels in the smallest aligned block around it, smoothed; a picture without any
    known pixel takes `fallback` [B, C].
    """
    if picture.shape[-1] == 1:
        return torch.where(mask > 0, picture, repeat(fallback, "b c -> b c 1 1"))
    share = F.avg_pool2d(mask, 2, ceil_mode=True)  # the last block of an odd side is half a one
    coarse = F.avg_pool2d(picture * mask, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = fill_holes(coarse, (share > 0).to(mask.dtype), fallback)
    smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(mask > 0, picture, smooth[..., : picture.shape[-2], : picture.shape[-1]])
