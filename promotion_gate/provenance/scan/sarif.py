"""Findings as SARIF 2.1.0 (OASIS), for code scanning pages and editors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from promotion_gate import __version__
from promotion_gate.provenance.scan.entry import Known
from promotion_gate.provenance.scan.judge import (
    FLOATING,
    REGISTERED,
    RULES,
    UNCHECKED,
    ScanFinding,
)
from promotion_gate.provenance.scan.run import Scan

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "promotionGate/v2"
_LEVELS = {FLOATING: "warning", UNCHECKED: "note", REGISTERED: "none"}
_HELP = {
    "unregistered-data": "Register the data set with 'promotion-gate dbom add' and load it with open_dataset,"
    " or write '# promotion-gate: allow REASON' on its line.",
    "floating-data": "Name a revision, a version or a commit.",
    "unchecked-data": "Load it with promotion_gate.open_dataset, or give the hash it must have.",
    "registered-data": "Nothing is to be done.",
    "unreadable-file": "Mend the file, exclude it, or take it into the baseline with a reason.",
    "unexplained-suppression": "Write the reason behind 'allow'.",
}


def sarif_log(scan: Scan) -> dict[str, Any]:
    """The scan as a SARIF log."""
    rules = list(RULES)
    return {
        "$schema": SCHEMA_URI,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "promotion-gate scan",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {"SRCROOT": {"description": {"text": "The folder that was scanned."}}},
                "invocations": [{"executionSuccessful": True}],
                "results": [_found(finding, rules) for finding in scan.findings],
            }
        ],
    }


def sarif_text(scan: Scan) -> str:
    """The scan as the text of a SARIF file."""
    return json.dumps(sarif_log(scan), indent=1, ensure_ascii=True) + "\n"


def _rule(rule: str) -> dict[str, Any]:
    return {
        "id": rule,
        "shortDescription": {"text": RULES[rule]},
        "fullDescription": {"text": RULES[rule]},
        "help": {"text": _HELP[rule]},
        "defaultConfiguration": {"level": _LEVELS.get(rule, "error")},
    }


def _found(finding: ScanFinding, rules: list[str]) -> dict[str, Any]:
    level = _LEVELS.get(finding.rule, "error")
    region = {"startLine": finding.line, "startColumn": finding.column}
    if finding.end_line > finding.line:
        region["endLine"] = finding.end_line
    uri = quote(finding.path.encode("utf-8", "surrogateescape"))
    found: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": level,
        "message": {"text": _text(finding.message)},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": uri, "uriBaseId": "SRCROOT"}, "region": region}}
        ],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "properties": dict(_facts(finding)),
    }
    if level == "none":
        found["kind"] = "pass"
    if finding.allowed:
        found["suppressions"] = [{"kind": "inSource", "justification": _text(finding.allowed)}]
    elif finding.known:
        found["suppressions"] = [{"kind": "external", "justification": _text(finding.known)}]
    return found


def _text(text: str) -> str:
    """Text that any reader of JSON takes: no lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _facts(finding: ScanFinding) -> Mapping[str, str]:
    entry = finding.entry
    if entry is None:
        return {}
    facts: dict[str, str | Known] = {
        "loader": entry.loader,
        "family": entry.family,
        "kind": entry.kind,
        "dataset": entry.dataset,
        "url": entry.url,
        "registered": finding.registered.known,
        "registeredAs": finding.registered_as,
        "pinned": entry.pinned.known,
        "fromMirror": finding.mirror.known,
        "hashChecked": entry.hashed.known,
    }
    return {key: _text(str(value)) for key, value in facts.items()}
