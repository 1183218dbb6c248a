"""The columns of a prediction log, and the two forms its own files take.

A log grows as a journal, ``*.arrows``: an Arrow IPC stream, appended to by one process that holds a lock on
it. When the journal is full or its process is gone it becomes ``*.parquet`` of the same stem with the same
rows in the same order. A reader that finds both takes the Parquet.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

JOURNAL = ".arrows"
PARQUET = ".parquet"

MAX_NAME = 256
"""A class name may be no longer than this."""
MAX_IMAGE = 2048
"""An image reference may be no longer than this."""
MAX_WIDTH = 16_384
"""An embedding may be no wider than this."""

_OPTIONAL = ("class", "label", "confidence", "image", "embedding")
_GROUP_ROWS = 131_072
_GROUP_BYTES = 32 * 2**20


def log_schema() -> Any:
    """Arrow schema of a log: ``time`` in microseconds UTC; ``class`` by name, or ``label`` by index."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
            pa.field("class", pa.string()),
            pa.field("label", pa.int32()),
            pa.field("confidence", pa.float32()),
            pa.field("version", pa.int32(), nullable=False),
            pa.field("image", pa.string()),
            pa.field("embedding", pa.list_(pa.float32())),
        ]
    )


def open_plain(path: str | Path) -> BinaryIO:
    """Open a local file to read it. A pipe in its place would keep its reader waiting for good.

    Raises
    ------
    OSError: it cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return os.fdopen(descriptor, "rb")


def journal_batches(path: Path) -> Iterator[Any]:
    """The whole record batches of a journal; one that is still being written, or never was, ends it."""
    import pyarrow as pa

    with open_plain(path) as file:
        try:
            reader = pa.ipc.open_stream(file)
        except (pa.ArrowInvalid, OSError):
            return  # not even the schema is there yet
        while True:
            try:
                batch = reader.read_next_batch()
            except (StopIteration, pa.ArrowInvalid, OSError):
                return
            yield batch


def compact(journal: Path) -> Path | None:
    """Turn a journal that nobody writes to into Parquet, and remove it; None where it holds no row.

    Killed in the middle, it leaves the journal, and at worst a hidden partial file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, filled = 0, dict.fromkeys(_OPTIONAL, False)
    for batch in journal_batches(journal):
        rows += batch.num_rows
        for name in _OPTIONAL:
            filled[name] |= batch.column(name).null_count < batch.num_rows
    target = journal.with_suffix(PARQUET)
    if not rows:
        journal.unlink(missing_ok=True)
        return None
    kept = [name for name in log_schema().names if filled.get(name, True)]
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with pq.ParquetWriter(
            partial, pa.schema([log_schema().field(n) for n in kept]), compression="zstd"
        ) as out:
            for table in _grouped(journal_batches(journal)):
                out.write_table(table.select(kept))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    journal.unlink(missing_ok=True)
    return target


def orphans(folder: Path, prefix: str) -> Iterator[tuple[Path, int]]:
    """Journals whose process is gone, each with its locked descriptor, which the caller closes.

    Those of other users stay as they are: what they hold may be made to fill the memory of who reads it.
    """
    import fcntl

    for path in sorted(folder.glob(f"{prefix}*{JOURNAL}")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "not a journal of this user")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        yield path, descriptor


def _grouped(batches: Iterator[Any]) -> Iterator[Any]:
    """Tables of the size of a row group."""
    import pyarrow as pa

    group: list[Any] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(group)
            group, rows, size = [], 0, 0
    if group:
        yield pa.Table.from_batches(group)
