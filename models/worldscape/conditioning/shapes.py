"""Where the size of a result may depend on what tensors hold."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def is_static(like: Tensor) -> bool:
    """Whether shapes must not depend on values: on a GPU, which would have to be waited for, and in compiled code."""
    return like.device.type != "cpu" or torch.compiler.is_compiling()


class Window(NamedTuple):
    """Rows top ... bottom - 1 and columns left ... right - 1 of a picture."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    def within(self, other: "Window") -> tuple[slice, slice]:
        """Its rows and columns in the part of the picture that another window cuts out, which holds all of it."""
        rows = slice(self.top - other.top, self.bottom - other.top)
        return rows, slice(self.left - other.left, self.right - other.left)


def windows_around(ends: Tensor, size: tuple[int, int]) -> list[Window]:
    """The parts of a picture of (h, w) pixels, of at least one, that G groups of boxes reach: ends [G, ..., 4] are
    those of each box, in pixels: left and upper edge, negated, right and lower edge; all -inf for one that does not
    count."""
    return [_window_around(edges, size) for edges in ends.flatten(1, -2).amax(1).tolist()]


def _window_around(edges: list[float], size: tuple[int, int]) -> Window:
    left, top, right, bottom = edges
    if left == -math.inf:
        return Window(0, 1, 0, 1)
    top, left = (min(max(math.floor(-edge), 0), most - 1) for edge, most in zip((top, left), size, strict=True))
    bottom, right = (
        min(max(math.ceil(edge), first + 1), most)
        for edge, first, most in zip((bottom, right), (top, left), size, strict=True)
    )
    return Window(top, bottom, left, right)


def row_by_row(
    chosen: Tensor, one: Callable[..., Tensor], other: Callable[..., Tensor], parts: tuple[Tensor, ...]
) -> Tensor:
    """`one` of the rows that are chosen (bool [B]) and `other` of the rest, put together; parts have rows first.

    A row's result is that of the same function whatever rows come with it, and a function without rows is not called.
    """
    if chosen.all():
        return one(*parts)
    if not chosen.any():
        return other(*parts)
    of_one, of_other = (
        function(*(part[rows] for part in parts)) for function, rows in ((one, chosen), (other, ~chosen))
    )
    whole = of_one.new_empty((len(chosen), *of_one.shape[1:]))
    whole[chosen], whole[~chosen] = of_one, of_other
    return whole
