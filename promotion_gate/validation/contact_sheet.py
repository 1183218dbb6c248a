"""The spot check: a random half and a most suspicious half on one sheet, to be marked by a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from promotion_gate import __version__
from promotion_gate.core.errors import UsageError
from promotion_gate.data.interface import ImageDataset
from promotion_gate.validation.alike import Alike
from promotion_gate.validation.page import page
from promotion_gate.validation.pictures import picture_uris
from promotion_gate.validation.survey import Rows, Survey
from promotion_gate.validation.suspicion import Suspect, suspects

MARKS_SCHEMA = "urn:promotion-gate:marks:v1"
MOST_IMAGES = 2000
_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What stands on a sheet: random rows as drawn, and suspects as ranked."""

    random: Sequence[int]
    suspicious: Sequence[Suspect]
    seed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One image of the sheet."""

    number: int
    row: int
    id: str
    label: str
    why: str
    picture: str


def random_rows(labels: Rows, count: int, seed: int) -> Rows:
    """Rows drawn at random, each label by its share of the rows, in no order.

    Every row has the same chance (systematic sampling along rows in order of label, shuffled within it), so
    that the share of wrong labels among them estimates that of all rows. The same seed draws the same rows.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(labels)), labels))
    count = min(count, len(labels))
    step = len(labels) / max(count, 1)
    places = np.floor((rng.random() + np.arange(count)) * step).astype(np.int64)
    return np.asarray(rng.permutation(order[np.minimum(places, len(labels) - 1)]), dtype=np.int64)


def random_half(count: int) -> int:
    """How many of ``count`` images are drawn at random."""
    return (count + 1) // 2


def draw_sample(data: Survey, alike: Alike, count: int, seed: int, named: Sequence[Suspect] = ()) -> Sample:
    """Half of ``count`` rows at random, and the most suspicious of the others.

    Raises
    ------
    UsageError: fewer than 2 images, or more than 2,000.
    """
    if not 2 <= count <= MOST_IMAGES:
        raise UsageError(f"cannot show {count:,} images", f"choose 2 to {MOST_IMAGES:,}")
    drawn = random_rows(data.labels, random_half(count), seed)
    ranked = suspects(data, alike, count - random_half(count), named=named, leave_out=drawn)
    return Sample(drawn.tolist(), ranked, seed)


def contact_sheet(data: Survey, sample: Sample, count: int) -> bytes:
    """The sheet as one HTML file; its script counts the marks and hands them out as a file."""
    rows = [*sample.random, *(one.row for one in sample.suspicious)]
    reasons = [""] * len(sample.random) + [one.why for one in sample.suspicious]
    uris = picture_uris(data.dataset, rows)
    cells = [
        Cell(number, row, data.ids[row], data.label(row), why, uris.get(row, ""))
        for number, (row, why) in enumerate(zip(rows, reasons, strict=True))
    ]
    pixels = data.column("pixels_sha256")
    marks = {
        "schema": MARKS_SCHEMA,
        "data": data.uri,
        "rows": len(data),
        "labels_sha256": labels_sha256(data.dataset),
        "count": count,
        "seed": sample.seed,
        "images": [
            {
                "row": cell.row,
                "id": cell.id,
                "label": cell.label,
                "half": "random" if cell.number < len(sample.random) else "suspicious",
                "pixels_sha256": pixels[cell.row].tobytes().hex(),
                "wrong": False,
            }
            for cell in cells
        ],
    }
    text = json.dumps(marks, ensure_ascii=True).translate(_JSON_ESCAPES)
    halves = (
        ("random", "Drawn at random", "Their marks estimate the share of wrong labels in the whole data set.",
         cells[: len(sample.random)]),
        ("suspicious", "Most suspicious", "Ranked without a model; why is said below each.",
         cells[len(sample.random) :]),
    )  # fmt: skip
    return page(
        "contact_sheet.html.j2",
        "contact_sheet.js",
        uri=data.uri,
        images=len(data),
        seed=sample.seed,
        halves=halves,
        marks=Markup(text),  # noqa: S704 - escaped above
        gate_version=__version__,
    )


def labels_sha256(dataset: ImageDataset) -> str:
    """SHA-256 over id and label of every row, in order: whether a sheet and a data set belong together."""
    digest = hashlib.sha256()
    for row, label in enumerate(dataset.labels.tolist()):
        line = f"{dataset.class_names[label]!r}  {dataset.ids[row]!r}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
