"""Whether shares and figures moved: between two versions of a data set, or in one of its batches.

All tests are exact or by rank, and give a p value for each question; :func:`~promotion_gate.detect.batches.
false_discovery` turns those of many questions into q values that bound the share of false discoveries.

Rows of one scene move together, so that a test of rows overstates: a batch's rank sum is held against the
scatter of the other batches where that is larger than chance. Counts have no such correction, and are to be
read beside the size of the change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promotion_gate.detect.batches import standing_within_label

Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
_ENOUGH_BATCHES = 5


def count_p(count: ArrayLike, drawn: ArrayLike, marked: ArrayLike, total: ArrayLike) -> Doubles:
    """Fisher's exact test, two-sided: ``count`` of ``drawn`` rows are marked, ``marked`` of all ``total``.

    The smaller tail is doubled; 1 where nothing could differ.
    """
    from scipy.stats import hypergeom

    k, n, m, all_rows = (np.asarray(value, dtype=np.int64) for value in (count, drawn, marked, total))
    upper = hypergeom.sf(k - 1, all_rows, m, n)
    lower = hypergeom.cdf(k, all_rows, m, n)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(upper, lower)), dtype=np.float64)


def excess_p(count: ArrayLike, drawn: ArrayLike, marked: ArrayLike, total: ArrayLike) -> Doubles:
    """The same, one-sided: chance of ``count`` or more."""
    from scipy.stats import hypergeom

    k, n, m, all_rows = (np.asarray(value, dtype=np.int64) for value in (count, drawn, marked, total))
    return np.asarray(hypergeom.sf(k - 1, all_rows, m, n), dtype=np.float64)


def share_shift(before: ArrayLike, now: ArrayLike) -> Doubles:
    """P value per label that its share of the rows differs between two sets of counts (labels,)."""
    first, second = np.asarray(before, dtype=np.int64), np.asarray(now, dtype=np.int64)
    if not first.sum() or not second.sum():
        return np.ones(len(first))
    return count_p(second, second.sum(), first + second, first.sum() + second.sum())


def group_shift(values: NDArray[np.floating], labels: Rows, groups: Rows) -> tuple[Doubles, Doubles]:
    """P value per group that its values lie high or low within their labels, and their mean standing.

    Van Elteren's stratified Wilcoxon test (1960), two-sided; the standing is 0.5 where nothing moved. Within
    labels, so that the mix of labels that a group brings does not matter.

    Parameters
    ----------
    values: one figure a row, (rows,).
    labels, groups: index of each row's label and group, (rows,).
    """
    from scipy.stats import norm

    count = int(groups.max()) + 1
    standing = standing_within_label(values, labels).astype(np.float64)
    classes = int(labels.max()) + 1
    of_label = np.bincount(labels, minlength=classes)
    # Ties make ranks scatter less than the formula for distinct ranks has it.
    middle = (1 + 1 / of_label[labels]) / 2
    scatter = np.bincount(labels, weights=(standing - middle) ** 2, minlength=classes) / np.maximum(
        of_label - 1, 1
    )
    cells, rows = np.unique(groups * classes + labels, return_counts=True)
    group, label = np.divmod(cells, classes)
    left = 1 - rows / of_label[label]
    variance = np.bincount(group, weights=rows * left * scatter[label], minlength=count)
    away = np.bincount(groups, weights=standing - middle, minlength=count)
    z = np.where(variance > 1e-12, away / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    spread = 1.4826 * float(np.median(np.abs(z - np.median(z)))) if count >= _ENOUGH_BATCHES else 1.0
    sizes = np.maximum(np.bincount(groups, minlength=count), 1)
    p = np.minimum(1.0, 2 * norm.sf(np.abs(z) / max(1.0, spread)))
    return np.asarray(p, dtype=np.float64), np.asarray(0.5 + away / sizes, dtype=np.float64)
