import numpy as np
import pytest
from scipy.stats import fisher_exact, kstest, mannwhitneyu

from promotion_gate.detect.drift import count_p, excess_p, group_shift, share_shift
from promotion_gate.detect.statistics import exact_interval


def test_counts_are_tested_exactly():
    table = [[7, 13], [2, 58]]
    expected = fisher_exact(table, alternative="greater").pvalue
    assert excess_p(7, 20, 9, 80) == pytest.approx(expected)
    assert count_p(7, 20, 9, 80) == pytest.approx(2 * expected)
    assert count_p(0, 20, 0, 80) == 1


def test_shares_of_the_same_mix_do_not_shift():
    assert share_shift([50, 50], [500, 500]).min() > 0.5
    assert share_shift([50, 50], [20, 80]).max() < 1e-3
    assert share_shift([0, 0], [3, 4]).tolist() == [1, 1]


def test_one_label_and_two_groups_are_the_rank_sum_test():
    rng = np.random.default_rng(0)
    values, groups = rng.integers(0, 9, 300).astype(float), rng.integers(0, 2, 300)
    values[groups == 1] += 1
    p, standing = group_shift(values, np.zeros(300, dtype=np.int64), groups)
    expected = mannwhitneyu(values[groups == 0], values[groups == 1], use_continuity=False).pvalue
    assert p == pytest.approx([expected, expected], rel=0.02)
    assert standing[0] < 0.5 < standing[1]


def test_p_values_are_even_where_nothing_moved():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(60):
        labels, groups = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
        p.append(group_shift(rng.normal(size=400) + 5 * labels, labels, groups)[0][0])
    assert kstest(p, "uniform").pvalue > 0.01


def test_a_mix_of_labels_is_no_shift_of_the_values():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 2000)
    groups = np.where(rng.random(2000) < 0.8, labels, 1 - labels)
    p, _ = group_shift(rng.normal(size=2000) + 10 * labels, labels, groups)
    assert p.min() > 1e-3


def test_the_exact_interval():
    assert exact_interval(0, 50) == pytest.approx((0, 0.0711), abs=1e-3)
    assert exact_interval(50, 50)[1] == 1
    assert exact_interval(3, 50) == pytest.approx((0.0125, 0.1655), abs=1e-3)
    assert exact_interval(0, 0) == (0, 1)
