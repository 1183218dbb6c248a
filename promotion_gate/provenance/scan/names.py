"""What a name in Python stands for, as far as it can be told without running anything."""

from __future__ import annotations

import ast
import builtins
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urljoin

from promotion_gate.provenance.scan.address import is_remote
from promotion_gate.provenance.scan.entry import HOLE
from promotion_gate.provenance.scan.scopes import Binding, Scope, comprehension_scope
from promotion_gate.provenance.scan.sources import UNNAMED

_DEPTH = 24
_MAX_TEXT = 4000
_MAX_ITEMS = 64
_KEPT = {
    "strip",
    "rstrip",
    "lstrip",
    "lower",
    "removesuffix",
    "encode",
    "decode",
    "as_posix",
    "__str__",
    "prepare",
}
_URL_WORD = re.compile(
    r"(?i)(?:^|_|[a-z](?=[A-Z]))(?:url|uri|href|link|remote|endpoint|http)s?(?:$|_|\d)|(?:Url|URL|Uri|URI)s?$"
)


def resolve(node: ast.expr, scope: Scope, depth: int = 0) -> str | None:
    """The dotted name that an expression stands for, such as ``boto3.client().download_file``.

    A call's value is written ``()``, an item of it ``[]``.
    """
    if depth > _DEPTH:
        return None
    if isinstance(node, ast.Name):
        return _resolve_name(node.id, scope, depth)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name):
            held = _first(scope.module.attributes.get(f"{node.value.id}.{node.attr}"), depth)
            if held is not None:
                return held
        base = resolve(node.value, scope, depth + 1)
        return None if base is None else f"{base}.{node.attr}"
    if isinstance(node, ast.Call):
        return _resolve_call(node, scope, depth)
    if isinstance(node, ast.Await | ast.NamedExpr | ast.Starred):
        return resolve(node.value, scope, depth + 1)
    if isinstance(node, ast.Subscript):
        return _resolve_item(node, scope, depth)
    if isinstance(node, ast.IfExp):
        return resolve(node.body, scope, depth + 1) or resolve(node.orelse, scope, depth + 1)
    if isinstance(node, ast.BoolOp):
        return next((d for v in node.values if (d := resolve(v, scope, depth + 1))), None)
    return None


def maker(node: ast.expr, scope: Scope) -> ast.Call | None:
    """The call whose value an expression is, also through a name."""
    for _ in range(_DEPTH):
        if isinstance(node, ast.Call):
            return node
        if isinstance(node, ast.Name):
            bindings = scope.lookup(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            bindings = scope.module.attributes.get(f"{node.value.id}.{node.attr}")
        else:
            return None
        bound = next(
            (b for b in bindings or () if b.expr is not None and b.scope is not None and not b.suffix), None
        )
        if bound is None or bound.expr is None or bound.scope is None:
            return None
        node, scope = bound.expr, bound.scope
    return None


def _first(bindings: list[Binding] | None, depth: int) -> str | None:
    for binding in bindings or ():
        if binding.dotted:
            return binding.dotted
        if binding.expr is not None and binding.scope is not None and not binding.default_only:
            memory, key = binding.scope.module.resolved, id(binding.expr)
            if key not in memory:
                memory[key] = None
                memory[key] = resolve(binding.expr, binding.scope, depth + 1)
            found = memory[key]
            if found is not None:
                return found + binding.suffix
    return None


def _resolve_name(name: str, scope: Scope, depth: int) -> str | None:
    bindings = scope.lookup(name)
    if bindings is not None:
        return _first(bindings, depth)
    if name in ("__import__", "getattr", "vars", "exec", "eval", "globals", "open"):
        return f"builtins.{name}"
    if name == "get_ipython":
        return "IPython.get_ipython"
    if hasattr(builtins, name):
        return None
    return next((d for module in scope.module.stars if scope.module.known(d := f"{module}.{name}")), None)


def _resolve_call(node: ast.Call, scope: Scope, depth: int) -> str | None:
    function = resolve(node.func, scope, depth + 1)
    if function is None:
        return None
    args = node.args
    if function == "builtins.getattr" and len(args) >= 2:
        base, name = resolve(args[0], scope, depth + 1), fold(args[1], scope, depth + 1)
        return None if base is None else f"{base}.{name if name and HOLE not in name else UNNAMED}"
    if function == "builtins.vars" and args:
        base = resolve(args[0], scope, depth + 1)
        return None if base is None else f"{base}.__dict__"
    if function in ("importlib.import_module", "builtins.__import__", "importlib.__import__") and args:
        name = fold(args[0], scope, depth + 1)
        if not name or HOLE in name:
            return None
        whole = (
            function == "importlib.import_module"
            or len(args) > 3
            or any(k.arg == "fromlist" for k in node.keywords)
        )
        return _imported_name(name, whole)
    if (
        function in ("functools.partial", "functools.lru_cache()", "functools.cache", "functools.wraps()")
        and args
    ):
        return resolve(args[0], scope, depth + 1)
    return f"{function}()"


def _imported_name(name: str, whole: bool) -> str:
    # __import__("a.b", fromlist=[…]) gives a.b, of which code may still ask for ".b" by the whole path.
    return name if whole else name.partition(".")[0]


def _resolve_item(node: ast.Subscript, scope: Scope, depth: int) -> str | None:
    base = resolve(node.value, scope, depth + 1)
    if base is None:
        return None
    key = fold(node.slice, scope, depth + 1)
    if base.endswith(".__dict__"):
        return f"{base.removesuffix('.__dict__')}.{key if key and HOLE not in key else UNNAMED}"
    if base == "sys.modules":
        return key if key and HOLE not in key else None
    return f"{base}[]"


def fold(node: ast.AST | None, scope: Scope, depth: int = 0) -> str | None:
    """The text of an expression, :data:`HOLE` for what is not known of it; None for no text at all."""
    if node is None or depth > _DEPTH:
        return None
    text = _fold(node, scope, depth)
    return text if text is None or len(text) <= _MAX_TEXT else text[:_MAX_TEXT]


def _fold(node: ast.AST, scope: Scope, depth: int) -> str | None:
    kind = type(node)
    if kind is ast.Constant:
        value = node.value  # type: ignore[attr-defined]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return None if value is None or value is ... else str(value)
    handler = _FOLDERS.get(kind)
    found: str | None = handler(node, scope, depth + 1) if handler else None
    return found


def _fold_name(node: ast.Name, scope: Scope, depth: int) -> str | None:
    return _fold_bindings(scope.lookup(node.id), depth)


def _fold_bindings(bindings: list[Binding] | None, depth: int) -> str | None:
    texts: list[str] = []
    for binding in bindings or ():
        if binding.expr is None or binding.scope is None:
            continue
        if binding.suffix in ("", "[]"):
            texts += _bound_texts(binding.expr, binding.scope, binding.suffix, depth)
    return _preferred(texts)


def _bound_texts(expr: ast.expr, scope: Scope, suffix: str, depth: int) -> tuple[str, ...]:
    memory, key = scope.module.folded, (id(expr), suffix)
    if key not in memory:
        memory[key] = ()
        if suffix == "[]":
            memory[key] = tuple(islice(items(expr, scope, depth), _MAX_ITEMS))
        else:
            text = fold(expr, scope, depth)
            memory[key] = () if text is None else (text,)
    return memory[key]


def _preferred(texts: Sequence[str]) -> str | None:
    """Of several possible texts a remote address, else the first."""
    return next((t for t in texts if is_remote(t)), texts[0] if texts else None)


def _fold_attribute(node: ast.Attribute, scope: Scope, depth: int) -> str | None:
    if isinstance(node.value, ast.Name):
        return _fold_bindings(scope.module.attributes.get(f"{node.value.id}.{node.attr}"), depth)
    return None


def _fold_joined(node: ast.JoinedStr, scope: Scope, depth: int) -> str:
    parts = []
    for value in node.values:
        part = value.value if isinstance(value, ast.FormattedValue) else value
        folded = fold(part, scope, depth)
        parts.append(HOLE if folded is None else folded)
    return "".join(parts)


def _fold_operation(node: ast.BinOp, scope: Scope, depth: int) -> str | None:
    left = fold(node.left, scope, depth)
    if isinstance(node.op, ast.Mod):
        if left is None:
            return None
        values = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
        filled = iter([fold(v, scope, depth) or HOLE for v in values])
        return re.sub(r"%(?:\(\w+\))?[-+ #0-9.]*[a-zA-Z]", lambda _: next(filled, HOLE), left)
    right = fold(node.right, scope, depth)
    if left is None and right is None:
        return None
    left, right = HOLE if left is None else left, HOLE if right is None else right
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Div):
        return posixpath.join(left, right)
    return None


def _fold_choice(node: ast.IfExp | ast.BoolOp, scope: Scope, depth: int) -> str | None:
    options = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
    return _preferred([text for option in options if (text := fold(option, scope, depth)) is not None])


def _fold_item(node: ast.Subscript, scope: Scope, depth: int) -> str | None:
    held = node.value
    if isinstance(held, ast.Name):
        key = fold(node.slice, scope, depth)
        for binding in scope.lookup(held.id) or ():
            if isinstance(binding.expr, ast.Dict) and binding.scope is not None and not binding.suffix:
                pairs = zip(binding.expr.keys, binding.expr.values, strict=True)
                texts = [
                    text
                    for k, v in pairs
                    if (key is None or fold(k, binding.scope, depth) == key)
                    and (text := fold(v, binding.scope, depth)) is not None
                ]
                return _preferred(texts)
            if (
                isinstance(binding.expr, ast.List | ast.Tuple)
                and binding.scope is not None
                and not binding.suffix
            ):
                return _preferred(list(items(binding.expr, binding.scope, depth)))
    return None


def _fold_call(node: ast.Call, scope: Scope, depth: int) -> str | None:
    function = node.func
    args = [fold(arg, scope, depth) for arg in node.args[:64]]
    if isinstance(function, ast.Attribute):
        if function.attr == "format":
            return _fold_format(function.value, args, node.keywords, scope, depth)
        if function.attr in _KEPT or (
            function.attr in ("replace", "joinpath") and not resolve(function, scope, depth)
        ):
            text = fold(function.value, scope, depth)
            if text is not None and function.attr == "joinpath":
                return posixpath.join(text, *(arg or HOLE for arg in args))
            return text
        if function.attr == "join" and isinstance(function.value, ast.Constant) and node.args:
            separator = fold(function.value, scope, depth) or ""
            return separator.join(items(node.args[0], scope, depth, holes=True)) or None
    dotted = resolve(function, scope, depth)
    name = function.id if isinstance(function, ast.Name) else dotted
    if name in (
        "str",
        "pathlib.Path",
        "Path",
        "pathlib.PurePosixPath",
        "urllib.parse.unquote",
        "os.fspath",
        "yarl.URL",
        "httpx.URL",
    ):
        return args[0] if args else None
    if dotted in ("os.path.join", "posixpath.join") and args:
        return posixpath.join(*(arg or HOLE for arg in args))
    if dotted == "urllib.parse.urljoin" and len(args) == 2:
        try:
            return urljoin(args[0] or HOLE, args[1] or HOLE)
        except ValueError:
            return None
    if dotted and dotted.endswith((".prepare_request", ".build_request")) and args:
        return args[-1]
    if dotted in ("os.environ.get", "os.getenv") and len(args) > 1:
        return args[1]
    if dotted in ("urllib.request.Request", "requests.Request", "httpx.Request"):
        place = 0 if dotted.startswith("urllib") else 1
        return (
            args[place]
            if len(args) > place
            else next((fold(k.value, scope, depth) for k in node.keywords if k.arg == "url"), None)
        )
    return None


def _fold_format(
    template: ast.expr, args: Sequence[str | None], keywords: Sequence[ast.keyword], scope: Scope, depth: int
) -> str | None:
    text = fold(template, scope, depth)
    if text is None:
        return None
    named = {k.arg: fold(k.value, scope, depth) for k in keywords if k.arg}
    counter = iter(range(len(args)))

    def filled(match: re.Match[str]) -> str:
        field_name = match[1]
        if field_name in named:
            return named[field_name] or HOLE
        index = int(field_name) if field_name.isdigit() else next(counter, -1)
        return args[index] or HOLE if 0 <= index < len(args) else HOLE

    return re.sub(r"\{(\w*)[^{}]*\}", filled, text)


def items(node: ast.expr, scope: Scope, depth: int = 0, *, holes: bool = False) -> Iterator[str]:
    """The texts in a list, tuple, set or dict display, in a comprehension, or behind a name of one."""
    if depth > _DEPTH:
        return
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        for part in node.elts:
            text = fold(part, scope, depth + 1)
            if text is not None or holes:
                yield HOLE if text is None else text
            elif isinstance(part, ast.List | ast.Tuple | ast.Dict):
                yield from items(part, scope, depth + 1)
    elif isinstance(node, ast.Dict):
        for value in node.values:
            text = fold(value, scope, depth + 1)
            yield from [text] if text is not None else items(value, scope, depth + 1)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        text = fold(node.elt, comprehension_scope(node.generators, node, scope), depth + 1)
        if text is not None:
            yield text
    elif isinstance(node, ast.Name):
        for binding in scope.lookup(node.id) or ():
            if binding.expr is not None and binding.scope is not None and not binding.suffix:
                yield from _bound_texts(binding.expr, binding.scope, "[]", depth + 1)
    elif isinstance(node, ast.Call):
        for arg in node.args[:4]:
            yield from items(arg, scope, depth + 1)


def named_like_address(node: ast.AST) -> bool:
    """Whether an expression is called something that stands for an address: ``data_url``, ``args.uri``."""
    if isinstance(node, ast.Name):
        return bool(_URL_WORD.search(node.id))
    if isinstance(node, ast.Attribute):
        return bool(_URL_WORD.search(node.attr))
    if isinstance(node, ast.Call):
        return named_like_address(node.func)
    if isinstance(node, ast.Subscript):
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return bool(_URL_WORD.search(key.value))
        return named_like_address(node.value)
    if isinstance(node, ast.Await | ast.Starred):
        return named_like_address(node.value)
    return False


_FOLDERS: dict[type[ast.AST], Any] = {
    ast.Name: _fold_name,
    ast.Attribute: _fold_attribute,
    ast.JoinedStr: _fold_joined,
    ast.BinOp: _fold_operation,
    ast.IfExp: _fold_choice,
    ast.BoolOp: _fold_choice,
    ast.Subscript: _fold_item,
    ast.Call: _fold_call,
    ast.Await: lambda node, scope, depth: fold(node.value, scope, depth),
    ast.NamedExpr: lambda node, scope, depth: fold(node.value, scope, depth),
}
