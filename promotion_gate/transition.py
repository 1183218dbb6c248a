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
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, Self

from promotion_gate import __version__
from promotion_gate.core.errors import (
    ArtifactError,
    GateError,
    NoAnswer,
    NotInRegistry,
    RegistryConflict,
    RegistryError,
    SigningError,
    UsageError,
)
from promotion_gate.core.keys import Keyring, TrustedKeys, load_trusted_keys
from promotion_gate.core.policy import Production
from promotion_gate.core.record import now, sign_record, whoami
from promotion_gate.core.types import NO_DIGEST, Action, AuditRecord, ModelRef, Outcome, Transition
from promotion_gate.core.verdict_summary import VerdictSummary, sign_verdict
from promotion_gate.registry.interface import (
    RECORD_FILE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    Registry,
)
from promotion_gate.vouching import (
    DEFAULT_PRODUCTION,
    HistoryEntry,
    artifact_digest,
    both,
    changed,
    done_moves,
    entries,
    last_verdict,
    look,
    read_record,
    read_verdict_file,
    require_not_revoked,
    vouch,
)

LEASE = timedelta(seconds=120)
"""How long a lock holds when its owner dies."""

NOTE_ATTEMPTS = 5
"""How often an event that moves nothing is written anew; past that, events in a tie stand by time and id."""

UNSAFE_UNSIGNED = "unsafe_unsigned"
"""Stands in the record of a rollback to a version that no signed record vouches for."""


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
    dead processes that were finished or undone. ``verdict`` is the signed verdict that the event rests on.
    """

    record: AuditRecord
    event_id: str
    envelope: bytes = field(repr=False)
    notes: Sequence[str] = ()
    verdict: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class _Papers:
    """What is about to be recorded, and the signed verdict that it rests on."""

    record: AuditRecord
    verdict: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class _Target:
    """The version to go back to, its digest, and why newer ones were passed over."""

    ref: ModelRef
    digest: str
    notes: Sequence[str] = ()
    unsafe: Sequence[str] = ()


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
    revoked: Sequence[int] = ()


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

    def verified() -> _Papers:
        _require_digest(registry, judged.ref, judged.digest)
        return _papers(judged, "promote", acting)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        _require_champion(facts, production.alias, judged.champion, judged.ref)
        require_not_revoked(registry, judged.ref, judged.digest, events, acting.keys.trusted)

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
    return _note_down(registry, _papers(judged, action, actor), production, actor)


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

    def verified() -> _Papers:
        _require_digest(registry, ref, held.digest)
        verdict = read_verdict_file(registry, event, held)
        return _Papers(_ruling(held, "approve", reason, acting), verdict)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        latest = last_verdict(events, ref.version)
        if latest is None or latest.event_id != event.event_id:
            raise RegistryConflict(f"somebody else has just ruled on {ref}", "look at its history")
        _require_champion(facts, production.alias, held.champion, ref)
        require_not_revoked(registry, ref, held.digest, events, acting.keys.trusted)

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
        event, held = _held_verdict(registry, ref, actor, registry.events(ref.name))
        _require_digest(registry, ref, held.digest)
        papers = _Papers(_ruling(held, "reject", reason, actor), read_verdict_file(registry, event, held))
        return _note_down(registry, papers, production, actor)


def revoke(
    registry: Registry,
    ref: ModelRef,
    *,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
) -> Recorded:
    """Declare a version's bytes unfit for good: nothing returns to them, promotes, serves or verifies them.

    The alias is not moved. Versions with the same bytes under another number are revoked with it.

    Raises
    ------
    UsageError: no reason.
    NotInRegistry: there is no such version.
    """
    actor = actor or Actor.here()
    reason = _require_reason(reason)
    registry.version(ref)
    try:
        digest = artifact_digest(registry, ref)
    except (ArtifactError, NotInRegistry):
        digest = NO_DIGEST  # files that cannot be read are a reason to revoke, not one against it
    record = AuditRecord(
        action="revoke",
        ref=ref,
        digest=digest,
        reason=reason,
        user=actor.user,
        host=actor.host,
        at=actor.clock(),
        gate_version=__version__,
    )
    recorded = _note_down(registry, _Papers(record), production, actor)
    if registry.model(ref.name).aliases.get(production.alias) != ref.version:
        return recorded
    note = f"{ref} is still in production: promotion-gate rollback {ref.name} --reason ..."
    return replace(recorded, notes=(*recorded.notes, note))


def rollback(
    registry: Registry,
    name: str,
    *,
    to: int | None = None,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
    unsafe_unsigned: bool = False,
) -> Recorded:
    """Move the production alias back to the last good version, or to version ``to``.

    Good is a version that was promoted, was neither rejected, revoked nor rolled back from since, whose
    record and verdict are signed by a trusted key and whose artifacts still have the digest in them. ``to``
    may have been rejected or rolled back from. With ``unsafe_unsigned`` it may be a version for which no
    record of a trusted key vouches; history shows that it was gone back to unverified.

    Raises
    ------
    UsageError: no reason, or ``unsafe_unsigned`` without ``to``.
    RegistryConflict: there is nothing to go back to, or somebody else is moving the alias.
    ArtifactError, SigningError: the version asked for by ``to`` does not verify.
    """
    reason = _require_reason(reason)
    if unsafe_unsigned and to is None:
        raise UsageError("a version that nothing vouches for must be named", "add --to VERSION")
    acting = actor or Actor.here()
    facts, events = look(registry, name)
    notes: list[str] = []
    if any(event.state == "begun" for event in events):
        notes += recover(registry, name, production, acting)
        facts, events = look(registry, name)
    current = facts.aliases.get(production.alias)

    def verified() -> _Papers:
        found = _go_back_to(
            registry, name, to, current, events, production.alias, acting, unsafe_unsigned=unsafe_unsigned
        )
        notes.extend(found.notes)
        record = AuditRecord(
            action="rollback",
            ref=found.ref,
            digest=found.digest,
            reason=reason,
            user=acting.user,
            host=acting.host,
            at=acting.clock(),
            gate_version=__version__,
            unsafe=found.unsafe,
            champion=current,
        )
        return _Papers(record)

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
    return entries(registry, registry.events(name), keys)


def status(
    registry: Registry,
    name: str,
    production: Production = DEFAULT_PRODUCTION,
    trusted: TrustedKeys | None = None,
) -> StatusFacts:
    """What is in production, and what waits. Moves and finishes nothing."""
    keys = trusted or load_trusted_keys()
    facts, events = look(registry, name)
    version = facts.aliases.get(production.alias)
    moves = done_moves(events, production.alias)
    last = moves[-1:]
    versions = {event.pointer.version for event in events}
    latest = [last_verdict(events, v) for v in sorted(versions)]
    held = [event for event in latest if event is not None and event.pointer.action == "hold"]
    told = entries(registry, [*last, *held], keys)
    return StatusFacts(
        name=name,
        alias=production.alias,
        version=version,
        last_move=told[0] if last else None,
        moved_elsewhere=version != (last[0].pointer.to_version if last else None),
        held=told[len(last) :],
        unfinished=[event for event in events if event.state == "begun"],
        in_production_stage=registry.production_stage(name) if facts.uses_stages else None,
        revoked=sorted(
            {e.pointer.version for e in events if e.pointer.action == "revoke" and e.state == "done"}
        ),
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
    moves = done_moves(events, production.alias)
    if not moves:
        return ""
    left_at = moves[-1].pointer.to_version
    if version != left_at:
        raise RegistryConflict(
            f"alias {production.alias!r} names {_said(version)}, but the last move in the gate's history left"
            f" it at {_said(left_at)}, so there is nothing trusted to compare with",
            "put it back with 'promotion-gate rollback'",
        )
    return read_record(registry, moves[-1], actor.keys.trusted).digest


def _move(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    verified: Callable[[], _Papers],
    still: Callable[[ModelFacts, Sequence[Event]], None],
    notes: Sequence[str],
) -> Recorded:
    """Verify, and under the lock check once more, write the intent, move, read back, finish.

    ``verified`` fetches and checks the bytes and says what is to be recorded; ``still`` raises when what
    the decision rested on has changed. The lock is taken beside the former, and anew where that took long.
    """
    alias = production.alias
    with _Lock(registry, name, actor) as lock:
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
        except GateError as error:
            if isinstance(error, NoAnswer) and not _has_arrived(registry, event):
                lock.keep()
                raise NoAnswer(
                    error.what,
                    f"whether {ref.name!r} was moved will show: the next command settles it once the lock of"
                    f" this one is over, within {LEASE.total_seconds():.0f} s",
                ) from None
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


def _has_arrived(registry: Registry, event: Event) -> bool:
    """Whether the alias is where a move of unknown fate meant it to be; else it may get there yet."""
    pointer = event.pointer
    try:
        return registry.model(pointer.name).aliases.get(pointer.alias) == pointer.to_version
    except GateError:
        return False


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


def _note_down(registry: Registry, papers: _Papers, production: Production, actor: Actor) -> Recorded:
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


def _go_back_to(
    registry: Registry,
    name: str,
    to: int | None,
    current: int | None,
    events: Sequence[Event],
    alias: str,
    actor: Actor,
    *,
    unsafe_unsigned: bool = False,
) -> _Target:
    trusted = actor.keys.trusted
    if to is not None:
        ref = ModelRef(name, to)
        if to == current:
            raise RegistryConflict(f"{ref} is in production already")
        vouched = vouch(registry, ref, events, alias, trusted)
        if unsafe_unsigned and isinstance(vouched.broken, SigningError):
            note = f"{ref} is UNVERIFIED: {vouched.broken.what}"
            return _Target(ref, artifact_digest(registry, ref), [note], [UNSAFE_UNSIGNED])
        return _Target(ref, vouched.digest)
    skipped = []
    for version in good_versions(events, alias, current):
        ref = ModelRef(name, version)
        if _rejected_since(registry, version, events, actor):
            skipped.append(f"{ref} passed over: it was rejected since; '--to {version}' insists")
            continue
        vouched = vouch(registry, ref, events, alias, trusted)
        if vouched.broken is None:
            return _Target(ref, vouched.digest, skipped)
        skipped.append(f"{ref} passed over: {vouched.broken}")
    what = f"{name!r} has no earlier good version to go back to; nothing was moved"
    raise RegistryConflict(what, "; ".join(skipped))


def _rejected_since(registry: Registry, version: int, events: Sequence[Event], actor: Actor) -> bool:
    """Whether the last word on a version is a rejection; one that anybody could have forged is none."""
    last = last_verdict(events, version)
    if last is None or last.pointer.action != "reject":
        return False
    try:
        read_record(registry, last, actor.keys.trusted)
    except SigningError:
        return False
    return True


def good_versions(events: Sequence[Event], alias: str, current: int | None) -> list[int]:
    """The versions that a rollback may return to, the first choice first.

    Promotions stack up; a rollback takes off the version it leaves, and everything above the one it
    returns to.
    """
    stack: list[int] = []
    for event in done_moves(events, alias):
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


def _held_verdict(
    registry: Registry, ref: ModelRef, actor: Actor, events: Sequence[Event]
) -> tuple[Event, AuditRecord]:
    event = last_verdict(events, ref.version)
    if event is None:
        raise UsageError(f"{ref} has not been judged", "run 'promotion-gate run' on it first")
    if event.pointer.action != "hold":
        word = {"reject": "rejected", "promote": "promoted", "approve": "approved"}[event.pointer.action]
        raise UsageError(f"{ref} is not held: it was {word}", "gate it again for a new verdict")
    return event, read_record(registry, event, actor.keys.trusted)


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
        raise changed(ref, expected, found)


def _require_champion(facts: ModelFacts, alias: str, champion: int | None, ref: ModelRef) -> None:
    current = facts.aliases.get(alias)
    if current != champion:
        raise RegistryConflict(
            f"the verdict on {ref} was made against {_said(champion)}, but production has {_said(current)}",
            "gate it again",
        )


def _said(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _papers(judged: Judged, action: Action, actor: Actor) -> _Papers:
    at = actor.clock()
    summary = VerdictSummary(
        ref=judged.ref,
        digest=judged.digest,
        outcome=judged.outcome,
        policy_digest=judged.policy_digest,
        card_sha256=judged.card_sha256,
        gate_run_id=judged.gate_run_id,
        gate_version=__version__,
        at=at,
    )
    verdict = sign_verdict(summary, actor.keys.signing)
    record = AuditRecord(
        action=action,
        ref=judged.ref,
        digest=judged.digest,
        reason=judged.reason,
        user=actor.user,
        host=actor.host,
        at=at,
        gate_version=__version__,
        outcome=judged.outcome,
        policy_digest=judged.policy_digest,
        card_sha256=judged.card_sha256,
        gate_run_id=judged.gate_run_id,
        unsafe=tuple(judged.unsafe),
        champion=judged.champion,
        verdict_sha256=hashlib.sha256(verdict).hexdigest(),
    )
    return _Papers(record, verdict)


def _ruling(held: AuditRecord, action: Action, reason: str, actor: Actor) -> AuditRecord:
    """A person's word on what the gate held: the verdict's facts, with that person's name and reason."""
    return replace(held, action=action, reason=reason, user=actor.user, host=actor.host, at=actor.clock())
