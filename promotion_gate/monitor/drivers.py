"""The images behind a standing alarm: found, shown, and explained where the model is at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import GateError
from promotion_gate.monitor.images import LiveImages
from promotion_gate.monitor.interface import UNSEEN, Alarm, Predictions, WindowOutcome

if TYPE_CHECKING:
    from promotion_gate.monitor.explain import Explanation

MOST_IMAGES = 8
MOST_ALARMS = 4
SIDE = 512

Explain = Callable[[Sequence[bytes], str], "Explanation"]
"""Encoded images and the class they were given to what the model sees in them."""


@dataclass(frozen=True, slots=True)
class LiveImage:
    """One image that production saw: what was predicted of it, and a small picture uint8 (h, w, 3).

    ``confidence`` is NaN where none was logged.
    """

    reference: str
    class_name: str
    confidence: float
    at: datetime
    content: bytes = field(repr=False, compare=False)
    pixels: NDArray[np.uint8] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Drivers:
    """What stands behind one alarm. ``missing`` says in words what cannot be shown of it."""

    alarm: Alarm
    images: Sequence[LiveImage]
    explanation: Explanation | None = None
    missing: Sequence[str] = ()


def drivers_of(outcome: WindowOutcome, images: LiveImages | None, explain: Explain | None) -> list[Drivers]:
    """The images behind each alarm that stood after a look, the first :data:`MOST_ALARMS` alarms."""
    kinds = ("class-share", "confidence", "embedding", "unseen-class")
    standing = [alarm for alarm in outcome.firing if alarm.kind in kinds]
    standing.sort(key=lambda alarm: (is_loss(alarm), -alarm.sigma))
    return [_behind(alarm, outcome.samples, images, explain) for alarm in standing[:MOST_ALARMS]]


def is_loss(alarm: Alarm) -> bool:
    """Whether a class became rare: then no image of it stands behind the alarm."""
    return alarm.kind == "class-share" and alarm.detail.get("side") == "loss"


def _behind(
    alarm: Alarm, samples: Predictions | None, images: LiveImages | None, explain: Explain | None
) -> Drivers:
    if is_loss(alarm):
        return Drivers(
            alarm, (), missing=["The class became rare: what took its place has an alarm of its own."]
        )
    if samples is None or not len(samples):
        return Drivers(alarm, (), missing=["The log holds none of the predictions behind it any more."])
    rows = _rows(alarm, samples)
    named = [row for row in rows if samples.image is not None and samples.image[row]]
    if not named:
        return Drivers(alarm, (), missing=["No image: the log names none for these predictions."])
    if images is None:
        told = f"No image: {len(named)} are named in the log, and --images names no folder to look in."
        return Drivers(alarm, (), missing=[told])
    shown = _taken(named, samples, images)
    if not shown:
        told = f"No image: none of the {len(named)} that the log names could be taken from {images.uri}."
        return Drivers(alarm, (), missing=[told])
    if explain is None or alarm.kind == "unseen-class":
        return Drivers(alarm, shown)
    # What moved as a whole has no class of its own: the images are explained for the most frequent one.
    names = [image.class_name for image in shown]
    asked = alarm.subject if alarm.subject in names else max(names, key=names.count)
    of_class = [image for image in shown if image.class_name == asked]
    try:
        return Drivers(alarm, of_class, explain([image.content for image in of_class], asked))
    except GateError as error:
        return Drivers(alarm, shown, missing=[f"No attribution: {error}"])


def _rows(alarm: Alarm, samples: Predictions) -> list[int]:
    """Rows of the predictions behind an alarm, newest first."""
    labels = np.asarray(samples.label)
    if alarm.kind == "unseen-class":
        chosen = labels == UNSEEN
    elif alarm.subject in samples.class_names:
        chosen = labels == list(samples.class_names).index(alarm.subject)
    else:
        chosen = np.ones(len(samples), dtype=bool)
    rows = np.flatnonzero(chosen)
    return [int(row) for row in rows[np.argsort(-samples.time[rows], kind="stable")]]


def _taken(rows: Sequence[int], samples: Predictions, images: LiveImages) -> list[LiveImage]:
    """The first images that can be shown, each once however often it was seen."""
    assert samples.image is not None
    seen: set[bytes] = set()
    shown: list[LiveImage] = []
    for row in rows:
        taken = images.take(samples.image[row])
        if taken is None:
            continue
        content, decoded = taken
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            continue
        seen.add(digest)
        label = int(samples.label[row])
        name = samples.class_names[label] if 0 <= label < len(samples.class_names) else "not known"
        at = datetime.fromtimestamp(float(samples.time[row]), UTC)
        confidence = float(samples.confidence[row])
        shown.append(LiveImage(samples.image[row], name, confidence, at, content, _small(decoded.pixels)))
        if len(shown) == MOST_IMAGES:
            break
    return shown


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every so many pixels: a page shows thumbnails, and whole frames would fill the memory."""
    step = -(-max(pixels.shape[:2]) // SIDE)
    return pixels[::step, ::step].copy()
