"""What vouches for a version: the signed records of its history, the verdict behind them, and its bytes.

The links, in order: the event that promoted the version, its record's signature, the verdict it rests on,
the policy of that verdict, the bytes, that nobody revoked it, and that the history since is whole. Whatever
serves a model or goes back to one asks here first. Nothing is moved or finished here.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from promotion_gate.core.errors import (
    ArtifactError,
    GateError,
    NotInRegistry,
    RegistryConflict,
    SigningError,
)
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.production import Production
from promotion_gate.core.record import verify_record
from promotion_gate.core.types import NO_DIGEST, AuditRecord, ModelRef, Outcome
from promotion_gate.core.verdict_summary import VerdictSummary, verify_verdict
from promotion_gate.ledger import KeptRecords, Ledger, read_ledger, revocations_beside, speaks_of
from promotion_gate.registry.interface import RECORD_FILE, VERDICT_FILE, Event, ModelFacts, Registry

DEFAULT_PRODUCTION = Production()
RULINGS = ("promote", "approve", "reject", "hold")
"""The actions that are a word on a version; the others only tell what happened to production."""
_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event with its verified record, or with what is wrong with the record."""

    event: Event
    record: AuditRecord | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """One link that held, and what it says in a line."""

    name: str
    said: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """A version that verifies: the record of its promotion, the verdict it rests on, and every link.

    ``broken`` is the error of the first link that did not hold; then ``record`` and ``verdict`` are what
    was found up to there, and what follows was not looked at.
    """

    ref: ModelRef
    links: Sequence[Link]
    record: AuditRecord | None = None
    verdict: VerdictSummary | None = None
    broken: GateError | None = None

    @property
    def digest(self) -> str:
        """The digest that the record and the bytes agree on.

        Raises
        ------
        GateError: a link is broken.
        """
        if self.broken is not None:
            raise self.broken
        assert self.record is not None
        return self.record.digest


def vouch(
    registry: Registry,
    ref: ModelRef,
    events: Sequence[Event],
    alias: str,
    trusted: TrustedKeys,
    *,
    policy_digest: str = "",
    found_digest: Callable[[], str] | None = None,
    kept: KeptRecords | None = None,
) -> Vouched:
    """Follow every link behind a version, and stop at the first that does not hold.

    Parameters
    ----------
    events: the model's history.
    policy_digest: the policy that the verdict must have been made under; empty for any.
    found_digest: digests the version's bytes; those in the registry unless given.
    kept: copies of the history's records, so that a long one need not be fetched again. The papers of
        ``ref`` and its bytes are always the registry's.

    Raises
    ------
    RegistryError: the registry cannot be reached. A broken link is no error but stands in the answer.
    """
    digested = found_digest or (lambda: artifact_digest(registry, ref))
    (stated, ledger), found = both(
        registry,
        lambda: (
            _stated(registry, ref, events, alias, trusted, policy_digest),
            read_ledger(registry, events, trusted, kept),
        ),
        lambda: _attempted(digested),
    )
    if stated.broken is not None:
        # A revocation stands above whatever else is wrong: no switch-off gets past it.
        revoked = _revocation(registry, ref, found, events, trusted, ledger)
        return replace(stated, broken=revoked or stated.broken)
    try:
        if isinstance(found, GateError):
            raise found
        if found != stated.digest:
            raise changed(ref, stated.digest, found)
        links = [*stated.links, Link("bytes", f"SHA-256 {found}")]
        stated = replace(stated, links=links)
        links.append(_not_revoked(registry, ref, stated.digest, events, trusted, ledger))
        links.append(_whole(ref, stated.record, ledger))
    except (ArtifactError, SigningError, NotInRegistry) as error:
        return replace(stated, broken=error)
    return replace(stated, links=links)


def vouch_on_paper(
    registry: Registry, ref: ModelRef, events: Sequence[Event], alias: str, trusted: TrustedKeys
) -> Vouched:
    """Follow the links behind a version as :func:`vouch` does, but for the bytes, which are not looked at."""
    stated = _stated(registry, ref, events, alias, trusted, "")
    if stated.broken is not None or stated.record is None:
        return stated
    try:
        ledger = read_ledger(registry, events, trusted)
        standing = _not_revoked(registry, ref, stated.record.digest, events, trusted, ledger)
        whole = _whole(ref, stated.record, ledger)
    except (ArtifactError, SigningError) as error:
        return replace(stated, broken=error)
    return replace(stated, links=[*stated.links, standing, whole])


def vouched_version(
    registry: Registry,
    model: str,
    production: Production = DEFAULT_PRODUCTION,
    trusted: TrustedKeys | None = None,
    *,
    policy_digest: str = "",
    found_digest: Callable[[ModelRef], str] | None = None,
) -> Vouched:
    """Verify ``name/7``, a ``models:/`` URI, or a model's name, which stands for its production version.

    Where the alias was asked for, it must be where the gate's history left it.

    Raises
    ------
    UsageError: ``model`` is none of these.
    RegistryError: it does not exist, or the registry cannot be reached.
    """
    from promotion_gate.core.keys import load_trusted_keys

    keys = trusted or load_trusted_keys()
    plain_name = "/" not in model and "@" not in model and ":" not in model
    uri = f"models:/{model}@{production.alias}" if plain_name else model
    ref = registry.resolve(uri)
    events = registry.events(ref.name)
    by_alias = uri.endswith(f"@{production.alias}")
    if by_alias:
        moves = done_moves(events, production.alias)
        left_at = moves[-1].pointer.to_version if moves else None
        if left_at != ref.version:
            where = "no version" if left_at is None else f"version {left_at}"
            broken = RegistryConflict(
                f"alias {production.alias!r} of {ref.name!r} names version {ref.version}, but the gate's"
                f" history left it at {where}",
                "put it back with 'promotion-gate rollback'",
            )
            return Vouched(ref, (), broken=broken)
        try:
            read_record(registry, moves[-1], keys)
        except SigningError as error:
            return Vouched(ref, (), broken=error)
    digested = None if found_digest is None else (lambda: found_digest(ref))
    vouched = vouch(
        registry,
        ref,
        events,
        production.alias,
        keys,
        policy_digest=policy_digest,
        found_digest=digested,
    )
    if by_alias:
        links = [Link("alias", f"{production.alias} is where the history left it"), *vouched.links]
        return replace(vouched, links=links)
    return vouched


def artifact_digest(registry: Registry, ref: ModelRef) -> str:
    """SHA-256 over the version's artifacts as they are in the registry at this moment."""
    from promotion_gate.evidence.digest import digest_folder

    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        registry.download(ref, Path(folder))
        _, digest = digest_folder(Path(folder))
    return digest


def read_record(registry: Registry, event: Event, trusted: TrustedKeys) -> AuditRecord:
    """The event's record, verified, and found to be about what the pointer says it is.

    Raises
    ------
    SigningError: it is missing, altered, by a key that is not trusted, or about something else.
    """
    pointer = event.pointer
    what = f"the {pointer.action} record of {pointer.name}/{pointer.version}"
    try:
        content = registry.read_file(event.event_id, RECORD_FILE)
    except NotInRegistry:
        raise SigningError(f"{what} is missing from run {event.event_id}") from None
    record = verify_record(content, trusted, name=what)
    if not speaks_of(record, pointer):
        raise SigningError(
            f"{what} speaks of another event", f"the tags of run {event.event_id} were altered"
        )
    return record


def read_verdict_file(registry: Registry, event: Event, record: AuditRecord) -> bytes:
    """The signed verdict beside an event's record, which names its SHA-256.

    Raises
    ------
    SigningError: it is missing, or another one than the record names.
    """
    what = f"the verdict behind the {event.pointer.action} record of {record.ref}"
    if not record.verdict_sha256:
        raise SigningError(f"{what} is missing: the record names none", "gate the version again")
    try:
        content = registry.read_file(event.event_id, VERDICT_FILE)
    except NotInRegistry:
        raise SigningError(f"{what} is missing from run {event.event_id}") from None
    if hashlib.sha256(content).hexdigest() != record.verdict_sha256:
        raise SigningError(f"{what} was altered: the record names another SHA-256")
    return content


def entries(registry: Registry, events: Sequence[Event], trusted: TrustedKeys) -> list[HistoryEntry]:
    """Every event with its record, verified, or with what is wrong with it."""

    def entry(event: Event) -> HistoryEntry:
        try:
            return HistoryEntry(event, read_record(registry, event, trusted))
        except SigningError as error:
            return HistoryEntry(event, None, str(error))

    if not registry.concurrent:
        return [entry(event) for event in events]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(entry, events))


def last_verdict(events: Sequence[Event], version: int) -> Event | None:
    """The last finished ruling on a version, by the gate or by a person."""
    found = [
        event
        for event in events
        if event.state == "done" and event.pointer.version == version and event.pointer.action in RULINGS
    ]
    return found[-1] if found else None


def done_moves(events: Sequence[Event], alias: str) -> list[Event]:
    """The finished events that moved the alias, in order."""
    return [e for e in events if e.state == "done" and e.pointer.moves and e.pointer.alias == alias]


def look(registry: Registry, name: str) -> tuple[ModelFacts, Sequence[Event]]:
    """The model's aliases and its history, asked for at once where that is quicker."""
    return both(registry, lambda: registry.model(name), lambda: registry.events(name))


def both(registry: Registry, first: Callable[[], _A], second: Callable[[], _B]) -> tuple[_A, _B]:
    """Both answers, asked for at once where the registry gains by it."""
    if not registry.concurrent:
        return first(), second()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(second)
        return first(), later.result()


def changed(ref: ModelRef, expected: str, found: str) -> ArtifactError:
    """The error for bytes that are no longer those that were examined."""
    return ArtifactError(
        f"the artifacts of {ref} have changed since they were examined: digest {found[:12]} instead of"
        f" {expected[:12]}",
        "gate the version again",
    )


def require_not_revoked(
    registry: Registry,
    ref: ModelRef,
    digest: str,
    events: Sequence[Event],
    trusted: TrustedKeys,
    ledger: Ledger | None = None,
) -> None:
    """Refuse a version that was revoked, or whose bytes were under another number or name.

    What the records say counts, not the tags of their runs. ``ledger`` is the history by its records, where
    it has been read.

    Raises
    ------
    ArtifactError: it was revoked, or an event says so without a record that verifies.
    SigningError: a revocation beside the trusted keys does not verify.
    """
    ledger = ledger or read_ledger(registry, events, trusted)
    for record in (*ledger.revocations(), *revocations_beside(trusted)):
        if record.ref == ref or record.digest == digest != NO_DIGEST:
            as_what = "" if record.ref == ref else f" as {record.ref}, with the same bytes,"
            raise ArtifactError(
                f"{ref} was revoked{as_what} by {record.user}@{record.host} at"
                f" {record.at.isoformat(timespec='seconds')}: {record.reason}",
                "nothing serves or returns to a revoked version",
            )
    doubtful = ledger.doubtful_revocation(ref.version)
    if doubtful is not None:
        raise ArtifactError(f"{ref} may have been revoked: {doubtful.problem}", "doubt counts as revoked")


def _stated(
    registry: Registry,
    ref: ModelRef,
    events: Sequence[Event],
    alias: str,
    trusted: TrustedKeys,
    policy_digest: str,
) -> Vouched:
    """What the signed papers say of a version; the bytes are not looked at."""
    links: list[Link] = []
    record: AuditRecord | None = None
    try:
        event = _promotion(ref, events, alias)
        links.append(Link("promotion", f"{event.pointer.action} in run {event.event_id}"))
        record = read_record(registry, event, trusted)
        unsafe = f", with {', '.join(record.unsafe)}" if record.unsafe else ""
        at = record.at.isoformat(timespec="seconds")
        links.append(Link("record", f"signed; {record.user}@{record.host} at {at}{unsafe}"))
        verdict = _verdict(registry, event, record, trusted)
        links.append(Link("verdict", f"{verdict.outcome}, signed, gate run {verdict.gate_run_id or 'none'}"))
        if policy_digest and verdict.policy_digest != policy_digest:
            raise ArtifactError(
                f"{ref} was judged under policy {verdict.policy_digest[:12] or 'none'}, and not under"
                f" {policy_digest[:12]}",
                "gate it again under this policy",
            )
        links.append(Link("policy", f"SHA-256 {verdict.policy_digest or 'none'}"))
    except (ArtifactError, SigningError) as error:
        return Vouched(ref, links, record, broken=error)
    return Vouched(ref, links, record, verdict)


def _promotion(ref: ModelRef, events: Sequence[Event], alias: str) -> Event:
    promotions = [
        event
        for event in done_moves(events, alias)
        if event.pointer.action in ("promote", "approve") and event.pointer.to_version == ref.version
    ]
    if not promotions:
        raise SigningError(f"{ref} was never promoted by the gate", "see 'promotion-gate history'")
    return promotions[-1]


def _verdict(registry: Registry, event: Event, record: AuditRecord, trusted: TrustedKeys) -> VerdictSummary:
    what = f"the verdict behind the {event.pointer.action} record of {record.ref}"
    verdict = verify_verdict(read_verdict_file(registry, event, record), trusted, name=what)
    told = (verdict.ref, verdict.digest, verdict.policy_digest, verdict.outcome)
    if told != (record.ref, record.digest, record.policy_digest, record.outcome):
        raise SigningError(f"{what} speaks of another version, other bytes or another policy")
    if verdict.outcome is Outcome.REJECT or (
        record.action == "promote" and verdict.outcome is not Outcome.PROMOTE
    ):
        raise SigningError(f"{what} is {verdict.outcome}, which promotes nothing")
    return verdict


def _not_revoked(
    registry: Registry,
    ref: ModelRef,
    digest: str,
    events: Sequence[Event],
    trusted: TrustedKeys,
    ledger: Ledger,
) -> Link:
    require_not_revoked(registry, ref, digest, events, trusted, ledger)
    last = last_verdict(events, ref.version)
    if last is None or last.pointer.action != "reject":
        return Link("standing", "not revoked")
    at = last.at.isoformat(timespec="seconds")
    return Link("standing", f"not revoked, but rejected when it was gated again at {at}")


def _whole(ref: ModelRef, promotion: AuditRecord | None, ledger: Ledger) -> Link:
    assert promotion is not None
    ledger.require_whole(promotion.sequence)
    return Link("history", f"whole since the {promotion.action} of {ref}, entry {promotion.sequence}")


def _revocation(
    registry: Registry,
    ref: ModelRef,
    found: str | GateError,
    events: Sequence[Event],
    trusted: TrustedKeys,
    ledger: Ledger,
) -> ArtifactError | None:
    digest = NO_DIGEST if isinstance(found, GateError) else found
    try:
        require_not_revoked(registry, ref, digest, events, trusted, ledger)
    except ArtifactError as error:
        return error
    except SigningError:
        return None
    return None


def _attempted(digested: Callable[[], str]) -> str | GateError:
    try:
        return digested()
    except (ArtifactError, NotInRegistry) as error:
        return error
