"""The tables of checks that compare groups of training rows: clusters, directions, uploads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from promotion_gate.card.detail import lines, number, number_text, percent, rows, table, whole, words
from promotion_gate.card.records import Cell, PickleRow, Table
from promotion_gate.core.types import Finding

SHOWN = 20
PICKLES_SHOWN = 50


def tables(finding: Finding) -> list[Table]:
    """The tables of a finding, empty for a check that has none and for a detail that has no rows."""
    if finding.check not in _TABLES:
        return []
    key, caption, head, read, note = _TABLES[finding.check]
    body = [read(row) for row in rows(finding.detail, key)[:SHOWN]]
    return [Table(caption, head, body, note)] if body else []


def pickle_rows(detail: Mapping[str, Any]) -> list[PickleRow]:
    """The pickles among a model's files, as the artifacts' finding tells them."""
    return [
        PickleRow(
            source=words(row.get("source"), 300),
            listed=row.get("listed") is True,
            verdict=words(row.get("verdict")) or "not scanned",
            findings=[
                f"{words(found.get('severity'))}: {words(found.get('message'), 200)}"
                for found in rows(row, "findings")[:SHOWN]
            ],
            names=lines(row.get("globals"))[:SHOWN],
            refused=lines(row.get("refused_by_torch"))[:SHOWN],
            note=words(row.get("note")),
        )
        for row in rows(detail, "scan")[:PICKLES_SHOWN]
    ]


def _cluster(row: Mapping[str, Any]) -> list[Cell]:
    inside, of = whole(row.get("trusted_inside")), whole(row.get("trusted"))
    return [
        Cell(words(row.get("label"), 80), flag=row.get("apart") is True),
        Cell(_number(row.get("rows")), True),
        Cell(_number(row.get("members")), True),
        Cell(percent(number(row.get("share"))), True),
        Cell(_number(row.get("silhouette")), True),
        Cell("–" if inside is None or of is None else f"{inside:,} of {of:,}", True),
        Cell(_tenths(row.get("trusted_due")), True),
        Cell(_number(row.get("p")), True),
    ]


def _spectrum(row: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(words(row.get("label"), 80)),
        Cell(_number(row.get("rows")), True),
        Cell(_number(row.get("trusted")), True),
        Cell(_number(row.get("beyond")), True),
        Cell(_tenths(row.get("ratio")), True),
        Cell(_number(row.get("p")), True),
    ]


def _batch(row: Mapping[str, Any]) -> list[Cell]:
    extreme, of = whole(row.get("extreme")), whole(row.get("of"))
    named = [f"{n} by {check}" for check, n in table(row.get("named")).items() if n != "0"]
    kind = words(row.get("kind"))
    return [
        Cell(
            f"{words(row.get('grouping'))} {words(row.get('name'), 80)}",
            flag=kind in ("concentrated", "scattered"),
        ),
        Cell(_KINDS.get(kind, kind)),
        Cell(_number(row.get("rows")), True),
        Cell(words(row.get("label"), 80)),
        Cell("–" if extreme is None or of is None else f"{extreme:,} of {of:,}", True),
        Cell(_tenths(row.get("expected")), True),
        Cell(", ".join(named) or "none"),
        Cell(percent(number(row.get("standing"))), True),
        Cell(_number(row.get("p")), True),
        Cell(_number(row.get("q")), True),
    ]


def _number(value: Any) -> str:
    return number_text(number(value))


def _tenths(value: Any) -> str:
    converted = number(value)
    return "–" if converted is None else f"{converted:,.1f}"


_KINDS = {
    "concentrated": "few labels stand out",
    "scattered": "many labels stand out",
    "shift": "moved as a whole or in one odd class",
    "ordinary": "nothing unusual",
}
_Read = Callable[[Mapping[str, Any]], list[Cell]]
_TABLES: Mapping[str, tuple[str, str, tuple[str, ...], _Read, str]] = {
    "activation-clustering": (
        "clusters",
        "The smaller cluster of each class",
        ("Class", "Rows", "In the cluster", "Share", "Silhouette", "Trusted images in it", "Due", "p"),
        _cluster,
        "Marked clusters hold next to none of the trusted images due there. p allows for all classes.",
    ),
    "spectral-signature": (
        "spectra",
        "How each class varies along its main direction",
        ("Class", "Rows", "Trusted images", "Rows beyond all of them", "Variance ratio", "p"),
        _spectrum,
        "An honest but unusual scene lies far out too. p allows for all classes.",
    ),
    "batch-anomaly": (
        "batches",
        "The uploads, most anomalous first",
        (
            "Upload",
            "What it is",
            "Rows",
            "Label",
            "Extreme rows",
            "Due",
            "Named",
            "Other labels stand at",
            "p",
            "q",
        ),
        _batch,
        "Extreme rows lie far from trusted images of their label. Labels that did not move stand at 50%. "
        "Taking every upload with a q below a bound, no larger share of them is expected to be wrong.",
    ),
}
