"""What monitoring tells a person and a program: lines of text, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from promotion_gate.core.writing import write_bytes
from promotion_gate.monitor.interface import Alarm, ClassShare, WindowOutcome
from promotion_gate.monitor.notification import measured

SCHEMA = "promotion-gate-monitor/1"
_SHOWN = 10


def alarm_lines(outcome: WindowOutcome) -> list[str]:
    """What this look raised or resolved, a line each."""
    return [_alarm_line(alarm) for alarm in outcome.alarms]


def window_lines(outcome: WindowOutcome, *, every: bool = False) -> list[str]:
    """One window: a line of facts, and with ``every`` a table of the classes furthest off.

    They may go to a terminal as they are.
    """
    state = "" if outcome.complete else " so far"
    parts = [f"{outcome.predictions:,} predictions of {outcome.model}/{outcome.version}"]
    parts += [f"{n:,} of version {v}" for v, n in sorted(outcome.other_versions.items())[:5]]
    if outcome.late:
        parts.append(f"{outcome.late:,} late")
    parts.append(f"PSI {outcome.psi:.3f}")
    standing = len(outcome.firing)
    parts.append("no alarm" if not standing else f"{standing} {'alarm' if standing == 1 else 'alarms'}")
    lines = [_printable(f"{_span(outcome.start, outcome.end)}{state}: {', '.join(parts)}")]
    return lines + _table(outcome) if every else lines


def outcomes_json(path: Path, name: str, last: WindowOutcome | None, alarms: Sequence[Alarm]) -> None:
    """Write the last window and every alarm of this run.

    Raises
    ------
    UsageError: it cannot be written.
    """
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "drifted": last is not None and last.drifted,
        "alarms": [_alarm_json(alarm) for alarm in alarms],
        "window": None,
    }
    if last is not None:
        said["window"] = {
            "version": last.version,
            "alias": last.alias,
            "start": last.start.isoformat(),
            "end": last.end.isoformat(),
            "complete": last.complete,
            "predictions": last.predictions,
            "other_versions": {str(v): n for v, n in last.other_versions.items()},
            "unseen": dict(last.unseen),
            "late": last.late,
            "psi": last.psi,
            "firing": [_alarm_json(alarm) for alarm in last.firing],
            "classes": [_class_json(share) for share in last.classes],
        }
    write_bytes(path, (json.dumps(said, indent=2) + "\n").encode())


def _table(outcome: WindowOutcome) -> list[str]:
    """The classes that an alarm stands for, and the ones furthest off."""
    marks = _marks(outcome.firing)
    ranked = sorted(outcome.classes, key=lambda share: (share.name not in marks, -abs(share.sigma)))
    shown = ranked[: max(_SHOWN, sum(share.name in marks for share in ranked))]
    header = ("class", "predicted", "expected", "sigma", "")
    rows = [header, *(_row(share, marks.get(share.name, "")) for share in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        + (f"  {row[4]}" if row[4] else "")
        for row in rows
    ]
    left = len(ranked) - len(shown)
    return (
        [*lines, f"and {left} {'class' if left == 1 else 'classes'} nearer to the baseline"]
        if left
        else lines
    )


def _marks(firing: Sequence[Alarm]) -> dict[str, str]:
    """The mark of each class: its sigma is of the share, and says nothing of an alarm on confidence."""
    kinds: dict[str, set[str]] = {}
    for alarm in firing:
        if alarm.kind in ("class-share", "confidence"):
            kinds.setdefault(alarm.subject, set()).add(alarm.kind)
    told = {"class-share": "ALARM", "confidence": "ALARM (confidence)"}
    return {
        name: "ALARM (share and confidence)" if len(found) == 2 else told[found.pop()]
        for name, found in kinds.items()
    }


def _row(share: ClassShare, mark: str) -> tuple[str, ...]:
    name = _printable(share.name)
    return (
        name if len(name) <= 40 else f"{name[:39]}…",
        f"{share.count:,}",
        f"{share.expected:,.1f}",
        f"{round(share.sigma, 1) + 0.0:+.1f}",  # never -0.0
        mark,
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _span(start: datetime, end: datetime) -> str:
    return f"{start.isoformat(sep=' ', timespec='minutes')[:16]} to {end:%Y-%m-%d %H:%M} UTC"


def _alarm_line(alarm: Alarm) -> str:
    at = alarm.at.isoformat(sep=" ", timespec="seconds")
    word = "ALARM" if alarm.state == "firing" else "resolved"
    numbers = measured(alarm) if alarm.state == "firing" else ""
    return f"{word} {at}: {alarm.message}" + (f" ({numbers})" if numbers else "")


def _class_json(share: ClassShare) -> dict[str, Any]:
    """What nothing tells is null: JSON knows no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(share).items()
    }


def _alarm_json(alarm: Alarm) -> dict[str, Any]:
    return {**asdict(alarm), "since": alarm.since.isoformat(), "at": alarm.at.isoformat()}
