"""A check measures one aspect of a candidate and gives no opinion; the policy judges.

A new check is one file, one line under ``[project.entry-points."promotion_gate.checks"]`` and one test
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from promotion_gate.core.types import Finding
from promotion_gate.evidence.interface import Evidence


class Options(BaseModel):
    """Base of a check's own options; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Check(Protocol):
    """One measurement.

    ``name`` is the entry point's; ``metrics`` describes each number the check reports, for bounds and
    for ``promotion-gate init``; ``after`` names checks whose findings this one reads: they are finished
    and in ``earlier`` when ``examine`` is called (where the policy runs them at all).

    A check that names training rows lists them in its finding as ``detail["suspects"]``: dicts with
    ``row`` (index), ``id``, ``label`` (class name as labelled) and ``why``.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, str]]
    after: ClassVar[tuple[str, ...]]
    options_type: ClassVar[type[Options]]

    def __init__(self, options: Options) -> None: ...

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        """Measure. Whatever it raises becomes an INCONCLUSIVE finding."""
        ...


@runtime_checkable
class PreparedCheck(Check, Protocol):
    """A check that can begin something slow before the findings that it reads are there.

    The gate enters ``prepared`` before the first check runs and leaves it after the last. What it raises is
    passed over: ``examine`` has to do without, and reports what keeps it from measuring.
    """

    def prepared(self) -> AbstractContextManager[None]: ...
