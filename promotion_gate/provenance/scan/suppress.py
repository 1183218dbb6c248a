"""Inline suppressions: ``# promotion-gate: allow REASON`` on a finding's line, or alone above it.

A suppression covers one loader, or those that its reason names.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from promotion_gate.provenance.scan.judge import UNEXPLAINED, ScanFinding

_MARK = re.compile(r"#\s*promotion-gate:\s*allow\b[\s:–-]*(.*)$")
_WORD = re.compile(r"\w{2,}")
_NAME = re.compile(r"[^\s,;()'\"`]+")
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
    marks, found = list(marks), list(findings)
    explained = [mark for mark in marks if _WORD.search(mark.reason)]
    reasons: dict[int, str] = {}
    used: set[int] = set()
    for mark in explained:
        covered = _covered(mark, found)
        if covered:
            used.add(mark.line)
        for index in covered:
            reasons.setdefault(index, mark.reason[:300])
    done = [replace(f, allowed=reasons[i]) if i in reasons else f for i, f in enumerate(found)]
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


def _covered(mark: Suppression, findings: Sequence[ScanFinding]) -> list[int]:
    """The loaders that a suppression names, one of each name; where it names none, the one it stands at."""
    near = [i for i, finding in enumerate(findings) if finding.entry is not None and _covers(mark, finding)]
    words = {word.strip(".").casefold() for word in _NAME.findall(mark.reason)}
    nearest: dict[str, int] = {}
    # Beside a comment stands what begins last, below one what begins first.
    for index in sorted(near, key=lambda i: (findings[i].line, findings[i].column), reverse=mark.alone):
        for name in _names(findings[index]) & words:
            nearest[name] = index
        nearest[""] = index
    named = {index for name, index in nearest.items() if name}
    return sorted(named or nearest.values())


def _names(finding: ScanFinding) -> set[str]:
    """What a loader can be called by in a reason; a last name that is a plain word is no name."""
    entry = finding.entry
    if entry is None:
        return set()
    last = entry.loader.replace("()", "").rpartition(".")[2]
    names = {entry.loader, entry.dataset, entry.url, last if not last.islower() or "_" in last else ""}
    return {name.casefold() for name in names if name}


def _covers(mark: Suppression, finding: ScanFinding) -> bool:
    if mark.alone and mark.line == finding.line - 1:
        return True
    return finding.line <= mark.line <= finding.end_line
