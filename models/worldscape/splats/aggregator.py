"""The aggregator: a ViT over several frames' generator features that predicts Gaussians along pixel rays.

It starts as plain unprojection of the frames' RGB-D (its last layer is zero) and learns what to change. All it says is
relative to the frames' own cameras, so moving the world moves its Gaussians along.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from worldscape.conditioning.camera import invert_pose, plucker_map
from worldscape.conditioning.reproject import MIN_DEPTH, decode_depth
from worldscape.config import CodecConfig
from worldscape.nn.attention import attend
from worldscape.splats.config import AggregatorConfig
from worldscape.splats.gaussians import (
    HARMONIC_0,
    Gaussians,
    multiply_quaternions,
    quaternion_from_rotation,
    rotate_harmonics,
)
from worldscape.splats.unproject import cell_width, place_on_rays
from worldscape.transformer import RAYS_PER_TOKEN, pack_rays

BLIND_INVERSE_DEPTH = -0.5  # 3 m: what is supposed where no picture is given
CELL_SCALE = 0.6  # standard deviation of a cell's Gaussian before anything is learned, in cells
OPACITY_LOGIT = 3.0  # before anything is learned
LARGEST_STRETCH = 2.0  # how far a log scale may move


class Context(NamedTuple):
    """Frames to look at: features [B, T, P, D]; rgbd [B, T, 4, h, h] in [-1, 1], cells not finite are left out;
    has_picture bool [B], False where the pictures are withheld; poses [B, T, 4, 4] camera to world;
    intrinsics [B, 4] normalised.
    """

    features: Tensor
    rgbd: Tensor
    has_picture: Tensor
    poses: Tensor
    intrinsics: Tensor


class Aggregated(NamedTuple):
    """gaussians [B, T * cells^2] in world axes, frame by frame; depth [B, T, cells, cells] that they lie at, metres."""

    gaussians: Gaussians
    depth: Tensor


class Block(nn.Module):
    """A pre-norm ViT block: tokens [B, N, W] -> tokens."""

    def __init__(self, config: AggregatorConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, config.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (s h k) -> s b h n k", s=3, h=self.num_heads)
        x = x + self.out(rearrange(attend(q, k, v, None, "sdpa"), "b h n k -> b n (h k)"))
        return x + self.mlp(self.norm2(x))


class Aggregator(nn.Module):
    """Generator features of T frames with their cameras (and pictures) -> Gaussians.

    Args:
        config: its sizes.
        codec: the pictures and token grid of the world model.
        features: D, the generator's width.
    """

    def __init__(self, config: AggregatorConfig, codec: CodecConfig, features: int):
        super().__init__()
        if config.cells % codec.grid or codec.size % config.cells:
            raise ValueError(
                f"aggregator cells {config.cells} do not fit: a multiple of {codec.grid} tokens a side is needed that "
                f"divides {codec.size} pixels."
            )
        self.config, self.grid = config, codec.grid
        self.block = codec.size // config.cells
        self.embed_features = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, config.width))
        self.embed_rays = nn.Linear(6 * RAYS_PER_TOKEN**2, config.width)
        self.place = nn.Parameter(0.02 * torch.randn(codec.num_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_cells = nn.Linear(config.width, config.head_width * (config.cells // codec.grid) ** 2)
        self.see = nn.Conv2d(5 * self.block**2, config.head_width, 3, padding=1)
        self.merge = nn.Conv2d(config.head_width, config.head_width, 3, padding=1)
        self.splits = [1, 2, 4, 3, 1, 3 * (config.degree + 1) ** 2]
        self.to_gaussians = nn.Conv2d(config.head_width, sum(self.splits), 1)
        nn.init.zeros_(self.to_gaussians.weight)
        nn.init.zeros_(self.to_gaussians.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, context: Context) -> Aggregated:
        """Predict the Gaussians of all frames together. Raises ValueError for shapes that do not fit."""
        self._check(context)
        is_finite = torch.isfinite(context.rgbd).all(2, keepdim=True)
        shown = is_finite & rearrange(context.has_picture, "b -> b 1 1 1 1")
        rgbd = torch.where(shown, context.rgbd, 0.0)
        raw = self._read(self._attend(context), rgbd, shown)
        return self._place(raw, rgbd, shown, is_finite, context)

    def _check(self, context: Context) -> None:
        b, t = context.poses.shape[:2]
        size = self.block * self.config.cells
        wanted = {
            "features": (b, t, self.grid**2, self.embed_features[1].in_features),
            "rgbd": (b, t, 4, size, size),
            "has_picture": (b,),
            "poses": (b, t, 4, 4),
            "intrinsics": (b, 4),
        }
        for name, shape in wanted.items():
            found = tuple(getattr(context, name).shape)
            if found != shape:
                raise ValueError(f"context {name} has shape {found}; this aggregator takes {shape}.")

    def _attend(self, context: Context) -> Tensor:
        """Tokens of all frames [B, T, P, W]: features with rays relative to the first frame's camera, mixed."""
        relative = invert_pose(context.poses[:, :1]) @ context.poses
        intrinsics = repeat(context.intrinsics, "b k -> b t k", t=relative.shape[1])
        rays = pack_rays(plucker_map(relative, intrinsics, RAYS_PER_TOKEN * self.grid), self.grid)
        x = self.embed_features(context.features) + self.embed_rays(rays) + self.place
        b, t = x.shape[:2]
        for index, block in enumerate(self.blocks):
            joined = "(b t) p w" if index % 2 == 0 else "b (t p) w"
            x = rearrange(block(rearrange(x, f"b t p w -> {joined}")), f"{joined} -> b t p w", b=b, t=t)
        return x

    def _read(self, tokens: Tensor, rgbd: Tensor, shown: Tensor) -> list[Tensor]:
        """What the network wants changed in each cell: tensors [B, T, c, c, n] for the n of `splits`."""
        b, scale = len(tokens), self.config.cells // self.grid
        cells = rearrange(
            self.to_cells(self.norm(tokens)),
            "b t (h w) (k i j) -> (b t) k (h i) (w j)",
            h=self.grid,
            i=scale,
            j=scale,
        )
        pictures = rearrange(torch.cat([rgbd, shown.to(rgbd.dtype)], 2), "b t k h w -> (b t) k h w")
        x = F.silu(cells + self.see(F.pixel_unshuffle(pictures, self.block)))
        raw = self.to_gaussians(x + F.silu(self.merge(x)))
        return list(rearrange(raw, "(b t) k h w -> b t h w k", b=b).split(self.splits, -1))

    def _place(self, raw: list[Tensor], rgbd: Tensor, shown: Tensor, is_finite: Tensor, context: Context) -> Aggregated:
        """From raw numbers to Gaussians in the world."""
        nearer, offset, turn, stretch, solid, colour = raw
        base = block_median(rgbd[:, :, 3], self.block)
        has_base = reduce(shown.float(), "b t 1 (h i) (w j) -> b t h w", "min", i=self.block, j=self.block) > 0
        inverse = torch.where(has_base, base, BLIND_INVERSE_DEPTH) + nearer[..., 0]
        depth = decode_depth(inverse).clamp_min(MIN_DEPTH)
        means = place_on_rays(depth, torch.tanh(offset), context.poses, context.intrinsics)
        width = CELL_SCALE * cell_width(depth, context.intrinsics)
        log_scales = width.log()[..., None] + LARGEST_STRETCH * torch.tanh(stretch)
        rotation = context.poses[:, :, None, None, :3, :3]
        identity = turn.new_tensor([1.0, 0.0, 0.0, 0.0])
        quaternions = multiply_quaternions(quaternion_from_rotation(rotation), turn + identity)
        harmonics = rotate_harmonics(self._colours(colour, rgbd), rotation)
        is_whole = reduce(is_finite.float(), "b t 1 (h i) (w j) -> b t h w", "min", i=self.block, j=self.block) > 0
        logits = torch.where(is_whole, OPACITY_LOGIT + solid[..., 0], -torch.inf)
        parts = (means, quaternions, log_scales, logits, harmonics)
        return Aggregated(Gaussians(*(rearrange(part, "b t h w ... -> b (t h w) ...") for part in parts)), depth)

    def _colours(self, change: Tensor, rgbd: Tensor) -> Tensor:
        """Harmonics [B, T, c, c, K, 3] in camera axes: the mean colour of each cell, changed."""
        mean = reduce(rgbd[:, :, :3], "b t k (h i) (w j) -> b t h w k", "mean", i=self.block, j=self.block)
        harmonics = rearrange(change, "b t h w (k c) -> b t h w k c", c=3)
        base = (mean / (2 * HARMONIC_0))[..., None, :]
        return torch.cat([harmonics[..., :1, :] + base, harmonics[..., 1:, :]], -2)


def block_median(values: Tensor, block: int) -> Tensor:
    """Values [B, T, h, w] -> (lower) median of each block x block square [B, T, h / block, w / block].

    Unlike a mean it lies on one of the surfaces where a square shows two.
    """
    return rearrange(values, "b t (h i) (w j) -> b t h w (i j)", i=block, j=block).median(-1).values
