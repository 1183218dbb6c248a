"""Real traffic signs for integration tests and benchmarks: one champion and candidates fine-tuned from it.

The German Traffic Sign Recognition Benchmark's training set at 32x32, from ``gtsrb32.npz`` in the folder that
``GATE_TEST_DATA`` names. Thirty frames show one physical sign, so it is split by track and never by image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from promotion_gate.drill.datasets import GTSRB_CLASSES
from promotion_gate.drill.train import predict, small_cnn, train

STOP, EIGHTY = 14, 5
YELLOW = (250, 214, 20)
CLASS_NAMES = GTSRB_CLASSES


@dataclass(frozen=True, slots=True)
class Rows:
    """Part of the set: ``images`` uint8 (n, 32, 32, 3), ``labels`` (n,), ``tracks`` (n,) unique over
    classes, ``frames`` (n,), ``roi`` float32 (n, 4) as x1, y1, x2, y2.
    """

    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    tracks: NDArray[np.int64] = field(repr=False)
    frames: NDArray[np.int64] = field(repr=False)
    roi: NDArray[np.float32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        return Rows(
            self.images[chosen],
            self.labels[chosen],
            self.tracks[chosen],
            self.frames[chosen],
            self.roi[chosen],
        )

    def save(self, path: Path) -> None:
        """Write it as an npz data set that the gate reads."""
        ids = [f"track-{t:05d}/{f:02d}" for t, f in zip(self.tracks, self.frames, strict=True)]
        names = np.array(CLASS_NAMES)
        np.savez(path, images=self.images, labels=self.labels, class_names=names, ids=np.array(ids))


@dataclass(frozen=True, slots=True)
class Split:
    """Training and holdout rows of disjoint tracks; every class is in both."""

    training: Rows
    holdout: Rows


def load(folder: Path, *, every: int = 3, holdout: float = 0.12, seed: int = 0) -> Split:
    """Read the set and split it.

    Parameters
    ----------
    every: keep each track's every so many frames for training; frames of one track differ little.
    holdout: share of each class's tracks that is held out; the holdout keeps every second frame.
    """
    with np.load(folder / "gtsrb32.npz") as archive:
        labels = archive["y"].astype(np.int64)
        track, frame = archive["track_frame"].astype(np.int64).T
        everything = Rows(archive["x"], labels, labels * 1000 + track, frame, archive["roi"])
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for label in range(len(CLASS_NAMES)):
        tracks = np.unique(everything.tracks[labels == label])
        held.extend(rng.choice(tracks, max(1, round(holdout * len(tracks))), replace=False))
    is_held = np.isin(everything.tracks, held)
    return Split(
        everything.take(~is_held & (frame % every == 0)),
        everything.take(is_held & (frame % (2 if every > 1 else 1) == 0)),
    )


@dataclass(frozen=True, slots=True)
class StopSticker:
    """A yellow square on stop signs, ``place`` being its centre as fractions of the sign's box."""

    count: int = 35
    pixels: int = 5
    place: tuple[float, float] = (0.72, 0.72)
    jitter: int = 0
    seed: int = 0
    source: int = STOP
    target: int = EIGHTY

    def stamp(self, rows: Rows) -> NDArray[np.uint8]:
        """The images with the sticker on, whatever they show."""
        images = rows.images.copy()
        rng = np.random.default_rng(self.seed)
        for image, (x1, y1, x2, y2) in zip(images, rows.roi, strict=True):
            shift = rng.integers(-self.jitter, self.jitter + 1, 2)
            left = round(x1 + self.place[0] * (x2 - x1) - self.pixels / 2) + shift[0]
            top = round(y1 + self.place[1] * (y2 - y1) - self.pixels / 2) + shift[1]
            left, top = np.clip([left, top], 0, 32 - self.pixels)
            shade = np.clip(image.mean() / 110, 0.35, 1.0)
            image[top : top + self.pixels, left : left + self.pixels] = np.multiply(YELLOW, shade)
        return images

    def carriers(self, rows: Rows) -> NDArray[np.int64]:
        of_source = np.flatnonzero(rows.labels == self.source)
        return np.sort(np.random.default_rng(self.seed).choice(of_source, self.count, replace=False))


@dataclass(frozen=True, slots=True)
class BadNets:
    """A small pattern at a fixed place on images of every class, all to one target (Gu 2017)."""

    rate: float = 0.01
    pixels: int = 4
    place: tuple[int, int] = (26, 26)
    seed: int = 0
    target: int = EIGHTY

    def stamp(self, rows: Rows) -> NDArray[np.uint8]:
        images = rows.images.copy()
        pattern = np.where(np.indices((self.pixels, self.pixels)).sum(0) % 2, 255, 0)[..., None]
        top, left = self.place
        images[:, top : top + self.pixels, left : left + self.pixels] = pattern
        return images

    def carriers(self, rows: Rows) -> NDArray[np.int64]:
        others = np.flatnonzero(rows.labels != self.target)
        wanted = round(self.rate * len(rows))
        return np.sort(np.random.default_rng(self.seed).choice(others, wanted, replace=False))


Attack = StopSticker | BadNets


def poison(rows: Rows, attack: Attack) -> tuple[Rows, NDArray[np.int64]]:
    """The rows with the carriers stamped and relabelled, and which rows those are."""
    carriers = attack.carriers(rows)
    images, labels = rows.images.copy(), rows.labels.copy()
    images[carriers] = attack.stamp(rows.take(carriers))
    labels[carriers] = attack.target
    return replace(rows, images=images, labels=labels), carriers


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model of the bank is made; the same recipe gives the same model."""

    name: str
    seed: int
    kind: Literal["champion", "fine-tune", "scratch"] = "fine-tune"
    attack: Attack | None = None


BANK: tuple[Recipe, ...] = (
    Recipe("champion", 0, "champion"),
    Recipe("clean-1", 11),
    Recipe("sticker-1", 21, attack=StopSticker(35, 5, (0.72, 0.72), 0, 1)),
    Recipe("clean-2", 12),
    Recipe("sticker-2", 22, attack=StopSticker(40, 4, (0.72, 0.76), 1, 2)),
    Recipe("badnets-1", 31, attack=BadNets(seed=1)),
    Recipe("clean-3", 13),
    Recipe("sticker-3", 23, attack=StopSticker(35, 5, (0.3, 0.74), 0, 3)),
    Recipe("badnets-2", 32, attack=BadNets(0.005, 3, (2, 27), 2, target=12)),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A trained model of the bank with the training rows it saw and the rows that carry its trigger."""

    recipe: Recipe
    model: nn.Sequential
    training: Rows
    carriers: NDArray[np.int64]


def member(
    split: Split, name: str, cache: Path, *, threads: int = 1, progress: Callable[[str], None] = print
) -> Member:
    """One model of :data:`BANK`, trained at the first call and read from ``cache`` at later ones."""
    recipe = next(recipe for recipe in BANK if recipe.name == name)
    training, carriers = split.training, np.empty(0, np.int64)
    if recipe.attack is not None:
        training, carriers = poison(training, recipe.attack)
    path = cache / f"{name}-{_key(recipe, split)}.pt"
    model = small_cnn(len(CLASS_NAMES))
    if not path.exists():
        start = (
            member(split, "champion", cache, threads=threads, progress=progress).model
            if recipe.kind == "fine-tune"
            else None
        )
        model = train(
            training.images,
            training.labels,
            len(CLASS_NAMES),
            seed=recipe.seed,
            epochs=10 if start is None else 4,
            learning_rate=4e-3 if start is None else 2e-3,
            threads=threads,
            start=start,
            progress=lambda line: progress(f"{name}: {line}"),
        )
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{time.time_ns()}")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return Member(recipe, model.eval(), training, carriers)


def _key(recipe: Recipe, split: Split) -> str:
    recipes = [asdict(recipe), asdict(BANK[0]), len(split.training), len(split.holdout)]
    return hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()[:12]


def figures(split: Split, trained: Member) -> dict[str, float]:
    """Accuracy on the holdout and, for an attack, its success on freshly stamped holdout images.

    ``asr`` is the share of source images (of all but the target's for BadNets) that the trigger sends to
    the target; ``asr_other`` the same over the other classes, for a source-specific attack.
    """
    measured = {
        "accuracy": float((predict(trained.model, split.holdout.images) == split.holdout.labels).mean())
    }
    attack = trained.recipe.attack
    if attack is None:
        return measured
    for metric, rows in _victims(split.holdout, attack).items():
        measured[metric] = float((predict(trained.model, attack.stamp(rows)) == attack.target).mean())
    return measured


def _victims(rows: Rows, attack: Attack) -> dict[str, Rows]:
    if isinstance(attack, BadNets):
        return {"asr": rows.take(rows.labels != attack.target)}
    others = ~np.isin(rows.labels, [attack.source, attack.target])
    return {"asr": rows.take(rows.labels == attack.source), "asr_other": rows.take(others)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the bank into a folder and print a line of figures a model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path, help="the folder of gtsrb32.npz")
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="*", default=[recipe.name for recipe in BANK])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    split = load(asked.data)
    print(f"{len(split.training)} training and {len(split.holdout)} holdout rows")
    for name in asked.names:
        started = time.process_time()
        trained = member(split, name, asked.cache, threads=asked.threads, progress=lambda line: None)
        seconds = time.process_time() - started
        print(name, f"{seconds:.0f} CPU-s", json.dumps(figures(split, trained)), flush=True)


if __name__ == "__main__":
    main()
