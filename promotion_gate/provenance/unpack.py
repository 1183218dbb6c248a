"""Unpack an archive that came from outside: what it holds is listed and judged before a byte is written.

Refused by name: paths that are absolute, lead upwards, or are no text; links, devices and pipes; two members
of one name, also where only case tells them apart; encrypted members; and more files or bytes than allowed,
counted while unpacking, since an archive's own figures may lie. Nothing is executed and no mode is kept.
"""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from promotion_gate.core.errors import InputError, RefusedData

Kind = Literal["zip", "tar"]

MAX_NAME_BYTES = 1024
MAX_DEPTH = 32
MOST_FILES = 5_000_000
MOST_NAMED = 20
DENSEST = 200
"""How many times larger than the archive its content may be: images hardly shrink, bombs a thousandfold."""
ALWAYS_ALLOWED_BYTES = 64 * 2**20
_BLOCK = 2**20
_ENCRYPTED = 0x1
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    RuntimeError, UnicodeError, ValueError, OSError,
)  # fmt: skip
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: files and bytes."""

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class Room:
    """How much may come out of an archive."""

    files: int = MOST_FILES
    size: int = 200 * 2**30


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of an archive: where it goes, and how its content is opened."""

    path: PurePosixPath
    open: Callable[[], IO[bytes] | None]


def archive_kind(path: Path) -> Kind | None:
    """Whether a file is an archive to unpack; a data set that is an archive itself (``.npz``) is not."""
    if path.suffix.lower() == ".npz":
        return None
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(257)
        is_tar = file.read(5) == b"ustar"
    if start in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    return "tar" if is_tar or path.name.lower().endswith(_TAR_SUFFIXES) else None


def unpack(archive: Path, target: Path, room: Room) -> Unpacked:
    """Write an archive's files below ``target``, an empty folder. One folder that holds them all is left out.

    Raises
    ------
    RefusedData: members are refused, all of them named up to a limit, or there is more in it than ``room``
        allows. What was written until then is the caller's to remove.
    InputError: the archive is damaged.
    """
    most = min(room.size, max(ALWAYS_ALLOWED_BYTES, DENSEST * archive.stat().st_size))
    room = Room(room.files, most)
    try:
        if archive_kind(archive) == "zip":
            with zipfile.ZipFile(archive) as opened:
                return _write(_zip_members(opened, archive.name), target, archive.name, room)
        with tarfile.open(archive, "r:*") as packed:
            return _write(_tar_members(packed, archive.name, room), target, archive.name, room)
    except _DAMAGED as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the archive {archive.name!r} cannot be unpacked: {what:.200}") from None


class _Refusals:
    """What is wrong with members, gathered so that all of it is told at once."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._told: list[str] = []
        self._count = 0

    def add(self, name: str, why: str) -> None:
        self._count += 1
        if len(self._told) < MOST_NAMED:
            self._told.append(f"{name!r:.200} {why}")

    def end(self) -> None:
        """Raise what was gathered, if anything was."""
        if not self._count:
            return
        more = self._count - len(self._told)
        raise RefusedData(
            f"the archive {self._archive!r} is refused: {', '.join(self._told)}"
            + f", and {more:,} more like these" * bool(more)
        )


def _zip_members(opened: zipfile.ZipFile, archive: str) -> list[_Member]:
    refusals, members = _Refusals(archive), []
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & _ENCRYPTED:
            refusals.add(info.filename, "is encrypted")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            refusals.add(info.filename, "is a link or a device")
        elif why := _stray(info.filename, is_folder=info.is_dir()):
            refusals.add(info.filename, why)
        elif not info.is_dir():
            members.append(_Member(PurePosixPath(info.filename), partial(opened.open, info)))
    refusals.end()
    return members


def _tar_members(packed: tarfile.TarFile, archive: str, room: Room) -> list[_Member]:
    """The headers are read through to the end first; a bomb is noticed by the sizes it must declare."""
    refusals, members = _Refusals(archive), []
    files = size = 0
    for member in packed:
        files, size = files + 1, size + member.size
        _require_room(archive, files, size, room)
        if not (member.isreg() or member.isdir()) or member.issparse():
            refusals.add(member.name, "is a link, a device or a sparse file")
        elif why := _stray(member.name, is_folder=member.isdir()):
            refusals.add(member.name, why)
        elif not member.isdir():
            members.append(_Member(PurePosixPath(member.name), partial(packed.extractfile, member)))
    refusals.end()
    return members


def _stray(name: str, *, is_folder: bool) -> str:
    """Why a member's name is no plain path inside the archive; empty where it is."""
    path = PurePosixPath(name)
    if is_folder and not path.parts and not name.startswith("/"):
        return ""  # the archive's own root, as "./"
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive"
    if not path.parts or "\\" in name or ":" in path.parts[0] or not name.isprintable():
        return "holds a backslash, a drive or characters that cannot be shown"
    if len(path.parts) > MAX_DEPTH or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES:,} bytes or deeper than {MAX_DEPTH} folders"
    return ""


def _write(members: list[_Member], target: Path, archive: str, room: Room) -> Unpacked:
    _require_room(archive, len(members), 0, room)
    paths = _without_top(archive, [member.path for member in members])
    size = 0
    for member, path in zip(members, paths, strict=True):
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = member.open()
        if content is None:
            raise RefusedData(f"the archive {archive!r} is refused: {str(path)!r:.200} has no content")
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with content, os.fdopen(descriptor, "wb") as file:
            while block := content.read(_BLOCK):
                size += len(block)
                _require_room(archive, 0, size, room)
                file.write(block)
    return Unpacked(len(members), size)


def _without_top(archive: str, paths: list[PurePosixPath]) -> list[PurePosixPath]:
    """The paths without the folder that all lie in, after it is sure that no two get in each other's way."""
    if not paths:
        raise InputError(f"the archive {archive!r} holds no file")
    refusals = _Refusals(archive)
    seen: set[str] = set()
    for path in paths:
        key = str(path).casefold()
        if key in seen:
            refusals.add(str(path), "is there twice, in small and capital letters alike")
        seen.add(key)
    for path in paths:
        if any(str(parent).casefold() in seen for parent in path.parents):
            refusals.add(str(path), "lies inside of a file")
    refusals.end()
    tops = {path.parts[0] for path in paths}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in paths):
        return [PurePosixPath(*path.parts[1:]) for path in paths]
    return paths


def _require_room(archive: str, files: int, size: int, room: Room) -> None:
    if files > room.files:
        raise RefusedData(f"the archive {archive!r} holds more than {room.files:,} files")
    if size > room.size:
        raise RefusedData(
            f"the archive {archive!r} holds more than {room.size:,} bytes",
            "allow more with --max-gib, if you know it",
        )
