"""Slot tables: which page each slot has in which place, and what its last frame meant to memory. Metadata only."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worldscape.memory.pages import BLANK, Levels

SIZES = ("levels", "num_anchors")
"""Fields of SlotTables that are no tensors."""


@dataclass(slots=True)
class SlotTables:
    """Tensors with a leading B. pages long [B, S + G + W]: sink, pool and local (a ring), BLANK where nothing is;
    latest long [B]: the page of the last frame, which sink or local holds as well; count long [B]: frames committed,
    of which the first num_real long [B] were real.

    Of the last frame: novelty [B] (what it cost to describe, 0 to 1), real [B] (share of it that goes back to real
    frames), since_real long [B] (steps since a real frame showed a good part of the view), chosen long [B, A + R]: the
    numbers of the frames that memory showed of it, -1 for none: num_anchors that were reprojected, then those whose
    keys were read.
    """

    levels: Levels
    num_anchors: int
    pages: Tensor
    latest: Tensor
    count: Tensor
    num_real: Tensor
    novelty: Tensor
    real: Tensor
    since_real: Tensor
    chosen: Tensor

    @classmethod
    def empty(cls, levels: Levels, slots: int, num_anchors: int, num_retrieved: int, like: Tensor) -> "SlotTables":
        """Tables of `slots` slots that hold nothing; num_anchors and num_retrieved are limited to what there can be."""
        num_anchors, num_retrieved = min(num_anchors, _num_shown(levels)), min(num_retrieved, levels.num_pool)
        none = torch.zeros(slots, dtype=torch.long, device=like.device)
        return cls(
            levels=levels,
            num_anchors=num_anchors,
            pages=none[:, None].repeat(1, sum(levels)),
            latest=none.clone(),
            count=none.clone(),
            num_real=none.clone(),
            novelty=like.new_zeros(slots),
            real=like.new_zeros(slots),
            since_real=none.clone(),
            chosen=torch.full((slots, num_anchors + num_retrieved), -1, dtype=torch.long, device=like.device),
        )

    @property
    def num_retrieved(self) -> int:
        """R."""
        return self.chosen.shape[1] - self.num_anchors

    @property
    def anchors(self) -> Tensor:
        """Numbers [B, A] of the frames that the last one was rebuilt from, -1 for none."""
        return self.chosen[:, : self.num_anchors]

    @property
    def retrieved(self) -> Tensor:
        """Numbers [B, R] of the frames from the pool that the last one read, -1 for none."""
        return self.chosen[:, self.num_anchors :]

    @property
    def sink(self) -> Tensor:
        """Pages [B, S] of the first frames."""
        return self.pages[:, : self.levels.num_sink]

    @property
    def pool(self) -> Tensor:
        """Pages [B, G] of chosen frames."""
        return self.pages[:, self.levels.num_sink : self.levels.num_sink + self.levels.num_pool]

    @property
    def keyframes(self) -> Tensor:
        """Sink and pool together, [B, S + G]."""
        return self.pages[:, : self.levels.num_sink + self.levels.num_pool]

    @property
    def local(self) -> Tensor:
        """Pages [B, W] of the last frames after the sink; frame n lies in place (n - S) mod W."""
        return self.pages[:, self.levels.num_sink + self.levels.num_pool :]

    def shown(self) -> Tensor:
        """Pages whose pictures may be shown again, [B, S + G + 1]: keyframes and the latest frame.

        Without a pool: sink and local window.
        """
        return self.choices()[:, :-1]

    def choices(self) -> Tensor:
        """`shown`, and a last place in which nothing lies: [B, N]."""
        shown = [self.pages] if self.levels.num_pool == 0 else [self.keyframes, self.latest[:, None]]
        return torch.cat([*shown, torch.full_like(self.latest, BLANK)[:, None]], 1)

    def next_place(self) -> Tensor:
        """Column of `pages` for the next frame, in sink or local: long [B]."""
        sink, pool, local = self.levels
        return torch.where(self.count < sink, self.count, sink + pool + (self.count - sink).remainder(local))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SIZES}

    def put(self, new: Mapping[str, Tensor]) -> None:
        """Let these tensors take the place of all of those that `tensors` names."""
        for name, tensor in new.items():
            setattr(self, name, tensor)

    def write_rows(self, rows: Tensor, new: dict[str, Tensor]) -> None:
        """Overwrite `rows` [R] in place with tensors [R, ...] of the same names."""
        for name, stored in self.tensors().items():
            stored.index_copy_(0, rows, new[name])

    def clear_rows(self, rows: Tensor) -> None:
        """Make `rows` hold nothing."""
        for name, stored in self.tensors().items():
            stored.index_fill_(0, rows, -1 if name == "chosen" else BLANK)


def write_active(kept: object, active: Tensor, new: Mapping[str, Tensor]) -> None:
    """Let new tensors [B, ...] take the place of the attributes of `kept` of the same names, in rows where `active`
    bool [B]; they get those attributes' dtypes."""
    is_everyone = active.device.type == "cpu" and False not in active.tolist()
    for name, value in new.items():
        old = getattr(kept, name)
        value = value.to(old.dtype)
        if not is_everyone:
            value = torch.where(active.view(-1, *[1] * (value.ndim - 1)), value, old)
        setattr(kept, name, value)


def _num_shown(levels: Levels) -> int:
    return sum(levels) if levels.num_pool == 0 else levels.num_sink + levels.num_pool + 1
