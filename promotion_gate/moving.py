"""Moves that survive their process: begun, carried out, read back, closed; and recovery of what was not.

An event is begun with its signed record before anything moves, and finished after the registry was read back.
An event that its process did not live to finish is completed or marked undone by the next command, which
compares the alias with what the event meant to do.

Moves of one model exclude each other by a lock with a lease. What a decision rested on (the champion, the
last verdict, the version to go back to) is read again under the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from promotion_gate.core.errors import GateError, NoAnswer, NotInRegistry, RegistryConflict, SigningError
from promotion_gate.core.production import Production
from promotion_gate.core.record import sign_record
from promotion_gate.core.types import NO_DIGEST, ModelRef, Transition
from promotion_gate.foreign import note_foreign_moves, note_seen, require_settled
from promotion_gate.journal import (
    LEASE,
    Actor,
    Lock,
    Papers,
    Recorded,
    next_sequence,
    note_down,
    require_no_live_holder,
    unfinished,
)
from promotion_gate.registry.interface import RECORD_FILE, Event, EventPointer, ModelFacts, Registry
from promotion_gate.vouching import DEFAULT_PRODUCTION, both, done_moves, look, read_record

UNDER_LOCK = ("foreign", "recover")
"""Entries that move nothing but are written under the lock: whoever holds it knows that their writer died."""


def look_closely(
    registry: Registry, name: str, production: Production, actor: Actor
) -> tuple[ModelFacts, Sequence[Event], list[str]]:
    """The model's aliases and history once what was left undone is settled and what was hidden is told.

    The third is what was done for it, a line each. Whatever becomes of the command, a change past the gate
    stands in the history afterwards.

    Raises
    ------
    RegistryConflict: a process that is alive is moving production.
    """
    facts, events = look(registry, name)
    lines: list[str] = []
    if any(event.state == "begun" for event in events):
        lines += recover(registry, name, production, actor)
        facts, events = look(registry, name)
    moves = done_moves(events, production.alias)
    if moves and moves[-1].pointer.to_version != facts.aliases.get(production.alias):
        noted = note_foreign_moves(registry, name, production, actor)
        lines += [recorded.record.reason for recorded in noted]
        facts, events = look(registry, name)
    return facts, events, lines


def move(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    verified: Callable[[], Papers],
    still: Callable[[ModelFacts, Sequence[Event]], None],
    notes: Sequence[str],
    *,
    settles: bool = False,
) -> Recorded:
    """Verify, and under the lock check once more, write the intent, move, read back, finish.

    ``verified`` fetches and checks the bytes and says what is to be recorded; ``still`` raises when what
    the decision rested on has changed. The lock is taken beside the former, and anew where that took long.
    A change past the gate is written down before it is overwritten, and stops every move but one that
    ``settles`` it: a rollback, or a person's word on the very version that is there.

    Raises
    ------
    RegistryConflict: somebody else is moving production, or has moved it past the gate.
    SigningError: the record of the last move is missing, altered or by a key that is not trusted.
    """
    alias = production.alias
    with Lock(registry, name, actor) as lock:
        papers, (facts, events) = both(registry, verified, lock.take_and_look)
        if lock.is_worn:
            lock.release()
            facts, events = lock.take_and_look()
        if any(event.state == "begun" and event.pointer.moves for event in events):
            raise RegistryConflict(f"another move of {name!r} was begun meanwhile", "try again")
        ref = papers.record.ref
        noted = note_seen(registry, name, production, actor, facts, events)
        if noted:
            events = registry.events(name)
        if not settles and facts.aliases.get(alias) != ref.version:
            require_settled(registry, name, facts.aliases.get(alias), production, events)
            for last in done_moves(events, alias)[-1:]:
                read_record(registry, last, actor.keys.trusted)
        still(facts, events)
        mirrors = _mirrors(production, facts)
        transition = Transition(ref.name, alias, facts.aliases.get(alias), ref.version, mirrors)
        sequence = next_sequence(events)
        record = replace(
            papers.record, transition=transition, sequence=sequence, unfinished=unfinished(events)
        )
        envelope = sign_record(record, actor.keys.signing)
        pointer = EventPointer(
            name=ref.name,
            version=ref.version,
            action=record.action,
            alias=alias,
            sequence=sequence,
            from_version=transition.from_version,
            to_version=transition.to_version,
            mirror_stage=mirrors,
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
    return Recorded(
        record, event_id, envelope, (*notes, *(seen.record.reason for seen in noted)), papers.verdict
    )


def recover(
    registry: Registry, name: str, production: Production = DEFAULT_PRODUCTION, actor: Actor | None = None
) -> list[str]:
    """Finish or undo what a dead process began on this model; says what was done, a line each.

    What was done stands in the history as well, as an entry ``recover`` for each event that was closed.

    Raises
    ------
    RegistryConflict: the process is alive: its lock still holds.
    """
    open_events = [event for event in registry.events(name) if event.state == "begun"]
    if not open_events:
        return []
    actor = actor or Actor.here()
    if not any(event.pointer.moves or _is_dead(event, actor) for event in open_events):
        return []
    with Lock(registry, name, actor).take():
        begun = [event for event in registry.events(name) if event.state == "begun"]
        # Whether an earlier recovery got to its end shows only before this one closes what it was about.
        begun.sort(key=lambda event: event.pointer.action != "recover")
        return [line for event in begun for line in _recovered(registry, event, actor)]


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done to bring history and production together, a line each, and what is left to a person."""

    lines: Sequence[str]
    left: RegistryConflict | None = None


def make_whole(
    registry: Registry, name: str, production: Production = DEFAULT_PRODUCTION, actor: Actor | None = None
) -> Mended:
    """Bring what history tells and what is in production together, as far as no person is needed.

    Recovers, takes away the lock of a dead process, and writes down changes past the gate.

    Raises
    ------
    NotInRegistry: there is no such model.
    RegistryConflict: somebody alive is moving it.
    """
    actor = actor or Actor.here()
    registry.model(name)
    holder = require_no_live_holder(registry, name, actor)
    lines = recover(registry, name, production, actor)
    if holder is not None and not lines:
        with Lock(registry, name, actor).take():
            lines.append(f"the lock of {name!r} that {holder.who} left behind was taken away")
    noted = note_foreign_moves(registry, name, production, actor)
    lines += [recorded.record.reason for recorded in noted]
    facts, events = look(registry, name)
    try:
        require_settled(registry, name, facts.aliases.get(production.alias), production, events)
    except RegistryConflict as conflict:
        return Mended(lines, conflict)
    return Mended(lines)


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


def _recovered(
    registry: Registry, event: Event, actor: Actor, why: str = "begun by a process that died"
) -> list[str]:
    """Close one begun event, and tell it in an entry that is begun before and finished after."""
    state = state_of(registry, event, actor)
    if state is None:
        return []
    pointer = event.pointer
    if state == "done" and pointer.moves:
        _confirm_move(registry, event)
    note = f"closed by {actor.name} at {actor.clock().isoformat(timespec='seconds')}"

    def close() -> None:
        registry.finish_event(event.event_id, state, note)

    if pointer.action == "recover":
        close()  # what it was about has been closed by now, or will be with an entry of its own
        return []
    line = f"{pointer.action} of {pointer.name}/{pointer.version}, {why}: {state}"
    record = actor.record("recover", ModelRef(pointer.name, pointer.version), NO_DIGEST, line)
    note_down(registry, Papers(replace(record, about=event.event_id)), pointer.alias, actor, close)
    return [line]


def state_of(registry: Registry, event: Event, actor: Actor) -> Literal["done", "undone"] | None:
    """How a begun event is to be closed, by what the registry shows; None leaves it to its own process."""
    pointer = event.pointer
    if not pointer.moves and not _is_dead(event, actor):
        return None
    if not _has_record(registry, event):
        return "undone"
    if pointer.action == "recover":
        return "done" if _closed_what_it_is_about(registry, event, actor) else "undone"
    if not pointer.moves:
        return "done"
    if registry.model(pointer.name).aliases.get(pointer.alias) != pointer.to_version:
        return "undone"
    return "done"


def _has_record(registry: Registry, event: Event) -> bool:
    try:
        registry.read_file(event.event_id, RECORD_FILE)
    except NotInRegistry:
        return False
    return True


def _closed_what_it_is_about(registry: Registry, event: Event, actor: Actor) -> bool:
    try:
        about = read_record(registry, event, actor.keys.trusted).about
    except SigningError:
        return False
    return any(e.event_id == about and e.state != "begun" for e in registry.events(event.pointer.name))


def _is_dead(event: Event, actor: Actor) -> bool:
    """Whether the process behind an event that moves nothing must be gone, for one who gets the lock."""
    return event.pointer.action in UNDER_LOCK or actor.clock() >= event.at + LEASE


def _has_arrived(registry: Registry, event: Event) -> bool:
    """Whether the alias is where a move of unknown fate meant it to be; else it may get there yet."""
    pointer = event.pointer
    try:
        return registry.model(pointer.name).aliases.get(pointer.alias) == pointer.to_version
    except GateError:
        return False


def _settled_as_done(registry: Registry, event: Event, actor: Actor, lock: Lock) -> bool:
    """After a failed move: close the event if the registry answers, else leave it to the next command."""
    try:
        if lock.is_worn:
            lock.release()
            lock.take()
        states = {e.event_id: e.state for e in registry.events(event.pointer.name)}
        if states.get(event.event_id) != "begun":
            return states.get(event.event_id) == "done"
        state = state_of(registry, event, actor)
        if state == "done":
            _confirm_move(registry, event)
            registry.finish_event(event.event_id, state)
        elif state is not None:
            _recovered(registry, event, actor, "which failed")
        return state == "done"
    except GateError:
        return False


def _mirrors(production: Production, facts: ModelFacts) -> bool:
    return production.mirror_stage == "always" or (production.mirror_stage == "auto" and facts.uses_stages)
