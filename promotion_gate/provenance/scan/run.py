"""One scan from files to judged findings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import UsageError
from promotion_gate.provenance.scan.baseline import Baseline
from promotion_gate.provenance.scan.entry import Entry, Unreadable
from promotion_gate.provenance.scan.files import (
    DOCKERFILE,
    JENKINSFILE,
    MAKEFILE,
    NOTEBOOK,
    PYTHON,
    SHELL,
    YAML,
    LeftOut,
    Refused,
    SourceFile,
    source_files,
)
from promotion_gate.provenance.scan.judge import UNREADABLE, ScanFinding, fingerprinted, judge
from promotion_gate.provenance.scan.notebook import scan_notebook
from promotion_gate.provenance.scan.pipeline import scan_yaml
from promotion_gate.provenance.scan.python import decode, scan_python
from promotion_gate.provenance.scan.recipes import scan_dockerfile, scan_jenkinsfile, scan_makefile
from promotion_gate.provenance.scan.registered import Registered
from promotion_gate.provenance.scan.shell import scan_shell
from promotion_gate.provenance.scan.sources import Sources
from promotion_gate.provenance.scan.suppress import apply, of_lines, suppressions

_TEXT_SCANS = {
    SHELL: scan_shell,
    DOCKERFILE: scan_dockerfile,
    MAKEFILE: scan_makefile,
    YAML: scan_yaml,
    JENKINSFILE: scan_jenkinsfile,
}
_CONFIG_KEYS = {"sources", "exclude", "mirrors", "dbom", "baseline"}
_MAX_FINDINGS = 10_000


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """What ``[tool.promotion-gate.scan]`` of pyproject.toml says; paths are resolved beside that file."""

    sources: Sequence[Path] = ()
    exclude: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    dbom: Path | None = None
    baseline: Path | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """A finished scan: findings in order, what was not gone into, and how much was read."""

    findings: Sequence[ScanFinding]
    left_out: Sequence[LeftOut]
    idle: Sequence[tuple[str, int]]
    files: int
    lines: int
    gone: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def failing(self) -> list[ScanFinding]:
        return [finding for finding in self.findings if finding.fails]


def scan_entries(
    source: SourceFile, sources: Sources
) -> tuple[list[Entry | Unreadable], dict[int, str] | str]:
    """What one file holds, and its text (for a notebook its lines by number) for the suppressions in it."""
    try:
        text = decode(source.content) if source.kind == PYTHON else source.content.decode("utf-8-sig")
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return [Unreadable(1, "not UTF-8")], ""
    if source.kind == PYTHON:
        return _distinct(scan_python(text, sources)), text
    if source.kind == NOTEBOOK:
        notebook = scan_notebook(text, sources)
        return _distinct(notebook.found), notebook.lines
    return _distinct(_TEXT_SCANS[source.kind](text, sources)), text


def scan_folder(
    root: Path,
    sources: Sources,
    registered: Registered,
    *,
    exclude: Sequence[str] = (),
    mirrors: Sequence[str] = (),
    baseline: Baseline | None = None,
) -> Scan:
    """Scan a folder or a file.

    Raises
    ------
    UsageError: there is none.
    """
    findings: list[ScanFinding] = []
    left_out: list[LeftOut] = []
    idle: list[tuple[str, int]] = []
    kinds: dict[str, int] = {}
    lines = 0
    for item in source_files(root, exclude):
        if isinstance(item, LeftOut):
            left_out.append(item)
        elif isinstance(item, Refused):
            findings.append(_unreadable(item.path, Unreadable(1, item.reason), item.digest))
        else:
            found, unused = _scan_file(item, sources, registered, mirrors)
            findings += found
            idle += [(item.path, line) for line in unused]
            kinds[item.kind] = kinds.get(item.kind, 0) + 1
            lines += item.content.count(b"\n") + 1
    marked = fingerprinted(findings)
    if baseline is not None:
        marked = baseline.apply(marked)
    gone = baseline.gone(marked) if baseline is not None else 0
    return Scan(marked, left_out, idle, sum(kinds.values()), lines, gone, kinds)


def _scan_file(
    source: SourceFile, sources: Sources, registered: Registered, mirrors: Sequence[str]
) -> tuple[list[ScanFinding], list[int]]:
    entries, text = scan_entries(source, sources)
    if len(entries) > _MAX_FINDINGS:
        entries = [
            *entries[:_MAX_FINDINGS],
            Unreadable(1, f"more than {_MAX_FINDINGS:,} places; the rest is not listed"),
        ]
    odd = any(isinstance(entry, Unreadable) for entry in entries)
    digest = hashlib.sha256(source.content).hexdigest() if odd else ""
    found = [
        judge(source.path, entry, registered, mirrors)
        if isinstance(entry, Entry)
        else _unreadable(source.path, entry, digest)
        for entry in entries
    ]
    marks = suppressions(text, python=source.kind == PYTHON) if isinstance(text, str) else of_lines(text)
    return apply(source.path, found, marks)


def _distinct(entries: Sequence[Entry | Unreadable]) -> list[Entry | Unreadable]:
    """Each place once, whichever way it was come upon."""
    return list(
        {
            (e.line, e.column, e.loader) if isinstance(e, Entry) else (e.line, 0, e.reason): e
            for e in reversed(entries)
        }.values()
    )[::-1]


def _unreadable(path: str, what: Unreadable, digest: str) -> ScanFinding:
    message = f"cannot be scanned: {what.reason}"
    return ScanFinding(UNREADABLE, path, what.line, 1, what.line, message, digest=digest)


def read_settings(root: Path) -> ScanSettings:
    """The settings in the ``pyproject.toml`` of the scanned folder; none where it has none.

    Raises
    ------
    UsageError: they are malformed.
    """
    import tomllib

    path = (root if root.is_dir() else root.parent) / "pyproject.toml"
    if not path.is_file():
        return ScanSettings()
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}"[:300]) from None
    table = table.get("tool", {})
    table = table.get("promotion-gate", {}) if isinstance(table, dict) else {}
    table = table.get("scan", {}) if isinstance(table, dict) else {}
    return _settings(table, path)


def _settings(table: Any, path: Path) -> ScanSettings:
    where = f"[tool.promotion-gate.scan] in {path}"
    if not isinstance(table, dict) or table.keys() - _CONFIG_KEYS:
        unknown = ", ".join(sorted(table.keys() - _CONFIG_KEYS)) if isinstance(table, dict) else "no table"
        raise UsageError(
            f"{where}: {unknown} means nothing here", f"it knows {', '.join(sorted(_CONFIG_KEYS))}"
        )
    lists = {key: table.get(key, []) for key in ("sources", "exclude", "mirrors")}
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{where}: {key} is a list of texts")
    names = {key: table.get(key) for key in ("dbom", "baseline")}
    for key, value in names.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}: {key} is the path of a file")
    here = path.parent
    return ScanSettings(
        [here / name for name in lists["sources"]],
        lists["exclude"],
        lists["mirrors"],
        *(here / name if name else None for name in (names["dbom"], names["baseline"])),
    )
