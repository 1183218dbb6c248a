"""What is in production, how it came there and what waits; nothing is moved or finished here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promotion_gate.core.keys import TrustedKeys, load_trusted_keys
from promotion_gate.core.production import Production
from promotion_gate.core.types import ForeignMove, ModelRef
from promotion_gate.foreign import difference, sighted
from promotion_gate.registry.interface import Event, ModelFacts, Registry, VersionFacts
from promotion_gate.rollback import good_versions, is_believed, rejection_since
from promotion_gate.vouching import (
    DEFAULT_PRODUCTION,
    HistoryEntry,
    both,
    done_moves,
    entries,
    last_verdict,
    look,
    vouch_on_paper,
)

CANDIDATE_ALIAS = "candidate"
"""The alias that training jobs give a version that is to be gated."""

DRIFT_TAG = "promotion_gate.drift"
"""The tag of a registered model in which monitoring says how its predictions drift."""

MAX_DRIFT = 200


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What is in production, how it came there and what waits.

    ``last_move`` is the last finished event that moved the alias. ``moved_elsewhere`` is set when the
    alias is not where that event left it, ``foreign`` also when the mirrored stage is not. ``held`` are
    versions that wait for a person. ``in_production_stage`` is None where the model uses no stages.

    ``candidate`` is the version with the alias ``candidate``, else the newest one above production that
    nobody has judged. ``last_good`` is where a rollback would go by the signed records; the files are checked
    by the rollback. ``drift`` is what monitoring last said, as anybody with write access could have: at most
    200 characters. ``recovery_seconds`` are the times to recovery of all rollbacks that have one.
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
    candidate: int | None = None
    last_good: int | None = None
    foreign: ForeignMove | None = None
    drift: str = ""
    recovery_seconds: Sequence[float] = ()

    @property
    def mttr(self) -> float | None:
        """The mean time to recovery in seconds, None where no rollback has one."""
        known = self.recovery_seconds
        return sum(known) / len(known) if known else None


def history(registry: Registry, name: str, trusted: TrustedKeys | None = None) -> list[HistoryEntry]:
    """Every event of a model, oldest first, each with its record verified.

    A model that is no longer registered keeps its history.

    Raises
    ------
    NotInRegistry: there is no such model, and never was one that the gate ruled on.
    """
    keys = trusted or load_trusted_keys()
    events = registry.events(name)
    if not events:
        registry.model(name)
    return entries(registry, events, keys)


def status(
    registry: Registry,
    name: str,
    production: Production = DEFAULT_PRODUCTION,
    trusted: TrustedKeys | None = None,
) -> StatusFacts:
    """What is in production, and what waits. Moves, finishes and writes nothing."""
    keys = trusted or load_trusted_keys()
    (facts, events), listed = both(registry, lambda: look(registry, name), lambda: registry.versions(name))
    version = facts.aliases.get(production.alias)
    last = done_moves(events, production.alias)[-1:]
    held = [event for event in _verdicts(events).values() if event.pointer.action == "hold"]
    restored = [e for e in events if e.state == "done" and e.pointer.action == "restored"]
    told = entries(registry, [*last, *held, *restored], keys)
    revoked = {e.pointer.version for e in events if e.pointer.action == "revoke" and e.state == "done"}
    staged = [v.ref.version for v in listed if v.stage == "Production"]
    seen = sighted(events, version, staged, production)
    return StatusFacts(
        name=name,
        alias=production.alias,
        version=version,
        last_move=told[0] if last else None,
        moved_elsewhere=version != (last[0].pointer.to_version if last else None),
        held=told[len(last) : len(last) + len(held)],
        unfinished=[event for event in events if event.state == "begun"],
        in_production_stage=staged if facts.uses_stages else None,
        revoked=sorted(revoked),
        candidate=_candidate(facts, listed, events, version, revoked),
        last_good=_last_good(registry, name, events, production.alias, version, keys),
        foreign=None if seen is None or seen.settled else difference(production.alias, seen.left, seen.found),
        drift=facts.tags.get(DRIFT_TAG, "")[:MAX_DRIFT],
        recovery_seconds=_recovery_seconds(told[len(last) + len(held) :], events),
    )


def _verdicts(events: Sequence[Event]) -> dict[int, Event]:
    """The last word on every version that has one, in order of the versions."""
    words = {v: last_verdict(events, v) for v in sorted({event.pointer.version for event in events})}
    return {version: word for version, word in words.items() if word is not None}


def _candidate(
    facts: ModelFacts,
    listed: Sequence[VersionFacts],
    events: Sequence[Event],
    production: int | None,
    revoked: set[int],
) -> int | None:
    named = facts.aliases.get(CANDIDATE_ALIAS)
    if named is not None and named != production:
        return named
    known = {*_verdicts(events), *revoked}
    waiting = [v.ref.version for v in listed if v.ref.version > (production or 0) and v.status == "READY"]
    return max((version for version in waiting if version not in known), default=None)


def _last_good(
    registry: Registry,
    name: str,
    events: Sequence[Event],
    alias: str,
    production: int | None,
    trusted: TrustedKeys,
) -> int | None:
    for version in good_versions(events, alias, production):
        rejection = rejection_since(events, version)
        if rejection is not None and is_believed(registry, rejection, trusted):
            continue
        if vouch_on_paper(registry, ModelRef(name, version), events, alias, trusted).broken is None:
            return version
    return None


def _recovery_seconds(restored: Sequence[HistoryEntry], events: Sequence[Event]) -> list[float]:
    """By the signed entries that end a time to recovery; one for each rollback counts, the first."""
    rollbacks = {e.event_id for e in events if e.state == "done" and e.pointer.action == "rollback"}
    found: dict[str, float] = {}
    for entry in restored:
        record = entry.record
        if record is None or record.alarm_at is None or record.about not in rollbacks:
            continue
        found.setdefault(record.about, max(0.0, (record.at - record.alarm_at).total_seconds()))
    return list(found.values())
