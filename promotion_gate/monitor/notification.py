"""What a person is told of an alarm: one message, for every kind of receiver."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from promotion_gate.core.types import JSON
from promotion_gate.monitor.interface import Alarm
from promotion_gate.operators import plain

NOTIFICATION_SCHEMA = "promotion-gate-alarm/1"

TITLE_LENGTH = 200
MESSAGE_LENGTH = 1000
DETAIL_BYTES = 8_000

Word = Literal["firing", "reminder", "resolved", "notice", "test"]
"""What is said of an alarm; a notice is told once and is never over."""

Severity = Literal["critical", "error", "warning", "info"]

_SEVERITY: Mapping[str, Severity] = {
    "class-share": "critical",
    "foreign-move": "critical",
    "rollback": "critical",
    "unseen-class": "error",
    "confidence": "warning",
    "embedding": "warning",
}


_SIDES: Mapping[str, Mapping[str, str]] = {
    "class-share": {"surge": "more of it", "loss": "less of it"},
    "confidence": {"unsure": "more answers that are unsure", "sure": "more answers that are very sure"},
    "embedding": {"far": "more far from the usual", "near": "more near the middle than usual"},
}


@dataclass(frozen=True, slots=True)
class Notification:
    """One message to one receiver.

    ``id`` is the same however often it is sent, so that a receiver can drop the second copy. ``dedup_key`` is
    the same for everything that is ever said of one alarm. ``environment`` tells installations apart.
    """

    id: str
    dedup_key: str
    word: Word
    alarm: Alarm
    environment: str = ""

    @property
    def title(self) -> str:
        """One line: which model, what happened."""
        where = f"{self.environment} " if self.environment else ""
        head = {
            "firing": "ALARM",
            "reminder": "STILL ALARMING",
            "resolved": "over",
            "notice": "note",
            "test": "TEST",
        }[self.word]
        about = f"{self.alarm.kind} {self.alarm.subject!r}" if self.alarm.subject else self.alarm.kind
        return plain(f"[{head}] {where}{self.alarm.model}: {about}", TITLE_LENGTH)

    @property
    def message(self) -> str:
        """What happened, in one line."""
        return plain(self.alarm.message, MESSAGE_LENGTH)

    @property
    def severity(self) -> Severity:
        if self.word in ("notice", "test"):
            return "info"
        return _SEVERITY.get(self.alarm.kind, "warning")

    def lines(self) -> list[str]:
        """The message and its facts, for a person; each is one line."""
        alarm = self.alarm
        version = "not known" if alarm.version is None else str(alarm.version)
        lines = [self.message]
        if alarm.state == "firing" and (numbers := measured(alarm)):
            lines.append(numbers)
        lines += ["", f"model: {alarm.model}, version: {version}"]
        if self.environment:
            lines.append(f"environment: {self.environment}")
        lines.append(f"since {_moment(alarm.since)}, seen {_moment(alarm.at)}")
        for key, before in (("undo", "to undo it"), ("by_hand", "to do it by hand")):
            command = alarm.detail.get(key)
            if isinstance(command, str) and command:
                lines.append(f"{before}: {command}")
        if self.word == "resolved":
            lines.append("This is over.")
        return [plain(line, MESSAGE_LENGTH) for line in lines]

    def document(self) -> dict[str, Any]:
        """The message for a program, as JSON types."""
        alarm = self.alarm
        return {
            "schema": NOTIFICATION_SCHEMA,
            "id": self.id,
            "dedup_key": self.dedup_key,
            "event": self.word,
            "severity": self.severity,
            "environment": self.environment,
            "title": self.title,
            "message": self.message,
            "alarm": {
                "kind": alarm.kind,
                "model": alarm.model,
                "version": alarm.version,
                "subject": alarm.subject,
                "state": alarm.state,
                "sigma": alarm.sigma if math.isfinite(alarm.sigma) else None,
                "since": alarm.since.isoformat(),
                "at": alarm.at.isoformat(),
                "detail": bounded(alarm.detail),
            },
        }


def deviation_message(subject: str, sigma: float) -> str:
    """The message of an alarm on one class's share of the predictions."""
    return (
        f"prediction distribution for class '{subject}' has deviated by {sigma:.1f} standard deviations"
        " from baseline"
    )


def gravity(alarm: Alarm) -> int:
    """How grave an alarm of its kind is, by which they sort: 0 is the gravest."""
    return ("critical", "error", "warning", "info").index(_SEVERITY.get(alarm.kind, "warning"))


def measured(alarm: Alarm) -> str:
    """What was counted for an alarm, on which side, and what the baseline allows; "" where nothing was."""
    told = alarm.detail
    sides = _SIDES.get(alarm.kind, {})
    numbers = [told.get(key) for key in ("count", "of", "share", "baseline_low", "baseline_high")]
    side = sides.get(str(told.get("side")))
    if side is None or not all(isinstance(number, int | float) for number in numbers):
        return ""
    count, of, share, low, high = (float(str(number)) for number in numbers)
    return f"{side}: {count:,.0f} of {of:,.0f} in its window, {share:.2%}; {low:.2%} to {high:.2%} allowed"


def dedup_key(alarm: Alarm, environment: str = "") -> str:
    """What stands for an alarm at every receiver, through every restart; 64 characters."""
    text = json.dumps([environment, *alarm.key])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def bounded(detail: Mapping[str, JSON]) -> Any:
    """``detail`` as strict JSON can say it, or that it is too long."""
    finite = _finite(detail)
    try:
        size = len(json.dumps(finite))
    except (TypeError, ValueError):
        return {"left_out": "it cannot be told in JSON"}
    return finite if size <= DETAIL_BYTES else {"left_out": f"{size} bytes of detail"}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def _moment(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="seconds")
