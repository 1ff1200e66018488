"""Page store: one page a frame with all that is remembered of it, shared between slots and counted by references.

A page is written once, when its frame is committed, and never changes afterwards, so sharing it needs no copy; keys and
values may follow, the same for all that share it. Page 0 (BLANK) stands for "none" and reads as zeros; page 1 (SCRAP)
takes what slots write that stand still.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldscape.conditioning.layers import NUM_MOVING
from worldscape.config import MemoryConfig
from worldscape.memory.surroundings import every

BLANK, SCRAP, FIRST = 0, 1, 2
PROBES = 16  # points a side, or a few more, that stand for a picture when views are compared


class PageShape(NamedTuple):
    """Sizes of a page: generator layers L, tokens P, heads H, head width K, and picture side in pixels; keys_dtype: of
    its keys and values; has_hands: whether there is room for what moves in a frame."""

    layers: int
    tokens: int
    heads: int
    head_width: int
    size: int
    keys_dtype: torch.dtype = torch.float32
    has_hands: bool = True


class Page(NamedTuple):
    """N frames to write: keys_values [2 L, N, P, H, K] (all layers' keys, before temporal rotation, then all values),
    rgbd [N, 4, h, w], pose [N, 4, 4] camera to world, probes [3, N, M] (world points, metres; each axis apart, which is
    faster), real [N, M] (share of what the probes stand for that goes back to real frames; 1 in a real one), owner
    uint8 [N, h, w] (which hand a pixel belongs to, `layers.owned_by`), parts [N, 33, 4, 4] (of what moves in it,
    `layers.Limbs.moving`), frame long [N] (number of the frame in its dream). Where there is no room for hands, owner
    and parts have no pixels and no parts.
    """

    keys_values: Tensor
    rgbd: Tensor
    pose: Tensor
    probes: Tensor
    real: Tensor
    owner: Tensor
    parts: Tensor
    frame: Tensor


PAGE_AXES = (1, 0, 0, 1, 0, 0, 0, 0)
"""The axis of each field of Page that counts pages."""


class Levels(NamedTuple):
    """Places of a slot: num_sink for the first frames, num_pool for chosen ones, num_local for the last ones."""

    num_sink: int
    num_pool: int
    num_local: int


class PageStore:
    """`num_pages` pages on one device. Fields are preallocated; on a CPU they become resident when first written, and
    the lowest free pages are taken first.
    """

    def __init__(self, num_pages: int, shape: PageShape, like: Tensor):
        total = num_pages + FIRST
        self.shape, self.num_pages = shape, num_pages
        self.fields = Page(*(like.new_zeros(size, dtype=dtype) for size, dtype in _sizes(total, shape, like)))
        self.fields.frame[:FIRST] = -1
        for places in (self.fields.pose, self.fields.parts):
            places[:FIRST] = torch.eye(4, dtype=like.dtype, device=like.device)
        self.references = torch.zeros(total, dtype=torch.long, device=like.device)

    @property
    def num_bytes(self) -> int:
        """Bytes that all pages take."""
        return (self.num_pages + FIRST) * page_bytes(self.shape, self.fields.rgbd)

    def allocate(self, active: Tensor) -> Tensor:
        """One free page, long [N], for each active row of bool [N], lowest first; SCRAP for the others.

        A page stays free until it is retained. There must be enough free pages.
        """
        rank = (self.references[FIRST:] == 0).cumsum(0)
        page = torch.searchsorted(rank, active.cumsum(0)) + FIRST
        return torch.where(active, page, SCRAP)

    def retain(self, pages: Tensor, count: Tensor | None = None) -> None:
        """Count one more reference to each of `pages` (long, any shape; BLANK counts for nothing), or `count` more."""
        self._count(pages, count, 1)

    def release(self, pages: Tensor, count: Tensor | None = None) -> None:
        """Count one reference less, or `count`; a page without references is free."""
        self._count(pages, count, -1)

    def _count(self, pages: Tensor, count: Tensor | None, sign: int) -> None:
        count = torch.ones_like(pages) if count is None else count
        self.references.index_add_(0, pages.flatten(), count.flatten(), alpha=sign)

    def write(self, pages: Tensor, new: Page) -> None:
        """Write N frames into the allocated `pages` [N]."""
        for stored, value, axis in zip(self.fields, new, PAGE_AXES, strict=True):
            if stored.numel():
                stored.index_copy_(axis, pages, value.to(stored.dtype))

    def write_keys_values(self, pages: Tensor, keys_values: Tensor) -> None:
        """Write what was not known yet of the frames in `pages` [N]: [2 L, N, P, H, K]."""
        self.fields.keys_values.index_copy_(1, pages, keys_values.to(self.fields.keys_values.dtype))

    def gather(self, pages: Tensor) -> Page:
        """Copies of pages [N]."""
        return Page(*(field.index_select(axis, pages) for field, axis in zip(self.fields, PAGE_AXES, strict=True)))

    def read(self, field: str, pages: Tensor) -> Tensor:
        """A field of `pages` [B, N], by name: [B, N, ...]; probes [3, B, N, M], keys_values [2 L, B, N, P, H, K].

        Faster than by an index, where indices are few.
        """
        number = Page._fields.index(field)
        axis = PAGE_AXES[number]
        return self.fields[number].index_select(axis, pages.flatten()).unflatten(axis, pages.shape)

    def num_used(self) -> int:
        """Pages that somebody refers to. Reads the device: not for every step."""
        return int((self.references[FIRST:] != 0).sum())

    def check(self, tables: Sequence[Tensor]) -> None:
        """Compare reference counts with all the references there are, in `tables` (long, any shape).

        Raises RuntimeError naming pages that leak, are free but in use, or are counted wrongly.
        """
        entries = torch.cat([table.flatten() for table in tables])
        outside = entries[(entries < 0) | (entries >= len(self.references)) | (entries == SCRAP)]
        if len(outside):
            raise RuntimeError(f"page tables name pages {outside.unique().tolist()}, which hold no frame.")
        found = torch.bincount(entries, minlength=len(self.references))[FIRST:]
        counted = self.references[FIRST:]
        for what, where in (
            ("are free but in use", (counted == 0) & (found > 0)),
            ("leak: counted but in no table", (counted != 0) & (found == 0)),
            ("are counted wrongly", counted != found),
        ):
            if where.any():
                raise RuntimeError(f"pages {(where.nonzero()[:, 0] + FIRST).tolist()[:8]} {what}.")


def fit_levels(config: MemoryConfig, slots: int, budget: int | None, bytes_a_page: int) -> Levels:
    """Places of each of `slots` slots, so that all pages fit into `budget` bytes (None: no limit).

    A budget below the worst case makes the pool smaller. Raises ValueError when not even sink and local fit.
    """
    num_sink = 0 if config.policy == "local" else config.num_sink
    num_pool = config.num_keyframes - num_sink if config.policy in ("maco", "full") else 0
    if budget is None:
        return Levels(num_sink, num_pool, config.local_window)
    least = num_sink + config.local_window
    affordable = (budget // bytes_a_page - FIRST) // max(slots, 1)
    if affordable < least:
        needed = (slots * least + FIRST) * bytes_a_page
        raise ValueError(
            f"memory_budget is {budget} bytes; sink and local window of {slots} slots ({least} pages of {bytes_a_page} "
            f"bytes each) take {needed}: give at least that, or fewer slots."
        )
    return Levels(num_sink, min(num_pool, affordable - least), config.local_window)


def page_bytes(shape: PageShape, like: Tensor) -> int:
    """Bytes of one page with its reference count, of the dtype of `like`."""
    return 8 + sum(size.numel() * dtype.itemsize for size, dtype in _sizes(1, shape, like))


def probe_stride(size: int) -> int:
    """Pixels between the points that stand for a picture when views are compared."""
    return max(size // PROBES, 1)


def probe_places(size: int) -> slice:
    """Rows (and columns) of those points."""
    return every(probe_stride(size))


def _num_probes(size: int) -> int:
    return len(range(size)[probe_places(size)]) ** 2


def _sizes(pages: int, shape: PageShape, like: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    """Size and dtype of each field of Page."""
    keys_values = (2 * shape.layers, pages, shape.tokens, shape.heads, shape.head_width)
    probes = (pages, _num_probes(shape.size))
    picture = (shape.size, shape.size)
    owner, num_parts = (picture, NUM_MOVING) if shape.has_hands else ((0, 0), 0)
    sizes = (keys_values, (pages, 4, *picture), (pages, 4, 4), (3, *probes), probes, (pages, *owner))
    sizes = (*sizes, (pages, num_parts, 4, 4), (pages,))
    dtypes = [like.dtype] * len(sizes)
    kept_as = {"keys_values": shape.keys_dtype, "owner": torch.uint8, "frame": torch.long}
    for name, dtype in kept_as.items():
        dtypes[Page._fields.index(name)] = dtype
    return [(torch.Size(size), dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
