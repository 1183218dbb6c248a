"""Classical statistics of a classifier's answers: counts in, intervals and exact tests out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[Float64, Float64]:
    """Score interval of a proportion, per element; (0, 1) where there were no trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    It keeps its coverage at small counts and near 0 and 1, where the normal interval does not.
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    safe_n = np.where(n > 0, n, 1.0)
    share = k / safe_n
    spread = z * np.sqrt(share * (1 - share) / safe_n + z**2 / (4 * safe_n**2))
    scale = 1 + z**2 / safe_n
    middle = share + z**2 / (2 * safe_n)
    low = np.where(n > 0, np.clip((middle - spread) / scale, 0, share), 0.0)
    high = np.where(n > 0, np.clip((middle + spread) / scale, share, 1), 1.0)
    return low, high


def exact_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion that is never too narrow; (0, 1) where there were no trials.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934).
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def mcnemar_exact(lost: ArrayLike, gained: ArrayLike) -> Float64:
    """One-sided exact McNemar test that paired answers got worse, per element.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 12 (1947), in its exact binomial form: of the items on which the two classifiers
    differ, each is lost or gained with probability one half.

    Parameters
    ----------
    lost
        Items that the old classifier had right and the new one has wrong.
    gained
        Items the other way round.

    Returns
    -------
    The probability of at least ``lost`` losses; 1 where there is no difference.
    """
    from scipy.stats import binom

    worse, better = np.asarray(lost, dtype=np.int64), np.asarray(gained, dtype=np.int64)
    return np.asarray(binom.sf(worse - 1, worse + better, 0.5), dtype=np.float64)


def holm_adjust(p_values: ArrayLike) -> Float64:
    """P values adjusted so that each may be held against the level of the whole family.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The answers whose confidence falls into one bin: how many, how sure, how right."""

    count: int
    confidence: float
    accuracy: float


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15
) -> tuple[float, tuple[ReliabilityBin, ...]]:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size.

    M. P. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015;
    C. Guo et al., "On calibration of modern neural networks", ICML 2017 (arXiv:1706.04599).

    Parameters
    ----------
    confidence
        Probability of each prediction, shape (n,).
    correct
        Whether it was right, shape (n,).
    bins
        Number of bins over 0 to 1; a bin includes its upper edge.

    Returns
    -------
    The error, 0 to 1, and the bins that are not empty, in order of confidence.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    index = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sure_sum = np.bincount(index, weights=sure, minlength=bins)
    right_sum = np.bincount(index, weights=right, minlength=bins)
    filled = [
        ReliabilityBin(int(count[b]), float(sure_sum[b] / count[b]), float(right_sum[b] / count[b]))
        for b in np.flatnonzero(count)
    ]
    gap = float(np.abs(sure_sum - right_sum).sum() / max(len(sure), 1))
    return gap, tuple(filled)


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Per class, shape (classes,): images of it, predictions of it, and predictions of it that are right."""

    support: Int64
    predicted: Int64
    hits: Int64

    @property
    def recall(self) -> Float64:
        """Share of the class's images found; NaN for a class without images."""
        return _ratio(self.hits, self.support)

    @property
    def precision(self) -> Float64:
        """Share of the predictions of the class that are right; NaN where it was never predicted."""
        return _ratio(self.hits, self.predicted)

    @property
    def f1(self) -> Float64:
        """Harmonic mean of the two; NaN for a class neither there nor predicted."""
        return _ratio(2 * self.hits, self.support + self.predicted)


def count_classes(labels: ArrayLike, predictions: ArrayLike, classes: int) -> ClassCounts:
    """Count images, predictions and right predictions of each class; indices below ``classes``."""
    true, guess = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    return ClassCounts(
        np.bincount(true, minlength=classes),
        np.bincount(guess, minlength=classes),
        np.bincount(true[true == guess], minlength=classes),
    )


def confusion_pairs(labels: ArrayLike, predictions: ArrayLike) -> list[tuple[int, int, int]]:
    """The mistakes as (true class, predicted class, count), most frequent first."""
    true, guess = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    wrong = true != guess
    pairs, counts = np.unique(np.stack([true[wrong], guess[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Float64:
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
