"""Everything known about one candidate, computed on first use and then shared by all checks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from promotion_gate.core.policy import Policy
from promotion_gate.core.types import ArtifactFile, Candidate, RunFacts
from promotion_gate.data.interface import ImageDataset
from promotion_gate.evidence.forward import MeasuredClassifier, spool_pass
from promotion_gate.evidence.interface import Float32, ForwardPass

T = TypeVar("T")


class _Once(Generic[T]):
    """A value computed by the first thread that asks; the others wait. A failure is remembered too."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._value: list[T] = []
        self._error: Exception | None = None

    def get(self) -> T:
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._value:
                try:
                    self._value.append(self._compute())
                except Exception as error:
                    self._error = error
                    raise
            return self._value[0]


class GateEvidence:
    """The evidence that checks read: see :class:`promotion_gate.evidence.interface.Evidence`.

    Passes are computed once, in ``folder``. Candidate and champion have a worker process each, so that two
    threads can run their passes side by side.
    """

    def __init__(
        self,
        *,
        candidate: Candidate,
        policy: Policy,
        class_names: Sequence[str],
        holdout: ImageDataset,
        training: ImageDataset | None,
        model: MeasuredClassifier,
        champion: MeasuredClassifier | None,
        folder: Path,
        suspects: ImageDataset | None = None,
        run: RunFacts | None = None,
        champion_run: RunFacts | None = None,
        files: Sequence[ArtifactFile] = (),
        attestation: bytes | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.candidate = candidate
        self.policy = policy
        self.run = run
        self.champion_run = champion_run
        self.files = files
        self.attestation = attestation
        self.class_names = tuple(class_names)
        self.holdout = holdout
        self.training = training
        self.suspects = suspects
        self.model = model
        self.champion = champion
        self.seed = policy.seed
        self.progress = progress
        self._folder = folder
        self._holdout_pass = self._pass("candidate", model, "holdout", holdout)
        self._training_pass = self._pass("candidate", model, "training", training)
        self._champion_holdout_pass = self._pass("champion", champion, "holdout", holdout)
        self._champion_training_pass = self._pass("champion", champion, "training", training)
        self._suspects_pass = self._pass("candidate", model, "suspects", suspects)
        self._champion_suspects_pass = self._pass("champion", champion, "suspects", suspects)
        self._anchor = _Once(self._measure_anchor)

    @property
    def holdout_pass(self) -> ForwardPass:
        answer = self._holdout_pass.get()
        assert answer is not None
        return answer

    @property
    def training_pass(self) -> ForwardPass | None:
        return self._training_pass.get()

    @property
    def champion_holdout_pass(self) -> ForwardPass | None:
        return self._champion_holdout_pass.get()

    @property
    def champion_training_pass(self) -> ForwardPass | None:
        return self._champion_training_pass.get()

    @property
    def suspects_pass(self) -> ForwardPass | None:
        return self._suspects_pass.get()

    @property
    def champion_suspects_pass(self) -> ForwardPass | None:
        return self._champion_suspects_pass.get()

    @property
    def anchor(self) -> Float32 | None:
        return self._anchor.get()

    def _pass(
        self, who: str, model: MeasuredClassifier | None, what: str, dataset: ImageDataset | None
    ) -> _Once[ForwardPass | None]:
        def compute() -> ForwardPass | None:
            if model is None or dataset is None:
                return None
            return spool_pass(model, dataset, self._folder / f"{who}-{what}", self._tell(f"{who} on {what}"))

        return _Once(compute)

    def _tell(self, what: str) -> Callable[[int, int], None]:
        """Report every tenth of the way."""
        tenth = 0

        def tell(done: int, rows: int) -> None:
            nonlocal tenth
            if (now := 10 * done // rows) > tenth:
                tenth = now
                self.progress(f"{what}: {done:,} of {rows:,} images")

        return tell

    def _measure_anchor(self) -> Float32 | None:
        training_pass = self.training_pass
        if training_pass is None or self.training is None:
            return None
        from promotion_gate.detect.anchor import holdout_anchor

        return np.asarray(
            holdout_anchor(
                training_pass.embeddings,
                self.training.labels,
                self.holdout_pass.embeddings,
                self.holdout.labels,
            ),
            dtype=np.float32,
        )
