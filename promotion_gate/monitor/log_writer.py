"""The thread behind a prediction log: from the queue to a journal, and from the journal to Parquet."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promotion_gate.monitor import log_format

FLUSH_SECONDS = 1.0
WAKE_AT = 8192
_AT_ONCE = 128
"""After so many rows the writer lets the serving threads go first."""

_logger = logging.getLogger("promotion_gate.monitor")
_SAID = {
    "full": "predictions come faster than they can be written, or after the log was closed",
    "invalid": "something that is no prediction was logged",
    "failed": "predictions cannot be written",
}


@dataclass(slots=True)
class Drops:
    """Predictions that did not get into the log, by why.

    ``full``: the writer could not keep up. ``invalid``: they were none. ``failed``: the disk refused them.
    """

    full: int = 0
    invalid: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.full + self.invalid + self.failed


@dataclass(frozen=True, slots=True)
class Place:
    """Where journals go, what they are called, and when one is turned into Parquet."""

    folder: Path
    prefix: str
    rotate_rows: int
    rotate_bytes: int
    rotate_seconds: float


@dataclass(slots=True)
class Queue:
    """What the serving threads and the writer share. A row is (time, class, confidence, image, embedding)."""

    model: str
    version: int
    names: Sequence[str] | None
    place: Place
    waiting: deque[tuple[Any, ...]] = field(default_factory=deque)
    asked: deque[threading.Event] = field(default_factory=deque)
    wake: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    drops: Drops = field(default_factory=Drops)
    warned: set[str] = field(default_factory=set)
    written: int = 0

    def drop(self, why: str, count: int, error: BaseException | None = None) -> None:
        """Count what was lost, and say so the first time."""
        with self.lock:
            setattr(self.drops, why, getattr(self.drops, why) + count)
            known = why in self.warned
            self.warned.add(why)
        if known:
            return
        reason = "" if error is None else f" ({type(error).__name__}: {error})"[:300]
        with contextlib.suppress(Exception):
            _logger.warning("%s: %s%s; dropped and counted, told only once", self.model, _SAID[why], reason)


class Journal:
    """The file that one process appends to, and its way into Parquet."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._descriptor = -1
        self._path = place.folder
        self._rows = 0
        self._size = 0
        self._opened = 0.0

    def append(self, batch: Any) -> None:
        """Write one record batch, to a new journal where there is none or somebody removed it.

        Raises
        ------
        OSError: it cannot be written; the journal is as it was.
        """
        if not self._is_there():
            self._open()
        content = memoryview(batch.serialize())
        done = 0
        try:
            while done < len(content):
                done += os.write(self._descriptor, content[done:])
        except OSError:
            # Half a batch would hide all that follows.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
                os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(content)
        self._rows += batch.num_rows

    def rotate(self, *, last: bool) -> None:
        """Turn the journal into Parquet where it is full or old, or ``last``."""
        place = self._place
        if self._descriptor < 0 or not (
            last
            or self._rows >= place.rotate_rows
            or self._size >= place.rotate_bytes
            or time.monotonic() - self._opened >= place.rotate_seconds
        ):
            return
        path, descriptor = self._path, self._descriptor
        self._descriptor = -1
        try:
            if path.exists():
                log_format.compact(path)
        finally:
            os.close(descriptor)  # only now: whoever can lock a journal may take it for an orphan

    def adopt(self) -> None:
        """Turn the journals of processes that are gone into Parquet."""
        for path, descriptor in log_format.orphans(self._place.folder, self._place.prefix):
            try:
                if path.exists():
                    log_format.compact(path)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """In a forked process: the journal is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _is_there(self) -> bool:
        if self._descriptor < 0:
            return False
        ours = os.fstat(self._descriptor)
        with contextlib.suppress(OSError):
            found = self._path.stat()
            if (found.st_ino, found.st_dev) == (ours.st_ino, ours.st_dev):
                return True
        self.forget()
        return False

    def _open(self) -> None:
        import fcntl

        self._place.folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{self._place.prefix}-{stamp}-{os.getpid()}-{secrets.token_hex(4)}{log_format.JOURNAL}"
        self._path = self._place.folder / name
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = memoryview(log_format.log_schema().serialize())
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            os.close(descriptor)
            self._path.unlink(missing_ok=True)
            raise
        self._descriptor, self._rows, self._size = descriptor, 0, len(content)
        self._opened = time.monotonic()


def write_until_closed(queue: Queue, journal: Journal, owned: Callable[[], bool]) -> None:
    """Empty the queue every second, or sooner when it fills, until the log is closed or nobody has it."""
    _attempt(queue, journal.adopt)
    last = False
    while not last:
        queue.wake.wait(FLUSH_SECONDS)
        queue.wake.clear()
        last = queue.stop.is_set() or not owned()
        asked = [queue.asked.popleft() for _ in range(len(queue.asked))]
        for _ in range(0, len(queue.waiting), WAKE_AT):
            _write(queue, journal)
        _attempt(queue, lambda: journal.rotate(last=last))  # noqa: B023 - called at once
        for event in asked:
            event.set()


def _write(queue: Queue, journal: Journal) -> None:
    rows = [queue.waiting.popleft() for _ in range(min(len(queue.waiting), WAKE_AT))]
    try:
        batch = record_batch(rows, queue.names, queue.version)
        if batch.num_rows:
            journal.append(batch)
    except Exception as error:
        queue.drop("failed", len(rows), error)
        return
    queue.written += batch.num_rows
    if batch.num_rows < len(rows):
        queue.drop("invalid", len(rows) - batch.num_rows)


def _attempt(queue: Queue, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:
        queue.drop("failed", 0, error)


def record_batch(rows: Sequence[tuple[Any, ...]], names: Sequence[str] | None, version: int) -> Any:
    """The rows that are predictions, as they go into the log."""
    import pyarrow as pa

    kept = []
    for number, row in enumerate(rows, start=1):
        try:
            kept.append(_row(row, names, version))
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        finally:
            if number % _AT_ONCE == 0:
                time.sleep(0)
    schema = log_format.log_schema()
    columns: Sequence[Sequence[Any]] = list(zip(*kept, strict=True)) if kept else [()] * len(schema)
    plain = zip(columns[:-1], list(schema)[:-1], strict=True)
    arrays = [pa.array(column, part.type) for column, part in plain]
    return pa.record_batch([*arrays, _lists(columns[-1])], schema=schema)


def _lists(vectors: Sequence[Any]) -> Any:
    """Embeddings as an Arrow list column; None where there is none."""
    import numpy as np
    import pyarrow as pa

    kind = pa.list_(pa.float32())
    told = [vector for vector in vectors if vector is not None]
    if not told:
        return pa.nulls(len(vectors), kind)
    lengths = np.array([0, *(0 if vector is None else len(vector) for vector in vectors)], dtype=np.int64)
    missing = pa.array([vector is None for vector in vectors])
    offsets = pa.array(lengths.cumsum().astype(np.int32))
    return pa.ListArray.from_arrays(offsets, np.concatenate(told), mask=missing)


def warm_up() -> None:
    """Import what writing needs: a process that is ending can import it no more."""
    import numpy as np
    import pyarrow.parquet  # noqa: F401

    record_batch(
        [(0.0, "", None, None, None), (0.0, "x", 0.5, "", np.zeros(1, dtype=np.float32))], None, 0
    ).serialize()


def _row(row: tuple[Any, ...], names: Sequence[str] | None, version: int) -> tuple[Any, ...]:
    at, predicted, confidence, image, embedding = row
    moment = int(at * 1e6)
    if not 0 <= moment < 2**62:
        raise ValueError("not a time")
    if confidence is not None:
        if not 0 <= confidence <= 1.0001:
            raise ValueError("a confidence is between 0 and 1")
        confidence = min(confidence, 1.0)
    if image is not None:
        if len(image) > log_format.MAX_IMAGE:
            raise ValueError("an image reference is a short text")
        image.encode()
    if isinstance(predicted, str):
        if not 0 < len(predicted) <= log_format.MAX_NAME:
            raise ValueError("a class name is a short text")
        predicted.encode()
        return moment, predicted, None, confidence, version, image or None, embedding
    if not 0 <= predicted < 2**31:
        raise ValueError("a class index is a whole number from 0")
    name, index = (None, predicted) if names is None else (names[predicted], None)
    return moment, name, index, confidence, version, image or None, embedding
