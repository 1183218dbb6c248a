"""Data from outside on its way in: quarantine, validation, a person's word, mirror, bill of materials.

A set waits in a private folder until somebody approves it. Nothing of it is executed, and nothing of it
reaches the mirror before its bytes were hashed again and found to be those that were looked at.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from promotion_gate.core.errors import (
    ArtifactError,
    GateError,
    HashMismatch,
    InputError,
    RefusedData,
    UsageError,
)
from promotion_gate.core.places import base_folder
from promotion_gate.core.record import now, whoami
from promotion_gate.data.files import without_credentials
from promotion_gate.provenance.dbom import DbomEntry, read_dbom, refuse_unfit_url, require_name
from promotion_gate.provenance.hashing import FileHash, hash_tree
from promotion_gate.provenance.mirror import publish_to_mirror
from promotion_gate.provenance.register import Particulars, add_tree
from promotion_gate.provenance.sources import Limits, fetch, open_remote
from promotion_gate.provenance.unpack import Room, archive_kind, unpack

if TYPE_CHECKING:
    from promotion_gate.validation.expectations import Expectations

QUARANTINE_VARIABLE = "PROMOTION_GATE_QUARANTINE"
RECORD = "vendor.json"
DECISIONS = "decisions.jsonl"
REPORT, SHEET = "validation.html", "contact-sheet.html"
MAX_RECORD_BYTES = 1 << 20
MAX_DECISIONS_BYTES = 1 << 28
SHEET_IMAGES = 100

State = Literal["waiting", "invalid", "approved", "rejected", "refused"]
Progress = Callable[[str], None]


class Vendored(BaseModel):
    """What is known of a set in quarantine.

    ``sha256`` is the digest of its files as they were looked at; empty for an archive that was ``refused``
    before it was unpacked. ``url`` holds no credentials and no query; ``url_sha256`` stands for all of it.
    ``again_because`` says why a set came again that somebody had rejected.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    url: str
    mirror_root: str
    version: str
    license: str = ""
    download_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    data: str = Field(pattern=r"^data(/[A-Za-z0-9._-]+)?$")
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    files: int
    size: int
    state: State
    found: str
    fetched_by: str
    fetched_at: AwareDatetime
    url_sha256: str = ""
    again_because: str = ""
    reason: str = ""
    decided_by: str = ""
    decided_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be fetched, how much of it at most, and where it is to go."""

    url: str
    name: str
    mirror_root: str
    version: str = "1"
    license: str = ""
    expect: Path | None = None
    sha256: str = ""
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    files: int = 5_000_000
    again_because: str = ""


def quarantine_folder() -> Path:
    """The private folder of everything in quarantine, made if need be.

    Raises
    ------
    InputError: it cannot be made, or others may look into it.
    """
    named = os.environ.get(QUARANTINE_VARIABLE, "")
    if named:
        folder = Path(named).absolute()
    else:
        folder = base_folder("XDG_DATA_HOME") / "promotion-gate" / "quarantine"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat(follow_symlinks=False)
    except OSError as error:
        raise InputError(f"cannot use the quarantine {folder}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise InputError(f"others may look into the quarantine {folder}", f"chmod 700 {folder}")
    return folder


def vendor(order: Order, progress: Progress = lambda _: None) -> tuple[Vendored, Path]:
    """Fetch a set into quarantine, unpack it, validate it and draw its contact sheet.

    Returns what is known of it, and the folder with the report and the contact sheet.

    Raises
    ------
    UsageError: a set of that name waits already.
    InputError: it cannot be fetched or unpacked within the limits.
    HashMismatch: it is not the one with that SHA-256.
    RefusedData: its archive is hostile, or its URL or bytes were rejected and nobody says why they come
        again.
    """
    require_name(order.name)
    refuse_unfit_url(order.url, "the URL")
    refuse_unfit_url(order.mirror_root, "the mirror")
    open_remote(order.url)
    expected = _expectations(order)
    if open_remote(order.mirror_root).is_http:
        raise UsageError("a mirror must be writable", "name s3://, gs:// or file:// with --to")
    folder = quarantine_folder()
    shown, key = without_credentials(order.url), _url_key(order.url)
    if not order.again_because.strip():
        for earlier in rejections():
            if earlier.url_sha256 == key or (not earlier.url_sha256 and earlier.url == shown):
                raise _rejected_before(shown, earlier)
    place = folder / order.name
    if place.exists():
        raise UsageError(
            f"a set {order.name!r} is in quarantine already",
            f"promotion-gate vendor approve {order.name}, or reject",
        )
    staged = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        with _called(staged, order.name):
            record = _filled(order, expected, staged, progress)
        (staged / RECORD).write_text(record.model_dump_json(indent=1), encoding="utf-8")
        try:
            staged.rename(place)
        except OSError:
            raise UsageError(f"a set {order.name!r} came into quarantine meanwhile") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return record, place


def _expectations(order: Order) -> Expectations:
    from promotion_gate.validation.expectations import Expectations, load_expectations

    return Expectations(version=1) if order.expect is None else load_expectations(order.expect)


def _filled(order: Order, expected: Expectations, staged: Path, progress: Progress) -> Vendored:
    shown = without_credentials(order.url)
    progress(f"fetch {shown}")
    (staged / "download").mkdir()
    file, hashed = fetch(order.url, staged / "download", order.limits)
    if order.sha256 and hashed.sha256 != order.sha256.lower():
        raise HashMismatch(f"{shown} has the SHA-256 {hashed.sha256}, and not the one that was asked for")
    record = _begun(order, hashed)
    try:
        inside = _unpacked(file, order, staged, progress)
        tree = hash_tree(staged / inside, progress=progress)
        record = record.model_copy(
            update={"data": inside, "sha256": tree.sha256, "files": len(tree.files), "size": tree.size}
        )
        if not record.again_because:
            for earlier in rejections():
                if _same_bytes(earlier, record):
                    raise _rejected_before(f"what {shown} holds", earlier)
    except RefusedData as error:
        decided = {"found": str(error), "decided_by": record.fetched_by, "decided_at": now()}
        _note(staged.parent, record.model_copy(update=decided))
        raise
    met, found = _looked_at(expected, staged / inside, order.name, staged, progress)
    return record.model_copy(update={"state": "waiting" if met else "invalid", "found": found})


def _begun(order: Order, download: FileHash) -> Vendored:
    """The record of a download of which nothing more is known: refused, unless it comes to more."""
    return Vendored(
        name=order.name,
        url=without_credentials(order.url),
        url_sha256=_url_key(order.url),
        mirror_root=order.mirror_root,
        version=order.version,
        license=order.license,
        download_sha256=download.sha256,
        data="data",
        sha256="",
        files=0,
        size=0,
        state="refused",
        found="",
        fetched_by="@".join(whoami()),
        fetched_at=now(),
        again_because=order.again_because.strip(),
    )


def _unpacked(file: Path, order: Order, staged: Path, progress: Progress) -> str:
    """Where in ``staged`` the set lies, after the archive, if it is one, was unpacked."""
    data = staged / "data"
    data.mkdir()
    if archive_kind(file) is None:
        inside = f"data/{file.name}"
        file.rename(staged / inside)
    else:
        progress(f"unpack {file.name}")
        inside = "data"
        unpack(file, data, Room(order.files, order.limits.size))
        file.unlink()
    (staged / "download").rmdir()
    return inside


@contextmanager
def _called(staged: Path, name: str) -> Iterator[None]:
    """Errors name the set, and not a folder that is gone when they are read."""
    try:
        yield
    except GateError as error:
        raise type(error)(_named(error.what, staged, name), _named(error.remedy, staged, name)) from None


def _named(text: str, staged: Path, name: str) -> str:
    return text.replace(str(staged / "data"), name).replace(str(staged), name)


def _looked_at(
    expected: Expectations, data: Path, name: str, folder: Path, progress: Progress
) -> tuple[bool, str]:
    """Whether the set is as expected, and in a line what was found; writes report and contact sheet."""
    from promotion_gate.validation.alike import find_alike
    from promotion_gate.validation.contact_sheet import contact_sheet, draw_sample
    from promotion_gate.validation.expectations import Likeness
    from promotion_gate.validation.page import validation_page
    from promotion_gate.validation.report import ending
    from promotion_gate.validation.run import validate
    from promotion_gate.validation.survey import open_data, survey

    try:
        found = validate(str(data), expected, progress=progress, whole=True, called=name)
        (folder / REPORT).write_bytes(validation_page(found))
        dataset = open_data(expected.data.source(str(data), expected.data.split), called=name)
        looked = survey(dataset, looks=True)
        sample = draw_sample(looked, find_alike(looked, None, Likeness()), SHEET_IMAGES, 0)
        (folder / SHEET).write_bytes(contact_sheet(looked, sample, SHEET_IMAGES))
    except GateError as error:
        return False, f"it cannot be examined: {_named(str(error), folder, name)}"
    return found.met, ending(found)


def in_quarantine() -> list[Vendored]:
    """Everything that waits or was found wanting, by name."""
    folder = quarantine_folder()
    return [read_record(path.name)[0] for path in sorted(folder.iterdir()) if (path / RECORD).is_file()]


def read_record(name: str) -> tuple[Vendored, Path]:
    """The record of a set in quarantine, and its folder.

    Raises
    ------
    UsageError: nothing of that name is there.
    InputError: its record cannot be read.
    """
    require_name(name)
    place = quarantine_folder() / name
    try:
        with (place / RECORD).open("rb") as file:
            content = file.read(MAX_RECORD_BYTES)
    except FileNotFoundError:
        raise UsageError(
            f"nothing named {name!r} is in quarantine", "see 'promotion-gate vendor list'"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {place / RECORD}: {error.strerror}") from None
    try:
        return Vendored.model_validate_json(content), place
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"{place / RECORD} is malformed: {first['msg']}") from None


def approve_vendored(
    name: str,
    dbom: Path,
    *,
    reason: str,
    again_because: str = "",
    replacing: bool = False,
    unsafe_invalid: bool = False,
    progress: Progress = lambda _: None,
) -> DbomEntry:
    """Publish a set to the mirror and write its entry, vetted, into the bill of materials.

    Raises
    ------
    UsageError: no reason, nothing of that name, or it did not meet its expectations and nobody insists.
    RefusedData: its URL or bytes were rejected, and nobody says why they come again.
    ArtifactError: its bytes are no longer those that were looked at.
    InputError, HashMismatch, DbomError: as publishing and registering raise them; the set stays where it is.
    """
    reason = _require_reason(reason)
    record, place = read_record(name)
    if record.state == "invalid" and not unsafe_invalid:
        raise UsageError(
            f"{name} did not meet its expectations: {record.found}",
            "reject it, or insist with --unsafe-invalid",
        )
    again = again_because.strip()
    if not again:
        for earlier in rejections():
            answered = record.again_because and (earlier.decided_at or now()) <= record.fetched_at
            same_url = record.url_sha256 and earlier.url_sha256 == record.url_sha256
            if not answered and (same_url or _same_bytes(earlier, record)):
                raise _rejected_before(name, earlier)
    record = record.model_copy(update={"again_because": again or record.again_because})
    if dbom.exists() and name in read_dbom(dbom).entries and not replacing:
        raise UsageError(f"{dbom} has a data set {name!r} already", "--replace states it anew")
    data = place / record.data
    tree = hash_tree(data, progress=progress)
    if tree.sha256 != record.sha256:
        raise ArtifactError(f"the files of {name} have changed since they were looked at", "fetch it again")
    progress(f"copy to {without_credentials(record.mirror_root)}")
    mirror = publish_to_mirror(data, tree, record.mirror_root, progress)
    insisted = " (--unsafe-invalid: it did not meet its expectations)" if record.state == "invalid" else ""
    insisted += f" (rejected before, again because: {record.again_because})" if record.again_because else ""
    about = Particulars(
        name=name,
        version=record.version,
        origin=record.url,
        mirror=mirror,
        license=record.license,
        vetting="vetted",
        reason=reason + insisted,
    )
    entry = add_tree(dbom, tree, about, replacing=replacing)
    _decide(record, place, "approved", reason + insisted)
    return entry


def reject_vendored(name: str, *, reason: str) -> Vendored:
    """Throw a set in quarantine away; that it was rejected, and why, is kept.

    Raises
    ------
    UsageError: no reason, or nothing of that name.
    """
    reason = _require_reason(reason)
    record, place = read_record(name)
    return _decide(record, place, "rejected", reason)


def _decide(record: Vendored, place: Path, state: State, reason: str) -> Vendored:
    decided = record.model_copy(
        update={
            "state": state,
            "reason": reason,
            "decided_by": "@".join(whoami()),
            "decided_at": now(),
        }
    )
    _note(place.parent, decided)
    try:
        aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=".old-"))
        place.rename(aside / place.name)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot clear the quarantine {place}: {error.strerror}") from None
    return decided


def rejections() -> list[Vendored]:
    """Every set that was ever rejected, the newest first.

    Raises
    ------
    InputError: the decisions cannot be read: what was rejected is then not known.
    """
    path = quarantine_folder() / DECISIONS
    try:
        with path.open("rb") as file:
            content = file.read(MAX_DECISIONS_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_DECISIONS_BYTES:
        raise InputError(f"{path} is larger than {MAX_DECISIONS_BYTES:,} bytes", "move it aside by hand")
    decided = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            decided.append(Vendored.model_validate_json(line))
        except ValidationError:
            raise InputError(f"{path}: line {number} is malformed", "mend it by hand") from None
    return [record for record in reversed(decided) if record.state == "rejected"]


def _same_bytes(earlier: Vendored, record: Vendored) -> bool:
    return earlier.download_sha256 == record.download_sha256 or earlier.sha256 == record.sha256


def _rejected_before(what: str, earlier: Vendored) -> RefusedData:
    when = f" on {earlier.decided_at:%Y-%m-%d}" if earlier.decided_at else ""
    return RefusedData(
        f"{what} was rejected as {earlier.name} by {earlier.decided_by}{when}: {earlier.reason:.200}",
        'to let it in after all, say why: --again-because "…"',
    )


def _url_key(url: str) -> str:
    """What stands for a URL where its query must not be shown."""
    parts = urlsplit(url)
    plain = urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path, parts.query, ""))
    return hashlib.sha256(plain.encode()).hexdigest()


def _note(folder: Path, record: Vendored) -> None:
    """Keep a decision."""
    try:
        with (folder / DECISIONS).open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {folder / DECISIONS}: {error.strerror}") from None


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise UsageError("a reason is needed", 'say why: --reason "…"')
    return reason.strip()
