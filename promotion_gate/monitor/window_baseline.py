"""A baseline from a trusted stretch of production, read twice so that memory stays flat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.core.types import ModelRef
from promotion_gate.detect.shares import scatter_between_windows
from promotion_gate.monitor.baseline import (
    CONFIDENCE_EDGES,
    confidence_histogram,
    distance_from,
    percentiles,
)
from promotion_gate.monitor.interface import UNSEEN, Baseline, Predictions
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import read_log, rows_of
from promotion_gate.monitor.questions import confidence_cuts

MAX_CLASSES = 10_000
MAX_WINDOWS = 2000
_MOST_DISTANCES = 500_000

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The predictions of one version between two moments (seconds since the epoch), in windows of seconds."""

    logs: Sequence[str]
    ref: ModelRef
    window: float
    since: float = -np.inf
    until: float = np.inf

    def own(self, predictions: Predictions) -> Predictions:
        """The rows that belong to it."""
        inside = (predictions.time >= self.since) & (predictions.time < self.until)
        version = predictions.version
        own = inside & ((version == self.ref.version) | (version == 0))
        return predictions if own.all() else rows_of(predictions, np.flatnonzero(own))


@dataclass(slots=True)
class _Counted:
    """What the first reading shows."""

    histogram: Int64
    windows: dict[int, Int64] = field(default_factory=dict)
    told: int = 0
    total: Any = 0.0
    embedded: int = 0


def window_baseline(
    stretch: Stretch, digest: str, class_names: Sequence[str], width: int, at: datetime
) -> Baseline:
    """The baseline in a stretch of a log that a person trusts.

    ``class_names`` are the classes in order; empty takes those that the log names, sorted. ``width`` is that
    of the embeddings, 0 for none. Several windows show how far shares scatter between them.

    Raises
    ------
    InputError: the log cannot be read, has no prediction of the version then, or one of a class that
        ``class_names`` does not hold.
    """
    names = tuple(class_names) or _named_classes(stretch)
    wanted = Wanted(names, width=width)
    counted = _count(stretch, wanted)
    windows = [counted.windows[key] for key in sorted(counted.windows)]
    confidence_rho, distance, embedding_rho = _second_look(stretch, wanted, counted)
    mean = counted.total / max(counted.embedded, 1)
    return Baseline(
        ref=stretch.ref,
        digest=digest,
        class_names=names,
        source="window",
        at=at,
        counts=tuple(tuple(row.tolist()) for row in windows),
        confidence_edges=CONFIDENCE_EDGES,
        confidence=tuple(map(tuple, counted.histogram.tolist())),
        confidence_rho=confidence_rho,
        embedding_mean=tuple(mean.tolist()) if counted.embedded else (),
        embedding_distance=distance,
        embedding_rho=embedding_rho,
    )


def _named_classes(stretch: Stretch) -> tuple[str, ...]:
    found: Counter[str] = Counter()
    for piece in read_log(stretch.logs, Wanted(())):
        own = piece.predictions.version
        kept = (own == stretch.ref.version) | (own == 0)
        inside = (piece.predictions.time >= stretch.since) & (piece.predictions.time < stretch.until)
        found.update(name for name, keep in zip(piece.unseen, (kept & inside).tolist(), strict=True) if keep)
        if len(found) > MAX_CLASSES:
            raise InputError(f"the log names more than {MAX_CLASSES:,} classes", "is its column class right?")
    if any(name.startswith("#") and name[1:].isdigit() for name in found):
        raise InputError(
            "the log holds indices, and nothing says which classes they stand for",
            "gate the version again, or log names",
        )
    if not found:
        raise _nothing(stretch)
    return tuple(sorted(found))


def _count(stretch: Stretch, wanted: Wanted) -> _Counted:
    classes = len(wanted.class_names)
    counted = _Counted(np.zeros((classes, len(CONFIDENCE_EDGES) - 1), dtype=np.int64))
    for piece in read_log(stretch.logs, wanted):
        part = stretch.own(piece.predictions)
        if not len(part):
            continue
        if (part.label == UNSEEN).any():
            name = next(iter(piece.unseen), "")
            raise InputError(f"the log has a class that {stretch.ref} does not know: {name!r:.100}")
        slot = (part.time // stretch.window).astype(np.int64)
        for window in np.unique(slot).tolist():
            counts = np.bincount(part.label[slot == window], minlength=classes)
            counted.windows[window] = counted.windows.get(window, 0) + counts
        if len(counted.windows) > MAX_WINDOWS:
            raise InputError(
                f"the stretch has more than {MAX_WINDOWS:,} windows",
                "give --from and --to, or longer windows",
            )
        told = ~np.isnan(part.confidence)
        counted.told += int(told.sum())
        counted.histogram += confidence_histogram(part.label[told], part.confidence[told], classes)
        if part.embedding is not None:
            there = ~np.isnan(part.embedding[:, 0])
            counted.total = counted.total + part.embedding[there].sum(axis=0, dtype=np.float64)
            counted.embedded += int(there.sum())
    if not counted.windows:
        raise _nothing(stretch)
    return counted


def _second_look(
    stretch: Stretch, wanted: Wanted, counted: _Counted
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """How far confidence and distances scatter between windows, and the distances' percentiles."""
    classes = len(wanted.class_names)
    if not counted.told and not counted.embedded:
        return (), (), 0.0
    edges = np.asarray(CONFIDENCE_EDGES, dtype=np.float32)
    cuts = confidence_cuts(counted.histogram.astype(np.float64), edges)
    place = {window: number for number, window in enumerate(sorted(counted.windows))}
    cells = np.zeros((3, len(place), classes), dtype=np.int64)
    mean = counted.total / max(counted.embedded, 1)
    distances: list[NDArray[np.float64]] = []
    owners: list[Int64] = []
    every = max(1, counted.embedded // _MOST_DISTANCES)
    for piece in read_log(stretch.logs, wanted):
        part = stretch.own(piece.predictions)
        if not len(part):
            continue
        slot = np.array([place[w] for w in (part.time // stretch.window).astype(np.int64).tolist()])
        told = ~np.isnan(part.confidence)
        events = (told, part.confidence < cuts.unsure[part.label], part.confidence >= cuts.sure[part.label])
        for number, event in enumerate(events):
            cell = slot[event] * classes + part.label[event]
            cells[number] += np.bincount(cell, minlength=cells[0].size).reshape(cells[0].shape)
        if part.embedding is not None:
            there = np.flatnonzero(~np.isnan(part.embedding[:, 0]))[::every]
            distances.append(distance_from(mean, part.embedding[there]))
            owners.append(slot[there])
    rho = np.maximum(scatter_between_windows(cells[1], cells[0]), scatter_between_windows(cells[2], cells[0]))
    if not distances:
        return tuple(rho.tolist()), (), 0.0
    summary = percentiles(np.concatenate(distances))
    away, owner = np.concatenate(distances), np.concatenate(owners)
    total = np.bincount(owner, minlength=len(place))
    outer = np.stack(
        [np.bincount(owner[e], minlength=len(place)) for e in (away > summary[95], away < summary[5])]
    )
    embedding_rho = float(scatter_between_windows(outer.T, total).max())
    return tuple(rho.tolist()), summary, embedding_rho


def _nothing(stretch: Stretch) -> InputError:
    return InputError(
        f"the log has no prediction of {stretch.ref} in that stretch",
        "check --log, --from and --to, and the version given to PredictionLog",
    )
