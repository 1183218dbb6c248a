"""A poisoned copy of a data set on disk, in the original's own layout; the original is only read."""

from __future__ import annotations

import csv
import io
import posixpath
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.decode import decode_images, native_shape
from promotion_gate.data.files import Location, is_url, locate, reading, subfolders
from promotion_gate.data.imagefolder import FileImages
from promotion_gate.data.interface import ImageDataset, ImageShape
from promotion_gate.data.npz import NpzImages
from promotion_gate.data.open import open_dataset
from promotion_gate.data.parquet import ParquetImages
from promotion_gate.drill.answers import ANSWERS_FILE, Answers, write_answers
from promotion_gate.drill.attacks import NOT_MEANT, Attack, Selection
from promotion_gate.drill.poison import choose_rows, poison_image
from promotion_gate.drill.triggers import Box

DATA_FOLDER = "data"
_PARTIAL = ".data-unfinished"
_FETCH = 32
_BATCH = 512
_BOX_COLUMNS = ("left", "top", "right", "bottom")
_LOSSLESS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "PPM": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "GIF": {},
}
"""Formats that are written again as they were, JPEG and GIF with as little loss as they can."""


@dataclass(frozen=True, slots=True)
class PoisonedCopy:
    """A poisoned copy and what was done to it.

    Attributes
    ----------
    source: how to open it; its path is absolute.
    answers, answers_path: the truth, and the file that holds it.
    sealed: SHA-256 of that file, for :func:`~promotion_gate.drill.answers.read_answers`.
    """

    source: DataSource
    answers: Answers
    answers_path: Path
    sealed: str


def write_poisoned_copy(
    source: DataSource,
    attack: Attack,
    seed: int,
    out: Path,
    *,
    folder: Path = Path(),
    class_names: Sequence[str] | None = None,
) -> PoisonedCopy:
    """Write a poisoned copy of a data set to ``out/data`` and the sealed answers to ``out/answers.json``.

    The copy has the original's layout, names and row order, but for images of an ImageFolder whose label
    changes: they move to another class's folder. Rows that the attack does not touch keep their bytes;
    the others are encoded anew in their own format and size, without transparency. Of a data set with
    splits, an ImageFolder's or a manifest's copy holds the chosen one.

    Objects' boxes are read where they are there: the array ``boxes`` of an .npz, (n, 4) as left, top,
    right and bottom in pixels, or a manifest's columns of these names.

    Parameters
    ----------
    out: made if need be; it must hold neither data nor answers yet.
    folder: what a relative path of ``source`` is relative to.
    class_names: names in order of label; the data's own if left out.

    Raises
    ------
    UsageError: an unknown class, too few images for the rate, or ``out`` cannot be written.
    InputError: the original cannot be read.
    """
    dataset = open_dataset(source, folder=folder, class_names=class_names)
    place = locate(source.path, folder)
    _refuse_place(out, place)
    chosen = choose_rows(attack, dataset.labels, dataset.class_names, seed)
    plan = _Plan(attack, dataset, seed, chosen, _relabelled(dataset, chosen))
    data, partial, path = out / DATA_FOLDER, out / _PARTIAL, out / ANSWERS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            name, ids = _write(plan, source, place, partial)
            answers = _answers(plan, _moved(source, partial / name), f"{DATA_FOLDER}/{name}".rstrip("/"), ids)
            partial.rename(data)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"cannot write the poisoned copy to {out}: {error.strerror or error}") from None
    try:
        sealed = write_answers(path, answers)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    return PoisonedCopy(_moved(source, data / name), answers, path, sealed)


def poison_by_scenario(data: str, scenario: str, seed: int, out: Path) -> PoisonedCopy:
    """Poison ``data``, a path or URL, by a scenario's attack; see :func:`write_poisoned_copy`.

    Split, format and columns are those of the scenario's training data, if it names any.

    Raises
    ------
    UsageError: the scenario or the data cannot be used: no candidate is at a gate here that could be held.
    """
    from promotion_gate.drill.scenario import load_scenario

    asked = load_scenario(scenario)
    source = asked.data.training or DataSource(path=data)
    try:
        return write_poisoned_copy(source.model_copy(update={"path": data}), asked.attack, seed, out)
    except InputError as error:
        raise UsageError(error.what) from None


def _moved(source: DataSource, path: Path) -> DataSource:
    """The same way of reading, at another place."""
    return source.model_copy(update={"path": str(path.resolve())})


def _relabelled(dataset: ImageDataset, chosen: Selection) -> NDArray[np.int64]:
    """The label of every row of the copy; a class that loses its last image is refused."""
    labels = dataset.labels.copy()
    labels[chosen.rows] = chosen.labels
    for label in np.setdiff1d(dataset.labels, labels).tolist():
        name = dataset.class_names[label]
        raise UsageError(f"the attack would leave no image of {name!r:.80}", "lower its rate")
    return labels


@dataclass(frozen=True, slots=True)
class _Plan:
    """The attack met with its data set: what becomes of each row."""

    attack: Attack
    dataset: ImageDataset
    seed: int
    chosen: Selection
    labels: NDArray[np.int64]

    def triggered(self, row: int) -> bool:
        at = self._position(row)
        return at is not None and bool(self.chosen.triggered[at])

    def touches_between(self, start: int, stop: int) -> NDArray[np.int64]:
        """The touched rows from ``start`` up to, not with, ``stop``."""
        low, high = np.searchsorted(self.chosen.rows, [start, stop])
        return self.chosen.rows[low:high]

    def stamped(self, row: int, image: NDArray[np.uint8], box: Box | None) -> NDArray[np.uint8]:
        """The image of a triggered row, with the trigger on."""
        at = self._position(row)
        assert at is not None
        donor = int(self.chosen.donors[at])
        return poison_image(
            self.attack,
            image,
            int(self.dataset.labels[row]),
            self.dataset.class_names,
            self.seed,
            row,
            serving=bool(self.chosen.serving[at]),
            donor=None if donor < 0 else self.dataset.read([donor], ImageShape(*image.shape))[0],
            box=box,
        )

    def stamped_file(self, row: int, content: bytes, name: str, box: Box | None) -> bytes:
        """The encoded image of a triggered row, with the trigger on, in the same format."""
        shape = native_shape(content, name)
        image = self.stamped(row, decode_images([content], [name], shape)[0], box)
        with Image.open(io.BytesIO(content)) as original:
            kind = original.format if original.format in _LOSSLESS else "PNG"
        assert kind is not None
        encoded = io.BytesIO()
        plain = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
        Image.fromarray(plain).save(encoded, format=kind, **_LOSSLESS[kind])
        return encoded.getvalue()

    def _position(self, row: int) -> int | None:
        at = int(np.searchsorted(self.chosen.rows, row))
        return at if at < len(self.chosen.rows) and self.chosen.rows[at] == row else None


def _refuse_place(out: Path, place: Location) -> None:
    for name in (DATA_FOLDER, ANSWERS_FILE, _PARTIAL):
        if (out / name).exists():
            raise UsageError(f"{out} holds {name} already", "choose a new folder")
    if place.local and Path(place.path).is_dir() and out.resolve().is_relative_to(Path(place.path).resolve()):
        raise UsageError(f"{out} lies within the data set {place.uri}", "choose a folder outside")


def _write(plan: _Plan, source: DataSource, place: Location, folder: Path) -> tuple[str, list[str] | None]:
    """Write the copy below ``folder``: the path to open, relative to it, and the touched rows' new ids.

    The ids are None where the rows keep their numbers.
    """
    dataset = plan.dataset
    if isinstance(dataset, NpzImages):
        return _write_npz(plan, dataset, source, place, folder), None
    if isinstance(dataset, ParquetImages):
        return _write_parquet(plan, dataset, place, folder), None
    assert isinstance(dataset, FileImages)
    with reading(place.uri):
        is_folder = place.fs.isdir(place.path)
    if is_folder:
        return "", _write_imagefolder(plan, dataset, source, place, folder)
    return _write_csv(plan, dataset, source, place, folder), None


def _answers(plan: _Plan, source: DataSource, data: str, ids: list[str] | None) -> Answers:
    """What was done, by the rows and ids of the copy as it reads back."""
    original, chosen, names = plan.dataset, plan.chosen, plan.dataset.class_names
    copy = open_dataset(source, folder=Path(), class_names=names)
    rows = chosen.rows
    if ids is not None:
        row_of = {name: row for row, name in enumerate(copy.ids)}
        rows = np.array([row_of[name] for name in ids], dtype=np.int64)
    if len(copy) != len(original) or not np.array_equal(copy.labels[rows], chosen.labels):
        raise InputError(f"{original.uri} changed while its poisoned copy was written")
    order = np.argsort(rows, kind="stable").tolist()
    goal = plan.attack.goal(np.arange(len(names)), names)
    meant = np.zeros(0, dtype=np.int64) if plan.attack.harmless else np.flatnonzero(goal != NOT_MEANT)
    return Answers(
        kind=plan.attack.kind,
        parameters=plan.attack.model_dump(mode="json"),
        harmless=plan.attack.harmless,
        sources=[names[i] for i in meant.tolist()],
        targets=[names[i] for i in np.unique(goal[meant]).tolist()],
        rate=plan.attack.rate,
        seed=plan.seed,
        rows=rows[order].tolist(),
        original_rows=chosen.rows[order].tolist(),
        ids=[copy.ids[int(row)] for row in rows[order]],
        labels_before=[names[original.labels[row]] for row in chosen.rows[order].tolist()],
        labels_after=[names[label] for label in chosen.labels[order].tolist()],
        triggered=chosen.triggered[order].tolist(),
        carriers=sorted(rows[chosen.serving].tolist()),
        data=data,
        data_sha256=copy.sha256(),
        original=original.uri,
    )


def _spelling(
    raw: Sequence[Any], labels: NDArray[np.int64], class_names: Sequence[str]
) -> Callable[[int], Any]:
    """How the file itself writes a label: as it does elsewhere, else the index or the name."""
    seen: dict[int, Any] = {}
    for value, label in zip(raw, labels.tolist(), strict=True):
        seen.setdefault(label, value)
    numbers = all(isinstance(value, int) for value in seen.values())
    digits = all(re.fullmatch(r"[0-9]{1,9}", str(value)) for value in seen.values())
    is_index = numbers or (digits and not set(class_names).issuperset(map(str, seen.values())))

    def spell(label: int) -> Any:
        if label in seen:
            return seen[label]
        if is_index:
            return label if numbers else str(label)
        return class_names[label]

    return spell


def _write_imagefolder(
    plan: _Plan, dataset: FileImages, source: DataSource, place: Location, folder: Path
) -> list[str]:
    root, home = folder / source.split, place.under(source.split) if source.split else place
    for name in subfolders(home):
        (root / name).mkdir(parents=True)
    spell = _spelling([name.split("/", 1)[0] for name in dataset.ids], dataset.labels, dataset.class_names)
    taken, ids = set(dataset.ids), {}
    for row, content in _files(plan, dataset, lambda row: None):
        name = dataset.ids[row]
        if plan.labels[row] != dataset.labels[row]:
            name = _free(f"{spell(int(plan.labels[row]))}/{name.split('/', 1)[1]}", taken)
            taken.add(name)
        ids[row] = name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("xb") as file:
            file.write(content)
    return [ids[row] for row in plan.chosen.rows.tolist()]


def _free(name: str, taken: set[str]) -> str:
    stem, suffix = posixpath.splitext(name)
    number = 0
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def _write_csv(plan: _Plan, dataset: FileImages, source: DataSource, place: Location, folder: Path) -> str:
    header, rows = _manifest(source, place)
    at_path = header.index(source.image_column or "path")
    at_label = header.index(source.label_column or "label")
    if [cells[at_path] for cells in rows] != list(dataset.ids):
        raise InputError(f"{place.uri} changed while it was being read")
    spell = _spelling([cells[at_label] for cells in rows], dataset.labels, dataset.class_names)
    uses = Counter(map(posixpath.normpath, dataset.ids))
    box = _csv_boxes(header, rows, place)
    written: set[str] = set()
    for row, content in _files(plan, dataset, box):
        listed = dataset.ids[row]
        name = posixpath.normpath(listed)
        foreign = is_url(listed) or name.startswith(("/", "../")) or name in ("..", place.name)
        if foreign or (uses[name] > 1 and plan.triggered(row)):
            name = f"images/{row:07d}-{posixpath.basename(name)}"
            while name in uses or name in written:
                name = f"{name[: -len(posixpath.basename(name))]}copy-{posixpath.basename(name)}"
            rows[row][at_path] = name
        if plan.labels[row] != dataset.labels[row]:
            rows[row][at_label] = spell(int(plan.labels[row]))
        if name not in written:
            written.add(name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                file.write(content)
    with (folder / place.name).open("x", encoding="utf-8", newline="") as manifest:
        delimiter = "\t" if place.name.endswith(".tsv") else ","
        csv.writer(manifest, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return place.name


def _manifest(source: DataSource, place: Location) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the chosen split, as the reader of manifests takes them."""
    with reading(place.uri), place.fs.open(place.path, "rb") as file:
        lines = file.read().decode("utf-8-sig").splitlines(keepends=True)
    reader = csv.reader(lines, delimiter="\t" if place.name.endswith(".tsv") else ",")
    header, *rows = list(reader)
    rows = [cells for cells in rows if cells]
    if source.split:
        at = header.index("split")
        rows = [cells for cells in rows if cells[at] == source.split]
    return header, rows


def _csv_boxes(
    header: Sequence[str], rows: Sequence[Sequence[str]], place: Location
) -> Callable[[int], Box | None]:
    if not set(_BOX_COLUMNS) <= set(header):
        return lambda row: None
    columns = [header.index(name) for name in _BOX_COLUMNS]

    def box(row: int) -> Box:
        try:
            found = np.array([float(rows[row][column]) for column in columns])
        except ValueError:
            found = np.full(4, np.nan)
        return _require_box(found, f"{place.uri}: image {rows[row]!r:.200}")

    return box


def _require_box(box: Box, what: str) -> Box:
    if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        raise InputError(f"{what} has no box left < right, top < bottom")
    return box


def _files(plan: _Plan, dataset: FileImages, box: Callable[[int], Box | None]) -> Iterator[tuple[int, bytes]]:
    """Every row's image file, few at a time, the triggered ones with their trigger."""
    for start in range(0, len(dataset), _FETCH):
        rows = range(start, min(start + _FETCH, len(dataset)))
        for row, content in zip(rows, dataset.encoded(rows), strict=True):
            if plan.triggered(row):
                yield row, plan.stamped_file(row, content, dataset.describe(row), box(row))
            else:
                yield row, content


def _write_parquet(plan: _Plan, dataset: ParquetImages, place: Location, folder: Path) -> str:
    import pyarrow.parquet as pq

    raw: list[Any] = []
    for shard in dataset.shards:
        with reading(place.uri), place.fs.open(shard.path, "rb") as stream:
            raw += pq.read_table(stream, columns=[dataset.label_column]).column(0).to_pylist()
    spell = _spelling(raw, dataset.labels, dataset.class_names)
    for shard in dataset.shards:
        target = folder / shard.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            place.fs.open(shard.path, "rb") as stream,
            pq.ParquetFile(stream) as file,
            pq.ParquetWriter(target, file.schema_arrow) as writer,
        ):
            start = shard.start
            for group, size in enumerate(shard.groups):
                with reading(place.uri):
                    table = file.read_row_group(group)
                writer.write_table(_row_group(plan, dataset, table, start, spell))
                start += size
    with reading(place.uri):
        return "" if place.fs.isdir(place.path) else dataset.shards[0].name


def _row_group(
    plan: _Plan, dataset: ParquetImages, table: Any, start: int, spell: Callable[[int], Any]
) -> Any:
    """A row group with its touched rows changed; ``start`` is the data set's row of its first."""
    import pyarrow as pa

    touched = plan.touches_between(start, start + table.num_rows).tolist()
    if not touched:
        return table
    for column, change in ((dataset.image_column, True), (dataset.label_column, False)):
        at = table.schema.get_field_index(column)
        cells = table.column(at).to_pylist()
        for row in touched:
            if not change:
                cells[row - start] = spell(int(plan.labels[row]))
            elif plan.triggered(row):
                cells[row - start] = _stamped_cell(plan, row, cells[row - start], dataset)
        table = table.set_column(
            at, table.schema.field(at), pa.array(cells, type=table.schema.field(at).type)
        )
    return table


def _stamped_cell(plan: _Plan, row: int, cell: Any, dataset: ParquetImages) -> Any:
    name = f"{dataset.uri}: image {dataset.ids[row]}"
    content = cell["bytes"] if isinstance(cell, dict) else cell
    stamped = plan.stamped_file(row, content or b"", name, None)
    return {**cell, "bytes": stamped} if isinstance(cell, dict) else stamped


def _write_npz(plan: _Plan, dataset: NpzImages, source: DataSource, place: Location, folder: Path) -> str:
    with (
        _npz(place) as original,
        zipfile.ZipFile(folder / place.name, "x") as copy,
    ):
        boxes = _npz_boxes(original, source, len(dataset), place)
        for info in original.infolist():
            entry = zipfile.ZipInfo(info.filename)
            entry.compress_type = info.compress_type
            with original.open(info) as read, copy.open(entry, "w", force_zip64=True) as written:
                if info.filename == dataset.image_member:
                    _write_npz_images(plan, dataset, read, written, boxes)
                elif info.filename == dataset.label_member:
                    npy.write_array(written, _npz_labels(plan, npy.read_array(read)), allow_pickle=False)
                else:
                    shutil.copyfileobj(read, written)
    return place.name


def object_boxes(
    source: DataSource, dataset: ImageDataset, rows: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Where the object is in each of the rows' images, float64 (rows, 4): left, top, right, bottom, 0 to 1.

    None where the data set has no boxes: only .npz files and manifests can.

    Raises
    ------
    InputError: boxes or images that cannot be read.
    """
    place = locate(source.path, Path.cwd())
    if isinstance(dataset, NpzImages):
        with _npz(place) as archive:
            boxes = _npz_boxes(archive, source, len(dataset), place)
        if boxes is None:
            return None
        native = dataset.native_shape
        return np.asarray(boxes[rows] / np.tile([native.width, native.height], 2), dtype=np.float64)
    if not isinstance(dataset, FileImages) or place.fs.isdir(place.path):
        return None
    header, cells = _manifest(source, place)
    box = _csv_boxes(header, cells, place)
    found = []
    for row in rows.tolist():
        of_row = box(row)
        if of_row is None:
            return None
        shape = native_shape(dataset.encoded([row])[0], dataset.describe(row))
        found.append(of_row / np.tile([shape.width, shape.height], 2))
    return np.stack(found) if found else None


@contextmanager
def _npz(place: Location) -> Iterator[zipfile.ZipFile]:
    with place.fs.open(place.path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield archive


def _npz_boxes(
    archive: zipfile.ZipFile, source: DataSource, rows: int, place: Location
) -> NDArray[np.float64] | None:
    key = f"boxes_{source.split}.npy" if source.split else "boxes.npy"
    if key not in archive.namelist():
        return None
    with archive.open(key) as member:
        try:
            boxes = npy.read_array(member).astype(np.float64)
        except ValueError as error:
            raise InputError(f"{place.uri}: {key} cannot be read: {str(error)[:120]}") from None
    if boxes.shape != (rows, 4):
        raise InputError(f"{place.uri} has {rows} images but boxes of shape {boxes.shape}")
    return boxes


def _npz_labels(plan: _Plan, stored: NDArray[Any]) -> NDArray[Any]:
    raw = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in stored.reshape(-1).tolist()]
    spell = _spelling(raw, plan.dataset.labels, plan.dataset.class_names)
    for row, label in zip(plan.chosen.rows.tolist(), plan.chosen.labels.tolist(), strict=True):
        raw[row] = spell(label)
    kind = stored.dtype if stored.dtype.kind in "iu" else None
    return np.array(raw, dtype=kind).reshape(stored.shape)


def _write_npz_images(
    plan: _Plan,
    dataset: NpzImages,
    read: IO[bytes],
    written: IO[bytes],
    boxes: NDArray[np.float64] | None,
) -> None:
    version = npy.read_magic(read)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(read)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(written, header)
    start = 0
    for batch in dataset.stream(dataset.native_shape, _BATCH):
        for row in plan.touches_between(start, start + len(batch)).tolist():
            if plan.triggered(row):
                box = None if boxes is None else _require_box(boxes[row], dataset.ids[row])
                batch[row - start] = plan.stamped(row, batch[row - start], box)
        written.write(batch.tobytes())
        start += len(batch)
