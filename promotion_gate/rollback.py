"""Back to the last good version: which one that is, and the move to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promotion_gate import __version__
from promotion_gate.core.errors import RegistryConflict, SigningError, UsageError
from promotion_gate.core.policy import Production
from promotion_gate.core.types import AuditRecord, ModelRef
from promotion_gate.journal import Actor, Papers, Recorded, move, recover, require_reason
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
class _Target:
    """The version to go back to, its digest, and why newer ones were passed over."""

    ref: ModelRef
    digest: str
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
    only_if: Callable[[ModelFacts, Sequence[Event]], None] | None = None,
) -> Recorded:
    """Move the production alias back to the last good version, or to version ``to``.

    Good is a version that was promoted, was neither rejected, revoked nor rolled back from since, whose
    record and verdict are signed by a trusted key and whose artifacts still have the digest in them. ``to``
    may have been rejected or rolled back from. With ``unsafe_unsigned`` it may be a version for which no
    record of a trusted key vouches; history shows that it was gone back to unverified.

    Parameters
    ----------
    only_if: raises where the rollback must not be; asked before anything is fetched and again under the
        lock, with what is there then.

    Raises
    ------
    UsageError: no reason, or ``unsafe_unsigned`` without ``to``.
    RegistryConflict: there is nothing to go back to, or somebody else is moving the alias.
    ArtifactError, SigningError: the version asked for by ``to`` does not verify.
    """
    reason = require_reason(reason)
    if unsafe_unsigned and to is None:
        raise UsageError("a version that nothing vouches for must be named", "add --to VERSION")
    acting = actor or Actor.here()
    facts, events = look(registry, name)
    notes: list[str] = []
    if any(event.state == "begun" for event in events):
        notes += recover(registry, name, production, acting)
        facts, events = look(registry, name)
    current = facts.aliases.get(production.alias)
    if only_if is not None:
        only_if(facts, events)

    def verified() -> Papers:
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
        return Papers(record)

    def still(facts_now: ModelFacts, events_now: Sequence[Event]) -> None:
        if facts_now.aliases.get(production.alias) != current or _moves(events_now) != _moves(events):
            raise RegistryConflict(f"the production version of {name!r} has just been moved", "look again")
        if only_if is not None:
            only_if(facts_now, events_now)

    return move(registry, name, production, acting, verified, still, notes)


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


def _moves(events: Sequence[Event]) -> list[str]:
    return [event.event_id for event in events if event.state == "done" and event.pointer.moves]
