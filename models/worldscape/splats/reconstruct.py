"""From frames with depth and cameras to Gaussians of the place: unprojected, or by an aggregator where there is one."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from worldscape.codec import Codec
from worldscape.conditioning.camera import invert_pose, level_pose
from worldscape.splats.aggregator import Aggregator, Context
from worldscape.splats.gaussians import Gaussians
from worldscape.transformer import FrameInputs, WorldTransformer, frame_rays


def aggregate(
    aggregator: Aggregator,
    codec: Codec,
    transformer: WorldTransformer,
    rgbd: Tensor,
    poses: Tensor,
    intrinsics: Tensor,
    *,
    is_clip: bool = True,
) -> Gaussians:
    """Frames rgbd [B, T, 4, h, h] in [-1, 1], poses [B, T, 4, 4], intrinsics [B, 4] -> Gaussians of what they show.

    is_clip: the frames follow each other step by step, so the generator reads them in order; else each for itself.
    """
    features = read_features(codec, transformer, rgbd, poses, intrinsics, is_clip=is_clip)
    has_picture = torch.ones(len(rgbd), dtype=torch.bool, device=rgbd.device)
    return aggregator(Context(features, rgbd, has_picture, poses, intrinsics)).gaussians


def read_features(
    codec: Codec, transformer: WorldTransformer, rgbd: Tensor, poses: Tensor, intrinsics: Tensor, *, is_clip: bool
) -> Tensor:
    """The generator's features of clean frames, without memory: arguments as in `aggregate` -> [B, T, P, D]."""
    b, t = rgbd.shape[:2]
    latent = codec.encode(rearrange(rgbd, "b t k h w -> (b t) k h w")).float()
    before = torch.cat([poses[:, :1], poses[:, :-1]], 1) if is_clip else poses
    reference = invert_pose(level_pose(rearrange(before, "b t r c -> (b t) r c")))
    each = repeat(intrinsics, "b k -> (b t) k", t=t)
    rays = frame_rays(rearrange(poses, "b t r c -> (b t) r c"), reference, each, codec.config.grid)
    join = {"b": b, "t": t} if is_clip else {"b": b * t, "t": 1}
    latent, rays = (rearrange(x, "(b t) ... -> b t ...", **join) for x in (latent, rays))
    level = latent.new_zeros(latent.shape[:2])
    inputs = FrameInputs(latent, level, rays, torch.zeros_like(latent), torch.zeros_like(latent[..., 0]))
    positions = torch.arange(join["t"], device=rgbd.device).expand(join["b"], -1)
    features = rearrange(transformer(inputs, positions).features.float(), "x y p d -> (x y) p d")
    return rearrange(features, "(b t) p d -> b t p d", b=b)
