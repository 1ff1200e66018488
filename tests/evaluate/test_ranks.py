"""Statistics of order, on numbers known by hand."""

import math

import numpy as np
import pytest

from worldscape.evaluate.ranks import auc, spearman


def test_rank_correlation_is_spearmans():
    """1 - 6 sum d^2 / (n^3 - n) where no two are equal; ties share their mean rank."""
    one, other = np.array([10.0, 20.0, 30.0, 40.0, 50.0]), np.array([1.0, 8.0, 4.0, 16.0, 2.0])
    assert spearman(one, other) == pytest.approx(1 - 6 * (0 + 4 + 0 + 1 + 9) / (125 - 5))
    assert spearman(one, one**3) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, squares 4.5 and 5.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(one, np.ones(5))) and math.isnan(spearman([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="cannot be paired"):
        spearman([1, 2], [1, 2, 3])


def test_auc_counts_pairs_in_the_right_order():
    values, is_high = np.array([1.0, 2, 3, 4, 4]), np.array([False, True, False, True, False])
    # 2 is above 1 of 1, 3, 4; 4 is above 1 and 3 and ties with 4.
    assert auc(values, is_high) == pytest.approx((1 + 2.5) / 6)
    assert auc(np.array([0.1, 0.9]), np.array([False, True])) == 1
    assert math.isnan(auc(values, np.zeros(5, bool)))
