"""Back to the last good version: which one that is, and the move to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from promotion_gate.core.errors import RegistryConflict, SigningError, UsageError
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.production import Production
from promotion_gate.core.types import ModelRef
from promotion_gate.foreign import difference, foreign_line, look_for
from promotion_gate.journal import Actor, Papers, Recorded, note_down, require_no_live_holder, require_reason
from promotion_gate.ledger import KeptRecords
from promotion_gate.moving import look_closely, move, state_of
from promotion_gate.registry.interface import Event, ModelFacts, Registry
from promotion_gate.vouching import (
    DEFAULT_PRODUCTION,
    artifact_digest,
    done_moves,
    last_verdict,
    look,
    read_record,
    vouch,
)

UNSAFE_UNSIGNED = "unsafe_unsigned"
"""Stands in the record of a rollback to a version that no signed record vouches for."""


@dataclass(frozen=True, slots=True)
class Target:
    """A version that production may be set to, its digest, and why newer ones were passed over."""

    ref: ModelRef
    digest: str
    notes: Sequence[str] = ()
    unsafe: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback would do now: from which version to which, with what digest.

    ``notes`` are what it would say and write down beside. ``unsafe`` names each switch-off.
    """

    ref: ModelRef
    alias: str
    digest: str
    from_version: int | None
    notes: Sequence[str] = ()
    unsafe: Sequence[str] = ()


def rollback(
    registry: Registry,
    name: str,
    *,
    to: int | None = None,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
    unsafe_unsigned: bool = False,
    alarm_at: datetime | None = None,
    kept: KeptRecords | None = None,
    only_if: Callable[[ModelFacts, Sequence[Event]], None] | None = None,
) -> Recorded:
    """Move the production alias back to the last good version, or to version ``to``.

    Good is a version that was promoted, was neither rejected, revoked nor rolled back from since, whose
    record and verdict are signed by a trusted key and whose artifacts still have the digest in them. ``to``
    may have been rejected or rolled back from. With ``unsafe_unsigned`` it may be a version for which no
    record of a trusted key vouches; history shows that it was gone back to unverified. ``alarm_at`` is when
    the trouble was noticed; :func:`note_restored` ends the time to recovery.

    A change past the gate is written down before it is overwritten.

    Parameters
    ----------
    kept: copies of the history's records on this machine; without, each is fetched.
    only_if: raises where the rollback must not be; asked before anything is fetched and again under the
        lock, with what is there then.

    Raises
    ------
    UsageError: no reason, ``unsafe_unsigned`` without ``to``, or an alarm in the future.
    RegistryConflict: there is nothing to go back to, or somebody else is moving the alias.
    ArtifactError, SigningError: the version asked for by ``to`` does not verify.
    """
    reason = require_reason(reason)
    acting = actor or Actor.here()
    _require_usage(to, acting, unsafe_unsigned=unsafe_unsigned, alarm_at=alarm_at)
    acting.keys.prepare()
    facts, events, notes = look_closely(registry, name, production, acting)
    current = facts.aliases.get(production.alias)
    if only_if is not None:
        only_if(facts, events)

    def verified() -> Papers:
        found = _go_back_to(
            registry, name, to, current, events, production.alias, acting, unsafe_unsigned, kept
        )
        notes.extend(found.notes)
        record = acting.record("rollback", found.ref, found.digest, reason)
        return Papers(replace(record, unsafe=found.unsafe, champion=current, alarm_at=alarm_at))

    def still(facts_now: ModelFacts, events_now: Sequence[Event]) -> None:
        if facts_now.aliases.get(production.alias) != current or _moves(events_now) != _moves(events):
            raise RegistryConflict(f"the production version of {name!r} has just been moved", "look again")
        if only_if is not None:
            only_if(facts_now, events_now)

    return move(registry, name, production, acting, verified, still, notes, settles=True)


def plan_rollback(
    registry: Registry,
    name: str,
    *,
    to: int | None = None,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
    unsafe_unsigned: bool = False,
    kept: KeptRecords | None = None,
) -> RollbackPlan:
    """What :func:`rollback` would do now. The bytes are fetched and verified; nothing is moved or written.

    Raises
    ------
    GateError: as :func:`rollback` does.
    """
    acting = actor or Actor.here()
    _require_usage(to, acting, unsafe_unsigned=unsafe_unsigned)
    facts, events = look(registry, name)
    require_no_live_holder(registry, name, acting)
    notes, supposed = [], []
    for event in events:
        state = state_of(registry, event, acting) if event.state == "begun" else None
        supposed.append(event if state is None else replace(event, state=state, supposed=True))
        if state is not None:
            pointer = event.pointer
            notes.append(
                f"{pointer.action} of {name}/{pointer.version}, begun by a process that died, is {state}"
            )
    current = facts.aliases.get(production.alias)
    seen = look_for(registry, name, current, supposed, production)
    if seen is not None and not seen.settled:
        notes.append(foreign_line(name, difference(production.alias, seen.left, seen.found)))
    found = _go_back_to(
        registry, name, to, current, supposed, production.alias, acting, unsafe_unsigned, kept
    )
    return RollbackPlan(
        found.ref, production.alias, found.digest, current, (*notes, *found.notes), found.unsafe
    )


def note_restored(
    registry: Registry, recorded: Recorded, how: str, actor: Actor | None = None
) -> Recorded | None:
    """End the time to recovery of a rollback now, in a signed entry of its own; None where no alarm was told.

    ``how`` says what was restored: the alias was moved, or a serving endpoint reported the version.
    """
    rolled_back = recorded.record
    if rolled_back.alarm_at is None or rolled_back.transition is None:
        return None
    acting = actor or Actor.here()
    record = acting.record("restored", rolled_back.ref, rolled_back.digest, "")
    took = duration((record.at - rolled_back.alarm_at).total_seconds())
    record = replace(
        record,
        reason=f"time to recovery {took}: {how}",
        about=recorded.event_id,
        alarm_at=rolled_back.alarm_at,
    )
    return note_down(registry, Papers(record), rolled_back.transition.alias, acting)


def duration(seconds: float) -> str:
    """A length of time as people say it: ``12.3 s``, ``4 min 12 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{whole} s"


def _require_usage(
    to: int | None, actor: Actor, *, unsafe_unsigned: bool, alarm_at: datetime | None = None
) -> None:
    if unsafe_unsigned and to is None:
        raise UsageError("a version that nothing vouches for must be named", "add --to VERSION")
    if alarm_at is not None and alarm_at > actor.clock():
        raise UsageError(f"the alarm lies in the future: {alarm_at.isoformat(timespec='seconds')}")


def _go_back_to(
    registry: Registry,
    name: str,
    to: int | None,
    current: int | None,
    events: Sequence[Event],
    alias: str,
    actor: Actor,
    unsafe_unsigned: bool,
    kept: KeptRecords | None,
) -> Target:
    if to is not None:
        if to == current:
            raise RegistryConflict(f"{ModelRef(name, to)} is in production already")
        return vouched_target(
            registry, ModelRef(name, to), events, alias, actor, unsafe_unsigned=unsafe_unsigned, kept=kept
        )
    skipped = []
    for version in good_versions(events, alias, current):
        ref = ModelRef(name, version)
        rejection = rejection_since(events, version)
        if rejection is not None and is_believed(registry, rejection, actor.keys.trusted):
            skipped.append(f"{ref} passed over: it was rejected since; '--to {version}' insists")
            continue
        vouched = vouch(registry, ref, events, alias, actor.keys.trusted, kept=kept)
        if vouched.broken is None:
            return Target(ref, vouched.digest, skipped)
        skipped.append(f"{ref} passed over: {vouched.broken}")
    what = f"{name!r} has no earlier good version to go back to; nothing was moved"
    remedies = [*skipped, *_where_it_was_left(events, alias, current)]
    raise RegistryConflict(what, "; ".join(remedies) or _once_promoted(events, alias, current))


def _once_promoted(events: Sequence[Event], alias: str, current: int | None) -> str:
    """What a person may still name: versions that were in production once and were rolled back from since."""
    moved = {event.pointer.to_version for event in done_moves(events, alias)} - {current, None}
    versions = ", ".join(str(version) for version in sorted(filter(None, moved), reverse=True)[:5])
    if not versions:
        return ""
    return f"rolled back from or rejected since: {versions}; '--to' insists on one, if it still verifies"


def _where_it_was_left(events: Sequence[Event], alias: str, current: int | None) -> list[str]:
    """After a change past the gate to an older version nothing says that the newer one is good or bad."""
    for last in done_moves(events, alias)[-1:]:
        if last.pointer.to_version != current:
            return [f"'--to {last.pointer.to_version}' goes back to where the gate left it"]
    return []


def vouched_target(
    registry: Registry,
    ref: ModelRef,
    events: Sequence[Event],
    alias: str,
    actor: Actor,
    *,
    unsafe_unsigned: bool = False,
    kept: KeptRecords | None = None,
) -> Target:
    """A version that a person named, verified as it is in the registry at this moment.

    Raises
    ------
    ArtifactError: it was revoked, or its bytes have changed.
    SigningError: no record of a trusted key vouches for it, and ``unsafe_unsigned`` was not said.
    """
    vouched = vouch(registry, ref, events, alias, actor.keys.trusted, kept=kept)
    if unsafe_unsigned and isinstance(vouched.broken, SigningError):
        note = f"{ref} is UNVERIFIED: {vouched.broken.what}"
        return Target(ref, artifact_digest(registry, ref), (note,), (UNSAFE_UNSIGNED,))
    return Target(ref, vouched.digest)


def rejection_since(events: Sequence[Event], version: int) -> Event | None:
    """The last word on a version, if it is a rejection."""
    last = last_verdict(events, version)
    return last if last is not None and last.pointer.action == "reject" else None


def is_believed(registry: Registry, event: Event, trusted: TrustedKeys) -> bool:
    """Whether a trusted key signed the event; one that anybody could have forged says nothing."""
    try:
        read_record(registry, event, trusted)
    except SigningError:
        return False
    return True


def good_versions(events: Sequence[Event], alias: str, current: int | None) -> list[int]:
    """The versions that a rollback may return to, the first choice first.

    Promotions stack up; a rollback takes off the version it leaves, and everything above the one it
    returns to. A version that was put there past the gate is not blamed when a rollback leaves it. A person
    who accepts such a change to an older version has gone back to it.
    """
    stack: list[int] = []
    left: int | None = None
    for event in done_moves(events, alias):
        pointer = event.pointer
        target = pointer.to_version
        assert target is not None
        if pointer.action in ("rollback", "accept"):
            if pointer.action == "rollback" and pointer.from_version == left:
                stack = [v for v in stack if v != left]
            stack = stack[: stack.index(target)] if target in stack else stack
        else:
            stack = [v for v in stack if v != target]
        stack.append(target)
        left = target
    if current in stack:
        stack = stack[: stack.index(current)]
    return stack[::-1]


def _moves(events: Sequence[Event]) -> list[str]:
    return [event.event_id for event in events if event.state == "done" and event.pointer.moves]
