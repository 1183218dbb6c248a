"""Which rows a person should look at first, without a model.

Each signal ranks the rows; a row's suspicion is the sum of its surprises, ``-log(rank / rows)``, as Fisher
joins tests. The signals: the same or nearly the same image under another label; neighbours, by edges and
colours, of other labels; far from all rows of its label; a small vivid patch of a colour that is rare in its
label; a batch or contributor that is unlike the others. Rows that a gate run named come before all others.

What defeats it: a trigger that looks like the label's own colours, clean-label poison, marks over the whole
image, labels that edges and colours cannot tell apart.
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
_REFERENCE, _NEIGHBOURS, _NEAREST = 20_000, 30, 3
_DENSE, _SMALL, _RARE = 0.6, 0.1, 0.2
_QUERIES = 2_000


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
    signals = [*_across_labels(data, alike), *_neighbours(data), _rare_patches(data), _drifting(data, alike)]
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


def _neighbours(data: Survey) -> list[_Signal]:
    """How near its own label and the others are to each row, by edges and colours."""
    known = np.flatnonzero(data.readable)
    ratio, lone = np.zeros(len(data)), np.zeros(len(data))
    other = np.full(len(data), -1, dtype=np.int64)
    if len(known) > _NEIGHBOURS:
        own, foreign, label = _nearest(_features(data, known), data.labels[known])
        ratio[known] = own / np.maximum(foreign, 1e-9)
        other[known] = label
        usual = np.ones(len(data.class_names))
        for index in np.unique(data.labels[known]).tolist():
            usual[index] = max(float(np.median(own[data.labels[known] == index])), 1e-9)
        lone[known] = own / usual[data.labels[known]]

    def looks_like(row: int) -> str:
        return f"its neighbours are {data.class_names[int(other[row])]}"

    return [
        _Signal(np.where(ratio > 1, ratio, 0.0), looks_like, 1.5),
        _Signal(np.where(lone > 1, lone, 0.0), lambda _: "unlike the rest of its label"),
    ]


def _features(data: Survey, rows: Rows) -> NDArray[np.float32]:
    parts = []
    for name in ("edges", "colours"):
        values = data.column(name)[rows].astype(np.float32)
        values = values - values.mean(axis=0)
        parts.append(values / max(float(np.sqrt(values.var(axis=0).sum())), 1e-6))
    return np.concatenate(parts, axis=1)


def _nearest(features: NDArray[np.float32], labels: Rows) -> tuple[Floats, Floats, Rows]:
    """Mean distance to the nearest three of the own label and of others, and the nearest other label.

    Among the thirty nearest rows; where fewer are of a kind, the thirtieth's distance stands in. Of a large
    set every row is compared with a sample of it.
    """
    rng = np.random.default_rng(0)
    count = len(features)
    reference = (
        np.arange(count) if count <= _REFERENCE else np.sort(rng.choice(count, _REFERENCE, replace=False))
    )
    against = features[reference]
    squares = (against**2).sum(axis=1)
    own, foreign = np.zeros(count), np.zeros(count)
    nearest_label = np.zeros(count, dtype=np.int64)
    for start in range(0, count, _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, count))
        away = squares[None, :] - 2 * features[rows] @ against.T
        away += (features[rows] ** 2).sum(axis=1)[:, None]
        # Itself and its copies are no neighbours.
        away[away < 1e-5] = np.inf
        kept = min(_NEIGHBOURS, len(reference) - 1)
        near = np.argpartition(away, kept, axis=1)[:, :kept]
        near = np.take_along_axis(near, np.argsort(np.take_along_axis(away, near, axis=1), axis=1), axis=1)
        far = np.sqrt(np.maximum(np.take_along_axis(away, near, axis=1), 0))
        far = np.where(np.isfinite(far), far, np.nan)
        last = np.nanmax(far, axis=1, initial=0.0)
        mine = labels[reference[near]] == labels[rows][:, None]
        own[rows] = _mean_of_first(far, mine, last)
        foreign[rows] = _mean_of_first(far, ~mine, last)
        nearest_label[rows] = labels[reference[near[np.arange(len(rows)), (~mine).argmax(axis=1)]]]
    return own, foreign, nearest_label


def _mean_of_first(far: Floats, chosen: NDArray[np.bool_], otherwise: Floats) -> Floats:
    place = np.cumsum(chosen, axis=1)
    used = chosen & (place <= _NEAREST) & np.isfinite(far)
    short = _NEAREST - used.sum(axis=1)
    return np.asarray((np.where(used, far, 0.0).sum(axis=1) + short * otherwise) / _NEAREST)


def _rare_patches(data: Survey) -> _Signal:
    """A small dense patch of a vivid hue that few rows of the label have."""
    dense = (data.column("patches") >= _DENSE) & (data.column("hues") <= _SMALL)
    any_of = data.column("patches") >= _DENSE
    strength = np.zeros(len(data))
    hue = np.zeros(len(data), dtype=np.int64)
    rarity = np.ones(len(data))
    for label in np.unique(data.labels).tolist():
        rows = np.flatnonzero((data.labels == label) & data.readable)
        if not len(rows):
            continue
        share = any_of[rows].mean(axis=0)
        rare = np.where(dense[rows] & (share < _RARE), -np.log(np.maximum(share, 1e-9)), 0.0)
        strength[rows] = rare.max(axis=1)
        hue[rows] = rare.argmax(axis=1)
        rarity[rows] = share[hue[rows]]

    def why(row: int) -> str:
        return f"a small {HUE_NAMES[int(hue[row]) % HUES]} patch, as {rarity[row]:.1%} of its label have"

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
