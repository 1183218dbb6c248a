"""SHAP values of image cells: how much each part of an image speaks for one class."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.attribution import (
    cell_edges,
    concentration,
    in_pixels,
    locally_filled,
    on_pixels,
    smallest_window,
)
from promotion_gate.detect.windows import Window
from promotion_gate.evidence.interface import Float32, ForwardPass

Images = NDArray[np.uint8]
CELLS = 8
LEAST = 0.05
"""Probability that the positive cells must add up to before there is anything to locate."""
_NUMPY_RANDOM = threading.Lock()


def forwards(images: int, permutations: int, cells: int = CELLS) -> int:
    """Images that the model is shown for the attributions of ``images`` of them."""
    return images * permutations * (2 * cells**2 + 1)


@dataclass(frozen=True, slots=True)
class Explained:
    """Where the evidence lies on some images.

    ``positive`` is the positive mass by pixel, float32 (n, H, W); ``windows`` the smallest that hold half of
    it, in pixels, None where there is nothing to locate; ``concentrations`` how concentrated it is, 0 to 1.
    """

    positive: Float32 = field(repr=False, compare=False)
    windows: Sequence[Window | None]
    concentrations: Sequence[float]

    @property
    def concentration(self) -> float:
        """The mean over the images."""
        return float(np.mean(self.concentrations))


def explained(
    forward: Callable[[Images], ForwardPass],
    images: Images,
    targets: Sequence[int] | NDArray[np.int64],
    *,
    permutations: int = 1,
    seed: int = 0,
) -> Explained:
    """The attributions of :func:`cell_attributions` as windows and masses in pixels; at least one image."""
    values = cell_attributions(forward, images, targets, permutations=permutations, seed=seed)
    height, width, cells = *images.shape[1:3], values.shape[1]
    chosen = [smallest_window(cell_values, least=LEAST) for cell_values in values]
    return Explained(
        np.stack([on_pixels(np.maximum(cell_values, 0), height, width) for cell_values in values]),
        [None if window is None else in_pixels(window, cells, height, width) for window in chosen],
        [concentration(window, cells) for window in chosen],
    )


def cell_attributions(
    forward: Callable[[Images], ForwardPass],
    images: Images,
    targets: Sequence[int] | NDArray[np.int64],
    *,
    cells: int = CELLS,
    permutations: int = 1,
    seed: int = 0,
) -> Float32:
    """Shapley values of a grid of cells for the probability of one class an image.

    Permutation SHAP (Lundberg and Lee 2017, arXiv:1705.07874; antithetic permutations as in the shap
    package). An absent cell is filled with the mean colour of the cells around it. The values of an image
    depend on it, its target and the seed alone.

    What defeats it: explainers miss part of a trigger in most backdoored models (Lin et al. KDD 2021,
    arXiv:2009.10639), so this shows and corroborates; it decides nothing.

    Parameters
    ----------
    forward: the model's answer on uint8 images (n, H, W, C).
    targets: class index of each image, (n,).
    cells: cells along each side; fewer where the image has fewer pixels.

    Returns
    -------
    float32 (n, cells, cells), in probability; each image's values sum to its probability minus that of the
    image with every cell filled.
    """
    cells = min(cells, *images.shape[1:3])
    values = [
        _explain(forward, image, int(target), cells, permutations, seed)
        for image, target in zip(images, targets, strict=True)
    ]
    return np.asarray(values, dtype=np.float32).reshape(len(images), cells, cells)


def _explain(
    forward: Callable[[Images], ForwardPass],
    image: Images,
    target: int,
    cells: int,
    permutations: int,
    seed: int,
) -> NDArray[np.float64]:
    def probability(batch: Images) -> Float32:
        return np.asarray(forward(batch).probabilities()[:, target])

    with _seeded(seed):
        shap = _import_shap()
        explainer = shap.PermutationExplainer(probability, _CellMasker.of(image, cells), seed=seed)
        explanation = explainer(
            image[None], max_evals=permutations * (2 * cells**2 + 1), batch_size=2 * cells**2 + 1, silent=True
        )
    return np.asarray(explanation.values[0], dtype=np.float64)


def _import_shap() -> Any:
    """The package, without the deprecation warnings that its own plots cause while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap
    return shap


@dataclass(frozen=True, slots=True)
class _CellMasker:
    """What shap asks of a masker: the image with the absent cells filled."""

    filled: Images
    cell: NDArray[np.int64]
    cells: int

    @classmethod
    def of(cls, image: Images, cells: int) -> _CellMasker:
        height, width = image.shape[:2]
        row = np.searchsorted(cell_edges(height, cells)[1:], np.arange(height), side="right")
        column = np.searchsorted(cell_edges(width, cells)[1:], np.arange(width), side="right")
        return cls(locally_filled(image, cells), row[:, None] * cells + column[None, :], cells)

    def __call__(self, mask: NDArray[np.bool_], image: Images) -> Images:
        return np.where(mask[self.cell][..., None], image, self.filled)[None]

    def shape(self, image: Images) -> tuple[int, int]:
        return 1, self.cells**2

    def mask_shapes(self, image: Images) -> list[tuple[int, ...]]:
        return [(self.cells**2,)]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generator, which shap shuffles with, put back afterwards."""
    with _NUMPY_RANDOM:
        before: Any = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)
