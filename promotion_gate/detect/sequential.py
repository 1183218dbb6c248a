"""Whether shares have moved, asked after every handful of predictions and for months, with one error rate.

For each question ("is class 7 predicted more, or less, often than the baseline allows?") the detector keeps
the sum of e-processes started at every moment so far: a Shiryaev-Roberts e-detector (J. Shin, A. Ramdas, A.
Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", arXiv:2203.03532; S. W.
Roberts, Technometrics 8, 1966). An e-process is the likelihood of what was counted under a shift, by some
factor of the odds, over the likelihood under the share that the baseline allows and that explains it best;
chance makes it grow past ``A`` with probability at most ``1 / A`` (J. Ville, 1939), however often one looks.

Starts are weighted by time, one unit a window. So the expected sum after ``T`` windows is at most ``T``, and
the chance that any of ``Q`` questions crosses ``A`` within them at most ``Q T / A``, whatever the traffic and
however often one looks.

Where windows scatter, the share of a window is drawn from a beta distribution: the likelihoods are then
those of the beta-binomial given what the same window has shown so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promotion_gate.detect.shares import FIVE_SIGMA

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

SURGES = (1.3, 1.7, 2.5, 4.0, 8.0, 16.0, 50.0, 250.0)
LOSSES = (0.7, 0.5, 0.25, 0.05)
FACTORS = np.array([*SURGES, *LOSSES])
"""Factors of the odds that the detector looks for; what lies between is found by its neighbours."""

MEMORY = float(np.exp(3.0))
"""How far evidence may grow beyond the limit: what has grown for ever would take as long to fade."""

_LEAST = 1e-12
_MOST_STEP = 60.0


def alarm_limit(questions: int, windows: float, false_alarms: float = 1.0, tail: float = FIVE_SIGMA) -> float:
    """The evidence at which an alarm is raised: ``1 / tail``, or more where many questions call for it.

    Parameters
    ----------
    questions: how many are asked at once.
    windows: the stretch, in windows, on which at most ``false_alarms`` are expected.
    """
    return max(1 / tail, questions * windows / false_alarms)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The shares that are no news, one entry a question, each float64 (questions,).

    ``low`` and ``high`` bound the share; a question with ``low`` 0 never asks for a loss. ``rho`` is the
    correlation of two predictions of one window.
    """

    low: Float64
    high: Float64
    rho: Float64

    def __len__(self) -> int:
        return len(self.low)


class ShareDetector:
    """Evidence, per question, that its share has left the allowed range.

    ``evidence`` float64 (questions,) is the e-detector's value: crossing ``A`` has the rate above.
    """

    def __init__(self, allowed: Allowed, cap: float) -> None:
        up = FACTORS > 1
        null = np.where(up, allowed.high[:, None], allowed.low[:, None])
        usable = (null > _LEAST) & (null < 1 - _LEAST)
        null = np.where(usable, null, 0.5)
        odds = FACTORS * null / (1 - null)
        other = odds / (1 + odds)
        self._weight = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1)
        self._hit = np.where(usable, np.log(other / null), 0.0)
        self._miss = np.where(usable, np.log1p(-other) - np.log1p(-null), 0.0)
        self._scattered = np.flatnonzero(allowed.rho > 0)
        strength = (1 / allowed.rho[self._scattered] - 1)[:, None]
        self._null = null[self._scattered] * strength, (1 - null[self._scattered]) * strength
        self._other = other[self._scattered] * strength, (1 - other[self._scattered]) * strength
        nothing = np.zeros(1)
        self._norm = _log_ratio(nothing, nothing, self._other, self._null)
        self._cap = cap * MEMORY
        self.sums = np.zeros(null.shape)
        self.shown = np.zeros(null.shape)

    @property
    def evidence(self) -> Float64:
        return np.asarray((self.sums * self._weight).sum(axis=1), dtype=np.float64)

    def count(self, hits: ArrayLike, trials: ArrayLike, weights: ArrayLike) -> Float64:
        """Take in steps of a window; the evidence after each of them, (steps, questions).

        Parameters
        ----------
        hits, trials: counts of the window so far at the end of each step, (steps, questions).
        weights: the part of the window that passed before each step, (steps,).
        """
        k, n = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
        now = k[:, :, None] * self._hit + (n - k)[:, :, None] * self._miss
        if len(self._scattered):
            inner = k[:, self._scattered, None], (n - k)[:, self._scattered, None]
            now[:, self._scattered] = _log_ratio(*inner, self._other, self._null) - self._norm
        gains = np.diff(now, axis=0, prepend=self.shown[None])
        np.clip(gains, -700.0, _MOST_STEP, out=gains)
        np.exp(gains, out=gains)
        trace = np.empty(k.shape)
        for step, weight in enumerate(np.asarray(weights, dtype=np.float64)):
            self.sums += weight
            self.sums *= gains[step]
            np.minimum(self.sums, self._cap, out=self.sums)
            trace[step] = self.evidence
        self.shown = now[-1]
        return trace

    def close_window(self) -> None:
        """The next counts are those of a new window."""
        self.shown = np.zeros_like(self.shown)


def _log_ratio(
    k: Float64, misses: Float64, other: tuple[Float64, Float64], null: tuple[Float64, Float64]
) -> Float64:
    """Log of the beta-binomials' ratio for one order of hits and misses, but for a constant."""
    from scipy.special import gammaln

    return np.asarray(
        gammaln(k + other[0]) + gammaln(misses + other[1]) - gammaln(k + null[0]) - gammaln(misses + null[1]),
        dtype=np.float64,
    )
