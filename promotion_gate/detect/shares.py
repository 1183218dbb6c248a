"""Shares against a baseline that was itself counted: exact tails, overdispersion, limits, sigmas.

A share is a count of ``k`` among ``n`` predictions. The baseline's share is not the truth: it was counted on
a holdout or on windows of finite size, and both its error and the scatter between windows are part of what
chance may do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

FIVE_SIGMA = 2.866515718791933e-07
"""The upper tail of a normal variable beyond five standard deviations."""

_NODES = 160
_RHO_GRID = np.concatenate([[0.0], np.geomspace(1e-6, 0.5, 48)])
_LEAST_TAIL = 1e-300
_PROFILE_DROP = 1.92
_OVERDISPERSED_P = 1e-3
_CELLS = 2_000_000


def sigma_of(p_value: ArrayLike) -> Float64:
    """Tail probabilities as standard deviations of a normal variable; 2.87e-7 is 5, one half or more is 0."""
    from scipy.stats import norm

    p = np.clip(np.asarray(p_value, dtype=np.float64), _LEAST_TAIL, 0.5)
    return np.asarray(norm.isf(p), dtype=np.float64)


def predictive(counts: ArrayLike, totals: ArrayLike, rho: ArrayLike = 0.0) -> tuple[Float64, Float64]:
    """Beta distribution (a, b) of the share that a coming window has, given what the baseline counted.

    The posterior under Jeffreys' prior (H. Jeffreys, "An invariant form for the prior probability in
    estimation problems", Proc. R. Soc. A 186, 1946), widened by the scatter between windows: ``rho`` is the
    correlation of two predictions of one window. Mean and variance are exact, the shape a beta's.
    """
    k, n = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    a, b = k + 0.5, n - k + 0.5
    mean = a / (a + b)
    # Var = p (1 - p) (1 / (s + 1) + rho) for a concentration s; solved for the concentration of the sum.
    inflated = np.minimum(1 / (a + b + 1) + np.asarray(rho, dtype=np.float64), 0.999)
    concentration = 1 / inflated - 1
    return mean * concentration, (1 - mean) * concentration


def beta_binomial_tails(
    counts: ArrayLike, trials: ArrayLike, a: ArrayLike, b: ArrayLike
) -> tuple[Float64, Float64]:
    """Chance of at least, and of at most, ``counts`` of ``trials``, the share being Beta(a, b), per element.

    J. G. Skellam, "A probability distribution derived from the binomial distribution by regarding the
    probability of success as variable between the sets of trials", J. R. Stat. Soc. B 10 (1948). The binomial
    tail is integrated over the share by the trapezoid rule on the log-odds scale, where it converges
    geometrically; summing the distribution would take ``trials`` terms.
    """
    from scipy.special import betainc, betaln, expit, log_expit
    from scipy.stats import beta

    k, n, first, second = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (counts, trials, a, b))
    )
    low = _log_odds(beta.ppf(1e-30, first, second), -700.0)
    high = -_log_odds(beta.ppf(1e-30, second, first), -700.0)
    place = np.linspace(0.0, 1.0, _NODES)[:, None]
    odds = low + place * (high - low)
    # The density of the log-odds: p^a (1 - p)^b / B(a, b).
    density = np.exp(first * log_expit(odds) + second * log_expit(-odds) - betaln(first, second))
    density /= density.sum(axis=0)
    # A binomial tail is an incomplete beta function.
    hits, misses = np.maximum(k, 1), np.maximum(n - k, 1)
    upper = np.where(k > 0, (density * betainc(hits, n - hits + 1, expit(odds))).sum(axis=0), 1.0)
    lower = np.where(k < n, (density * betainc(misses, n - misses + 1, expit(-odds))).sum(axis=0), 1.0)
    return np.clip(upper, 0.0, 1.0), np.clip(lower, 0.0, 1.0)


def share_limits(
    counts: ArrayLike, totals: ArrayLike, level: float, rho: ArrayLike = 0.0, window: float = 1.0
) -> tuple[Float64, Float64]:
    """The least and the largest share that the baseline does not rule out, each wrong with chance ``level``.

    C. J. Clopper, E. S. Pearson, Biometrika 26 (1934). Where windows scatter, the baseline counts as if it
    were smaller by the design effect ``1 + (window - 1) rho`` (L. Kish, "Survey Sampling", 1965).

    Parameters
    ----------
    window: predictions in a window of the baseline, on average.
    """
    from scipy.stats import beta

    effect = 1 + np.maximum(window - 1, 0) * np.asarray(rho, dtype=np.float64)
    k = np.asarray(counts, dtype=np.float64) / effect
    n = np.maximum(np.asarray(totals, dtype=np.float64), 1.0) / effect
    rest = np.maximum(n - k, 0.0)
    low = np.where(k > 0, beta.ppf(level, np.maximum(k, 1e-9), rest + 1), 0.0)
    high = np.where(rest > 0, beta.isf(level, k + 1, np.maximum(rest, 1e-9)), 1.0)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def overdispersion_p(counts: ArrayLike, totals: ArrayLike) -> Float64:
    """P value per class that windows scatter more than chance around one share.

    R. E. Tarone, "Testing the goodness of fit of the binomial distribution", Biometrika 66 (1979), one-sided.

    Parameters
    ----------
    counts: predictions by window and class, (windows, classes).
    totals: predictions of each window, (windows,), or of each window and class.
    """
    from scipy.stats import norm

    return np.asarray(norm.sf(_tarone(counts, totals)), dtype=np.float64)


def scatter_between_windows(counts: ArrayLike, totals: ArrayLike) -> Float64:
    """Per class, the correlation of two predictions of one window that the baseline does not rule out.

    Zero for all where neither one class (Holm's level) nor all of them together scatter beyond chance
    (:func:`overdispersion_p`); else the upper limit of the beta-binomial's profile likelihood, since too
    little would raise false alarms. One window tells nothing.
    """
    from scipy.stats import norm

    from promotion_gate.detect.statistics import holm_adjust

    k = np.asarray(counts, dtype=np.float64)
    n = _per_class(totals, k)
    classes = k.shape[1]
    if len(k) < 2 or not n.any():
        return np.zeros(classes)
    z = _tarone(k, n)
    together = float(norm.sf(z.sum() / np.sqrt(max(classes, 1))))
    if together > _OVERDISPERSED_P and holm_adjust(norm.sf(z)).min(initial=1.0) > _OVERDISPERSED_P:
        return np.zeros(classes)
    rho = np.zeros(classes)
    step = max(1, _CELLS // (len(k) * len(_RHO_GRID)))
    for start in range(0, classes, step):
        part = slice(start, start + step)
        rho[part] = _upper_rho(k[:, part], n[:, part])
    return rho


def population_stability_index(baseline: ArrayLike, counts: ArrayLike) -> float:
    """PSI of two sets of counts (classes,), half a count added to each; it has no error rate: for display.

    N. Siddiqi, "Credit Risk Scorecards" (2006).
    """
    old = np.asarray(baseline, dtype=np.float64) + 0.5
    new = np.asarray(counts, dtype=np.float64) + 0.5
    old, new = old / old.sum(), new / new.sum()
    return float(((new - old) * np.log(new / old)).sum())


def _upper_rho(k: Float64, n: Float64) -> Float64:
    from scipy.special import gammaln

    share = (k.sum(axis=0) + 0.5) / (n.sum(axis=0) + 1)
    likelihood = np.empty((len(_RHO_GRID), k.shape[1]))
    chance = (k * np.log(share) + (n - k) * np.log1p(-share)).sum(axis=0)
    likelihood[0] = chance
    for number, rho in enumerate(_RHO_GRID[1:], start=1):
        s = 1 / rho - 1
        a, b = share * s, (1 - share) * s
        cells = gammaln(k + a) + gammaln(n - k + b) - gammaln(n + s)
        likelihood[number] = cells.sum(axis=0) - len(k) * (gammaln(a) + gammaln(b) - gammaln(s))
    allowed = likelihood >= likelihood.max(axis=0) - _PROFILE_DROP
    last = len(_RHO_GRID) - 1 - np.argmax(allowed[::-1], axis=0)
    return np.asarray(_RHO_GRID[last], dtype=np.float64)


def _tarone(counts: ArrayLike, totals: ArrayLike) -> Float64:
    k = np.asarray(counts, dtype=np.float64)
    n = _per_class(totals, k)
    share = k.sum(axis=0) / np.maximum(n.sum(axis=0), 1)
    spread = share * (1 - share)
    away = ((k - n * share) ** 2).sum(axis=0) / np.where(spread > 0, spread, 1.0)
    z = (away - n.sum(axis=0)) / np.sqrt(np.maximum(2 * (n * (n - 1)).sum(axis=0), 1.0))
    return np.asarray(np.where(spread > 0, z, 0.0), dtype=np.float64)


def _per_class(totals: ArrayLike, counts: Float64) -> Float64:
    n = np.asarray(totals, dtype=np.float64)
    return np.asarray(np.broadcast_to(n if n.ndim == 2 else n[:, None], counts.shape), dtype=np.float64)


def _log_odds(share: Float64, least: float) -> Float64:
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(np.log(share) - np.log1p(-share), least), dtype=np.float64)
