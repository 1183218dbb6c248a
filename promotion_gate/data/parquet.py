"""Image sets in Parquet files with the encoded images inside, as Hugging Face's datasets are stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.decode import decode_images
from promotion_gate.data.files import (
    MAX_IMAGE_FILE_BYTES,
    SPLIT_NAMES,
    Location,
    digest_files,
    find_files,
    reading,
)
from promotion_gate.data.interface import Images, ImageShape, Stored
from promotion_gate.data.labels import Indexed, index_numbers, index_texts
from promotion_gate.data.memory import row_indices

_BATCH = 64
"""Encoded images held at a time."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name for people, its path, the data set's row it starts at, rows of each row group."""

    name: str
    path: str
    start: int
    groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.groups)


class ParquetImages:
    """An :class:`~promotion_gate.data.interface.ImageDataset` over one Parquet file or a folder of shards.

    The image column is a struct with ``bytes`` (and ``path``) or plain binary; the label column holds
    whole numbers, named by the schema's Hugging Face metadata where it is there, or text. Unless the
    policy names them they are found by that metadata, else by the names ``image`` and ``label``. With a
    split, only shards whose name or folder starts with it are read.

    Raises
    ------
    InputError: not Parquet, a column missing or of the wrong type, an empty cell, or an unknown label.
    """

    def __init__(self, place: Location, source: DataSource, class_names: Sequence[str] | None) -> None:
        self.uri = place.uri
        self._place = place
        self.shards: list[Shard] = []
        self._sha256 = ""
        labels: list[Any] = []
        extras: dict[str, list[str]] = {}
        own_names: list[str] | None = None
        for name in self._shard_names(source.split):
            path = place.under(name).path if name else place.path
            with self._open(path, name) as file:
                schema = file.schema_arrow
                if not self.shards:
                    features = _features(schema)
                    self.image_column = self._choose(schema, source.image_column, features, "Image", "image")
                    label = self._choose(schema, source.label_column, features, "ClassLabel", "label")
                    self.label_column = label
                    own_names = _label_names(features.get(label))
                    columns = {"contributor": source.contributor_column, "batch": source.batch_column}
                    extras = {key: [] for key, column in columns.items() if column in schema.names}
                self._require_columns(
                    schema, [self.image_column, label, *(columns[key] for key in extras)], name
                )
                self._require_images(schema.field(self.image_column).type)
                labels += self._cells(file, label, name)
                for key, values in extras.items():
                    values += ["" if v is None else str(v) for v in _values(file, columns[key])]
                groups = tuple(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))
            start = self.shards[-1].start + self.shards[-1].rows if self.shards else 0
            self.shards.append(Shard(name or place.name, path, start, groups))
        if not labels:
            raise InputError(f"{self.uri} holds no images")
        self._starts = np.array([shard.start for shard in self.shards])
        self.ids: Sequence[str] = [f"{s.name}#{i}" for s in self.shards for i in range(s.rows)]
        self.labels, names = self._index(labels, own_names, class_names)
        self.class_names: Sequence[str] = names
        self.columns: dict[str, Sequence[str]] = dict(extras)

    def __len__(self) -> int:
        return len(self.ids)

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        waiting: list[Images] = []
        for shard in self.shards:
            with self._open(shard.path, shard.name) as file:
                at = shard.start
                for cells in self._image_cells(file):
                    waiting.append(self._decode(cells, range(at, at + len(cells)), shape))
                    at += len(cells)
                    while sum(map(len, waiting)) >= batch_size:
                        joined = np.concatenate(waiting)
                        yield joined[:batch_size]
                        waiting = [joined[batch_size:]]
        if sum(map(len, waiting)):
            yield np.concatenate(waiting)

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        wanted = row_indices(rows, len(self))
        images = np.empty((len(wanted), shape.height, shape.width, shape.channels), dtype=np.uint8)
        distinct, back = np.unique(wanted, return_inverse=True)
        owner = np.searchsorted(self._starts, distinct, side="right") - 1
        unique_images = np.empty((len(distinct), *images.shape[1:]), dtype=np.uint8)
        for index in np.unique(owner):
            mine = np.flatnonzero(owner == index)
            for at, cells in self._pick(self.shards[index], distinct[mine]):
                chosen = mine[at]
                unique_images[chosen] = self._decode(cells, distinct[chosen].tolist(), shape)
        images[:] = unique_images[back]
        return images

    def stream_stored(self) -> Iterator[list[Stored]]:
        for shard in self.shards:
            with self._open(shard.path, shard.name) as file:
                at = shard.start
                for cells in self._image_cells(file):
                    yield [self._content(cell, at + i) for i, cell in enumerate(cells)]
                    at += len(cells)

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        wanted = row_indices(rows, len(self))
        distinct, back = np.unique(wanted, return_inverse=True)
        found: dict[int, Stored] = {}
        owner = np.searchsorted(self._starts, distinct, side="right") - 1
        for index in np.unique(owner):
            mine = np.flatnonzero(owner == index)
            for at, cells in self._pick(self.shards[index], distinct[mine]):
                for place, cell in zip(mine[at].tolist(), cells, strict=True):
                    found[place] = self._content(cell, int(distinct[place]))
        return [found[place] for place in back.tolist()]

    def sha256(self) -> str:
        if not self._sha256:
            self._sha256 = digest_files(self._place.fs, [(shard.name, shard.path) for shard in self.shards])
        return self._sha256

    def _shard_names(self, split: str) -> list[str]:
        if not self._place.fs.isdir(self._place.path):
            return [""]
        names = find_files(self._place, (".parquet",))
        splits = {_split_of(name) for name in names} - {""}
        if split:
            names = [name for name in names if _split_of(name) == split]
        elif len(splits) > 1:
            raise InputError(
                f"{self.uri} holds the splits {', '.join(sorted(splits))}", 'choose one with split = "…"'
            )
        if not names:
            raise InputError(f"{self.uri} holds no .parquet files" + f" of split {split!r}" * bool(split))
        return names

    @contextmanager
    def _open(self, path: str, name: str) -> Iterator[Any]:
        what = f"{self.uri}/{name}" if name and len(self.shards) > 1 else self.uri
        with reading(what), self._place.fs.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
            yield file

    def _choose(
        self, schema: pa.Schema, chosen: str, features: Mapping[str, Any], kind: str, usual: str
    ) -> str:
        if chosen:
            return chosen
        typed = [name for name, f in features.items() if isinstance(f, dict) and f.get("_type") == kind]
        if len(typed) == 1 and typed[0] in schema.names:
            return typed[0]
        if usual in schema.names:
            return usual
        self._require_columns(schema, [usual], "")
        raise AssertionError("unreachable")

    def _require_columns(self, schema: pa.Schema, wanted: Sequence[str], name: str) -> None:
        for column in wanted:
            if column not in schema.names:
                there = ", ".join(f"{c!r:.40}" for c in schema.names[:8])
                where = f"{self.uri}/{name}" if name else self.uri
                raise InputError(f"{where} has no column {column!r:.80}", f"its columns are {there}")

    def _require_images(self, kind: Any) -> None:
        inner = (
            kind.field("bytes").type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            else kind
        )
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise InputError(
                f"{self.uri}: column {self.image_column!r:.80} is of type {str(kind)[:80]}",
                "it must hold encoded images: binary, or a struct with 'bytes'",
            )

    def _cells(self, file: Any, column: str, name: str) -> list[Any]:
        values = _values(file, column)
        if None in values:
            where = f"{name or self._place.name}#{values.index(None)}"
            raise InputError(f"{self.uri}: row {where} has no label", "every image needs a class")
        return values

    def _index(
        self, labels: list[Any], own_names: Sequence[str] | None, class_names: Sequence[str] | None
    ) -> Indexed:
        def row(i: int) -> str:
            return f"{self.uri}: row {self.ids[i]}"

        if all(isinstance(label, str) for label in labels):
            return index_texts(labels, row, own_names if class_names is None else class_names)
        if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
            if max(labels) > np.iinfo(np.int64).max:
                raise InputError(f"{self.uri} has labels too large for a class index")
            return index_numbers(np.array(labels, dtype=np.int64), row, class_names, own_names)
        kind = type(labels[0]).__name__
        raise InputError(f"{self.uri} has labels of type {kind}", "save whole numbers or names")

    def _image_cells(self, file: Any, groups: list[int] | None = None) -> Iterator[Any]:
        chosen = list(range(file.num_row_groups)) if groups is None else groups
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=chosen, columns=[self.image_column]):
            column = batch.column(0)
            yield pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column

    def _pick(self, shard: Shard, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], list[Any]]]:
        """Positions in the sorted ``rows`` and their cells, batch by batch, from row groups that hold any."""
        with self._open(shard.path, shard.name) as file:
            at = shard.start
            for group, size in enumerate(shard.groups):
                if np.searchsorted(rows, at) < np.searchsorted(rows, at + size):
                    here = at
                    for cells in self._image_cells(file, [group]):
                        low, high = np.searchsorted(rows, [here, here + len(cells)])
                        if low < high:
                            yield np.arange(low, high), [cells[int(row - here)] for row in rows[low:high]]
                        here += len(cells)
                at += size

    def _decode(self, cells: Any, rows: Sequence[int], shape: ImageShape) -> Images:
        contents = []
        for cell, row in zip(cells, rows, strict=True):
            content = self._content(cell, row)
            if isinstance(content, InputError):
                raise content
            contents.append(content)
        return decode_images(contents, [self._name(row) for row in rows], shape)

    def _content(self, cell: Any, row: int) -> bytes | InputError:
        content: bytes | None = cell.as_py()
        if not content:
            return InputError(
                f"{self._name(row)} has no bytes in column {self.image_column!r:.80}", "embed the images"
            )
        if len(content) > MAX_IMAGE_FILE_BYTES:
            return InputError(
                f"{self._name(row)} is larger than {MAX_IMAGE_FILE_BYTES >> 20} MiB: not an image"
            )
        return content

    def _name(self, row: int) -> str:
        return f"{self.uri}: image {self.ids[row]}"


def _values(file: Any, column: str) -> list[Any]:
    values: list[Any] = file.read(columns=[column]).column(0).to_pylist()
    return values


def _split_of(name: str) -> str:
    """The split that a shard's name tells of; empty where it tells of none.

    ``train`` for data/train-00000-of-00002.parquet, train/0000.parquet and train.parquet.
    """
    *folders, last = name.split("/")
    stem = last[: -len(".parquet")]
    if match := re.match(r"(.+)-\d+-of-\d+", stem):
        return match[1]
    if folders and folders[-1] != "data":
        return folders[-1]
    return stem if stem.lower() in SPLIT_NAMES else ""


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _label_names(feature: Any) -> list[str] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return names
    return None
