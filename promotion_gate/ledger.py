"""What the signed records of a history say, whatever the tags and states of their runs say.

Whoever may write to the tracking server can change a run's tags, end it as killed, or take a record away.
What a trusted key has signed they cannot change. So the records are read, all of them, and where the runs
tell another story than the records, or a record is missing in between, the history was altered.

Nothing in a registry can show that its newest entries are gone altogether; a revocation that must outlive its
registry is kept beside the trusted keys, see :func:`revocations_beside`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from promotion_gate.core.envelope import MAX_ENVELOPE_BYTES
from promotion_gate.core.errors import InputError, NotInRegistry, SigningError, UsageError
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.places import private_cache
from promotion_gate.core.record import verify_record
from promotion_gate.core.types import AuditRecord, ModelRef
from promotion_gate.core.writing import write_bytes
from promotion_gate.registry.interface import RECORD_FILE, Event, EventPointer, Registry

REVOCATION_FILES = "*.revoked.json"
MAX_REVOCATION_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """An event and its record, or why there is none that a trusted key has signed."""

    event: Event
    record: AuditRecord | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A model's history by its records, in the order of its events."""

    entries: Sequence[Entry]

    def revocations(self) -> Iterator[AuditRecord]:
        """Every signed revocation, also one whose run is tagged as something else or ended as undone."""
        for entry in self.entries:
            if entry.record is not None and entry.record.action == "revoke":
                yield entry.record

    def doubtful_revocation(self, version: int) -> Entry | None:
        """An event that calls itself a revocation of ``version`` and has no record to show for it."""
        for entry in self.entries:
            pointer = entry.event.pointer
            if entry.record is None and (pointer.action, pointer.version) == ("revoke", version):
                return entry
        return None

    def require_whole(self, after: int) -> None:
        """Refuse a history that was altered behind its entry ``after``.

        Raises
        ------
        SigningError: a run tells something else than its record, a move was undone without a signed entry
            that says so, or the record of an entry is missing between two others.
        """
        told = [entry for entry in self.entries if entry.record is not None]
        closed = {entry.record.about for entry in told if entry.record and entry.record.about}
        for entry in told:
            assert entry.record is not None
            run = f"run {entry.event.event_id}"
            if not speaks_of(entry.record, entry.event.pointer):
                raise SigningError(
                    f"the {entry.record.action} record of {entry.record.ref} speaks of another event",
                    f"the tags of {run} were altered",
                )
            event = entry.event
            undone = event.state == "undone" and event.pointer.moves and not event.supposed
            if undone and entry.event.event_id not in closed:
                raise SigningError(
                    f"the {entry.record.action} of {entry.record.ref} is marked as undone, and no signed"
                    " entry says by whom",
                    f"somebody ended {run}",
                )
        there = {entry.record.sequence for entry in told if entry.record}
        there |= {
            entry.event.pointer.sequence
            for entry in self.entries
            if entry.record is None and self._died(entry)
        }
        for place in range(after + 1, max(there, default=0)):
            if place not in there:
                raise SigningError(
                    f"the history has no trusted record of its entry {place}", self._why_missing(place)
                )

    def _died(self, entry: Entry) -> bool:
        """Whether an event has no record because its process died: a signed entry tells of its recovery.

        Somebody who takes a record away can have its event look as if it had never ended, and the next
        command will recover it. But what was signed in between then does not say that it was unfinished.
        """
        event_id, place = entry.event.event_id, entry.event.pointer.sequence
        told = [e.record for e in self.entries if e.record is not None]
        ends = [r.sequence for r in told if r.action == "recover" and r.about == event_id]
        return bool(ends) and all(
            event_id in record.unfinished for record in told if place < record.sequence < min(ends)
        )

    def _why_missing(self, place: int) -> str:
        for entry in self.entries:
            if entry.event.pointer.sequence == place and entry.record is None:
                return entry.problem
        return "somebody took it away"


class KeptRecords:
    """Copies of records that were verified, on this machine, by the id of their event.

    A signed record never changes, so that a copy is as good as the registry's own, and stays when somebody
    takes that away. Every copy is verified whenever it is used; trouble with the folder only costs time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def here(cls) -> KeptRecords | None:
        """Those in this user's cache; None where there can be none."""
        try:
            return cls(private_cache("records"))
        except (InputError, UsageError):
            return None

    def find(self, event_id: str) -> bytes | None:
        """The copy, as it lies there."""
        try:
            with self._place(event_id).open("rb") as file:
                return file.read(MAX_ENVELOPE_BYTES + 1)
        except OSError:
            return None

    def keep(self, event_id: str, content: bytes) -> None:
        """Put a verified record there."""
        with contextlib.suppress(UsageError):
            write_bytes(self._place(event_id), content)

    def _place(self, event_id: str) -> Path:
        # A server may call an event as it likes, "../.." for one.
        return self._folder / f"{hashlib.sha256(event_id.encode()).hexdigest()}.json"


def read_ledger(
    registry: Registry, events: Sequence[Event], trusted: TrustedKeys, kept: KeptRecords | None = None
) -> Ledger:
    """Read the record of every event, and verify its signature.

    With ``kept`` the registry is asked only for those that are not there yet.

    Raises
    ------
    RegistryError: the registry cannot be reached.
    """

    def verified(event: Event, name: str) -> AuditRecord:
        copy = None if kept is None else kept.find(event.event_id)
        if copy is not None:
            with contextlib.suppress(SigningError):
                return verify_record(copy, trusted, name=name)
        content = registry.read_file(event.event_id, RECORD_FILE)
        record = verify_record(content, trusted, name=name)
        if kept is not None:
            kept.keep(event.event_id, content)
        return record

    def entry(event: Event) -> Entry:
        pointer = event.pointer
        name = f"the {pointer.action} record of {pointer.name}/{pointer.version}"
        try:
            record = verified(event, name)
        except NotInRegistry:
            return Entry(event, None, f"{name} is missing from run {event.event_id}")
        except SigningError as error:
            return Entry(event, None, str(error))
        if record.ref.name != pointer.name:
            return Entry(event, None, f"{name} speaks of another model")
        return Entry(event, record)

    if not registry.concurrent:
        return Ledger([entry(event) for event in events])
    with ThreadPoolExecutor(8) as pool:
        return Ledger(list(pool.map(entry, events)))


def speaks_of(record: AuditRecord, pointer: EventPointer) -> bool:
    """Whether a record is about the very event that carries it."""
    moved = record.transition or record.foreign
    tells = pointer.moves or pointer.action == "foreign"
    said = (
        record.sequence,
        record.action,
        record.ref,
        None if moved is None else (moved.alias, moved.from_version, moved.to_version),
    )
    pointed = (
        pointer.sequence,
        pointer.action,
        ModelRef(pointer.name, pointer.version),
        (pointer.alias, pointer.from_version, pointer.to_version) if tells else None,
    )
    mirrors = None if record.transition is None else record.transition.mirror_stage
    return said == pointed and mirrors in (None, pointer.mirror_stage)


def revocations_beside(trusted: TrustedKeys) -> list[AuditRecord]:
    """The revocations beside the trusted keys: ``*.revoked.json``, as ``revoke --out`` writes them.

    They hold for the same bytes under any model's name, and whatever becomes of the registry.

    Raises
    ------
    SigningError: such a file cannot be read, or is no revocation that a trusted key has signed.
    """
    found = []
    for file in sorted(trusted.folder.glob(REVOCATION_FILES)):
        record = verify_record(_read(file), trusted, name=str(file))
        if record.action != "revoke":
            raise SigningError(f"{file} is no revocation, but a record of {record.action!r}", "remove it")
        found.append(record)
    return found


def _read(file: Path) -> bytes:
    try:
        if not file.is_file() or file.stat().st_size > MAX_REVOCATION_BYTES:
            raise SigningError(f"{file} is no revocation", "remove it")
        return file.read_bytes()
    except OSError as error:
        raise SigningError(f"cannot read {file}: {error.strerror}") from None
