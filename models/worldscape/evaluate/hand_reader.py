"""Hand reader: a small network that finds the hand in a picture, and what became of the object since an earlier one.

It is trained on simulator frames only, so it is a judge that no dream has ever pleased.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldscape.codec import blur
from worldscape.conditioning.camera import camera_rays
from worldscape.conditioning.hand_model import BONES, NUM_KEYPOINTS
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.hand_truth import MOVED, HandTruth
from worldscape.evaluate.kept import JudgeConfig, fingerprint_of, fit, load_or_make
from worldscape.evaluate.metrics import to_unit

RIGHT = 1
OBJECT_SEEN = ("first", "now")
FLESH = 0.03  # metres from a bone within which a surface belongs to the hand (the back of the palm is that thick)
ABOVE_TABLE = 0.004  # metres above y = 0 from which on a surface is not the table's
FRAMES_AT_ONCE = 256
MASK_WIDTH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class HandReaderConfig(JudgeConfig):
    """JudgeConfig of the hand reader; its width is a multiple of 8."""

    name: ClassVar[str] = "hand reader"
    num_episodes: int = 480
    num_steps: int = 40
    batch_size: int = 32
    updates: int = 5000

    def __post_init__(self) -> None:
        JudgeConfig.__post_init__(self)
        if self.width < 8 or self.width % 8:
            raise ValueError(f"hand reader with width {self.width}: it must be a multiple of 8")


class HandReading(NamedTuple):
    """Of M pictures: mask [M, h, w] logits that a pixel shows the hand, keypoints [M, 21, 2] in pixels (x right, y
    down), places [M, 2, 2] of the object in the first picture and now, likewise, and logits [M] that it has moved since
    the first picture, and that it is lifted now."""

    mask: Tensor
    keypoints: Tensor
    places: Tensor
    moved: Tensor
    lifted: Tensor


class HandReader(nn.Module):
    """The picture at the start and the one now, [B, 3, h, w] in [0, 1] each -> HandReading."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (9, width, 2 * width, 3 * width, 3 * width)
        self.downs = nn.ModuleList(_stride(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a + b, b, 1), nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in ((3 * width, 3 * width), (3 * width, 2 * width), (2 * width, width))
        )
        self.heat = nn.Conv2d(width, NUM_KEYPOINTS + len(OBJECT_SEEN), 3, padding=1)
        self.whole = nn.Conv2d(width, 4 * MASK_WIDTH, 1)
        self.mask = nn.Sequential(
            nn.Conv2d(MASK_WIDTH + 9, MASK_WIDTH, 3, padding=1),
            nn.GroupNorm(8, MASK_WIDTH),
            nn.SiLU(),
            nn.Conv2d(MASK_WIDTH, MASK_WIDTH, 3, padding=1),
            nn.GroupNorm(8, MASK_WIDTH),
            nn.SiLU(),
            nn.Conv2d(MASK_WIDTH, 1, 3, padding=1),
        )
        self.whole_picture = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48 * width, 4 * width))
        self.events = nn.Sequential(nn.SiLU(), nn.Linear(4 * width, 2))
        # Where the object was and is, how far it went, and where the fingers are: what events are about.
        self.from_places = nn.Sequential(nn.Linear(2 * 3 + 1 + 2 * NUM_KEYPOINTS, 4 * width), nn.SiLU())
        self.to_events = nn.Linear(4 * width, 4 * width)

    def forward(self, first: Tensor, now: Tensor) -> HandReading:
        pixels = torch.cat([first - 0.5, now - 0.5, now - first], dim=1)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        x, skips = pixels, []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        whole = self.whole_picture(x)
        for up, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = up(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        mask = self.mask(torch.cat([F.pixel_shuffle(self.whole(x), 2), pixels], 1))[:, 0]
        keypoints, places = find_peaks(self.heat(x)).split([NUM_KEYPOINTS, len(OBJECT_SEEN)], 1)
        moved, lifted = self.events(whole + self.to_events(self.from_places(_facts(keypoints, places)))).unbind(1)
        return HandReading(mask, keypoints * now.shape[-1], places * now.shape[-1], moved, lifted)


def _facts(keypoints: Tensor, places: Tensor) -> Tensor:
    """Keypoints [B, 21, 2] and the object's places [B, 2, 2], all in [0, 1] -> what events follow from."""
    way = places[:, 1] - places[:, 0]
    near = keypoints - places[:, 1:]
    return torch.cat([places.flatten(1), 10.0 * way, 10.0 * way.norm(dim=1, keepdim=True), near.flatten(1)], 1)


def find_peaks(heat: Tensor) -> Tensor:
    """Heat maps [B, K, h, w] -> where they are hot on average, [B, K, 2] in [0, 1] (x right, y down)."""
    share = heat.flatten(2).softmax(-1).view_as(heat)
    places = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) / heat.shape[-1]
    return torch.stack([(share.sum(2) * places).sum(-1), (share.sum(3) * places).sum(-1)], -1)


class HandLabels(NamedTuple):
    """What the simulator knows of M pictures: mask bool [M, h, w], pixels [M, 21, 2], inside bool [M, 21] (those in the
    picture), places [M, 2, 2] of the object in the first picture and now (pixels), moved and lifted float [M]."""

    mask: Tensor
    pixels: Tensor
    inside: Tensor
    places: Tensor
    moved: Tensor
    lifted: Tensor


def hand_mask(depth: Tensor, pose: Tensor, intrinsics: Tensor, keypoints: Tensor) -> Tensor:
    """Depth [M, h, w] metres seen from poses [M, 4, 4], intrinsics [M, 4], keypoints [M, 21, 3] world metres -> bool
    [M, h, w]: surfaces above the table within FLESH of a bone."""
    rays = camera_rays(intrinsics, depth.shape[-1]) * depth[..., None]
    points = rays @ pose[:, None, :3, :3].mT + pose[:, None, None, :3, 3]
    nearest = torch.full_like(depth, torch.inf)
    for first, second in BONES:
        start, along = (end[:, None, None] for end in (keypoints[:, first], keypoints[:, second] - keypoints[:, first]))
        offset = points - start
        share = ((offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-9)).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - share[..., None] * along).norm(dim=-1))
    return (nearest < FLESH) & (points[..., 1] < -ABOVE_TABLE)


def mask_frames(episodes: EpisodeBatch, rows: np.ndarray, now: np.ndarray) -> Tensor:
    """The right hand's mask in frames (rows, now), [M] each: bool [M, h, w]."""
    keypoints = torch.from_numpy(hands_of(episodes).keypoints[rows, now, RIGHT])
    depth, pose = (torch.from_numpy(part[rows, now]) for part in (episodes.depth, episodes.pose))
    return hand_mask(depth, pose, torch.from_numpy(episodes.intrinsics[rows]), keypoints)


def label_frames(
    episodes: EpisodeBatch, rows: np.ndarray, first: np.ndarray, now: np.ndarray, mask: Tensor
) -> HandLabels:
    """Labels of frames (rows, now), [M] each, with these masks, as seen after frames (rows, first)."""
    truth = hands_of(episodes)
    pixels = torch.from_numpy(truth.pixels[rows, now, RIGHT])
    places = [
        project(truth.object[rows, at, None], episodes.pose[rows, at], episodes.intrinsics[rows], mask.shape[-1])
        for at in (first, now)
    ]
    way = np.linalg.norm(truth.object[rows, now] - truth.object[rows, first], axis=-1)
    moved, lifted = ((torch.from_numpy(flag).float()) for flag in (way > MOVED, truth.lifted[rows, now]))
    return HandLabels(mask, pixels, _inside(pixels, mask), torch.from_numpy(np.concatenate(places, 1)), moved, lifted)


def _inside(pixels: Tensor, mask: Tensor) -> Tensor:
    """Which pixels [..., 2] are in the picture that a mask is of: bool [...]."""
    return ((pixels >= 0) & (pixels < mask.shape[-1])).all(-1)


def project(points: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, size: int) -> np.ndarray:
    """Points [M, K, 3] in world axes, seen from poses [M, 4, 4] with intrinsics [M, 4] -> pixels [M, K, 2]."""
    x, y, z = np.moveaxis((points - pose[:, None, :3, 3]) @ pose[:, :3, :3], -1, 0)
    fx, fy, cx, cy = intrinsics.T[..., None]
    return size * np.stack([fx * x / z + cx, fy * y / z + cy], -1)


def hands_of(episodes: EpisodeBatch) -> HandTruth:
    """The episodes' hands. Raises ValueError where the simulator has none."""
    if episodes.hands is None:
        raise ValueError("these episodes have no hands to judge; use --source tabletop")
    return episodes.hands


def train_hand_reader(episodes: EpisodeBatch, config: HandReaderConfig) -> HandReader:
    """Fit the reader to pairs of frames of the same episode, some of them a little blurred, as dreams are."""
    rng = np.random.default_rng(config.seed)
    frames, masks = torch.from_numpy(episodes.frames), _all_masks(episodes)

    def draw_loss(model: HandReader) -> Tensor:
        rows = rng.integers(len(episodes), size=config.batch_size)
        first, now = np.sort(rng.integers(episodes.num_steps + 1, size=(2, config.batch_size)), axis=0)
        share = torch.from_numpy(np.maximum(rng.uniform(-1.0, 1.0, config.batch_size), 0.0).astype(np.float32))
        seen = (blur(to_unit(frames[rows, at]), share) for at in (first, now))
        return reader_loss(model(*seen), label_frames(episodes, rows, first, now, masks[rows, now]))

    return fit(HandReader, config, draw_loss)


def _all_masks(episodes: EpisodeBatch) -> Tensor:
    """The hand's mask in every frame, bool [N, T + 1, h, w]: made once, it is what labels take longest for."""
    every = np.arange(episodes.num_steps + 1)
    return torch.stack([mask_frames(episodes, np.full_like(every, row), every) for row in range(len(episodes))])


def reader_loss(reading: HandReading, labels: HandLabels) -> Tensor:
    """Cross-entropy of mask and events, overlap of the masks, and distance of keypoints and object, where they are in
    the picture, in a sixteenth of its side."""
    side = labels.mask.shape[-1] / 16
    found, wanted = torch.cat([reading.keypoints, reading.places], 1), torch.cat([labels.pixels, labels.places], 1)
    distance = F.smooth_l1_loss(found / side, wanted / side, reduction="none").sum(-1)
    inside = torch.cat([labels.inside, _inside(labels.places, labels.mask)], 1).float()
    return (
        F.binary_cross_entropy_with_logits(reading.mask, labels.mask.float())
        + missed_overlap(reading.mask.sigmoid(), labels.mask.float())
        + (distance * inside).sum() / inside.sum().clamp_min(1)
        + F.binary_cross_entropy_with_logits(reading.moved, labels.moved)
        + F.binary_cross_entropy_with_logits(reading.lifted, labels.lifted)
    )


def missed_overlap(mask: Tensor, wanted: Tensor) -> Tensor:
    """One minus the overlap (intersection over union) of masks [M, h, w] in [0, 1], on average: cross-entropy alone is
    content with half a hand, of which there are few pixels."""
    both, either = (mask * wanted).sum((1, 2)), (mask + wanted - mask * wanted).sum((1, 2))
    return 1.0 - ((both + 1.0) / (either + 1.0)).mean()


@torch.no_grad()
def read_hands(model: HandReader, first: np.ndarray, frames: np.ndarray) -> HandReading:
    """Read episodes: first uint8 [N, h, w, 3], frames uint8 [N, S, h, w, 3] -> HandReading with leading [N, S]."""
    count = frames.shape[1]
    opened = torch.from_numpy(first).repeat_interleave(count, 0)
    flat = rearrange(torch.from_numpy(frames), "n s h w c -> (n s) h w c")
    pairs = zip(opened.split(FRAMES_AT_ONCE), flat.split(FRAMES_AT_ONCE), strict=True)
    parts = [model(to_unit(start), to_unit(now)) for start, now in pairs]
    joined = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return HandReading(*(rearrange(column, "(n s) ... -> n s ...", s=count) for column in joined))


def load_or_train_reader(path: Path | None, config: HandReaderConfig, walk: Callable[[], EpisodeBatch]) -> HandReader:
    """The reader kept at `path` when it was trained with this config, else a newly trained one, kept there."""
    fingerprint = fingerprint_of(config, __file__)
    return load_or_make(path, HandReader(config.width), fingerprint, lambda: train_hand_reader(walk(), config))


def _stride(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU())
