"""What is the same at every step, made once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Given = ParamSpec("Given")
Made = TypeVar("Made")


def made_once(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """Hand out again what `make` made of the same (hashable) arguments.

    The tensors in it outlive the caller's inference mode, since gradients may flow past them elsewhere; nobody may
    write into them. Compiled code makes them anew: its compiler looks through no cache.
    """
    cached = lru_cache(maxsize=16)(torch.inference_mode(False)(make))

    @wraps(make)
    def get(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        return (make if torch.compiler.is_compiling() else cached)(*args, **kwargs)

    return get


def kept_while_equal(make: Callable[..., Made]) -> Callable[..., Made]:
    """Hand out what `make` made last for as long as it is asked for the same: where a camera stands still, say.

    Arguments are tensors, which may be written into in between, and then few different plain (hashable) values, for
    each of which something is kept; nobody may write into what is handed out. Only in inference mode on a CPU: a GPU
    would have to be waited for, and elsewhere gradients may be wanted.
    """
    last: dict[tuple[Any, ...], tuple[list[Tensor], Made]] = {}  # replaced as wholes, so that no thread sees half

    @wraps(make)
    def get(*given: Any) -> Made:
        tensors = [value for value in given if isinstance(value, Tensor)]
        if not torch.is_inference_mode_enabled() or any(value.device.type != "cpu" for value in tensors):
            return make(*given)
        plain = given[len(tensors) :]
        known = last.get(plain)
        if known is None or not all(map(_are_equal, known[0], tensors)):
            last[plain] = known = [value.clone() for value in tensors], make(*given)
        return known[1]

    return get


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
