"""The data sets that drills run on, each written once as a plain npz file that the gate reads.

Drawn signs need nothing. Real images come from the folder that ``GATE_TEST_DATA`` names: traffic signs in
``gtsrb32.npz`` (``x``, ``y``, ``track_frame``, ``roi``) and digits in ``mnist10k.npz`` (``x``, ``y``).
"""

from __future__ import annotations

import os
import secrets
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.data.interface import Images

DATA_VARIABLE = "GATE_TEST_DATA"
"""The environment variable that names the folder of real images."""

Source = Literal["signs", "gtsrb", "digits"]
GTSRB_HOLDOUT_SHARE = 0.12

_LIMITS = ("20", "30", "50", "60", "70", "80")
_OTHER_SIGNS = """no passing, no passing over 3.5 t, right of way, priority road, yield, stop, no vehicles,
no vehicles over 3.5 t, no entry, general caution, curve left, curve right, double curve, bumpy road,
slippery road, road narrows right, road work, traffic signals, pedestrians, children, bicycles, ice or snow,
wild animals, end of all limits, turn right, turn left, ahead only, straight or right, straight or left,
keep right, keep left, roundabout, end of no passing, end of no passing over 3.5 t"""
GTSRB_CLASSES: tuple[str, ...] = (
    *(f"speed limit {limit}" for limit in _LIMITS),
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    *(" ".join(name.split()) for name in _OTHER_SIGNS.split(",")),
)
"""The 43 classes of the German Traffic Sign Recognition Benchmark in order of label."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images uint8 (n, H, W, C) with labels int64 (n,).

    ``boxes`` are the objects' boxes, (n, 4): left, top, right and bottom in pixels, where known.
    """

    images: Images = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    boxes: NDArray[np.float64] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        boxes = None if self.boxes is None else self.boxes[rows]
        return Labelled(self.images[rows], self.labels[rows], self.class_names, boxes)


def prepare(
    source: Source, folder: Path, *, training_images: int, holdout_images: int, seed: int = 0
) -> tuple[Path, Path]:
    """Write training and holdout set as ``training.npz`` and ``holdout.npz`` in ``folder``.

    They are written once: a second call with the same folder finds them there. The same arguments give the
    same images. A set smaller than asked for gives what it has; every class stays in both parts.

    Raises
    ------
    UsageError: ``GATE_TEST_DATA`` is not set, or a number of images is out of range.
    InputError: its file is missing or not what it should be.
    """
    training, holdout = folder / "training.npz", folder / "holdout.npz"
    if training.is_file() and holdout.is_file():
        return training, holdout
    if training_images < 1 or holdout_images < 1:
        raise UsageError(f"cannot prepare {training_images} training and {holdout_images} holdout images")
    make = {"signs": _signs, "gtsrb": _gtsrb, "digits": _digits}[source]
    parts = make(training_images, holdout_images, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, path in zip(parts, (training, holdout), strict=True):
        _save(part, path)
    return training, holdout


def _signs(training: int, holdout: int, seed: int) -> tuple[Labelled, Labelled]:
    from promotion_gate.drill.signs import draw_signs, sign_boxes

    # Rows are drawn from (seed, row), so two seeds never share a scene.
    drawn = [draw_signs(count, 2 * seed + part) for part, count in enumerate((training, holdout))]
    first, second = (
        Labelled(signs.images, signs.labels, signs.class_names, sign_boxes(signs)) for signs in drawn
    )
    return first, second


def _gtsrb(training: int, holdout: int, seed: int) -> tuple[Labelled, Labelled]:
    """Split by track, not by image: the thirty frames of a track show one physical sign."""
    arrays = _arrays("gtsrb32.npz", ("x", "y", "track_frame", "roi"))
    labels = arrays["y"].astype(np.int64)
    tracks = labels * 1000 + arrays["track_frame"][:, 0].astype(np.int64)
    everything = Labelled(arrays["x"], labels, GTSRB_CLASSES, arrays["roi"].astype(np.float64))
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for label in range(len(GTSRB_CLASSES)):
        of_class = np.unique(tracks[labels == label])
        held.extend(rng.choice(of_class, max(1, round(GTSRB_HOLDOUT_SHARE * len(of_class))), replace=False))
    is_held = np.isin(tracks, held)
    return (
        everything.take(_spread(np.flatnonzero(~is_held), labels, training, rng)),
        everything.take(_spread(np.flatnonzero(is_held), labels, holdout, rng)),
    )


def _digits(training: int, holdout: int, seed: int) -> tuple[Labelled, Labelled]:
    arrays = _arrays("mnist10k.npz", ("x", "y"))
    labels = arrays["y"].astype(np.int64)
    everything = Labelled(arrays["x"][..., None], labels, tuple(f"digit {digit}" for digit in range(10)))
    order = np.random.default_rng(seed).permutation(len(labels))
    holdout = min(holdout, len(labels) // 3)
    return everything.take(np.sort(order[holdout:][:training])), everything.take(np.sort(order[:holdout]))


def _spread(
    rows: NDArray[np.int64], labels: NDArray[np.int64], wanted: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """About ``wanted`` of the rows, each class keeping its share and at least one row, ascending."""
    if wanted >= len(rows):
        return rows
    kept = []
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        kept.append(rng.choice(of_class, max(1, round(wanted * len(of_class) / len(rows))), replace=False))
    return np.sort(np.concatenate(kept))


def _arrays(name: str, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise UsageError(f"{DATA_VARIABLE} is not set", f"let it name the folder that holds {name}")
    path = Path(folder) / name
    try:
        with np.load(path) as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise InputError(f"{path} has no array {missing[0]}")
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _save(part: Labelled, path: Path) -> None:
    """Whole or not at all: several processes may prepare the same set."""
    arrays = {"images": part.images, "labels": part.labels, "class_names": np.array(part.class_names)}
    if part.boxes is not None:
        arrays["boxes"] = part.boxes
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
