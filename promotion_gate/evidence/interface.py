"""What a check may ask for: images, labels, and what the candidate and the champion make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Candidate, RunFacts
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


class Evidence(Protocol):
    """Everything known about one candidate, computed on first use and then shared by all checks.

    The ``training`` and ``champion`` members are None where there is none; the passes over them then
    are too.
    """

    candidate: Candidate
    policy: Policy
    run: RunFacts | None
    champion_run: RunFacts | None
    class_names: tuple[str, ...]
    holdout: ImageDataset
    training: ImageDataset | None
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
    def anchor(self) -> Float32 | None:
        """How far each training row lies from trusted images of its own label, shape (rows,).

        See :func:`promotion_gate.detect.anchor.holdout_anchor`. Every check that names suspects takes
        them from the head of this ranking, so that one embedding map can show them all.
        """
        ...
