"""What one call of a known loader tells: name, address, version, hash, and whether it is data at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promotion_gate.provenance.scan.address import (
    find_address,
    has_suffix,
    is_local_host,
    is_remote,
    pin_of_address,
    pin_of_revision,
)
from promotion_gate.provenance.scan.entry import HOLE, UNTOLD, Answer, Entry, Known
from promotion_gate.provenance.scan.names import fold, items, maker, named_like_address
from promotion_gate.provenance.scan.scopes import Scope
from promotion_gate.provenance.scan.sources import UNNAMED, Loader, Sources

_METHODS = frozenset(
    [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "get",
        "head",
        "post",
        "put",
        "patch",
        "delete",
        "options",
    ]
)
_WRITING = re.compile(r"[wax]b\+?|[wax]\+?b?")
_CHECKING = frozenset(
    {"sha256", "sha512", "sha384", "md5", "file_digest", "compare_digest", "blake2b", "sha1"}
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call with what stands around it; ``args`` may be fewer than the node's, as in a partial."""

    node: ast.Call
    args: Sequence[ast.expr]
    scope: Scope
    around: ast.AST
    module: ast.AST

    def given(self, places: Sequence[str]) -> ast.expr | None:
        """The argument at the first of these places that is given."""
        for place in places:
            if place.startswith("."):
                found = self._made_with(place[1:])
            elif place == "@url":
                found = self._address_argument()
            elif place.isdigit():
                index = int(place)
                found = self.args[index] if index < len(self.args) else None
                if any(isinstance(arg, ast.Starred) for arg in self.args[: index + 1]):
                    found = None
            else:
                found = next((k.value for k in self.node.keywords if k.arg == place), None)
            if found is not None:
                return found
        return None

    def _made_with(self, place: str) -> ast.expr | None:
        """An argument of the call that made the object whose method this is."""
        function = self.node.func
        made = maker(function.value, self.scope) if isinstance(function, ast.Attribute) else None
        if made is None:
            return None
        if place.isdigit():
            index = int(place)
            return made.args[index] if index < len(made.args) else None
        return next((k.value for k in made.keywords if k.arg == place), None)

    def _address_argument(self) -> ast.expr | None:
        for arg in self.args[:2]:
            if not (isinstance(arg, ast.Constant) and arg.value in _METHODS):
                return arg
        return None

    @property
    def open_ended(self) -> bool:
        """Whether arguments may be given that cannot be seen: ``*args``, ``**options``."""
        return any(k.arg is None for k in self.node.keywords) or any(
            isinstance(a, ast.Starred) for a in self.args
        )


def called_entry(call: Call, dotted: str, rule: Loader, sources: Sources) -> Entry | None:
    """The entry that a call of a loader is, or None where it brings no data."""
    url = _address(call, rule)
    name = _name(call, dotted, rule)
    context = ""
    if rule.optional and not name:
        return None
    if rule.local_option and _has_option(call, rule.local_option):
        return None
    if rule.packaged and _is_packaged(name, rule):
        url = _first_remote(call, rule.files)
        if not url:
            return None
        name = ""
    if rule.when == "url":
        if not _may_be_address(call, rule, url):
            return None
        if not is_remote(url):
            context = "its argument is named like an address"
    elif rule.when in ("context", "sink"):
        context = _why_data(call, rule, url, sources)
        if not context:
            return None
    pinned, hashed = _pin(call, rule, name, url), _hash(call, rule)
    if hashed.known is Known.YES and not rule.hash_by and pinned.known is not Known.YES:
        pinned = Answer(Known.YES, "the hash it is checked against")
    home = rule.home.replace("{name}", _bare(name, rule)) if rule.home and name and HOLE not in name else ""
    return _entry(
        dotted,
        rule,
        dataset=_bare(name, rule),
        url=url,
        home=home,
        pinned=pinned,
        hashed=hashed,
        context=context,
        pins=_given_pins(call, rule, name),
    )


def _given_pins(call: Call, rule: Loader, name: str) -> str:
    """The version and the hash that a call gives, as far as they can be told, for the fingerprint."""
    given = [(call.given([place]), place) for place in (*rule.pin, *rule.hash)]
    texts = [f"{place}={_pin_text(node, call.scope)}" for node, place in given if node is not None]
    return " ".join([name if rule.version_in_name else "", *texts])


def _pin_text(node: ast.expr, scope: Scope) -> str:
    text = fold(node, scope)
    return ast.unparse(node) if text is None or HOLE in text else text


def handed_on(dotted: str, rule: Loader, how: str) -> Entry:
    """The entry that a loader is when it is named and not called."""
    name = _attribute_name(dotted, rule) if rule.name and rule.name[0].startswith("attribute") else ""
    pinned = Answer(Known.YES, rule.pinned_by) if rule.pinned_by else UNTOLD
    hashed = Answer(Known.YES, rule.hash_by) if rule.hash_by else UNTOLD
    return _entry(dotted, rule, dataset=name, pinned=pinned, hashed=hashed, context=how)


def _entry(
    dotted: str,
    rule: Loader,
    *,
    dataset: str = "",
    url: str = "",
    home: str = "",
    pinned: Answer = UNTOLD,
    hashed: Answer = UNTOLD,
    context: str = "",
    pins: str = "",
) -> Entry:
    loader = dotted.replace(f".{UNNAMED}", ".…")
    return Entry(
        1, 1, 1, loader, rule.family, rule.kind, "", dataset, url, home, pinned, hashed, context, pins
    )


def _name(call: Call, dotted: str, rule: Loader) -> str:
    if not rule.name:
        return ""
    if rule.name[0].startswith("attribute"):
        return _attribute_name(dotted, rule)
    node = call.given(rule.name)
    if node is None:
        return ""
    text = fold(node, call.scope)
    return next(iter(items(node, call.scope)), HOLE) if text is None else text


def _attribute_name(dotted: str, rule: Loader) -> str:
    parts = dotted.removesuffix("()").split(".")
    name = parts[-2] if rule.name[0] == "attribute-1" and len(parts) > 1 else parts[-1]
    return "" if name == UNNAMED else name.removeprefix(rule.strip)


def _bare(name: str, rule: Loader) -> str:
    """The name without the version in it."""
    if not rule.version_in_name or rule.version_in_name.startswith("^"):
        return name
    return re.sub(rule.version_in_name, "", name)


def _address(call: Call, rule: Loader) -> str:
    """The rule's template filled in; a part that is not known is a hole."""
    if not rule.url:
        return ""
    only = re.fullmatch(r"\{([^{}]+)\}", rule.url)
    if only is not None:
        node = call.given(only[1].split("|"))
        return "" if node is None else _text(node, call.scope)
    return re.sub(r"\{([^{}]+)\}", lambda m: _filled(call, m[1].split("|")), rule.url)


def _filled(call: Call, places: Sequence[str]) -> str:
    node = call.given(places)
    text = None if node is None else fold(node, call.scope)
    return text.partition("://")[2] or text if text else HOLE


def _text(node: ast.expr, scope: Scope) -> str:
    text = fold(node, scope)
    if text is None or not is_remote(text):
        texts = list(items(node, scope))
        remote = next((t for t in texts if is_remote(t)), None)
        if remote is not None:
            return remote
    if text is None:
        return HOLE
    if text.startswith("pipe:"):
        return find_address(text) or text
    return text


def _first_remote(call: Call, places: Sequence[str]) -> str:
    for place in places:
        node = call.given([place])
        if node is not None:
            text = _text(node, call.scope)
            if is_remote(text):
                return text
            if text.startswith(HOLE) and any(map(named_like_address, _leading(node))):
                return text
    return ""


def _is_packaged(name: str, rule: Loader) -> bool:
    return (
        name in rule.packaged or name.startswith((".", "/", "~")) or name.endswith((".py", ".csv", ".json"))
    )


def _has_option(call: Call, option: str) -> bool:
    keyword, _, value = option.partition("=")
    node = call.given([keyword])
    return node is not None and fold(node, call.scope) == value


def _may_be_address(call: Call, rule: Loader, url: str) -> bool:
    if is_remote(url) or url.startswith("pipe:"):
        return True
    if not url.startswith(HOLE):
        return False
    places = re.findall(r"\{([^{}]+)\}", rule.url)
    node = call.given(places[0].split("|")) if places else None
    return node is not None and any(map(named_like_address, _leading(node)))


def _leading(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions that the text begins with: the left end of a sum, a format or a join."""
    for _ in range(32):
        yield node
        if isinstance(node, ast.BinOp):
            node = node.left
        elif isinstance(node, ast.JoinedStr) and node.values:
            first = node.values[0]
            node = first.value if isinstance(first, ast.FormattedValue) else first
        elif isinstance(node, ast.Call) and node.args:
            node = node.args[0]
        elif isinstance(node, ast.List | ast.Tuple) and node.elts:
            node = node.elts[0]
        else:
            return


def _pin(call: Call, rule: Loader, name: str, url: str) -> Answer:
    node = call.given(rule.pin)
    if node is not None and not _is_none(node):
        revision = fold(node, call.scope) or HOLE
        if revision in rule.floating:
            return Answer(Known.NO, f"the version {revision!r:.80} moves")
        return pin_of_revision(revision)
    if rule.version_in_name and name:
        match = re.search(rule.version_in_name, name)
        if match is not None:
            return pin_of_revision(match[1])
    if rule.pinned_by:
        return Answer(Known.YES, rule.pinned_by)
    if url:
        return pin_of_address(url)
    if call.open_ended:
        return Answer(Known.UNKNOWN, "arguments are given at run time")
    if HOLE in name:
        return Answer(Known.UNKNOWN, "the name is given at run time")
    return Answer(Known.NO, "no revision or version")


def _hash(call: Call, rule: Loader) -> Answer:
    node = call.given(rule.hash)
    if node is not None:
        if _is_none(node) or (isinstance(node, ast.Constant) and node.value is False):
            return Answer(Known.NO, "the hash is switched off")
        if isinstance(node, ast.Dict) and not node.keys:
            return Answer(Known.NO, "the registry of hashes is empty")
        text = fold(node, call.scope)
        if text is None and not isinstance(node, ast.Dict):
            return Answer(Known.UNKNOWN, "the hash is set at run time")
        weak = " (MD5, which can be forged)" if text and re.fullmatch(r"(?:md5:)?[0-9a-f]{32}", text) else ""
        return Answer(Known.YES, f"a given hash{weak}")
    if rule.hash_by:
        return Answer(Known.YES, rule.hash_by)
    if _used_names(call.around, call.module) & _CHECKING:
        return Answer(Known.UNKNOWN, "hashlib is used in the same function")
    if call.open_ended and rule.hash:
        return Answer(Known.UNKNOWN, "arguments are given at run time")
    return Answer(Known.NO)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _why_data(call: Call, rule: Loader, url: str, sources: Sources) -> str:
    """Why an HTTP answer is taken for data; nothing where it does not look so."""
    if _method(call) not in ("", "GET", "POST"):
        return ""
    if not url and not rule.url.endswith("}"):
        return ""
    used = _used_names(call.around, call.module)
    sink = next((name for name in sorted(used) if name in sources.sinks), "")
    if sink:
        return f"{sink} is used in the same function"
    if "open:write" in used:
        return "a file is written in the same function"
    if rule.when == "sink" or is_local_host(url):
        return ""
    if any(
        k.arg == "stream" and isinstance(k.value, ast.Constant) and k.value.value for k in call.node.keywords
    ):
        return "the answer is streamed"
    if is_remote(url) and has_suffix(url, sources.data_suffixes):
        return "the address ends like data"
    return ""


def _method(call: Call) -> str:
    """The HTTP method where it is an argument, in capitals."""
    first = call.given(["method"]) or (call.args[0] if call.args else None)
    if isinstance(first, ast.Constant) and first.value in _METHODS:
        return str(first.value).upper()
    return ""


def _used_names(around: ast.AST, module: ast.AST) -> frozenset[str]:
    """What a function, or a module outside its functions, names; ``open:write`` for a file it writes."""
    cached: frozenset[str] | None = getattr(around, "_promotion_gate_names", None)
    if cached is not None:
        return cached
    names: set[str] = set()
    stack: list[ast.AST] = list(ast.iter_child_nodes(around))
    while stack:
        node = stack.pop()
        if around is module and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Call) and _opens_for_writing(node):
            names.add("open:write")
        stack.extend(ast.iter_child_nodes(node))
    found = frozenset(names)
    around._promotion_gate_names = found  # type: ignore[attr-defined]
    return found


def _opens_for_writing(node: ast.Call) -> bool:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name != "open":
        return False
    modes = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
    return any(
        isinstance(m, ast.Constant) and isinstance(m.value, str) and _WRITING.fullmatch(m.value)
        for m in modes
    )
