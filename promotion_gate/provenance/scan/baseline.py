"""The baseline: findings that were there before, each with the reason why it may stay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import UsageError
from promotion_gate.provenance.scan.judge import FAILING, ScanFinding

SCHEMA = "promotion-gate-scan-baseline/1"
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Baseline:
    """Reasons by fingerprint."""

    reasons: Mapping[str, str]

    def apply(self, findings: Sequence[ScanFinding]) -> list[ScanFinding]:
        """Findings with the reasons of those that are known."""
        return [
            replace(f, known=self.reasons[f.fingerprint])
            if f.rule in FAILING and f.fingerprint in self.reasons
            else f
            for f in findings
        ]

    def gone(self, findings: Sequence[ScanFinding]) -> int:
        """How many of its entries no longer occur."""
        return len(self.reasons.keys() - {f.fingerprint for f in findings})


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises
    ------
    UsageError: missing, malformed, or an entry gives no reason.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise UsageError(
                f"no baseline at {path}", "'promotion-gate scan --write-baseline F --reason …' writes one"
            )
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}"[:300]) from None
    if (
        not isinstance(document, dict)
        or document.get("schema") != SCHEMA
        or not isinstance(document.get("findings"), list)
    ):
        raise UsageError(f"{path} is no baseline of the scan", f"its schema is {SCHEMA}")
    reasons: dict[str, str] = {}
    for number, item in enumerate(document["findings"], 1):
        fingerprint, reason = _pair(item)
        if not fingerprint or not reason.strip():
            raise UsageError(
                f"{path}: finding {number} has no fingerprint or no reason", "write why it may stay"
            )
        reasons[fingerprint] = reason
    return Baseline(reasons)


def _pair(item: Any) -> tuple[str, str]:
    fingerprint, reason = (
        (item.get("fingerprint"), item.get("reason")) if isinstance(item, dict) else ("", "")
    )
    return (fingerprint, reason) if isinstance(fingerprint, str) and isinstance(reason, str) else ("", "")


def baseline_text(findings: Sequence[ScanFinding], reason: str, before: Baseline | None = None) -> str:
    """A baseline of every finding that would fail; known ones keep the reasons they have."""
    kept = before.reasons if before is not None else {}
    entries = [
        {
            "fingerprint": f.fingerprint,
            "file": f.path,
            "rule": f.rule,
            "loader": f.entry.loader if f.entry else "",
            "data": (f.entry.dataset or f.entry.url) if f.entry else "",
            "reason": kept.get(f.fingerprint, reason),
        }
        for f in findings
        if f.rule in FAILING and not f.allowed
    ]
    return json.dumps({"schema": SCHEMA, "findings": entries}, indent=2) + "\n"
