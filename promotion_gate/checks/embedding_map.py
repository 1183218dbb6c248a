"""How the candidate itself arranges the images: a map of its embeddings, for a person to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import ImageDataset, Images, ImageShape
from promotion_gate.detect.projection import Projection, ProjectionProcess, project_apart
from promotion_gate.evidence.interface import Evidence, ForwardPass

THUMBNAIL = 32
HOLDOUT, TRAINING, SUSPECT = 0, 1, 2

Rows = NDArray[np.int64]


class EmbeddingMapOptions(Options):
    """Options of ``embedding-map``.

    Every row that another check suspects is among the ``points``, and so is the head of the anchor ranking,
    ``suspects`` rows in all where there are fewer named ones; the rest is drawn from all classes in
    proportion. ``neighbours`` is UMAP's.
    """

    points: int = Field(default=5000, ge=10, le=5000)
    suspects: int = Field(default=500, ge=0, le=5000)
    neighbours: int = Field(default=15, ge=2, le=200)
    seconds: float = Field(default=600.0, gt=0)


class EmbeddingMap:
    """UMAP of penultimate-layer embeddings of holdout and training rows.

    A poisoned group often lies apart from its label's own cloud, or in its true class's. The map shows it
    and proves nothing: distances between clouds have no meaning in UMAP.
    """

    name: ClassVar[str] = "embedding-map"
    metrics: ClassVar[Mapping[str, str]] = {
        "points": "images on the map",
        "trustworthiness": "how far neighbours on the map are neighbours to the model, 0 to 1",
    }
    after: ClassVar[tuple[str, ...]] = (
        "patch-transplant",
        "residual-transplant",
        "label-concentration",
        "activation-clustering",
        "spectral-signature",
        "batch-anomaly",
    )
    options_type: ClassVar[type[Options]] = EmbeddingMapOptions

    def __init__(
        self, options: Options | None = None, project: Callable[..., Projection] = project_apart
    ) -> None:
        self._options = EmbeddingMapOptions.model_validate((options or EmbeddingMapOptions()).model_dump())
        self._project = project

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Compile UMAP meanwhile, which takes seconds, and most of a minute on a fresh machine."""
        before = self._project
        with ProjectionProcess(warm=True) as process:
            self._project = process.project
            try:
                yield
            finally:
                self._project = before

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        options = self._options
        suspects = _most_suspicious(evidence, earlier, options.suspects, options.points)
        holdout, training = _sample(evidence, suspects, options.points)
        parts = [_Part(HOLDOUT, evidence.holdout, evidence.holdout_pass, holdout)]
        if evidence.training is not None and evidence.training_pass is not None:
            parts.append(_Part(TRAINING, evidence.training, evidence.training_pass, training))
            parts.append(_Part(SUSPECT, evidence.training, evidence.training_pass, suspects))
        embeddings = np.concatenate([part.embeddings for part in parts])
        projection = self._project(embeddings, evidence.seed, options.neighbours, seconds=options.seconds)
        metrics = {"points": float(len(embeddings))}
        if math.isfinite(projection.trustworthiness):
            metrics["trustworthiness"] = projection.trustworthiness
        shown = f"{len(holdout)} holdout images" + (
            f" and {len(training) + len(suspects)} training images" if evidence.training is not None else ""
        )
        return Finding(
            self.name,
            Status.MEASURED,
            f"a map of {shown}",
            metrics,
            detail={
                "holdout_points": len(holdout),
                "training_points": len(training),
                "suspect_points": len(suspects),
                "seed": evidence.seed,
                "neighbours": options.neighbours,
            },
            exhibits=(_exhibit(parts, projection.xy, _thumbnail_shape(evidence), shown),),
        )


class _Part:
    """Rows of one data set that go on the map in one role."""

    def __init__(self, role: int, dataset: ImageDataset, answers: ForwardPass, rows: Rows) -> None:
        self.role = role
        self.dataset = dataset
        self.rows = rows
        self.embeddings = np.asarray(answers.embeddings[rows], dtype=np.float32)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.dataset.labels[self.rows]

    @property
    def ids(self) -> list[str]:
        ids = self.dataset.ids
        return [ids[row] for row in self.rows.tolist()]

    def thumbnails(self, shape: ImageShape) -> Images:
        if not len(self.rows):
            return np.empty((0, shape.height, shape.width, shape.channels), dtype=np.uint8)
        return self.dataset.read(self.rows, shape)


def _exhibit(parts: list[_Part], xy: NDArray[np.float32], shape: ImageShape, shown: str) -> Exhibit:
    arrays: dict[str, Any] = {
        "xy": xy,
        "label": np.concatenate([part.labels for part in parts]),
        "role": np.concatenate([np.full(len(part.rows), part.role, dtype=np.uint8) for part in parts]),
        "images": np.concatenate([part.thumbnails(shape) for part in parts]),
        "ids": np.array([name for part in parts for name in part.ids], dtype=np.str_),
    }
    caption = f"UMAP of the penultimate layer: {shown}. Distances between clouds have no meaning."
    return Exhibit("map", "points", caption, arrays)


def _thumbnail_shape(evidence: Evidence) -> ImageShape:
    """The model's own shape, shrunk to fit in 32x32 where it is larger."""
    own = evidence.model.shape
    shrink = min(1.0, THUMBNAIL / max(own.height, own.width))
    height, width = max(1, round(own.height * shrink)), max(1, round(own.width * shrink))
    return ImageShape(height, width, own.channels)


def _most_suspicious(evidence: Evidence, earlier: Mapping[str, Finding], count: int, points: int) -> Rows:
    """The rows that other checks name and the head of the anchor ranking, in row order.

    A row without a finite anchor counts as suspicious. Half of the map at least is left to other rows,
    unless the named rows alone need more.
    """
    anchor = evidence.anchor
    if anchor is None or evidence.training is None:
        return np.empty(0, dtype=np.int64)
    named = sorted(
        {int(s["row"]) for finding in earlier.values() for s in finding.detail.get("suspects", ())}
    )
    ranking = np.argsort(-np.where(np.isfinite(anchor), anchor, np.inf), kind="stable")
    head = np.setdiff1d(ranking[: min(count, points // 2)], named, assume_unique=True)
    rows = [*named, *head.tolist()][: max(min(len(named), points), min(count, points // 2))]
    return np.sort(np.array(rows, dtype=np.int64))


def _sample(evidence: Evidence, suspects: Rows, points: int) -> tuple[Rows, Rows]:
    """Holdout and training rows for the room that the suspects leave, about half each."""
    rng = np.random.default_rng(evidence.seed)
    room = points - len(suspects)
    others = np.empty(0, dtype=np.int64)
    if evidence.training is not None:
        others = np.setdiff1d(np.arange(len(evidence.training)), suspects)
    holdout_count = min(len(evidence.holdout), max(room // 2, room - len(others)))
    training_count = min(len(others), room - holdout_count)
    holdout = _stratified(evidence.holdout.labels, holdout_count, rng)
    if evidence.training is None:
        return holdout, others
    return holdout, others[_stratified(evidence.training.labels[others], training_count, rng)]


def _stratified(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> Rows:
    """Positions of ``count`` labels, each class by its share and none left out while there is room."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    within = np.arange(len(labels)) - np.repeat(starts, sizes)
    place = within / np.repeat(sizes, sizes)
    return np.sort(by_class[np.argsort(place, kind="stable")[:count]]).astype(np.int64)
