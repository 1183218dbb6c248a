"""The data bill of materials: which bytes each data set consists of, where from, and who vetted them.

The document is CycloneDX 1.6 in JSON (ECMA-424), one component of type ``data`` a data set, validated with
the standard's own strict schema on reading and on writing. Where the standard has a field, it is used:

- ``hashes``: the set's SHA-256, of the file, or of the list of files for a folder
  (see :mod:`promotion_gate.provenance.sidecar`), which an external reference of type ``evidence`` names;
- external references: ``distribution`` is the origin, ``distribution-intake`` the mirror it was published to;
- ``data[0].contents.url``: where the set lies, relative to the document;
- an annotation: who put the entry there, when and why;
- properties ``promotion-gate:…``: what the standard has no field for.

What others wrote into the document stays: further components, and further fields of the data sets. The
bytes of a written document follow from its content, but for the time and the serial number that names it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from promotion_gate import __version__
from promotion_gate.core.errors import DbomError
from promotion_gate.provenance.sidecar import MAX_SIDECAR_BYTES, parse_sidecar, refuse_stray_path

DBOM_FILE = "dbom.json"
DBOM_VARIABLE = "PROMOTION_GATE_DBOM"
MAX_DBOM_BYTES = 64 * 2**20

Vetting = Literal["vetted", "quarantined"]

_PREFIX = "promotion-gate:"
_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_NAMESPACE = uuid.UUID("5a2f9f0e-2f3e-5f0b-9d54-6a8f6f9f3f6a")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_SECRET = re.compile(r"(?i)(signature|credential|security-token|access_?token|password|secret|^sig$|^token$)")
_OURS = (
    "type", "bom-ref", "name", "version", "hashes", "licenses", "externalReferences", "properties", "data",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DbomEntry:
    """One data set.

    ``sha256`` is empty for an entry that gives no checksum. ``sidecar`` is the path of the list of files,
    relative to the document; empty for a set that is one file. ``path`` is where the set lies, relative to
    the document; empty where it lies only at its ``origin`` or ``mirror`` (URLs). ``license`` is an SPDX
    identifier or expression, or a name. ``locators`` are names under which other tools know the same bytes,
    such as ``dvc-md5``. ``rest`` is what others wrote into the component.
    """

    name: str
    version: str
    sha256: str
    vetting: Vetting
    added_by: str
    added_at: datetime | None
    reason: str = ""
    path: str = ""
    origin: str = ""
    mirror: str = ""
    license: str = ""
    sidecar: str = ""
    files: int = 0
    size: int = 0
    locators: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_folder(self) -> bool:
        return bool(self.sidecar)

    @property
    def reference(self) -> str:
        """What other parts of the document call the entry."""
        return f"data:{self.name}"


@dataclass(frozen=True, slots=True)
class Dbom:
    """A bill of materials as read: its entries by name, its place, and the SHA-256 of its bytes.

    ``sha256`` is empty for one that has not been written. ``rest`` is what others wrote into the document.
    """

    path: Path
    entries: Mapping[str, DbomEntry]
    sha256: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def entry(self, name: str) -> DbomEntry:
        """The entry of that name.

        Raises
        ------
        DbomError: there is none.
        """
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)[:10]) or "none"
            raise DbomError(f"{self.path} has no data set {name!r:.120}", f"it has {known:.300}")
        return self.entries[name]

    def chosen(self, names: Sequence[str]) -> list[DbomEntry]:
        """The named entries, or all of them for no name."""
        return [self.entry(name) for name in dict.fromkeys(names)] or list(self.entries.values())

    def local_path(self, entry: DbomEntry) -> Path | None:
        """Where the set lies on this machine, if the entry says so."""
        return self.folder / entry.path if entry.path else None

    def sidecar(self, entry: DbomEntry) -> tuple[bytes, dict[str, str]]:
        """The list of a folder's files, as bytes and as digests by path.

        Raises
        ------
        DbomError: it is missing or malformed, or is not the one that the entry's checksum stands for.
        """
        place = self.folder / entry.sidecar
        content = _read(place, MAX_SIDECAR_BYTES)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DbomError(
                f"{place} is not the list that {self.path} gives the checksum of",
                f"take it back from version control, or add {entry.name} anew",
            )
        return content, parse_sidecar(content, str(place))


def find_dbom(dbom: str | os.PathLike[str] | None = None, *, start: Path | None = None) -> Path:
    """The document's path: as given, else ``PROMOTION_GATE_DBOM``, else ``dbom.json`` here or further up.

    Raises
    ------
    DbomError: there is none.
    """
    named = os.fspath(dbom) if dbom is not None else os.environ.get(DBOM_VARIABLE, "")
    if named:
        return Path(named).absolute()
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / DBOM_FILE).is_file():
            return folder / DBOM_FILE
    raise DbomError(
        f"no {DBOM_FILE} in {here} or above",
        f"register a data set with 'promotion-gate dbom add', or name the file in {DBOM_VARIABLE}",
    )


def read_dbom(path: Path) -> Dbom:
    """Read and validate a document.

    Raises
    ------
    DbomError: missing, unreadable, not CycloneDX 1.6, or contradicting itself.
    """
    return parse_dbom(_read(path, MAX_DBOM_BYTES), path)


def parse_dbom(content: bytes, path: Path) -> Dbom:
    """Validate the bytes of a document; ``path`` is where it lies, or what messages call it.

    Raises
    ------
    DbomError: see :func:`read_dbom`.
    """
    document = _load_json(content, path)
    if not isinstance(document, dict) or document.get("specVersion") != "1.6":
        raise DbomError(f"{path} is not a CycloneDX 1.6 document")
    _validate(document, path)
    notes = _annotations(document)
    entries: dict[str, DbomEntry] = {}
    others: list[Any] = []
    for component in document.get("components", ()):
        if component["type"] != "data":
            others.append(component)
            continue
        entry = _entry(component, notes, path)
        if entry.name.casefold() in {name.casefold() for name in entries}:
            raise DbomError(f"{path} has more than one data set {entry.name!r}")
        entries[entry.name] = entry
    own_notes = {entry.reference for entry in entries.values()}
    rest = {
        **{key: value for key, value in document.items() if key not in ("serialNumber", "version")},
        "components": others,
        "annotations": [
            note for note in document.get("annotations", ()) if not (set(note["subjects"]) <= own_notes)
        ],
    }
    return Dbom(path, entries, hashlib.sha256(content).hexdigest(), rest)


def dbom_bytes(dbom: Dbom, at: datetime | None = None) -> bytes:
    """The document as it is written, valid by the standard's strict schema.

    Raises
    ------
    DbomError: an entry cannot be stated: a malformed name, URL or checksum.
    """
    entries = [dbom.entries[name] for name in sorted(dbom.entries)]
    for entry in entries:
        _refuse_unstatable(entry)
    components = [*dbom.rest.get("components", ()), *map(_component, entries)]
    notes = [*dbom.rest.get("annotations", ()), *(_note(entry) for entry in entries if entry.added_at)]
    body = {"components": components, "annotations": notes}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    tool = {"type": "application", "name": "promotion-gate", "version": __version__}
    own = {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            **dbom.rest.get("metadata", {}),
            "timestamp": moment,
            "tools": {"components": [tool]},
        },
    }
    kept = {key: value for key, value in dbom.rest.items() if key not in own and key not in body}
    document = {**own, **kept, **{key: value for key, value in body.items() if value}}
    _validate(document, dbom.path)
    return (json.dumps(document, indent=2) + "\n").encode("ascii")


def change_dbom(
    path: Path,
    change: Callable[[Dbom], Dbom],
    sidecars: Mapping[str, bytes] | None = None,
    dropped: Sequence[str] = (),
) -> Dbom:
    """Read the document, or begin one, change it and put it back whole; one process at a time.

    Parameters
    ----------
    change: from the document as it is now to what it is to be.
    sidecars: lists of files to write, by path relative to the document.
    dropped: lists of files to remove.

    Raises
    ------
    DbomError: it cannot be read or written; it is then as it was.
    """
    path = path.absolute()
    with _alone(path.parent):
        before = read_dbom(path) if path.exists() else Dbom(path, {})
        after = change(before)
        unchanged = bool(before.sha256) and after.entries == before.entries
        content = b"" if unchanged else dbom_bytes(after)
        for name, listing in (sidecars or {}).items():
            _publish(path.parent / name, listing)
        if content:
            _publish(path, content)
        for name in dropped:
            (path.parent / name).unlink(missing_ok=True)
    return read_dbom(path)


def entry_facts(entry: DbomEntry) -> dict[str, Any]:
    """The entry for a program: everything but what others wrote into it."""
    facts = {key: getattr(entry, key) for key in DbomEntry.__dataclass_fields__ if key != "rest"}
    moment = entry.added_at
    return {**facts, "locators": dict(entry.locators), "added_at": moment.isoformat() if moment else None}


def sidecar_name(path: Path, name: str) -> str:
    """Where the list of a set's files is kept, relative to the document."""
    return f"{path.stem}.d/{name}.sha256"


def require_name(name: str) -> None:
    """Refuse what cannot be the name of a data set.

    Raises
    ------
    DbomError: anything but letters, digits, ``.``, ``_`` and ``-``, 100 at most.
    """
    if not _NAME.fullmatch(name):
        raise DbomError(
            f"not a name for a data set: {name!r:.120}",
            "use up to 100 ASCII letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )


def _refuse_unstatable(entry: DbomEntry) -> None:
    require_name(entry.name)
    where = f"the entry {entry.name}"
    if entry.sha256 and not _SHA256.fullmatch(entry.sha256):
        raise DbomError(f"{where}: not a SHA-256: {entry.sha256!r:.100}")
    if not entry.version:
        raise DbomError(f"{where} has no version")
    for path in filter(None, (entry.path, entry.sidecar)):
        refuse_stray_path(path, where)
    for what, url in (("origin", entry.origin), ("mirror", entry.mirror)):
        if url:
            refuse_unfit_url(url, f"{where}: its {what}")
    for text in (entry.version, entry.license, entry.added_by, entry.reason, entry.origin, entry.mirror):
        if any(not char.isprintable() for char in text):
            raise DbomError(f"{where}: {text!r:.120} holds characters that cannot be shown")


def refuse_unfit_url(url: str, what: str) -> None:
    """Refuse what is no URL (RFC 3986), or carries a password or a signed query that everybody could read.

    Raises
    ------
    DbomError: naming ``what``, and not the secret.
    """
    if not _URL.fullmatch(url):
        raise DbomError(f"{what} is not a URL: {url!r:.200}", "escape what URLs cannot hold with %XX")
    try:
        parts = urlsplit(url)
        secret = parts.password or (parts.username and parts.scheme.startswith("http"))
    except ValueError:
        raise DbomError(f"{what} is not a URL: {url!r:.200}") from None
    if secret or any(_SECRET.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise DbomError(f"{what} carries a password or signature", "give the URL without it")


def _component(entry: DbomEntry) -> dict[str, Any]:
    references = [
        _external("distribution", entry.origin, "origin"),
        _external("distribution-intake", entry.mirror, "mirror"),
        _external("evidence", quote(entry.sidecar), "SHA-256 of every file, for sha256sum -c", entry.sha256),
    ]
    data, *more = entry.rest.get("data") or [{}]
    data = {"type": "dataset", **data, "name": entry.name}
    if entry.path:
        data["contents"] = {**data.get("contents", {}), "url": quote(entry.path)}
    facts = {"status": entry.vetting, **{f"locator:{key}": text for key, text in entry.locators.items()}}
    if entry.files:
        facts |= {"files": str(entry.files), "bytes": str(entry.size)}
    properties = [{"name": f"{_PREFIX}{key}", "value": facts[key]} for key in sorted(facts)]
    own = {
        "type": "data",
        "bom-ref": entry.reference,
        "name": entry.name,
        "version": entry.version,
        "hashes": [{"alg": "SHA-256", "content": entry.sha256}] if entry.sha256 else [],
        "licenses": _licenses(entry.license),
        "externalReferences": [*filter(None, references), *entry.rest.get("externalReferences", ())],
        "properties": [*properties, *entry.rest.get("properties", ())],
        "data": [data, *more],
    }
    kept = {key: value for key, value in entry.rest.items() if key not in own}
    return {key: value for key, value in own.items() if value} | kept


def _external(kind: str, url: str, comment: str, sha256: str = "") -> dict[str, Any] | None:
    if not url:
        return None
    reference: dict[str, Any] = {"type": kind, "url": url, "comment": comment}
    return reference | ({"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {})


def _licenses(text: str) -> list[dict[str, Any]]:
    if not text:
        return []
    from cyclonedx.spdx import is_expression, is_supported_id

    if is_supported_id(text):
        return [{"license": {"id": text}}]
    if " " in text and is_expression(text):
        return [{"expression": text}]
    return [{"license": {"name": text}}]


def _note(entry: DbomEntry) -> dict[str, Any]:
    assert entry.added_at is not None
    return {
        "subjects": [entry.reference],
        "annotator": {"individual": {"name": entry.added_by}},
        "timestamp": entry.added_at.astimezone(UTC).isoformat(timespec="seconds"),
        "text": entry.reason,
    }


def _annotations(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The last annotation on each component by its reference, where it speaks of that one alone."""
    return {
        note["subjects"][0]: note for note in document.get("annotations", ()) if len(note["subjects"]) == 1
    }


def _entry(component: Mapping[str, Any], notes: Mapping[str, Mapping[str, Any]], path: Path) -> DbomEntry:
    name = component["name"]
    where = f"{path}: the data set {name!r:.120}"
    if not _NAME.fullmatch(name):
        raise DbomError(f"{where} has a malformed name")
    facts = _facts(component, where)
    sha256 = _sha256(component, where)
    own, other_references = _references(component, sha256)
    sidecar = unquote(own.get("evidence", ""))
    data = component.get("data", [])
    place = _local(data[0].get("contents", {}).get("url", "")) if data else ""
    for stray in filter(None, (place, sidecar)):
        refuse_stray_path(stray, where)
    note = notes.get(str(component.get("bom-ref", "")), {})
    rest = {key: value for key, value in component.items() if key not in _OURS}
    foreign = [p for p in component.get("properties", ()) if not p["name"].startswith(_PREFIX)]
    if other_references:
        rest["externalReferences"] = other_references
    if foreign:
        rest["properties"] = foreign
    if data:
        rest["data"] = data
    return DbomEntry(
        name=name,
        version=component.get("version", ""),
        sha256=sha256,
        vetting="vetted" if facts.get("status") == "vetted" else "quarantined",
        added_by=_person(note),
        added_at=_moment(note.get("timestamp", ""), where),
        reason=note.get("text", ""),
        path=place,
        origin=own.get("distribution", ""),
        mirror=own.get("distribution-intake", ""),
        license=_license(component),
        sidecar=sidecar,
        files=_number(facts.get("files", "0"), where),
        size=_number(facts.get("bytes", "0"), where),
        locators={
            key.removeprefix("locator:"): text for key, text in facts.items() if key.startswith("locator:")
        },
        rest=rest,
    )


def _references(component: Mapping[str, Any], sha256: str) -> tuple[dict[str, str], list[Any]]:
    """The URLs of origin, mirror and list of files by the type of the reference, and all other references.

    A list of files is the evidence whose checksum is the component's own.
    """
    own: dict[str, str] = {}
    others = []
    for reference in component.get("externalReferences", ()):
        kind = reference["type"]
        ours = kind in ("distribution", "distribution-intake")
        if kind == "evidence" and sha256:
            ours = _sha256(reference, "") == sha256
        if ours and kind not in own:
            own[kind] = reference["url"]
        else:
            others.append(reference)
    return own, others


def _local(url: str) -> str:
    """The path that a relative reference stands for; nothing for a URL."""
    return "" if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url) else unquote(url)


def _facts(component: Mapping[str, Any], where: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    for prop in component.get("properties", ()):
        key = prop["name"].removeprefix(_PREFIX)
        if key == prop["name"]:
            continue
        if key in facts:
            raise DbomError(f"{where} gives the property {key!r:.80} twice")
        facts[key] = prop.get("value", "")
    return facts


def _sha256(component: Mapping[str, Any], where: str) -> str:
    found = {entry["content"].lower() for entry in component.get("hashes", ()) if entry["alg"] == "SHA-256"}
    if len(found) > 1:
        raise DbomError(f"{where} has two SHA-256 checksums")
    return str(found.pop()) if found else ""


def _license(component: Mapping[str, Any]) -> str:
    for choice in component.get("licenses", ()):
        if "expression" in choice:
            return str(choice["expression"])
        return str(choice["license"].get("id") or choice["license"].get("name", ""))
    return ""


def _person(note: Mapping[str, Any]) -> str:
    return str(note.get("annotator", {}).get("individual", {}).get("name", ""))


def _moment(text: str, where: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise DbomError(f"{where}: not a time: {text!r:.60}") from None
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _number(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise DbomError(f"{where}: not a number: {text!r:.60}")
    return int(text)


def _load_json(content: bytes, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Parsers disagree on which of two equal keys counts, so a reviewer might be shown the other.
        if len(fields := dict(pairs)) != len(pairs):
            raise ValueError("a key is given twice")
        return fields

    def constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(content, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise DbomError(f"{path} is not JSON: nested too deeply") from None
    except ValueError as error:
        raise DbomError(f"{path} is not JSON: {error}"[:300]) from None


def _validate(document: Mapping[str, Any], path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    try:
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    except RecursionError:
        raise DbomError(f"{path} is not valid CycloneDX 1.6: nested too deeply") from None
    if error is not None:
        broken = cast(Any, error.data)
        place = "/".join(map(str, broken.absolute_path))
        raise DbomError(
            f"{path} is not valid CycloneDX 1.6 at {place or 'its top'}: {broken.message[:200]}"
        ) from None


def _read(path: Path, limit: int) -> bytes:
    try:
        # Not to wait for ever where somebody put a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise DbomError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise DbomError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if content is None or len(content) > limit:
        raise DbomError(f"cannot read {path}: larger than {limit:,} bytes, or no plain file")
    return content


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, by a lock on the folder that ends with the process."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DbomError(f"cannot write into {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _publish(path: Path, content: bytes) -> None:
    """Put a file in place whole, or not at all."""
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DbomError(f"cannot write {path}: {error.strerror}") from None
