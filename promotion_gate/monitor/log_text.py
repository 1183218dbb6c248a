"""Reading JSONL and CSV logs, line by line, in bounded blocks."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from promotion_gate.core.errors import GateError, InputError
from promotion_gate.data.files import reading
from promotion_gate.monitor.interface import UNSEEN, Predictions
from promotion_gate.monitor.log_arrow import Wanted, moment, ordered, require_confidence, require_times
from promotion_gate.monitor.log_format import MAX_IMAGE, MAX_NAME, MAX_WIDTH
from promotion_gate.monitor.log_reader import HEAD_BYTES, LogFile, Piece, Position, bad_row, shown_name

BLOCK_BYTES = 4 * 2**20

Row = tuple[float, str | int, float | None, int, str, Any]
Parse = Callable[[bytes, int], Row]


def read_text(file: LogFile, wanted: Wanted, start: Position, *, growing: bool) -> Iterator[Piece]:
    """The rows of a JSONL or CSV file from ``start`` on; from the beginning where it is another file now."""
    with reading(file.place.uri), file.open() as handle:
        head = handle.read(HEAD_BYTES)
        start = _where(start, head, int(file.place.fs.size(file.place.path)))
        handle.seek(0)
        if file.suffix == ".csv":
            first = handle.readline(BLOCK_BYTES)
            if not first.endswith(b"\n") and growing:
                return
            parse: Parse = _CsvRow(file, first)
            start = start if start.offset else Position(0, len(first))
        else:
            parse = _JsonRow(file)
        handle.seek(start.offset)
        yield from _blocks(file, wanted, handle, parse, start, growing=growing)


def _where(start: Position, head: bytes, size: int) -> Position:
    """Where to go on: from the beginning of a file that is shorter now, or begins otherwise."""
    if size < start.offset or start.head not in ("", _digest(head[: min(start.offset, HEAD_BYTES)])):
        return Position()
    return start


def _digest(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()[:16] if head else ""


def _blocks(
    file: LogFile, wanted: Wanted, handle: Any, parse: Parse, start: Position, *, growing: bool
) -> Iterator[Piece]:
    place = handle.tell()
    handle.seek(0)
    head = handle.read(HEAD_BYTES)
    handle.seek(place)
    row, offset, left = start.rows, start.offset, b""
    while True:
        read = handle.read(BLOCK_BYTES)
        block = left + read
        cut = block.rfind(b"\n") + 1
        if not read and not growing:
            cut = len(block)
        if not cut:
            if len(block) > BLOCK_BYTES:
                raise bad_row(file, row + 1, f"its line is longer than {BLOCK_BYTES >> 20} MiB: not a log")
            if not read:
                return
        lines, left = block[:cut].splitlines(keepends=True), block[cut:]
        if lines:
            piece = _piece(file, wanted, parse, lines, row, offset, head)
            row, offset = piece.after.rows, offset + cut
            yield piece
        if not read:
            return


def _piece(
    file: LogFile, wanted: Wanted, parse: Parse, lines: list[bytes], row: int, offset: int, head: bytes
) -> Piece:
    rows: list[Row] = []
    ends: list[int] = []
    for number, line in enumerate(lines, start=row + 1):
        offset += len(line)
        if line.strip():
            rows.append(parse(line, number))
            ends.append(offset)
        elif ends:
            ends[-1] = offset
    after = Position(row + len(rows), offset, head=_digest(head[: min(offset, HEAD_BYTES)]))
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * 6
    at, classes, sure, version, image, vectors = columns
    times = np.array(at, dtype=np.float64)
    require_times(file, times, row, wanted.latest)
    confidence = np.array([math.nan if value is None else value for value in sure], dtype=np.float32)
    require_confidence(file, confidence, np.array([value is None for value in sure], dtype=np.bool_), row)
    names = wanted.names
    label = np.array(
        [names.of_name(c) if isinstance(c, str) else names.of_index(c) for c in classes], dtype=np.int32
    )
    unseen = [shown_name(c) for c, found in zip(classes, label, strict=True) if found == UNSEEN]
    predictions = Predictions(
        class_names=wanted.class_names,
        time=times,
        label=label,
        confidence=confidence,
        version=np.array(version, dtype=np.int32),
        embedding=_embeddings(file, vectors, row, wanted.width),
        image=list(image) if wanted.image and any(image) else None,
    )
    return ordered(file.key, predictions, unseen, after, np.array(ends, dtype=np.int64))


def _embeddings(file: LogFile, vectors: Sequence[Any], row: int, width: int) -> Any:
    if not width or all(vector is None for vector in vectors):
        return None
    table = np.full((len(vectors), width), np.nan, dtype=np.float32)
    for number, vector in enumerate(vectors):
        if vector is None:
            continue
        if len(vector) != width:
            said = f"its embedding has {len(vector)} numbers, the baseline's {width}"
            raise bad_row(file, row + number + 1, said, "log the input of the last linear layer")
        table[number] = vector
    return table


class _JsonRow:
    def __init__(self, file: LogFile) -> None:
        self._file = file

    def __call__(self, line: bytes, row: int) -> Row:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise bad_row(self._file, row, "not JSON") from None
        if not isinstance(said, dict):
            raise bad_row(self._file, row, "not a JSON object")
        return _row(self._file, row, said)


class _CsvRow:
    def __init__(self, file: LogFile, first: bytes) -> None:
        self._file = file
        self._header = self._cells(first, 0)
        columns = set(self._header)
        if "time" not in columns or not columns & {"class", "label"}:
            raise InputError(
                f"{file.place.uri} is no prediction log: its first line must name the columns time, and class"
                f" or label; it names {', '.join(self._header)[:200] or 'none'}",
                "rename its columns",
            )

    def __call__(self, line: bytes, row: int) -> Row:
        cells = self._cells(line, row)
        if len(cells) != len(self._header):
            said = f"it has {len(cells)} values for {len(self._header)} columns"
            raise bad_row(self._file, row, said)
        return _row(self._file, row, dict(zip(self._header, cells, strict=True)))

    def _cells(self, line: bytes, row: int) -> list[str]:
        try:
            found = list(csv.reader([line.decode("utf-8-sig" if not row else "utf-8")], strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise bad_row(self._file, row, f"not CSV: {error}"[:200], "values hold no line breaks") from None
        return found[0] if found else []


def _row(file: LogFile, row: int, said: dict[str, Any]) -> Row:
    """What one line says, in plain types.

    Raises
    ------
    InputError: it is no prediction.
    """
    try:
        return (
            _time(file, row, said.get("time")),
            _class(said),
            _number(said.get("confidence")),
            _version(said.get("version")),
            _image(said.get("image")),
            _vector(said.get("embedding")),
        )
    except GateError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise bad_row(file, row, str(error)[:200]) from None


def _time(file: LogFile, row: int, value: Any) -> float:
    if isinstance(value, bool) or value in (None, ""):
        raise ValueError("it has no time")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return moment(value, file, row)
    return float(value)


def _class(said: dict[str, Any]) -> str | int:
    name = said.get("class")
    if name not in (None, ""):
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError(f"not a class name: {name!r:.60}")
        return name
    index = said.get("label")
    if index in (None, ""):
        raise ValueError("it has neither class nor label")
    if isinstance(index, bool) or (isinstance(index, float) and not index.is_integer()):
        raise ValueError(f"label is not a whole number: {index!r:.60}")
    return int(index)


def _number(value: Any) -> float | None:
    if value in (None, ""):
        return None
    if isinstance(value, bool | list | dict):
        raise ValueError("its confidence is not a number")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"its confidence is not a number: {value!r:.60}") from None


def _version(value: Any) -> int:
    if value in (None, ""):
        return 0
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < 2**31 or (isinstance(value, float) and value != number):
        raise ValueError(f"not a version: {value!r:.60}")
    return number


def _image(value: Any) -> str:
    if value in (None, ""):
        return ""
    if not isinstance(value, str) or len(value) > MAX_IMAGE:
        raise ValueError("its image reference is no short text")
    return value


def _vector(value: Any) -> list[float] | None:
    if isinstance(value, str) and value:
        value = json.loads(value)
    if value in (None, ""):
        return None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_WIDTH:
        raise ValueError("its embedding is no list of numbers")
    numbers = [float(number) for number in value]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("its embedding is not finite")
    return numbers
