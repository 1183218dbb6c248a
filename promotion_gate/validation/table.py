"""The metadata table: one row an image, for a team's own checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promotion_gate.validation.alike import Alike
from promotion_gate.validation.survey import Rows, Survey

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP = 100_000
_COLOURS = ("red", "green", "blue")


def metadata_table(data: Survey, alike: Alike, rows: slice = slice(None)) -> pa.Table:
    """What was measured of some rows.

    Columns: ``row``, ``id``, ``label``, ``contributor`` and ``batch`` (null where the data has no such
    column), ``error`` (null where the image could be read), ``width``, ``height``, ``mode``, ``format``,
    ``bytes``, ``sha256`` of the file and ``pixels_sha256`` of the decoded pixels, ``phash`` (16 hexadecimal
    digits), ``mean_`` and ``std_`` of ``red``, ``green`` and ``blue``, ``brightness``, ``contrast``,
    ``saturation``, ``sharpness``, and the ids ``copy_of``, ``near_of`` and ``other_label`` of the rows that
    it is a copy of, looks like, and equals under another label. What was not measured is null.
    """
    import pyarrow as pa

    at = range(*rows.indices(len(data)))
    unread = ~data.readable[rows]

    def known(name: str, kind: Any) -> pa.Array:
        return pa.array(data.column(name)[rows], type=kind, mask=unread)

    def hexed(name: str) -> pa.Array:
        values = [
            None if gone else one.tobytes().hex()
            for one, gone in zip(data.column(name)[rows], unread, strict=True)
        ]
        return pa.array(values, type=pa.string())

    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(at.start, at.stop), type=pa.int64()),
        "id": _texts([data.ids[row] for row in at]),
        "label": _texts([data.label(row) for row in at]),
    }
    for name in ("contributor", "batch"):
        values = data.dataset.columns.get(name)
        columns[name] = _texts([None if values is None else values[row] for row in at])
    columns["error"] = _texts([text or None for text in data.column("error")[rows]])
    columns |= {name: known(name, pa.int32()) for name in ("width", "height")}
    for name in ("mode", "format"):
        columns[name] = _texts([text or None for text in data.column(name)[rows]])
    columns["bytes"] = pa.array(data.column("bytes")[rows], type=pa.int64())
    columns["sha256"], columns["pixels_sha256"] = hexed("sha256"), hexed("pixels_sha256")
    hashes = zip(data.column("phash")[rows].tolist(), unread, strict=True)
    columns["phash"] = _texts([None if gone else f"{value:016x}" for value, gone in hashes])
    for name in ("mean", "std"):
        for i, colour in enumerate(_COLOURS):
            columns[f"{name}_{colour}"] = pa.array(data.column(name)[rows, i], type=pa.float32(), mask=unread)
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        columns[name] = known(name, pa.float32())
    for name in ("copy_of", "near_of", "other_label"):
        columns[name] = _partners(data, getattr(alike, name)[rows])
    return pa.table(columns)


def write_metadata(path: Path, data: Survey, alike: Alike) -> None:
    """Write the table as Parquet, some rows at a time."""
    import pyarrow.parquet as pq

    parts: Iterator[pa.Table] = (
        metadata_table(data, alike, slice(start, start + _GROUP)) for start in range(0, len(data), _GROUP)
    )
    first = next(parts)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def _partners(data: Survey, partner: Rows) -> pa.Array:
    return _texts([None if row < 0 else data.ids[row] for row in partner.tolist()])


def _texts(values: Sequence[str | None]) -> pa.Array:
    """Text for Parquet, which is UTF-8: a file name that is not is written with its bytes escaped."""
    import pyarrow as pa

    plain = [None if v is None else v.encode("utf-8", "backslashreplace").decode() for v in values]
    return pa.array(plain, type=pa.string())
