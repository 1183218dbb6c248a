"""Monitoring: predictions logged where a model serves, held against how it answered while it was trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promotion_gate.monitor.prediction_log import PredictionLog

__all__ = ["PredictionLog"]


def __getattr__(name: str) -> object:
    if name == "PredictionLog":
        from promotion_gate.monitor.prediction_log import PredictionLog

        return PredictionLog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
