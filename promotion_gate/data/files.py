"""Files wherever fsspec reaches them: finding, reading and digesting, with one-line errors."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from promotion_gate.core.errors import GateError, InputError
from promotion_gate.core.places import expanded

MAX_IMAGE_FILE_BYTES = 64 * 2**20
"""A single encoded image may be no larger than this."""

SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
"""What folders and files of a data set that holds several splits are usually called."""

_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder on an fsspec file system; ``uri`` is for people and holds no credentials."""

    fs: Any
    path: str
    uri: str

    @property
    def name(self) -> str:
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def parent(self) -> str:
        return posixpath.dirname(self.path.rstrip("/"))

    @property
    def local(self) -> bool:
        return is_local(self.fs)

    def under(self, *parts: str) -> Location:
        return Location(self.fs, posixpath.join(self.path, *parts), posixpath.join(self.uri, *parts))


def is_local(fs: Any) -> bool:
    """Whether paths of this file system are paths of this machine."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def is_url(path: str) -> bool:
    """Whether fsspec, not the local file system, is to make sense of ``path``."""
    return "://" in path or "::" in path


def without_credentials(uri: str) -> str:
    """The URI with user names, passwords and presigned query strings taken out."""
    plain = re.sub(r"(?<=://)[^/@]*@", "", uri)
    return plain.split("?", 1)[0] if plain.startswith(("http://", "https://")) else plain


def locate(path: str, folder: Path) -> Location:
    """Find what ``path`` names: a URL, or a local path relative to ``folder``.

    Raises
    ------
    InputError: there is nothing, or no driver for such a URL.
    """
    if not is_url(path):
        absolute = os.path.normpath(Path.cwd() / folder / expanded(path))
        place = Location(fsspec.filesystem("file"), absolute, absolute)
    else:
        shown = without_credentials(path)
        try:
            fs, inner = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot open {shown!r:.200}: {error}") from None
        place = Location(fs, inner, shown)
    with reading(place.uri):
        if not place.fs.exists(place.path):
            raise _missing(place)
    return place


def _missing(place: Location) -> InputError:
    """Why there is nothing: a driver of web addresses also says so of a server that does not answer."""
    try:
        place.fs.info(place.path)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, GateError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):
            return InputError(f"cannot read {place.uri}: {_reason(error.__cause__)}", "is the server up?")
    return InputError(f"no such file or folder: {place.uri}", "is the path right?")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a storage driver raises into an InputError that names ``what``."""
    try:
        yield
    except GateError:
        raise
    except FileNotFoundError as error:
        # Drivers of web addresses call everything so that keeps a file from them.
        if isinstance(error.__cause__, GateError):
            raise error.__cause__ from None
        raise InputError(f"no such file: {what}") from None
    except MemoryError:
        raise InputError(f"cannot read {what}: it does not fit in memory") from None
    except Exception as error:
        raise InputError(f"cannot read {what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return without_credentials(f"{error}"[:200]) or type(error).__name__


def find_files(place: Location, suffixes: tuple[str, ...]) -> list[str]:
    """Paths under a folder with one of the suffixes, relative to it, in byte order; none hidden.

    Links are followed, each folder once.
    """
    kept = [name for name in every_file(place) if name.lower().endswith(suffixes) and not is_hidden(name)]
    return sorted(kept, key=os.fsencode)


def every_file(place: Location) -> list[str]:
    """Paths of all files under a folder, relative to it, hidden ones too; links as in :func:`find_files`."""
    with reading(place.uri):
        return list(_walk_local(place.path) if place.local else _walk_remote(place))


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder on the way to it, is hidden."""
    return any(part.startswith(".") for part in name.split("/"))


def _walk_local(root: str) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort(key=os.fsencode)
        base = "" if folder == root else os.path.relpath(folder, root) + "/"
        yield from (base + name for name in names)


def _walk_remote(place: Location) -> Iterator[str]:
    base = place.path.rstrip("/") + "/"
    for name in place.fs.find(place.path):
        yield name.removeprefix(base)


def subfolders(place: Location) -> list[str]:
    """Names of the folders directly under ``place``, in byte order; none hidden."""
    with reading(place.uri):
        if place.local:
            names = [entry.name for entry in os.scandir(place.path) if entry.is_dir()]
        else:
            entries = place.fs.ls(place.path, detail=True)
            names = [
                posixpath.basename(entry["name"].rstrip("/"))
                for entry in entries
                if entry["type"] == "directory" and entry["name"].rstrip("/") != place.path.rstrip("/")
            ]
    return sorted((name for name in names if not name.startswith(".")), key=os.fsencode)


def require_regular(path: str, what: str) -> None:
    """Refuse a local path that is missing or is not a plain file: a pipe would block for ever.

    Raises
    ------
    InputError: naming ``what``.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - called once an image; Path costs three times as much
    except (OSError, ValueError):
        raise InputError(f"{what}: no such file: {path!r:.300}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{what}: not a plain file: {path!r:.300}")


def fetch(fs: Any, paths: Sequence[str], names: Sequence[str]) -> list[bytes]:
    """The contents of some image files, read at once where the driver can.

    Raises
    ------
    InputError: one is missing, unreadable or larger than :data:`MAX_IMAGE_FILE_BYTES`; ``names`` says
    what to call each.
    """
    if is_local(fs):
        for path, name in zip(paths, names, strict=True):
            require_regular(path, name)
        contents: list[Any] = [_read_local(path, name) for path, name in zip(paths, names, strict=True)]
    else:
        with reading(names[0]):
            contents = fs.cat_ranges(list(paths), 0, MAX_IMAGE_FILE_BYTES + 1, on_error="return")
    for content, name in zip(contents, names, strict=True):
        with reading(name):
            if isinstance(content, BaseException):
                raise content
            if len(content) > MAX_IMAGE_FILE_BYTES:
                raise InputError(f"{name} is larger than {MAX_IMAGE_FILE_BYTES >> 20} MiB: not an image")
    return contents


def _read_local(path: str, name: str) -> bytes:
    with reading(name), open(path, "rb") as file:  # noqa: PTH123 - called once an image
        return file.read(MAX_IMAGE_FILE_BYTES + 1)


def digest_files(fs: Any, files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over a canonical listing of files.

    The listing has one line a file, ``<hex sha256>  <name>`` and a line feed, in byte order of the
    names. Files are hashed as streams.

    Parameters
    ----------
    fs
        The fsspec file system that the files lie on.
    files
        Pairs of the name in the listing and the path on ``fs``.
    """
    listing = hashlib.sha256()
    for name, path in sorted(files, key=lambda pair: os.fsencode(pair[0])):
        with reading(name):
            listing.update(f"{_digest_file(fs, path)}  ".encode() + os.fsencode(name) + b"\n")
    return listing.hexdigest()


def _digest_file(fs: Any, path: str) -> str:
    if is_local(fs):
        require_regular(path, path)
        with open(path, "rb") as file:  # noqa: PTH123 - called once an image
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
