"""The gate a model passes on its way from the MLflow registry into production."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promotion_gate.drill.recorder import PerClassLoss
    from promotion_gate.serving import load

__all__ = ["PerClassLoss", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "PerClassLoss":
        from promotion_gate.drill.recorder import PerClassLoss

        return PerClassLoss
    if name == "load":
        from promotion_gate.serving import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
