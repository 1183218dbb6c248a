"""The SHA-256 of every file of a data set, on all cores.

What is refused, always by name: a link (wherever it leads), a device or pipe, a name that is not UTF-8, a
file or folder that changes while it is read. The set's own path may be a link: it is where the data lies, not
part of it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promotion_gate.core.errors import InputError
from promotion_gate.provenance.sidecar import sidecar_bytes

Kind = Literal["file", "folder"]
Progress = Callable[[str], None]

_BUFFER = 2**20
_CHUNK_FILES = 256
_CHUNK_BYTES = 8 * 2**20
_SMALL = 32 * 2**10
"""Up to this size threads wait for the interpreter's lock longer than a file takes to hash."""
_WORTH_PROCESSES = 50_000
"""So many small files take longer on one core than other processes take to start."""
LONG_BYTES, LONG_SECONDS = 100 * 10**6, 1.0
"""Of fewer bytes progress is told only so often."""
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class FileHash:
    """One file: its path in the set (its bare name where the set is one file), bytes, hex digests.

    ``md5`` is empty unless it was asked for.
    """

    path: str
    size: int
    sha256: str
    md5: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a data set, in order of the UTF-8 bytes of their paths."""

    kind: Kind
    files: tuple[FileHash, ...]

    @property
    def sha256(self) -> str:
        """The digest of the set: of the file, or of :meth:`sidecar` for a folder."""
        if self.kind == "file":
            return self.files[0].sha256
        return hashlib.sha256(self.sidecar()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def sidecar(self) -> bytes:
        """What ``sha256sum`` would print of the files, and ``sha256sum -c`` reads."""
        return sidecar_bytes((file.path, file.sha256) for file in self.files)


def hash_tree(root: Path, *, md5: bool = False, progress: Progress = lambda _: None) -> Tree:
    """Hash a file, or every file under a folder, hidden ones too.

    Raises
    ------
    InputError: there is nothing, or something that is refused (see the module), named.
    """
    kind, files = list_files(root)
    return Tree(kind, hash_files(root, kind, files, md5=md5, progress=progress))


def list_files(root: Path) -> tuple[Kind, tuple[tuple[str, int], ...]]:
    """Path and size of every file of a set; see :func:`hash_tree`."""
    root, name = Path(os.path.realpath(root)), root.name
    try:
        mode = root.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the data set {str(root)!r}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if stat.S_ISREG(mode):
        _require_text(name)
        return "file", ((name, root.stat().st_size),)
    if not stat.S_ISDIR(mode):
        raise InputError(f"the data set {str(root)!r} is neither a file nor a folder")
    found = tuple(sorted(_walk(root), key=lambda file: file[0].encode()))
    if not found:
        raise InputError(f"the data set {str(root)!r} holds no file")
    return "folder", found


def hash_files(
    root: Path,
    kind: Kind,
    files: Sequence[tuple[str, int]],
    *,
    md5: bool = False,
    progress: Progress = lambda _: None,
) -> tuple[FileHash, ...]:
    """Hash the listed files of a set; the answer is in the order of ``files``."""
    from joblib import Parallel, delayed

    root = Path(os.path.realpath(root))
    prefix = str(root) if kind == "file" else f"{root}{os.sep}"
    tell = Tally(sum(size for _, size in files), progress)
    large, small = _portions(files)
    portions = [*small, *large]

    def arguments(rows: Sequence[int]) -> tuple[str, Kind, list[str]]:
        return prefix, kind, [files[row][0] for row in rows]

    def done(rows: Sequence[int], answer: list[FileHash]) -> list[FileHash]:
        tell.add(sum(files[row][1] for row in rows))
        return answer

    def in_turn(group: Sequence[Sequence[int]]) -> list[list[FileHash]]:
        return [done(rows, _hash_portion(*arguments(rows), md5=md5)) for rows in group]

    with _steady_folders(root, kind, files):
        if sum(map(len, small)) >= _WORTH_PROCESSES:
            processes = Parallel(n_jobs=-1, return_as="generator")
            told = processes(delayed(_hash_portion)(*arguments(rows), md5=md5) for rows in portions)
            answers = [done(rows, answer) for rows, answer in zip(portions, told, strict=True)]
        else:
            threads = Parallel(n_jobs=-1, prefer="threads", batch_size=1)
            groups = threads(delayed(in_turn)(group) for group in (small, *([rows] for rows in large)))
            answers = [answer for group in groups for answer in group]
    hashed: dict[int, FileHash] = {}
    for rows, answer in zip(portions, answers, strict=True):
        hashed.update(zip(rows, answer, strict=True))
    return tuple(hashed[row] for row in range(len(files)))


class Tally:
    """Tells every tenth of a long way, in order, from whichever thread is at work; of a short one nothing."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = self._tenth = 0
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            tenth = 10 * self._done // self._total if self._total else 0
            moment = time.monotonic()
            if tenth <= self._tenth or (self._total < LONG_BYTES and moment - self._told < LONG_SECONDS):
                return
            self._tenth, self._told = tenth, moment
            self._progress(f"{min(tenth, 10) * 10} % of {readable(self._total)} hashed")


def readable(size: int) -> str:
    """A number of bytes for people."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


class UnchangingFile:
    """A descriptor on a plain file; leaving the context refuses a file that changed since it was opened.

    ``name`` is what messages call it.
    """

    def __init__(self, path: str, name: str) -> None:
        self._name = name
        try:
            self.descriptor = os.open(path, _OPEN_FLAGS)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot read {name!r}: {why}") from None
        self._before = os.fstat(self.descriptor)
        if not stat.S_ISREG(self._before.st_mode):
            os.close(self.descriptor)
            raise InputError(f"{name!r} is a device or pipe", "a data set is made of plain files")

    @property
    def size(self) -> int:
        return self._before.st_size

    def __enter__(self) -> UnchangingFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            after = os.fstat(self.descriptor)
        finally:
            os.close(self.descriptor)
        # The time of the last change of the inode also moves when another file is renamed over this one.
        if kind is None and _state(after) != _state(self._before):
            raise _changed(self._name)

    def blocks(self, buffer: bytearray) -> Iterator[memoryview]:
        """The content, in pieces that lie in ``buffer``.

        Raises
        ------
        InputError: the file cannot be read.
        """
        view = memoryview(buffer)
        try:
            while count := os.readv(self.descriptor, [buffer]):
                yield view[:count]
        except OSError as error:
            raise InputError(f"cannot read {self._name!r}: {error.strerror}") from None


def _changed(name: str) -> InputError:
    return InputError(f"{name!r} changed while it was read", "stop what writes to it, and try again")


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash_portion(prefix: str, kind: Kind, names: Sequence[str], *, md5: bool) -> list[FileHash]:
    """Hash files under ``prefix``, or the file ``prefix`` itself, in this thread."""
    buffer = bytearray(_BUFFER)
    return [
        _hash_file(prefix if kind == "file" else f"{prefix}{name}", name, buffer, md5=md5) for name in names
    ]


def _hash_file(path: str, name: str, buffer: bytearray, *, md5: bool) -> FileHash:
    if not md5 and (quick := _hash_at_once(path, name)) is not None:
        return quick
    digest = hashlib.sha256()
    other = hashlib.md5(usedforsecurity=False) if md5 else None
    size = 0
    with UnchangingFile(path, name) as file:
        for block in file.blocks(buffer):
            digest.update(block)
            if other is not None:
                other.update(block)
            size += len(block)
    return FileHash(name, size, digest.hexdigest(), other.hexdigest() if other else "")


def _hash_at_once(path: str, name: str) -> FileHash | None:
    """A small plain file in one read; None for all else, and where something goes wrong.

    Raises
    ------
    InputError: it changed while it was read.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError):
        return None
    try:
        before = os.fstat(descriptor)
        size = before.st_size
        if size > _SMALL or not stat.S_ISREG(before.st_mode):
            return None
        content = os.read(descriptor, size + 1)
        if _state(os.fstat(descriptor)) != _state(before):
            raise _changed(name)
        if len(content) != size:
            return None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return FileHash(name, size, hashlib.sha256(content).hexdigest())


def _portions(files: Sequence[tuple[str, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Row numbers in portions of work, those of large files first and then those of small ones.

    The largest come first: no core is left with one at the end.
    """
    order = sorted(range(len(files)), key=lambda row: -files[row][1])
    large: list[list[int]] = []
    small: list[list[int]] = []
    room = 0
    for row in order:
        size = files[row][1]
        portions = small if size <= _SMALL else large
        if not portions or size > room or len(portions[-1]) == _CHUNK_FILES:
            portions.append([])
            room = _CHUNK_BYTES
        portions[-1].append(row)
        room -= size
    return large, small


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(root / parent) as entries:
                for entry in entries:
                    name = f"{parent}{entry.name}"
                    _require_text(name)
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(f"{name}/")
                    else:
                        _require_plain(name, status, root)
                        yield name, status.st_size
        except OSError as error:
            raise InputError(f"cannot list {str(root / parent)!r}: {error.strerror}") from None


def _require_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the file name {os.fsencode(name)!r} is not UTF-8", "rename the file") from None


def _require_plain(name: str, status: os.stat_result, root: Path) -> None:
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(root / name)
        inside = target.startswith(f"{root}{os.sep}")
        where = "" if inside else f" out of the folder, to {target!r}"
        raise InputError(f"{name!r} is a link{where}", "put the file itself in its place")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name!r} is a device or pipe", "a data set is made of plain files")


class _steady_folders:
    """Refuse a folder into or out of which files were moved meanwhile."""

    def __init__(self, root: Path, kind: Kind, files: Iterable[tuple[str, int]]) -> None:
        names = {""} if kind == "folder" else set()
        if kind == "folder":
            for name, _ in files:
                while (cut := name.rfind("/")) > 0 and (name := name[:cut]) not in names:
                    names.add(name)
        self._root = root
        self._names = sorted(names)

    def __enter__(self) -> None:
        self._before = [self._state(name) for name in self._names]

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            return
        for name, before in zip(self._names, self._before, strict=True):
            if self._state(name) != before:
                raise InputError(
                    f"the folder {name or '.'!r} changed while it was read",
                    "stop what writes to it, and try again",
                )

    def _state(self, name: str) -> tuple[int, ...]:
        try:
            status = (self._root / name).stat(follow_symlinks=False)
        except OSError as error:
            raise InputError(f"cannot read the folder {name!r}: {error.strerror}") from None
        return status.st_dev, status.st_ino, status.st_mtime_ns
