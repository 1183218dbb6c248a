"""What became of one expectation."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

ROWS_TOLD = 20
"""Rows that a report names of those that do not meet an expectation."""


class State(enum.StrEnum):
    """Whether an expectation is met; one that could not be examined counts as not met."""

    MET = "met"
    NOT_MET = "not met"
    UNEXAMINED = "could not be examined"


@dataclass(frozen=True, slots=True)
class Beside:
    """The row of another set, or of this one, that an offending row goes with."""

    where: str
    row: int
    id: str
    label: str


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that does not meet an expectation, and why."""

    row: int
    id: str
    label: str
    why: str = ""
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """One expectation: its name as in the file, and what was found.

    ``count`` is how many rows, labels or batches offend, ``bound`` what was allowed. ``offenders`` are the
    first of the rows; ``table`` has its head first, for what is not about single rows.
    """

    name: str
    state: State
    summary: str
    bound: str = ""
    count: int = 0
    offenders: Sequence[Offender] = ()
    table: Sequence[Sequence[str]] = field(default=())

    @classmethod
    def unexamined(cls, name: str, why: str) -> Judged:
        return cls(name, State.UNEXAMINED, why)

    @classmethod
    def at_most(
        cls,
        name: str,
        count: int,
        allowed: int,
        summary: str,
        offenders: Sequence[Offender] = (),
        table: Sequence[Sequence[str]] = (),
    ) -> Judged:
        """Met where ``count`` is no more than ``allowed``."""
        state = State.MET if count <= allowed else State.NOT_MET
        return cls(name, state, summary, f"at most {allowed:,}", count, offenders, table)


def share_of(count: int, total: int, what: str = "images") -> str:
    """``3 of 1,200 images``."""
    return f"{count:,} of {total:,} {what}"


def plural(count: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``, ``no images``."""
    word = one if count == 1 else many or f"{one}s"
    return f"{count:,} {word}" if count else f"no {word}"
