"""The gate a model passes on its way from the MLflow registry into production."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promotion_gate.core.errors import HashMismatch
    from promotion_gate.drill.recorder import PerClassLoss
    from promotion_gate.monitor.prediction_log import PredictionLog
    from promotion_gate.serving import load
    from promotion_gate.training import attest, open_dataset, verified_path

__all__ = [
    "HashMismatch",
    "PerClassLoss",
    "PredictionLog",
    "__version__",
    "attest",
    "load",
    "open_dataset",
    "verified_path",
]
__version__ = "0.1.0"

_HOMES = {
    "HashMismatch": "promotion_gate.core.errors",
    "PerClassLoss": "promotion_gate.drill.recorder",
    "PredictionLog": "promotion_gate.monitor.prediction_log",
    "attest": "promotion_gate.training",
    "load": "promotion_gate.serving",
    "open_dataset": "promotion_gate.training",
    "verified_path": "promotion_gate.training",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
