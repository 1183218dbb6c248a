"""Labels that do not fit: one label crowding the suspicious rows, and rows that look like another class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.detect.anchor import leave_one_out_anchor
from promotion_gate.detect.concentration import (
    MOST,
    NOBODY,
    ORDINARY,
    SOME,
    Concentration,
    PairErrors,
    believed_otherwise,
    head_of,
    label_concentration,
    neighbours_otherwise,
    pair_errors,
    self_confidence,
    share_beyond,
)
from promotion_gate.detect.scenes import rows_a_scene, thumbnails
from promotion_gate.evidence.interface import Evidence, ForwardPass

Rows = NDArray[np.int64]
Shares = NDArray[np.float32]
NEIGHBOURS = "its nearest trusted images"
LOOK = ImageShape(32, 32, 3)
"""How rows are seen when scenes are told apart, whatever the model takes."""
BACKGROUND = 400
MARKED = 150
FEW = 4


class LabelConcentrationOptions(Options):
    """Options of ``label-concentration``.

    The head of the anchor ranking is ``head`` rows or the share ``head_share`` of all, whichever is fewer.
    The holdout's hardest ``hard_share`` tells how hard each class is by nature. Rows of the head that carry
    a crowding label are listed as suspects where its p is below ``list_below``.
    """

    head: int = Field(default=100, ge=10, le=10_000)
    head_share: float = Field(default=0.015, gt=0, le=0.5)
    hard_share: float = Field(default=0.03, gt=0, le=0.5)
    permutations: int = Field(default=1000, ge=100, le=100_000)
    neighbours: int = Field(default=5, ge=2, le=100)
    list_below: float = Field(default=0.01, ge=0, le=1)
    suspects: int = Field(default=500, ge=1, le=5000)


class LabelConcentration:
    """Blended and sinusoidal poison and plain label flips, which have no patch to transplant.

    A row counts as a label error where the candidate or the champion confidently believes in another class,
    or where all nearest trusted images are of one other class. It is a suspicion, not a proof.
    """

    name: ClassVar[str] = "label-concentration"
    metrics: ClassVar[Mapping[str, str]] = {
        "concentration": "rows of the most frequent label among the most suspicious training rows",
        "concentration_p": "chance that any label crowds them so on clean data, given how hard each class is",
        "label_errors": "training rows that look like another class than their label",
        "label_error_share": "the same as a share of all training rows",
        "worst_class_errors": "label errors of the leading pair of classes beyond what the holdout predicts",
        "flip_p": "chance of so many errors in any one pair of classes on clean data",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = LabelConcentrationOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = LabelConcentrationOptions.model_validate(
            (options or LabelConcentrationOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        training, answers, anchor = evidence.training, evidence.training_pass, evidence.anchor
        if training is None or answers is None or anchor is None:
            return Finding.inconclusive(self.name, "there is no training set to look for wrong labels in")
        if problem := _misfit(evidence, answers):
            return Finding.inconclusive(self.name, f"the labels cannot be examined: {problem}")
        labels = np.asarray(training.labels)
        trusted_labels = np.asarray(evidence.holdout.labels)
        spread = leave_one_out_anchor(np.asarray(evidence.holdout_pass.embeddings), trusted_labels)
        beyond = share_beyond(anchor, labels, spread, trusted_labels, len(evidence.class_names))
        narrow, unlike = np.flatnonzero(beyond > MOST), np.flatnonzero(beyond > SOME)
        head, crowd = self._crowding(evidence, answers, labels, anchor, spread, narrow)
        errors = self._errors(evidence, answers, labels, beyond)
        return self._report(evidence, head, crowd, errors, narrow, unlike)

    def _crowding(
        self,
        evidence: Evidence,
        answers: ForwardPass,
        labels: Rows,
        anchor: NDArray[np.float32],
        spread: NDArray[np.float32],
        narrow: Rows,
    ) -> tuple[Rows, Concentration]:
        classes, options = len(evidence.class_names), self._options
        trusted_labels = np.asarray(evidence.holdout.labels)
        # A class without trusted images has no anchor to be far from, and all rows of one whose trusted
        # images are unlike it are far: either would head the ranking.
        judged = np.setdiff1d(trusted_labels, narrow)
        eligible = (answers.predictions == labels) & np.isin(labels, judged)
        head = head_of(anchor, eligible, options.head, options.head_share)
        head = _thinned(evidence, head, labels)
        right = (evidence.holdout_pass.predictions == trusted_labels) & np.isin(trusted_labels, judged)
        hardest = head_of(spread, right, len(spread), options.hard_share)
        crowd = label_concentration(
            labels[head],
            np.bincount(labels[eligible], minlength=classes),
            np.bincount(trusted_labels[hardest], minlength=classes),
            np.bincount(trusted_labels[right], minlength=classes),
            permutations=options.permutations,
            seed=evidence.seed,
        )
        return head, crowd

    def _errors(
        self, evidence: Evidence, answers: ForwardPass, labels: Rows, beyond: NDArray[np.float32]
    ) -> _Errors:
        trusted, trusted_labels = evidence.holdout_pass, np.asarray(evidence.holdout.labels)
        witnesses = {"the candidate": _disbelief(answers, labels, trusted, trusted_labels)}
        champion, on_trusted = evidence.champion_training_pass, evidence.champion_holdout_pass
        if champion is not None and on_trusted is not None and _comparable(champion, answers):
            witnesses["the champion"] = _disbelief(champion, labels, on_trusted, trusted_labels)
        embeddings = np.asarray(trusted.embeddings)
        nearest = []
        for rows, of in ((answers.embeddings, labels), (embeddings, trusted_labels)):
            seen = neighbours_otherwise(
                rows,
                of,
                embeddings,
                trusted_labels,
                neighbours=self._options.neighbours,
                leave_one_out=rows is embeddings,
            )
            nearest.append(np.where(beyond[of] > MOST, NOBODY, seen))
        witnesses[NEIGHBOURS] = nearest[0], nearest[1]
        told = {name: on_training for name, (on_training, _) in witnesses.items()}
        told[NEIGHBOURS] = np.where(beyond[labels] > SOME, NOBODY, nearest[0])
        believed = _first_to_object(list(told.values()))
        ordinary = _first_to_object([on_holdout for _, on_holdout in witnesses.values()])
        return _Errors(
            believed,
            told,
            int((ordinary != NOBODY).sum()),
            _leading(
                pair
                for name, (on_training, on_holdout) in witnesses.items()
                for pair in pair_errors(
                    labels,
                    on_training,
                    trusted_labels,
                    on_holdout,
                    len(evidence.class_names),
                    partial(_bunch, evidence, labels, on_training, beyond if name == NEIGHBOURS else None),
                )
                if name != NEIGHBOURS or beyond[pair.label] <= SOME
            ),
        )

    def _report(
        self,
        evidence: Evidence,
        head: Rows,
        crowd: Concentration,
        errors: _Errors,
        narrow: Rows,
        unlike: Rows,
    ) -> Finding:
        names, options = evidence.class_names, self._options
        suspects = list(_suspects(evidence, head, crowd, errors, options.list_below))
        rows, worst = len(errors.believed), errors.pairs[0] if errors.pairs else None
        metrics = {
            "concentration": float(crowd.largest),
            "concentration_p": crowd.p,
            "label_errors": float(errors.count),
            "label_error_share": errors.count / rows,
            "worst_class_errors": max(0.0, worst.count - worst.expected) if worst else 0.0,
            "flip_p": min(1.0, worst.p * len(errors.witnesses)) if worst else 1.0,
        }
        detail: dict[str, Any] = {
            "rows": rows,
            "suspects": suspects[: options.suspects],
            "suspects_in_all": len(suspects),
            "champion_asked": "the champion" in errors.witnesses,
            "objections": {
                name: int((believed != NOBODY).sum()) for name, believed in errors.witnesses.items()
            },
            "holdout_objections": errors.on_holdout,
            "head": crowd.size,
            "concentration_plain_p": crowd.plain_p,
            "labels": [
                {
                    "name": names[i],
                    "count": int(crowd.counts[i]),
                    "expected": float(crowd.expected_counts[i]),
                }
                for i in np.argsort(-crowd.counts, kind="stable")[:20].tolist()
                if crowd.counts[i]
            ],
            "pairs": [_pair(pair, names) for pair in errors.pairs[:20]],
            "narrow_classes": [names[i] for i in narrow.tolist()],
            "unlike_classes": [names[i] for i in unlike.tolist()],
            "untrusted_classes": [
                names[i] for i in np.setdiff1d(np.arange(len(names)), evidence.holdout.labels).tolist()
            ],
        }
        if crowd.label >= 0:
            detail["crowding"] = {
                "label": names[crowd.label],
                "count": crowd.count,
                "expected": crowd.expected,
                "bunch": crowd.bunch,
                "p": crowd.p,
            }
        summary = _summary(names, crowd, errors, rows)
        return Finding(self.name, Status.MEASURED, summary, metrics, detail)


@dataclass(frozen=True, slots=True)
class _Errors:
    """What each witness believes of each training row, -1 for no objection, and the pairs that makes."""

    believed: Rows
    witnesses: Mapping[str, Rows]
    on_holdout: int
    pairs: list[PairErrors]

    @property
    def count(self) -> int:
        return int((self.believed != NOBODY).sum())


def _rows_a_scene(evidence: Evidence, rows: Rows, classes: Rows) -> float:
    """How many of the rows make one piece of evidence, judged against other rows of these classes."""
    training = evidence.training
    assert training is not None
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), MARKED)).round().astype(int)]
    others = np.setdiff1d(np.flatnonzero(np.isin(np.asarray(training.labels), classes)), rows)
    background = np.sort(np.random.default_rng(evidence.seed).permutation(others)[:BACKGROUND])
    marked, around = (thumbnails(training.read(chosen, LOOK)) for chosen in (some, background))
    return rows_a_scene(marked, around)


def _bunch(evidence: Evidence, labels: Rows, believed: Rows, beyond: Shares | None, rows: Rows) -> float:
    """The same for label errors: their scenes lie in the class that they look like, too.

    ``beyond`` is for errors that were found by distance: where more rows than usual are far out, so are whole
    tracks of them, which no two frames need look alike.
    """
    size = _rows_a_scene(evidence, rows, np.union1d(labels[rows], believed[rows]))
    far = 0.0 if beyond is None else float(beyond[labels[rows]].max())
    return size * max(1.0, far / ORDINARY)


def _thinned(evidence: Evidence, head: Rows, labels: Rows) -> Rows:
    """As many of each label's rows, the foremost, as there are scenes among them."""
    kept = []
    for label in np.unique(labels[head]).tolist():
        own = head[labels[head] == label]
        if len(own) >= FEW:
            own = own[: max(1, round(len(own) / _rows_a_scene(evidence, own, np.array([label]))))]
        kept.append(own)
    return head[np.isin(head, np.concatenate(kept))] if kept else head


def _misfit(evidence: Evidence, answers: ForwardPass) -> str:
    classes = len(evidence.class_names)
    if not len(answers.logits):
        return "the training set is empty"
    if not len(evidence.holdout.labels):
        return "the holdout is empty"
    for what, given in (("training", answers), ("holdout", evidence.holdout_pass)):
        if given.logits.shape[1] != classes:
            return f"{given.logits.shape[1]} outputs on the {what} images for {classes} classes"
        if not (np.isfinite(given.logits).all() and np.isfinite(given.embeddings).all()):
            return f"some outputs on the {what} images are not finite numbers"
    return ""


def _comparable(champion: ForwardPass, candidate: ForwardPass) -> bool:
    return champion.logits.shape == candidate.logits.shape and bool(np.isfinite(champion.logits).all())


def _disbelief(
    answers: ForwardPass, labels: Rows, trusted: ForwardPass, trusted_labels: Rows
) -> tuple[Rows, ...]:
    on_trusted = trusted.probabilities()
    thresholds = self_confidence(on_trusted, trusted_labels)
    return (
        believed_otherwise(answers.probabilities(), labels, thresholds),
        believed_otherwise(on_trusted, trusted_labels, thresholds),
    )


def _first_to_object(witnesses: list[Rows]) -> Rows:
    believed = witnesses[0].copy()
    for other in witnesses[1:]:
        believed = np.where(believed == NOBODY, other, believed)
    return believed


def _leading(pairs: Iterable[PairErrors]) -> list[PairErrors]:
    """Each pair as the witness tells it who finds it most surprising; that comes first."""
    leading: dict[tuple[int, int], PairErrors] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.p, -pair.count, pair.label, pair.believed)):
        leading.setdefault((pair.label, pair.believed), pair)
    return list(leading.values())


def _suspects(
    evidence: Evidence, head: Rows, crowd: Concentration, errors: _Errors, list_below: float
) -> Iterator[dict[str, Any]]:
    """Label errors, those of the most surprising pairs first, then the crowding label's rows of the head."""
    assert evidence.training is not None
    labels, ids, names = evidence.training.labels, evidence.training.ids, evidence.class_names
    order: dict[tuple[int, int], int] = {}
    for at, pair in enumerate(errors.pairs):
        order.setdefault((pair.label, pair.believed), at)
    doubted = np.flatnonzero(errors.believed != NOBODY).tolist()
    for row in sorted(doubted, key=lambda r: (_place(order, int(labels[r]), int(errors.believed[r])), r)):
        believed = int(errors.believed[row])
        agreeing = [name for name, of in errors.witnesses.items() if of[row] == believed]
        yield {
            "row": row,
            "id": ids[row],
            "label": names[labels[row]],
            "why": f"looks like {names[believed]!r:.60} to {' and '.join(agreeing)}",
        }
    if crowd.p >= list_below:
        return
    why = (
        f"one of {crowd.count} rows of this label among the {crowd.size} farthest from trusted images of "
        f"their label; {crowd.expected:.0f} expected"
    )
    listed = set(doubted)
    for row in head[labels[head] == crowd.label].tolist():
        if row not in listed:
            yield {"row": row, "id": ids[row], "label": names[labels[row]], "why": why}


def _place(order: Mapping[tuple[int, int], int], label: int, believed: int) -> int:
    """Where the row's pair or its label, whichever surprises more, stands among all."""
    return min(order[label, believed], order[label, NOBODY])


def _pair(pair: PairErrors, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "label": names[pair.label],
        "looks_like": None if pair.believed == NOBODY else names[pair.believed],
        "count": pair.count,
        "expected": pair.expected,
        "bunch": pair.bunch,
        "holdout_count": pair.holdout_count,
        "p": pair.p,
    }


def _looks_like(pair: PairErrors, names: tuple[str, ...]) -> str:
    return "another class" if pair.believed == NOBODY else f"{names[pair.believed]!r:.60}"


def _summary(names: tuple[str, ...], crowd: Concentration, errors: _Errors, rows: int) -> str:
    text = f"{errors.count} of {rows:,} training rows look like another class than their label"
    if errors.pairs:
        worst = errors.pairs[0]
        text += (
            f", {worst.count} of them labelled {names[worst.label]!r:.60} and looking like "
            f"{_looks_like(worst, names)} where {worst.expected:.1f} are usual (p {worst.p:.2g})"
        )
    if crowd.size == 0:
        return text + "; too few rows for a ranking"
    return text + (
        f"; {names[crowd.label]!r:.60} has {crowd.count} of the {crowd.size} most suspicious rows, "
        f"{crowd.expected:.0f} expected (p {crowd.p:.2g})"
    )
