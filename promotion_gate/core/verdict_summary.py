"""The gate's verdict as a signed file: a SLSA Verification Summary in a DSSE envelope.

Format: SLSA Verification Summary Attestation v1 (https://slsa.dev/spec/v1.1/verification_summary). Its
subject is the model version with the digest of its artifacts. ``verificationResult`` is ``PASSED`` for
PROMOTE alone; ``verifiedLevels`` tells a HOLD from a REJECT. Whoever knows the format can read it without
this program.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from promotion_gate.core.envelope import STATEMENT_TYPE
from promotion_gate.core.errors import SigningError
from promotion_gate.core.statement import Sha256, sign_statement, verified_statement
from promotion_gate.core.types import ModelRef, Outcome

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys

PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
VERIFIER = "urn:promotion-gate"
LEVEL = "PROMOTION_GATE_"
SLSA_VERSION = "1.1"


@dataclass(frozen=True, slots=True)
class VerdictSummary:
    """A verdict on one version's bytes under one policy.

    ``digest``, ``policy_digest`` and ``card_sha256`` are hex SHA-256; the latter two are empty where there
    was no policy or card.
    """

    ref: ModelRef
    digest: str
    outcome: Outcome
    policy_digest: str
    card_sha256: str
    gate_run_id: str
    gate_version: str
    at: datetime


# Fields that the standard may add are passed over, as it asks of those who read it.
class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class _Digest(_Part):
    sha256: Sha256


class _Subject(_Part):
    name: str
    digest: _Digest


class _Verifier(_Part):
    id: Literal["urn:promotion-gate"]
    version: dict[str, str] = Field(default_factory=dict)


class _Resource(_Part):
    uri: str
    digest: _Digest | None = None


class _Predicate(_Part):
    verifier: _Verifier
    time_verified: AwareDatetime = Field(alias="timeVerified")
    resource_uri: str = Field(alias="resourceUri")
    policy: _Resource
    inputs: tuple[_Resource, ...] = Field(default=(), alias="inputAttestations")
    verified: Literal["PASSED", "FAILED"] = Field(alias="verificationResult")
    levels: tuple[str, ...] = Field(alias="verifiedLevels", min_length=1)


class _Statement(_Part):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://slsa.dev/verification_summary/v1"] = Field(alias="predicateType")
    predicate: _Predicate


def sign_verdict(verdict: VerdictSummary, key: SigningKey) -> bytes:
    """The verdict as a signed envelope, JSON bytes.

    Raises
    ------
    SigningError: it cannot be stated (no SHA-256 digest, no time zone), or the key cannot sign.
    """
    return sign_statement(_statement(verdict), _Statement, f"the verdict on {verdict.ref}", key)


def verify_verdict(content: bytes, trusted: TrustedKeys, *, name: str = "the verdict") -> VerdictSummary:
    """The verdict in a signed envelope, after its signature was found good and its key trusted.

    Raises
    ------
    SigningError: malformed, altered, contradicting itself, or signed by nobody who is trusted.
    """
    statement = verified_statement(content, _Statement, trusted, name)
    said = statement.predicate
    (subject,) = statement.subject
    outcome = next((o for o in Outcome if f"{LEVEL}{o}" in said.levels), None)
    if outcome is None or (outcome is Outcome.PROMOTE) != (said.verified == "PASSED"):
        raise SigningError(f"{name} is malformed: {said.verified} and {', '.join(said.levels)} contradict")
    if subject.name != said.resource_uri:
        raise SigningError(f"{name} is malformed: its subject is not the model version it speaks of")
    model, _, version = subject.name.removeprefix("models:/").rpartition("/")
    if not model or not version.isascii() or not version.isdigit() or len(version) > 18:
        raise SigningError(f"{name} is malformed: its subject is not a model version")
    run = said.policy.uri.removeprefix("runs:/").partition("/")[0]
    return VerdictSummary(
        ref=ModelRef(model, int(version)),
        digest=subject.digest.sha256,
        outcome=outcome,
        policy_digest="" if said.policy.digest is None else said.policy.digest.sha256,
        card_sha256=next((part.digest.sha256 for part in said.inputs if part.digest), ""),
        gate_run_id=run,
        gate_version=said.verifier.version.get("promotion-gate", ""),
        at=said.time_verified,
    )


def _statement(verdict: VerdictSummary) -> dict[str, Any]:
    run = f"runs:/{verdict.gate_run_id}"
    policy: dict[str, Any] = {"uri": f"{run}/policy.toml"}
    if verdict.policy_digest:
        policy["digest"] = {"sha256": verdict.policy_digest}
    card = {"uri": f"{run}/card.html", "digest": {"sha256": verdict.card_sha256}}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": verdict.ref.uri, "digest": {"sha256": verdict.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "verifier": {"id": VERIFIER, "version": {"promotion-gate": verdict.gate_version}},
            "timeVerified": _rfc3339(verdict.at),
            "resourceUri": verdict.ref.uri,
            "policy": policy,
            "inputAttestations": [card] if verdict.card_sha256 else [],
            "verificationResult": "PASSED" if verdict.outcome is Outcome.PROMOTE else "FAILED",
            "verifiedLevels": [f"{LEVEL}{verdict.outcome}"],
            "slsaVersion": SLSA_VERSION,
        },
    }


def _rfc3339(at: datetime) -> str:
    """UTC with a Z, as the standard writes it; a time without a zone stays as it is, and is refused."""
    return (at.astimezone(UTC) if at.tzinfo else at).isoformat().replace("+00:00", "Z")
