"""Batches and contributors that are unlike the others, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.batches import false_discovery
from promotion_gate.detect.drift import count_p, excess_p, group_shift
from promotion_gate.validation.alike import Alike
from promotion_gate.validation.expectations import Drift
from promotion_gate.validation.judged import Judged, plural
from promotion_gate.validation.survey import Rows, Survey

_POINTS = 0.02
_LISTED = 200


@dataclass(frozen=True, slots=True)
class Drifted:
    """One batch or contributor (``unit`` of ``column``) that is unlike the others in one measure."""

    column: str
    unit: str
    rows: int
    measure: str
    found: str
    q: float


@dataclass(frozen=True, slots=True)
class _Asked:
    unit: int
    measure: str
    p: float
    large: bool
    found: str


def drift(data: Survey, alike: Alike, expected: Drift) -> Iterator[Judged]:
    """One expectation a column."""
    there = [column for column in expected.columns if column in data.dataset.columns]
    for column in expected.columns:
        name = f"drift.{column}"
        if column not in there:
            if not there:
                yield Judged.unexamined(name, f"the data has no column {column}")
            continue
        sizes = _units(data, column)[2]
        if int((sizes >= expected.min_rows).sum()) < 2:
            yield Judged.unexamined(name, f"fewer than two values have {expected.min_rows:,} rows")
            continue
        found = drifted(data, alike, column, expected, expected.false_discovery_rate / len(there))
        units = {one.unit for one in found}
        head = (column.capitalize(), "Rows", "Measure", "Found", "q")
        table = [head, *((d.unit, f"{d.rows:,}", d.measure, d.found, f"{d.q:.2g}") for d in found[:_LISTED])]
        word = {"batch": "batches"}.get(column, f"{column}s")
        yield Judged.at_most(
            name, len(units), expected.max_drifted,
            f"{plural(len(units), column, word)} of {len(sizes):,} unlike the others",
            (), table if found else (),
        )  # fmt: skip


def drifted(data: Survey, alike: Alike, column: str, expected: Drift, rate: float) -> list[Drifted]:
    """What is unlike in one column's values, the most certain first."""
    names, units, sizes = _units(data, column)
    asked = [
        one
        for one in _asked(data, alike, units, len(names), expected)
        if sizes[one.unit] >= expected.min_rows
    ]
    if not asked:
        return []
    q_values = false_discovery([one.p for one in asked])
    found = [
        Drifted(column, names[one.unit], int(sizes[one.unit]), one.measure, one.found, float(q))
        for one, q in zip(asked, q_values, strict=True)
        if q <= rate and one.large
    ]
    return sorted(found, key=lambda one: (one.q, one.unit, one.measure))


def _units(data: Survey, column: str) -> tuple[list[str], Rows, Rows]:
    names, units, sizes = np.unique(
        np.asarray(data.dataset.columns[column], dtype=object).astype(str),
        return_inverse=True,
        return_counts=True,
    )
    return names.tolist(), units.astype(np.int64), sizes.astype(np.int64)


def _asked(data: Survey, alike: Alike, units: Rows, count: int, expected: Drift) -> Iterator[_Asked]:
    for measure in expected.measures:
        if measure == "labels":
            yield from _label_mix(data, units, count, expected)
        elif measure in ("copies", "unreadable"):
            flags = ~data.readable if measure == "unreadable" else _copied(alike)
            yield from _excess(measure, flags, units, count, expected)
        else:
            for figure, values in _figures(data, measure).items():
                yield from _moved(figure, values, data, units, expected)


def _figures(data: Survey, measure: str) -> dict[str, NDArray[np.floating]]:
    if measure == "colour":
        red, green, blue = data.column("mean").T
        return {"red less green": red - green, "blue less green": blue - green}
    if measure == "size":
        return {"size": np.log(np.maximum(data.column("width") * data.column("height").astype(float), 1))}
    return {measure: data.column(measure)}


def _copied(alike: Alike) -> NDArray[np.bool_]:
    """Rows whose pixels come more than once, the first of them included."""
    _, back, counts = np.unique(alike.keys, return_inverse=True, return_counts=True)
    return np.asarray((counts[back] > 1) | (alike.near_of >= 0))


def _moved(
    figure: str, values: NDArray[np.floating], data: Survey, units: Rows, expected: Drift
) -> Iterator[_Asked]:
    known = data.readable
    if not known.any():
        return
    kept, dense = np.unique(units[known], return_inverse=True)
    p, standing = group_shift(values[known], data.labels[known], dense.astype(np.int64))
    for unit, chance, stands in zip(kept.tolist(), p.tolist(), standing.tolist(), strict=True):
        word = "higher" if stands > 0.5 else "lower"
        found = f"{word} than usual for its labels: mean standing {stands:.2f}"
        yield _Asked(unit, figure, chance, abs(stands - 0.5) >= expected.min_standing, found)


def _excess(
    measure: str, flags: NDArray[np.bool_], units: Rows, count: int, expected: Drift
) -> Iterator[_Asked]:
    total = int(flags.sum())
    sizes = np.bincount(units, minlength=count)
    hits = np.bincount(units, weights=flags, minlength=count).astype(np.int64)
    p = excess_p(hits, sizes, total, len(flags))
    for unit in range(count):
        share = hits[unit] / sizes[unit]
        usual = (total - hits[unit]) / max(len(flags) - sizes[unit], 1)
        yield _Asked(
            unit,
            measure,
            float(p[unit]),
            _is_large(share, usual, expected),
            f"{share:.1%}, elsewhere {usual:.1%}",
        )


def _label_mix(data: Survey, units: Rows, count: int, expected: Drift) -> Iterator[_Asked]:
    """The label of each unit whose share is most surprising, its p value times the labels asked about."""
    classes = len(data.class_names)
    cells = np.bincount(units * classes + data.labels, minlength=count * classes).reshape(count, classes)
    sizes, of_label = cells.sum(axis=1), cells.sum(axis=0)
    p = count_p(cells, sizes[:, None], of_label[None, :], len(units))
    share = cells / np.maximum(sizes[:, None], 1)
    usual = (of_label[None, :] - cells) / np.maximum(len(units) - sizes[:, None], 1)
    large = np.abs(share - usual) >= np.maximum(expected.min_change * usual, _POINTS)
    present = int((of_label > 0).sum())
    for unit in range(count):
        order = np.lexsort((p[unit], ~large[unit]))
        label = int(order[0])
        found = f"{data.class_names[label]}: {share[unit, label]:.1%}, elsewhere {usual[unit, label]:.1%}"
        yield _Asked(
            unit, "labels", min(1.0, float(p[unit, label]) * present), bool(large[unit, label]), found
        )


def _is_large(share: float, usual: float, expected: Drift) -> bool:
    return abs(share - usual) >= max(expected.min_change * usual, _POINTS)
