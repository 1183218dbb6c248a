"""The journal of a model: who acts, the lock that keeps actors apart, and how an event is written down.

Every event is one MLflow run. It is begun with its signed record, and finished once what it tells is so. Tags
only point; the facts are in the signed record.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

from promotion_gate import __version__
from promotion_gate.core.errors import RegistryConflict, RegistryError, UsageError
from promotion_gate.core.keys import Keyring
from promotion_gate.core.record import now, sign_record, whoami
from promotion_gate.core.types import Action, AuditRecord, ModelRef
from promotion_gate.registry.interface import (
    MAX_SEQUENCE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    Registry,
)
from promotion_gate.vouching import look

LEASE = timedelta(seconds=120)
"""How long a lock holds when its owner dies."""

NOTE_ATTEMPTS = 5
"""How often an event that moves nothing is written anew; past that, events in a tie stand by time and id."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, with which keys, by which clock."""

    user: str
    host: str
    keys: Keyring
    clock: Callable[[], datetime] = field(default=now, repr=False)

    @classmethod
    def here(cls) -> Actor:
        """The person or job that runs this process, with the keys of its configuration."""
        return cls(*whoami(), Keyring())

    @property
    def name(self) -> str:
        return f"{self.user}@{self.host}"

    def record(self, action: Action, ref: ModelRef, digest: str, reason: str) -> AuditRecord:
        """What this actor does now, with nothing but what every record says."""
        return AuditRecord(
            action=action,
            ref=ref,
            digest=digest,
            reason=reason,
            user=self.user,
            host=self.host,
            at=self.clock(),
            gate_version=__version__,
        )


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event that is now part of history, with its signed form.

    ``notes`` are things that the person at the terminal should know: versions passed over, events of
    dead processes that were finished or undone. ``verdict`` is the signed verdict that the event rests on.
    """

    record: AuditRecord
    event_id: str
    envelope: bytes = field(repr=False)
    notes: Sequence[str] = ()
    verdict: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Papers:
    """What is about to be recorded, and the signed verdict that it rests on."""

    record: AuditRecord
    verdict: bytes = field(default=b"", repr=False)


def note_down(
    registry: Registry,
    papers: Papers,
    alias: str,
    actor: Actor,
    carry_out: Callable[[], object] = lambda: None,
) -> Recorded:
    """Write an event that moves nothing, as the last one of the history.

    No lock is asked for: a verdict must not be lost because somebody is moving the model. An event that
    another one got ahead of meanwhile is written again, so that the last word on a version stands last.
    ``carry_out`` is done between the event's beginning and its end.
    """
    record = papers.record
    name, found = record.ref.name, record.foreign
    for attempt in range(NOTE_ATTEMPTS):
        events = registry.events(name)
        record = replace(record, sequence=next_sequence(events), unfinished=unfinished(events))
        envelope = sign_record(record, actor.keys.signing)
        pointer = EventPointer(
            name=name,
            version=record.ref.version,
            action=record.action,
            alias=alias,
            sequence=record.sequence,
            from_version=None if found is None else found.from_version,
            to_version=None if found is None else found.to_version,
            gate_run_id=record.gate_run_id,
        )
        event_id = registry.begin_event(pointer, envelope, papers.verdict)
        others = [event for event in registry.events(name) if event.event_id != event_id]
        if next_sequence(others) <= pointer.sequence or attempt == NOTE_ATTEMPTS - 1:
            break
        registry.finish_event(event_id, "undone", "written again: another event came first")
    carry_out()
    registry.finish_event(event_id, "done")
    return Recorded(record, event_id, envelope, verdict=papers.verdict)


class Lock:
    """The lock of one model, given back on leaving.

    Half of its lease is kept in reserve for clocks that disagree: a worn lock moves nothing. A lock that
    cannot be given back falls with its lease, so that trouble in giving it back hides no other trouble.
    """

    def __init__(self, registry: Registry, name: str, actor: Actor) -> None:
        self._registry = registry
        self._name = name
        self._actor = actor
        self._holder: LockHolder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        with contextlib.suppress(RegistryError):
            self.release()

    def keep(self) -> None:
        """Hold on to the lock until its lease is over, beyond the end of this process."""
        self._holder = None

    def take(self) -> Self:
        until = self._actor.clock() + LEASE
        holder = LockHolder(secrets.token_hex(16), self._actor.name, until)
        self._registry.acquire_lock(self._name, holder)
        self._holder = holder
        return self

    def take_and_look(self) -> tuple[ModelFacts, Sequence[Event]]:
        self.take()
        return look(self._registry, self._name)

    def release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            self._registry.release_lock(self._name, holder)

    @property
    def is_worn(self) -> bool:
        return self._holder is None or self._actor.clock() >= self._holder.until - LEASE / 2


def require_no_live_holder(registry: Registry, name: str, actor: Actor) -> LockHolder | None:
    """The holder of a lock whose lease is over, or None where nobody holds it.

    Raises
    ------
    RegistryConflict: somebody holds it.
    """
    holder = registry.lock_holder(name)
    if holder is None or holder.until <= actor.clock():
        return holder
    until = holder.until.astimezone().isoformat(sep=" ", timespec="seconds")
    raise RegistryConflict(
        f"{holder.who} is changing the production version of {name!r}",
        f"wait for it; if it died, its lock falls at {until}",
    )


def next_sequence(events: Sequence[Event]) -> int:
    """The place of the next event in the history.

    Raises
    ------
    RegistryConflict: somebody wrote an event after which no other can stand.
    """
    last = max(events, key=lambda event: event.pointer.sequence, default=None)
    if last is None:
        return 1
    if last.pointer.sequence >= MAX_SEQUENCE:
        raise RegistryConflict(
            f"the history of {last.pointer.name!r} was altered: no event can come after run {last.event_id}",
            "take the tags of that run away",
        )
    return last.pointer.sequence + 1


def unfinished(events: Sequence[Event]) -> tuple[str, ...]:
    """The events that were begun and have not ended, by id, as the record of the next one states them."""
    return tuple(event.event_id for event in events if event.state == "begun")


def require_reason(reason: str) -> str:
    """What a person gave as the reason, trimmed.

    Raises
    ------
    UsageError: nothing.
    """
    if not reason.strip():
        raise UsageError("a reason is needed", 'say why: --reason "…"')
    return reason.strip()
