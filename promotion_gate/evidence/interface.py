"""What a check may ask for: images, labels, and what the candidate and the champion make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import ModelError
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import ArtifactFile, Candidate, RunFacts
from promotion_gate.data.interface import ImageDataset, Images, ImageShape

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A model's answer on a whole data set, in row order.

    ``logits`` float32 (rows, classes), ``embeddings`` float32 (rows, width): the input of the last linear
    layer. Either may be a read-only memory map.
    """

    logits: Float32
    embeddings: Float32

    @property
    def predictions(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    def probabilities(self) -> Float32:
        """Softmax of the logits, float32 (rows, classes)."""
        shifted = self.logits - self.logits.max(axis=1, keepdims=True)
        np.exp(shifted, out=shifted)
        shifted /= shifted.sum(axis=1, keepdims=True)
        return np.asarray(shifted, dtype=np.float32)


def embeddings_misfit(training: ForwardPass, holdout: ForwardPass) -> str:
    """What keeps two passes' embeddings from being compared, in words; empty for nothing."""
    if not len(training.embeddings):
        return "the training set is empty"
    if not len(holdout.embeddings):
        return "the holdout is empty"
    if training.embeddings.shape[1] != holdout.embeddings.shape[1]:
        return "training and holdout embeddings differ in width"
    for what, given in (("training", training), ("holdout", holdout)):
        chunks = range(0, len(given.embeddings), 8192)
        if not all(np.isfinite(given.embeddings[start : start + 8192]).all() for start in chunks):
            return f"some embeddings of {what} images are not finite numbers"
    return ""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Log-probabilities float32 (n, classes), and the slopes of their weighted sum along every pixel,
    float32 (n, H, W, C), for pixel values 0 to 255.
    """

    log_probabilities: Float32
    slopes: Float32


class NoGradients(ModelError):
    """The model answers, but its answers cannot be differentiated."""


class Classifier(Protocol):
    """A model in its sandbox. Calls from several threads are answered one at a time."""

    @property
    def shape(self) -> ImageShape: ...

    @property
    def classes(self) -> int: ...

    def forward(self, images: Images) -> ForwardPass:
        """Logits and embeddings of uint8 images (n, H, W, C) of the model's own ``shape``.

        Raises
        ------
        ModelError: the model crashed, hung, ran out of memory or answered something else than
        finite numbers of the right shape.
        """
        ...

    def gradients(self, images: Float32, weights: Float32) -> Gradients:
        """Slopes of the weighted sum of log-probabilities of float images (n, H, W, C), values 0 to 255.

        ``weights`` is (n, classes).

        Raises
        ------
        NoGradients: its answers cannot be differentiated.
        ModelError: as :meth:`forward`.
        """
        ...


class Evidence(Protocol):
    """Everything known about one candidate, computed on first use and then shared by all checks.

    The ``training``, ``suspects`` and ``champion`` members are None where there is none; the passes over
    them then are too. ``suspects`` are images that production saw, labelled with what a model predicted then:
    nobody says that it is right. ``files`` are the candidate's; ``attestation`` is the envelope that its
    training run holds, not yet verified.
    """

    candidate: Candidate
    policy: Policy
    run: RunFacts | None
    champion_run: RunFacts | None
    files: Sequence[ArtifactFile]
    attestation: bytes | None
    class_names: tuple[str, ...]
    holdout: ImageDataset
    training: ImageDataset | None
    suspects: ImageDataset | None
    model: Classifier
    champion: Classifier | None
    seed: int
    progress: Callable[[str], None]

    @property
    def holdout_pass(self) -> ForwardPass: ...

    @property
    def training_pass(self) -> ForwardPass | None: ...

    @property
    def champion_holdout_pass(self) -> ForwardPass | None: ...

    @property
    def champion_training_pass(self) -> ForwardPass | None: ...

    @property
    def suspects_pass(self) -> ForwardPass | None: ...

    @property
    def champion_suspects_pass(self) -> ForwardPass | None: ...

    @property
    def anchor(self) -> Float32 | None:
        """How far each training row lies from trusted images of its own label, shape (rows,).

        See :func:`promotion_gate.detect.anchor.holdout_anchor`. Every check that names suspects takes
        them from the head of this ranking, so that one embedding map can show them all.
        """
        ...
