"""The verdict as a SLSA verification summary: what it says, and what is refused."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from promotion_gate.core.envelope import seal
from promotion_gate.core.errors import SigningError
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.core.verdict_summary import VerdictSummary, sign_verdict, verify_verdict

VERDICT = VerdictSummary(
    ref=ModelRef("signs", 7),
    digest="a" * 64,
    outcome=Outcome.PROMOTE,
    policy_digest="b" * 64,
    card_sha256="c" * 64,
    gate_run_id="run1",
    gate_version="0.1.0",
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("keys") / "key.pem")


def payload(envelope):
    return json.loads(base64.b64decode(json.loads(envelope)["payload"]))


@pytest.mark.parametrize("outcome", Outcome)
def test_what_is_signed_is_what_is_read(keys, outcome):
    verdict = replace(VERDICT, outcome=outcome)
    assert verify_verdict(sign_verdict(verdict, keys.signing), keys.trusted) == verdict


def test_equal_verdicts_give_equal_bytes(keys):
    assert sign_verdict(VERDICT, keys.signing) == sign_verdict(VERDICT, keys.signing)


def test_it_is_a_verification_summary_by_the_standard(keys):
    """The fields that SLSA v1.1 requires, with its own names."""
    statement = payload(sign_verdict(VERDICT, keys.signing))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert statement["subject"] == [{"name": "models:/signs/7", "digest": {"sha256": "a" * 64}}]
    said = statement["predicate"]
    assert said["verifier"]["id"] == "urn:promotion-gate"
    assert said["timeVerified"] == "2026-01-02T03:04:05Z"
    assert said["resourceUri"] == "models:/signs/7"
    assert said["policy"] == {"uri": "runs:/run1/policy.toml", "digest": {"sha256": "b" * 64}}
    assert said["verificationResult"] == "PASSED"
    assert said["verifiedLevels"] == ["PROMOTION_GATE_PROMOTE"]


@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.REJECT])
def test_only_a_promotion_has_passed(keys, outcome):
    said = payload(sign_verdict(replace(VERDICT, outcome=outcome), keys.signing))["predicate"]
    assert said["verificationResult"] == "FAILED"
    assert said["verifiedLevels"] == [f"PROMOTION_GATE_{outcome}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["predicate"].update(verificationResult="PASSED"), "contradict"),
        (lambda s: s["predicate"].update(verifiedLevels=["SLSA_BUILD_LEVEL_3"]), "contradict"),
        (lambda s: s["predicate"].update(verifiedLevels=[]), "verifiedLevels"),
        (lambda s: s["predicate"].update(resourceUri="models:/signs/8"), "not the model version"),
        (lambda s: s["predicate"]["verifier"].update(id="urn:somebody"), "verifier"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda s: s["subject"][0].update(name="models:/signs/latest"), "not a model version|not the model"),
        (lambda s: s["subject"].append(s["subject"][0]), "subject"),
        (lambda s: s["predicate"].pop("timeVerified"), "timeVerified"),
    ],
)
def test_a_signed_statement_that_says_something_else_is_refused(keys, change, said):
    statement = payload(sign_verdict(replace(VERDICT, outcome=Outcome.HOLD), keys.signing))
    change(statement)
    with pytest.raises(SigningError, match=said) as error:
        verify_verdict(seal(json.dumps(statement).encode(), keys.signing), keys.trusted)
    assert "\n" not in str(error.value)


def test_fields_that_the_standard_may_gain_do_not_matter(keys):
    statement = payload(sign_verdict(VERDICT, keys.signing))
    statement["predicate"]["dependencyLevels"] = {"SLSA_BUILD_LEVEL_2": 3}
    assert verify_verdict(seal(json.dumps(statement).encode(), keys.signing), keys.trusted) == VERDICT


@pytest.mark.parametrize("changes", [{"digest": "short"}, {"at": datetime(2026, 1, 2)}])
def test_what_cannot_be_stated_is_not_signed(keys, changes):
    with pytest.raises(SigningError, match="cannot be signed"):
        sign_verdict(replace(VERDICT, **changes), keys.signing)
