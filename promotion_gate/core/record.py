"""An audit record as a signed file: an in-toto Statement in a DSSE envelope.

The statement's subject is the model version with the digest of its artifacts; its predicate is the record.
The verdict behind it is a statement of its own, see :mod:`promotion_gate.core.verdict_summary`.
"""

from __future__ import annotations

import getpass
import os
import socket
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, Field

from promotion_gate.core.envelope import STATEMENT_TYPE
from promotion_gate.core.statement import (
    Part,
    Sha256OrNone,
    StatedModel,
    Subject,
    VersionNumber,
    sign_statement,
    verified_statement,
)
from promotion_gate.core.types import Action, AuditRecord, ForeignMove, Outcome, Transition

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys

PREDICATE_TYPE = "urn:promotion-gate:audit-record:v1"


class _Move(Part):
    alias: str
    from_version: VersionNumber | None
    to_version: VersionNumber
    mirror_stage: bool | None = None


class _Foreign(Part):
    alias: str
    from_version: VersionNumber | None
    to_version: VersionNumber | None
    stage: tuple[VersionNumber, ...] | None


class _Predicate(Part):
    action: Action
    model: StatedModel
    reason: str
    user: str
    host: str
    at: AwareDatetime
    gate_version: str
    outcome: Outcome | None
    champion: VersionNumber | None
    policy_sha256: str
    card_sha256: str
    verdict_sha256: Sha256OrNone = ""
    baseline_sha256: Sha256OrNone = ""
    gate_run_id: str
    sequence: int = Field(ge=0)
    transition: _Move | None
    unsafe: tuple[str, ...]
    foreign: _Foreign | None = None
    about: str = ""
    unfinished: tuple[str, ...] = ()
    alarm_at: AwareDatetime | None = None


class _Statement(Part):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject]
    predicate_type: Literal["urn:promotion-gate:audit-record:v1"] = Field(alias="predicateType")
    predicate: _Predicate


def sign_record(record: AuditRecord, key: SigningKey) -> bytes:
    """The record as a signed DSSE envelope, JSON bytes.

    Equal records signed with the same key give equal bytes.

    Raises
    ------
    SigningError: the record cannot be stated: no SHA-256 digest, no time zone, an empty name.
    """
    return sign_statement(_statement(record), _Statement, f"the record of {record.ref}", key)


def verify_record(content: bytes, trusted: TrustedKeys, *, name: str = "the record") -> AuditRecord:
    """The record in a signed envelope, after its signature was found good and its key trusted.

    ``content`` is the envelope as :func:`sign_record` wrote it; ``name`` is what an error message calls it.

    Raises
    ------
    SigningError: malformed, altered, or signed by nobody who is trusted.
    """
    return _record(verified_statement(content, _Statement, trusted, name), name)


def _statement(record: AuditRecord) -> dict[str, Any]:
    move = record.transition
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": record.ref.uri, "digest": {"sha256": record.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "action": record.action,
            "model": {"name": record.ref.name, "version": record.ref.version},
            "reason": record.reason,
            "user": record.user,
            "host": record.host,
            "at": record.at.isoformat(),
            "gate_version": record.gate_version,
            "outcome": None if record.outcome is None else record.outcome.value,
            "champion": record.champion,
            "policy_sha256": record.policy_digest,
            "card_sha256": record.card_sha256,
            "verdict_sha256": record.verdict_sha256,
            "baseline_sha256": record.baseline_sha256,
            "gate_run_id": record.gate_run_id,
            "sequence": record.sequence,
            "transition": None
            if move is None
            else {
                "alias": move.alias,
                "from_version": move.from_version,
                "to_version": move.to_version,
                "mirror_stage": move.mirror_stage,
            },
            "unsafe": list(record.unsafe),
            **_seldom(record),
        },
    }


def _seldom(record: AuditRecord) -> dict[str, Any]:
    """The fields that few records have; the others do without them."""
    said: dict[str, Any] = {}
    if record.foreign is not None:
        found = record.foreign
        said["foreign"] = {
            "alias": found.alias,
            "from_version": found.from_version,
            "to_version": found.to_version,
            "stage": None if found.stage is None else list(found.stage),
        }
    if record.about:
        said["about"] = record.about
    if record.unfinished:
        said["unfinished"] = list(record.unfinished)
    if record.alarm_at is not None:
        said["alarm_at"] = record.alarm_at.isoformat()
    return said


def _record(statement: _Statement, name: str) -> AuditRecord:
    said = statement.predicate
    (subject,) = statement.subject
    ref = said.model.subject_of(subject, name)
    move, found = said.transition, said.foreign
    return AuditRecord(
        action=said.action,
        ref=ref,
        digest=subject.digest.sha256,
        reason=said.reason,
        user=said.user,
        host=said.host,
        at=said.at,
        gate_version=said.gate_version,
        outcome=said.outcome,
        policy_digest=said.policy_sha256,
        card_sha256=said.card_sha256,
        verdict_sha256=said.verdict_sha256,
        baseline_sha256=said.baseline_sha256,
        gate_run_id=said.gate_run_id,
        sequence=said.sequence,
        transition=None
        if move is None
        else Transition(ref.name, move.alias, move.from_version, move.to_version, move.mirror_stage),
        unsafe=said.unsafe,
        champion=said.champion,
        foreign=None
        if found is None
        else ForeignMove(found.alias, found.from_version, found.to_version, found.stage),
        about=said.about,
        unfinished=said.unfinished,
        alarm_at=said.alarm_at,
    )


_CI_USER = (
    ("GITHUB_ACTIONS", "GITHUB_ACTOR"),
    ("GITLAB_CI", "GITLAB_USER_LOGIN"),
    ("JENKINS_URL", "BUILD_USER_ID"),
    ("TF_BUILD", "BUILD_REQUESTEDFOR"),
)


def whoami() -> tuple[str, str]:
    """User and host for the record: in CI whoever started the job, else the account's name."""
    for system, variable in _CI_USER:
        if os.environ.get(system) and os.environ.get(variable):
            return os.environ[variable], socket.gethostname()
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = f"uid {os.getuid()}"
    return user, socket.gethostname()


def now() -> datetime:
    """The present moment, in the local time zone."""
    return datetime.now().astimezone()
