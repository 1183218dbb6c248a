"""What is asked of live predictions, made from a baseline: one yes-or-no event, and its share, a question.

Of each class: is it predicted more or less often? Is it predicted with less confidence than its lowest
quarter in the baseline, or with more than its highest, more often? Of all predictions: are embeddings further
from the baseline's mean than 95 % of its own, or nearer than 95 %, more or less often?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.sequential import Allowed
from promotion_gate.detect.shares import scatter_between_windows, share_limits
from promotion_gate.monitor.interface import Baseline

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MISSED = 0.01
"""The chance that the baseline's error is larger than allowed for, in any of the questions."""

_QUARTER = 0.25
_FAR, _NEAR = 95, 5


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where an answer counts as unsure, and as sure, float32 (classes,)."""

    unsure: NDArray[np.float32]
    sure: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a baseline, in this order: share, unsure and sure of each class; far, near.

    ``rho`` float64 (classes,) is how far predictions of one window go together.
    """

    baseline: Baseline
    allowed: Allowed
    cuts: Cuts
    mean: Float64
    far: float
    near: float
    rho: Float64

    @property
    def classes(self) -> int:
        return len(self.baseline.class_names)

    def __len__(self) -> int:
        return len(self.allowed)


def questions_of(baseline: Baseline) -> Questions:
    """Make the questions, with the shares that are no news."""
    counts = np.asarray(baseline.counts, dtype=np.float64)
    totals = counts.sum(axis=1)
    classes = counts.shape[1]
    number = 3 * classes + 2
    level = MISSED / number / 2
    rho = scatter_between_windows(counts, totals)
    histogram = np.asarray(baseline.confidence, dtype=np.float64)
    edges = np.asarray(baseline.confidence_edges, dtype=np.float32)
    cuts = confidence_cuts(histogram, edges)
    told = histogram.sum(axis=1)
    below = np.where(edges[None, :-1] < cuts.unsure[:, None], histogram, 0).sum(axis=1)
    above = np.where(edges[None, :-1] >= cuts.sure[:, None], histogram, 0).sum(axis=1)
    confidence_rho = np.asarray(baseline.confidence_rho or np.zeros(classes), dtype=np.float64)
    a_window = told / len(counts)
    shares = share_limits(counts.sum(axis=0), totals.sum(), level, rho, float(totals.mean()))
    # Cuts were chosen among the bins, so that a cut's share may be that of any of them.
    picked = level / max(len(edges) - 2, 1)
    unsure = _limits(below, told, picked, confidence_rho, a_window)
    sure = _limits(above, told, picked, confidence_rho, a_window)
    far, near, beyond = _distance_limits(baseline, float(totals.sum()), level, float(totals.mean()))
    nothing = np.zeros(classes)
    allowed = Allowed(
        low=np.concatenate([shares[0], nothing, nothing, beyond[0]]),
        high=np.concatenate([shares[1], unsure, sure, beyond[1]]),
        rho=np.concatenate([rho, confidence_rho, confidence_rho, np.full(2, baseline.embedding_rho)]),
    )
    mean = np.asarray(baseline.embedding_mean, dtype=np.float64)
    return Questions(baseline, allowed, cuts, mean, far, near, rho)


def confidence_cuts(histogram: Float64, edges: NDArray[np.float32]) -> Cuts:
    """The edges that part a quarter of each class's answers, at either end, as nearly as bins allow.

    Parameters
    ----------
    histogram: counts by class and bin, (classes, bins).
    edges: of the bins, (bins + 1,).
    """
    told = np.maximum(histogram.sum(axis=1, keepdims=True), 1)
    below = histogram.cumsum(axis=1)[:, :-1] / told
    inner = edges[1:-1]
    if not len(inner):
        return Cuts(np.zeros(len(histogram), np.float32), np.full(len(histogram), 2.0, np.float32))
    unsure = inner[np.argmin(np.abs(below - _QUARTER), axis=1)]
    sure = inner[np.argmin(np.abs(1 - below - _QUARTER), axis=1)]
    return Cuts(unsure.astype(np.float32), sure.astype(np.float32))


def _limits(hits: Float64, trials: Float64, level: float, rho: Float64, a_window: Float64) -> Float64:
    high = np.ones(len(hits))
    for number in range(len(hits)):
        if trials[number]:
            _, limit = share_limits(hits[number], trials[number], level, rho[number], float(a_window[number]))
            high[number] = float(limit)
    return high


def _distance_limits(
    baseline: Baseline, total: float, level: float, a_window: float
) -> tuple[float, float, tuple[Float64, Float64]]:
    if not baseline.embedding_mean:
        return np.inf, -np.inf, (np.zeros(2), np.ones(2))
    far, near = baseline.embedding_distance[_FAR], baseline.embedding_distance[_NEAR]
    hits = np.array([total * (100 - _FAR) / 100, total * _NEAR / 100])
    return far, near, share_limits(hits, total, level, baseline.embedding_rho, a_window)
