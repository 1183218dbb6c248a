"""What a linear classifier makes of each row when that row is left out: labels that features belie.

Least squares on one column a class, with a ridge. Its answer to a row that is left out follows from the fit
to all rows in closed form (D. Allen, "The relationship between variable selection and data augmentation and a
method for prediction", Technometrics 16, 1974), so that every row is judged by a classifier that never saw
it. A row whose answer for its own label is far below that for another is likely mislabelled (C. Northcutt et
al., "Confident learning", JAIR 70, 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Tried as shares of the rows; the one whose left-out answers are right most often is taken."""

_CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Of every row: by how much another label's answer is above its own (``margin``), and which label's.

    ``accuracy`` is the share of rows whose own label has the largest answer.
    """

    margin: Doubles = field(repr=False)
    other: Rows = field(repr=False)
    accuracy: float


def left_out(parts: Sequence[NDArray[np.uint8]], labels: Rows, classes: int) -> LeftOut:
    """Judge every row by all the others.

    Parameters
    ----------
    parts: kinds of features, each (rows, n); all kinds count the same, however many features they have.
    labels: class index of every row.
    """
    features = _Features(parts)
    size = features.size
    gram, sums = np.zeros((size, size)), np.zeros((size, classes))
    for rows, values in features.chunks():
        gram += values.T @ values
        np.add.at(sums.T, labels[rows], values)
    strength, turned = np.linalg.eigh(gram)
    answers = turned.T @ sums
    ridges = [1 / (np.maximum(strength, 0) + ridge * features.count) for ridge in RIDGES]
    right = np.zeros(len(ridges))
    for rows, values in features.chunks():
        for i, ridge in enumerate(ridges):
            found = _answers(values @ turned, ridge, answers, labels[rows])
            right[i] += (found.argmax(axis=1) == labels[rows]).sum()
    best = int(right.argmax())
    margin, other = np.zeros(features.count), np.zeros(features.count, dtype=np.int64)
    for rows, values in features.chunks():
        found = _answers(values @ turned, ridges[best], answers, labels[rows])
        at = np.arange(len(found))
        own = found[at, labels[rows]].copy()
        found[at, labels[rows]] = -np.inf
        other[rows] = found.argmax(axis=1)
        margin[rows] = found[at, other[rows]] - own
    return LeftOut(margin, other, float(right[best] / features.count))


def _answers(values: Doubles, ridge: Doubles, answers: Doubles, labels: Rows) -> Doubles:
    """The classifier's answers to rows that it was not fitted to, (rows, classes)."""
    fitted = values @ (ridge[:, None] * answers)
    leverage = np.minimum((values**2) @ ridge, 1 - 1e-9)[:, None]
    wanted = np.zeros_like(fitted)
    wanted[np.arange(len(labels)), labels] = 1
    return np.asarray((fitted - leverage * wanted) / (1 - leverage))


class _Features:
    """The parts side by side, centred, each of the same total variance, with a constant."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self._parts = parts
        self.count = len(parts[0])
        self.size = sum(part.shape[1] for part in parts) + 1
        self._means = [part.mean(axis=0, dtype=np.float64) for part in parts]
        self._scales = [max(float(np.sqrt(part.var(axis=0, dtype=np.float64).sum())), 1e-9) for part in parts]

    def chunks(self) -> Iterator[tuple[slice, Doubles]]:
        for start in range(0, self.count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, self.count))
            values = [
                (part[rows] - mean) / scale
                for part, mean, scale in zip(self._parts, self._means, self._scales, strict=True)
            ]
            yield rows, np.concatenate([*values, np.ones((len(values[0]), 1))], axis=1)
