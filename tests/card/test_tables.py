"""The tables of clusters, directions and uploads."""

import dataclasses
from types import ModuleType

import pytest

from promotion_gate.card import render_card
from promotion_gate.card.tables import tables
from promotion_gate.core.types import Finding, Status

BATCH = {
    "grouping": "contributor",
    "name": "<script>alert(1)</script>",
    "rows": 120,
    "kind": "concentrated",
    "label": "speed limit 80",
    "extreme": 24,
    "of": 31,
    "expected": 1.54,
    "standing": 0.49,
    "named": {"patch-transplant": 20, "label-concentration": 0},
    "p": 1e-12,
    "q": 3e-10,
}
CLUSTER = {
    "label": "speed limit 80",
    "rows": 366,
    "members": 29,
    "share": 0.079,
    "silhouette": 0.18,
    "trusted": 110,
    "trusted_inside": 0,
    "trusted_due": 8.7,
    "p": 0.006,
    "apart": True,
}
SPECTRUM = {"label": "stop", "rows": 316, "trusted": 110, "beyond": 12, "ratio": 1.26, "p": 0.47}


def finding(check: str, **detail: object) -> Finding:
    return Finding(check, Status.MEASURED, "summary", {}, detail)


def test_an_upload_says_what_made_it_odd() -> None:
    (table,) = tables(finding("batch-anomaly", batches=[BATCH, BATCH | {"kind": "shift", "name": "b"}]))
    cells = dict(zip(table.head, (cell.text for cell in table.body[0]), strict=True))
    assert cells["What it is"] == "few labels stand out"
    assert cells["Extreme rows"] == "24 of 31"
    assert cells["Due"] == "1.5"
    assert cells["Named"] == "20 by patch-transplant"
    assert cells["q"] == "3e−10"
    assert [row[0].flag for row in table.body] == [True, False]


def test_clusters_and_directions_are_told_by_class() -> None:
    (clusters,) = tables(finding("activation-clustering", clusters=[CLUSTER]))
    assert [cell.text for cell in clusters.body[0]][:1] == ["speed limit 80"]
    assert "0 of 110" in [cell.text for cell in clusters.body[0]]
    assert clusters.body[0][0].flag
    (spectra,) = tables(finding("spectral-signature", spectra=[SPECTRUM]))
    assert [cell.text for cell in spectra.body[0]] == ["stop", "316", "110", "12", "1.3", "0.47"]


def test_they_stand_on_the_card_and_hostile_names_stay_text(reports: ModuleType) -> None:
    report = reports.report("reject")
    added = [
        finding("batch-anomaly", batches=[BATCH]),
        finding("activation-clustering", clusters=[CLUSTER]),
        finding("spectral-signature", spectra=[SPECTRUM]),
    ]
    page = render_card(dataclasses.replace(report, findings=[*report.findings, *added])).decode()
    assert "<h4>The uploads, most anomalous first</h4>" in page
    assert "contributor &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "The smaller cluster of each class" in page
    assert "How each class varies along its main direction" in page


@pytest.mark.parametrize("detail", [{}, {"batches": 3}, {"batches": [1, None]}])
def test_without_rows_there_is_no_table(detail: dict) -> None:
    assert tables(finding("batch-anomaly", **detail)) == []


@pytest.mark.parametrize("check", ["batch-anomaly", "activation-clustering", "spectral-signature"])
def test_strange_rows_thin_the_table_and_never_break_it(check: str) -> None:
    strange = {"label": None, "rows": "x", "p": float("nan"), "named": 3, "of": [], "expected": "1"}
    (table,) = tables(finding(check, batches=[strange], clusters=[strange], spectra=[strange]))
    assert all(len(row) == len(table.head) for row in table.body)
