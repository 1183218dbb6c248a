"""Rolling back on an alarm, without a person: seldom, only for the version that alarms, and never silently.

What was done is read from the signed history, not from a file of this machine: two monitors roll back once,
and a monitor that died right after a rollback tells of it when it is started again.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from promotion_gate.core.errors import GateError, RegistryConflict, SigningError
from promotion_gate.core.production import Production
from promotion_gate.core.types import AuditRecord
from promotion_gate.journal import Actor
from promotion_gate.monitor.alerts import Alerts
from promotion_gate.monitor.interface import Alarm, AlarmKind
from promotion_gate.operators import plain
from promotion_gate.registry.interface import Event, ModelFacts, Registry
from promotion_gate.rollback import note_restored, rollback
from promotion_gate.vouching import DEFAULT_PRODUCTION, done_moves, read_record

AUTOMATIC = "automatic rollback on alarm: "
"""How the reason in the signed record of such a rollback begins."""

RESTORED = "the alias was moved"

A_DAY = 1
DAY = timedelta(hours=24)
COOL_DOWN = timedelta(minutes=15)
FRESH = timedelta(hours=2)
"""How old the newest prediction behind an alarm may be, where windows are not longer."""

DEFAULT_KINDS: frozenset[AlarmKind] = frozenset({"class-share"})

_REASON_LENGTH = 400
_PAUSES = (1.0, 3.0)
"""Seconds before it is tried again while somebody else is moving the model."""


class NotPermitted(RegistryConflict):
    """The rules are against an automatic rollback now; ``rule`` names which."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Rules:
    """When a rollback may be automatic.

    ``cool_down`` is how long nothing is done after any move of the alias, whoever made it.
    """

    kinds: frozenset[AlarmKind] = DEFAULT_KINDS
    cool_down: timedelta = COOL_DOWN


class AutomaticRollback:
    """Answers alarms of one model.

    Parameters
    ----------
    options: what the commands shown to a person need besides the model's name (``--alias``, …).
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        alerts: Alerts,
        rules: Rules | None = None,
        production: Production = DEFAULT_PRODUCTION,
        actor: Actor | None = None,
        options: Sequence[str] = (),
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        self._registry = registry
        self._name = name
        self._alerts = alerts
        self._rules = rules or Rules()
        self._production = production
        self._actor = actor or Actor.here()
        self._options = options
        self._pauses = pauses
        self._records: dict[str, AuditRecord | None] = {}

    def answer(self, firing: Sequence[Alarm], old: timedelta = timedelta(), fresh: timedelta = FRESH) -> None:
        """Roll back if one of these alarms calls for it and the rules permit it; note what people are told.

        Parameters
        ----------
        old: how long ago the predictions were made that the alarms stand on. Of what is older than ``fresh``
            nobody knows whether it still is so: a log that is read belatedly moves nothing.

        Raises
        ------
        GateError: the registry could not even be asked what was done before.
        """
        grave = sorted(
            (a for a in firing if a.kind in self._rules.kinds and a.kind != "rollback"),
            key=lambda alarm: (-abs(alarm.sigma), alarm.key),
        )
        if grave and old > fresh:
            hours = old.total_seconds() / 3600
            refusal = NotPermitted("old", f"the predictions behind the alarm are {hours:.0f} hours old")
            self._tell_not_done(grave[0], refusal)
        elif grave:
            self._attempt(grave[0])
        else:
            self._alerts.take((), everything=("rollback",), model=self._name)
        self._tell_what_was_done()

    def automatic(self, events: Sequence[Event]) -> list[Event]:
        """The rollbacks in a history that a monitor made, also those that nothing proves to be anybody's."""
        rollbacks = [e for e in events if e.pointer.action == "rollback" and e.state != "undone"]
        return [event for event in rollbacks if self._is_automatic(event)]

    def _attempt(self, alarm: Alarm) -> None:
        try:
            self._roll_back(alarm)
        except NotPermitted as refusal:
            self._tell_not_done(alarm, refusal)
        except GateError as error:
            self._alerts.take([self._failure(alarm, error)])
            return
        self._alerts.take((), everything=("rollback",), model=self._name)

    def _roll_back(self, alarm: Alarm) -> None:
        reason = plain(f"{AUTOMATIC}{alarm.kind} {alarm.subject!r}: {alarm.message}", _REASON_LENGTH)
        pauses = iter(self._pauses)
        while True:
            try:
                recorded = rollback(
                    self._registry,
                    self._name,
                    reason=reason,
                    production=self._production,
                    actor=self._actor,
                    alarm_at=min(alarm.at, self._actor.clock()),
                    only_if=lambda facts, events: self._require_permitted(alarm, facts, events),
                )
                break
            except NotPermitted:
                raise
            except RegistryConflict:
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
        # The rollback stands, whether or not its time to recovery could be written down.
        with contextlib.suppress(GateError):
            note_restored(self._registry, recorded, RESTORED, self._actor)

    def _require_permitted(self, alarm: Alarm, facts: ModelFacts, events: Sequence[Event]) -> None:
        now, alias = self._actor.clock(), self._production.alias
        current = facts.aliases.get(alias)
        moved_at = _last_moved(events, alias)
        if alarm.version is None and (moved_at is None or moved_at > alarm.since):
            raise NotPermitted("version", "the log does not say which version the predictions came from")
        if alarm.version is not None and current != alarm.version:
            where = "no version" if current is None else f"version {current}"
            raise NotPermitted("moved", f"in production is {where}, the alarm is about {alarm.version}")
        recent = [e for e in self.automatic(events) if _ago(self._at(e), now) < DAY]
        if len(recent) >= A_DAY:
            raise NotPermitted(
                "limit",
                f"the limit of {A_DAY} automatic rollback in 24 hours is reached"
                f" (the last one {self._at(recent[-1]).isoformat(sep=' ', timespec='seconds')})",
            )
        if moved_at is not None and _ago(moved_at, now) < self._rules.cool_down:
            minutes = self._rules.cool_down.total_seconds() / 60
            raise NotPermitted("cool-down", f"production was moved less than {minutes:g} minutes ago")

    def _tell_not_done(self, alarm: Alarm, refusal: NotPermitted) -> None:
        if refusal.rule == "moved" and self._left(alarm.version):
            return  # what was done is told from history
        told = self._said(
            f"NOT rolled back automatically: {refusal.what}; alarm: {alarm.message}",
            alarm,
            {"rule": refusal.rule, "by_hand": self._command("the alarm, looked at by a person")},
        )
        self._alerts.notice(told, once=f"not done: {refusal.rule}", about=alarm)

    def _left(self, version: int | None) -> bool:
        """Whether the last move of the alias was an automatic rollback away from this version."""
        moves = done_moves(self._registry.events(self._name), self._production.alias)
        return bool(moves) and moves[-1].pointer.from_version == version and self._is_automatic(moves[-1])

    def _failure(self, alarm: Alarm, error: GateError) -> Alarm:
        return self._said(
            f"automatic rollback FAILED: {error}; alarm: {alarm.message}",
            alarm,
            {"by_hand": self._command("the alarm, and the automatic rollback failed")},
        )

    def _said(self, message: str, alarm: Alarm, detail: dict[str, str]) -> Alarm:
        return Alarm(
            kind="rollback",
            model=self._name,
            version=alarm.version,
            subject="",
            state="firing",
            message=plain(message),
            since=alarm.since,
            at=self._actor.clock(),
            detail={"because": [alarm.kind, alarm.subject], **detail},
        )

    def _tell_what_was_done(self) -> None:
        now = self._actor.clock()
        for event in self.automatic(self._registry.events(self._name)):
            record = self._record(event)
            if record is None or event.state != "done" or _ago(record.at, now) >= DAY:
                continue
            pointer = event.pointer
            undo = self._command("taken back after a look at the alarm", to=pointer.from_version)
            told = Alarm(
                kind="rollback",
                model=self._name,
                version=pointer.from_version,
                subject="",
                state="firing",
                message=plain(
                    f"rolled back automatically: {pointer.alias} is version {pointer.to_version}, was"
                    f" {pointer.from_version}; {record.reason}"
                ),
                since=record.at,
                at=record.at,
                detail={"undo": undo, "event": event.event_id, "digest": record.digest},
            )
            self._alerts.notice(told, once=f"done: {event.event_id}")

    def _command(self, reason: str, to: int | None = None) -> str:
        words = ["promotion-gate", "rollback", self._name, *self._options]
        words += [] if to is None else ["--to", str(to)]
        return shlex.join([*words, "--reason", reason])

    def _is_automatic(self, event: Event) -> bool:
        record = self._record(event)
        # One that cannot be read counts: doubt stays the hand of a machine.
        return record is None or record.reason.startswith(AUTOMATIC)

    def _at(self, event: Event) -> datetime:
        record = self._record(event)
        return event.at if record is None else record.at

    def _record(self, event: Event) -> AuditRecord | None:
        if event.event_id not in self._records:
            try:
                record = read_record(self._registry, event, self._actor.keys.trusted)
            except SigningError:
                return None
            self._records[event.event_id] = record
        return self._records[event.event_id]


def _last_moved(events: Sequence[Event], alias: str) -> datetime | None:
    """When the alias was last moved, or seen to have been moved past the gate."""
    past_the_gate = [e for e in events if e.pointer.action == "foreign" and e.pointer.alias == alias]
    return max((event.at for event in [*done_moves(events, alias), *past_the_gate]), default=None)


def _ago(at: datetime, now: datetime) -> timedelta:
    """How long ago, for clocks of two machines: what lies ahead counts as far as it lies ahead."""
    return abs(now - at)
