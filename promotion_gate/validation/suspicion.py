"""Which rows a person should look at first, without a model.

Each signal ranks the rows; a row's suspicion is the sum of its surprises, ``-log(rank / rows)``, as Fisher
joins tests. The signals: the same or nearly the same image under another label; a linear classifier on edges
and colours, fitted to all other rows, that gives another label; far from the rest of its label; a small patch
of a vivid hue that few rows of its label have, and still fewer of the others; a batch or contributor that is
unlike the others. Rows that a gate run named come before all others.

What defeats it: a patch that is pale or common on other labels, a pattern over the whole image, clean-label
poison, labels that edges and colours cannot tell apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import UsageError
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.ridge import left_out
from promotion_gate.validation.alike import Alike
from promotion_gate.validation.drifting import drifted
from promotion_gate.validation.expectations import Drift
from promotion_gate.validation.facts import HUES
from promotion_gate.validation.survey import Rows, Survey

Floats = NDArray[np.floating]
MAX_FINDINGS_BYTES = 500_000_000
HUE_NAMES = (
    "red", "orange", "yellow", "lime", "green", "mint", "cyan", "azure", "blue", "violet", "magenta", "rose",
)  # fmt: skip
_ENOUGH, _TOGETHER = 10, 4096
_SOLID, _SMALL, _RARE, _UNLIKELY = 0.99, 0.06, 0.3, 0.05


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row to look at, and why."""

    row: int
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class _Signal:
    """``strength`` (rows,), 0 where it says nothing; ``why`` tells of one row."""

    strength: Floats = field(repr=False)
    why: Any
    weight: float = 1.0


def suspects(
    data: Survey, alike: Alike, count: int, *, named: Sequence[Suspect] = (), leave_out: Rows | None = None
) -> list[Suspect]:
    """The ``count`` most suspicious rows, the first of them the most; of copies only one.

    Parameters
    ----------
    data: surveyed with looks.
    named: rows that come first, as :func:`read_findings` gives them.
    leave_out: rows that are not to be among them.
    """
    signals = [*_across_labels(data, alike), *_belied(data), _rare_patches(data), _drifting(data, alike)]
    surprises = np.stack([one.weight * _surprise(one.strength) for one in signals])
    total = surprises.sum(axis=0)
    taken = np.zeros(len(data), dtype=np.bool_)
    if leave_out is not None:
        taken[leave_out] = True
    shown: set[int] = set()
    found: list[Suspect] = []
    for one in named:
        if len(found) < count and not taken[one.row]:
            taken[one.row] = True
            shown.add(int(alike.keys[one.row]))
            found.append(one)
    for row in np.argsort(-total, kind="stable").tolist():
        if len(found) >= count:
            break
        if not taken[row] and int(alike.keys[row]) not in shown:
            shown.add(int(alike.keys[row]))
            found.append(Suspect(row, _why(signals, surprises[:, row], row)))
    return found


def _surprise(strength: Floats) -> Floats:
    """``-log`` of the share of rows that are at least as strong; 0 for those that have none."""
    order = np.sort(strength)
    at_least = len(order) - np.searchsorted(order, strength, side="left")
    return np.where(strength > 0, -np.log(at_least / (len(order) + 1)), 0.0)


def _why(signals: Sequence[_Signal], surprises: Floats, row: int) -> str:
    order = [i for i in np.argsort(-surprises, kind="stable").tolist() if surprises[i] > 1][:2]
    return "; ".join(signals[i].why(row) for i in order) or "drawn to fill the half"


def _across_labels(data: Survey, alike: Alike) -> list[_Signal]:
    def same(row: int) -> str:
        return f"the same pixels stand under {data.label(int(alike.other_label[row]))}"

    def near(row: int) -> str:
        return f"looks like an image of {data.label(int(alike.near_other_label[row]))}"

    return [
        _Signal((alike.other_label >= 0).astype(np.float64), same, 2.0),
        _Signal((alike.near_other_label >= 0).astype(np.float64), near, 2.0),
    ]


def _belied(data: Survey) -> list[_Signal]:
    """Rows that a linear classifier on edges and colours, fitted to the others, gives another label."""
    known = np.flatnonzero(data.readable)
    margin, away = np.zeros(len(data)), np.zeros(len(data))
    other = np.zeros(len(data), dtype=np.int64)
    if len(known) >= _ENOUGH and len(np.unique(data.labels[known])) > 1:
        labels = data.labels[known]
        parts = [data.column("edges")[known], data.column("colours")[known]]
        found = left_out(parts, labels, len(data.class_names))
        margin[known], other[known] = found.margin, found.other
        away[known] = np.sum([_distance(part, labels) for part in parts], axis=0)

    def looks_like(row: int) -> str:
        return f"by edges and colours more like {data.class_names[int(other[row])]}"

    return [
        _Signal(np.maximum(margin, 0), looks_like, 1.5),
        _Signal(np.maximum(away - 2, 0), lambda _: "unlike the rest of its label", 0.5),
    ]


def _distance(values: NDArray[np.uint8], labels: Rows) -> Floats:
    """How far each row is from the mean of its label, over what is usual for the label: (rows,)."""
    far = np.zeros(len(values))
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        middle = values[rows].mean(axis=0)
        for part in np.array_split(rows, len(rows) // _TOGETHER + 1):
            far[part] = ((values[part] - middle) ** 2).sum(axis=1)
        far[rows] /= max(float(np.median(far[rows])), 1e-9)
    return far


def _rare_patches(data: Survey) -> _Signal:
    """A small patch of one vivid hue that some rows of a label have, and fewer of the other labels."""
    from scipy.stats import hypergeom

    classes = len(data.class_names)
    has = (data.column("patches") >= _SOLID) & (data.column("hues") <= _SMALL)
    in_all = has.sum(axis=0)
    strength = np.zeros(len(data))
    hue = np.zeros(len(data), dtype=np.int64)
    share_of: dict[int, Floats] = {}
    for label in np.unique(data.labels).tolist():
        rows = np.flatnonzero(data.labels == label)
        count = has[rows].sum(axis=0)
        chance = hypergeom.sf(count - 1, len(data), in_all, len(rows)) * classes * HUES
        share_of[label] = count / len(rows)
        told = (share_of[label] < _RARE) & (chance < _UNLIKELY)
        values = has[rows] * np.where(told, -np.log(np.maximum(chance, 1e-300)), 0.0)
        strength[rows], hue[rows] = values.max(axis=1), values.argmax(axis=1)

    def why(row: int) -> str:
        share = share_of[int(data.labels[row])][int(hue[row])]
        return (
            f"a small {HUE_NAMES[int(hue[row])]} patch, as {share:.1%} of its label have and fewer of others"
        )

    return _Signal(strength, why)


def _drifting(data: Survey, alike: Alike) -> _Signal:
    expected = Drift()
    strength = np.zeros(len(data))
    told: dict[int, str] = {}
    for column in ("contributor", "batch"):
        values = data.dataset.columns.get(column)
        if values is None:
            continue
        found = drifted(data, alike, column, expected, expected.false_discovery_rate)
        measures: dict[str, list[str]] = {}
        for one in found:
            measures.setdefault(one.unit, []).append(one.measure)
        for row, unit in enumerate(values):
            if str(unit) in measures:
                strength[row] += len(measures[str(unit)])
                told[row] = f"{column} {unit} is unlike the others in {', '.join(measures[str(unit)][:3])}"
    return _Signal(strength, lambda row: told.get(row, ""), 0.5)


def read_findings(path: Path, data: ImageDataset) -> list[Suspect]:
    """The training rows that a gate run's JSON report names, each once, in the report's order.

    Raises
    ------
    UsageError: not such a report, or one about other data.
    """
    try:
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        if path.stat().st_size > MAX_FINDINGS_BYTES:
            raise UsageError(f"{path} is larger than {MAX_FINDINGS_BYTES:,} bytes", "is it a gate's report?")
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a gate's JSON report: {str(error)[:120]}") from None
    findings = report.get("findings") if isinstance(report, dict) else None
    if not isinstance(findings, list):
        raise UsageError(f"{path} is not a gate's JSON report", "write one with 'promotion-gate run --json'")
    named: dict[int, Suspect] = {}
    for finding in findings:
        detail = finding.get("detail") if isinstance(finding, dict) else None
        listed = detail.get("suspects") if isinstance(detail, dict) else None
        for one in listed if isinstance(listed, list) else ():
            row = one.get("row") if isinstance(one, dict) else None
            if not isinstance(row, int) or isinstance(row, bool):
                continue
            if not 0 <= row < len(data) or one.get("id", data.ids[row]) != data.ids[row]:
                raise UsageError(
                    f"{path} names row {row} as {one.get('id')!r:.80}, which {data.uri} does not have",
                    "give the training data of that gate run",
                )
            why = f"named by {str(finding.get('check'))[:60]}: {str(one.get('why', ''))[:160]}"
            named.setdefault(row, Suspect(row, why.rstrip(": ")))
    return list(named.values())
