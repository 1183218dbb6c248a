"""The digest of a model's files: what ties a review to the bytes that are promoted.

Standard library only, since rollback takes the digest too and waits for nothing heavier.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from promotion_gate.core.errors import ArtifactError
from promotion_gate.core.types import ArtifactFile

DOWNLOAD_MARKER = "registered_model_meta"
_MARKER = re.compile(rb"model_name: [^\r\n]{1,500}\nmodel_version: '?[0-9]{1,18}'?\n")
MAX_FILES = 10_000
MAX_TOTAL_BYTES = 32 * 2**30
MAX_PATH_CHARACTERS = 512


def digest_folder(folder: Path) -> tuple[tuple[ArtifactFile, ...], str]:
    r"""Hash every file under ``folder`` and the listing of all of them.

    The digest is the SHA-256 of one line a file, ``<hex sha256>  <path>\n``, in order of the UTF-8 bytes
    of the paths: what ``sha256sum`` prints. Left out is only ``registered_model_meta`` at the root, which
    MLflow's download adds, where it holds what MLflow writes there.

    Raises
    ------
    ArtifactError: the folder holds no file, a link, a device or pipe, a path that cannot be listed
    unambiguously, or more files or bytes than any model has.
    """
    files = [ArtifactFile(path, size, _sha256(folder / path, size)) for path, size in listed_files(folder)]
    if not files:
        raise ArtifactError("the model has no files", "check the version's source in the registry")
    files.sort(key=lambda file: file.path.encode())
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    return tuple(files), hashlib.sha256(listing.encode()).hexdigest()


def listed_files(folder: Path) -> list[tuple[str, int]]:
    """Path and size of every file under ``folder``; none is opened.

    Raises
    ------
    ArtifactError: as :func:`digest_folder`, but for an empty folder.
    """
    files: list[tuple[str, int]] = []
    total = 0
    for path, size in _regular_files(folder):
        total += size
        if len(files) >= MAX_FILES or total > MAX_TOTAL_BYTES:
            raise ArtifactError(
                f"the model has more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES // 2**30} GiB",
                "log the model alone, without its data",
            )
        files.append((path, size))
    return files


def _regular_files(folder: Path) -> Iterator[tuple[str, int]]:
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            entries = sorted(os.scandir(folder / parent), key=lambda entry: entry.name)
        except OSError as error:
            raise ArtifactError(f"cannot read the model's folder: {error.strerror}") from None
        for entry in entries:
            path = f"{parent}{entry.name}"
            _refuse_odd_path(path)
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                pending.append(f"{path}/")
            elif not stat.S_ISREG(info.st_mode):
                raise ArtifactError(
                    f"the model's file {path!r} is a link, device or pipe", "log plain files only"
                )
            elif path != DOWNLOAD_MARKER or not _is_download_marker(folder / path, info.st_size):
                yield path, info.st_size


def _is_download_marker(path: Path, size: int) -> bool:
    try:
        return size < 600 and _MARKER.fullmatch(path.read_bytes()) is not None
    except OSError:
        return False


def _refuse_odd_path(path: str) -> None:
    readable = path.isprintable() and "\\" not in path and len(path) <= MAX_PATH_CHARACTERS
    if not readable:
        raise ArtifactError(
            f"the model has a file with an unreadable name: {path[:80]!r}", "rename it and log again"
        )


def _sha256(path: Path, expected_size: int) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise ArtifactError(f"cannot read the model's file {path.name!r}: {error.strerror}") from None
    if size != expected_size:
        raise ArtifactError(f"the model's file {path.name!r} changed while it was read", "run the gate again")
    return digest
