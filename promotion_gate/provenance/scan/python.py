"""Where data enters in Python source, by its syntax tree: nothing is imported or run."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from promotion_gate.provenance.scan import shell
from promotion_gate.provenance.scan.call import Call, called_entry, handed_on
from promotion_gate.provenance.scan.entry import HOLE, Entry, Unreadable
from promotion_gate.provenance.scan.names import fold, items, resolve
from promotion_gate.provenance.scan.scopes import (
    Module,
    Scope,
    class_scope,
    comprehension_scope,
    function_scope,
)
from promotion_gate.provenance.scan.sources import Sources

_NESTED = 3
_MAX_CODE = 300
Stack = list[tuple[ast.AST, Scope, ast.AST]]
"""Nodes to look at, each with its scope and the function or module around it."""


def scan_python(source: str, sources: Sources, *, nested: int = 0) -> list[Entry | Unreadable]:
    """Every place in Python source where data enters.

    Source that cannot be parsed is one :class:`Unreadable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is no concern of the scan
            tree = ast.parse(source)
    except SyntaxError as error:
        return [Unreadable(error.lineno or 1, f"no valid Python: {error.msg}")]
    except (RecursionError, MemoryError):
        return [Unreadable(1, "nested too deeply to be read")]
    except ValueError as error:
        return [Unreadable(1, f"no valid Python: {error}")]
    if not sources.python_triggers.search(source.encode("utf-8", "replace")):
        return []
    try:
        return list(_Scan(tree, source, sources, nested).entries())
    except RecursionError:
        return [Unreadable(1, "nested too deeply to be read")]


def decode(content: bytes) -> str:
    """Python source as text, by its own encoding mark.

    Raises
    ------
    SyntaxError, UnicodeDecodeError: it is none.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


class _Scan:
    def __init__(self, tree: ast.Module, source: str, sources: Sources, nested: int) -> None:
        self.sources, self.source, self.nested = sources, source, nested
        self.lines: list[bytes] | None = None
        self.columns: tuple[int, list[int]] = (0, [])
        self.module = Module(tree, lambda dotted: sources.loader(sources.canonical(dotted)) is not None)
        self.calls: list[tuple[ast.Call, Scope, ast.AST]] = []
        self.references: list[
            tuple[ast.expr, Scope, str, bool]
        ] = []  # with an alias, and whether it is a base
        self.imports: list[tuple[ast.ImportFrom, ast.alias]] = []
        self.loaded: set[str] = set()
        self.called_names: set[str] = set()
        self._survey(tree)

    def entries(self) -> Iterator[Entry | Unreadable]:
        handled: set[int] = set()
        for node, scope, around in self.calls:
            dotted = resolve(node.func, scope)
            if dotted is None:
                continue
            yield from self._called(node, self.sources.canonical(dotted), scope, around, handled)
        for expr, scope, alias, is_base in self.references:
            if id(expr) in handled or (alias and alias in self.called_names):
                continue
            dotted = resolve(expr, scope)
            rule = self.sources.loader(self.sources.canonical(dotted)) if dotted else None
            if (
                dotted
                and rule
                and (rule.when == "always" or (is_base and rule.when == "url" and rule.kind != "table"))
            ):
                how = "a class is derived from it" if is_base else "handed on without being called here"
                yield self._positioned(handed_on(self.sources.canonical(dotted), rule, how), expr)
        yield from self._unused_imports()

    def _called(
        self, node: ast.Call, dotted: str, scope: Scope, around: ast.AST, handled: set[int]
    ) -> Iterator[Entry | Unreadable]:
        call = Call(node, node.args, scope, around, self.module.top.node)
        if dotted == "functools.partial()" or dotted.endswith("functools.partial"):
            inner = resolve(node.args[0], scope) if node.args else None
            if inner is None:
                return
            handled.add(id(node.args[0]))
            call, dotted = replace(call, args=node.args[1:]), self.sources.canonical(inner)
        rule = self.sources.loader(dotted)
        if rule is not None:
            entry = called_entry(call, dotted, rule, self.sources)
            if entry is not None:
                self._note_name(node.func)
                yield self._positioned(entry, node)
            return
        if dotted in ("builtins.exec", "builtins.eval") and self.nested < _NESTED:
            yield from self._inner_python(node, scope)
        elif dotted in self.sources.shell_calls:
            yield from self._inner_shell(node, dotted, scope)

    def _inner_python(self, node: ast.Call, scope: Scope) -> Iterator[Entry]:
        text = fold(node.args[0], scope) if node.args else None
        if text and HOLE not in text:
            for found in scan_python(text, self.sources, nested=self.nested + 1):
                if isinstance(found, Entry):
                    yield self._positioned(found, node)

    def _inner_shell(self, node: ast.Call, dotted: str, scope: Scope) -> Iterator[Entry]:
        text = _command_line(node, dotted, scope)
        if text:
            for entry in shell.scan_shell(text, self.sources, nested=self.nested + 1):
                if isinstance(entry, Entry):
                    yield self._positioned(entry, node)

    def _unused_imports(self) -> Iterator[Entry]:
        for node, alias in self.imports:
            name = alias.asname or alias.name
            dotted = self.sources.canonical(f"{node.module}.{alias.name}")
            rule = self.sources.loader(dotted)
            if name not in self.loaded and rule is not None and rule.when == "always":
                entry = handed_on(dotted, rule, "imported and not used here: other files may call it")
                yield self._positioned(entry, alias)

    def _note_name(self, function: ast.expr) -> None:
        if isinstance(function, ast.Name):
            self.called_names.add(function.id)

    def _positioned(self, entry: Entry, node: ast.expr | ast.alias) -> Entry:
        if self.lines is None:
            self.lines = self.source.encode("utf-8", "replace").splitlines()
        first, last = node.lineno, node.end_lineno or node.lineno
        lines = self.lines[first - 1 : last]
        if lines and node.end_col_offset is not None:
            lines[-1] = lines[-1][: node.end_col_offset]
            lines[0] = lines[0][node.col_offset :]
        code = " ".join(b" ".join(lines).decode("utf-8", "replace").split())
        column = self._column(first, node.col_offset)
        return replace(entry, line=first, column=column, end_line=last, code=_shortened(code))

    def _column(self, line: int, offset: int) -> int:
        """The column of an offset in bytes; the table of a line that is not ASCII is made once."""
        content = self.lines[line - 1] if self.lines and line <= len(self.lines) else b""
        if content.isascii():
            return offset + 1
        if self.columns[0] != line:
            self.columns = (line, [i for i, byte in enumerate(content) if byte & 0xC0 != 0x80])
        return bisect_left(self.columns[1], offset) + 1

    # The survey: one walk that makes the scopes and remembers what to ask of them.

    def _survey(self, tree: ast.Module) -> None:
        stack: Stack = [(n, self.module.top, tree) for n in tree.body]
        while stack:
            node, scope, around = stack.pop()
            kind = type(node)
            if kind is ast.Constant:
                continue
            if kind is ast.Call:
                self._survey_call(node, scope, around, stack)  # type: ignore[arg-type]
            elif kind is ast.Name:
                self._survey_name(node, scope)  # type: ignore[arg-type]
            elif kind is ast.Attribute:
                self.references.append((node, scope, "", False))  # type: ignore[arg-type]
                _push_inner(node, scope, around, stack, self.loaded)  # type: ignore[arg-type]
            elif kind in _SCOPED:
                self._survey_scope(node, scope, around, stack)
            elif kind is ast.ImportFrom:
                self.imports += [(node, alias) for alias in node.names if not node.level]  # type: ignore[attr-defined, misc]
            elif kind is ast.Assign and isinstance(node.value, ast.Name | ast.Attribute):  # type: ignore[attr-defined]
                self._survey_alias(node, scope, around, stack)  # type: ignore[arg-type]
            elif kind is ast.AnnAssign:
                stack += [(n, scope, around) for n in (node.target, node.value) if n is not None]  # type: ignore[attr-defined]
            else:
                _push_children(node, scope, around, stack)

    def _survey_call(self, node: ast.Call, scope: Scope, around: ast.AST, stack: Stack) -> None:
        self.calls.append((node, scope, around))
        args: Sequence[ast.expr] = node.args
        if isinstance(node.func, ast.Name):
            self.loaded.add(node.func.id)
            if node.func.id in ("isinstance", "issubclass", "cast"):
                args = args[:1] if node.func.id != "cast" else args[1:]
        _push_inner(node.func, scope, around, stack, self.loaded)
        stack += [(arg, scope, around) for arg in args]
        stack += [(keyword.value, scope, around) for keyword in node.keywords]

    def _survey_name(self, node: ast.Name, scope: Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self.loaded.add(node.id)
            self.references.append((node, scope, "", False))

    def _survey_alias(self, node: ast.Assign, scope: Scope, around: ast.AST, stack: Stack) -> None:
        target = node.targets[0]
        alias = target.id if isinstance(target, ast.Name) else ""
        self.references.append((node.value, scope, alias, False))
        _push_inner(node.value, scope, around, stack, self.loaded)

    def _survey_scope(self, node: ast.AST, scope: Scope, around: ast.AST, stack: Stack) -> None:
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                self.references.append((base, scope, "", True))
                _push_inner(base, scope, around, stack, self.loaded)
            stack += [(n, scope, around) for n in node.decorator_list]
            stack += [(k.value, scope, around) for k in node.keywords]
            inner = class_scope(node, scope)
            stack += [(n, inner, around) for n in node.body]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = function_scope(node, scope)
            outside = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            if isinstance(node, ast.Lambda):
                stack.append((node.body, inner, around))
            else:
                outside += node.decorator_list
                stack += [(n, inner, node) for n in node.body]
            stack += [(n, scope, around) for n in outside]
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            inner = comprehension_scope(node.generators, node, scope)
            _push_children(node, inner, around, stack)


_SCOPED = frozenset(
    {
        ast.ClassDef,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.Lambda,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
    }
)


def _push_children(node: ast.AST, scope: Scope, around: ast.AST, stack: Stack) -> None:
    for name in node._fields:
        value = getattr(node, name, None)
        if type(value) is list:
            stack.extend((v, scope, around) for v in value if isinstance(v, ast.AST))
        elif isinstance(value, ast.AST):
            stack.append((value, scope, around))


def _push_inner(
    node: ast.expr,
    scope: Scope,
    around: ast.AST,
    stack: Stack,
    loaded: set[str],
) -> None:
    """Push what stands inside a chain of attributes, whose links are no references of their own."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if isinstance(node, ast.Name):
        loaded.add(node.id)
    else:
        stack.append((node, scope, around))


def _shortened(code: str) -> str:
    """Long code as its beginning and a hash of all of it."""
    if len(code) <= _MAX_CODE:
        return code
    return f"{code[:_MAX_CODE]} {hashlib.sha256(code.encode('utf-8', 'replace')).hexdigest()}"


def _command_line(node: ast.Call, dotted: str, scope: Scope) -> str:
    """The command line that a call of ``subprocess`` or the like runs."""
    import shlex

    place = re.match(r"os\.(spawn|exec)(l|v)", dotted)
    if place is not None:
        rest = node.args[1:] if place[1] == "spawn" else node.args
        words = [fold(arg, scope) or HOLE for arg in rest]
        if place[2] == "v":
            words = list(items(rest[1], scope, holes=True)) if len(rest) > 1 else []
        return shlex.join([*words[:1], *words[2:]] if place[2] == "l" else words)
    if dotted.endswith((".run_cell_magic", ".run_line_magic")):
        named = fold(node.args[0], scope) if node.args else ""
        shells = {"bash", "sh", "zsh", "script", "sx", "system", "!"}
        return fold(node.args[-1], scope) or "" if named in shells else ""
    if not node.args:
        first = next(
            (k.value for k in node.keywords if k.arg in ("args", "cmd", "command", "bash_command")), None
        )
    else:
        first = node.args[0]
    if first is None:
        return ""
    if isinstance(first, ast.List | ast.Tuple | ast.BinOp | ast.Name):
        words = list(items(first, scope, holes=True))
        if words:
            return shlex.join(words)
    text = fold(first, scope)
    if text and " " not in text and len(node.args) > 1:
        return shlex.join([text, *(fold(arg, scope) or HOLE for arg in node.args[1:])])
    return text or ""
