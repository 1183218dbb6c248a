"""A piece of evidence made of plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from promotion_gate.core.policy import Policy, parse_policy
from promotion_gate.core.types import Candidate, ModelRef, RunFacts
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.evidence.interface import ForwardPass

POLICY = """
version = 1
[data.holdout]
path = "holdout.npz"
[checks.per-class.bounds]
accuracy = { min = 0.9 }
"""


@dataclass
class ArrayEvidence:
    """Satisfies :class:`promotion_gate.evidence.interface.Evidence`; set what a test needs."""

    candidate: Candidate
    policy: Policy
    class_names: tuple[str, ...]
    holdout: InMemoryDataset
    holdout_pass: ForwardPass
    training: InMemoryDataset | None = None
    training_pass: ForwardPass | None = None
    champion_holdout_pass: ForwardPass | None = None
    champion_training_pass: ForwardPass | None = None
    suspects: InMemoryDataset | None = None
    suspects_pass: ForwardPass | None = None
    champion_suspects_pass: ForwardPass | None = None
    model: Any = None
    champion: Any = None
    run: RunFacts | None = None
    champion_run: RunFacts | None = None
    files: tuple = ()
    attestation: bytes | None = None
    anchor: np.ndarray | None = None
    seed: int = 0
    progress: Any = field(default=lambda line: None)


def as_pass(predictions, classes: int, confidence: float = 0.9) -> ForwardPass:
    """A pass whose arg max is ``predictions``, each with the given softmax ``confidence``."""
    predictions = np.asarray(predictions)
    logits = np.zeros((len(predictions), classes), np.float32)
    logits[np.arange(len(predictions)), predictions] = np.log(confidence * (classes - 1) / (1 - confidence))
    return ForwardPass(logits, np.zeros((len(predictions), 2), np.float32))


@pytest.fixture
def forward_pass():
    return as_pass


@pytest.fixture
def make_evidence():
    """Build evidence from holdout labels and predictions; every other part is a keyword.

    ``champion`` predictions and ``training`` (images, labels) are turned into passes and data sets; what
    else is given is set as it is. Images default to black 4x4 squares.
    """

    def make(labels, predictions=None, *, class_names, images=None, champion=None, training=None, **parts):
        labels = np.asarray(labels)
        if images is None:
            images = np.zeros((len(labels), 4, 4, 3), np.uint8)
        if isinstance(training, tuple):
            training = InMemoryDataset(*training, class_names, uri="training")
        if champion is not None and not isinstance(champion, ForwardPass):
            champion = as_pass(champion, len(class_names))
        if champion is not None:
            parts["champion_holdout_pass"] = champion
        if predictions is not None:
            parts.setdefault("holdout_pass", as_pass(predictions, len(class_names)))
        parts.setdefault("holdout_pass", as_pass(labels, len(class_names)))
        ref = ModelRef("signs", 2)
        return ArrayEvidence(
            candidate=parts.pop("candidate", Candidate(ref, "run-2", "models:/m-2", "d" * 64)),
            policy=parts.pop("policy", parse_policy(POLICY)),
            class_names=tuple(class_names),
            holdout=InMemoryDataset(images, labels, class_names, uri="holdout"),
            training=training,
            **parts,
        )

    return make
