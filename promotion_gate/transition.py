"""Promotion, rollback and the human's word: the only code that moves an alias or a stage.

How a move is carried out so that it survives its process stands in :mod:`promotion_gate.moving`, the way back
in :mod:`promotion_gate.rollback`, and what others did to production in :mod:`promotion_gate.foreign`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from promotion_gate.core.errors import (
    ArtifactError,
    NotInRegistry,
    RegistryConflict,
    SigningError,
    UsageError,
)
from promotion_gate.core.production import Production
from promotion_gate.core.types import NO_DIGEST, Action, AuditRecord, ModelRef, Outcome
from promotion_gate.core.verdict_summary import VerdictSummary, sign_verdict
from promotion_gate.foreign import look_for, note_foreign_moves, require_settled
from promotion_gate.journal import LEASE, Actor, Lock, Papers, Recorded, note_down, require_reason
from promotion_gate.moving import look_closely, make_whole, move, recover
from promotion_gate.registry.interface import Event, ModelFacts, Registry
from promotion_gate.rollback import (
    UNSAFE_UNSIGNED,
    good_versions,
    note_restored,
    plan_rollback,
    rollback,
    vouched_target,
)
from promotion_gate.status import StatusFacts, history, status
from promotion_gate.vouching import (
    DEFAULT_PRODUCTION,
    artifact_digest,
    changed,
    done_moves,
    last_verdict,
    read_record,
    read_verdict_file,
    require_not_revoked,
)

__all__ = [
    "LEASE",
    "UNSAFE_UNSIGNED",
    "Actor",
    "Judged",
    "Recorded",
    "StatusFacts",
    "accept_foreign",
    "approve",
    "artifact_digest",
    "good_versions",
    "history",
    "make_whole",
    "note_foreign_moves",
    "note_restored",
    "plan_rollback",
    "promote",
    "record_verdict",
    "recover",
    "reject",
    "revoke",
    "rollback",
    "status",
    "vouched_digest",
]


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
    baseline_sha256: str = ""


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
    RegistryConflict: production is no longer the champion that the verdict was made against, somebody
        else is moving it, or has moved it past the gate to another version.
    """
    if judged.outcome is not Outcome.PROMOTE:
        raise UsageError(f"{judged.ref} cannot be promoted: its verdict is {judged.outcome}")
    actor = acting = actor or Actor.here()
    _, _, notes = look_closely(registry, judged.ref.name, production, actor)

    def verified() -> Papers:
        _require_digest(registry, judged.ref, judged.digest)
        return _papers(judged, "promote", acting)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        _require_champion(facts, production.alias, judged.champion, judged.ref)
        require_not_revoked(registry, judged.ref, judged.digest, events, acting.keys.trusted)

    return move(registry, judged.ref.name, production, actor, verified, still, notes)


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
    return note_down(registry, _papers(judged, action, actor), production.alias, actor)


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
    RegistryConflict: production has moved since the verdict, or past the gate to another version.
    """
    actor = acting = actor or Actor.here()
    reason = require_reason(reason)
    _, events, notes = look_closely(registry, ref.name, production, actor)
    event, held = _held_verdict(registry, ref, actor, events)

    def verified() -> Papers:
        _require_digest(registry, ref, held.digest)
        verdict = read_verdict_file(registry, event, held)
        return Papers(_ruling(held, "approve", reason, acting), verdict)

    def still(facts: ModelFacts, events: Sequence[Event]) -> None:
        latest = last_verdict(events, ref.version)
        if latest is None or latest.event_id != event.event_id:
            raise RegistryConflict(f"somebody else has just ruled on {ref}", "look at its history")
        _require_champion(facts, production.alias, held.champion, ref)
        require_not_revoked(registry, ref, held.digest, events, acting.keys.trusted)

    return move(registry, ref.name, production, actor, verified, still, notes)


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
    reason = require_reason(reason)
    recover(registry, ref.name, production, actor)
    with Lock(registry, ref.name, actor).take():
        event, held = _held_verdict(registry, ref, actor, registry.events(ref.name))
        _require_digest(registry, ref, held.digest)
        papers = Papers(_ruling(held, "reject", reason, actor), read_verdict_file(registry, event, held))
        return note_down(registry, papers, production.alias, actor)


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
    reason = require_reason(reason)
    registry.version(ref)
    try:
        digest = artifact_digest(registry, ref)
    except (ArtifactError, NotInRegistry):
        digest = NO_DIGEST  # files that cannot be read are a reason to revoke, not one against it
    papers = Papers(actor.record("revoke", ref, digest, reason))
    recorded = note_down(registry, papers, production.alias, actor)
    if registry.model(ref.name).aliases.get(production.alias) != ref.version:
        return recorded
    note = f"{ref} is still in production: promotion-gate rollback {ref.name} --reason ..."
    return replace(recorded, notes=(*recorded.notes, note))


def accept_foreign(
    registry: Registry,
    name: str,
    *,
    reason: str,
    production: Production = DEFAULT_PRODUCTION,
    actor: Actor | None = None,
    unsafe_unsigned: bool = False,
) -> Recorded | None:
    """Let a change past the gate stand, on a person's word; None where there is none.

    The version that the alias names must verify as one that the gate promoted; with ``unsafe_unsigned`` it
    may be a version for which no record of a trusted key vouches, and history shows the switch-off. The
    legacy stage, where it is mirrored, follows the alias.

    Raises
    ------
    UsageError: no reason.
    RegistryConflict: the alias is gone, so that there is nothing to accept, or somebody is moving it.
    ArtifactError, SigningError: the version was revoked, its bytes have changed, or nothing vouches for it.
    """
    acting = actor or Actor.here()
    reason = require_reason(reason)
    facts, events, notes = look_closely(registry, name, production, acting)
    version = facts.aliases.get(production.alias)
    seen = look_for(registry, name, version, events, production)
    if seen is None or seen.settled:
        return None
    if version is None:
        raise RegistryConflict(
            f"alias {production.alias!r} of {name!r} is gone: there is no version to accept",
            "'promotion-gate rollback' goes back to the last good one",
        )

    def verified() -> Papers:
        ref = ModelRef(name, version)
        try:
            target = vouched_target(
                registry, ref, events, production.alias, acting, unsafe_unsigned=unsafe_unsigned
            )
        except SigningError as error:
            raise SigningError(
                error.what, f"gate {ref}, roll back, or let it stand unverified with --unsafe-unsigned"
            ) from None
        notes.extend(target.notes)
        record = acting.record("accept", target.ref, target.digest, reason)
        return Papers(replace(record, unsafe=target.unsafe, champion=version))

    def still(facts_now: ModelFacts, events_now: Sequence[Event]) -> None:
        if facts_now.aliases.get(production.alias) != version:
            raise RegistryConflict(f"the production version of {name!r} has just been moved", "look again")

    return move(registry, name, production, acting, verified, still, notes, settles=True)


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
    RegistryConflict: alias or stage are not where the last finished move left them, or a move is not
        finished.
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
    require_settled(registry, name, version, production, events)
    return read_record(registry, moves[-1], actor.keys.trusted).digest


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


def _papers(judged: Judged, action: Action, actor: Actor) -> Papers:
    record = actor.record(action, judged.ref, judged.digest, judged.reason)
    summary = VerdictSummary(
        ref=judged.ref,
        digest=judged.digest,
        outcome=judged.outcome,
        policy_digest=judged.policy_digest,
        card_sha256=judged.card_sha256,
        gate_run_id=judged.gate_run_id,
        gate_version=record.gate_version,
        at=record.at,
    )
    verdict = sign_verdict(summary, actor.keys.signing)
    record = replace(
        record,
        outcome=judged.outcome,
        policy_digest=judged.policy_digest,
        card_sha256=judged.card_sha256,
        gate_run_id=judged.gate_run_id,
        unsafe=tuple(judged.unsafe),
        champion=judged.champion,
        verdict_sha256=hashlib.sha256(verdict).hexdigest(),
        baseline_sha256=judged.baseline_sha256,
    )
    return Papers(record, verdict)


def _ruling(held: AuditRecord, action: Action, reason: str, actor: Actor) -> AuditRecord:
    """A person's word on what the gate held: the verdict's facts, with that person's name and reason."""
    return replace(held, action=action, reason=reason, user=actor.user, host=actor.host, at=actor.clock())
