"""The naive twin of world memory: one slot, every frame kept in a list, everything worked out anew. Tests trust it.

Nothing is evicted: what sink, pool and local hold follows from the list, the pool by going through all admissions.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from worldscape.conditioning.camera import METRES_PER_RADIAN, invert_pose
from worldscape.conditioning.layers import NUM_MOVING, Limbs, Pictures, owned_by, split_layers
from worldscape.conditioning.reproject import MIN_DEPTH, Anchor, decode_depth, reproject
from worldscape.config import MemoryConfig
from worldscape.memory.lineage import REAL_CELLS
from worldscape.memory.pages import Levels
from worldscape.memory.policy import CELLS, CODING_NOISE, FULL_COST, world_probes
from worldscape.nn.blocks import KeysValues
from worldscape.transformer import History


class NaiveFrame(NamedTuple):
    """A committed frame, without a batch axis, how much of it memory explained then, how real each cell is, and the
    hands in it (of one slot)."""

    layers: list[KeysValues]
    rgbd: Tensor
    pose: Tensor
    probes: Tensor
    explained: float
    real: list[float]
    is_real: bool
    limbs: Limbs | None


class NaiveMemory:
    """One slot. Frames are named by their number; `levels` as in the real memory. limbs, where asked for: the hands in
    the view, of one slot; None where there can be none."""

    def __init__(self, config: MemoryConfig, levels: Levels):
        self.config, self.levels = config, levels
        self.frames: list[NaiveFrame] = []

    def append(
        self,
        layers: list[KeysValues],
        rgbd: Tensor,
        pose: Tensor,
        intrinsics: Tensor,
        is_real: bool = False,
        limbs: Limbs | None = None,
    ) -> None:
        """Commit a frame; shapes as in worldscape.memory.world_memory.Frame, with one slot."""
        explained = self._explained(rgbd, self.recall(pose, intrinsics, limbs)) if self.frames else 0.0
        real = [1.0] * CELLS**2 if is_real else self.real_shares(pose, intrinsics, limbs)
        probes = world_probes(rgbd, pose, intrinsics)[:, 0].mT
        self.frames.append(NaiveFrame(layers, rgbd[0], pose[0], probes, explained, real, is_real, limbs))

    def sink(self) -> list[int]:
        """The first frames."""
        return list(range(len(self.frames)))[: self.levels.num_sink]

    def local(self) -> list[int]:
        """The last frames after the sink, oldest first."""
        return list(range(len(self.frames)))[self.levels.num_sink :][-self.levels.num_local :]

    def pool(self) -> list[int]:
        """What is in the pool now, by place."""
        held: list[int] = []
        for number in range(self.levels.num_sink, len(self.frames)):
            is_full = self.config.policy == "full"
            if self.levels.num_pool == 0 or not (is_full or self.frames[number].explained < self.config.novelty):
                continue
            if len(held) < self.levels.num_pool:
                held.append(number)
            else:
                held[held.index(min(held)) if is_full else self._most_redundant(held)] = number
        return held

    def shown(self) -> list[int]:
        """Frames whose pictures may be shown again; one may come twice."""
        if self.levels.num_pool == 0:
            return self.sink() + self.local()
        return self.sink() + self.pool() + self.local()[-1:]

    def anchors(self, target: Tensor, intrinsics: Tensor, limbs: Limbs | None = None) -> list[int]:
        """Frames to reproject into the view from `target` [1, 4, 4], oldest first; with hands newest first."""
        shown, num_picks = self.shown(), self.config.num_anchors
        if limbs is None or not limbs.present.any() or not shown:
            return self._cover(shown, target, intrinsics, num_picks, 0)
        latest = len(self.frames) - 1
        seen, others = self._cells(latest, target, intrinsics), [number for number in shown if number != latest]
        return [latest, *reversed(self._cover(others, target, intrinsics, num_picks - 1, 0, seen))]

    def retrieved(self, target: Tensor, intrinsics: Tensor) -> list[int]:
        """Pool frames whose keys and values are read, oldest first."""
        apart = [number for number in self.pool() if number not in self.local()]
        return self._cover(apart, target, intrinsics, self.config.num_retrieved, 1)

    def recall(self, target: Tensor, intrinsics: Tensor, limbs: Limbs | None = None) -> Anchor:
        """What memory shows of the view from `target`, once there are frames."""
        still = self._pictures(self.anchors(target, intrinsics, limbs), intrinsics)
        if limbs is None:
            return reproject(still.rgbd, still.poses, still.valid, target, intrinsics)
        with_hands = self._pictures([*self.sink()[:1], len(self.frames) - 1], intrinsics)
        return reproject(*split_layers(still, with_hands, limbs, target, intrinsics), target, intrinsics)

    def _pictures(self, chosen: list[int], intrinsics: Tensor) -> Pictures:
        size = self.frames[0].rgbd.shape[-1]
        owner = torch.zeros(1, size, size, dtype=torch.uint8)
        parts = torch.eye(4).expand(1, NUM_MOVING, 4, 4)
        pictures = []
        for frame in (self.frames[number] for number in chosen):
            if frame.limbs is not None:
                depth = decode_depth(frame.rgbd[None, 3])
                owner = owned_by(depth, frame.pose[None], intrinsics, frame.limbs, frame.is_real)
                parts = frame.limbs.moving()
            pictures.append((frame.rgbd, frame.pose, torch.tensor(True), owner[0], parts[0]))
        return Pictures(*(torch.stack(part)[None] for part in zip(*pictures, strict=True)))

    def real_shares(self, target: Tensor, intrinsics: Tensor, limbs: Limbs | None = None) -> list[float]:
        """Share of each cell of the view that goes back to real frames."""
        shown: dict[int, float] = {}
        for number in self.anchors(target, intrinsics, limbs) if self.frames else []:
            frame = self.frames[number]
            fallen: dict[int, list[float]] = {}
            for place, cell in enumerate(self._probe_cells(number, target, intrinsics)):
                fallen.setdefault(cell, []).append(frame.real[self._own_cell(place, frame)])
            for cell, shares in fallen.items():
                shown.setdefault(cell, sum(shares) / len(shares))
        shown.pop(CELLS**2, None)  # what is out of view
        if not shown:
            return [0.0] * CELLS**2
        mask = self.recall(target, intrinsics, limbs).mask
        mask = rearrange(mask, "1 1 (r y) (c x) -> (r c) (y x)", r=CELLS, c=CELLS)
        average = sum(shown.values()) / len(shown)
        return [float(pixels.mean()) * shown.get(cell, average) for cell, pixels in enumerate(mask)]

    def is_real_shown(self, target: Tensor, intrinsics: Tensor, limbs: Limbs | None = None) -> bool:
        """Whether real frames themselves show a good part of the view."""
        real = [number for number in self.anchors(target, intrinsics, limbs) if self.frames[number].is_real]
        return len(set().union(*(self._cells(number, target, intrinsics) for number in real))) >= REAL_CELLS

    def read(self, retrieved: list[int]) -> History:
        """Sink, `retrieved` frames and local window, oldest first, without any gap but in the positions."""
        chosen = self.sink() + retrieved + self.local()
        layers = list(zip(*(self.frames[number].layers for number in chosen), strict=True))
        keys = torch.stack([torch.cat([frame.keys for frame in layer], 1) for layer in layers])
        values = torch.stack([torch.cat([frame.values for frame in layer], 1) for layer in layers])
        first = self.levels.num_sink, self.levels.num_sink + self._num_retrieved()
        positions = [*range(len(self.sink())), *range(first[0], first[0] + len(retrieved))]
        positions += range(first[1], first[1] + len(self.local()))
        return History(keys, values, torch.tensor([positions]), torch.ones(1, len(chosen), dtype=torch.bool))

    def next_positions(self) -> Tensor:
        """Relative position of the next frame, long [1, 1]."""
        num_read = min(len(self.frames), self.levels.num_sink + self.levels.num_local)
        return torch.tensor([[num_read + self._num_retrieved()]])

    def _num_retrieved(self) -> int:
        return min(self.config.num_retrieved, self.levels.num_pool)

    def _explained(self, rgbd: Tensor, anchor: Anchor) -> float:
        """1 for a frame that memory showed as it is, 0 for one of which it showed nothing."""
        cost = torch.log1p((rgbd - anchor.rgbd).square().mean(1) / CODING_NOISE**2) / FULL_COST
        saved = torch.where(anchor.mask[:, 0] > 0, 1 - self.config.residual_weight * cost.clamp_max(1), 0)
        return float(saved.mean())

    def _most_redundant(self, held: list[int]) -> int:
        """The place in `held` of the frame that is nearest to another one, in sink or pool."""
        nearest = []
        for number in held:
            others = [other for other in self.sink() + held if other != number]
            nearest.append(min(self._distance(number, other) for other in others))
        return nearest.index(min(nearest))

    def _distance(self, one: int, other: int) -> float:
        a, b = self.frames[one].pose, self.frames[other].pose
        turn = torch.acos((a[:3, 2] * b[:3, 2]).sum().clamp(-1.0, 1.0))
        return float((a[:3, 3] - b[:3, 3]).norm() / METRES_PER_RADIAN + turn)

    def _cover(
        self,
        candidates: list[int],
        target: Tensor,
        intrinsics: Tensor,
        num_picks: int,
        least: int,
        seen: Collection[int] = (),
    ) -> list[int]:
        """Greedy set cover of the view's cells, but those `seen` already, by what each candidate shows; ties go to the
        older one."""
        cells = {number: self._cells(number, target, intrinsics) for number in candidates}
        covered = set(seen)
        picks: list[int] = []
        for _ in range(min(num_picks, len(cells))):
            best = max(sorted(cells), key=lambda number: len(cells[number] - covered))
            if len(cells[best] - covered) >= least:
                picks.append(best)
            covered |= cells.pop(best)
        return sorted(picks)

    def _cells(self, number: int, target: Tensor, intrinsics: Tensor) -> set[int]:
        return set(self._probe_cells(number, target, intrinsics)) - {CELLS**2}

    def _own_cell(self, place: int, frame: NaiveFrame) -> int:
        """The cell of its own picture that a probe lies in."""
        along = len(frame.probes) ** 0.5
        row, column = (int(index * CELLS / along) for index in divmod(place, int(along)))
        return row * CELLS + column

    def _probe_cells(self, number: int, target: Tensor, intrinsics: Tensor) -> list[int]:
        """The cell of the view that each probe falls into, CELLS ** 2 for none."""
        to_view = invert_pose(target)[0]
        fx, fy, cx, cy = intrinsics[0]
        x, y, z = (self.frames[number].probes @ to_view[:3, :3].T + to_view[:3, 3]).unbind(-1)
        depth = z.clamp_min(MIN_DEPTH)
        column, row = ((x / depth * fx + cx) * CELLS).floor(), ((y / depth * fy + cy) * CELLS).floor()
        inside = (z > MIN_DEPTH) & (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
        return torch.where(inside, row * CELLS + column, CELLS**2).int().tolist()
