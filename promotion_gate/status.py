"""What is in production, how it came there and what waits; nothing is moved or finished here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promotion_gate.core.keys import TrustedKeys, load_trusted_keys
from promotion_gate.core.policy import Production
from promotion_gate.registry.interface import Event, Registry
from promotion_gate.vouching import (
    DEFAULT_PRODUCTION,
    HistoryEntry,
    done_moves,
    entries,
    last_verdict,
    look,
)


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
