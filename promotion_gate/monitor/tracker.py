"""From pieces of a log to outcomes of windows: counts, evidence, and which alarms stand."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.types import JSON
from promotion_gate.detect.sequential import ShareDetector, alarm_limit
from promotion_gate.detect.shares import (
    beta_binomial_tails,
    population_stability_index,
    predictive,
    sigma_of,
)
from promotion_gate.monitor.interface import (
    UNSEEN,
    Alarm,
    AlarmKind,
    Baseline,
    ClassShare,
    Predictions,
    WindowOutcome,
)
from promotion_gate.monitor.log_reader import Piece, rows_of
from promotion_gate.monitor.questions import questions_of

Float64 = NDArray[np.float64]

STEP_ROWS = 8192
"""Evidence is weighed after so many predictions, or sooner."""

KEPT = 32
"""How many predictions behind an alarm are kept."""

MONTH_SECONDS = 30 * 86_400.0
_MOST_UNSEEN = 20
_WARM = 100.0
_FADED = 10.0


@dataclass(slots=True)
class WindowCounts:
    """What one window showed so far: hits and trials of every question, and what is counted beside them."""

    start: float
    hits: Float64
    trials: Float64
    rows: int = 0
    late: int = 0
    spent: float = 0.0
    others: Counter[int] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)


class Tracker:
    """Holds the live predictions of one version against its baseline.

    An alarm is raised when the evidence of a question reaches ``limit`` and is over when it has faded to
    the limit's square root: as likely as not to be chance over the months that it may build up in.
    """

    def __init__(self, baseline: Baseline, alias: str, window: float) -> None:
        self.baseline = baseline
        self.alias = alias
        self.window = window
        self.questions = questions_of(baseline)
        self.limit = alarm_limit(len(self.questions), MONTH_SECONDS / window)
        self.detector = ShareDetector(self.questions.allowed, self.limit)
        self.since = np.zeros(len(self.questions))
        self.firing: dict[tuple[str, str], Alarm] = {}
        self.current: WindowCounts | None = None
        self.open_from = 0.0
        self.seen = 0
        self.others: Counter[int] = Counter()
        self._a, self._b = predictive(
            np.asarray(baseline.counts).sum(axis=0), float(baseline.total), self.questions.rho
        )
        self._raised: list[Alarm] = []
        self._samples: dict[int, deque[tuple[Any, ...]]] = {}

    def feed(self, piece: Piece) -> Iterator[WindowOutcome]:
        """Take in a piece; an outcome for every window that a later row closes."""
        predictions, unseen = piece.predictions, list(piece.unseen)
        bounds = [0, len(predictions)]
        if predictions.time[0] // self.window != predictions.time[-1] // self.window:
            bounds[1:1] = (np.flatnonzero(np.diff(predictions.time // self.window)) + 1).tolist()
        for begin, end in pairwise(bounds):
            part = rows_of(predictions, slice(begin, end)) if len(bounds) > 2 else predictions
            strange = int((part.label == UNSEEN).sum()) if unseen else 0
            names, unseen = unseen[:strange], unseen[strange:]
            start = float(part.time[0] // self.window) * self.window
            if self.current is not None and start > self.current.start:
                yield self.close()
            self._take(part, names, start)

    def open(self, at: float) -> WindowCounts:
        """Begin the window of this moment."""
        size = len(self.questions)
        start = max(at // self.window * self.window, self.open_from)
        self.current = WindowCounts(start, np.zeros(size), np.zeros(size))
        if not self.since.any():
            self.since[:] = start
        return self.current

    def close(self) -> WindowOutcome:
        """End the current window."""
        assert self.current is not None
        for (kind, subject), _ in list(self.firing.items()):
            if kind == "unseen-class" and not self._saw(subject):
                self._resolve(kind, subject, self.current.start + self.window)
        outcome = self.outcome(complete=True)
        self.open_from = self.current.start + self.window
        self.detector.close_window()
        self.current = None
        return outcome

    def outcome(self, *, complete: bool) -> WindowOutcome:
        """The current window as it stands; alarms told once are not told again."""
        current = self.current
        assert current is not None
        raised, self._raised = self._raised, []
        now = datetime.now(UTC)
        counts = current.hits[: self.questions.classes]
        return WindowOutcome(
            model=self.baseline.ref.name,
            alias=self.alias,
            version=self.baseline.ref.version,
            start=moment(current.start),
            end=moment(current.start + self.window),
            at=now,
            complete=complete,
            predictions=current.rows,
            classes=self._shares(),
            psi=population_stability_index(np.asarray(self.baseline.counts).sum(axis=0), counts),
            alarms=raised,
            firing=list(self.firing.values()),
            other_versions=dict(current.others),
            unseen=dict(current.unseen),
            late=current.late,
            samples=self._behind(),
            baseline=self.baseline,
        )

    @property
    def news(self) -> bool:
        """Whether an alarm was raised or resolved since the last outcome."""
        return bool(self._raised)

    def retire(self, at: float) -> list[Alarm]:
        """Resolve what stands: the version left production."""
        for kind, subject in list(self.firing):
            self._resolve(kind, subject, at, "the version left production")
        raised, self._raised = self._raised, []
        return raised

    def _saw(self, name: str) -> bool:
        assert self.current is not None
        return name in self.current.unseen or (not name and bool(self.current.unseen))

    def _take(self, part: Predictions, unseen: Sequence[str], start: float) -> None:
        current = self.current or self.open(start)
        if start < current.start:
            current.late += len(part)
        version = self.baseline.ref.version
        own = (part.version == version) | (part.version == 0)
        if not own.all():
            others = Counter(part.version[~own].tolist())
            current.others.update(others)
            self.others.update(others)
            kept = own[part.label == UNSEEN]
            unseen = [name for name, keep in zip(unseen, kept.tolist(), strict=True) if keep]
            part = rows_of(part, np.flatnonzero(own))
        if not len(part):
            return
        self.seen += len(part)
        current.rows += len(part)
        if unseen:
            self._note_unseen(unseen, float(part.time[-1]))
            part = rows_of(part, np.flatnonzero(part.label != UNSEEN))
        if len(part):
            self._weigh(part)

    def _weigh(self, part: Predictions) -> None:
        """Count a piece of one window in steps, and look at the evidence after each."""
        current = self.current
        assert current is not None
        hits, trials = self._count(part)
        hits = hits.cumsum(axis=0) + current.hits
        trials = trials.cumsum(axis=0) + current.trials
        last_rows = np.minimum(np.arange(1, len(hits) + 1) * STEP_ROWS, len(part)) - 1
        at = part.time[last_rows]
        passed = np.clip((at - current.start) / self.window, current.spent, 1.0)
        passed = np.maximum.accumulate(passed)
        trace = self.detector.count(hits, trials, np.diff(passed, prepend=current.spent))
        current.hits, current.trials, current.spent = hits[-1], trials[-1], float(passed[-1])
        quiet = trace < _FADED
        for step in range(len(trace)):
            self.since[quiet[step]] = at[step]
        for question in np.flatnonzero((trace >= self.limit).any(axis=0)):
            step = int(np.argmax(trace[:, question] >= self.limit))
            self._raise(int(question), float(at[step]), float(trace[step, question]))
        self._fade(float(at[-1]), trace[-1])
        self._keep(part, trace[-1])

    def _count(self, part: Predictions) -> tuple[Float64, Float64]:
        """Hits and trials of every question, by step: (steps, questions)."""
        q, classes = self.questions, self.questions.classes
        rows = len(part)
        steps = -(-rows // STEP_ROWS)
        cell = part.label.astype(np.int64)
        if steps > 1:
            cell += np.arange(rows) // STEP_ROWS * classes
        hits = np.zeros((steps, len(q)))
        trials = np.zeros((steps, len(q)))
        shares = np.bincount(cell, minlength=steps * classes).reshape(steps, classes)
        hits[:, :classes] = shares
        trials[:, :classes] = shares.sum(axis=1, keepdims=True)
        sure = part.confidence
        told = ~np.isnan(sure)
        if told.any():
            counted = shares
            if not told.all():
                counted = np.bincount(cell[told], minlength=steps * classes).reshape(steps, classes)
            unsure = np.bincount(cell[sure < q.cuts.unsure[part.label]], minlength=steps * classes)
            certain = np.bincount(cell[sure >= q.cuts.sure[part.label]], minlength=steps * classes)
            hits[:, classes : 2 * classes] = unsure.reshape(steps, classes)
            hits[:, 2 * classes : 3 * classes] = certain.reshape(steps, classes)
            trials[:, classes : 2 * classes] = trials[:, 2 * classes : 3 * classes] = counted
        if part.embedding is not None and len(q.mean):
            distance = np.linalg.norm(part.embedding.astype(np.float64) - q.mean, axis=1)
            step = np.arange(rows) // STEP_ROWS
            for place, event in ((-2, distance > q.far), (-1, distance < q.near)):
                hits[:, place] = np.bincount(step[event], minlength=steps)
                trials[:, place] = np.bincount(step[~np.isnan(distance)], minlength=steps)
        return hits, trials

    def _subject(self, question: int) -> tuple[AlarmKind, str, int]:
        """Kind and subject of a question's alarm, and its class, or -1."""
        classes = self.questions.classes
        if question >= 3 * classes:
            return "embedding", "", -1
        label = question % classes
        kind: AlarmKind = "class-share" if question < classes else "confidence"
        return kind, self.baseline.class_names[label], label

    def _raise(self, question: int, at: float, evidence: float) -> None:
        kind, subject, label = self._subject(question)
        if (kind, subject) in self.firing:
            return
        sigma = float(sigma_of(1 / evidence))
        detail = self._detail(question, evidence)
        if kind == "class-share":
            sigma = max(sigma, abs(self._shares([label])[0].sigma))
        what = {
            "class-share": f"prediction distribution for class '{subject}'",
            "confidence": f"confidence for class '{subject}'",
            "embedding": "the distribution of embeddings",
        }[kind]
        message = f"{what} has deviated by {sigma:.1f} standard deviations from baseline"
        self._fire(kind, subject, message, float(self.since[question]), at, sigma, detail)

    def _detail(self, question: int, evidence: float) -> dict[str, JSON]:
        current, classes = self.current, self.questions.classes
        assert current is not None
        hits, trials = float(current.hits[question]), float(current.trials[question])
        low, high = (float(a[question]) for a in (self.questions.allowed.low, self.questions.allowed.high))
        share = hits / max(trials, 1)
        if question < classes:
            side = "surge" if share > low else "loss"
        elif question < 3 * classes:
            side = "unsure" if question < 2 * classes else "sure"
        else:
            side = "far" if question == 3 * classes else "near"
        return {
            "side": side,
            "count": int(hits),
            "of": int(trials),
            "share": share,
            "baseline_low": low,
            "baseline_high": high,
            "evidence": min(evidence, 1e300),
        }

    def _fire(
        self,
        kind: AlarmKind,
        subject: str,
        message: str,
        since: float,
        at: float,
        sigma: float,
        detail: Mapping[str, JSON],
    ) -> None:
        ref = self.baseline.ref
        alarm = Alarm(
            kind,
            ref.name,
            ref.version,
            subject,
            "firing",
            message,
            moment(since),
            moment(at),
            sigma,
            detail,
        )
        self.firing[kind, subject] = alarm
        self._raised.append(alarm)

    def _resolve(self, kind: str, subject: str, at: float, why: str = "") -> None:
        alarm = self.firing.pop((kind, subject))
        message = f"over: {alarm.message}" + (f"; {why}" if why else "")
        self._raised.append(replace(alarm, state="resolved", at=moment(at), message=message))

    def _fade(self, at: float, evidence: Float64) -> None:
        if not self.firing:
            return
        faded = evidence <= np.sqrt(self.limit)
        classes = self.questions.classes
        places = {name: number for number, name in enumerate(self.baseline.class_names)}
        for kind, subject in list(self.firing):
            if kind == "class-share":
                over = faded[places[subject]]
            elif kind == "confidence":
                over = faded[classes + places[subject]] and faded[2 * classes + places[subject]]
            elif kind == "embedding":
                over = faded[-1] and faded[-2]
            else:
                continue
            if over:
                self._resolve(kind, subject, at)

    def _note_unseen(self, names: Sequence[str], at: float) -> None:
        current = self.current
        assert current is not None
        for name, count in Counter(names).items():
            known = name if name in current.unseen or len(current.unseen) < _MOST_UNSEEN else "…"
            current.unseen[known] += count
        standing = sum(kind == "unseen-class" for kind, _ in self.firing)
        for name, count in current.unseen.items():
            if ("unseen-class", name) in self.firing or standing >= _MOST_UNSEEN:
                continue
            standing += 1
            message = f"class '{name}' was predicted, which the baseline does not know"
            sigma = float(sigma_of(0.0))
            self._fire("unseen-class", name, message, at, at, sigma, {"count": count})

    def _shares(self, labels: Sequence[int] | None = None) -> list[ClassShare]:
        current, classes = self.current, self.questions.classes
        assert current is not None
        chosen = np.arange(classes) if labels is None else np.asarray(labels)
        count = current.hits[chosen]
        total = current.trials[0]
        a, b = self._a[chosen], self._b[chosen]
        above, below = beta_binomial_tails(count, total, a, b)
        expected = total * a / (a + b)
        surge = count >= expected
        p_value = np.where(surge, above, below)
        sigma = sigma_of(p_value) * np.where(surge, 1, -1)
        evidence = self.detector.evidence[chosen]
        columns = zip(
            [self.baseline.class_names[int(c)] for c in chosen],
            count.astype(int).tolist(),
            expected.tolist(),
            p_value.tolist(),
            sigma.tolist(),
            evidence.tolist(),
            strict=True,
        )
        return [ClassShare(*row) for row in columns]

    def _keep(self, part: Predictions, evidence: Float64) -> None:
        """Keep the newest rows of classes whose evidence grows, and of embeddings far off."""
        if part.image is None:
            return
        classes = self.questions.classes
        warm = np.flatnonzero((evidence[: 3 * classes] >= _WARM).reshape(3, classes).any(axis=0))
        for label in warm.tolist():
            self._put(label, part, np.flatnonzero(part.label == label)[-KEPT:])
        if part.embedding is not None and evidence[-2:].max() >= _WARM:
            distance = np.linalg.norm(part.embedding.astype(np.float64) - self.questions.mean, axis=1)
            odd = (distance > self.questions.far) | (distance < self.questions.near)
            self._put(UNSEEN, part, np.flatnonzero(odd)[-KEPT:])

    def _put(self, key: int, part: Predictions, rows: NDArray[np.int64]) -> None:
        assert part.image is not None
        kept = self._samples.setdefault(key, deque(maxlen=KEPT))
        for row in rows.tolist():
            if part.image[row]:
                vector = None if part.embedding is None else part.embedding[row].copy()
                kept.append(
                    (
                        part.time[row],
                        part.label[row],
                        part.confidence[row],
                        part.version[row],
                        vector,
                        part.image[row],
                    )
                )

    def _behind(self) -> Predictions | None:
        """The kept rows of all standing alarms, in order of time."""
        places = {name: number for number, name in enumerate(self.baseline.class_names)}
        keys = {
            UNSEEN if kind == "embedding" else places[subject]
            for kind, subject in self.firing
            if kind in ("class-share", "confidence", "embedding")
        }
        rows = sorted((row for key in keys for row in self._samples.get(key, ())), key=lambda row: row[0])
        if not rows:
            return None
        at, label, confidence, version, vectors, images = zip(*rows, strict=True)
        told = all(vector is not None for vector in vectors)
        return Predictions(
            class_names=self.baseline.class_names,
            time=np.array(at, dtype=np.float64),
            label=np.array(label, dtype=np.int32),
            confidence=np.array(confidence, dtype=np.float32),
            version=np.array(version, dtype=np.int32),
            embedding=np.stack(vectors) if told else None,
            image=list(images),
        )


def moment(seconds: float) -> datetime:
    """A time of a log as a date, UTC."""
    return datetime.fromtimestamp(seconds, UTC)
