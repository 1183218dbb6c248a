from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from promotion_gate.checks.per_class import PerClass, PerClassOptions
from promotion_gate.core.types import Status
from promotion_gate.evidence.interface import ForwardPass

NAMES = ("stop", "yield", "priority")


def predict(labels, wrong: dict[int, int], become: int) -> np.ndarray:
    """The labels, with the first ``wrong[c]`` images of each class c predicted as ``become``."""
    predictions = np.array(labels)
    for label, count in wrong.items():
        predictions[np.flatnonzero(np.asarray(labels) == label)[:count]] = become
    return predictions


LABELS = np.repeat([0, 1, 2], [100, 100, 30])


def test_measures_without_a_champion(make_evidence):
    finding = PerClass().examine(make_evidence(LABELS, predict(LABELS, {0: 10}, 2), class_names=NAMES), {})
    assert finding.status is Status.MEASURED
    assert finding.metrics["accuracy"] == pytest.approx(220 / 230)
    assert finding.metrics["worst_recall"] == pytest.approx(0.9)
    assert finding.metrics["calibration_error"] == pytest.approx(220 / 230 - 0.9, abs=1e-6)
    assert set(finding.not_applicable) == {"accuracy_drop", "regressed_classes"}
    assert {*finding.metrics, *finding.not_applicable} == set(PerClass.metrics)
    stop, _, priority = finding.detail["classes"]
    assert (stop["support"], stop["recall"], stop["precision"]) == (100, 0.9, 1.0)
    assert stop["recall_low"] < 0.9 < stop["recall_high"]
    assert priority["precision"] == 0.75
    assert finding.detail["confusions"] == [
        {"true": "stop", "predicted": "priority", "count": 10, "champion_count": None}
    ]
    assert "95.7%" in finding.summary
    assert "'stop'" in finding.summary


def test_names_the_class_that_got_worse_and_no_other(make_evidence):
    evidence = make_evidence(
        LABELS,
        predict(LABELS, {0: 12, 1: 2}, 2),
        champion=predict(LABELS, {0: 1, 1: 1}, 2),
        class_names=NAMES,
    )
    finding = PerClass().examine(evidence, {})
    assert finding.metrics["regressed_classes"] == 1
    assert finding.metrics["accuracy_drop"] == pytest.approx(12 / 230)
    stop, yield_, _ = finding.detail["classes"]
    assert (stop["lost"], stop["gained"], stop["regressed"]) == (11, 0, True)
    assert stop["p_unadjusted"] == pytest.approx(2**-11)
    assert stop["p_value"] == pytest.approx(3 * 2**-11)
    assert not yield_["regressed"]
    assert finding.detail["confusions"][0]["champion_count"] == 1
    assert "1 significantly worse: 'stop'" in finding.summary


def test_noise_on_thirty_images_is_no_regression(make_evidence):
    evidence = make_evidence(LABELS, predict(LABELS, {2: 4}, 0), champion=LABELS, class_names=NAMES)
    finding = PerClass().examine(evidence, {})
    assert finding.detail["classes"][2]["delta"] == pytest.approx(-4 / 30)
    assert finding.metrics["regressed_classes"] == 0


def test_mistakes_on_other_images_are_no_regression(make_evidence):
    """Paired: the champion's 20 mistakes and the candidate's 20 on other images say nothing."""
    candidate, champion = LABELS.copy(), LABELS.copy()
    candidate[:20], champion[20:40] = 1, 1
    finding = PerClass().examine(make_evidence(LABELS, candidate, champion=champion, class_names=NAMES), {})
    assert finding.metrics["regressed_classes"] == 0


def test_a_significant_but_tiny_drop_is_no_regression(make_evidence):
    labels = np.repeat([0, 1, 2], [2000, 50, 50])
    evidence = make_evidence(labels, predict(labels, {0: 20}, 1), champion=labels, class_names=NAMES)
    assert PerClass().examine(evidence, {}).metrics["regressed_classes"] == 0
    strict = PerClass(PerClassOptions(min_drop=0.005))
    assert strict.examine(evidence, {}).metrics["regressed_classes"] == 1


def test_a_champion_of_other_classes_is_inconclusive_but_the_candidate_is_still_measured(
    make_evidence, forward_pass
):
    evidence = make_evidence(LABELS, champion=forward_pass(LABELS, 4), class_names=NAMES)
    finding = PerClass().examine(evidence, {})
    assert finding.status is Status.INCONCLUSIVE
    assert "champion" in finding.summary
    assert finding.metrics["accuracy"] == 1
    assert "regressed_classes" not in {**finding.metrics, **finding.not_applicable}


def test_answers_that_cannot_be_counted_are_inconclusive(make_evidence, forward_pass):
    logits = forward_pass(LABELS, 3).logits.copy()
    logits[7, 1] = np.nan
    for logits_ in (logits, logits[:-1], np.zeros((230, 2), np.float32)):
        broken = ForwardPass(logits_, np.zeros((len(logits_), 2), np.float32))
        finding = PerClass().examine(make_evidence(LABELS, holdout_pass=broken, class_names=NAMES), {})
        assert finding.status is Status.INCONCLUSIVE
        assert not finding.metrics


def test_a_class_without_images_leaves_the_worst_recall_unmeasured(make_evidence):
    finding = PerClass().examine(make_evidence(LABELS[:200], champion=LABELS[:200], class_names=NAMES), {})
    assert "worst_recall" not in {**finding.metrics, **finding.not_applicable}
    assert finding.detail["classes_without_images"] == ["priority"]
    assert finding.detail["classes"][2]["recall"] is None


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError):
        PerClassOptions(alhpa=0.1)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # it only builds
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=40))
def test_any_answers_give_finite_numbers_and_plain_json(make_evidence, triples):
    labels, candidate, champion = np.array(triples).T
    finding = PerClass().examine(make_evidence(labels, candidate, champion=champion, class_names=NAMES), {})
    assert all(np.isfinite(value) for value in finding.metrics.values())
    json.dumps(finding.detail, allow_nan=False)
    assert finding.metrics["regressed_classes"] <= 3
    if finding.metrics["regressed_classes"]:
        assert any(row["lost"] > row["gained"] for row in finding.detail["classes"])
