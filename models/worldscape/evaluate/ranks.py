"""Statistics of order: ranks, Spearman's correlation, and how well a number tells two groups apart."""

import math
from collections.abc import Sequence

import numpy as np


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, from 0, ties at the mean of theirs; flat."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[place.reshape(-1)]


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation of two collections of a shape; NaN below three pairs or where one is constant."""
    pair = np.asarray(first), np.asarray(second)
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"values of shapes {pair[0].shape} and {pair[1].shape} cannot be paired")
    ranks = np.stack([mean_ranks(values) for values in pair])
    if ranks.shape[1] < 3 or (ranks.std(axis=1) == 0).any():
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


def auc(values: np.ndarray, is_high: np.ndarray) -> float:
    """Area under the ROC curve: how often a value where `is_high` is above one where it is not, ties counting half.

    NaN where one of the two groups is empty.
    """
    num_high = int(is_high.sum())
    num_low = len(values) - num_high
    if not num_high or not num_low:
        return math.nan
    return float((mean_ranks(values)[is_high].sum() - num_high * (num_high - 1) / 2) / (num_high * num_low))
