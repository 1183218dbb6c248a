"""The provenance check with a data bill of materials in the policy."""

from dataclasses import replace

import pytest

from promotion_gate.checks.provenance import Provenance, ProvenanceOptions
from promotion_gate.core.decide import decide
from promotion_gate.core.errors import DbomError
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import DatasetInput, Outcome, RunFacts
from promotion_gate.provenance.register import Particulars, add_path

POLICY = """
version = 1
[data.holdout]
path = "holdout.npz"
[checks.provenance]
[checks.provenance.options]
dbom = "dbom.json"
[checks.provenance.bounds]
unregistered_datasets = { max = 0 }
"""
NAMES = ("stop", "yield")


@pytest.fixture
def examined(tmp_path, make_evidence):
    (tmp_path / "set.npz").write_bytes(b"x")
    entry = add_path(tmp_path / "dbom.json", tmp_path / "set.npz", Particulars("set", "1"))

    def examine(tags=None, policy=POLICY, **options):
        tags = {"promotion_gate.sha256": entry.sha256} if tags is None else tags
        run = RunFacts("r", "ann", None, {}, {}, {}, (DatasetInput("set", "training", "", "12", tags),))
        parsed = parse_policy(policy, folder=tmp_path)
        evidence = make_evidence([0, 1], class_names=NAMES, run=run, policy=parsed)
        options = {"dbom": "dbom.json", **options}
        return Provenance(ProvenanceOptions(**options)).examine(evidence, {}), parsed

    return examine


def test_registered_data_passes_and_unregistered_is_rejected(examined):
    finding, policy = examined()
    assert finding.metrics["unregistered_datasets"] == 0
    assert finding.detail["declared"][0]["said"] == "set 1, vetted"
    judged = [replace(finding, check=name) for name in ("artifacts", "model", "inputs")]
    assert not [j for j in decide([*judged, finding], policy).judgements if j.ruling == "FAIL"]
    finding, policy = examined(tags={})
    assert finding.metrics["unregistered_datasets"] == 1
    assert "declared without a SHA-256" in finding.summary
    assert decide([*judged, finding], policy).outcome is Outcome.REJECT


def test_without_trainers_a_bound_on_the_chain_holds(examined):
    finding, policy = examined(policy=POLICY + "unverified_links = { max = 0 }\n")
    assert "unverified_links" not in finding.metrics
    judged = [replace(finding, check=name) for name in ("artifacts", "model", "inputs")]
    assert decide([*judged, finding], policy).outcome is Outcome.HOLD


def test_a_missing_attestation_is_said(examined, tmp_path):
    (tmp_path / "trainers").mkdir()
    finding, _ = examined(trainers="trainers")
    assert finding.metrics["unverified_links"] == 5
    assert finding.detail["links"][0] == {
        "link": "signature",
        "holds": False,
        "said": "the run holds no training attestation",
    }
    assert "the chain breaks at signature" in finding.summary


def test_a_missing_document_is_an_error_that_holds(examined):
    with pytest.raises(DbomError):
        examined(dbom="elsewhere.json")
