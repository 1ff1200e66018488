"""World memory: what B slots remember, as the engine uses it. Storage, tables and policy are apart in their own files.

Recall says what memory shows of a view about to be dreamed, read gives the generator its history, append takes in the
finished frame. Nothing else is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from worldscape.codec import empty_anchor, token_coverage
from worldscape.conditioning.layers import NUM_MOVING, Layers, Limbs, Pictures, owned_by, split_layers
from worldscape.conditioning.made_once import made_once
from worldscape.conditioning.reproject import Anchor, decode_depth, reproject
from worldscape.config import MemoryConfig
from worldscape.memory import lineage, policy
from worldscape.memory.pages import BLANK, SCRAP, Page, PageShape, PageStore, fit_levels, page_bytes
from worldscape.memory.surroundings import Surfaces
from worldscape.memory.tables import SlotTables, write_active
from worldscape.memory.values import Frame, Recall, Remembered
from worldscape.nn.blocks import KeysValues
from worldscape.transformer import History

Rebuild = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Anchor]


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
        empty = SlotTables.empty(tables.levels, slots, tables.num_anchors, tables.num_retrieved, like)
        return WorldMemory(self.config, self.store, empty)

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
        pages, tables, store = self.tables.choices(), self.tables, self.store
        frames = store.read("frame", pages)
        numbers = policy.cell_numbers(store.read("probes", pages), target, intrinsics)
        cells = policy.shown_cells(numbers)
        places, num_anchors = self._choose(cells, pages, frames, limbs), tables.num_anchors
        anchors, retrieved = pages.gather(1, places).tensor_split([num_anchors], 1)
        frames = frames.gather(1, places)
        if not use_anchor:
            anchor = empty_anchor(len(target), store.shape.size, store.fields.rgbd)
            none, unreal = anchor.mask[:, 0, 0, 0], anchor.mask.new_zeros(len(target), policy.CELLS**2)
            frames[:, :num_anchors] = -1
            return Recall(torch.zeros_like(anchors), anchor, none, unreal, none.bool(), retrieved, frames)
        places, number = places[:, :num_anchors, None], frames[:, :num_anchors]
        anchor = rebuild(*self._layers(anchors, limbs, target, intrinsics), target, intrinsics)
        is_real = (number >= 0) & (number < tables.num_real[:, None])
        from_real = cells.gather(1, places.expand(-1, -1, cells.shape[2])) & is_real[..., None]
        is_real_shown = from_real.any(1).sum(1) >= lineage.REAL_CELLS
        numbers = numbers.gather(1, places.expand(-1, -1, numbers.shape[2]))
        numbers = numbers.masked_fill((number < 0)[..., None], policy.CELLS**2)
        rebuilt = token_coverage(anchor.mask, policy.CELLS)
        real = lineage.inherited_real(numbers, store.read("real", anchors), rebuilt)
        return Recall(anchors, anchor, rebuilt.mean(1), real, is_real_shown, retrieved, frames)

    def _layers(self, anchors: Tensor, limbs: Limbs | None, target: Tensor, intrinsics: Tensor) -> Layers:
        """What to rebuild the view from `target` from, of pages long [B, A]; hands come from the first frame, which is
        real, and what it does not show of them from the latest."""
        store, tables = self.store, self.tables
        if limbs is None:
            return Layers(store.read("rgbd", anchors), store.read("pose", anchors), anchors != BLANK)
        with_hands = torch.cat([tables.sink[:, :1], tables.latest[:, None]], 1)
        still, hands = (self._pictures(of) for of in (anchors, with_hands))
        return split_layers(still, hands, limbs, target, intrinsics)

    def _pictures(self, pages: Tensor) -> Pictures:
        rgbd, pose, owner, parts = (self.store.read(name, pages) for name in ("rgbd", "pose", "owner", "parts"))
        return Pictures(rgbd, pose, pages != BLANK, owner, parts)

    def _choose(self, cells: Tensor, pages: Tensor, frames: Tensor, limbs: Limbs | None) -> Tensor:
        """Places among `pages` [B, N], long [B, A + R], of those to rebuild a view with these hands from, best first,
        and of those from the pool whose keys to read; N - 1, where nothing lies, for none."""
        tables, (num_sink, _, num_local) = self.tables, self.tables.levels
        wishes = [policy.Wish(0, tables.count, tables.num_anchors, policy.ANY)]
        if tables.num_retrieved:  # what sink and local window hold is read anyway
            wishes.append(policy.Wish(num_sink, tables.count - num_local, tables.num_retrieved, policy.ONE_CELL))
        if limbs is None:
            return policy.choose_covers(cells, frames, wishes)
        # Things move: the latest frame comes first, and what it shows is shown.
        is_latest = pages == tables.latest[:, None]
        left = ~(cells & is_latest[..., None]).any(1)
        wishes.append(policy.Wish(0, tables.count - 1, tables.num_anchors - 1, policy.ANY, left))
        sizes = [wish.num_picks for wish in wishes]
        anchors, *retrieved, others = policy.choose_covers(cells, frames, wishes).split(sizes, 1)
        latest_first = torch.cat([is_latest.int().argmax(1, keepdim=True), others.flip(1)], 1)
        return torch.cat([torch.where(limbs.present.any(1, keepdim=True), latest_first, anchors), *retrieved], 1)

    def read(self, retrieved: Tensor, room: int = 0) -> History:
        """History for the next frame: sink, retrieved pages [B, R] (Recall), local window, at small positions; keys and
        values with room for so many frames behind."""
        pages = self._pages_read(retrieved)
        return History(*self._keys_values(pages, room), self._positions(retrieved, 0), pages != BLANK)

    def read_pending(self, retrieved: Tensor, num_ahead: int, room: int = 0) -> History:
        """History for a call that takes in the latest frame and refines the next one and num_ahead after it: as read,
        but for these to fit, the local window lacks its oldest num_ahead frames.

        valid bool [B, 1 + 1 + num_ahead, S]: nobody reads the latest frame here, which is among the new ones; it itself
        does not see what is retrieved for those after it, so what is stored of it does not depend on where one goes.
        """
        tables, (num_sink, _, num_local) = self.tables, self.tables.levels
        pages = self._pages_read(retrieved)
        oldest = (tables.count - num_local + num_ahead)[:, None]
        is_recent = (self.store.read("frame", tables.local) >= oldest) | (oldest <= num_sink)
        valid = (pages != BLANK) & (pages != tables.latest[:, None])
        valid = torch.cat([valid[:, :-num_local], valid[:, -num_local:] & is_recent], 1)
        seen = valid[:, None].repeat(1, 2 + num_ahead, 1)
        seen[:, 0, num_sink : num_sink + retrieved.shape[1]] = False
        return History(*self._keys_values(pages, room), self._positions(retrieved, num_ahead), seen)

    def _pages_read(self, retrieved: Tensor) -> Tensor:
        """Pages of sink, retrieved frames [B, R] and local window: [B, S + R + W]."""
        return torch.cat([self.tables.sink, retrieved, self.tables.local], 1)

    def _keys_values(self, pages: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Keys, and values, of pages [B, N] with room for so many frames behind: [L, B, N + room, P, H, K] each."""
        keys, values = self.store.read("keys_values", F.pad(pages, (0, room), value=BLANK)).chunk(2)
        return keys, values

    def _positions(self, retrieved: Tensor, num_ahead: int) -> Tensor:
        """Relative positions [B, S + R + W]: sink and retrieved by place, local by age, whatever the count."""
        tables, num_fixed = self.tables, self.tables.levels.num_sink + retrieved.shape[1]
        shift = (tables.count - tables.levels.num_sink - tables.levels.num_local + num_ahead).clamp_min(0)[:, None]
        local = (self.store.read("frame", tables.local) - shift + retrieved.shape[1]).clamp_min(0)
        fixed = torch.arange(num_fixed, device=local.device).expand(len(local), -1)
        return torch.cat([fixed, local], 1)

    def next_positions(self, num_ahead: int = 0) -> Tensor:
        """Relative position of the frame about to be dreamed: long [B, 1]; num_ahead as in read_pending."""
        num_sink, _, num_local = self.tables.levels
        return (self.count.clamp_max(num_sink + num_local - num_ahead) + self.tables.num_retrieved)[:, None]

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
        old, count = tables.pages.gather(1, columns), writes.long()
        self.store.release(old, count)
        page = self.store.allocate(active)
        self.store.write(page, self._page(frame, recall))
        tables.pages.scatter_(1, columns, torch.where(writes, page[:, None], old))
        self.store.retain(page[:, None].expand_as(count), count)
        told = {"latest": page, "count": tables.count + 1, "novelty": 1.0 - explained, "chosen": recall.frames}
        write_active(tables, active, told | self._lineage(frame, recall))

    def _columns(self, explained: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the tables that the new frame may take, and whether it does: long and bool [B, 1 or 2]."""
        tables = self.tables
        place = tables.next_place()
        if tables.levels.num_pool == 0:
            return place[:, None], active[:, None]
        is_admitted = active & (tables.count >= tables.levels.num_sink)
        if self.config.policy == "full":
            pool_place = policy.longest_held(self.store.read("frame", tables.pool))
        else:
            is_admitted = is_admitted & (explained < self.config.novelty)
            if place.device.type == "cpu" and True not in is_admitted.tolist():
                return place[:, None], active[:, None]  # nobody needs a place in the pool
            poses = self.store.read("pose", tables.keyframes)
            pool_place = policy.most_redundant(tables.keyframes, poses, tables.levels.num_sink)
        columns = torch.stack([place, pool_place + tables.levels.num_sink], 1)
        return columns, torch.stack([active, is_admitted], 1)

    def _page(self, frame: Frame, recall: Recall) -> Page:
        probes = policy.world_probes(frame.rgbd, frame.pose, frame.intrinsics)
        both = [layer.keys for layer in frame.layers] + [layer.values for layer in frame.layers]
        shape = (2 * self.store.shape.layers, len(frame.pose), *self.store.shape[1:4])  # none, or not known yet
        keys_values = torch.stack(both)[:, :, 0] if both else probes.new_zeros(shape)
        real = recall.real.index_select(1, lineage.probe_cells(self.store.shape.size, probes.device))
        real = torch.ones_like(real) if frame.is_real else real
        return Page(keys_values, frame.rgbd, frame.pose, probes, real, *self._of_hands(frame), self.count)

    def _of_hands(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Whose the frame's pixels are, and the parts of what moves in it (Page)."""
        size, limbs = self.store.shape.size, frame.limbs
        if limbs is None:
            return _nothing_moves(len(frame.pose), size, frame.pose.device)
        depth = decode_depth(frame.rgbd[:, 3])
        return owned_by(depth, frame.pose, frame.intrinsics, limbs, frame.is_real), limbs.moving()

    def _lineage(self, frame: Frame, recall: Recall) -> dict[str, Tensor]:
        """How far a new frame is from real ones, by the names of the tables."""
        tables = self.tables
        if frame.is_real:
            none = torch.zeros_like(tables.since_real)
            return {"real": torch.ones_like(tables.real), "since_real": none, "num_real": tables.num_real + 1}
        since_real = (tables.since_real + 1).masked_fill(recall.is_real_shown, 0)
        return {"real": recall.real.mean(1), "since_real": since_real}

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
        probes = self.store.read("probes", pages)
        known = repeat(pages != BLANK, "b n -> b (n m)", m=probes.shape[3])
        return Surfaces(rearrange(probes, "xyz b n m -> b (n m) xyz"), known)

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


@made_once
def _nothing_moves(slots: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whose pixels are where there are no hands, nobody's, and the parts of what moves there."""
    nobody = torch.zeros(slots, size, size, dtype=torch.uint8, device=device)
    return nobody, torch.eye(4, device=device).expand(slots, NUM_MOVING, 4, 4)
