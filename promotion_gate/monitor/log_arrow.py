"""Reading Parquet logs and our own journals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.data.files import reading
from promotion_gate.monitor.interface import UNSEEN, Predictions
from promotion_gate.monitor.log_format import JOURNAL, MAX_IMAGE, MAX_NAME, PARQUET, journal_batches
from promotion_gate.monitor.log_reader import LogFile, Names, Piece, Position, bad_row, rows_of, shown_name

AHEAD_SECONDS = 300.0
"""How far a prediction's time may lie in the future: clocks disagree."""

_LAST_SECOND = 4_102_444_800.0
"""The year 2100; what lies beyond is in milliseconds, say, and no clock that is wrong."""

BATCH_ROWS = 65_536
_WIDE_ROWS = 4096
_COLUMNS = ("time", "class", "label", "confidence", "version", "image", "embedding")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a log: the classes' names in order, image references, embeddings of this width.

    ``clock`` tells the present in seconds since the epoch.
    """

    class_names: Sequence[str]
    image: bool = False
    width: int = 0
    clock: Any = time.time
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", Names(self.class_names))

    @property
    def latest(self) -> float:
        return float(self.clock()) + AHEAD_SECONDS


def first_time(file: LogFile, wanted: Wanted, start: Position) -> float | None:
    """When the first row left to read was predicted, or before; None where there is none."""
    if file.suffix == JOURNAL:
        return -np.inf
    least: Any = None
    with reading(file.place.uri):
        if start.size and file.place.fs.size(file.place.path) == start.size:
            return None
        with file.open() as handle:
            parquet = _parquet(handle)
            about = parquet.metadata
            names = parquet.schema_arrow.names
            _require_columns(file, names)
            if about.num_rows < start.rows:
                raise InputError(
                    f"{file.place.uri} has {about.num_rows:,} rows, and {start.rows:,} were read before:"
                    " it was replaced",
                    "begin anew with another --state folder",
                )
            if about.num_rows == start.rows:
                return None
            group = _group_of(about, start.rows)[0]
            column = about.row_group(group).column(_leaf(parquet, "time"))
            least = column.statistics.min if column.statistics and column.statistics.has_min_max else None
    return float(least.timestamp()) if getattr(least, "tzinfo", None) is not None else -np.inf


def read_arrow(file: LogFile, wanted: Wanted, start: Position) -> Iterator[Piece]:
    """The rows of a Parquet file or journal from ``start`` on."""
    if file.suffix == JOURNAL:
        path = Path(file.place.path)
        if path.exists():
            with reading(file.place.uri):
                yield from _pieces(file, wanted, start.rows, _journal(path, start.rows), 0)
            return
        # It became Parquet since the folder was looked at.
        file = LogFile(
            type(file.place)(file.place.fs, file.key + PARQUET, file.key + PARQUET), file.key, PARQUET
        )
    with reading(file.place.uri):
        size = int(file.place.fs.size(file.place.path))
        with file.open() as handle:
            parquet = _parquet(handle)
            yield from _pieces(file, wanted, start.rows, _batches(parquet, wanted, start.rows), size)


def _batches(parquet: Any, wanted: Wanted, start: int) -> Iterator[Any]:
    group, before = _group_of(parquet.metadata, start)
    rows = _WIDE_ROWS if wanted.width else BATCH_ROWS
    skip = start - before
    for batch in parquet.iter_batches(
        batch_size=rows,
        row_groups=range(group, parquet.metadata.num_row_groups),
        columns=_chosen(parquet, wanted),
        use_threads=False,
    ):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        yield batch.slice(skip)
        skip = 0


def _journal(path: Path, start: int) -> Iterator[Any]:
    for batch in journal_batches(path):
        if start >= batch.num_rows:
            start -= batch.num_rows
            continue
        yield batch.slice(start)
        start = 0


def _group_of(about: Any, row: int) -> tuple[int, int]:
    """The row group that holds a row, and how many rows lie before the group."""
    before = 0
    for group in range(about.num_row_groups):
        count = about.row_group(group).num_rows
        if row < before + count:
            return group, before
        before += count
    return about.num_row_groups, before


def _parquet(handle: Any) -> Any:
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(handle)
    if "class" not in plain.schema_arrow.names:
        return plain
    return pq.ParquetFile(handle, metadata=plain.metadata, read_dictionary=["class"])


def _leaf(parquet: Any, name: str) -> int:
    about = parquet.metadata.schema
    return next(number for number in range(len(about)) if about.column(number).path == name)


def _require_columns(file: LogFile, names: Sequence[str]) -> None:
    if "time" not in names or not {"class", "label"} & set(names):
        raise InputError(
            f"{file.place.uri} is no prediction log: it needs the columns time, and class or label; it has"
            f" {', '.join(names)[:200] or 'none'}",
            "rename its columns",
        )


def _chosen(parquet: Any, wanted: Wanted) -> list[str]:
    there = set(parquet.schema_arrow.names)
    left_out = set() if wanted.image else {"image"}
    left_out |= set() if wanted.width else {"embedding"}
    return [name for name in _COLUMNS if name in there and name not in left_out]


def _pieces(file: LogFile, wanted: Wanted, row: int, batches: Iterator[Any], size: int) -> Iterator[Piece]:
    """Pieces from record batches, a batch ahead, so that the last can say that it is."""
    ahead = next(batches, None)
    while ahead is not None:
        batch, ahead = ahead, next(batches, None)
        after = Position(row + batch.num_rows, size=size if ahead is None else 0)
        yield piece_of(file, wanted, batch, row, after)
        row += batch.num_rows


def piece_of(file: LogFile, wanted: Wanted, batch: Any, row: int, after: Position) -> Piece:
    """One record batch as a piece; ``row`` is how many rows of the file lie before it.

    Raises
    ------
    InputError: a column of the wrong type, or a row that makes no sense.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    _require_columns(file, batch.schema.names)
    at = _times(file, columns["time"], row, wanted)
    label, unseen = _labels(file, columns, row, wanted)
    predictions = Predictions(
        class_names=wanted.class_names,
        time=at,
        label=label,
        confidence=_confidence(file, columns.get("confidence"), row, len(at)),
        version=_versions(file, columns.get("version"), row, len(at)),
        embedding=_embedding(file, columns.get("embedding"), row, wanted.width),
        image=_images(file, columns.get("image"), row),
    )
    return ordered(file.key, predictions, unseen, after)


def ordered(
    key: str,
    predictions: Predictions,
    unseen: Sequence[str],
    after: Position,
    ends: NDArray[np.int64] | None = None,
) -> Piece:
    """A piece, put into order of time where its rows are not."""
    at = predictions.time
    if len(at) < 2 or bool((at[1:] >= at[:-1]).all()):
        return Piece(key, predictions, unseen, after, ends=ends)
    order = np.argsort(at, kind="stable")
    strange = np.flatnonzero(predictions.label == UNSEEN)
    place = {int(row): name for row, name in zip(strange, unseen, strict=True)}
    names = [place[int(row)] for row in order if int(row) in place] if place else []
    return Piece(key, rows_of(predictions, order), names, after, whole=True)


def _times(file: LogFile, column: Any, row: int, wanted: Wanted) -> NDArray[np.float64]:
    import pyarrow as pa
    import pyarrow.types as kind

    _require_values(file, column, row, "time")
    if kind.is_timestamp(column.type):
        whole = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        at = whole.to_numpy(zero_copy_only=False) * 1e-6
    elif kind.is_integer(column.type) or kind.is_floating(column.type):
        at = column.to_numpy(zero_copy_only=False).astype(np.float64)
    elif kind.is_string(column.type) or kind.is_large_string(column.type):
        at = np.array(
            [moment(text.as_py(), file, row + number) for number, text in enumerate(column, start=1)]
        )
    else:
        raise bad_row(file, row + 1, f"time is {column.type}, and neither a timestamp, text nor a number")
    require_times(file, at, row, wanted.latest)
    return np.asarray(at, dtype=np.float64)


def require_times(file: LogFile, at: NDArray[np.float64], row: int, latest: float) -> None:
    """Refuse what is no time, or lies in the future.

    Raises
    ------
    InputError: naming the first such row.
    """
    wrong = ~((at >= 0) & (at <= latest))
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    value = float(at[first])
    if latest < value < _LAST_SECOND:
        said = (
            f"its time {datetime.fromtimestamp(value, UTC).isoformat(timespec='seconds')} lies in the future"
        )
        remedy = "times without a zone are UTC; look at the clock that wrote it"
    else:
        said, remedy = f"{value:.15g} is no time", "times are seconds since the epoch, or ISO 8601"
    raise bad_row(file, row + first + 1, said, remedy)


def moment(text: str, file: LogFile, row: int) -> float:
    """Seconds since the epoch of an ISO 8601 time, UTC unless it says otherwise.

    Raises
    ------
    InputError: it is none.
    """
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise bad_row(
            file, row, f"not a time: {text!r:.60}", "write ISO 8601, or seconds since the epoch"
        ) from None


def _labels(
    file: LogFile, columns: Mapping[str, Any], row: int, wanted: Wanted
) -> tuple[NDArray[np.int32], list[str]]:
    by_name, by_index = columns.get("class"), columns.get("label")
    if by_name is not None and (by_index is None or by_name.null_count == 0):
        _require_values(file, by_name, row, "class")
        return _label_names(file, by_name, row, wanted)
    assert by_index is not None
    if by_name is None or by_name.null_count == len(by_name):
        _require_values(file, by_index, row, "label")
        return _label_indices(file, by_index, row, wanted)
    return _label_either(file, by_name, by_index, row, wanted)


def _label_names(file: LogFile, column: Any, row: int, wanted: Wanted) -> tuple[NDArray[np.int32], list[str]]:
    import pyarrow.types as kind

    if not kind.is_dictionary(column.type):
        if not (kind.is_string(column.type) or kind.is_large_string(column.type)):
            raise bad_row(file, row + 1, f"class is {column.type}, and not text", "log indices as label")
        column = column.dictionary_encode()
    values = column.dictionary.to_pylist()
    place = np.asarray(column.indices.to_numpy(zero_copy_only=False))
    for number, name in enumerate(values):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            hits = np.flatnonzero(place == number)
            if len(hits):
                raise bad_row(file, row + int(hits[0]) + 1, f"not a class name: {name!r:.60}")
    index = np.array([wanted.names.of_name(name) if name else UNSEEN for name in values], dtype=np.int32)
    label = index[place] if len(index) else np.empty(0, dtype=np.int32)
    if not len(index) or index.min() != UNSEEN:
        return label, []
    return label, [shown_name(values[n]) for n in place[label == UNSEEN]]


def _label_indices(
    file: LogFile, column: Any, row: int, wanted: Wanted
) -> tuple[NDArray[np.int32], list[str]]:
    import pyarrow.types as kind

    if not kind.is_integer(column.type):
        raise bad_row(file, row + 1, f"label is {column.type}, and not a whole number", "log names as class")
    label = column.to_numpy(zero_copy_only=False).astype(np.int64)
    strange = (label < 0) | (label >= len(wanted.class_names))
    if not strange.any():
        return label.astype(np.int32), []
    names = [shown_name(int(value)) for value in label[strange]]
    return np.where(strange, UNSEEN, label).astype(np.int32), names


def _label_either(
    file: LogFile, by_name: Any, by_index: Any, row: int, wanted: Wanted
) -> tuple[NDArray[np.int32], list[str]]:
    label = np.empty(len(by_name), dtype=np.int32)
    unseen = []
    for number, (name, index) in enumerate(zip(by_name.to_pylist(), by_index.to_pylist(), strict=True)):
        if name is None and index is None:
            raise bad_row(file, row + number + 1, "it has neither class nor label")
        found = wanted.names.of_name(name) if name is not None else wanted.names.of_index(index)
        if found == UNSEEN:
            unseen.append(shown_name(name if name is not None else index))
        label[number] = found
    return label, unseen


def _confidence(file: LogFile, column: Any, row: int, rows: int) -> NDArray[np.float32]:
    import pyarrow.types as kind

    if column is None or column.null_count == rows:
        return np.full(rows, np.nan, dtype=np.float32)
    if not (kind.is_floating(column.type) or kind.is_integer(column.type)):
        raise bad_row(file, row + 1, f"confidence is {column.type}, and not a number")
    given = column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    require_confidence(file, given, np.asarray(column.is_null()) if column.null_count else None, row)
    return np.asarray(given, dtype=np.float32)


def require_confidence(
    file: LogFile, given: NDArray[np.float32], missing: NDArray[np.bool_] | None, row: int
) -> None:
    """Refuse what is no probability; ``missing`` marks the rows that give none.

    Raises
    ------
    InputError: naming the first such row.
    """
    wrong = ~((given >= 0) & (given <= np.float32(1.0001)))
    if missing is not None:
        wrong &= ~missing
    if wrong.any():
        first = int(np.argmax(wrong))
        value = given[first]
        remedy = "leave it empty where there is none"
        raise bad_row(file, row + first + 1, f"its confidence is {value:g}, not a probability", remedy)


def _versions(file: LogFile, column: Any, row: int, rows: int) -> NDArray[np.int32]:
    import pyarrow.types as kind

    if column is None or column.null_count == rows:
        return np.zeros(rows, dtype=np.int32)
    if not kind.is_integer(column.type):
        raise bad_row(file, row + 1, f"version is {column.type}, and not a whole number")
    filled = column.fill_null(0) if column.null_count else column
    given = filled.to_numpy(zero_copy_only=False)
    if len(given) and (given.min() < 0 or given.max() >= 2**31):
        first = int(np.argmax((given < 0) | (given >= 2**31)))
        raise bad_row(file, row + first + 1, f"not a version: {int(given[first])}")
    return np.asarray(given, dtype=np.int32)


def _images(file: LogFile, column: Any, row: int) -> Sequence[str] | None:
    import pyarrow.compute as pc
    import pyarrow.types as kind

    if column is None or column.null_count == len(column):
        return None
    if not (kind.is_string(column.type) or kind.is_large_string(column.type)):
        raise bad_row(file, row + 1, f"image is {column.type}, and not text")
    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    if longest > MAX_IMAGE:
        first = int(np.argmax(np.asarray(pc.utf8_length(column).fill_null(0)) > MAX_IMAGE))
        raise bad_row(
            file, row + first + 1, f"its image reference has {longest:,} letters, {MAX_IMAGE:,} allowed"
        )
    return _Texts(column)


def _embedding(file: LogFile, column: Any, row: int, width: int) -> NDArray[np.float32] | None:
    import pyarrow.types as kind

    if column is None or not width or column.null_count == len(column):
        return None
    given = column.type
    if not (kind.is_list(given) or kind.is_large_list(given) or kind.is_fixed_size_list(given)):
        raise bad_row(file, row + 1, f"embedding is {given}, and not a list of numbers")
    if not kind.is_floating(given.value_type) and not kind.is_integer(given.value_type):
        raise bad_row(file, row + 1, f"embedding is {given}, and not a list of numbers")
    there = ~np.asarray(column.is_null())
    lengths = np.asarray(column.value_lengths().fill_null(0))
    odd = there & (lengths != width)
    if odd.any():
        first = int(np.argmax(odd))
        said = f"its embedding has {int(lengths[first])} numbers, the baseline's {width}"
        raise bad_row(file, row + first + 1, said, "log the input of the last linear layer")
    rows = np.full((len(column), width), np.nan, dtype=np.float32)
    flat = column.filter(column.is_valid()).flatten().to_numpy(zero_copy_only=False)
    rows[there] = flat.astype(np.float32, copy=False).reshape(-1, width)
    wrong = there & ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        raise bad_row(file, row + int(np.argmax(wrong)) + 1, "its embedding is not finite")
    return rows


def _require_values(file: LogFile, column: Any, row: int, name: str) -> None:
    if column.null_count:
        first = int(np.argmax(np.asarray(column.is_null())))
        raise bad_row(file, row + first + 1, f"it has no {name}")


class _Texts(Sequence[str]):
    """A text column, each value decoded when it is asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            assert step == 1
            return _Texts(self._column.slice(start, max(stop - start, 0)))
        return self._column[int(item)].as_py() or ""
