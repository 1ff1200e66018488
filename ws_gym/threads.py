"""One thread at a time: a slot's state is changed in place, so two at once would mix worlds up without a word."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gymnasium.error import Error

P = ParamSpec("P")
T = TypeVar("T")
SHARED = (
    "another thread is using these worlds; give each thread an environment of its own (they share the weights), or use "
    "many slots of one model from one thread, gym.make_vec('WorldScape-Nav-v0', num_envs=N)."
)


class Lockable(Protocol):
    """Has a lock that is held while a thread is in one of its guarded methods."""

    busy: threading.Lock


S = TypeVar("S", bound=Lockable)


def alone(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that raises Error, instead of waiting, while another guarded one of the same object is running."""

    @functools.wraps(method)
    def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.busy.acquire(blocking=False):
            raise Error(SHARED)
        try:
            return method(self, *args, **kwargs)
        finally:
            self.busy.release()

    return guarded
