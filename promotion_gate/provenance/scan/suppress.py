"""Inline suppressions: ``# promotion-gate: allow REASON`` on a finding's line, or alone above it."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from promotion_gate.provenance.scan.judge import UNEXPLAINED, ScanFinding

_MARK = re.compile(r"#\s*promotion-gate:\s*allow\b[\s:–-]*(.*)$")
_WORD = re.compile(r"\w{2,}")
MARK_TEXT = "promotion-gate:"


@dataclass(frozen=True, slots=True)
class Suppression:
    """A suppression as written; ``alone`` where the comment has its line to itself."""

    line: int
    reason: str
    alone: bool


def suppressions(text: str, *, python: bool) -> list[Suppression]:
    """The suppressions in a file; in Python those in comments only, not in strings."""
    if MARK_TEXT not in text:
        return []
    if python:
        return _of_tokens(text)
    return list(of_lines(dict(enumerate(text.split("\n"), 1))))


def of_lines(lines: Mapping[int, str]) -> Iterable[Suppression]:
    """The suppressions in lines of text, by their numbers."""
    for number, line in lines.items():
        match = _MARK.search(line) if MARK_TEXT in line else None
        if match is not None:
            yield Suppression(number, match[1].strip(), not line[: match.start()].strip())


def _of_tokens(text: str) -> list[Suppression]:
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            match = _MARK.match(token.string) if token.type == tokenize.COMMENT else None
            if match is not None:
                alone = not token.line[: token.start[1]].strip()
                found.append(Suppression(token.start[0], match[1].strip(), alone))
    except (tokenize.TokenError, SyntaxError):
        pass  # the file is a finding of its own
    return found


def apply(
    path: str, findings: Iterable[ScanFinding], marks: Iterable[Suppression]
) -> tuple[list[ScanFinding], list[int]]:
    """Findings with the reasons that allow them, and the lines of suppressions that allow nothing.

    A suppression without a reason allows nothing and is a finding itself.
    """
    marks = list(marks)
    explained = [mark for mark in marks if _WORD.search(mark.reason)]
    used: set[int] = set()
    done = []
    for finding in findings:
        mark = next((m for m in explained if _covers(m, finding)), None)
        if mark is not None and finding.entry is not None:
            used.add(mark.line)
            finding = replace(finding, allowed=mark.reason[:300])
        done.append(finding)
    done += [
        ScanFinding(
            UNEXPLAINED,
            path,
            mark.line,
            1,
            mark.line,
            "a suppression without a reason allows nothing: write why",
        )
        for mark in marks
        if mark not in explained
    ]
    return done, [mark.line for mark in explained if mark.line not in used]


def _covers(mark: Suppression, finding: ScanFinding) -> bool:
    return finding.line <= mark.line <= finding.end_line or (mark.alone and mark.line == finding.line - 1)
