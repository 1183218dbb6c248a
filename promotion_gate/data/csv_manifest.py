"""Image sets listed in a CSV manifest: path, label and the optional contributor and batch columns."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.files import Location, is_url, reading, require_regular
from promotion_gate.data.imagefolder import FileImages
from promotion_gate.data.labels import index_texts


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    label: str
    extras: tuple[str, ...]


def open_csv(place: Location, source: DataSource, class_names: Sequence[str] | None) -> FileImages:
    """Open a manifest: UTF-8, with a header line; tab-separated where the name ends in .tsv.

    Paths are relative to the manifest or absolute, on the manifest's own file system. ``split`` keeps the
    rows with that value in a column ``split``. Labels are class names or class indices.

    Raises
    ------
    InputError: a missing column, value or image file, or an unknown label; names the line.
    """
    path_column, label_column = source.image_column or "path", source.label_column or "label"
    with reading(place.uri), place.fs.open(place.path, "rb") as file:
        text = file.read().decode("utf-8-sig")
    reader = csv.reader(
        text.splitlines(keepends=True), delimiter="\t" if place.name.endswith(".tsv") else ","
    )
    try:
        header = next(reader, [])
        _require_columns(place, header, [path_column, label_column, *(["split"] if source.split else [])])
        optional = {
            name: header.index(column)
            for name, column in (("contributor", source.contributor_column), ("batch", source.batch_column))
            if column in header
        }
        at_path, at_label = header.index(path_column), header.index(label_column)
        rows: list[_Row] = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(f"{_line(place, reader.line_num)} has {len(cells)} cells, not {len(header)}")
            if source.split and cells[header.index("split")] != source.split:
                continue
            if not cells[at_path] or not cells[at_label]:
                raise InputError(f"{_line(place, reader.line_num)} has no path or no label")
            extras = tuple(cells[i] for i in optional.values())
            rows.append(_Row(reader.line_num, cells[at_path], cells[at_label], extras))
    except csv.Error as error:
        raise InputError(f"{_line(place, reader.line_num)} is not CSV: {error}") from None
    if not rows:
        raise InputError(
            f"{place.uri} lists no images" + (f" of split {source.split!r}" * bool(source.split))
        )

    paths = [_resolve(place, row) for row in rows]
    labels, classes = index_texts(
        [row.label for row in rows],
        lambda i: f"{_line(place, rows[i].line)} ({rows[i].path!r:.200})",
        class_names,
    )
    columns: dict[str, Sequence[str]] = {
        name: [row.extras[i] for row in rows] for i, name in enumerate(optional)
    }
    files = {path: posixpath.relpath(path, place.parent or ".") for path in paths}
    listing = [(place.name, place.path), *((name, path) for path, name in files.items())]
    return FileImages(place, paths, [row.path for row in rows], labels, classes, listing, columns)


def _line(place: Location, number: int) -> str:
    return f"{place.uri}: line {number}"


def _require_columns(place: Location, header: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in header]
    if missing:
        there = ", ".join(f"{column!r:.40}" for column in header[:8]) or "none"
        raise InputError(f"{place.uri} has no column {missing[0]!r:.80}", f"its columns are {there}")


def _resolve(place: Location, row: _Row) -> str:
    where = f"{_line(place, row.line)} ({row.path!r:.200})"
    if is_url(row.path):
        protocols = (place.fs.protocol,) if isinstance(place.fs.protocol, str) else place.fs.protocol
        if row.path.split("://", 1)[0] not in protocols:
            raise InputError(
                f"{where} lies on another file system than its manifest", "copy it beside the manifest"
            )
        path = str(place.fs._strip_protocol(row.path))
    elif is_url(place.parent):
        path = urljoin(f"{place.parent}/", row.path)
    else:
        path = posixpath.normpath(posixpath.join(place.parent, row.path))
    if place.local:
        require_regular(path, where)
    return path
