"""Where data enters in YAML: CI workflows, Kubernetes and Kubeflow pipelines, MLproject, dvc.yaml."""

from __future__ import annotations

import ast
import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from promotion_gate.provenance.scan.address import (
    has_suffix,
    is_local_host,
    is_remote,
    pin_of_address,
    scheme,
)
from promotion_gate.provenance.scan.entry import HOLE, Answer, Entry, Known, Unreadable
from promotion_gate.provenance.scan.python import scan_python
from promotion_gate.provenance.scan.shell import scan_shell
from promotion_gate.provenance.scan.sources import Sources

_PROSE = frozenset(
    [
        "description",
        "name",
        "title",
        "summary",
        "message",
        "comment",
        "about",
        "help",
        "doc",
        "label",
        "caption",
    ]
)
_CODE = frozenset(["source", "code", "script"])
_WEB = frozenset({"http", "https", "ftp", "ftps"})
_PYTHON_SHELL = re.compile(r"python[\d.]*(?=\s|$)")
_MAX_SCALARS = 200_000
_MAX_DEPTH = 500
_EXPRESSION = re.compile(r"\$?\{\{(?:(?!\{\{|\}\}).)*\}\}")
_STEPS = frozenset(
    {"run", "script", "before_script", "after_script", "command", "cmd", "args", "inlinescript", "sh", "bash"}
)


@dataclass(slots=True)
class Scalar:
    """A text of a YAML file with the keys that lead to it; ``line`` and ``column`` count from 1.

    Texts of one mapping or list have the same ``owner``.
    """

    text: str
    line: int
    column: int
    path: tuple[str, ...]
    block: bool
    owner: int = 0


@dataclass(slots=True)
class Listing:
    """A list of nothing but texts, and the keys that lead to it."""

    items: list[Scalar]
    path: tuple[str, ...]
    owner: int


@dataclass(slots=True)
class Document:
    """The texts of a YAML file in order, and its lists of texts."""

    scalars: list[Scalar] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)


def scan_yaml(text: str, sources: Sources) -> list[Entry | Unreadable]:
    """Every place in a YAML file where data enters: shell and Python in it, and addresses that are inputs.

    A template that is no YAML yet is read as shell, line by line.
    """
    try:
        document = read_yaml(text)
    except yaml.YAMLError as error:
        found = scan_shell(_EXPRESSION.sub(HOLE, text), sources)
        if "{{" in text or "{%" in text:
            return found
        mark = getattr(error, "problem_mark", None)
        reason = f"no valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        return [*found, Unreadable(mark.line + 1 if mark else 1, reason[:200])]
    except (RecursionError, ValueError, MemoryError):
        return [Unreadable(1, "this YAML is too large or too deep to be read")]
    return list(_scan_document(document, sources))


def read_yaml(text: str) -> Document:
    """The texts of every document in a YAML stream, by its events: no tag is obeyed, no alias is followed.

    Raises
    ------
    yaml.YAMLError: it is none.
    ValueError: it holds more than 200,000 texts, or is nested more than 500 deep.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = Document()
    stack: list[_Frame] = []
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(stack) >= _MAX_DEPTH:
                raise ValueError("too deep")  # the parser's time grows with the square of the depth
            path = stack[-1].path_of_child() if stack else ()
            stack.append(
                _Frame(
                    isinstance(event, yaml.MappingStartEvent), path, number, stack[-1].ident if stack else 0
                )
            )
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            frame = stack.pop()
            if not frame.mapping and frame.items and frame.only_texts:
                document.listings.append(Listing(frame.items, frame.path, frame.owner))
            if stack:
                stack[-1].took(None)
        elif isinstance(event, yaml.AliasEvent) and stack:
            stack[-1].took(None)
        elif isinstance(event, yaml.ScalarEvent):
            if len(document.scalars) >= _MAX_SCALARS:
                raise ValueError("too many texts")
            frame_path = stack[-1].path_of_child() if stack else ()
            mark = event.start_mark
            assert mark is not None  # every event of a parsed stream has one
            scalar = Scalar(
                event.value,
                mark.line + 1,
                mark.column + 1,
                frame_path,
                event.style in ("|", ">"),
                stack[-1].ident if stack else 0,
            )
            if not stack or not stack[-1].awaits_key:
                document.scalars.append(scalar)
            if stack:
                stack[-1].took(scalar)
    return document


class _Frame:
    """A mapping or sequence that is being read."""

    def __init__(self, mapping: bool, path: tuple[str, ...], ident: int, owner: int) -> None:
        self.mapping, self.path, self.ident, self.owner = mapping, path, ident, owner
        self.key: str | None = None
        self.awaits_key = mapping
        self.items: list[Scalar] = []
        self.only_texts = True

    def path_of_child(self) -> tuple[str, ...]:
        return (*self.path, self.key or "")[-12:] if self.mapping and not self.awaits_key else self.path

    def took(self, scalar: Scalar | None) -> None:
        if self.mapping:
            if self.awaits_key:
                self.key = scalar.text if scalar is not None else ""
            self.awaits_key = not self.awaits_key
        elif scalar is None:
            self.only_texts = False
        else:
            self.items.append(scalar)


def _scan_document(document: Document, sources: Sources) -> Iterator[Entry | Unreadable]:
    variables = {
        s.path[-1]: s.text for s in document.scalars if s.path and re.fullmatch(r"[A-Z]\w*", s.path[-1])
    }
    interpreted = _interpreted(document)
    argv_items: set[int] = set()
    for listing in _command_lines(document):
        found = list(_scan_argv(listing, sources))
        if found:
            argv_items |= {id(item) for item in listing}
            yield from found
    for scalar in document.scalars:
        if id(scalar) not in argv_items:
            yield from _scan_scalar(scalar, sources, variables, python=scalar.owner in interpreted)


def _interpreted(document: Document) -> set[int]:
    """The mappings whose script is Python: ``shell: python`` beside it, or as a default."""
    owners, defaults = set(), set()
    for scalar in document.scalars:
        if scalar.path[-1:] == ("shell",) and _PYTHON_SHELL.match(scalar.text):
            owners.add(scalar.owner)
            if scalar.path[-3:] == ("defaults", "run", "shell"):
                defaults.add(scalar.path[:-3])
    shells = {s.owner for s in document.scalars if s.path[-1:] == ("shell",)}
    for scalar in document.scalars:
        inside = any(scalar.path[: len(base)] == base for base in defaults)
        if scalar.path[-1:] == ("run",) and inside and scalar.owner not in shells:
            owners.add(scalar.owner)
    for listing in document.listings:
        if listing.path[-1:] in (("command",), ("entrypoint",)) and _PYTHON_SHELL.match(
            posixpath.basename(listing.items[0].text)
        ):
            owners.add(listing.owner)
    return owners


def _command_lines(document: Document) -> Iterator[Sequence[Scalar]]:
    """Lists that are a command with its arguments; ``command`` and ``args`` of one container together."""
    by_owner: dict[int, dict[str, Listing]] = {}
    for listing in document.listings:
        key = listing.path[-1] if listing.path else ""
        if key in ("command", "args", "entrypoint", "cmd"):
            by_owner.setdefault(listing.owner, {})[key] = listing
        else:
            yield listing.items
    for parts in by_owner.values():
        names = [name for name in ("entrypoint", "command", "cmd", "args") if name in parts]
        yield [item for name in names for item in parts[name].items]


def _scan_argv(items: Sequence[Scalar], sources: Sources) -> Iterator[Entry]:
    texts = [item.text for item in items]
    name = posixpath.basename(texts[0])
    if name in ("sh", "bash", "ash", "dash", "zsh") or len(texts) < 2 or " " in texts[0]:
        return  # the scripts in it are texts of their own
    line = shlex.join(_EXPRESSION.sub(HOLE, text) for text in texts)
    for entry in scan_shell(line, sources):
        if isinstance(entry, Entry):
            first = items[0]
            yield replace(
                entry, line=first.line, end_line=items[-1].line, column=first.column, code=line[:300]
            )


def _scan_scalar(
    scalar: Scalar, sources: Sources, variables: dict[str, str], *, python: bool
) -> Iterator[Entry | Unreadable]:
    text, key = scalar.text, scalar.path[-1] if scalar.path else ""
    if key.lower() in _PROSE:
        return
    if is_remote(text) and not re.search(r"\s", text.strip()):
        yield from _address(scalar, sources)
        return
    shift = scalar.line if scalar.block else scalar.line - 1
    code = key in _CODE or key == "run"
    entries: list[Entry | Unreadable] = []
    if python and code:
        entries = _scan_python(text, sources)
    else:
        is_python = (code or "import " in text) and "\n" in text and _is_python(text)
        if is_python:
            entries = scan_python(text, sources)
        runs = not is_python and any(part.lower() in _STEPS for part in scalar.path[-2:])
        found = scan_shell(_EXPRESSION.sub(HOLE, text), sources, variables)
        entries += [entry for entry in found if runs or isinstance(entry, Entry)]
    for entry in entries:
        if isinstance(entry, Unreadable):
            yield replace(entry, line=entry.line + shift)
        else:
            column = entry.column if scalar.block else entry.column + scalar.column - 1
            yield replace(entry, line=entry.line + shift, end_line=entry.end_line + shift, column=column)


def _scan_python(text: str, sources: Sources) -> list[Entry | Unreadable]:
    """Python in which an expression of the workflow can stand for a part."""
    found = scan_python(text, sources)
    if any(isinstance(part, Unreadable) for part in found) and "{{" in text:
        found = scan_python(_EXPRESSION.sub("None", text), sources)
    return found


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _address(scalar: Scalar, sources: Sources) -> Iterator[Entry]:
    """An address that stands in the file by itself, where its key does not say that it is no input."""
    text = scalar.text.strip()
    keys = {key.lower() for key in scalar.path}
    if keys & sources.yaml_outputs or is_local_host(text):
        return
    data = has_suffix(text, sources.data_suffixes)
    named = any(re.search(r"(?i)data|train|corpus|input", key) for key in scalar.path[-2:])
    if scheme(text) in _WEB and not data:
        return
    if scheme(text) in ("git", "ssh", "git+https", "git+ssh", "oci") or (
        scheme(text) == "github" and not named
    ):
        return
    yield Entry(
        scalar.line,
        scalar.column,
        scalar.line,
        ".".join(scalar.path[-2:]) or "text",
        sources.yaml_family,
        "download",
        text[:300],
        url=text,
        pinned=pin_of_address(text),
        hashed=Answer(Known.NO),
        context="an address that is given as an input",
    )
