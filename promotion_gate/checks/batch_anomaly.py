"""Which upload brought the poison: an anomaly figure for every contributor and batch of the training set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, Status
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect import batches
from promotion_gate.detect.anchor import class_similarities
from promotion_gate.detect.scenes import rows_a_scene, thumbnails
from promotion_gate.evidence.interface import Evidence, embeddings_misfit

Rows = NDArray[np.int64]
SHOWN = 40
LONGEST_NAME = 200
BACKGROUND = 400
MARKED = 150
COLUMNS = ("contributor", "batch")


class BatchAnomalyOptions(Options):
    """Options of ``batch-anomaly``.

    ``false_discovery_rate`` bounds the share of wrongly named batches. Where the training set has neither a
    ``contributor`` nor a ``batch`` column, ``blocks`` blocks of consecutive rows stand for batches, of at
    least ``block_rows`` rows. Rows that ``label-concentration`` lists are asked where they come from when its
    ``flip_p`` is below ``flips_below``. ``suspects`` extreme rows of the named batches are listed at most.
    """

    false_discovery_rate: float = Field(default=0.05, gt=0, lt=1)
    blocks: int = Field(default=40, ge=2, le=10_000)
    block_rows: int = Field(default=50, ge=2)
    flips_below: float = Field(default=1e-3, ge=0, le=1)
    suspects: int = Field(default=60, ge=0, le=5000)


@dataclass(frozen=True, slots=True)
class _Grouping:
    """The training rows in groups; ``kind`` says of what, ``units`` (rows,) indexes ``names``."""

    kind: str
    names: Sequence[str]
    units: Rows


class BatchAnomaly:
    """An excess of extreme rows in one upload; see :mod:`promotion_gate.detect.batches`.

    A batch whose rows all moved, or an odd class that looks like no other, is reported as a shift and does
    not count as anomalous.
    """

    name: ClassVar[str] = "batch-anomaly"
    metrics: ClassVar[Mapping[str, str]] = {
        "anomalous_batches": "batches or contributors with too many extreme rows of few labels",
        "scattered_batches": "the same of many labels, where the batch as a whole did not move",
        "shifted_batches": "batches or contributors that moved as a whole, or in one odd class",
        "lowest_q": "false-discovery figure of the most anomalous batch that no shift explains",
    }
    after: ClassVar[tuple[str, ...]] = ("patch-transplant", "label-concentration")
    options_type: ClassVar[type[Options]] = BatchAnomalyOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = BatchAnomalyOptions.model_validate((options or BatchAnomalyOptions()).model_dump())

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        training, answers = evidence.training, evidence.training_pass
        if training is None or answers is None:
            return Finding.inconclusive(self.name, "there is no training set whose batches could be compared")
        if problem := embeddings_misfit(answers, evidence.holdout_pass):
            return Finding.inconclusive(self.name, f"the batches cannot be compared: {problem}")
        groupings = list(_groupings(training, self._options.blocks, self._options.block_rows))
        if not groupings:
            return Finding.inconclusive(self.name, f"{len(training)} rows are too few for two batches")
        orders, foreign = _suspicion(evidence)
        named = _named(earlier, len(training), self._options.flips_below)
        judged = [
            (grouping, anomaly)
            for grouping in groupings
            for anomaly in batches.batch_anomalies(
                grouping.units,
                np.asarray(training.labels),
                orders,
                foreign,
                named,
                rows_a_scene=lambda rows: _rows_a_scene(evidence, rows),
                # Halved for two groupings of the same rows: the discoveries of both together stay bounded.
                rate=self._options.false_discovery_rate / len(groupings),
            )
        ]
        return self._report(evidence, groupings, judged, named)

    def _report(
        self,
        evidence: Evidence,
        groupings: Sequence[_Grouping],
        judged: Sequence[tuple[_Grouping, batches.BatchAnomaly]],
        named: Mapping[str, Rows],
    ) -> Finding:
        rank = {"concentrated": 0, "scattered": 1, "shift": 2, "ordinary": 3}
        ordered = sorted(judged, key=lambda one: (rank[one[1].kind], one[1].q, one[1].p, one[1].shift_q))
        kinds = [anomaly.kind for _, anomaly in ordered]
        metrics = {
            "anomalous_batches": float(kinds.count("concentrated")),
            "scattered_batches": float(kinds.count("scattered")),
            "shifted_batches": float(kinds.count("shift")),
            "lowest_q": min(
                (min(1.0, a.q * len(groupings)) for _, a in ordered if a.kind != "shift"), default=1.0
            ),
        }
        detail = {
            "batches": [
                _row(grouping, anomaly, evidence.class_names) for grouping, anomaly in ordered[:SHOWN]
            ],
            "compared": {grouping.kind: len(grouping.names) for grouping in groupings},
            "rows_asked_about": {check: len(rows) for check, rows in named.items()},
            "suspects": list(self._suspects(evidence, ordered)),
        }
        return Finding(
            self.name,
            Status.MEASURED,
            _summary(groupings, ordered, evidence.class_names, metrics),
            metrics,
            detail,
        )

    def _suspects(
        self, evidence: Evidence, ordered: Sequence[tuple[_Grouping, batches.BatchAnomaly]]
    ) -> Iterator[dict[str, Any]]:
        assert evidence.training is not None
        training, names, left = evidence.training, evidence.class_names, self._options.suspects
        for grouping, anomaly in ordered:
            if anomaly.kind != "concentrated":
                continue
            why = (
                f"one of {anomaly.extreme} extreme rows of its label from {_called(grouping, anomaly)}, "
                f"{anomaly.expected:.1f} due"
            )
            for row in anomaly.extreme_rows[:left].tolist():
                yield {"row": row, "id": training.ids[row], "label": names[anomaly.label], "why": why}
            left = max(0, left - len(anomaly.extreme_rows))


def _groupings(training: ImageDataset, blocks: int, block_rows: int) -> Iterator[_Grouping]:
    """By every column that tells two groups apart; by blocks of row order where none does."""
    count = 0
    for column in COLUMNS:
        values = training.columns.get(column)
        if values is None:
            continue
        # Not an array of text: it would take the longest value's room for every row, and whoever supplies
        # the data chooses that value.
        told = [str(value) for value in values]
        names = sorted(set(told))
        if len(names) > 1:
            count += 1
            place = {name: unit for unit, name in enumerate(names)}
            units = np.array([place[name] for name in told], dtype=np.int64)
            yield _Grouping(column, [_cut(name) for name in names], units)
    number = min(blocks, len(training) // block_rows)
    if count or number < 2:
        return
    edges = np.linspace(0, len(training), number + 1).round().astype(int)
    units = np.repeat(np.arange(number), np.diff(edges))
    yield _Grouping("rows", [f"{a:,} to {b - 1:,}" for a, b in pairwise(edges.tolist())], units)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _suspicion(evidence: Evidence) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
    """How suspicious each training row is, by each witness, and whether it looks like another class."""
    training, answers, champion = evidence.training, evidence.training_pass, evidence.champion_training_pass
    assert training is not None
    assert answers is not None
    labels, trusted = np.asarray(training.labels), np.asarray(evidence.holdout_pass.embeddings)
    trusted_labels = np.asarray(evidence.holdout.labels)
    own, _ = class_similarities(answers.embeddings, labels, trusted, trusted_labels, others=False)
    foreign = batches.foreign_rows(
        answers.embeddings, labels, trusted, trusted_labels, len(evidence.class_names)
    )
    if champion is None or champion.logits.shape != answers.logits.shape:
        return [-own], foreign
    doubt = 1 - champion.probabilities()[np.arange(len(labels)), labels]
    if not np.isfinite(doubt).all():
        return [-own], foreign
    return [-own, doubt], foreign | (champion.predictions != labels)


def _named(earlier: Mapping[str, Finding], rows: int, flips_below: float) -> dict[str, Rows]:
    """The rows that earlier checks hold for poison on grounds of their own."""
    named: dict[str, Rows] = {}
    transplant = earlier.get("patch-transplant")
    if transplant is not None:
        carriers = [row for trigger in transplant.detail.get("triggers", ()) for row in trigger["carriers"]]
        named["patch-transplant"] = np.unique(np.asarray(carriers, dtype=np.int64))
    flips = earlier.get("label-concentration")
    if flips is not None and flips.metrics.get("flip_p", 1.0) < flips_below:
        label = flips.detail["pairs"][0]["label"]
        listed = [s["row"] for s in flips.detail.get("suspects", ()) if s["label"] == label]
        named["label-concentration"] = np.unique(np.asarray(listed, dtype=np.int64))
    return {check: found[found < rows] for check, found in named.items() if len(found)}


def _rows_a_scene(evidence: Evidence, rows: Rows) -> float:
    """How many of some rows of one label make one piece of evidence."""
    training = evidence.training
    assert training is not None
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), MARKED)).round().astype(int)]
    labels = np.asarray(training.labels)
    others = np.setdiff1d(np.flatnonzero(labels == labels[rows[0]]), rows)
    around = np.sort(np.random.default_rng(evidence.seed).permutation(others)[:BACKGROUND])
    marked, background = (thumbnails(training.read(part, evidence.model.shape)) for part in (some, around))
    return rows_a_scene(marked, background)


def _called(grouping: _Grouping, anomaly: batches.BatchAnomaly) -> str:
    return f"{grouping.kind} {grouping.names[anomaly.unit]!r:.60}"


def _row(grouping: _Grouping, anomaly: batches.BatchAnomaly, names: Sequence[str]) -> dict[str, Any]:
    return {
        "grouping": grouping.kind,
        "name": grouping.names[anomaly.unit],
        "rows": anomaly.rows,
        "kind": anomaly.kind,
        "evidence": anomaly.evidence,
        "label": names[anomaly.label],
        "extreme": anomaly.extreme,
        "of": anomaly.of,
        "expected": anomaly.expected,
        "foreign": anomaly.foreign,
        "standing": anomaly.standing,
        "shift_q": anomaly.shift_q,
        "named": dict(anomaly.named),
        "p": anomaly.p,
        "q": anomaly.q,
    }


def _summary(
    groupings: Sequence[_Grouping],
    ordered: Sequence[tuple[_Grouping, batches.BatchAnomaly]],
    names: Sequence[str],
    metrics: Mapping[str, float],
) -> str:
    compared = " and ".join(f"{len(grouping.names):,} {_PLURALS[grouping.kind]}" for grouping in groupings)
    grouping, lead = ordered[0]
    if lead.kind == "concentrated":
        return (
            f"{_called(grouping, lead)} brought {lead.extreme} extreme rows labelled"
            f" {names[lead.label]!r:.60} where {lead.expected:.1f} are due (q {lead.q:.2g});"
            f" {metrics['anomalous_batches']:.0f} of {compared} stand out"
        )
    text = f"none of {compared} stands out with extreme rows of few labels"
    if shifted := int(metrics["shifted_batches"]):
        text += f"; {shifted} moved as a whole or in one odd class"
    return text


_PLURALS = {"contributor": "contributors", "batch": "batches", "rows": "blocks of rows"}
