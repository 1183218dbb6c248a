"""Where data enters in a Jupyter notebook: its code cells, their ``!`` lines and ``%%bash`` cells."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promotion_gate.provenance.scan.entry import HOLE, Entry, Unreadable
from promotion_gate.provenance.scan.files import PYTHON, SHELL, kind_of
from promotion_gate.provenance.scan.python import scan_python
from promotion_gate.provenance.scan.shell import scan_shell
from promotion_gate.provenance.scan.sources import Sources

_SHELL_CELL = re.compile(r"\s*%%(?:bash|sh|zsh|system|sx|!|script\s+(?:--\S+\s+)*(?:ba|z|k|da)?sh)\b.*")
_PYTHON_CELL = re.compile(r"\s*%%(?:time|timeit|capture|prun|python3?|pypy|memit|mprun|debug)\b.*")
_WRITTEN_CELL = re.compile(r"\s*%%(?:writefile|file)\s+(?:-a\s+)?(\S+)\s*")
_SHELL_LINE = re.compile(r"(?:[^=!%()]*=[ \t]*)?(!!?|%sx\s|%system\s|%%sx\s)(.*)")
_TIMED_LINE = re.compile(r"(?:[^=!%()]*=[ \t]*)?%{1,2}(?:time|timeit|prun|memit|mprun|debug|pdb)\s+(.*)")
_OPTION = re.compile(r"-\w\s*\d*(?:\s+|$)")
_MAGIC_LINE = re.compile(r"(?:[\w, ]+=[ \t]*)?(?:[%?]|[\w.]+\?\??[ \t]*$)")
_MAX_UNFOUND = 64


@dataclass(frozen=True, slots=True)
class NotebookScan:
    """What was found, and the plain source by line of the file, for comments."""

    found: Sequence[Entry | Unreadable]
    lines: dict[int, str]


def scan_notebook(text: str, sources: Sources) -> NotebookScan:
    """Every place in a notebook where data enters, by the line of the file; ``context`` tells the cell."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        return NotebookScan(
            [Unreadable(getattr(error, "lineno", 1), f"no notebook: no valid JSON ({error})"[:200])], {}
        )
    cells = _code_cells(notebook)
    if cells is None:
        return NotebookScan([Unreadable(1, "no notebook: it has no list of cells")], {})
    placed = list(_placed(cells, text))
    lines = {number: line for cell in placed for number, line in zip(cell.numbers, cell.lines, strict=True)}
    return NotebookScan(list(_scan_cells(placed, sources)), lines)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A code cell: its number, its lines, and the line of the file that each stands on."""

    number: int
    lines: list[str]
    numbers: list[int]


def _code_cells(notebook: Any) -> list[tuple[int, str]] | None:
    if not isinstance(notebook, dict):
        return None
    cells = notebook.get("cells")
    if cells is None and isinstance(notebook.get("worksheets"), list):  # nbformat 3
        cells = [
            c for sheet in notebook["worksheets"] if isinstance(sheet, dict) for c in sheet.get("cells", ())
        ]
    if not isinstance(cells, list):
        return None
    found = []
    for number, cell in enumerate(cells, 1):
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source", cell.get("input", ""))
            if isinstance(source, list):
                source = "".join(part for part in source if isinstance(part, str))
            if isinstance(source, str):
                found.append((number, source))
    return found


def _placed(cells: Sequence[tuple[int, str]], text: str) -> Iterator[_Cell]:
    """Cells with the lines of the file that their lines stand on."""
    position, line, unfound = 0, 1, 0
    for number, source in cells:
        lines, numbers = source.split("\n"), []
        for content in lines:
            at = _find(text, content, position) if unfound < _MAX_UNFOUND else -1
            unfound += at < 0 and bool(content.strip())
            if at >= 0:
                line += text.count("\n", position, at)
                position = at
            numbers.append(line)
        yield _Cell(number, lines, numbers)


def _find(text: str, content: str, position: int) -> int:
    if not content.strip():
        return -1
    for ascii_only in (False, True):
        at = text.find(json.dumps(content, ensure_ascii=ascii_only)[1:-1], position)
        if at >= 0:
            return at
    return -1


def _scan_cells(cells: Sequence[_Cell], sources: Sources) -> Iterator[Entry | Unreadable]:
    python: list[str] = []
    origin: list[tuple[_Cell, int]] = []
    for cell in cells:
        first = next((line for line in cell.lines if line.strip()), "")
        if _SHELL_CELL.fullmatch(first):
            at = cell.lines.index(first) + 1
            script = "\n".join([""] * at + [_braced(line) for line in cell.lines[at:]])
            for found in scan_shell(script, sources):
                yield _moved(found, cell, found.line - 1)
            continue
        if first.lstrip().startswith("%%") and not _PYTHON_CELL.fullmatch(first):
            yield from _written_cell(cell, first, sources)
            continue
        lines = []
        continued = ""
        for index, line in enumerate(cell.lines):
            plain = line.lstrip(" \t")
            shell = _SHELL_LINE.match(plain)
            lines.append("" if continued else _plain_line(line))
            command = continued + (line if continued else shell[2] if shell else "")
            continued = f"{command[:-1]} " if command.endswith("\\") else ""
            for found in scan_shell(_braced(command), sources) if command and not continued else ():
                yield _moved(found, cell, index)
        if not _parses(lines):
            yield Unreadable(cell.numbers[0] if cell.numbers else 1, f"cell {cell.number} is no valid Python")
            continue
        python += lines
        origin += [(cell, index) for index in range(len(lines))]
    for found in scan_python("\n".join(python), sources):
        if isinstance(found, Entry) and found.line <= len(origin):
            yield _moved(found, *origin[found.line - 1])
        elif not isinstance(found, Entry):
            yield found


def _moved(found: Entry | Unreadable, cell: _Cell, index: int) -> Entry | Unreadable:
    index = min(index, len(cell.numbers) - 1)
    line = cell.numbers[index]
    if isinstance(found, Unreadable):
        return replace(found, line=line)
    where = f"cell {cell.number}, line {index + 1}"
    context = f"{found.context}; {where}" if found.context else where
    last = min(index + found.end_line - found.line, len(cell.numbers) - 1)
    return replace(found, line=line, end_line=cell.numbers[last], context=context)


def _written_cell(cell: _Cell, first: str, sources: Sources) -> Iterator[Entry | Unreadable]:
    """The script that ``%%writefile get.sh`` writes."""
    match = _WRITTEN_CELL.fullmatch(first)
    kind = kind_of(match[1].rpartition("/")[2]) if match else ""
    if kind in (SHELL, PYTHON):
        at = cell.lines.index(first) + 1
        script = "\n".join([""] * at + cell.lines[at:])
        for found in scan_shell(script, sources) if kind == SHELL else scan_python(script, sources):
            yield _moved(found, cell, found.line - 1)


def _plain_line(line: str) -> str:
    """A line of a cell as Python: a magic becomes ``pass``, or the statement that it times."""
    plain = line.lstrip(" \t")
    blank = line[: len(line) - len(plain)]
    timed = _TIMED_LINE.match(plain)
    if timed is not None:
        statement = timed[1].strip()
        for _ in range(8):
            statement = _OPTION.sub("", statement, count=1) if statement.startswith("-") else statement
        return blank + statement if statement and _parses([statement]) else f"{blank}pass"
    if not (_SHELL_LINE.match(plain) or _MAGIC_LINE.match(plain)) or _is_python(line):
        return line
    return f"{blank}pass"


def _is_python(line: str) -> bool:
    """Whether a line that looks like a magic is the continuation of an expression, such as ``% (a, b)``."""
    return line.lstrip().startswith(("% (", "% "))


def _braced(line: str) -> str:
    """IPython puts Python values in for ``{name}``; they are not known here."""
    return re.sub(r"\{[A-Za-z_][\w.\[\]'\"]*\}", HOLE, line)


def _parses(lines: Sequence[str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
