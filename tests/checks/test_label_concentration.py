import json

import numpy as np
import pytest

from promotion_gate.checks.label_concentration import LabelConcentration
from promotion_gate.core.types import Status
from promotion_gate.detect.anchor import holdout_anchor
from promotion_gate.evidence.interface import ForwardPass

NAMES = ("stop", "yield", "</script><b>", "speed limit 80", "keep right", "no entry")
ROWS, TRUSTED, WIDTH = 150, 50, 12


class Bank:
    """A training set of class clouds on which the candidate has learnt every label by heart."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.true = np.repeat(np.arange(len(NAMES)), ROWS)
        self.labels = self.true.copy()
        self.holdout = np.repeat(np.arange(len(NAMES)), TRUSTED)
        self.embeddings = self.cloud(self.true)
        self.images = np.random.default_rng(seed).integers(0, 256, (len(self.true), 8, 8, 3), dtype=np.uint8)

    def cloud(self, classes):
        return (4 * np.eye(WIDTH)[classes] + self.rng.normal(0, 0.4, (len(classes), WIDTH))).astype(
            np.float32
        )

    def flip(self, source, target, count):
        rows = np.flatnonzero(self.true == source)[:count]
        self.labels[rows] = target
        return rows

    def drag(self, source, target, count):
        """Rows of ``source`` labelled ``target`` whose embeddings lie half way."""
        rows = self.flip(source, target, count)
        pull = 4 * (np.eye(WIDTH)[target] - np.eye(WIDTH)[source])
        self.embeddings[rows] += (0.62 * pull).astype(np.float32)
        return rows

    def answers(self, labels, embeddings):
        logits = np.full((len(labels), len(NAMES)), -3.0, np.float32)
        logits[np.arange(len(labels)), labels] = 3 + self.rng.normal(0, 0.5, len(labels))
        return ForwardPass(logits, embeddings)

    def examine(self, make_evidence, champion=True, **parts):
        trusted = self.cloud(self.holdout)
        parts = {
            "training": (self.images, self.labels),
            "training_pass": self.answers(self.labels, self.embeddings),
            "holdout_pass": self.answers(self.holdout, trusted),
            "anchor": holdout_anchor(self.embeddings, self.labels, trusted, self.holdout),
        } | parts
        if champion:
            parts["champion"] = self.answers(self.holdout, trusted)
            parts["champion_training_pass"] = self.answers(self.true, self.embeddings)
        return LabelConcentration().examine(make_evidence(self.holdout, class_names=NAMES, **parts), {})


@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_data_is_called_clean(make_evidence, champion, seed):
    finding = Bank(seed).examine(make_evidence, champion)
    assert finding.status is Status.MEASURED
    assert set(finding.metrics) == set(LabelConcentration.metrics)
    assert finding.metrics["label_errors"] == 0
    assert finding.metrics["flip_p"] == 1
    assert finding.metrics["concentration_p"] > 0.01
    assert finding.detail["suspects"] == []


@pytest.mark.parametrize("champion", [True, False])
def test_flipped_rows_are_listed_and_the_pair_named(make_evidence, champion):
    bank = Bank()
    rows = bank.flip(0, 1, 12)
    finding = bank.examine(make_evidence, champion)
    listed = finding.detail["suspects"]
    assert [suspect["row"] for suspect in listed] == rows.tolist()
    assert {suspect["label"] for suspect in listed} == {"yield"}
    assert all("looks like 'stop'" in suspect["why"] for suspect in listed)
    assert any("the champion" in suspect["why"] for suspect in listed) == champion
    assert finding.metrics["label_errors"] == 12
    assert finding.metrics["label_error_share"] == pytest.approx(12 / 900)
    assert finding.metrics["worst_class_errors"] > 10
    assert finding.metrics["flip_p"] < 1e-5
    assert finding.detail["pairs"][0]["looks_like"] == "stop"


def test_scattered_noise_raises_the_share_and_no_pair(make_evidence):
    bank = Bank()
    for source in range(len(NAMES)):
        rows = np.flatnonzero(bank.true == source)[: len(NAMES) - 1]
        bank.labels[rows] = [other for other in range(len(NAMES)) if other != source]
    finding = bank.examine(make_evidence)
    assert finding.metrics["label_errors"] == 30
    assert finding.metrics["flip_p"] > 0.05


def test_poison_that_leaves_its_class_crowds_the_head(make_evidence):
    bank = Bank()
    rows = bank.drag(0, 3, 13)
    finding = bank.examine(make_evidence, champion=False)
    assert finding.metrics["label_errors"] == 0
    assert finding.metrics["concentration"] >= 10
    assert finding.metrics["concentration_p"] < 0.01
    assert finding.detail["crowding"]["label"] == "speed limit 80"
    listed = {suspect["row"] for suspect in finding.detail["suspects"]}
    assert len(listed & set(rows.tolist())) >= 10


def test_same_evidence_same_finding(make_evidence):
    first, second = (Bank(5).examine(make_evidence) for _ in range(2))
    assert first == second


def test_detail_is_json_whatever_the_class_names(make_evidence):
    bank = Bank()
    bank.flip(0, 2, 8)
    finding = bank.examine(make_evidence)
    read_back = json.loads(json.dumps(finding.detail, allow_nan=False))
    assert read_back["suspects"][0]["label"] == "</script><b>"


def test_a_class_without_trusted_images_heads_no_ranking(make_evidence):
    bank = Bank()
    bank.holdout = bank.holdout[bank.holdout != 3]
    finding = bank.examine(make_evidence)
    assert finding.status is Status.MEASURED
    assert finding.detail["untrusted_classes"] == ["speed limit 80"]
    assert "speed limit 80" not in {label["name"] for label in finding.detail["labels"]}


def test_no_training_data_is_inconclusive(make_evidence):
    finding = LabelConcentration().examine(make_evidence([0, 1], class_names=NAMES), {})
    assert finding.status is Status.INCONCLUSIVE
    assert "no training set" in finding.summary


def test_answers_that_are_not_finite_are_inconclusive(make_evidence):
    bank = Bank()
    answers = bank.answers(bank.labels, bank.embeddings)
    answers.logits[4, 2] = np.nan
    finding = bank.examine(make_evidence, training_pass=answers)
    assert finding.status is Status.INCONCLUSIVE
    assert "not finite" in finding.summary


def test_a_champion_of_other_classes_is_not_asked(make_evidence):
    bank = Bank()
    bank.flip(0, 1, 12)
    other = ForwardPass(np.zeros((len(bank.labels), 3), np.float32), bank.embeddings)
    finding = bank.examine(
        make_evidence, champion=False, champion_training_pass=other, champion_holdout_pass=other
    )
    assert finding.detail["champion_asked"] is False
    assert finding.metrics["label_errors"] == 12


def test_whole_tracks_that_lie_nearer_another_class_are_not_wrong_labels(make_evidence):
    """Trusted images of a few tracks do not stand for a class; only its other rows tell that."""

    def examined(strangers):
        bank = Bank()
        rows = np.flatnonzero(bank.true == 3)
        pull = 4 * (np.eye(WIDTH)[0] - np.eye(WIDTH)[3])
        bank.embeddings[rows[:20]] += (0.8 * pull).astype(np.float32)
        odd = rows[20 : 20 + strangers]
        bank.embeddings[odd] += bank.rng.normal(0, 1.5, (len(odd), WIDTH)).astype(np.float32)
        finding = bank.examine(make_evidence, champion=False)
        return finding.metrics["flip_p"], finding.detail["unlike_classes"]

    few, of_few = examined(0)
    assert few < 1e-6
    assert of_few == []
    p, unlike = examined(50)
    assert p > 1e-3
    assert unlike == [NAMES[3]]
