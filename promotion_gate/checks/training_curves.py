"""Per-class loss curves of the training run, and the classes whose curve departs from the rest.

The curves are the run's MLflow metrics ``class_loss/0000``, ``class_loss/0001``, …, one a class, as
:class:`promotion_gate.drill.recorder.PerClassLoss` logs them. MLflow metric names cannot hold every class
name, so the names stand as a JSON list in the run tag ``promotion_gate.class_names``; without the tag the
numbers are taken in the order of the data's classes. Whoever trains can log anything: a quiet curve
proves nothing, a departing one is worth a look.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, MetricPoint, RunFacts, Status
from promotion_gate.evidence.interface import Evidence

CURVE_PREFIX = "class_loss/"
CLASS_NAMES_TAG = "promotion_gate.class_names"
MAX_POINTS = 200
"""Points of a curve that the finding carries; longer curves are thinned for show, not for measuring."""

_SMALLEST_LOSS = 1e-6
_SMALLEST_SPREAD = 0.2
_NORMAL_MAD = 1.4826


class TrainingCurvesOptions(Options):
    """Options of ``training-curves``.

    ``threshold`` is the modified z value beyond which a point of a curve is out. A class departs when
    its curve is out in each of the last ``tail`` of the epochs (and at least the last two), or in at
    least ``persistence`` of all epochs.
    """

    threshold: float = Field(default=5.0, gt=0)
    tail: float = Field(default=0.2, gt=0, le=1)
    persistence: float = Field(default=0.5, gt=0, le=1)
    min_epochs: int = Field(default=3, ge=2)
    min_classes: int = Field(default=4, ge=3)


class TrainingCurves:
    """Classes that were learned unlike the rest.

    At each epoch the logarithm of every class's loss is compared with the median over the classes, in
    units of their median absolute deviation (the modified z value of B. Iglewicz and D. Hoaglin, "How to
    detect and handle outliers", 1993); only losses above the rest count. A loss that is not a finite
    number is out.

    It sees a class that is not learned, is learned late or diverges. It does not see mild poison, which a
    network simply memorises: with a third of the stop signs of GTSRB labelled otherwise, the curve of that
    class peaked at 2.3, no further out than the hardest class of clean data (2.2).
    """

    name: ClassVar[str] = "training-curves"
    metrics: ClassVar[Mapping[str, str]] = {
        "departing_classes": "classes whose training loss stayed above that of the rest",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = TrainingCurvesOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = TrainingCurvesOptions.model_validate(
            (options or TrainingCurvesOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        if evidence.run is None:
            return Finding.inconclusive(self.name, "the model version names no training run")
        logged = _by_index(evidence.run)
        if not logged:
            return Finding.inconclusive(
                self.name, "the training run logged no per-class losses (metrics class_loss/0000 and on)"
            )
        try:
            order = _class_order(evidence.run, logged, evidence.class_names)
        except ValueError as error:
            return Finding.inconclusive(self.name, f"the logged losses cannot be told apart: {error}")
        curves = _Curves.of({order[i]: points for i, points in logged.items()})
        return self._report(curves, evidence.class_names)

    def _report(self, curves: _Curves, class_names: Sequence[str]) -> Finding:
        options = self._options
        classes, epochs = curves.losses.shape
        if classes < options.min_classes or epochs < options.min_epochs:
            return Finding.inconclusive(
                self.name,
                f"{classes} classes over {epochs} epochs were logged, too few to tell one curve from "
                f"the rest (at least {options.min_classes} and {options.min_epochs})",
                curves=curves.shown({}),
            )
        departs = {
            curves.names[i]: why
            for i, row in enumerate(self._out(curves.losses))
            if (why := self._departure(row[curves.logged[i]]))
        }
        present = {
            name for name, share in zip(curves.names, curves.logged.mean(axis=1), strict=True) if share > 0.5
        }
        missing = [name for name in class_names if name not in present]
        detail = {
            "curves": curves.shown(departs),
            "median": curves.shown_median(),
            "missing": missing,
            "rule": f"log loss above the median of the classes by more than {options.threshold:g} "
            f"modified deviations, in each of the last {options.tail:.0%} of epochs or in "
            f"{options.persistence:.0%} of all",
        }
        some = ", ".join(f"{name!r:.60}" for name in list(departs)[:3]) + (", …" if len(departs) > 3 else "")
        summary = (
            f"{len(departs)} of {classes} classes were learned unlike the rest: {some}"
            if departs
            else f"all {classes} classes were learned alike over {epochs} epochs"
        )
        status = Status.MEASURED
        if missing:
            status = Status.INCONCLUSIVE
            summary += f"; {len(missing)} classes have no curve, {missing[0]!r:.60} first"
        return Finding(self.name, status, summary, {"departing_classes": float(len(departs))}, detail)

    def _out(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each point (classes, epochs) lies above the rest; NaN is out."""
        finite = np.where(np.isfinite(losses), losses, np.nan)
        logs = np.log(np.maximum(finite, _SMALLEST_LOSS))
        middle = _median(logs)
        spread = np.maximum(_NORMAL_MAD * _median(np.abs(logs - middle)), _SMALLEST_SPREAD)
        return np.isnan(logs) | ((logs - middle) / spread > self._options.threshold)

    def _departure(self, out: NDArray[np.bool_]) -> str:
        """Why a curve departs, given which of its own points are out; empty when it does not."""
        last = max(2, math.ceil(self._options.tail * len(out)))
        if len(out) >= last and out[-last:].all():
            return f"out in each of the last {last} epochs"
        if len(out) and out.mean() >= self._options.persistence:
            return f"out in {int(out.sum())} of {len(out)} epochs"
        return ""


@dataclass(frozen=True, slots=True)
class _Curves:
    """Losses (classes, epochs) with the steps of the epochs; ``logged`` tells gaps from logged NaN."""

    names: list[str]
    steps: list[int]
    losses: NDArray[np.float64]
    logged: NDArray[np.bool_]

    @classmethod
    def of(cls, points: Mapping[str, Sequence[MetricPoint]]) -> _Curves:
        steps = sorted({point.step for curve in points.values() for point in curve})
        column = {step: i for i, step in enumerate(steps)}
        losses = np.full((len(points), len(steps)), np.nan)
        logged = np.zeros(losses.shape, dtype=np.bool_)
        for row, curve in enumerate(points.values()):
            for point in curve:
                losses[row, column[point.step]] = point.value
                logged[row, column[point.step]] = True
        return cls(list(points), steps, losses, logged)

    def shown(self, departs: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"class": name, **self._points(self.losses[i], self.logged[i])}
            | {"departs": name in departs, "why": departs.get(name, "")}
            for i, name in enumerate(self.names)
        ]

    def shown_median(self) -> dict[str, Any]:
        finite = np.where(np.isfinite(self.losses), self.losses, np.nan)
        return self._points(_median(finite), np.asarray(self.logged.any(axis=0)))

    def _points(self, losses: NDArray[np.float64], logged: NDArray[np.bool_]) -> dict[str, Any]:
        kept = np.flatnonzero(logged)
        if len(kept) > MAX_POINTS:
            kept = kept[np.linspace(0, len(kept) - 1, MAX_POINTS).astype(int)]
        return {
            "steps": [self.steps[i] for i in kept],
            "losses": [float(f"{losses[i]:.5g}") if math.isfinite(losses[i]) else None for i in kept],
        }


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over classes of what is there, per epoch; NaN, without a warning, where nothing is."""
    middle = np.full(values.shape[1], np.nan)
    there = ~np.isnan(values).all(axis=0)
    middle[there] = np.nanmedian(values[:, there], axis=0)
    return middle


def _by_index(run: RunFacts) -> dict[int, Sequence[MetricPoint]]:
    logged = {}
    for metric, points in run.curves.items():
        match = re.fullmatch(re.escape(CURVE_PREFIX) + r"([0-9]{1,9})", metric)
        if match and points:
            logged[int(match[1])] = points
    return dict(sorted(logged.items()))


def _class_order(run: RunFacts, logged: Mapping[int, object], class_names: Sequence[str]) -> Sequence[str]:
    """Class name of every logged number.

    Raises
    ------
    ValueError: the tag is malformed, or a number or name is not a class of the data.
    """
    order: Sequence[str] = class_names
    if CLASS_NAMES_TAG in run.tags:
        try:
            order = json.loads(run.tags[CLASS_NAMES_TAG])
        except (ValueError, RecursionError):
            raise ValueError(f"the run tag {CLASS_NAMES_TAG} is not JSON") from None
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            raise ValueError(f"the run tag {CLASS_NAMES_TAG} is not a list of names")
        if len(set(order)) != len(order):
            raise ValueError(f"the run tag {CLASS_NAMES_TAG} names a class twice")
        known = set(class_names)
        for name in order:
            if name not in known:
                raise ValueError(f"the run's class {name!r:.60} is not a class of the holdout")
    if max(logged) >= len(order):
        raise ValueError(f"{CURVE_PREFIX}{max(logged):04d} is beyond the {len(order)} classes")
    return order
