"""Whether the bytes of a data set are those that its entry in the bill of materials vouches for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promotion_gate.core.errors import DbomError, InputError
from promotion_gate.provenance.dbom import Dbom, DbomEntry
from promotion_gate.provenance.hashing import Progress, hash_files, list_files


@dataclass(frozen=True, slots=True)
class DataCheck:
    """What was found of one data set: paths that changed, are missing or were added, or why it is not known.

    ``where`` says which copy was read; empty for none.
    """

    entry: DbomEntry
    where: str = ""
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    problem: str = ""

    @property
    def verified(self) -> bool:
        """Every byte was hashed just now, and is what the entry says."""
        return bool(self.where) and not (self.problem or self.changed or self.missing or self.extra)

    @property
    def differences(self) -> list[str]:
        """One line for each path that is not as it should be, and for the problem."""
        lines = [
            f"{what}: {path!r}" for what in ("changed", "missing", "extra") for path in getattr(self, what)
        ]
        return [self.problem, *lines] if self.problem else lines


def verify_local(dbom: Dbom, entry: DbomEntry, progress: Progress = lambda _: None) -> DataCheck:
    """Hash the copy of a data set on this machine; what keeps it from being read is a problem, no error."""
    place = dbom.local_path(entry)
    if place is None:
        return DataCheck(entry, problem="not on this machine: the entry names no place here")
    return verify_at(dbom, entry, place, progress)


def verify_at(dbom: Dbom, entry: DbomEntry, place: Path, progress: Progress = lambda _: None) -> DataCheck:
    """Hash the copy of a data set at ``place``."""
    if not entry.sha256:
        return DataCheck(entry, problem="the entry gives no SHA-256")
    if not place.exists():
        return DataCheck(entry, problem=f"not on this machine: {str(place)!r}")
    try:
        kind, files = list_files(place)
        if (kind == "folder") != entry.is_folder:
            expected = "folder" if entry.is_folder else "file"
            return DataCheck(entry, str(place), problem=f"is a {kind}, and the entry speaks of a {expected}")
        if kind == "file":
            (found,) = hash_files(place, kind, files, progress=progress)
            return DataCheck(entry, str(place), changed=() if found.sha256 == entry.sha256 else (found.path,))
        expected_digests = dbom.sidecar(entry)[1]
        there = [file for file in files if file[0] in expected_digests]
        hashed = hash_files(place, kind, there, progress=progress)
    except (InputError, DbomError) as error:
        return DataCheck(entry, str(place), problem=str(error))
    names = {path for path, _ in files}
    return DataCheck(
        entry,
        str(place),
        changed=tuple(file.path for file in hashed if file.sha256 != expected_digests[file.path]),
        missing=tuple(path for path in expected_digests if path not in names),
        extra=tuple(path for path, _ in files if path not in expected_digests),
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of training data sets that are vetted and have a verified checksum, in percent.

    ``unregistered`` are data sets that something else found, such as a scan of the code, and that have no
    entry. Without any data set at all there is nothing unverified, and the share is 100.
    """

    checks: tuple[DataCheck, ...]
    unregistered: tuple[str, ...] = ()

    @property
    def covered(self) -> int:
        """How many data sets are vetted and verified."""
        return sum(check.verified and check.entry.vetting == "vetted" for check in self.checks)

    @property
    def percent(self) -> float:
        total = len(self.checks) + len(self.unregistered)
        return 100.0 * self.covered / total if total else 100.0


def coverage(checks: Sequence[DataCheck], unregistered: Sequence[str] = ()) -> Coverage:
    """Join what was verified with what was found to be in use without an entry."""
    return Coverage(tuple(checks), tuple(dict.fromkeys(unregistered)))
