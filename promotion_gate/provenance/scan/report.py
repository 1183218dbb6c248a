"""A scan for the terminal and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from promotion_gate.provenance.scan.entry import Answer
from promotion_gate.provenance.scan.judge import ScanFinding
from promotion_gate.provenance.scan.run import Scan

SCHEMA = "promotion-gate-scan/1"


def scan_lines(scan: Scan) -> Iterator[str]:
    """A line for each finding that is new, then how many there are of the others."""
    for finding in scan.findings:
        if not finding.allowed and not finding.known:
            yield f"{finding.path}:{finding.line}:{finding.column}: {finding.rule}: {finding.message}"
    yield from (f"{path}:{line}: this suppression allows nothing: take it out" for path, line in scan.idle)
    outside = [item for item in scan.left_out if item.reason.startswith("a link")]
    yield from (f"{item.path}: not gone into: {item.reason}" for item in outside)
    inside = Counter(item.reason for item in scan.left_out if item not in outside)
    told = ", ".join(f"{count} of the kind '{reason}'" for reason, count in sorted(inside.items()))
    if told:
        yield f"folders not gone into: {told}"
    yield scan_summary(scan)


def scan_summary(scan: Scan) -> str:
    """The whole scan in one line."""
    places = [finding for finding in scan.findings if finding.entry is not None]
    counts = {
        "new": len(scan.failing),
        "allowed in the source": sum(bool(f.allowed) for f in scan.findings),
        "in the baseline": sum(bool(f.known) for f in scan.findings),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    gone = f"; {scan.gone} of the baseline's are gone" if scan.gone else ""
    return (
        f"{scan.files:,} files, {scan.lines:,} lines: data enters in {len(places)} places;"
        f" to answer for: {told}{gone}"
    )


def scan_json(scan: Scan) -> str:
    """Every finding, for a program."""
    document = {
        "schema": SCHEMA,
        "files": scan.files,
        "lines": scan.lines,
        "kinds": dict(scan.kinds),
        "failing": len(scan.failing),
        "baseline_gone": scan.gone,
        "left_out": [{"path": item.path, "reason": item.reason} for item in scan.left_out],
        "unused_suppressions": [{"path": path, "line": line} for path, line in scan.idle],
        "findings": [finding_json(finding) for finding in scan.findings],
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def finding_json(finding: ScanFinding) -> dict[str, Any]:
    """One finding as JSON."""
    entry = finding.entry
    about: dict[str, Any] = {}
    if entry is not None:
        about = {
            "loader": entry.loader,
            "family": entry.family,
            "kind": entry.kind,
            "dataset": entry.dataset,
            "url": entry.url,
            "context": entry.context,
            "registered": {**_answer(finding.registered), "as": finding.registered_as},
            "pinned": _answer(entry.pinned),
            "mirror": _answer(finding.mirror),
            "hash_checked": _answer(entry.hashed),
        }
    return {
        "rule": finding.rule,
        "path": finding.path,
        "line": finding.line,
        "column": finding.column,
        "message": finding.message,
        "fails": finding.fails,
        "allowed": finding.allowed,
        "baseline": finding.known,
        "fingerprint": finding.fingerprint,
        **about,
    }


def _answer(answer: Answer) -> dict[str, str]:
    return {"known": str(answer.known), "why": answer.why}
