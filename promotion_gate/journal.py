"""The journal of a model: every event is begun before anything moves, and closed after it was read back.

Every event is one MLflow run. It is begun with its signed record before anything moves, and finished
after the registry was read back. An event that its process did not live to finish is completed or
marked undone by the next command, which compares the alias with what the event meant to do. Tags only
point; the facts are in the signed record.

Moves of one model exclude each other by a lock with a lease. What a decision rested on (the champion, the
last verdict, the version to go back to) is read again under the lock.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, Self

from promotion_gate.core.errors import (
    GateError,
    NotInRegistry,
    RegistryConflict,
    RegistryError,
    UsageError,
)
from promotion_gate.core.keys import Keyring
from promotion_gate.core.policy import Production
from promotion_gate.core.record import now, sign_record, whoami
from promotion_gate.core.types import AuditRecord, ModelRef, Transition
from promotion_gate.registry.interface import (
    RECORD_FILE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    Registry,
)
from promotion_gate.vouching import DEFAULT_PRODUCTION, both, look

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


def recover(
    registry: Registry, name: str, production: Production = DEFAULT_PRODUCTION, actor: Actor | None = None
) -> list[str]:
    """Finish or undo what a dead process began on this model; says what was done, a line each.

    Raises
    ------
    RegistryConflict: the process is alive: its lock still holds.
    """
    unfinished = [event for event in registry.events(name) if event.state == "begun"]
    if not unfinished:
        return []
    actor = actor or Actor.here()
    if not any(event.pointer.moves or _is_over(event, actor) for event in unfinished):
        return []
    with Lock(registry, name, actor).take():
        return [
            f"{event.pointer.action} of {name}/{event.pointer.version}, begun by a process that died: {state}"
            for event in registry.events(name)
            if event.state == "begun" and (state := _settle(registry, event, actor)) is not None
        ]


def move(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    verified: Callable[[], Papers],
    still: Callable[[ModelFacts, Sequence[Event]], None],
    notes: Sequence[str],
) -> Recorded:
    """Verify, and under the lock check once more, write the intent, move, read back, finish.

    ``verified`` fetches and checks the bytes and says what is to be recorded; ``still`` raises when what
    the decision rested on has changed. The lock is taken beside the former, and anew where that took long.
    """
    alias = production.alias
    with Lock(registry, name, actor) as lock:
        papers, (facts, events) = both(registry, verified, lock.take_and_look)
        if lock.is_worn:
            lock.release()
            facts, events = lock.take_and_look()
        if any(event.state == "begun" and event.pointer.moves for event in events):
            raise RegistryConflict(f"another move of {name!r} was begun meanwhile", "try again")
        still(facts, events)
        ref = papers.record.ref
        transition = Transition(ref.name, alias, facts.aliases.get(alias), ref.version)
        sequence = _next_sequence(events)
        record = replace(papers.record, transition=transition, sequence=sequence)
        envelope = sign_record(record, actor.keys.signing)
        pointer = EventPointer(
            name=ref.name,
            version=ref.version,
            action=record.action,
            alias=alias,
            sequence=sequence,
            from_version=transition.from_version,
            to_version=transition.to_version,
            mirror_stage=_mirrors(production, facts),
            gate_run_id=record.gate_run_id,
        )
        event_id = registry.begin_event(pointer, envelope, papers.verdict)
        event = Event(event_id, pointer, "begun", record.at)
        try:
            if lock.is_worn:
                raise RegistryConflict(f"the registry took too long to move {ref.name!r}", "try again")
            registry.set_alias(ref.name, alias, ref.version)
            _confirm_move(registry, event)
            both(registry, lambda: registry.finish_event(event_id, "done"), lock.give_back)
        except GateError:
            if not _settled_as_done(registry, event, actor, lock):
                raise
    return Recorded(record, event_id, envelope, tuple(notes), papers.verdict)


def _confirm_move(registry: Registry, event: Event) -> None:
    """After the alias was set: let the stage follow, and read both back."""
    pointer = event.pointer
    target = pointer.to_version
    assert target is not None
    if pointer.mirror_stage:
        registry.set_production_stage(ModelRef(pointer.name, target))
        staged = registry.production_stage(pointer.name)
        if list(staged) != [target]:
            versions = ", ".join(map(str, staged)) or "none"
            raise RegistryConflict(
                f"stage Production of {pointer.name!r} should hold {target} alone, but holds {versions}",
                "somebody else moves stages; try again",
            )
    found = registry.model(pointer.name).aliases.get(pointer.alias)
    if found != target:
        raise RegistryConflict(
            f"alias {pointer.alias!r} of {pointer.name!r} was set to {target} but now names {found}",
            "somebody else moves it; look at 'promotion-gate status'",
        )


def _settle(registry: Registry, event: Event, actor: Actor) -> Literal["done", "undone"] | None:
    """Close a begun event by what the registry shows; None leaves it to the process that began it."""
    pointer = event.pointer
    note = f"closed by {actor.name} at {actor.clock().isoformat(timespec='seconds')}"
    try:
        registry.read_file(event.event_id, RECORD_FILE)
        has_record = True
    except NotInRegistry:
        has_record = False
    if not pointer.moves:
        if not _is_over(event, actor):
            return None
        state: Literal["done", "undone"] = "done" if has_record else "undone"
        registry.finish_event(event.event_id, state, note)
        return state
    production = registry.model(pointer.name).aliases.get(pointer.alias)
    if has_record and production == pointer.to_version:
        _confirm_move(registry, event)
        registry.finish_event(event.event_id, "done", note)
        return "done"
    registry.finish_event(event.event_id, "undone", note)
    return "undone"


def _settled_as_done(registry: Registry, event: Event, actor: Actor, lock: Lock) -> bool:
    """After a failed move: close the event if the registry answers, else leave it to the next command."""
    try:
        if lock.is_worn:
            lock.release()
            lock.take()
        states = {e.event_id: e.state for e in registry.events(event.pointer.name)}
        if states.get(event.event_id) != "begun":
            return states.get(event.event_id) == "done"
        return _settle(registry, event, actor) == "done"
    except GateError:
        return False


def _is_over(event: Event, actor: Actor) -> bool:
    return actor.clock() >= event.at + LEASE


def note_down(registry: Registry, papers: Papers, production: Production, actor: Actor) -> Recorded:
    """Write an event that moves nothing, as the last one of the history.

    No lock is asked for: a verdict must not be lost because somebody is moving the model. An event that
    another one got ahead of meanwhile is written again, so that the last word on a version stands last.
    """
    record = papers.record
    name = record.ref.name
    for attempt in range(NOTE_ATTEMPTS):
        record = replace(record, sequence=_next_sequence(registry.events(name)))
        envelope = sign_record(record, actor.keys.signing)
        pointer = EventPointer(
            name=name,
            version=record.ref.version,
            action=record.action,
            alias=production.alias,
            sequence=record.sequence,
            gate_run_id=record.gate_run_id,
        )
        event_id = registry.begin_event(pointer, envelope, papers.verdict)
        others = [event for event in registry.events(name) if event.event_id != event_id]
        if _next_sequence(others) <= pointer.sequence or attempt == NOTE_ATTEMPTS - 1:
            break
        registry.finish_event(event_id, "undone", "written again: another event came first")
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


def _next_sequence(events: Sequence[Event]) -> int:
    return max((event.pointer.sequence for event in events), default=0) + 1


def _mirrors(production: Production, facts: ModelFacts) -> bool:
    return production.mirror_stage == "always" or (production.mirror_stage == "auto" and facts.uses_stages)


def require_reason(reason: str) -> str:
    """What a person gave as the reason, trimmed.

    Raises
    ------
    UsageError: nothing.
    """
    if not reason.strip():
        raise UsageError("a reason is needed", 'say why: --reason "…"')
    return reason.strip()
