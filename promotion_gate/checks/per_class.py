"""Per-class metrics on the trusted holdout, and against the champion on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, Status
from promotion_gate.detect.statistics import (
    ClassCounts,
    confusion_pairs,
    count_classes,
    expected_calibration_error,
    holm_adjust,
    mcnemar_exact,
    wilson_interval,
)
from promotion_gate.evidence.interface import Evidence, ForwardPass

_VERSUS = ("accuracy_drop", "regressed_classes")


class PerClassOptions(Options):
    """Options of ``per-class``.

    A class counts as regressed when its recall fell by more than ``min_drop`` and the one-sided exact
    McNemar test on the paired answers, Holm-adjusted over the classes, stays below ``alpha``.
    """

    alpha: float = Field(default=0.05, gt=0, lt=1)
    min_drop: float = Field(default=0.02, ge=0, lt=1)
    bins: int = Field(default=15, ge=2, le=100)
    confusions: int = Field(default=20, ge=0, le=1000)


class PerClass:
    """Precision, recall, F1 and calibration; paired regressions against the champion."""

    name: ClassVar[str] = "per-class"
    metrics: ClassVar[Mapping[str, str]] = {
        "accuracy": "share of holdout images classified right",
        "accuracy_low": "lower end of the accuracy's 95 % Wilson interval",
        "macro_f1": "mean F1 over classes",
        "worst_recall": "recall of the weakest class",
        "calibration_error": "expected calibration error, 0 to 1",
        "accuracy_drop": "accuracy of the champion minus that of the candidate, same images",
        "regressed_classes": "classes with significantly lower recall than the champion, same images",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = PerClassOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = PerClassOptions.model_validate((options or PerClassOptions()).model_dump())

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        names, labels = evidence.class_names, np.asarray(evidence.holdout.labels)
        answers = evidence.holdout_pass
        if problem := _misfit(answers, len(labels), len(names)):
            return Finding.inconclusive(self.name, f"the candidate's answers cannot be counted: {problem}")
        candidate = _Answers.of(answers, labels, len(names))
        champion_pass = evidence.champion_holdout_pass
        if champion_pass is None:
            return self._report(names, labels, candidate, None)
        if problem := _misfit(champion_pass, len(labels), len(names)):
            alone = self._report(names, labels, candidate, None)
            return Finding(
                self.name,
                Status.INCONCLUSIVE,
                f"no comparison with the champion: its answers cannot be counted: {problem}",
                alone.metrics,
                alone.detail,
            )
        return self._report(names, labels, candidate, _Answers.of(champion_pass, labels, len(names)))

    def _report(
        self,
        names: tuple[str, ...],
        labels: NDArray[np.int64],
        candidate: _Answers,
        champion: _Answers | None,
    ) -> Finding:
        options, counts = self._options, candidate.counts
        calibration, reliability = expected_calibration_error(
            candidate.confidence, candidate.correct, options.bins
        )
        low, high = wilson_interval(candidate.correct.sum(), len(labels))
        measured = {
            "accuracy": candidate.accuracy,
            "accuracy_low": float(low),
            "macro_f1": float(np.nanmean(counts.f1)),
            "calibration_error": calibration,
        }
        unseen = [names[i] for i in np.flatnonzero(counts.support == 0).tolist()]
        if not unseen:
            measured["worst_recall"] = float(counts.recall.min())

        rows = _class_rows(names, counts)
        regressed: list[str] = []
        if champion is not None:
            measured["accuracy_drop"] = champion.accuracy - candidate.accuracy
            regressed = self._compare(rows, labels, candidate, champion)
            measured["regressed_classes"] = float(len(regressed))

        detail: dict[str, Any] = {
            "images": len(labels),
            "accuracy_interval": [float(low), float(high)],
            "classes": rows,
            "confusions": _confusions(names, labels, candidate, champion, options.confusions),
            "calibration_error": calibration,
            "reliability": [
                {"confidence": b.confidence, "accuracy": b.accuracy, "count": b.count} for b in reliability
            ],
            "classes_without_images": unseen,
            "rule": f"recall down by more than {options.min_drop:g}, one-sided exact McNemar, Holm-adjusted "
            f"over {len(names)} classes, below {options.alpha:g}",
        }
        absent = {} if champion else dict.fromkeys(_VERSUS, "there is no champion to compare with")
        summary = _summary(
            rows, candidate.accuracy, (float(low), float(high)), len(labels), regressed, champion
        )
        return Finding(self.name, Status.MEASURED, summary, measured, detail, not_applicable=absent)

    def _compare(
        self,
        rows: list[dict[str, Any]],
        labels: NDArray[np.int64],
        candidate: _Answers,
        champion: _Answers,
    ) -> list[str]:
        lost = np.bincount(labels[champion.correct & ~candidate.correct], minlength=len(rows))
        gained = np.bincount(labels[candidate.correct & ~champion.correct], minlength=len(rows))
        plain = mcnemar_exact(lost, gained)
        adjusted = holm_adjust(plain)
        delta = candidate.counts.recall - champion.counts.recall
        regressed = (adjusted < self._options.alpha) & (-delta > self._options.min_drop)
        for i, row in enumerate(rows):
            row |= {
                "champion_recall": _number(champion.counts.recall[i]),
                "delta": _number(delta[i]),
                "lost": int(lost[i]),
                "gained": int(gained[i]),
                "p_value": float(adjusted[i]),
                "p_unadjusted": float(plain[i]),
                "regressed": bool(regressed[i]),
            }
        return [row["name"] for row in rows if row["regressed"]]


@dataclass(frozen=True, slots=True)
class _Answers:
    """One model's answers, reduced to what is counted; arrays by image but for ``counts``."""

    predictions: NDArray[np.int64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    counts: ClassCounts

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @classmethod
    def of(cls, answers: ForwardPass, labels: NDArray[np.int64], classes: int) -> _Answers:
        predictions = answers.predictions
        return cls(
            predictions,
            answers.probabilities().max(axis=1),
            predictions == labels,
            count_classes(labels, predictions, classes),
        )


def _misfit(answers: ForwardPass, rows: int, classes: int) -> str:
    if rows == 0:
        return "the holdout is empty"
    if answers.logits.shape != (rows, classes):
        return f"outputs of shape {answers.logits.shape} for {rows} images of {classes} classes"
    if not np.isfinite(answers.logits).all():
        return "some outputs are not finite numbers"
    return ""


def _class_rows(names: tuple[str, ...], counts: ClassCounts) -> list[dict[str, Any]]:
    low, high = wilson_interval(counts.hits, counts.support)
    recall, precision, f1 = counts.recall, counts.precision, counts.f1
    return [
        {
            "name": name,
            "support": int(counts.support[i]),
            "precision": _number(precision[i]),
            "recall": _number(recall[i]),
            "f1": _number(f1[i]),
            "recall_low": float(low[i]),
            "recall_high": float(high[i]),
            "champion_recall": None,
            "delta": None,
            "p_value": None,
            "p_unadjusted": None,
            "regressed": False,
        }
        for i, name in enumerate(names)
    ]


def _confusions(
    names: tuple[str, ...],
    labels: NDArray[np.int64],
    candidate: _Answers,
    champion: _Answers | None,
    limit: int,
) -> list[dict[str, Any]]:
    before = {}
    if champion is not None:
        before = {(true, guess): n for true, guess, n in confusion_pairs(labels, champion.predictions)}
    return [
        {
            "true": names[true],
            "predicted": names[guess],
            "count": count,
            "champion_count": before.get((true, guess), 0) if champion is not None else None,
        }
        for true, guess, count in confusion_pairs(labels, candidate.predictions)[:limit]
    ]


def _summary(
    rows: list[dict[str, Any]],
    accuracy: float,
    interval: tuple[float, float],
    images: int,
    regressed: list[str],
    champion: _Answers | None,
) -> str:
    seen = [row for row in rows if row["recall"] is not None]
    weakest = min(seen, key=lambda row: row["recall"])
    text = (
        f"{accuracy:.1%} of {images:,} holdout images right "
        f"(95 % interval {interval[0]:.1%} to {interval[1]:.1%}), "
        f"weakest class {weakest['name']!r:.60} at {weakest['recall']:.1%} of {weakest['support']}"
    )
    if len(seen) < len(rows):
        text += f"; {len(rows) - len(seen)} classes have no image"
    if champion is None:
        return text + "; no champion to compare with"
    if not regressed:
        return text + f"; champion {champion.accuracy:.1%}, no class significantly worse"
    some = ", ".join(f"{name!r:.60}" for name in regressed[:3]) + (", …" if len(regressed) > 3 else "")
    return text + f"; champion {champion.accuracy:.1%}, {len(regressed)} significantly worse: {some}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
