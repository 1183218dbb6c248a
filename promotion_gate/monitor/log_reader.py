"""Reading prediction logs: our own files, other Parquet, JSONL and CSV, from any fsspec URL, by time.

Columns: ``time`` (a timestamp, ISO 8601 text, or seconds since the epoch; UTC unless it says otherwise),
``class`` (a name) or ``label`` (an index), and where there are any ``confidence``, ``version``, ``image`` and
``embedding``. Everything comes in bounded pieces. A file may grow while it is read: what was read is a
:class:`Position`, from which the next call goes on.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.core.places import expanded
from promotion_gate.data.files import Location, find_files, is_url, locate, reading, without_credentials
from promotion_gate.monitor.interface import UNSEEN, Predictions
from promotion_gate.monitor.log_format import JOURNAL, MAX_NAME, PARQUET, open_plain

if TYPE_CHECKING:
    from promotion_gate.monitor.log_arrow import Wanted

TEXT = (".jsonl", ".ndjson", ".csv")
HEAD_BYTES = 256
"""So much of a text file's beginning tells whether it is the file that was read before."""
SUFFIXES = (PARQUET, JOURNAL, *TEXT)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file was read: ``rows``; of a text file also the byte ``offset`` and its ``head``'s digest.

    ``size`` is that of a file that will not grow and was read to its end, else 0.
    """

    rows: int = 0
    offset: int = 0
    size: int = 0
    head: str = ""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a log. ``key`` stays the same when a journal becomes Parquet."""

    place: Location
    key: str
    suffix: str

    def open(self) -> Any:
        """The file, to read its bytes; whoever may write to a log's folder may put a pipe there."""
        place = self.place
        return open_plain(place.path) if place.local else place.fs.open(place.path, "rb")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one file, in order of time, and where the file stands after them.

    ``unseen`` are the names behind the labels that are UNSEEN, in order. ``whole`` says that the rows were
    put into order here, so that no position lies between them. ``ends`` int64 (n,) are the byte offsets
    behind each row of a text file.
    """

    key: str
    predictions: Predictions
    unseen: Sequence[str]
    after: Position
    whole: bool = False
    ends: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def last(self) -> float:
        return float(self.predictions.time[-1])

    def split(self, count: int) -> tuple[Piece, Piece]:
        """The first ``count`` rows and the others."""
        known = int((self.predictions.label[:count] == UNSEEN).sum())
        left = len(self) - count
        offset = self.after.offset if self.ends is None else int(self.ends[count - 1])
        head = self.after.head if offset >= HEAD_BYTES else ""
        between = Position(self.after.rows - left, offset, head=head)
        ends = (None, None) if self.ends is None else (self.ends[:count], self.ends[count:])
        first = replace(
            self,
            predictions=rows_of(self.predictions, slice(count)),
            unseen=self.unseen[:known],
            after=between,
            ends=ends[0],
        )
        rest = rows_of(self.predictions, slice(count, None))
        return first, replace(self, predictions=rest, unseen=self.unseen[known:], ends=ends[1])


def rows_of(predictions: Predictions, rows: slice | NDArray[np.int64]) -> Predictions:
    """Some rows of a piece of a log."""
    image = predictions.image
    if image is not None:
        image = image[rows] if isinstance(rows, slice) else [image[int(row)] for row in rows]
    return replace(
        predictions,
        time=predictions.time[rows],
        label=predictions.label[rows],
        confidence=predictions.confidence[rows],
        version=predictions.version[rows],
        embedding=None if predictions.embedding is None else predictions.embedding[rows],
        image=image,
    )


def log_files(paths: Sequence[str]) -> list[LogFile]:
    """Every log file that the paths, folders, patterns and URLs name, each once.

    Raises
    ------
    InputError: a path names nothing, or a file of an unknown kind; no driver for such a URL.
    """
    found: dict[str, LogFile] = {}
    for path in paths:
        for file in _named(path):
            known = found.get(file.key)
            if known is None or known.suffix == JOURNAL:
                found[file.key] = file
    return list(found.values())


def read_log(
    paths: Sequence[str],
    wanted: Wanted,
    positions: Mapping[str, Position] | None = None,
    *,
    quantum: float = 60.0,
    growing: bool = False,
) -> Iterator[Piece]:
    """The rows of several files in order of time, from where each was left.

    Order between files is kept to ``quantum`` seconds: no piece of two or more files that overlap reaches
    beyond a multiple of it before the others have. With ``growing``, a last line without a line break is left
    for later.

    Raises
    ------
    InputError: a file cannot be read, lacks a column, or has a row that makes no sense; naming file and row.
    """
    from promotion_gate.monitor import log_arrow, log_text

    done = positions or {}
    streams = []
    for file in log_files(paths):
        start = done.get(file.key, Position())
        if file.suffix in TEXT:
            streams.append(_Stream(log_text.read_text(file, wanted, start, growing=growing)))
        elif (first := log_arrow.first_time(file, wanted, start)) is not None:
            streams.append(_Stream(log_arrow.read_arrow(file, wanted, start), first))
    return _merged(streams, quantum)


def advanced(positions: MutableMapping[str, Position], pieces: Sequence[Piece]) -> None:
    """Note down that the pieces were dealt with."""
    for piece in pieces:
        positions[piece.key] = piece.after


def _named(path: str) -> Iterator[LogFile]:
    if any(sign in path for sign in "*?[") and not _exists(path):
        yield from _matching(path)
        return
    place = _located(path)
    with reading(place.uri):
        folder = place.fs.isdir(place.path)
    if not folder:
        yield _file(place)
        return
    for name in find_files(place, SUFFIXES):
        yield _file(place.under(*name.split("/")))


def _matching(pattern: str) -> Iterator[LogFile]:
    head = pattern.split("*")[0].split("?")[0].split("[")[0]
    root = _located(head.rpartition("/")[0] + "/" if "/" in head else ".")
    with reading(root.uri):
        full = pattern if is_url(pattern) else str(expanded(pattern).absolute())
        names = sorted(root.fs.glob(root.fs._strip_protocol(full)))
    found = [name for name in names if str(name).lower().endswith(SUFFIXES)]
    if not found and not names:
        raise InputError(
            f"no file matches {without_credentials(pattern)!r:.300}",
            "give --log a file, folder, pattern or URL",
        )
    for name in found:
        yield _file(Location(root.fs, str(name), str(name)))


def _exists(path: str) -> bool:
    return not is_url(path) and expanded(path).exists()


def _located(path: str) -> Location:
    try:
        return locate(path, Path())
    except InputError as error:
        if error.what.startswith("no such"):
            raise InputError(error.what, "give --log a file, folder, pattern or URL") from None
        raise


def _file(place: Location) -> LogFile:
    suffix = next((s for s in SUFFIXES if place.name.lower().endswith(s)), "")
    if not suffix:
        raise InputError(f"{place.uri} is no log: its name ends in none of {', '.join(SUFFIXES)}")
    own = suffix in (PARQUET, JOURNAL)
    key = place.uri[: -len(suffix)] if own else place.uri
    return LogFile(place, key, suffix)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A file's pieces, and the time of its first row where that was to be had without reading on."""

    pieces: Iterator[Piece]
    first: float = -np.inf


def _merged(streams: Sequence[_Stream], quantum: float) -> Iterator[Piece]:
    """Pieces of all streams by time; a stream has a piece in memory from when its turn comes."""
    order = itertools.count()
    waiting: list[tuple[float, int, Piece | None, Iterator[Piece]]] = [
        (stream.first, next(order), None, stream.pieces) for stream in streams
    ]
    heapq.heapify(waiting)

    def push(piece: Piece | None, stream: Iterator[Piece]) -> None:
        if piece is None:
            piece = next((p for p in stream if len(p)), None)
        if piece is not None:
            heapq.heappush(waiting, (float(piece.predictions.time[0]), next(order), piece, stream))

    while waiting:
        _, _, piece, stream = heapq.heappop(waiting)
        if piece is None:
            push(None, stream)
            continue
        first = float(piece.predictions.time[0])
        until = max(waiting[0][0] if waiting else np.inf, (first // quantum + 1) * quantum)
        rest = None
        if piece.last >= until and not piece.whole:
            piece, rest = piece.split(int(np.searchsorted(piece.predictions.time, until, side="left")))
        yield piece
        push(rest, stream)


def bad_row(file: LogFile, row: int, what: str, remedy: str = "") -> InputError:
    """The error for a row that makes no sense; rows count from 1."""
    return InputError(f"{file.place.uri}, row {row:,}: {what}", remedy)


class Names:
    """Which index a class name stands for; what the baseline does not know is UNSEEN."""

    def __init__(self, names: Sequence[str]) -> None:
        self._index = {name: number for number, name in enumerate(names)}
        self._count = len(names)

    def of_name(self, name: str) -> int:
        return self._index.get(name, UNSEEN)

    def of_index(self, index: int) -> int:
        return index if 0 <= index < self._count else UNSEEN


def shown_name(name: Any) -> str:
    """A class that the baseline does not know, as it is told: by name, or by index as ``#12``."""
    return name[:MAX_NAME] if isinstance(name, str) else f"#{name}"
