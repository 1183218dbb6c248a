"""Promotion, rollback and the human's word: the only code that moves an alias or a stage.

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
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Self, TypeVar

from promotion_gate import __version__
from promotion_gate.core.errors import (
    ArtifactError,
    GateError,
    NotInRegistry,
    RegistryConflict,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.keys import Keyring, TrustedKeys, load_trusted_keys
from promotion_gate.core.policy import Production
from promotion_gate.core.record import now, sign_record, verify_record, whoami
from promotion_gate.core.types import Action, AuditRecord, ModelRef, Outcome, Transition
from promotion_gate.registry.interface import (
    RECORD_FILE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    Registry,
)

LEASE = timedelta(seconds=120)
"""How long a lock holds when its owner dies."""

NOTE_ATTEMPTS = 5
"""How often an event that moves nothing is written anew; past that, events in a tie stand by time and id."""

DEFAULT_PRODUCTION = Production()
_A = TypeVar("_A")
_B = TypeVar("_B")


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
class Judged:
    """A verdict on one version, as it goes into the record.

    ``digest`` is that of the artifacts that were examined. ``champion`` is the version that was in
    production then.
    """

    ref: ModelRef
    digest: str
    outcome: Outcome
    reason: str
    champion: int | None
    policy_digest: str
    card_sha256: str = ""
    gate_run_id: str = ""
    unsafe: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event that is now part of history, with its signed form.

    ``notes`` are things that the person at the terminal should know: versions passed over, events of
    dead processes that were finished or undone.
    """

    record: AuditRecord
    event_id: str
    envelope: bytes = field(repr=False)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event with its verified record, or with what is wrong with the record."""

    event: Event
    record: AuditRecord | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What is in production, how it came there and what waits.

    ``last_move`` is the last finished event that moved the alias. ``moved_elsewhere`` is set when the
    alias is not where that event left it. ``held`` are versions that wait for a person.
    ``in_production_stage`` is None where the model uses no stages.
    """

    name: str
    alias: str
    version: int | None
    last_move: HistoryEntry | None
    moved_elsewhere: bool
    held: Sequence[HistoryEntry]
    unfinished: Sequence[Event]
    in_production_stage: Sequence[int] | None


def promote(
    registry: Registry,
    judged: Judged,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Move the production alias to a version whose verdict is PROMOTE.

    Raises
    ------
    UsageError: the verdict is another.
    ArtifactError: the artifacts are not those that were examined.
    RegistryConflict: production is no longer the champion that the verdict was made against, or somebody
        else is moving it.
    """
    if judged.outcome is not Outcome.PROMOTE:
        raise UsageError(f"{judged.ref} cannot be promoted: its verdict is {judged.outcome}")
    actor = acting = actor or Actor.here()
    notes = recover(registry, judged.ref.name, production, actor)

    def verified() -> AuditRecord:
        _require_digest(registry, judged.ref, judged.digest)
        return _record(judged, "promote", acting)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        _require_champion(facts, production.alias, judged.champion, judged.ref)

    return _move(registry, judged.ref.name, production, actor, verified, still, notes)


def record_verdict(
    registry: Registry,
    judged: Judged,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Write a verdict that moves nothing into history: a rejection, or a version held for a person.

    A PROMOTE that is not to be carried out is held too: ``approve`` can carry it out later.
    """
    actor = actor or Actor.here()
    action: Action = "reject" if judged.outcome is Outcome.REJECT else "hold"
    return _note_down(registry, _record(judged, action, actor), production, actor)


def approve(
    registry: Registry,
    ref: ModelRef,
    *,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Promote a version that the gate held, on a person's word.

    Raises
    ------
    UsageError: no reason, or the version is not held.
    SigningError: the verdict's record is missing, altered or by a key that is not trusted.
    ArtifactError: the artifacts are not those that were held.
    RegistryConflict: production has moved since the verdict.
    """
    actor = acting = actor or Actor.here()
    reason = _require_reason(reason)
    notes = recover(registry, ref.name, production, actor)
    event, held = _held_verdict(registry, ref, actor, registry.events(ref.name))

    def verified() -> AuditRecord:
        _require_digest(registry, ref, held.digest)
        return _ruling(held, "approve", reason, acting)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        latest = _last_verdict(events, ref.version)
        if latest is None or latest.event_id != event.event_id:
            raise RegistryConflict(f"somebody else has just ruled on {ref}", "look at its history")
        _require_champion(facts, production.alias, held.champion, ref)

    return _move(registry, ref.name, production, actor, verified, still, notes)


def reject(
    registry: Registry,
    ref: ModelRef,
    *,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Refuse a version that the gate held, on a person's word. Raises as :func:`approve` does."""
    actor = actor or Actor.here()
    reason = _require_reason(reason)
    recover(registry, ref.name, production, actor)
    with _Lock(registry, ref.name, actor).take():
        _, held = _held_verdict(registry, ref, actor, registry.events(ref.name))
        _require_digest(registry, ref, held.digest)
        return _note_down(registry, _ruling(held, "reject", reason, actor), production, actor)


def rollback(
    registry: Registry,
    name: str,
    *,
    to: int | None = None,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Move the production alias back to the last good version, or to version ``to``.

    Good is a version that was promoted, was neither rejected nor rolled back from since, whose record is
    signed by a trusted key and whose artifacts still have the digest in it. ``to`` may have been either.

    Raises
    ------
    UsageError: no reason.
    RegistryConflict: there is nothing to go back to, or somebody else is moving the alias.
    ArtifactError, SigningError: the version asked for by ``to`` does not verify.
    """
    reason = _require_reason(reason)
    acting = actor or Actor.here()
    facts, events = _look(registry, name)
    notes: list[str] = []
    if any(event.state == "begun" for event in events):
        notes += recover(registry, name, production, acting)
        facts, events = _look(registry, name)
    current = facts.aliases.get(production.alias)

    def verified() -> AuditRecord:
        target, digest, skipped = _go_back_to(registry, name, to, current, events, production.alias, acting)
        notes.extend(skipped)
        return AuditRecord(
            action="rollback",
            ref=target,
            digest=digest,
            reason=reason,
            user=acting.user,
            host=acting.host,
            at=acting.clock(),
            gate_version=__version__,
            champion=current,
        )

    def still(facts_now: ModelFacts, events_now: Sequence[Event]) -> None:
        if facts_now.aliases.get(production.alias) != current or _moves(events_now) != _moves(events):
            raise RegistryConflict(f"the production version of {name!r} has just been moved", "look again")

    return _move(registry, name, production, acting, verified, still, notes)


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
    with _Lock(registry, name, actor).take():
        return [
            f"{event.pointer.action} of {name}/{event.pointer.version}, begun by a process that died: {state}"
            for event in registry.events(name)
            if event.state == "begun" and (state := _settle(registry, event, actor)) is not None
        ]


def history(registry: Registry, name: str, trusted: TrustedKeys | None = None) -> list[HistoryEntry]:
    """Every event of a model, oldest first, each with its record verified."""
    keys = trusted or load_trusted_keys()
    return _entries(registry, registry.events(name), keys)


def status(
    registry: Registry,
    name: str,
    production: Production = DEFAULT_PRODUCTION,
    trusted: TrustedKeys | None = None,
) -> StatusFacts:
    """What is in production, and what waits. Moves and finishes nothing."""
    keys = trusted or load_trusted_keys()
    facts, events = _look(registry, name)
    version = facts.aliases.get(production.alias)
    moves = _done_moves(events, production.alias)
    last = moves[-1:]
    versions = {event.pointer.version for event in events}
    latest = [_last_verdict(events, v) for v in sorted(versions)]
    held = [event for event in latest if event is not None and event.pointer.action == "hold"]
    entries = _entries(registry, [*last, *held], keys)
    return StatusFacts(
        name=name,
        alias=production.alias,
        version=version,
        last_move=entries[0] if last else None,
        moved_elsewhere=version != (last[0].pointer.to_version if last else None),
        held=entries[len(last) :],
        unfinished=[event for event in events if event.state == "begun"],
        in_production_stage=registry.production_stage(name) if facts.uses_stages else None,
    )


def vouched_digest(
    registry: Registry,
    name: str,
    version: int | None,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> str:
    """The digest that the signed history states of ``version`` in production; empty where it states none.

    The alias alone proves nothing: a candidate is compared with the version it names, and whoever took the
    alias away, or set it to a weak version, would take the comparison away. Where the gate has never moved
    this alias there is no history to disagree with: the model was in production before the gate was.

    Raises
    ------
    RegistryConflict: the alias is not where the last finished move left it, or a move is not finished.
    SigningError: the record of that move is missing, altered or by a key that is not trusted.
    """
    actor = actor or Actor.here()
    events = registry.events(name)
    if any(event.state == "begun" and event.pointer.moves for event in events):
        raise RegistryConflict(
            f"a move of {name!r} was begun and has not ended, so nothing says what is in production",
            "wait for it, or let the next promotion or rollback settle it",
        )
    moves = _done_moves(events, production.alias)
    if not moves:
        return ""
    left_at = moves[-1].pointer.to_version
    if version != left_at:
        raise RegistryConflict(
            f"alias {production.alias!r} names {_said(version)}, but the last move in the gate's history left"
            f" it at {_said(left_at)}, so there is nothing trusted to compare with",
            "put it back with 'promotion-gate rollback'",
        )
    return _read_record(registry, moves[-1], actor.keys.trusted).digest


def artifact_digest(registry: Registry, ref: ModelRef) -> str:
    """SHA-256 over the version's artifacts as they are in the registry at this moment."""
    from promotion_gate.evidence.digest import digest_folder

    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        registry.download(ref, Path(folder))
        _, digest = digest_folder(Path(folder))
    return digest


def _move(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    verified: Callable[[], AuditRecord],
    still: Callable[[ModelFacts, Sequence[Event]], None],
    notes: Sequence[str],
) -> Recorded:
    """Verify, and under the lock check once more, write the intent, move, read back, finish.

    ``verified`` fetches and checks the bytes and says what is to be recorded; ``still`` raises when what
    the decision rested on has changed. The lock is taken beside the former, and anew where that took long.
    """
    alias = production.alias
    with _Lock(registry, name, actor) as lock:
        record, (facts, events) = _both(registry, verified, lock.take_and_look)
        if lock.is_worn:
            lock.release()
            facts, events = lock.take_and_look()
        if any(event.state == "begun" and event.pointer.moves for event in events):
            raise RegistryConflict(f"another move of {name!r} was begun meanwhile", "try again")
        still(facts, events)
        ref = record.ref
        transition = Transition(ref.name, alias, facts.aliases.get(alias), ref.version)
        record = replace(record, transition=transition)
        envelope = sign_record(record, actor.keys.signing)
        pointer = EventPointer(
            name=ref.name,
            version=ref.version,
            action=record.action,
            alias=alias,
            sequence=_next_sequence(events),
            from_version=transition.from_version,
            to_version=transition.to_version,
            mirror_stage=_mirrors(production, facts),
            gate_run_id=record.gate_run_id,
        )
        event_id = registry.begin_event(pointer, envelope)
        event = Event(event_id, pointer, "begun", record.at)
        try:
            if lock.is_worn:
                raise RegistryConflict(f"the registry took too long to move {ref.name!r}", "try again")
            registry.set_alias(ref.name, alias, ref.version)
            _confirm_move(registry, event)
            _both(registry, lambda: registry.finish_event(event_id, "done"), lock.give_back)
        except GateError:
            if not _settled_as_done(registry, event, actor, lock):
                raise
    return Recorded(record, event_id, envelope, tuple(notes))


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


def _settled_as_done(registry: Registry, event: Event, actor: Actor, lock: _Lock) -> bool:
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


def _note_down(registry: Registry, record: AuditRecord, production: Production, actor: Actor) -> Recorded:
    """Write an event that moves nothing, as the last one of the history.

    No lock is asked for: a verdict must not be lost because somebody is moving the model. An event that
    another one got ahead of meanwhile is written again, so that the last word on a version stands last.
    """
    envelope = sign_record(record, actor.keys.signing)
    name = record.ref.name
    for attempt in range(NOTE_ATTEMPTS):
        pointer = EventPointer(
            name=name,
            version=record.ref.version,
            action=record.action,
            alias=production.alias,
            sequence=_next_sequence(registry.events(name)),
            gate_run_id=record.gate_run_id,
        )
        event_id = registry.begin_event(pointer, envelope)
        others = [event for event in registry.events(name) if event.event_id != event_id]
        if _next_sequence(others) <= pointer.sequence or attempt == NOTE_ATTEMPTS - 1:
            break
        registry.finish_event(event_id, "undone", "written again: another event came first")
    registry.finish_event(event_id, "done")
    return Recorded(record, event_id, envelope)


class _Lock:
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
        return _look(self._registry, self._name)

    def release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            self._registry.release_lock(self._name, holder)

    @property
    def is_worn(self) -> bool:
        return self._holder is None or self._actor.clock() >= self._holder.until - LEASE / 2


def _look(registry: Registry, name: str) -> tuple[ModelFacts, Sequence[Event]]:
    return _both(registry, lambda: registry.model(name), lambda: registry.events(name))


def _both(registry: Registry, first: Callable[[], _A], second: Callable[[], _B]) -> tuple[_A, _B]:
    """Both answers, asked for at once where the registry gains by it."""
    if not registry.concurrent:
        return first(), second()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(second)
        return first(), later.result()


def _go_back_to(
    registry: Registry,
    name: str,
    to: int | None,
    current: int | None,
    events: Sequence[Event],
    alias: str,
    actor: Actor,
) -> tuple[ModelRef, str, list[str]]:
    """The version to go back to, its digest, and why newer ones were passed over."""
    if to is not None:
        if to == current:
            raise RegistryConflict(f"{name}/{to} is in production already")
        return ModelRef(name, to), _verified_digest(registry, name, to, events, alias, actor), []
    skipped = []
    for version in good_versions(events, alias, current):
        if _rejected_since(registry, version, events, actor):
            skipped.append(f"{name}/{version} passed over: it was rejected since; '--to {version}' insists")
            continue
        try:
            digest = _verified_digest(registry, name, version, events, alias, actor)
        except (ArtifactError, SigningError, NotInRegistry) as error:
            skipped.append(f"{name}/{version} passed over: {error}")
        else:
            return ModelRef(name, version), digest, skipped
    what = f"{name!r} has no earlier good version to go back to; nothing was moved"
    raise RegistryConflict(what, "; ".join(skipped))


def _rejected_since(registry: Registry, version: int, events: Sequence[Event], actor: Actor) -> bool:
    """Whether the last word on a version is a rejection; one that anybody could have forged is none."""
    last = _last_verdict(events, version)
    if last is None or last.pointer.action != "reject":
        return False
    try:
        _read_record(registry, last, actor.keys.trusted)
    except SigningError:
        return False
    return True


def good_versions(events: Sequence[Event], alias: str, current: int | None) -> list[int]:
    """The versions that a rollback may return to, the first choice first.

    Promotions stack up; a rollback takes off the version it leaves, and everything above the one it
    returns to.
    """
    stack: list[int] = []
    for event in _done_moves(events, alias):
        pointer = event.pointer
        target = pointer.to_version
        assert target is not None
        if pointer.action == "rollback":
            stack = [v for v in stack if v != pointer.from_version]
            stack = stack[: stack.index(target)] if target in stack else stack
        else:
            stack = [v for v in stack if v != target]
        stack.append(target)
    if current in stack:
        stack = stack[: stack.index(current)]
    return stack[::-1]


def _verified_digest(
    registry: Registry, name: str, version: int, events: Sequence[Event], alias: str, actor: Actor
) -> str:
    """The digest in the version's signed promotion record, after the artifacts were found to have it."""
    promotions = [
        event
        for event in _done_moves(events, alias)
        if event.pointer.action != "rollback" and event.pointer.to_version == version
    ]
    if not promotions:
        raise RegistryConflict(
            f"{name}/{version} was never promoted by the gate", "see 'promotion-gate history'"
        )
    ref = ModelRef(name, version)

    def stated() -> str:
        record = _read_record(registry, promotions[-1], actor.keys.trusted)
        return record.digest

    expected, found = _both(registry, stated, lambda: artifact_digest(registry, ref))
    if expected != found:
        raise _changed(ref, expected, found)
    return found


def _read_record(registry: Registry, event: Event, trusted: TrustedKeys) -> AuditRecord:
    """The event's record, verified, and found to be about what the pointer says it is."""
    pointer = event.pointer
    what = f"the {pointer.action} record of {pointer.name}/{pointer.version}"
    try:
        content = registry.read_file(event.event_id, RECORD_FILE)
    except NotInRegistry:
        raise SigningError(f"{what} is missing from run {event.event_id}") from None
    record = verify_record(content, trusted, name=what)
    moved = record.transition
    said = (
        record.action,
        record.ref,
        None if moved is None else (moved.alias, moved.from_version, moved.to_version),
    )
    pointed = (
        pointer.action,
        ModelRef(pointer.name, pointer.version),
        (pointer.alias, pointer.from_version, pointer.to_version) if pointer.moves else None,
    )
    if said != pointed:
        raise SigningError(
            f"{what} speaks of another event", f"the tags of run {event.event_id} were altered"
        )
    return record


def _entries(registry: Registry, events: Sequence[Event], trusted: TrustedKeys) -> list[HistoryEntry]:
    def entry(event: Event) -> HistoryEntry:
        try:
            return HistoryEntry(event, _read_record(registry, event, trusted))
        except SigningError as error:
            return HistoryEntry(event, None, str(error))

    if not registry.concurrent:
        return [entry(event) for event in events]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(entry, events))


def _held_verdict(
    registry: Registry, ref: ModelRef, actor: Actor, events: Sequence[Event]
) -> tuple[Event, AuditRecord]:
    event = _last_verdict(events, ref.version)
    if event is None:
        raise UsageError(f"{ref} has not been judged", "run 'promotion-gate run' on it first")
    if event.pointer.action != "hold":
        word = {"reject": "rejected", "promote": "promoted", "approve": "approved"}[event.pointer.action]
        raise UsageError(f"{ref} is not held: it was {word}", "gate it again for a new verdict")
    return event, _read_record(registry, event, actor.keys.trusted)


def _last_verdict(events: Sequence[Event], version: int) -> Event | None:
    """The last finished ruling on a version, by the gate or by a person."""
    found = [
        event
        for event in events
        if event.state == "done" and event.pointer.version == version and event.pointer.action != "rollback"
    ]
    return found[-1] if found else None


def _done_moves(events: Sequence[Event], alias: str) -> list[Event]:
    return [e for e in events if e.state == "done" and e.pointer.moves and e.pointer.alias == alias]


def _moves(events: Sequence[Event]) -> list[str]:
    return [event.event_id for event in events if event.state == "done" and event.pointer.moves]


def _next_sequence(events: Sequence[Event]) -> int:
    return max((event.pointer.sequence for event in events), default=0) + 1


def _mirrors(production: Production, facts: ModelFacts) -> bool:
    return production.mirror_stage == "always" or (production.mirror_stage == "auto" and facts.uses_stages)


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise UsageError("a reason is needed", 'say why: --reason "…"')
    return reason.strip()


def _require_digest(registry: Registry, ref: ModelRef, expected: str) -> None:
    found = artifact_digest(registry, ref)
    if found != expected:
        raise _changed(ref, expected, found)


def _changed(ref: ModelRef, expected: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"the artifacts of {ref} have changed since they were examined: digest {found[:12]} instead of"
        f" {expected[:12]}",
        "gate the version again",
    )


def _require_champion(facts: ModelFacts, alias: str, champion: int | None, ref: ModelRef) -> None:
    current = facts.aliases.get(alias)
    if current != champion:
        raise RegistryConflict(
            f"the verdict on {ref} was made against {_said(champion)}, but production has {_said(current)}",
            "gate it again",
        )


def _said(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _record(judged: Judged, action: Action, actor: Actor) -> AuditRecord:
    return AuditRecord(
        action=action,
        ref=judged.ref,
        digest=judged.digest,
        reason=judged.reason,
        user=actor.user,
        host=actor.host,
        at=actor.clock(),
        gate_version=__version__,
        outcome=judged.outcome,
        policy_digest=judged.policy_digest,
        card_sha256=judged.card_sha256,
        gate_run_id=judged.gate_run_id,
        unsafe=tuple(judged.unsafe),
        champion=judged.champion,
    )


def _ruling(held: AuditRecord, action: Action, reason: str, actor: Actor) -> AuditRecord:
    """A person's word on what the gate held: the verdict's facts, with that person's name and reason."""
    return replace(held, action=action, reason=reason, user=actor.user, host=actor.host, at=actor.clock())
