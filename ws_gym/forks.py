"""What a world does in a process that was forked after torch had been used."""

from __future__ import annotations

import os

import torch

from ws_gym import IMPORTED_IN

FORKED = (
    "a world on a CUDA device cannot be used in a forked process; instead of many processes use many slots of one "
    "model, gym.make_vec('WorldScape-Nav-v0', num_envs=N, device='cuda'), or start processes with 'spawn'."
)


def leave_the_parents_threads() -> None:
    """In a forked process, compute with one thread: OpenMP would wait for ever for those that only the parent has."""
    if os.getpid() != IMPORTED_IN and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
