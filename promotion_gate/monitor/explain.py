"""What the monitored model looks at on live images: SHAP beside trusted images, under the gate's measure.

The model is loaded in the sandbox after its bytes were found to be those that its signed record names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError, SigningError
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import ModelRef
from promotion_gate.vouching import changed, vouched_version

if TYPE_CHECKING:
    from promotion_gate.core.keys import TrustedKeys
    from promotion_gate.data.interface import ImageDataset
    from promotion_gate.evidence.attributions import Explained
    from promotion_gate.evidence.loader import SandboxedClassifier
    from promotion_gate.registry.interface import Registry

PERMUTATIONS = 2
TRUSTED = 4
"""Trusted images of the same class that are explained the same way, to compare with."""
PICKLE = "unsafe_allow_pickle"
Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Live images of one class as the model sees them.

    ``answers`` are the classes that the model gives them now, ``trusted`` the same measure on trusted images
    of the class, None where there are none. ``consensus`` is the share of the live images whose evidence lies
    at one place.
    """

    images: Images = field(repr=False, compare=False)
    seen: Explained
    answers: Sequence[str]
    consensus: float
    trusted: Explained | None


class Explainer:
    """The monitored version in its sandbox, and trusted images; see :func:`open_explainer`."""

    def __init__(self, model: SandboxedClassifier, holdout: ImageDataset, seed: int) -> None:
        self._model = model
        self._holdout = holdout
        self._seed = seed
        self.class_names = tuple(holdout.class_names)
        self.sandbox = model.sandbox

    def explain(self, contents: Sequence[bytes], class_name: str) -> Explanation:
        """Explain encoded images for the class that was predicted.

        Raises
        ------
        InputError: the model knows no such class, or an image cannot be decoded.
        ModelError: the model failed.
        """
        from promotion_gate.data.decode import decode_images
        from promotion_gate.detect.attribution import position_consensus
        from promotion_gate.evidence.attributions import CELLS, explained

        if class_name not in self.class_names:
            raise InputError(f"the model knows no class {class_name!r:.80}")
        label, shape = self.class_names.index(class_name), self._model.shape
        images = decode_images(contents, ["image"] * len(contents), shape)
        predictions = self._model.forward(images).predictions
        seen = explained(
            self._model.forward,
            images,
            [label] * len(images),
            permutations=PERMUTATIONS,
            seed=self._seed,
        )
        rows = np.flatnonzero(np.asarray(self._holdout.labels) == label)[:TRUSTED]
        trusted = None
        if len(rows):
            trusted = explained(
                self._model.forward,
                self._holdout.read(rows, shape),
                [label] * len(rows),
                permutations=PERMUTATIONS,
                seed=self._seed,
            )
        reach = min(shape.height, shape.width) / min(CELLS, shape.height, shape.width)
        return Explanation(
            images,
            seen,
            [self.class_names[answer] for answer in predictions.tolist()],
            position_consensus(seen.windows, reach),
            trusted,
        )


@contextmanager
def open_explainer(
    registry: Registry,
    ref: ModelRef,
    policy: Policy,
    trusted: TrustedKeys | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[Explainer]:
    """The version in its sandbox, with the policy's holdout to compare with.

    A version that was revoked since may still be looked at, in the sandbox; one whose bytes no signed record
    names may not.

    Raises
    ------
    SigningError, ArtifactError: no record that verifies names these bytes, or the files are refused.
    InputError: the holdout cannot be read, or does not fit the model.
    ModelError: the model cannot be loaded.
    RegistryError: the registry cannot be reached.
    """
    from promotion_gate.data.open import open_dataset
    from promotion_gate.evidence.artifacts import verify
    from promotion_gate.evidence.digest import digest_folder
    from promotion_gate.evidence.loader import open_model

    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as name:
        folder = Path(name)
        registry.download(ref, folder)
        digest = digest_folder(folder)[1]
        vouched = vouched_version(
            registry, str(ref), policy.production, trusted, found_digest=lambda _: digest
        )
        if vouched.record is None:
            raise vouched.broken or SigningError(f"no signed record names {ref}")
        if vouched.record.digest != digest:
            raise changed(ref, vouched.record.digest, digest)
        artifacts = verify(folder, allow_pickle=PICKLE in vouched.record.unsafe)
        with open_model(artifacts, policy, class_count=None, log=log) as model:
            names = policy.data.class_names or model.class_names
            holdout = open_dataset(policy.data.holdout, folder=Path(policy.folder), class_names=names)
            if len(holdout.class_names) != model.classes:
                raise InputError(
                    f"the model tells {model.classes} classes apart, and {holdout.uri} has"
                    f" {len(holdout.class_names)}",
                    "set data.class_names in the policy to the names in order of the model's logits",
                )
            yield Explainer(model, holdout, policy.seed)
