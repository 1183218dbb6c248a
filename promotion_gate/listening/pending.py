"""Which versions are still to be gated, as the registry's own signed history tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from promotion_gate.core.errors import NotInRegistry, SigningError
from promotion_gate.core.keys import TrustedKeys, load_trusted_keys
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import AuditRecord, ModelRef, Outcome
from promotion_gate.ledger import speaks_of
from promotion_gate.registry.interface import Event, Registry
from promotion_gate.vouching import done_moves, read_record

MAX_KEPT = 50_000


class Ledger:
    """Reads history for what is still to be gated. A record, once verified, is not fetched again.

    A version is gated by itself at most once under one policy, by its digest. Not gated by itself are a
    version that is not newer than the one in production, one that was in production before (a person rolled
    back from it), one that a person rejected, and one that was revoked. ``promotion-gate run`` gates any.
    """

    def __init__(self, registry: Registry, trusted: Callable[[], TrustedKeys] = load_trusted_keys) -> None:
        self._registry = registry
        self._trusted = trusted  # asked again each time: the first gate run may make the key
        self._records: dict[str, AuditRecord] = {}

    def pending(self, name: str, policy: Policy) -> list[ModelRef]:
        """The versions of a model that are to be gated, ascending.

        Raises
        ------
        RegistryError: the registry cannot be reached, or has no such model.
        """
        current = self._registry.model(name).aliases.get(policy.production.alias, 0)
        refs = [v.ref for v in self._registry.versions(name) if v.ref.version > current]
        if not refs:
            return []
        events = self._registry.events(name)
        return [ref for ref in refs if not self._reason(ref, current, events, policy)]

    def why_not(self, ref: ModelRef, policy: Policy) -> str:
        """Why a version is not to be gated, as a label; empty where it is.

        Raises
        ------
        RegistryError: the registry cannot be reached.
        """
        try:
            self._registry.version(ref)
            current = self._registry.model(ref.name).aliases.get(policy.production.alias, 0)
        except NotInRegistry:
            return "unknown"
        return self._reason(ref, current, self._registry.events(ref.name), policy)

    def _reason(self, ref: ModelRef, current: int, events: Sequence[Event], policy: Policy) -> str:
        if ref.version <= current:
            return "not_newer"
        moves = done_moves(events, policy.production.alias)
        if any(ref.version in (e.pointer.from_version, e.pointer.to_version) for e in moves):
            return "was_in_production"
        own = [e for e in events if e.pointer.version == ref.version and e.state == "done"]
        if any(e.pointer.action == "revoke" for e in own):
            return "revoked"
        for event in reversed(own):
            if event.pointer.action not in ("promote", "hold", "reject", "approve"):
                continue
            record = self._record(event)
            if record is None:
                continue
            if record.policy_digest == policy.digest:
                return "judged"
            if record.action == "reject" and record.outcome is not Outcome.REJECT:
                return "rejected_by_a_person"
        return ""

    def is_proven(self, event: Event) -> bool:
        """Whether a record that a trusted key has signed is about this very event.

        Raises
        ------
        RegistryError: the registry cannot be reached.
        """
        record = self._record(event)
        return record is not None and speaks_of(record, event.pointer)

    def _record(self, event: Event) -> AuditRecord | None:
        """The event's record; None where it does not verify, and so proves nothing."""
        known = self._records.get(event.event_id)
        if known is not None:
            return known
        try:
            record = read_record(self._registry, event, self._trusted())
        except SigningError:
            return None
        if len(self._records) >= MAX_KEPT:
            self._records.clear()
        self._records[event.event_id] = record
        return record
