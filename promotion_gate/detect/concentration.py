"""Labels that are wrong together: one label crowding the head of the anchor ranking, and label errors.

Companions of the search for patch triggers, for what has no patch: blended and sinusoidal triggers, and
plain label flips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.anchor import unit

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
CHUNK = 1024
NOBODY = -1
PRIOR = 0.2
"""Strength of the prior for a pair that no trusted image confuses."""
SURPRISING = 0.01
MOST, SOME, ORDINARY = 0.7, 0.25, 0.1
"""Shares of a class's rows beyond its trusted images; see :func:`share_beyond`."""


def head_of(anchor: Floats, eligible: NDArray[np.bool_], limit: int = 100, share: float = 0.015) -> Rows:
    """The most suspicious eligible rows, at most ``limit`` and at most ``share`` of all rows, worst first."""
    rows = np.flatnonzero(eligible)
    count = min(limit, round(share * len(anchor)), len(rows))
    return np.asarray(rows[np.argsort(-anchor[rows], kind="stable")[:count]], dtype=np.int64)


def share_beyond(anchor: Floats, labels: Rows, spread: Floats, trusted_labels: Rows, classes: int) -> Floats:
    """Share of each class's rows that lie farther out than nineteen of twenty trusted images, float32.

    A twentieth where rows and trusted images are of one kind, 0 for a class without either. Trusted images of
    one track or one camera lie close together, and then many rows lie farther out. Where :data:`MOST` do,
    distance to them tells nothing about the odd row out; where :data:`SOME` do, whole tracks lie nearer to
    another class's trusted images, and how seldom trusted images themselves do says nothing of it.

    Parameters
    ----------
    anchor: distance of every training row to the trusted images of its label.
    spread: distance of every trusted image to the others of its label.
    """
    shares = np.zeros(classes, dtype=np.float32)
    for label in np.intersect1d(trusted_labels, labels).tolist():
        reach = np.quantile(spread[trusted_labels == label], 0.95)
        shares[label] = (anchor[labels == label] > reach).mean()
    return shares


@dataclass(frozen=True, slots=True)
class Concentration:
    """How one label crowds the head of the anchor ranking.

    ``label`` departs most from its expectation, with ``count`` of the head's ``size`` rows where
    ``expected`` were due; ``label`` is -1 for an empty head. ``largest`` is the largest count of any label.
    ``p`` is the chance of any label departing so far under the null that knows how hard each class is,
    ``plain_p`` that of so large a count when labels are merely permuted. ``bunch`` is the number of rows that
    count as one.
    """

    label: int
    count: int
    size: int
    largest: int
    expected: float
    p: float
    plain_p: float
    counts: Rows
    expected_counts: NDArray[np.float64]
    bunch: float


def label_concentration(
    head_labels: Rows,
    training_counts: Rows,
    hard_counts: Rows,
    holdout_counts: Rows,
    *,
    permutations: int = 1000,
    prior: float = 2.0,
    seed: int = 0,
) -> Concentration:
    """Judge the label counts of the head of the ranking against two label-permuted nulls.

    Hard classes crowd the head on clean models too. The first null therefore draws the head's labels with
    each class weighted by its training rows times its natural hardness: the share of its trusted images
    among the holdout's own hardest. That share is itself uncertain, so every draw takes it anew from its
    Gamma posterior. The largest standardised excess over classes is compared with the same maximum of the
    draws, which corrects for having looked at every class (Westfall and Young 1993). The second null weighs
    classes by training rows alone.

    Rows of one scene or video track come in bunches, and bunches are fewer than rows: how strongly the
    other labels' counts scatter about their expectation gives the size of a bunch (Kish's design effect),
    and the first null draws bunches.

    What defeats it: poison spread over many labels, few carriers, and carriers trained into the target
    class's own cloud.

    Parameters
    ----------
    head_labels: int64 (n,), labels of the head.
    training_counts: int64 (classes,), rows that the head was drawn from.
    hard_counts: int64 (classes,), images of each class among the holdout's hardest.
    holdout_counts: int64 (classes,), images that those were drawn from.
    prior: pseudo-count that pulls a class's hardness towards the mean of all.
    """
    classes, size = len(training_counts), len(head_labels)
    counts = np.bincount(head_labels, minlength=classes)
    if size == 0:
        return Concentration(-1, 0, 0, 0, 0.0, 1.0, 1.0, counts, np.zeros(classes), 1.0)
    bunch = 1.0
    for last in (False, True):
        rng = np.random.default_rng(seed)
        mean = max(int(hard_counts.sum()), 1) / max(int(holdout_counts.sum()), 1)
        hardness = rng.gamma(
            hard_counts / bunch + prior, 1 / (holdout_counts / bunch + prior / mean), (permutations, classes)
        )
        weights = hardness * training_counts
        shares = weights / weights.sum(axis=1, keepdims=True)
        drawn = rng.multinomial(max(1, round(size / bunch)), shares) * bunch
        expected, spread = drawn.mean(axis=0), drawn.std(axis=0) + 0.5
        excess = (counts - expected) / spread
        label = int(excess.argmax())
        if not last:
            bunch = _bunch(counts, shares.mean(axis=0), label)
    plain = rng.multinomial(size, training_counts / training_counts.sum(), permutations)
    return Concentration(
        label,
        int(counts[label]),
        size,
        int(counts.max()),
        float(expected[label]),
        _tail(((drawn - expected) / spread).max(axis=1), float(excess[label])),
        _tail(plain.max(axis=1), float(counts.max())),
        counts,
        expected,
        bunch,
    )


def _bunch(counts: Rows, shares: NDArray[np.float64], apart: int) -> float:
    """Pearson's dispersion of the counts about their shares, the label ``apart`` left out; at least 1."""
    others = np.delete(counts, apart)
    due = np.delete(shares, apart)
    due = due / max(float(due.sum()), 1e-12) * others.sum()
    filled = due > 0
    pearson = float((((others - due)[filled] ** 2) / due[filled]).sum())
    return max(1.0, pearson / max(int(filled.sum()) - 1, 1))


def _tail(drawn: NDArray[np.floating] | Rows, observed: float) -> float:
    return (1 + int((drawn >= observed).sum())) / (1 + len(drawn))


def self_confidence(probabilities: Floats, labels: Rows) -> Floats:
    """Mean probability of each class on trusted images of it, float32 (classes,); 2 where there are none.

    The per-class threshold of confident learning: Northcutt, Jiang and Chuang, JAIR 2021
    (arXiv:1911.00068), taken from trusted images instead of the noisy ones.
    """
    thresholds = np.full(probabilities.shape[1], 2.0, dtype=np.float32)
    for label in np.unique(labels):
        thresholds[label] = probabilities[labels == label, label].mean()
    return thresholds


def believed_otherwise(probabilities: Floats, labels: Rows, thresholds: Floats) -> Rows:
    """The class that a model believes in where it confidently disbelieves the label, else -1; int64 (rows,).

    Confident: the predicted class is another one, its probability reaches its own threshold, and the
    label's stays below the label's threshold.
    """
    each = np.arange(len(labels))
    guess = probabilities.argmax(axis=1)
    sure = probabilities[each, guess] >= thresholds[guess]
    doubted = probabilities[each, labels] < thresholds[labels]
    return np.where(sure & doubted & (guess != labels), guess, NOBODY).astype(np.int64)


def neighbours_otherwise(
    embeddings: Floats,
    labels: Rows,
    trusted_embeddings: Floats,
    trusted_labels: Rows,
    *,
    neighbours: int = 5,
    leave_one_out: bool = False,
) -> Rows:
    """The one other class of all the nearest trusted images, else -1; int64 (rows,).

    kNN label disagreement (Bahri et al. 2020, arXiv:2004.12289), unanimous. ``leave_one_out``: the rows are
    the trusted images themselves, in the same order.
    """
    believed = np.full(len(labels), NOBODY, dtype=np.int64)
    neighbours = min(neighbours, len(trusted_labels) - leave_one_out)
    if neighbours < 1:
        return believed
    trusted = unit(trusted_embeddings)
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        cosines = unit(np.asarray(embeddings[rows])) @ trusted.T
        if leave_one_out:
            cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        nearest = trusted_labels[np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]]
        agreed = (nearest == nearest[:, :1]).all(axis=1) & (nearest[:, 0] != labels[rows])
        believed[rows] = np.where(agreed, nearest[:, 0], NOBODY)
    return believed


@dataclass(frozen=True, slots=True)
class PairErrors:
    """Rows of one label that look like one other class, or like any other where ``believed`` is -1.

    ``holdout_count`` trusted images of the label look so too, which makes ``expected`` rows ordinary. ``p``
    is the chance of at least ``count`` when errors come in bunches of ``bunch`` rows, times the number of
    pairs or labels, and two for looking at both (Bonferroni).
    """

    label: int
    believed: int
    count: int
    holdout_count: int
    expected: float
    bunch: float
    p: float


def pair_errors(
    labels: Rows,
    believed: Rows,
    holdout_labels: Rows,
    holdout_believed: Rows,
    classes: int,
    bunch: Callable[[Rows], float] = lambda rows: 1.0,
) -> list[PairErrors]:
    """Every pair (label, believed class) and every label with errors, the most surprising first.

    The same test of belief was put to training rows and trusted images. The rate that trusted images show
    for a pair has a Beta posterior; the tail is that of the binomial count over it (beta-binomial). A pair
    that trusted images confuse too is judged by its own rate (Jeffreys prior), any other by a prior with the
    mean rate of all other pairs: noise spread over all pairs is not called a flip of one. All errors of a
    label are judged against those of the other labels in the same way: a trigger that works on every class
    turns many classes into one.

    Parameters
    ----------
    believed, holdout_believed: class that a row looks like, -1 where nothing speaks against its label.
    bunch: how many rows make one piece of evidence, given the rows with the error. Frames of one track are
        one error, however many there are; asked only where the rows taken singly would be surprising.
    """
    pairs = _pair_counts(labels, believed, classes), _pair_counts(holdout_labels, holdout_believed, classes)
    sizes = np.bincount(labels, minlength=classes), np.bincount(holdout_labels, minlength=classes)
    whole = pairs[0].sum(axis=1, keepdims=True), pairs[1].sum(axis=1, keepdims=True)
    trials = int(sizes[0].sum() + sizes[1].sum())
    found = []
    for (seen, ordinary), cells, share in (
        (pairs, 2 * classes * (classes - 1), trials * (classes - 1)),
        (whole, 2 * classes, trials),
    ):
        for label, other in np.argwhere(seen > 0).tolist():
            count, before = int(seen[label, other]), int(ordinary[label, other])
            rest = int(seen.sum() + ordinary.sum()) - count - before
            judged = _Excess(
                count, int(sizes[0][label]), before, int(sizes[1][label]), max(rest, 0.5) / share
            )
            look = other if seen is pairs[0] else NOBODY
            size, p = 1.0, judged.tail(1.0) * cells
            if p < SURPRISING and count > 1:
                rows = (labels == label) & (believed == other if look != NOBODY else believed != NOBODY)
                size = float(np.clip(bunch(np.flatnonzero(rows)), 1.0, count))
                p = judged.tail(size) * cells
            found.append(PairErrors(label, look, count, before, judged.expected, size, min(1.0, p)))
    return sorted(found, key=lambda pair: (pair.p, -pair.count, pair.label, -pair.believed))


@dataclass(frozen=True, slots=True)
class _Excess:
    """``count`` errors of ``rows``; ``before`` of ``trusted`` images and ``rate`` elsewhere are usual."""

    count: int
    rows: int
    before: int
    trusted: int
    rate: float

    def _posterior(self, bunch: float) -> tuple[float, float]:
        prior = (0.5, 0.5) if self.before else (PRIOR, PRIOR / self.rate)
        return prior[0] + self.before / bunch, prior[1] + (self.trusted - self.before) / bunch

    @property
    def expected(self) -> float:
        a, b = self._posterior(1.0)
        return float(self.rows * a / (a + b))

    def tail(self, bunch: float) -> float:
        from scipy.stats import betabinom

        # Summed, since one minus the cumulative distribution has no digits left where it matters.
        counts = np.arange(int(self.count / bunch), max(1, round(self.rows / bunch)) + 1)
        return float(betabinom.pmf(counts, counts[-1], *self._posterior(bunch)).sum())


def _pair_counts(labels: Rows, believed: Rows, classes: int) -> Rows:
    doubted = believed != NOBODY
    flat = labels[doubted] * classes + believed[doubted]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
