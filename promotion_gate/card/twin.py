"""The JSON twin of the card: everything but the pixels, for programs."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from promotion_gate.core.types import Exhibit, Finding, Judgement, Report, RunFacts
from promotion_gate.detect.accuracy import NOT_MEASURED, accuracy

SCHEMA = "urn:promotion-gate:report:v1"


def report_json(report: Report) -> bytes:
    """The report in canonical JSON (keys sorted, ASCII), as ``report.schema.json`` describes it.

    A number that is not finite is written as null: JSON knows no NaN.
    """
    candidate, champion = report.candidate, report.candidate.champion
    document = {
        "schema": SCHEMA,
        "gate": {
            "version": report.gate_version,
            "run_id": report.gate_run_id,
            "user": report.user,
            "host": report.host,
            "started_at": _instant(report.started_at),
            "seconds": report.seconds,
        },
        "candidate": {
            "name": candidate.ref.name,
            "version": candidate.ref.version,
            "run_id": candidate.run_id,
            "source": candidate.source,
            "sha256": candidate.digest,
            "format": report.model_format,
            "files": [
                {"path": f.path, "size": f.size, "sha256": f.sha256, "kind": f.kind} for f in report.files
            ],
            "run": _run(report.candidate_run),
        },
        "champion": None
        if champion is None
        else {"name": champion.name, "version": champion.version, "run": _run(report.champion_run)},
        "verdict": {
            "outcome": report.verdict.outcome,
            "policy_sha256": report.verdict.policy_digest,
            "judgements": [_judgement(j) for j in report.verdict.judgements],
            "reasons": [_judgement(j) for j in report.verdict.reasons],
        },
        "findings": [_finding(f) for f in report.findings],
        "class_names": report.class_names,
        "alias": report.alias,
        "sandbox": report.sandbox,
        "unsafe": report.unsafe,
        "policy": report.policy_text,
    }
    return (json.dumps(plain(document), sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def plain(value: Any) -> Any:
    """The value in JSON's own types: arrays as lists, instants as text, numbers that are none as null."""
    if value is None or (isinstance(value, bool | int) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, datetime):
        return _instant(value)
    if isinstance(value, str):
        return value
    if isinstance(value, set | frozenset):
        return sorted((plain(entry) for entry in value), key=repr)
    return [plain(entry) for entry in value] if isinstance(value, Iterable) else str(value)


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def _judgement(judgement: Judgement) -> dict[str, Any]:
    rule = judgement.rule
    return {
        "check": judgement.check,
        "metric": rule.metric if rule else None,
        "minimum": rule.minimum if rule else None,
        "maximum": rule.maximum if rule else None,
        "otherwise": rule.otherwise if rule else None,
        "ruling": judgement.ruling,
        "measured": judgement.measured,
        "reason": judgement.reason,
        "blocking": judgement.blocking,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "status": finding.status,
        "summary": finding.summary,
        "metrics": finding.metrics,
        "not_applicable": finding.not_applicable,
        "detail": finding.detail,
        "exhibits": [_exhibit(e) for e in finding.exhibits],
        "seconds": finding.seconds,
        "accuracy": _accuracy(finding.check),
    }


def _accuracy(check: str) -> dict[str, Any] | None:
    """What the check measured on models whose poison was known; None for one that nothing is known of."""
    known = accuracy(check)
    return None if known is None else {"line": known.line or NOT_MEASURED, "evasions": known.evasions}


def _exhibit(exhibit: Exhibit) -> dict[str, Any]:
    return {"name": exhibit.name, "kind": exhibit.kind, "caption": exhibit.caption, "items": exhibit.items}


def _run(run: RunFacts | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "run_id": run.run_id,
        "user": run.user,
        "started_at": None if run.started_at is None else _instant(run.started_at),
        "commit": run.commit,
        "params": run.params,
        "datasets": [
            {"name": d.name, "context": d.context, "source": d.source, "digest": d.digest}
            for d in run.datasets
        ],
    }
