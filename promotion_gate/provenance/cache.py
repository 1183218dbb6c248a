"""The private store of verified data: one place for each digest, read-only, filled by renaming.

It lies in ``$XDG_CACHE_HOME/promotion-gate/data``. What it holds is hashed again whenever it is used. A
file's name there follows from its digest and suffix alone: entries that call the same bytes otherwise share
it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promotion_gate.core.errors import InputError
from promotion_gate.core.places import private_cache
from promotion_gate.provenance.dbom import Dbom, DbomEntry
from promotion_gate.provenance.sources import file_name


def cached_place(entry: DbomEntry) -> Path:
    """Where the set lies in the store, or will: the file itself, or the folder."""
    if entry.is_folder:
        return shelf("folders") / entry.sha256
    # The suffix tells readers the format.
    suffix = Path(file_name(entry.path or entry.origin or entry.mirror)).suffix
    return shelf("files") / f"{entry.sha256}{suffix}" / f"data{suffix}"


def place_here(dbom: Dbom, entry: DbomEntry) -> Path | None:
    """Where a copy of the set lies on this machine: where its entry says, or in the store."""
    place = dbom.local_path(entry)
    if place is not None and place.exists():
        return place
    if not entry.sha256:
        return None
    place = cached_place(entry)
    return place if place.exists() else None


def shelf(kind: str) -> Path:
    """The part of the store for ``files`` or ``folders``."""
    folder = private_cache("data") / kind
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def staging(beside: Path, size: int = 0) -> Iterator[Path]:
    """A folder to fill beside the store's entries; what is left of it is removed.

    Raises
    ------
    InputError: there is no room for ``size`` bytes, or the disk fails.
    """
    try:
        free = shutil.disk_usage(beside).free
        if size > free:
            raise InputError(f"no room for {size:,} bytes in the data cache {beside}: {free:,} are free")
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=".new-"))
    except OSError as error:
        raise InputError(f"cannot use the data cache {beside}: {error.strerror}") from None
    try:
        yield folder
    finally:
        discard(folder)


def publish(staged: Path, place: Path) -> bool:
    """Make a filled folder an entry of the store, read-only; false if another process was first."""
    for folder, _, names in os.walk(staged, topdown=False):
        for name in names:
            Path(folder, name).chmod(0o400)
        Path(folder).chmod(0o500)
    try:
        staged.rename(place)
    except OSError:
        return False
    return True


@contextmanager
def alone(beside: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder that ends with the process."""
    descriptor = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder of the store: first out of sight, then file by file."""
    aside = folder.with_name(f".old-{os.urandom(8).hex()}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    for parent, _, _ in os.walk(aside):
        Path(parent).chmod(0o700)
    shutil.rmtree(aside, ignore_errors=True)
