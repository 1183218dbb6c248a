from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.detect.statistics import (
    confusion_pairs,
    count_classes,
    expected_calibration_error,
    holm_adjust,
    mcnemar_exact,
    wilson_interval,
)

labelled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for k, n, confidence in ((0, 30, 0.95), (30, 30, 0.95), (7, 9, 0.9), (1999, 2000, 0.99)):
        low, high = wilson_interval(k, n, confidence)
        expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high))


def test_wilson_knows_nothing_without_trials():
    assert [end.tolist() for end in wilson_interval([0, 5], [0, 5])] == [
        [0.0, pytest.approx(0.5655, abs=1e-4)],
        [1, 1],
    ]


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share_and_stays_in_bounds(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1


def test_mcnemar_is_the_exact_binomial_tail():
    assert mcnemar_exact([0, 5, 1, 5], [0, 0, 1, 5]).tolist() == pytest.approx([1, 1 / 32, 3 / 4, 638 / 1024])


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_sees_more_losses_as_worse(lost, gained):
    p, worse = mcnemar_exact([lost, lost + 1], gained)
    assert 0 < worse <= p <= 1
    assert worse < p or p == pytest.approx(1)


def test_holm_on_its_textbook_example():
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm_adjust(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()


def test_calibration_error_by_hand():
    gap, bins = expected_calibration_error([0.95, 0.95, 0.55, 0.55], [1, 0, 1, 1], bins=10)
    assert gap == pytest.approx((2 * 0.45 + 2 * 0.45) / 4)
    assert [(b.count, b.accuracy) for b in bins] == [(2, 1.0), (2, 0.5)]
    assert [b.confidence for b in bins] == pytest.approx([0.55, 0.95])


@pytest.mark.parametrize("sure", [0.0, 1.0, 1.0000001, 0.1])
def test_calibration_bins_take_the_edges(sure):
    gap, bins = expected_calibration_error([sure], [1], bins=10)
    assert gap == pytest.approx(abs(1 - sure))
    assert len(bins) == 1


@settings(deadline=None)  # the first example imports scikit-learn
@given(labelled)
def test_class_counts_agree_with_scikit_learn(pairs):
    from sklearn.metrics import precision_recall_fscore_support

    true, guess = np.array(pairs).T
    counts = count_classes(true, guess, 5)
    expected = precision_recall_fscore_support(true, guess, labels=range(5), zero_division=np.nan)
    for ours, theirs in zip(
        (counts.precision, counts.recall, counts.f1, counts.support), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs)


def test_a_class_that_never_occurs_has_no_recall():
    counts = count_classes([0, 0], [0, 1], 3)
    assert counts.recall[0] == 0.5
    assert math.isnan(counts.recall[1])
    assert math.isnan(counts.f1[2])


@given(labelled)
def test_confusion_pairs_are_the_mistakes_most_frequent_first(pairs):
    true, guess = np.array(pairs).T
    confused = confusion_pairs(true, guess)
    assert sum(n for *_, n in confused) == int((true != guess).sum())
    assert all(a != b and n == sum(pair == (a, b) for pair in pairs) for a, b, n in confused)
    assert [n for *_, n in confused] == sorted((n for *_, n in confused), reverse=True)
