"""Put a data set into the bill of materials, or take it out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from promotion_gate.core.errors import DbomError, HashMismatch, Unregistered, UsageError
from promotion_gate.core.record import now, whoami
from promotion_gate.provenance.cache import cached_place, place_here, publish, shelf, staging
from promotion_gate.provenance.dbom import (
    Dbom,
    DbomEntry,
    Vetting,
    change_dbom,
    read_dbom,
    refuse_unfit_url,
    require_name,
    sidecar_name,
)
from promotion_gate.provenance.hashing import Progress, Tree, hash_tree
from promotion_gate.provenance.sources import Limits, fetch
from promotion_gate.provenance.verify import verify_at


@dataclass(frozen=True, slots=True)
class Particulars:
    """What a person states of a data set; ``added_by`` is found out where it is empty.

    An entry that is stated anew keeps what is empty here: origin and licence in any case; mirror, locators,
    reason and vetting where the bytes are the same. ``vetting`` None is else ``vetted``; a quarantine stays.
    """

    name: str
    version: str
    origin: str = ""
    mirror: str = ""
    license: str = ""
    vetting: Vetting | None = None
    reason: str = ""
    added_by: str = ""
    locators: Mapping[str, str] = field(default_factory=dict)


def add_path(
    dbom: Path,
    root: Path,
    about: Particulars,
    *,
    replacing: bool = False,
    progress: Progress = lambda _: None,
) -> DbomEntry:
    """Hash a file or folder beside or below the document, and write its entry.

    Raises
    ------
    DbomError: the name is taken and ``replacing`` is false, or the data lies elsewhere than the document.
    InputError: the data cannot be read or is refused; see :mod:`promotion_gate.provenance.hashing`.
    """
    place = relative_place(dbom, root)
    _refuse_taken(dbom, about.name, replacing=replacing)
    return add_tree(dbom, hash_tree(root, progress=progress), about, path=place, replacing=replacing)


def add_url(
    dbom: Path,
    url: str,
    about: Particulars,
    limits: Limits,
    *,
    replacing: bool = False,
    progress: Progress = lambda _: None,
) -> DbomEntry:
    """Fetch a file once into the cache, hashing it on the way, and write its entry.

    Verified loads find it in the cache, and fetch it again where it is not there any more. Unless something
    else is stated it is quarantined: nobody has looked at it.

    Raises
    ------
    HashMismatch: it is to be vetted, and its bytes are not those of the entry that is there.
    DbomError: the name is taken and ``replacing`` is false, or the URL carries a password.
    InputError: it cannot be fetched, or not within the limits.
    """
    _refuse_taken(dbom, about.name, replacing=replacing)
    refuse_unfit_url(url, "the URL")
    progress(f"fetch {url}")
    with staging(shelf("files")) as staged:
        file, hashed = fetch(url, staged, limits)
        entry = add_tree(dbom, Tree("file", (hashed,)), about, replacing=replacing, unseen=True)
        place = cached_place(entry)
        file.rename(staged / place.name)
        publish(staged, place.parent)
    return entry


def add_tree(
    dbom: Path,
    tree: Tree,
    about: Particulars,
    *,
    path: str = "",
    replacing: bool = False,
    unseen: bool = False,
) -> DbomEntry:
    """Write the entry of a data set that was hashed; ``path`` is relative to the document.

    ``unseen`` bytes come from a server just now: of them only those can be vetted that the entry names
    already.

    Raises
    ------
    HashMismatch: unseen bytes are to be vetted, and are others than those of the entry.
    DbomError: the name is taken and ``replacing`` is false, or something about it cannot be stated.
    """
    require_name(about.name)
    sidecar = sidecar_name(dbom, about.name) if tree.kind == "folder" else ""
    entry = DbomEntry(
        name=about.name,
        version=about.version,
        sha256=tree.sha256,
        vetting=about.vetting or ("quarantined" if unseen else "vetted"),
        added_by=about.added_by or "@".join(whoami()),
        added_at=now(),
        reason=about.reason,
        path=path,
        origin=about.origin,
        mirror=about.mirror,
        license=about.license,
        sidecar=sidecar,
        files=len(tree.files),
        size=tree.size,
        locators=about.locators,
    )

    def change(before: Dbom) -> Dbom:
        old = before.entries.get(about.name)
        if old is not None and not replacing:
            raise _taken(dbom, about.name)
        if old is not None and unseen and about.vetting == "vetted" and old.sha256 != tree.sha256:
            raise HashMismatch(
                f"{about.origin or 'the URL'} holds other bytes now than the entry {about.name}: "
                f"SHA-256 {tree.sha256}, and not {old.sha256 or 'any'}",
                "nobody has looked at them: add them with --status quarantined, look, then 'dbom vet'",
            )
        new = entry if old is None else _restated(entry, old, about)
        return replace(before, entries={**before.entries, about.name: new})

    sidecars = {sidecar: tree.sidecar()} if sidecar else {}
    dropped = [] if sidecar else [sidecar_name(dbom, about.name)]
    return change_dbom(dbom, change, sidecars, dropped).entry(about.name)


def _restated(entry: DbomEntry, old: DbomEntry, about: Particulars) -> DbomEntry:
    """An entry with what the old one says and nobody has stated anew."""
    same = entry.sha256 == old.sha256
    keep_quarantine = about.vetting is None and old.vetting == "quarantined"
    return replace(
        entry,
        rest=old.rest,
        origin=entry.origin or old.origin,
        license=entry.license or old.license,
        mirror=entry.mirror or (old.mirror if same else ""),
        locators=entry.locators or (old.locators if same else {}),
        reason=entry.reason or (old.reason if same else ""),
        vetting=old.vetting
        if about.vetting is None and same
        else "quarantined"
        if keep_quarantine
        else entry.vetting,
    )


def vet(dbom: Path, name: str, reason: str) -> DbomEntry:
    """Say that somebody looked at the bytes of a quarantined entry and found them good. Nothing is fetched.

    A copy that is on this machine is hashed first: it may be what that person looked at.

    Raises
    ------
    UsageError: no reason is given, or the entry is vetted already.
    DbomError: there is no such entry.
    Unregistered: the entry gives no SHA-256.
    HashMismatch: the copy on this machine holds other bytes.
    """
    if not reason.strip():
        raise UsageError("a reason is needed", 'say why: --reason "…"')

    def change(before: Dbom) -> Dbom:
        old = before.entry(name)
        if old.vetting == "vetted":
            raise UsageError(f"{name} is vetted already, by {old.added_by or 'nobody named'}")
        if not old.sha256:
            raise Unregistered(f"the entry of {name} gives no SHA-256", "add it anew with --replace")
        place = place_here(before, old)
        if place is not None and not (check := verify_at(before, old, place)).verified:
            raise HashMismatch(
                f"{name} holds other bytes at {str(place)!r:.200}: {check.differences[0]}",
                "add it anew with --replace --status quarantined, and look again",
            )
        new = replace(
            old, vetting="vetted", reason=reason.strip(), added_by="@".join(whoami()), added_at=now()
        )
        return replace(before, entries={**before.entries, name: new})

    return change_dbom(dbom, change).entry(name)


def remove(dbom: Path, name: str) -> DbomEntry:
    """Take an entry and its list of files out of the document; the data stays.

    Raises
    ------
    DbomError: there is no such entry.
    """
    require_name(name)
    removed: list[DbomEntry] = []

    def change(before: Dbom) -> Dbom:
        removed.append(before.entry(name))
        return replace(before, entries={key: e for key, e in before.entries.items() if key != name})

    change_dbom(dbom, change, dropped=[sidecar_name(dbom, name)])
    return removed[0]


def relative_place(dbom: Path, root: Path) -> str:
    """The path of a data set relative to the document's folder, of which it must be a part.

    Raises
    ------
    DbomError: it lies elsewhere.
    """
    # Not resolved: a link to the whole set may stand for it.
    place = os.path.relpath(root.absolute(), dbom.absolute().parent)
    if place == os.curdir or Path(place).parts[0] == os.pardir:
        raise DbomError(
            f"the data set {str(root)!r} does not lie below the folder of {str(dbom)!r}",
            "move it there, or link its whole folder into it with 'ln -s'",
        )
    return place


def _refuse_taken(dbom: Path, name: str, *, replacing: bool) -> None:
    """Say before the long work, not after it, that a name is taken."""
    require_name(name)
    if dbom.exists() and name in read_dbom(dbom).entries and not replacing:
        raise _taken(dbom, name)


def _taken(dbom: Path, name: str) -> DbomError:
    return DbomError(f"{dbom} has a data set {name!r} already", "--replace states it anew")
