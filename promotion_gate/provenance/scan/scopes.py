"""The scopes of a Python file and what their names are bound to.

Flow-insensitive on purpose: a name that is a data loader on any path is taken for one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(slots=True)
class Scope:
    """The names of a module, class body, function or comprehension, and the scope around it."""

    parent: Scope | None
    node: ast.AST
    module: Module
    names: dict[str, list[Binding]] = field(default_factory=dict)
    is_class: bool = False

    def bind(self, name: str, binding: Binding) -> None:
        self.names.setdefault(name, []).append(binding)

    def lookup(self, name: str) -> list[Binding] | None:
        """What the name is bound to in the nearest scope that binds it."""
        scope: Scope | None = self
        first = True
        while scope is not None:
            if (first or not scope.is_class) and name in scope.names:
                return scope.names[name]
            scope, first = scope.parent, False
        return None


@dataclass(frozen=True, slots=True)
class Binding:
    """One thing that a name is bound to: a module or member (``dotted``), or an expression with a suffix."""

    dotted: str = ""
    expr: ast.expr | None = None
    suffix: str = ""
    scope: Scope | None = None
    default_only: bool = False


OPAQUE = Binding()
"""Bound to something of which nothing is known: a parameter, a local function or class."""


class Module:
    """The names of a whole file: star imports and attributes of ``self`` besides."""

    def __init__(self, tree: ast.Module, known: Callable[[str], bool]) -> None:
        self.known = known
        self.stars: list[str] = []
        self.attributes: dict[str, list[Binding]] = {}
        # By the identity of an expression of the tree, which lives as long as this. Filled in before the
        # answer is known, so that what refers to itself ends.
        self.resolved: dict[int, str | None] = {}
        self.folded: dict[tuple[int, str], tuple[str, ...]] = {}
        self.top = Scope(None, tree, self)
        collect(self.top, tree.body)


def function_scope(node: Function, parent: Scope) -> Scope:
    """The scope of a function: its parameters hide what they are named like."""
    scope = Scope(parent, node, parent.module)
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    for arg, default in [
        *zip(positional, defaults, strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]:
        scope.bind(
            arg.arg, Binding(expr=default, scope=parent, default_only=True) if default is not None else OPAQUE
        )
    for rest in (args.vararg, args.kwarg):
        if rest is not None:
            scope.bind(rest.arg, OPAQUE)
    if isinstance(node, ast.Lambda):
        collect(scope, [ast.Expr(node.body)])
    else:
        collect(scope, node.body)
    return scope


def class_scope(node: ast.ClassDef, parent: Scope) -> Scope:
    """The scope of a class body, whose names its methods see through ``self``."""
    scope = Scope(parent, node, parent.module, is_class=True)
    collect(scope, node.body)
    for name, bindings in scope.names.items():
        for of in ("self", "cls", node.name):
            parent.module.attributes.setdefault(f"{of}.{name}", []).extend(bindings)
    return scope


def comprehension_scope(generators: Sequence[ast.comprehension], node: ast.AST, parent: Scope) -> Scope:
    """The scope of a comprehension."""
    scope = Scope(parent, node, parent.module)
    for generator in generators:
        _bind_target(scope, generator.target, generator.iter, "[]")
    return scope


def collect(scope: Scope, body: Sequence[ast.AST]) -> None:
    """Bind what these statements bind, those of inner functions and classes left out."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind in _HIDDEN:
            if kind is ast.FunctionDef or kind is ast.AsyncFunctionDef or kind is ast.ClassDef:
                scope.bind(node.name, OPAQUE)  # type: ignore[attr-defined]
            continue
        if kind in _BINDERS:
            _BINDERS[kind](scope, node)
        if kind is ast.Constant or kind is ast.Name:
            continue
        for name in node._fields:
            value = getattr(node, name, None)
            if type(value) is list:
                stack.extend(v for v in value if isinstance(v, ast.AST))
            elif isinstance(value, ast.AST):
                stack.append(value)


def _imported(scope: Scope, node: ast.Import) -> None:
    for alias in node.names:
        if alias.asname:
            scope.bind(alias.asname, Binding(alias.name))
        else:
            root = alias.name.partition(".")[0]
            scope.bind(root, Binding(root))


def _imported_from(scope: Scope, node: ast.ImportFrom) -> None:
    module = "." * node.level + (node.module or "")
    for alias in node.names:
        if alias.name == "*":
            scope.module.stars.append(module)
        else:
            scope.bind(alias.asname or alias.name, Binding(f"{module}.{alias.name}"))


def _assigned(scope: Scope, node: ast.Assign) -> None:
    for target in node.targets:
        _bind_target(scope, target, node.value)


def _annotated(scope: Scope, node: ast.AnnAssign | ast.NamedExpr) -> None:
    if node.value is not None:
        _bind_target(scope, node.target, node.value)


def _looped(scope: Scope, node: ast.For | ast.AsyncFor) -> None:
    _bind_target(scope, node.target, node.iter, "[]")


def _managed(scope: Scope, node: ast.With | ast.AsyncWith) -> None:
    for item in node.items:
        if item.optional_vars is not None:
            _bind_target(scope, item.optional_vars, item.context_expr)


def _named_error(scope: Scope, node: ast.ExceptHandler) -> None:
    if node.name:
        scope.bind(node.name, OPAQUE)


_BINDERS: dict[type[ast.AST], Any] = {
    ast.Import: _imported,
    ast.ImportFrom: _imported_from,
    ast.Assign: _assigned,
    ast.AnnAssign: _annotated,
    ast.NamedExpr: _annotated,
    ast.For: _looped,
    ast.AsyncFor: _looped,
    ast.With: _managed,
    ast.AsyncWith: _managed,
    ast.ExceptHandler: _named_error,
}
_HIDDEN = frozenset(
    {
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Lambda,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
    }
)


def _bind_target(scope: Scope, target: ast.expr, value: ast.expr, suffix: str = "") -> None:
    if isinstance(target, ast.Name):
        scope.bind(target.id, Binding(expr=value, suffix=suffix, scope=scope))
    elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        binding = Binding(expr=value, suffix=suffix, scope=scope)
        scope.module.attributes.setdefault(f"{target.value.id}.{target.attr}", []).append(binding)
    elif isinstance(target, ast.Starred):
        _bind_target(scope, target.value, value, suffix)
    elif isinstance(target, ast.Tuple | ast.List):
        values = value.elts if isinstance(value, ast.Tuple | ast.List) and not suffix else None
        if values is not None and len(values) == len(target.elts):
            for part, of in zip(target.elts, values, strict=True):
                _bind_target(scope, part, of)
        else:
            for part in target.elts:
                _bind_target(scope, part, value, suffix + "[]")
