"""How accurate each check was measured to be: read from ``accuracy.json``, which the model bank writes.

A check that is in the table without figures has not been measured, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = 1
TABLE = Path(__file__).with_name("accuracy.json")
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Figure:
    """``caught`` of ``of`` models or rows, with the 95 % Wilson interval of the share."""

    what: str
    caught: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.caught / self.of if self.of else float("nan")


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well one number of a check alone ranks the poisoned models ``against`` above harmless ones.

    ``auroc`` is the area under the receiver operating curve, ``low`` and ``high`` its 95 % bootstrap
    interval over models.
    """

    metric: str
    against: str
    poisoned: int
    harmless: int
    auroc: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GateRow:
    """How the gate as a whole dealt with a group of models.

    ``low`` and ``high`` are the 95 % Wilson interval of the share ``stopped`` (rejected or held). Classes are
    counted among the stopped models where there is one to name; rows are poisoned ones of the training set,
    listed by the checks that stopped the model.
    """

    group: str
    models: int
    rejected: int
    rejected_low: float
    rejected_high: float
    stopped: int
    low: float
    high: float
    target_right: int
    target_of: int
    source_right: int
    source_of: int
    rows_listed: int
    rows_of: int


@dataclass(frozen=True, slots=True)
class CheckAccuracy:
    """What is known of one check: its measured line and figures, its sources, and what is known to evade it.

    ``line`` is empty where nothing was measured.
    """

    check: str
    line: str
    figures: Sequence[Figure]
    rankings: Sequence[Ranking]
    papers: Sequence[str]
    evasions: Sequence[str]


@dataclass(frozen=True, slots=True)
class AccuracyTable:
    """The whole table: how it was obtained, the gate as a whole by group of models, and every check.

    ``kinds`` are the same models by attack and attack success rate.
    """

    obtained: str
    command: str
    models: int
    gate: Sequence[GateRow]
    kinds: Sequence[GateRow]
    checks: Mapping[str, CheckAccuracy]


def accuracy(check: str) -> CheckAccuracy | None:
    """What was measured of this check, or None for one that the table does not know."""
    return accuracy_table().checks.get(check)


@cache
def accuracy_table() -> AccuracyTable:
    """The table that is shipped."""
    return read_table(TABLE)


def read_table(path: Path) -> AccuracyTable:
    """Read a table of accuracies.

    Raises
    ------
    ValueError: the file is not such a table.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != SCHEMA:
            raise ValueError(f"schema {table['schema']!r}")
        obtained = table["obtained"]
        return AccuracyTable(
            obtained=obtained["text"],
            command=obtained["command"],
            models=obtained["models"],
            gate=tuple(GateRow(**row) for row in table["gate"]),
            kinds=tuple(GateRow(**row) for row in table["kinds"]),
            checks={
                name: CheckAccuracy(
                    name,
                    entry["line"],
                    _figures(entry["figures"]),
                    tuple(Ranking(**ranking) for ranking in entry["rankings"]),
                    tuple(entry["papers"]),
                    tuple(entry["evasions"]),
                )
                for name, entry in table["checks"].items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of accuracies: {error}") from None


def _figures(entries: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    return tuple(Figure(**entry) for entry in entries)


def in_words(figure: Figure) -> str:
    """A share with its interval: ``59 of 60 (98 %, interval 91 to 100 %)``."""
    if not figure.of:
        return "none to try"
    low, high = round(100 * figure.low), round(100 * figure.high)
    return f"{figure.caught} of {figure.of} ({round(100 * figure.share)} %, interval {low} to {high} %)"


def accuracy_markdown(table: AccuracyTable) -> str:
    """The table as README shows it."""
    if not table.models:
        return "Nothing has been measured yet, and every card says so: `make bank` fills the table."
    lines = [
        table.obtained,
        "",
        "| Models | n | Rejected | Rejected or held | Target right | Source right | Rows listed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.group} | {row.models} | {_share(row.rejected, row.rejected_low, row.rejected_high)} |"
        f" {_share(row.stopped, row.low, row.high)} | {_of(row.target_right, row.target_of)} |"
        f" {_of(row.source_right, row.source_of)} | {_of(row.rows_listed, row.rows_of)} |"
        for row in table.gate
    ]
    lines += ["", "Each check alone:", "", "| Check | Measured |", "|---|---|"]
    lines += [f"| `{check.check}` | {check.line or NOT_MEASURED} |" for check in table.checks.values()]
    return "\n".join(lines)


def _share(count: int, low: float, high: float) -> str:
    return f"{count} ({100 * low:.0f} to {100 * high:.0f} %)"


def _of(count: int, of: int) -> str:
    return f"{count} of {of}" if of else "–"
