"""World memory: what B slots remember, as the engine uses it. Storage, tables and policy are apart in their own files.

Recall says what memory shows of a view about to be dreamed, read gives the generator its history, append takes in the
finished frame. Nothing else is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from worldscape.codec import empty_anchor
from worldscape.conditioning.layers import NUM_MOVING, Layers, Limbs, Pictures, owned_by, split_layers
from worldscape.conditioning.reproject import Anchor, decode_depth, reproject
from worldscape.conditioning.shapes import is_static
from worldscape.config import MemoryConfig
from worldscape.memory import lineage, policy
from worldscape.memory.pages import BLANK, SCRAP, Page, PageShape, PageStore, fit_levels, page_bytes
from worldscape.memory.surroundings import Surfaces
from worldscape.memory.tables import SlotTables
from worldscape.nn.blocks import KeysValues
from worldscape.transformer import History

Rebuild = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Anchor]


class Recall(NamedTuple):
    """What memory shows of a view: pages long [B, A] that were reprojected, the anchor made of them, coverage [B]
    (share of the pixels shown), real [B, CELLS ** 2] (share of each cell that goes back to real frames, through however
    many dreamed ones), is_real_shown bool [B] (a real frame itself shows a good part of the view), and pages long
    [B, R] whose keys and values join the history; BLANK where none.
    """

    anchors: Tensor
    anchor: Anchor
    coverage: Tensor
    real: Tensor
    is_real_shown: Tensor
    retrieved: Tensor


class Remembered(NamedTuple):
    """Pictures in memory: rgbd [B, N, 4, h, w], poses [B, N, 4, 4] camera to world, valid bool [B, N], frames long
    [B, N] (numbers of the frames in their dream).
    """

    rgbd: Tensor
    poses: Tensor
    valid: Tensor
    frames: Tensor


class Frame(NamedTuple):
    """A finished frame: keys and values [B, 1, P, H, K] per layer (none: geometry only, or taken in later), rgbd
    [B, 4, h, w], pose [B, 4, 4] camera to world, intrinsics [B, 4] normalised. is_real: a recorded frame, not a dreamed
    one. limbs: the hands in it, None where there can be none.
    """

    layers: list[KeysValues]
    rgbd: Tensor
    pose: Tensor
    intrinsics: Tensor
    is_real: bool = False
    limbs: Limbs | None = None


@dataclass(slots=True)
class WorldMemory:
    """Tables of B slots over a page store that other WorldMemory objects may share."""

    config: MemoryConfig
    store: PageStore
    tables: SlotTables

    @classmethod
    def empty(
        cls, config: MemoryConfig, slots: int, shape: PageShape, like: Tensor, budget: int | None = None
    ) -> WorldMemory:
        """Memory of `slots` slots that hold nothing, with the device and dtype of `like`.

        budget: bytes that its pages never exceed; a small one makes the pool smaller. Raises ValueError when not even
        sink and local window fit.
        """
        levels = fit_levels(config, slots, budget, page_bytes(shape, like))
        tables = SlotTables.empty(levels, slots, config.num_anchors, config.num_retrieved, like)
        return cls(config, PageStore(slots * sum(levels), shape, like), tables)

    def empty_rows(self, slots: int) -> WorldMemory:
        """Slots that hold nothing and write into the same store; `adopt` makes them rows of this memory."""
        like, tables = self.store.fields.rgbd, self.tables
        sizes = tables.anchors.shape[1], tables.retrieved.shape[1]
        return WorldMemory(self.config, self.store, SlotTables.empty(tables.levels, slots, *sizes, like))

    @property
    def count(self) -> Tensor:
        """Frames committed so far, long [B]."""
        return self.tables.count

    def recall(
        self,
        target: Tensor,
        intrinsics: Tensor,
        *,
        use_anchor: bool = True,
        rebuild: Rebuild = reproject,
        limbs: Limbs | None = None,
    ) -> Recall:
        """What memory shows of the view from `target` [B, 4, 4]; intrinsics [B, 4]. Without use_anchor: no pixels.

        rebuild: reproject or its faster twin. limbs: the hands in that view, None where there can be none. Where there
        are some, things move: the latest frame is believed before older ones, and remembered hands are taken along.
        """
        pages, tables = self.tables.shown(), self.tables
        frames = self.store.fields.frame[pages]
        numbers = policy.cell_numbers(self.store.fields.probes[pages], target, intrinsics)
        cells = policy.shown_cells(numbers)
        retrieved = self._retrieve(cells, pages, frames)
        if not use_anchor:
            anchor = empty_anchor(len(target), self.store.shape.size, self.store.fields.rgbd)
            none, unreal = anchor.mask[:, 0, 0, 0], torch.zeros_like(cells[:, 0])
            return Recall(torch.zeros_like(tables.anchors), anchor, none, unreal, none.bool(), retrieved)
        anchors = self._choose_anchors(cells, pages, frames, limbs)
        anchor = rebuild(*self._layers(anchors, limbs, target, intrinsics), target, intrinsics)
        is_anchor = pages[:, :, None] == anchors[:, None]
        is_real = (pages != BLANK) & (frames < tables.num_real[:, None])
        from_real = cells * (is_anchor.any(2) & is_real)[..., None]
        is_real_shown = from_real.amax(1).sum(1) >= lineage.REAL_CELLS
        places = is_anchor.int().argmax(1)[..., None].expand(-1, -1, numbers.shape[2])
        numbers = numbers.gather(1, places).masked_fill((anchors == BLANK)[..., None], policy.CELLS**2)
        real = lineage.inherited_real(numbers, self.store.fields.real[anchors], anchor.mask)
        return Recall(anchors, anchor, anchor.mask.mean((1, 2, 3)), real, is_real_shown, retrieved)

    def _layers(self, anchors: Tensor, limbs: Limbs | None, target: Tensor, intrinsics: Tensor) -> Layers:
        """What to rebuild the view from `target` from, of pages long [B, A]; hands come from the first frame, which is
        real, and what it does not show of them from the latest."""
        fields, tables = self.store.fields, self.tables
        if limbs is None:
            return Layers(fields.rgbd[anchors], fields.pose[anchors], anchors != BLANK)
        with_hands = torch.cat([tables.sink[:, :1], tables.latest[:, None]], 1)
        still, hands = (
            Pictures(fields.rgbd[of], fields.pose[of], of != BLANK, fields.owner[of], fields.parts[of])
            for of in (anchors, with_hands)
        )
        return split_layers(still, hands, limbs, target, intrinsics)

    def _choose_anchors(self, cells: Tensor, pages: Tensor, frames: Tensor, limbs: Limbs | None) -> Tensor:
        """Pages long [B, A] to rebuild a view with these hands from, best first."""
        num_anchors = self.tables.anchors.shape[1]
        if limbs is None:
            return policy.choose_cover(cells, pages, frames, num_anchors, policy.ANY)
        is_moving = limbs.present.any(1, keepdim=True)
        latest_first = self._latest_first(cells, pages, frames)
        if not is_static(cells) and is_moving.all():
            return latest_first
        return torch.where(is_moving, latest_first, policy.choose_cover(cells, pages, frames, num_anchors, policy.ANY))

    def _latest_first(self, cells: Tensor, pages: Tensor, frames: Tensor) -> Tensor:
        """Pages long [B, A] to rebuild a view from in which things move: the latest frame, then those that show most of
        what it does not, newest first."""
        tables = self.tables
        latest, num_others = tables.latest[:, None], tables.anchors.shape[1] - 1
        is_latest = pages == latest
        shown = (cells * is_latest[..., None]).amax(1, keepdim=True)
        apart = torch.where(is_latest, -1, frames)
        others = policy.choose_cover(cells * (1 - shown), pages, apart, num_others, policy.ANY) if num_others else None
        return latest if others is None else torch.cat([latest, others.flip(1)], 1)

    def _retrieve(self, cells: Tensor, pages: Tensor, frames: Tensor) -> Tensor:
        """Pool pages that show most of the view; what the local window holds is read anyway."""
        tables = self.tables
        num_picks, (num_sink, num_pool, num_local) = tables.retrieved.shape[1], tables.levels
        if num_picks == 0:
            return torch.zeros_like(tables.retrieved)
        pool = slice(num_sink, num_sink + num_pool)
        is_local = frames[:, pool] >= (tables.count - num_local)[:, None]
        apart = torch.where(is_local, -1, frames[:, pool])
        return policy.choose_cover(cells[:, pool], pages[:, pool], apart, num_picks, policy.ONE_CELL)

    def read(self, retrieved: Tensor, room: int = 0) -> History:
        """History for the next frame: sink, retrieved pages [B, R] (Recall), local window, at small positions; keys and
        values with room for so many frames behind."""
        tables = self.tables
        pages = torch.cat([tables.sink, retrieved, tables.local], 1)
        keys, values = self.store.read_keys_values(F.pad(pages, (0, room), value=BLANK)).chunk(2)
        return History(keys, values, self._positions(retrieved, 0), pages != BLANK)

    def read_pending(self, retrieved: Tensor, num_ahead: int, room: int = 0) -> History:
        """History for a call that takes in the latest frame and refines the next one and num_ahead after it: as read,
        but for these to fit, the local window lacks its oldest num_ahead frames.

        valid bool [B, 1 + 1 + num_ahead, S]: nobody reads the latest frame here, which is among the new ones; it itself
        does not see what is retrieved for those after it, so what is stored of it does not depend on where one goes.
        """
        tables, (num_sink, _, num_local) = self.tables, self.tables.levels
        history = self.read(retrieved, room)
        pages = torch.cat([tables.sink, retrieved, tables.local], 1)
        oldest = (tables.count - num_local + num_ahead)[:, None]
        is_recent = (self.store.fields.frame[tables.local] >= oldest) | (oldest <= num_sink)
        valid = history.valid & (pages != tables.latest[:, None])
        valid = torch.cat([valid[:, :-num_local], valid[:, -num_local:] & is_recent], 1)
        seen = valid[:, None].repeat(1, 2 + num_ahead, 1)
        seen[:, 0, num_sink : num_sink + retrieved.shape[1]] = False
        return history._replace(positions=self._positions(retrieved, num_ahead), valid=seen)

    def _positions(self, retrieved: Tensor, num_ahead: int) -> Tensor:
        """Relative positions [B, S + R + W]: sink and retrieved by place, local by age, whatever the count."""
        tables, num_fixed = self.tables, self.tables.levels.num_sink + retrieved.shape[1]
        shift = (tables.count - tables.levels.num_sink - tables.levels.num_local + num_ahead).clamp_min(0)[:, None]
        local = (self.store.fields.frame[tables.local] - shift + retrieved.shape[1]).clamp_min(0)
        fixed = torch.arange(num_fixed, device=local.device).expand(len(local), -1)
        return torch.cat([fixed, local], 1)

    def next_positions(self, num_ahead: int = 0) -> Tensor:
        """Relative position of the frame about to be dreamed: long [B, 1]; num_ahead as in read_pending."""
        num_sink, _, num_local = self.tables.levels
        return (self.count.clamp_max(num_sink + num_local - num_ahead) + self.tables.retrieved.shape[1])[:, None]

    def pending_positions(self, num_ahead: int) -> Tensor:
        """Relative position of the latest frame in read_pending's call: long [B, 1]."""
        is_sink = (self.count <= self.tables.levels.num_sink)[:, None]
        return torch.where(is_sink, self.count[:, None] - 1, self.next_positions(num_ahead) - 1)

    def take_in(self, layers: list[KeysValues], active: Tensor) -> None:
        """Store keys and values [B, 1, P, H, K] per layer of the latest frames of the slots where `active` bool [B]."""
        keys_values = torch.stack([layer.keys for layer in layers] + [layer.values for layer in layers])[:, :, 0]
        self.store.write_keys_values(torch.where(active, self.tables.latest, SCRAP), keys_values)

    def append(self, frame: Frame, recall: Recall, active: Tensor) -> None:
        """Commit a finished frame, of which memory showed `recall`, to the slots where `active` bool [B]."""
        tables = self.tables
        weight = self.config.residual_weight
        explained = policy.explained_share(frame.rgbd, recall.anchor, recall.coverage, weight)
        columns, writes = self._columns(explained, active)
        old = tables.pages.gather(1, columns)
        shown = self.store.fields.frame[recall.anchors], self.store.fields.frame[recall.retrieved]
        self.store.release(torch.where(writes, old, BLANK))
        page = self.store.allocate(active)
        self.store.write(page, self._page(frame, recall))
        tables.pages.scatter_(1, columns, torch.where(writes, page[:, None], old))
        self.store.retain(torch.where(writes, page[:, None], BLANK))
        self._note(page, explained, *shown, active)
        self._note_lineage(frame, recall, active)

    def _columns(self, explained: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the tables that the new frame may take, and whether it does: long and bool [B, 1 or 2]."""
        tables = self.tables
        place = tables.next_place()
        if tables.levels.num_pool == 0:
            return place[:, None], active[:, None]
        is_admitted = active & (tables.count >= tables.levels.num_sink)
        if self.config.policy == "full":
            pool_place = policy.longest_held(self.store.fields.frame[tables.pool])
        else:
            is_admitted = is_admitted & (explained < self.config.novelty)
            if place.device.type == "cpu" and not is_admitted.any():
                return place[:, None], active[:, None]  # nobody needs a place in the pool
            poses = self.store.fields.pose[tables.keyframes]
            pool_place = policy.most_redundant(tables.keyframes, poses, tables.levels.num_sink)
        columns = torch.stack([place, pool_place + tables.levels.num_sink], 1)
        return columns, torch.stack([active, is_admitted], 1)

    def _page(self, frame: Frame, recall: Recall) -> Page:
        probes = policy.world_probes(frame.rgbd, frame.pose, frame.intrinsics)
        both = [layer.keys for layer in frame.layers] + [layer.values for layer in frame.layers]
        shape = (2 * self.store.shape.layers, len(probes), *self.store.shape[1:4])  # none, or not known yet
        keys_values = torch.stack(both)[:, :, 0] if both else probes.new_zeros(shape)
        real = recall.real[:, lineage.probe_cells(self.store.shape.size, probes.device)]
        real = torch.ones_like(real) if frame.is_real else real
        return Page(keys_values, frame.rgbd, frame.pose, probes, real, *self._of_hands(frame), self.count)

    def _of_hands(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Whose the frame's pixels are, and the parts of what moves in it (Page)."""
        size, limbs = self.store.shape.size, frame.limbs
        if limbs is None:
            slots, device = len(frame.pose), frame.pose.device
            nobody = torch.zeros(slots, size, size, dtype=torch.uint8, device=device)
            return nobody, torch.eye(4, dtype=frame.pose.dtype, device=device).expand(slots, NUM_MOVING, 4, 4)
        depth = decode_depth(frame.rgbd[:, 3])
        return owned_by(depth, frame.pose, frame.intrinsics, limbs, frame.is_real), limbs.moving()

    def _note(self, page: Tensor, explained: Tensor, anchors: Tensor, retrieved: Tensor, active: Tensor) -> None:
        """What is known of the last frame, and that there is one more. anchors, retrieved: numbers of frames."""
        tables = self.tables
        tables.latest = torch.where(active, page, tables.latest)
        tables.novelty = torch.where(active, 1.0 - explained, tables.novelty)
        tables.anchors = torch.where(active[:, None], anchors, tables.anchors)
        tables.retrieved = torch.where(active[:, None], retrieved, tables.retrieved)
        tables.count = tables.count + active

    def _note_lineage(self, frame: Frame, recall: Recall, active: Tensor) -> None:
        """How far the last frame is from real ones."""
        tables = self.tables
        real = torch.ones_like(tables.real) if frame.is_real else recall.real.mean(1)
        tables.real = torch.where(active, real, tables.real)
        since_real = (tables.since_real + 1).masked_fill(recall.is_real_shown | frame.is_real, 0)
        tables.since_real = torch.where(active, since_real, tables.since_real)
        tables.num_real = tables.num_real + active * frame.is_real

    def remembered(self) -> Remembered:
        """All pictures that may be shown again, each once, as tensors of their own."""
        pages = self.tables.shown()
        earlier = (pages[:, :, None] == pages[:, None]).tril(-1).any(2)
        fields = self.store.fields
        valid = (pages != BLANK) & ~earlier
        return Remembered(fields.rgbd[pages], fields.pose[pages], valid, fields.frame[pages])

    def surfaces(self) -> Surfaces:
        """Sampled points of all pictures that may be shown again."""
        pages = self.tables.shown()
        probes = self.store.fields.probes[pages]
        known = repeat(pages != BLANK, "b n -> b (n m)", m=probes.shape[2])
        return Surfaces(rearrange(probes, "b n m xyz -> b (n m) xyz"), known)

    def clear(self, rows: Tensor) -> None:
        """Make slots `rows` (long [R], each once) hold nothing; pages that nobody else refers to become free."""
        self.store.release(self.tables.pages[rows])
        self.tables.clear_rows(rows)

    def adopt(self, other: WorldMemory, rows: Tensor) -> None:
        """Make all R slots of `other` (empty_rows of this memory) the slots `rows`; `other` must not be used again."""
        self.clear(rows)
        self.tables.write_rows(rows, other.tables.tensors())

    def fork(self, row: int, rows: Tensor) -> None:
        """Make slots `rows` (each once) remember what slot `row` does: tables are copied, pages are shared."""
        copies = {name: tensor[torch.full_like(rows, row)] for name, tensor in self.tables.tensors().items()}
        self.store.retain(copies["pages"])
        self.store.release(self.tables.pages[rows])
        self.tables.write_rows(rows, copies)

    def save(self, rows: Tensor) -> dict[str, Tensor]:
        """All that slots `rows` remember, as copies: tables under `table.`, each page once under `page.`."""
        tables = {name: tensor[rows] for name, tensor in self.tables.tensors().items()}
        used = tables["pages"].unique()
        used = used[used != BLANK]
        for name in ("pages", "latest"):
            number = torch.searchsorted(used, tables[name]) + 1
            tables[name] = torch.where(tables[name] == BLANK, BLANK, number)
        pages = self.store.gather(used)._asdict()
        named = {f"table.{name}": tensor for name, tensor in tables.items()}
        return {**named, **{f"page.{name}": tensor for name, tensor in pages.items()}}

    def load(self, saved: dict[str, Tensor], rows: Tensor) -> None:
        """Overwrite slots `rows` with what `save` returned; a saved page is written once however many slots use it."""
        self.clear(rows)
        new = Page(*(saved[f"page.{name}"] for name in Page._fields))
        pages = self.store.allocate(torch.ones_like(new.frame, dtype=torch.bool))
        self.store.write(pages, new)
        places = torch.cat([pages.new_full((1,), BLANK), pages])
        tables = {name: saved[f"table.{name}"] for name in self.tables.tensors()}
        tables = {name: places[t] if name in ("pages", "latest") else t for name, t in tables.items()}
        self.store.retain(tables["pages"])
        self.tables.write_rows(rows, tables)

    def check(self) -> None:
        """Compare the tables with the reference counts. Raises RuntimeError when a page leaks or is shared wrongly."""
        self.store.check([self.tables.pages])
        held = (self.tables.pages == self.tables.latest[:, None]).any(1)
        if not (held | (self.tables.latest == BLANK)).all():
            raise RuntimeError(f"slots {(~held).nonzero()[:, 0].tolist()} name a latest page that they do not hold.")
