"""What the hand reader learns from: pairs of simulator frames, what the simulator knows of them, and how they are
disturbed, so that it reads dreams too, which are a little softer and whose light and place it has not seen."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from worldscape.codec import blur
from worldscape.evaluate import hand_reader
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.evaluate.hand_reader import SHIPPED, HandReader, HandReaderConfig, HandReading
from worldscape.evaluate.hand_truth import MOVED, HandTruth
from worldscape.evaluate.kept import fingerprint_of, fit, load_or_make
from worldscape.evaluate.metrics import to_unit

RIGHT = 1
FROM_START = 0.7  # share of pairs whose first frame is the episode's: that is how the reader is asked
SHIFT = 5  # pixels at most, up or down and to the side
GAIN = 0.15  # of each channel, at most
NOISE = 0.04  # at most, of the current picture; half of them have none


class HandLabels(NamedTuple):
    """What the simulator knows of M pictures: masks bool [M, 3, h, w] (`hand_reader.MASKS`), pixels [M, 21, 2] of the
    keypoints, inside bool [M, 21] (those in the picture), places [M, 2, 2] of the object in the first picture and now
    (pixels), moved and lifted float [M]."""

    masks: Tensor
    pixels: Tensor
    inside: Tensor
    places: Tensor
    moved: Tensor
    lifted: Tensor


def label_frames(episodes: EpisodeBatch, rows: np.ndarray, first: np.ndarray, now: np.ndarray) -> HandLabels:
    """Labels of frames (rows, now), [M] each, as seen after frames (rows, first)."""
    truth, size = hands_of(episodes), episodes.frames.shape[2]
    shown = (truth.hand_mask[rows, now], truth.object_mask[rows, now], truth.object_mask[rows, first])
    pixels = torch.from_numpy(truth.pixels[rows, now, RIGHT])
    places = [
        project(truth.object[rows, at, None], episodes.pose[rows, at], episodes.intrinsics[rows], size)
        for at in (first, now)
    ]
    way = np.linalg.norm(truth.object[rows, now] - truth.object[rows, first], axis=-1)
    moved, lifted = ((torch.from_numpy(flag).float()) for flag in (way > MOVED, truth.lifted[rows, now]))
    masks, places = torch.from_numpy(np.stack(shown, 1)), torch.from_numpy(np.concatenate(places, 1)).float()
    return HandLabels(masks, pixels, _inside(pixels, size), places, moved, lifted)


def _inside(pixels: Tensor, size: int) -> Tensor:
    """Which pixels [..., 2] are in a picture of a size: bool [...]."""
    return ((pixels >= 0) & (pixels < size)).all(-1)


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
    """Fit the reader to pairs of frames of the same episode, most of them with the episode's first one."""
    rng = np.random.default_rng(config.seed)
    frames, size = torch.from_numpy(episodes.frames), config.batch_size

    def draw_loss(model: HandReader) -> Tensor:
        rows = rng.integers(len(episodes), size=size)
        first, now = np.sort(rng.integers(episodes.num_steps + 1, size=(2, size)), axis=0)
        first = np.where(rng.random(size) < FROM_START, 0, first)
        shown = to_unit(frames[rows, first]), to_unit(frames[rows, now])
        *shown, labels = disturb(*shown, label_frames(episodes, rows, first, now), rng)
        return reader_loss(model(*shown), labels)

    return fit(HandReader, config, draw_loss)


def disturb(
    first: Tensor, now: Tensor, labels: HandLabels, rng: np.random.Generator
) -> tuple[Tensor, Tensor, HandLabels]:
    """Pictures [B, 3, h, w] in [0, 1] and their labels, shifted together, under another light, some of them blurred,
    the current one with noise."""
    size, count = first.shape[-1], len(first)
    across, down = (int(step) for step in rng.integers(-SHIFT, SHIFT + 1, size=2))
    first, now, masks = (_shift(part, across, down) for part in (first, now, labels.masks.float()))
    offset = torch.tensor([float(across), float(down)])
    pixels, places = labels.pixels + offset, labels.places + offset
    gain, share, noise = (
        torch.from_numpy(part.astype(np.float32))
        for part in (
            rng.uniform(1 - GAIN, 1 + GAIN, (count, 3, 1, 1)),
            np.maximum(rng.uniform(-1.0, 1.0, count), 0.0),
            np.maximum(rng.uniform(-NOISE, NOISE, (count, 1, 1, 1)), 0.0) * rng.standard_normal(now.shape),
        )
    )
    first, now = (blur((part * gain).clamp(0.0, 1.0), share) for part in (first, now))
    labels = labels._replace(masks=masks > 0.5, pixels=pixels, inside=_inside(pixels, size), places=places)
    return first, now + noise, labels


def _shift(pictures: Tensor, across: int, down: int) -> Tensor:
    """Pictures [B, C, h, w] moved right and down by whole pixels, those at the edge repeated."""
    size = pictures.shape[-1]
    padded = F.pad(pictures, (SHIFT,) * 4, mode="replicate")
    return padded[:, :, SHIFT - down : SHIFT - down + size, SHIFT - across : SHIFT - across + size]


def reader_loss(reading: HandReading, labels: HandLabels) -> Tensor:
    """Cross-entropy of masks and events, overlap of the masks, and distance of keypoints and object, where they are in
    the picture, in a sixteenth of its side."""
    side = labels.masks.shape[-1] / 16
    found, wanted = torch.cat([reading.keypoints, reading.places], 1), torch.cat([labels.pixels, labels.places], 1)
    distance = F.smooth_l1_loss(found / side, wanted / side, reduction="none").sum(-1)
    inside = torch.cat([labels.inside, _inside(labels.places, labels.masks.shape[-1])], 1).float()
    masks = labels.masks.float()
    hand, *things = missed_overlap(reading.masks.sigmoid(), masks)
    crossed = F.binary_cross_entropy_with_logits(reading.masks, masks, reduction="none").mean((0, 2, 3))
    return (
        crossed[0]
        + crossed[1:].mean()
        + hand
        + 0.5 * sum(things)
        + (distance * inside).sum() / inside.sum().clamp_min(1)
        + F.binary_cross_entropy_with_logits(reading.moved, labels.moved)
        + F.binary_cross_entropy_with_logits(reading.lifted, labels.lifted)
    )


def missed_overlap(mask: Tensor, wanted: Tensor) -> Tensor:
    """One minus the overlap (intersection over union) of masks [M, K, h, w] in [0, 1], on average over M: [K].
    Cross-entropy alone is content with half a hand, of which there are few pixels."""
    both, either = (mask * wanted).sum((2, 3)), (mask + wanted - mask * wanted).sum((2, 3))
    return 1.0 - ((both + 1.0) / (either + 1.0)).mean(0)


def load_or_train_reader(
    path: Path | None, config: HandReaderConfig, walk: Callable[[], EpisodeBatch], *, retrain: bool = False
) -> HandReader:
    """The shipped reader, where the config is the one it was made with. With another config, or `retrain`: the one kept
    at `path` when it was trained so, else a newly trained one, kept there."""
    if config == HandReaderConfig() and not retrain:
        return load_shipped_reader()
    fingerprint = fingerprint_of(config, __file__, hand_reader.__file__)
    return load_or_make(path, HandReader(config.width), fingerprint, lambda: train_hand_reader(walk(), config))


def load_shipped_reader() -> HandReader:
    """The judge of hands that this package ships."""
    model = HandReader(HandReaderConfig().width)
    model.load_state_dict(load_file(SHIPPED))
    return model.eval()
