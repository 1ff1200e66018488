"""Where the size of a result may depend on what tensors hold."""

from collections.abc import Callable

import torch
from torch import Tensor


def is_static(like: Tensor) -> bool:
    """Whether shapes must not depend on values: on a GPU, which would have to be waited for, and in compiled code."""
    return like.device.type != "cpu" or torch.compiler.is_compiling()


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
