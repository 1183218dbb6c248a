from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from promotion_gate.checks.provenance import Provenance
from promotion_gate.core.types import DatasetInput, RunFacts, Status

NAMES = ("stop", "yield")
RUN = RunFacts(
    "run-2",
    "ann",
    datetime(2026, 1, 2, tzinfo=UTC),
    {"lr": "0.1", "epochs": "8"},
    {"mlflow.source.git.commit": "c0ffee", "mlflow.source.name": "train.py"},
    {},
    (DatasetInput("signs", "training", "signs.npz", "12ab34cd"),),
)
TRAINING = (np.zeros((3, 4, 4, 3), np.uint8), [0, 1, 0])


@pytest.fixture
def examine(make_evidence):
    def examine_(**parts):
        return Provenance().examine(make_evidence([0, 1], class_names=NAMES, **parts), {})

    return examine_


def test_a_full_record_misses_nothing_and_carries_real_digests(examine, make_evidence):
    finding = examine(run=RUN, training=TRAINING)
    assert finding.status is Status.MEASURED
    assert finding.metrics == {"missing_facts": 0, "declared_datasets": 1}
    assert set(finding.metrics) < set(Provenance.metrics)
    evidence = make_evidence([0, 1], class_names=NAMES, training=TRAINING)
    assert finding.detail["sha256"] == {
        "holdout": evidence.holdout.sha256(),
        "training": evidence.training.sha256(),
    }
    assert (finding.detail["run"], finding.detail["commit"], finding.detail["user"]) == (
        "run-2",
        "c0ffee",
        "ann",
    )
    assert finding.detail["started_at"] == "2026-01-02T00:00:00+00:00"
    assert finding.detail["data"]["training"]["rows"] == 3
    assert "10,000 rows" in finding.detail["note"]


def test_one_changed_pixel_changes_the_digest(examine):
    images = TRAINING[0].copy()
    images[2, 3, 3, 2] = 1
    changed = examine(run=RUN, training=(images, TRAINING[1])).detail["sha256"]
    same = examine(run=RUN, training=TRAINING).detail["sha256"]
    assert changed["training"] != same["training"]
    assert changed["holdout"] == same["holdout"]


@pytest.mark.parametrize(
    ("run", "missing"),
    [
        (replace(RUN, tags={}), "git commit"),
        (replace(RUN, user=""), "user"),
        (replace(RUN, params={}), "parameters"),
        (replace(RUN, datasets=()), "data sets"),
        (None, "training run"),
    ],
)
def test_what_was_not_recorded_is_named(examine, run, missing):
    finding = examine(run=run, training=TRAINING)
    assert finding.metrics["missing_facts"] == len(finding.detail["missing"]) >= 1
    assert any(missing in line for line in finding.detail["missing"])
    assert missing in finding.summary


def test_missing_training_data_is_missing(examine):
    finding = examine(run=RUN)
    assert finding.metrics["missing_facts"] == 1
    assert finding.detail["sha256"]["training"] is None


def test_differences_to_the_champion_are_listed(examine):
    champion = replace(
        RUN,
        run_id="run-1",
        params={"lr": "0.2", "epochs": "8", "decay": "1"},
        tags={"mlflow.source.name": "train.py"},
        datasets=(DatasetInput("signs", "training", "signs.npz", "ffffffff"),),
    )
    finding = examine(run=RUN, champion_run=champion, training=TRAINING)
    assert finding.detail["champion"]["run"] == "run-1"
    assert finding.detail["changed"] == [
        {"fact": "commit", "candidate": "c0ffee", "champion": None},
        {"fact": "parameter decay", "candidate": None, "champion": "1"},
        {"fact": "parameter lr", "candidate": "0.1", "champion": "0.2"},
        {"fact": "declared data set", "candidate": "training: signs (12ab34cd)", "champion": None},
        {"fact": "declared data set", "candidate": None, "champion": "training: signs (ffffffff)"},
    ]
    assert examine(run=RUN, champion_run=RUN, training=TRAINING).detail["changed"] == []
    assert examine(run=RUN).detail["champion"] is None
