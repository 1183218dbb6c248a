"""Verified loads: data is hashed while it is copied into the private cache, and only the copy is read.

A copy that is there already is hashed again at each load. What cannot be vouched for reaches nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from promotion_gate.core.errors import HashMismatch, InputError, Unregistered
from promotion_gate.provenance.cache import alone, cached_place, discard, place_here, publish, staging
from promotion_gate.provenance.dbom import Dbom, DbomEntry
from promotion_gate.provenance.hashing import (
    FileHash,
    Progress,
    Tally,
    UnchangingFile,
    list_files,
)
from promotion_gate.provenance.sources import (
    MIRROR_ONLY_VARIABLE,
    LargerThanAllowed,
    Limits,
    Remote,
    copy_hashed,
    mirror_only,
    open_remote,
)
from promotion_gate.provenance.verify import DataCheck, verify_at

_BUFFER = 2**20


def verified_copy(dbom: Dbom, entry: DbomEntry, progress: Progress = lambda _: None) -> Path:
    """A read-only copy of a data set, every byte of which is what the entry says.

    The copy is made from where the entry says that the set lies, else from its mirror, else, for a single
    file, from its origin. With ``PROMOTION_GATE_MIRROR_ONLY=1`` an entry without a mirror is refused, and
    nothing but the mirror is read. A cached copy of equal bytes serves as well, after it was hashed again;
    the set on this machine is hashed even then, so that a change of it does not go unnoticed.

    Raises
    ------
    HashMismatch: the bytes are not those of the entry.
    Unregistered: the entry is quarantined, has no checksum, or no mirror where one is asked for.
    InputError: the set is not to be had, or the cache has no room.
    DbomError: the list of files is not the one that the entry vouches for.
    """
    require_vetted(entry)
    source = _source(dbom, entry)
    place = cached_place(entry)
    held = place if entry.is_folder else place.parent
    if held.exists():
        if isinstance(source, _Local):
            _require_same(verify_at(dbom, entry, source.place, progress))
        if verify_at(dbom, entry, place, progress).verified:
            return place
        with alone(held.parent):
            # Another process may have put a whole copy in its place meanwhile, and be reading it.
            if verify_at(dbom, entry, place).verified:
                return place
            discard(held)
    with staging(held.parent, entry.size) as staged:
        _fill(dbom, entry, source, staged, place.name, progress)
        if not publish(staged, held) and not verify_at(dbom, entry, place, progress).verified:
            raise InputError(f"the data cache {held} cannot be used", "remove it")
    return place


def require_vetted(entry: DbomEntry) -> None:
    """Refuse an entry that nobody vetted, or that vouches for no bytes.

    Raises
    ------
    Unregistered
    """
    if entry.vetting != "vetted":
        raise Unregistered(f"the data set {entry.name} is quarantined", "vet it before it is used")
    if not entry.sha256:
        raise Unregistered(f"the entry of {entry.name} gives no SHA-256", "add it anew with --replace")


@dataclass(frozen=True, slots=True)
class _Local:
    place: Path

    def file(self, name: str) -> str:
        return f"{os.path.realpath(self.place)}{f'/{name}' if name else ''}"


def _source(dbom: Dbom, entry: DbomEntry) -> _Local | Remote:
    if mirror_only():
        if not entry.mirror:
            raise Unregistered(
                f"the data set {entry.name} has no mirror, and {MIRROR_ONLY_VARIABLE} is set",
                "mirror it first",
            )
        return open_remote(entry.mirror, stay=True)
    place = dbom.local_path(entry)
    if place is not None and place.exists():
        return _Local(place)
    for url in (entry.mirror, "" if entry.is_folder else entry.origin):
        if url:
            return open_remote(url)
    raise InputError(f"the data set {entry.name} is not on this machine and has no mirror")


def _fill(
    dbom: Dbom, entry: DbomEntry, source: _Local | Remote, staged: Path, name: str, progress: Progress
) -> None:
    """Copy a set while hashing it; equal bytes or an error."""
    expected = dbom.sidecar(entry)[1] if entry.is_folder else {name: entry.sha256}
    if isinstance(source, _Local):
        _refuse_other_files(entry, source, expected)
    for parent in sorted({os.path.dirname(path) for path in expected if "/" in path}):  # noqa: PTH120
        (staged / parent).mkdir(parents=True, exist_ok=True)
    from joblib import Parallel, delayed

    tell = Tally(entry.size, progress)

    def copy(path: str) -> str:
        try:
            copied = _copy(source, path if entry.is_folder else "", staged / path, entry)
        except LargerThanAllowed:
            return path
        tell.add(copied.size)
        return "" if copied.sha256 == expected[path] else path

    cores = -1 if isinstance(source, _Local) else 8
    wrong = list(
        filter(None, Parallel(n_jobs=cores, prefer="threads")(delayed(copy)(path) for path in expected))
    )
    if wrong:
        raise mismatch(entry, wrong, "changed", "" if isinstance(source, _Local) else source.shown)


def _copy(source: _Local | Remote, name: str, target: Path, entry: DbomEntry) -> FileHash:
    with _opened(source, name, entry) as blocks, target.open("xb") as file:
        return copy_hashed(blocks, file, name)


class _LocalBlocks(AbstractContextManager[Iterable[memoryview]]):
    def __init__(self, path: str, name: str) -> None:
        self._file = UnchangingFile(path, name)

    def __enter__(self) -> Iterable[memoryview]:
        self._file.__enter__()
        return self._file.blocks(bytearray(min(_BUFFER, self._file.size + 1)))

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)


def _opened(
    source: _Local | Remote, name: str, entry: DbomEntry
) -> AbstractContextManager[Iterable[bytes | memoryview]]:
    if isinstance(source, _Local):
        return _LocalBlocks(source.file(name), name or entry.name)
    # A file larger than the whole set cannot be of it, however much a server sends.
    return nullcontext(source.blocks(name, Limits(size=entry.size) if entry.size else Limits()))


def _refuse_other_files(entry: DbomEntry, source: _Local, expected: dict[str, str]) -> None:
    kind, files = list_files(source.place)
    if (kind == "folder") != entry.is_folder:
        raise HashMismatch(f"the data set {entry.name} is a {kind}, and its entry speaks of something else")
    if not entry.is_folder:
        return
    there = {path for path, _ in files}
    if missing := [path for path in expected if path not in there]:
        raise mismatch(entry, missing, "missing")
    if extra := sorted(there - set(expected), key=str.encode):
        raise mismatch(entry, extra, "not registered")


def _require_same(check: DataCheck) -> None:
    """Raise what a copy of the set would: its bytes changed, or it cannot be read."""
    for what, paths in (
        ("changed", check.changed),
        ("missing", check.missing),
        ("not registered", check.extra),
    ):
        if paths:
            raise mismatch(check.entry, list(paths), what)
    if check.problem:
        raise HashMismatch(f"the data set {check.entry.name} cannot be vouched for: {check.problem}")


def mismatch(entry: DbomEntry, paths: list[str], what: str, remote: str = "") -> HashMismatch:
    """The error that names the first of some files; ``remote`` is the URL of the copy, if it is not here."""
    some = ", ".join(f"{path!r:.120}" for path in paths[:3]) + (
        f" and {len(paths) - 3:,} more" * (len(paths) > 3)
    )
    if remote:
        return HashMismatch(
            f"{remote:.200} holds other bytes than the entry of {entry.name} says: {what}: {some}",
            "somebody wrote there: look into it before anything else"
            + f"; 'promotion-gate dbom verify --mirror {entry.name}' names every difference"
            * bool(entry.mirror),
        )
    return HashMismatch(
        f"the data set {entry.name} is not what its entry says: {what}: {some}",
        f"'promotion-gate dbom verify {entry.name}' names every difference",
    )


def verify_anywhere(dbom: Dbom, entry: DbomEntry, progress: Progress = lambda _: None) -> DataCheck:
    """Hash the copy that a load would read: on this machine, else at the mirror, else in the cache."""
    place = dbom.local_path(entry)
    if place is not None and place.exists():
        return verify_at(dbom, entry, place, progress)
    if entry.mirror:
        return verify_mirror(dbom, entry, progress)
    try:
        cached = place_here(dbom, entry)
    except InputError as error:
        return DataCheck(entry, problem=str(error))
    if cached is not None:
        return verify_at(dbom, entry, cached, progress)
    where = f" ({entry.path!r:.200})" if entry.path else ""
    what = f"put it there again from {entry.origin:.200}" if entry.path and entry.origin else ""
    fetch = f"'promotion-gate dbom add {entry.origin:.200} --name {entry.name} --replace …' fetches it"
    return DataCheck(
        entry,
        problem=f"not on this machine{where}, and the entry names no mirror: "
        + (what or (fetch if entry.origin and not entry.is_folder else "put it there, or mirror it")),
    )


def verify_mirror(dbom: Dbom, entry: DbomEntry, progress: Progress = lambda _: None) -> DataCheck:
    """Read the mirror's copy of a data set and hash every byte; what keeps it from it is a problem."""
    from promotion_gate.core.errors import GateError

    if not entry.sha256 or not entry.mirror:
        return DataCheck(entry, problem="the entry gives no " + ("mirror" if entry.sha256 else "SHA-256"))
    try:
        remote = open_remote(entry.mirror, stay=mirror_only())
        expected = dbom.sidecar(entry)[1] if entry.is_folder else {"": entry.sha256}
        there = remote.names() if entry.is_folder else None
        readable = [path for path in expected if there is None or path in there]
        tell = Tally(entry.size, progress)
        limits = Limits(size=entry.size) if entry.size else Limits()
        from joblib import Parallel, delayed

        def hashed(path: str) -> FileHash:
            try:
                found = copy_hashed(remote.blocks(path, limits), None, path)
            except LargerThanAllowed:
                return FileHash(path, entry.size, "")
            tell.add(found.size)
            return found

        found = Parallel(n_jobs=8, prefer="threads")(delayed(hashed)(path) for path in readable)
    except GateError as error:
        return DataCheck(entry, entry.mirror, problem=str(error))
    return DataCheck(
        entry,
        entry.mirror,
        changed=tuple(file.path or "the file" for file in found if file.sha256 != expected[file.path]),
        missing=tuple(path for path in expected if there is not None and path not in there),
        extra=tuple(sorted((there or set()) - set(expected), key=str.encode)) if there is not None else (),
    )
