"""The marks that a person made on a contact sheet, held against the data set they were made on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promotion_gate.core.errors import UsageError
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.statistics import exact_interval
from promotion_gate.validation.contact_sheet import (
    MARKS_SCHEMA,
    MOST_IMAGES,
    labels_sha256,
    random_half,
    random_rows,
)
from promotion_gate.validation.facts import describe

MAX_BYTES = 20_000_000
QUARANTINE_SCHEMA = "urn:promotion-gate:quarantine:v1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Mark(_Record):
    """One image of the sheet; only row, half, pixels and the mark itself are gone by."""

    row: Annotated[int, Field(ge=0)]
    id: str
    label: str
    half: Literal["random", "suspicious"]
    pixels_sha256: str
    wrong: bool


class Marks(_Record):
    """A whole sheet."""

    schema_: Annotated[str, Field(alias="schema")]
    data: str
    rows: int
    labels_sha256: str
    count: Annotated[int, Field(ge=2, le=MOST_IMAGES)]
    seed: Annotated[int, Field(ge=0)]
    images: Annotated[list[Mark], Field(max_length=MOST_IMAGES)]

    def half(self, which: str) -> list[Mark]:
        return [mark for mark in self.images if mark.half == which]


@dataclass(frozen=True, slots=True)
class WrongLabels:
    """Wrong labels of the random half: ``wrong`` of ``shown``, and the interval of the share in all rows."""

    wrong: int
    shown: int
    low: float
    high: float


def read_marks(path: Path, dataset: ImageDataset) -> Marks:
    """Read the marks, and see that they were made on this data set and on the rows that its seed draws.

    Raises
    ------
    UsageError: not a file of marks, or of another data set, or its random half is not the one drawn.
    """
    try:
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes: not a sheet's marks")
        table = json.loads(path.read_bytes())
        if not isinstance(table, dict) or table.get("schema") != MARKS_SCHEMA:
            raise UsageError(
                f"{path} does not hold a contact sheet's marks", "save them from the sheet as JSON"
            )
        marks = Marks.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a file of marks: {str(error)[:120]}") from None
    _require_same_data(path, marks, dataset)
    return marks


def _require_same_data(path: Path, marks: Marks, dataset: ImageDataset) -> None:
    if marks.rows != len(dataset) or marks.labels_sha256 != labels_sha256(dataset):
        raise UsageError(
            f"{path} was made on other data: rows or labels of {dataset.uri} differ", "make a new sheet of it"
        )
    drawn = random_rows(dataset.labels, random_half(marks.count), marks.seed).tolist()
    if [mark.row for mark in marks.half("random")] != drawn:
        raise UsageError(f"{path}: its random half is not what seed {marks.seed} draws", "make a new sheet")
    seen: set[int] = set()
    for mark in marks.images:
        if mark.row in seen or mark.row >= len(dataset):
            raise UsageError(f"{path} names row {mark.row} twice, or it is not there")
        seen.add(mark.row)
    for mark in marks.images:
        stored = dataset.stored([mark.row])
        pixels = describe(stored, [dataset.ids[mark.row]])["pixels_sha256"][0]
        if pixels.tobytes().hex() != mark.pixels_sha256:
            raise UsageError(
                f"{path}: the image {dataset.ids[mark.row]!r:.200} has changed since", "make a new sheet"
            )


def wrong_labels(marks: Marks, confidence: float = 0.95) -> WrongLabels:
    """What the random half says of the whole data set: an exact interval after Clopper and Pearson."""
    drawn = marks.half("random")
    wrong = sum(mark.wrong for mark in drawn)
    low, high = exact_interval(wrong, len(drawn), confidence)
    return WrongLabels(wrong, len(drawn), low, high)


def marks_lines(marks: Marks, dataset: ImageDataset, confidence: float = 0.95) -> Iterator[str]:
    """The estimate, for the terminal."""
    found = wrong_labels(marks, confidence)
    share = found.wrong / max(found.shown, 1)
    yield (
        f"random half: {found.wrong} of {found.shown} labels marked wrong, {share:.1%} "
        f"({confidence:.0%} interval {found.low:.1%} to {found.high:.1%}, after Clopper and Pearson)"
    )
    low, high = int(np.floor(found.low * len(dataset))), int(np.ceil(found.high * len(dataset)))
    yield f"so of {len(dataset):,} rows {max(low, found.wrong):,} to {high:,} have a wrong label"
    other = marks.half("suspicious")
    yield f"suspicious half: {sum(mark.wrong for mark in other)} of {len(other)} marked wrong"


def quarantine_list(marks: Marks, dataset: ImageDataset) -> bytes:
    """The rows marked wrong, as JSON."""
    wrong = sorted(mark.row for mark in marks.images if mark.wrong)
    document = {
        "schema": QUARANTINE_SCHEMA,
        "data": dataset.uri,
        "labels_sha256": marks.labels_sha256,
        "rows": [
            {
                "row": row,
                "id": dataset.ids[row],
                "label": dataset.class_names[int(dataset.labels[row])],
            }
            for row in wrong
        ],
    }
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode("ascii")
