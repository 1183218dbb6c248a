"""Activation clustering and spectral signatures: one class's embeddings beside trusted images of it."""

import json

import numpy as np
import pytest

from promotion_gate.checks.activation_clustering import ActivationClustering, ActivationClusteringOptions
from promotion_gate.checks.spectral_signature import SpectralSignature, SpectralSignatureOptions
from promotion_gate.core.types import Status
from promotion_gate.evidence.interface import ForwardPass

NAMES = ("stop", "</script><b>", "speed limit 80")
ROWS, TRUSTED, WIDTH = 250, 250, 12


def evidence(make_evidence, poisoned=25, trusted=True, broken=False):
    rng = np.random.default_rng(0)
    labels, holdout = np.repeat(np.arange(3), ROWS), np.repeat(np.arange(3), TRUSTED)
    if not trusted:
        holdout = holdout[holdout != 2]

    def cloud(classes):
        return (4 * np.eye(WIDTH)[classes] + rng.normal(0, 1, (len(classes), WIDTH))).astype(np.float32)

    rows, own = cloud(labels), cloud(holdout)
    rows[2 * ROWS : 2 * ROWS + poisoned, -4:] += 4
    if broken:
        rows[1] = np.inf
    logits = np.eye(3, dtype=np.float32)
    return make_evidence(
        holdout,
        class_names=NAMES,
        training=(np.zeros((len(labels), 2, 2, 3), np.uint8), labels),
        training_pass=ForwardPass(logits[labels], rows),
        holdout_pass=ForwardPass(logits[holdout], own),
    )


@pytest.mark.parametrize("check", [ActivationClustering, SpectralSignature])
def test_poison_that_lies_apart_is_shown_with_its_rows(make_evidence, check):
    finding = check().examine(evidence(make_evidence), {})
    assert finding.status is Status.MEASURED
    assert set(finding.metrics) == set(check.metrics)
    listed = {suspect["row"] for suspect in finding.detail["suspects"]}
    assert len(listed) >= 20
    assert listed <= set(range(2 * ROWS, 2 * ROWS + 25))
    assert "'speed limit 80'" in finding.summary
    json.dumps(finding.detail, allow_nan=False)


@pytest.mark.parametrize("check", [ActivationClustering, SpectralSignature])
def test_clean_data_has_no_suspects(make_evidence, check):
    finding = check().examine(evidence(make_evidence, 0), {})
    assert finding.status is Status.MEASURED
    assert finding.detail["suspects"] == []


@pytest.mark.parametrize("check", [ActivationClustering, SpectralSignature])
def test_a_class_without_trusted_images_names_nobody(make_evidence, check):
    finding = check().examine(evidence(make_evidence, trusted=False), {})
    assert finding.status is Status.MEASURED
    assert finding.detail["suspects"] == []


@pytest.mark.parametrize("check", [ActivationClustering, SpectralSignature])
def test_without_usable_training_data_it_is_inconclusive(make_evidence, check):
    finding = check().examine(make_evidence(np.arange(3), class_names=NAMES), {})
    assert finding.status is Status.INCONCLUSIVE
    finding = check().examine(evidence(make_evidence, broken=True), {})
    assert finding.status is Status.INCONCLUSIVE
    assert "not finite" in finding.summary


def test_suspects_are_listed_sparingly(make_evidence):
    given = evidence(make_evidence)
    for check in (
        ActivationClustering(ActivationClusteringOptions(suspects=4)),
        SpectralSignature(SpectralSignatureOptions(suspects=4)),
    ):
        assert len(check.examine(given, {}).detail["suspects"]) == 4


def test_metrics_say_how_far_apart(make_evidence):
    poisoned, clean = (ActivationClustering().examine(evidence(make_evidence, n), {}) for n in (25, 0))
    assert poisoned.metrics["apart_rows"] == 25
    assert poisoned.metrics["apart_silhouette"] > 0.15 > clean.metrics["apart_silhouette"] == 0
    assert poisoned.metrics["apart_p"] < 0.05 < clean.metrics["apart_p"]
    assert poisoned.detail["clusters"][0]["trusted_inside"] == 0
    spectra = [SpectralSignature().examine(evidence(make_evidence, n), {}) for n in (25, 0)]
    assert spectra[0].metrics["outlying_p"] < 1e-3 < spectra[1].metrics["outlying_p"]
    assert spectra[0].metrics["spectral_ratio"] > 2 > spectra[1].metrics["spectral_ratio"]
