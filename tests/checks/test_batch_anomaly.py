import json
from types import SimpleNamespace

import numpy as np
import pytest

from promotion_gate.checks.batch_anomaly import BatchAnomaly, BatchAnomalyOptions
from promotion_gate.core.types import Finding, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.evidence.interface import ForwardPass

NAMES = ("stop", "yield", "</script><b>", "speed limit 80", "keep right", "no entry")
ROWS, TRUSTED, WIDTH, TEAMS = 200, 40, 12, 15


class Bank:
    """A training set of class clouds, each beside one other, dealt to contributors; every image is noise."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.labels = np.repeat(np.arange(len(NAMES)), ROWS)
        self.true = self.labels.copy()
        self.holdout = np.repeat(np.arange(len(NAMES)), TRUSTED)
        self.embeddings = self.cloud(self.labels)
        self.teams = self.rng.integers(0, TEAMS, len(self.labels))

    def cloud(self, classes):
        noise = self.rng.normal(0, 0.4, (len(classes), WIDTH))
        eye = np.eye(WIDTH)
        return (4 * eye[classes] + 1.5 * eye[classes ^ 1] + noise).astype(np.float32)

    def poison(self, count=20, team=7):
        """Rows labelled 80 whose embeddings lie towards the stop signs, all of one contributor."""
        rows = np.flatnonzero(self.labels == 3)[:count]
        self.embeddings[rows] += (2.4 * (np.eye(WIDTH)[0] - np.eye(WIDTH)[3])).astype(np.float32)
        self.true[rows] = 0
        self.teams[rows] = team
        return rows

    def answers(self, labels, embeddings):
        logits = np.full((len(labels), len(NAMES)), -3.0, np.float32)
        logits[np.arange(len(labels)), labels] = 3 + self.rng.normal(0, 0.5, len(labels))
        return ForwardPass(logits, embeddings)

    def evidence(self, make_evidence, columns=None, champion=True, **parts):
        images = self.rng.integers(0, 256, (len(self.labels), 8, 8, 3), np.uint8)
        if columns is None:
            columns = {"contributor": [f"team-{team}" for team in self.teams]}
        parts = {
            "training": InMemoryDataset(images, self.labels, NAMES, columns=columns, uri="training"),
            "training_pass": self.answers(self.labels, self.embeddings),
            "holdout_pass": self.answers(self.holdout, self.cloud(self.holdout)),
            "model": SimpleNamespace(shape=ImageShape(8, 8, 3)),
        } | parts
        if champion:
            parts["champion_training_pass"] = self.answers(self.true, self.embeddings)
        return make_evidence(self.holdout, class_names=NAMES, **parts)


def examine(evidence, earlier=None, **options):
    return BatchAnomaly(BatchAnomalyOptions(**options)).examine(evidence, earlier or {})


@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_uploads_are_called_clean(make_evidence, champion, seed):
    finding = examine(Bank(seed).evidence(make_evidence, champion=champion))
    assert finding.status is Status.MEASURED
    assert set(finding.metrics) == set(BatchAnomaly.metrics)
    assert finding.metrics["anomalous_batches"] == finding.metrics["scattered_batches"] == 0
    assert finding.detail["suspects"] == []
    assert finding.detail["compared"] == {"contributor": TEAMS}


@pytest.mark.parametrize("champion", [True, False])
def test_the_poisoned_upload_is_named_with_its_rows(make_evidence, champion):
    bank = Bank()
    rows = bank.poison()
    finding = examine(bank.evidence(make_evidence, champion=champion))
    assert finding.metrics["anomalous_batches"] == 1
    assert finding.metrics["lowest_q"] < 0.01
    worst = finding.detail["batches"][0]
    assert (worst["name"], worst["kind"], worst["label"]) == ("team-7", "concentrated", "speed limit 80")
    assert "contributor 'team-7' brought" in finding.summary
    listed = {suspect["row"] for suspect in finding.detail["suspects"]}
    assert len(listed & set(rows.tolist())) >= 15
    assert {suspect["label"] for suspect in finding.detail["suspects"]} == {"speed limit 80"}


def test_both_columns_are_compared(make_evidence):
    bank = Bank()
    bank.poison()
    columns = {
        "contributor": [f"team-{team}" for team in bank.teams],
        "batch": [f"day-{i % 9}" for i in range(len(bank.labels))],
    }
    finding = examine(bank.evidence(make_evidence, columns))
    assert finding.detail["compared"] == {"contributor": TEAMS, "batch": 9}
    assert finding.metrics["anomalous_batches"] == 1
    assert finding.detail["batches"][0]["grouping"] == "contributor"


def test_without_columns_blocks_of_rows_stand_for_batches(make_evidence):
    bank = Bank()
    rows = bank.poison()
    order = bank.rng.permutation(np.setdiff1d(np.arange(len(bank.labels)), rows))
    order = np.concatenate([order[:600], rows, order[600:]])
    for name in ("labels", "true", "embeddings", "teams"):
        setattr(bank, name, getattr(bank, name)[order])
    finding = examine(bank.evidence(make_evidence, columns={}), blocks=12)
    assert finding.detail["compared"] == {"rows": 12}
    assert finding.metrics["anomalous_batches"] == 1
    assert finding.detail["batches"][0]["name"] == "600 to 699"


def test_a_column_of_one_value_tells_nothing_apart(make_evidence):
    bank = Bank()
    columns = {"contributor": ["everybody"] * len(bank.labels)}
    assert set(examine(bank.evidence(make_evidence, columns)).detail["compared"]) == {"rows"}


def test_carriers_of_a_trigger_tell_who_brought_them(make_evidence):
    bank = Bank()
    rows = np.flatnonzero(bank.labels == 3)[:20]
    bank.teams[rows] = 7
    detail = {"triggers": [{"carriers": rows.tolist()}]}
    earlier = {"patch-transplant": Finding("patch-transplant", Status.MEASURED, "", {}, detail)}
    finding = examine(bank.evidence(make_evidence), earlier)
    worst = finding.detail["batches"][0]
    assert (worst["name"], worst["evidence"]) == ("team-7", "patch-transplant")
    assert worst["named"] == {"patch-transplant": 20}
    assert finding.metrics["anomalous_batches"] == 1


@pytest.mark.parametrize("flip_p", [1e-9, 0.5])
def test_flipped_labels_count_only_where_they_are_no_chance(make_evidence, flip_p):
    bank = Bank()
    rows = np.flatnonzero(bank.labels == 3)[:20]
    bank.teams[rows] = 7
    suspects = [{"row": int(row), "label": NAMES[3]} for row in rows]
    detail = {"pairs": [{"label": NAMES[3]}], "suspects": suspects}
    flips = Finding("label-concentration", Status.MEASURED, "", {"flip_p": flip_p}, detail)
    finding = examine(bank.evidence(make_evidence), {"label-concentration": flips})
    assert finding.metrics["anomalous_batches"] == (flip_p < 1e-3)


def test_a_poisoned_champion_hides_nothing(make_evidence):
    bank = Bank()
    bank.poison()
    bank.true = bank.labels.copy()
    finding = examine(bank.evidence(make_evidence))
    assert finding.detail["batches"][0]["name"] == "team-7"
    assert finding.metrics["anomalous_batches"] == 1


def test_same_evidence_same_finding_and_json(make_evidence):
    findings = []
    for _ in range(2):
        bank = Bank(4)
        bank.poison()
        findings.append(examine(bank.evidence(make_evidence)))
    assert findings[0] == findings[1]
    json.dumps(findings[0].detail, allow_nan=False)


def test_what_cannot_be_compared_is_inconclusive(make_evidence):
    bank = Bank()
    assert examine(make_evidence(bank.holdout, class_names=NAMES)).status is Status.INCONCLUSIVE
    broken = bank.embeddings.copy()
    broken[3, 0] = np.nan
    parts = {"training_pass": bank.answers(bank.labels, broken)}
    finding = examine(bank.evidence(make_evidence, **parts))
    assert finding.status is Status.INCONCLUSIVE
    assert "not finite" in finding.summary
    finding = examine(bank.evidence(make_evidence, columns={}), block_rows=1000)
    assert finding.status is Status.INCONCLUSIVE
    assert "too few" in finding.summary


def test_a_name_without_end_hides_no_upload(make_evidence):
    """Each row once held as much room as the longest name; the supplier of the data chooses the names."""
    bank = Bank()
    bank.poison()
    long = "team-7" + "!" * 500_000
    teams = [long if team == 7 else f"team-{team}" for team in bank.teams]
    finding = examine(bank.evidence(make_evidence, columns={"contributor": teams}))
    assert finding.metrics["anomalous_batches"] == 1
    assert len(json.dumps(finding.detail)) < 100_000
