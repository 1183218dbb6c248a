"""Suspicious inputs of production, kept after an alarm for the next gate run.

Kept are predictions of the classes and times that an alarm stood for, those first that least look like the
baseline's: sure of themselves, with an embedding far from the usual, and, where the model is at hand, with
their evidence in one spot. The label in the manifest is what the model predicted. Nobody says it is right.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promotion_gate import __version__
from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.monitor.baseline import distance_from
from promotion_gate.monitor.images import LiveImages
from promotion_gate.monitor.interface import Baseline, Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "promotion-gate-quarantine/1"
MANIFEST, FACTS, IMAGES = "manifest.csv", "quarantine.json", "images"
COLUMNS = (
    "path", "label", "id", "confidence", "time", "version", "sha256", "seen", "embedding_standing",
    "concentration", "reference",
)  # fmt: skip
SPARE = 8
"""References held for each image that is wanted: some cannot be taken, and some show the same image."""
_SUFFIX = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "WEBP": "webp",
    "PPM": "ppm",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

Concentrate = Callable[[Sequence[bytes], str], Sequence[float]]
"""Encoded images of one predicted class to how concentrated the evidence is on each, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Span:
    """A class that stood out from ``start`` to before ``end``, in epoch seconds; "" stands for any class."""

    class_name: str
    start: float = -math.inf
    end: float = math.inf


@dataclass(frozen=True, slots=True, order=True)
class Suspect:
    """One logged prediction under suspicion; they sort by ``standing``, the most suspicious last.

    ``standing`` is the mean of what is known: the confidence, ``embedding_standing``, which is the share of
    the baseline's images that lie nearer to its middle, and ``concentration``; 0 to 1, NaN where unknown.
    """

    standing: float
    time: float
    reference: str
    class_name: str
    confidence: float
    version: int
    embedding_standing: float = math.nan
    concentration: float = math.nan


@dataclass(frozen=True, slots=True)
class Kept:
    """One image in quarantine; ``seen`` counts the predictions that were made of these bytes."""

    suspect: Suspect
    sha256: str
    suffix: str
    seen: int
    content: bytes = field(repr=False, compare=False)

    @property
    def path(self) -> str:
        return f"{IMAGES}/{self.sha256}.{self.suffix}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The suspects found, and how many predictions of the spans there were in all."""

    suspects: Sequence[Suspect]
    matching: int
    without_image: int


def choose(
    pieces: Iterable[Predictions],
    spans: Sequence[Span],
    limit: int,
    *,
    version: int | None = None,
    baseline: Baseline | None = None,
) -> Chosen:
    """The most suspicious predictions of the spans that name an image, the most suspicious first.

    Each reference counts once. The log is read as a stream; what is held goes with ``limit``.

    Parameters
    ----------
    version: the model version whose predictions count, with those that name none; None for all.
    """
    room = max(SPARE * limit, 64)
    held: dict[str, Suspect] = {}
    matching = without_image = 0
    for piece in pieces:
        for suspect in _matching(piece, spans, version, baseline):
            matching += 1
            if not suspect.reference:
                without_image += 1
                continue
            before = held.get(suspect.reference)
            if before is None or suspect > before:
                held[suspect.reference] = suspect
        if len(held) > 2 * room:
            held = {one.reference: one for one in heapq.nlargest(room, held.values())}
    return Chosen(heapq.nlargest(room, held.values()), matching, without_image)


def _matching(
    piece: Predictions, spans: Sequence[Span], version: int | None, baseline: Baseline | None
) -> Iterator[Suspect]:
    names = list(piece.class_names)
    chosen = np.zeros(len(piece), dtype=bool)
    for span in spans:
        within = (piece.time >= span.start) & (piece.time < span.end)
        if span.class_name:
            within &= piece.label == (names.index(span.class_name) if span.class_name in names else -2)
        chosen |= within
    chosen &= (piece.label >= 0) & (piece.label < len(names))
    if version is not None:
        chosen &= (piece.version == version) | (piece.version == 0)
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    distance = _embedding_standing(piece, rows, baseline)
    for row, far in zip(rows.tolist(), distance.tolist(), strict=True):
        confidence = float(piece.confidence[row])
        yield Suspect(
            _mean(confidence, far),
            float(piece.time[row]),
            "" if piece.image is None else piece.image[row] or "",
            names[int(piece.label[row])],
            confidence,
            int(piece.version[row]),
            far,
        )


def _embedding_standing(
    piece: Predictions, rows: NDArray[np.int64], baseline: Baseline | None
) -> NDArray[np.float64]:
    """Share of the baseline's images nearer to its middle than each row, NaN where nothing tells."""
    unknown = np.full(len(rows), np.nan)
    if baseline is None or piece.embedding is None or not len(baseline.embedding_mean):
        return unknown
    embedding = np.asarray(piece.embedding)[rows]
    if embedding.ndim != 2 or embedding.shape[1] != len(baseline.embedding_mean):
        return unknown
    distance = distance_from(np.asarray(baseline.embedding_mean), embedding)
    ladder = np.asarray(baseline.embedding_distance)
    standing = np.searchsorted(ladder, distance, side="right") / len(ladder)
    return np.asarray(np.where(np.isfinite(distance), standing, np.nan), dtype=np.float64)


def _mean(*known: float) -> float:
    told = [min(max(value, 0.0), 1.0) for value in known if math.isfinite(value)]
    return sum(told) / len(told) if told else 0.0


def take(
    suspects: Sequence[Suspect], images: LiveImages, limit: int, concentrate: Concentrate | None = None
) -> list[Kept]:
    """Read the images, each content once, and keep the ``limit`` most suspicious of those that are images.

    With ``concentrate``, twice as many are read, and it has a say in which are kept.
    """
    wanted = limit if concentrate is None else 2 * limit
    kept: dict[str, Kept] = {}
    for suspect in suspects:
        if len(kept) == wanted:
            break
        taken = images.take(suspect.reference)
        if taken is None:
            continue
        content, decoded = taken
        digest = hashlib.sha256(content).hexdigest()
        if digest in kept:
            kept[digest] = replace(kept[digest], seen=kept[digest].seen + 1)
        else:
            kept[digest] = Kept(suspect, digest, _SUFFIX.get(decoded.format, "img"), 1, content)
    found = list(kept.values())
    if concentrate is not None:
        found = sorted(_concentrated(found, concentrate), key=lambda one: one.suspect, reverse=True)
    return found[:limit]


def _concentrated(found: Sequence[Kept], concentrate: Concentrate) -> Iterator[Kept]:
    for name in sorted({one.suspect.class_name for one in found}):
        own = [one for one in found if one.suspect.class_name == name]
        for one, value in zip(own, concentrate([k.content for k in own], name), strict=True):
            s = one.suspect
            standing = _mean(s.confidence, s.embedding_standing, value)
            yield replace(one, suspect=replace(s, standing=standing, concentration=float(value)))


def write_quarantine(folder: Path, kept: Sequence[Kept], facts: Mapping[str, Any]) -> None:
    """A private folder with the images, ``manifest.csv``, which the policy's data sources can read, and
    ``quarantine.json``; whole or not at all.

    Raises
    ------
    UsageError: the folder exists, or cannot be written.
    InputError: there is nothing to keep.
    """
    if not kept:
        raise InputError(
            "there is no image to keep in quarantine", "look at --images, --class, --from and --to"
        )
    require_new(folder)
    partial = folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}")
    try:
        try:
            partial.mkdir(mode=0o700)
            (partial / IMAGES).mkdir(mode=0o700)
            for one in kept:
                _write(partial / one.path, one.content)
            _write(partial / MANIFEST, _csv(kept))
            _write(partial / FACTS, json.dumps(_json(kept, facts), indent=2).encode() + b"\n")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from None


def require_new(folder: Path) -> None:
    """Say before the long work that a folder is there already, or cannot be made.

    Raises
    ------
    UsageError: it is, or its parent is no folder or may not be written.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already", "name a new folder with --out")
    if not folder.parent.is_dir() or not os.access(folder.parent, os.W_OK):
        raise UsageError(f"cannot make {folder}: {folder.parent} is no folder that may be written")


def _write(path: Path, content: bytes) -> None:
    """Readable by its owner alone, and never a program."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _csv(kept: Sequence[Kept]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(COLUMNS)
    for one in kept:
        cells = _cells(one)
        # A spreadsheet would take some references, which come from outside, for formulas. The JSON has all.
        reference = " ".join(str(cells["reference"]).split())
        cells["reference"] = f"'{reference}" if reference.startswith(_FORMULA) else reference
        table.writerow(["" if (cell := cells[name]) is None else cell for name in COLUMNS])
    return text.getvalue().encode("utf-8", "replace")


def _cells(one: Kept) -> dict[str, Any]:
    suspect = one.suspect
    return {
        "path": one.path,
        "label": suspect.class_name,
        "id": one.sha256[:16],
        "confidence": _known(suspect.confidence),
        "time": datetime.fromtimestamp(suspect.time, UTC).isoformat(timespec="milliseconds"),
        "version": suspect.version or None,
        "sha256": one.sha256,
        "seen": one.seen,
        "embedding_standing": _known(suspect.embedding_standing),
        "concentration": _known(suspect.concentration),
        "reference": suspect.reference,
    }


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _json(kept: Sequence[Kept], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "note": "label is what the model predicted; nobody says that it is right",
        "gate_version": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "images": [{**_cells(one), "standing": _known(one.suspect.standing)} for one in kept],
    }


def facts_of(
    model: str,
    version: int | None,
    spans: Sequence[Span],
    chosen: Chosen,
    kept: Sequence[Kept],
    images: LiveImages,
    baseline: Baseline | None,
) -> dict[str, Any]:
    """What the quarantine says of itself: what was asked for, and what became of it."""
    return {
        "model": model,
        "version": version,
        "baseline_digest": None if baseline is None else baseline.digest,
        "asked_for": [
            {"class": span.class_name or None, "from": _moment(span.start), "to": _moment(span.end)}
            for span in spans
        ],
        "chosen_by": "mean of confidence, embedding_standing and concentration, as far as they are known",
        "matching_predictions": chosen.matching,
        "without_image": chosen.without_image,
        "kept": len(kept),
        "kept_by_class": dict(Counter(one.suspect.class_name for one in kept)),
        "refused": dict(images.refused),
        "images_from": images.uri,
    }


def _moment(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if math.isfinite(seconds) else None
