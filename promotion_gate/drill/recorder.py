"""The recorder for a PyTorch training loop that logs each class's loss to MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.checks.training_curves import CLASS_NAMES_TAG, CURVE_PREFIX

_METRICS_A_CALL = 1000  # what the tracking server takes in one request


class PerClassLoss:
    """Mean training loss of every class, logged once an epoch to the active MLflow run.

    ::

        recorder = PerClassLoss(class_names)
        for epoch in range(epochs):
            for images, labels in loader:
                losses = F.cross_entropy(model(images), labels, reduction="none")
                recorder.update(losses, labels)
                ...
            recorder.log(epoch)

    Parameters
    ----------
    class_names: names in order of the label index.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = list(class_names)
        self._tagged = False
        self._clear()

    def update(self, losses: Any, labels: Any) -> None:
        """Add a batch: one unreduced loss and one class index a sample, as tensors or arrays."""
        values, classes = _array(losses), _array(labels).astype(np.int64)
        self._sums += np.bincount(classes, weights=values, minlength=len(self._class_names))
        self._counts += np.bincount(classes, minlength=len(self._class_names))

    def log(self, epoch: int) -> None:
        """Log the means since the last call at step ``epoch``; a class without samples is left out."""
        import mlflow

        if not self._tagged:
            mlflow.set_tag(CLASS_NAMES_TAG, json.dumps(self._class_names, ensure_ascii=False))
            self._tagged = True
        means = [
            (f"{CURVE_PREFIX}{i:04d}", float(self._sums[i] / self._counts[i]))
            for i in np.flatnonzero(self._counts)
        ]
        for start in range(0, len(means), _METRICS_A_CALL):
            mlflow.log_metrics(dict(means[start : start + _METRICS_A_CALL]), step=epoch)
        self._clear()

    def _clear(self) -> None:
        self._sums = np.zeros(len(self._class_names))
        self._counts = np.zeros(len(self._class_names), dtype=np.int64)


def _array(values: Any) -> NDArray[np.float64]:
    """A PyTorch tensor of any device and precision, or anything NumPy reads, as a flat array."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu()
    return np.asarray(values, dtype=np.float64).reshape(-1)
