"""How a model's predictions stand, as a tag of the registered model that ``status`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from promotion_gate.monitor.interface import Alarm
from promotion_gate.monitor.notification import gravity
from promotion_gate.operators import plain
from promotion_gate.registry.interface import Registry
from promotion_gate.status import DRIFT_TAG, MAX_DRIFT

_OK = "ok since "
_NAMED = 2
_SUBJECT = 40


def standing_text(firing: Sequence[Alarm], before: str, at: datetime) -> str:
    """``ok since …`` or ``firing: class-share 'X' since …``.

    ``before`` is what the tag said: where all is well still, it goes on saying since when.
    """
    if not firing:
        return before if before.startswith(_OK) else _OK + _moment(at)
    # Two are named: a share that surges must not hide behind confidence that moved earlier.
    ordered = sorted(firing, key=lambda alarm: (gravity(alarm), -abs(alarm.sigma), alarm.since, alarm.key))
    named = [_named(alarm) for alarm in ordered[:_NAMED]]
    more = [f"and {len(ordered) - _NAMED} more"] if len(ordered) > _NAMED else []
    return plain("firing: " + "; ".join([*named, *more]), MAX_DRIFT)


def write_standing(registry: Registry, name: str, firing: Sequence[Alarm], at: datetime) -> bool:
    """Set the tag if it says something else; says whether it was set.

    Raises
    ------
    RegistryError: the registry cannot be reached or refuses.
    """
    before = registry.model(name).tags.get(DRIFT_TAG, "")
    text = standing_text(firing, before, at)
    if text == before:
        return False
    registry.set_model_tag(name, DRIFT_TAG, text)
    return True


def _named(alarm: Alarm) -> str:
    subject = f" {plain(alarm.subject, _SUBJECT)!r}" if alarm.subject else ""
    return f"{alarm.kind}{subject} since {_moment(alarm.since)}"


def _moment(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="seconds")
