"""Static rules for the two archives that PyTorch writes: ``torch.export.save`` and ``torch.save``.

Neither is harmless for being an archive. A ``.pt2`` runs code on load in five ways that involve no pickle at
all or only a hidden one: operator names are looked up from ``torch`` with ``getattr``, shape expressions pass
through SymPy's ``eval``, guards and placeholder names are pasted into source that is executed, tree specs
import modules, and a record may be marked to be unpickled. Every one is held to a list here, and a file that
was not written the way PyTorch writes it is refused rather than understood.

These rules are the first of three walls: the loader unpickles tensors and listed classes alone, and does so
in a sandbox.
"""

from __future__ import annotations

import ast
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promotion_gate.evidence.kinds import open_archive

MAX_MEMBERS = 50_000
MAX_JSON_BYTES = 64 << 20
MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 1_000_000
MAX_TOLD = 20
_LOCAL_HEADER_BYTES = 30

_TEXT_MEMBERS = r"\.format_version|\.storage_alignment|byteorder|version|\.data/(?:version|serialization_id)"
_PT2_MEMBER = re.compile(
    rf"(?:{_TEXT_MEMBERS}|archive_format|archive_version|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(?:weight_[0-9]+|model_weights_config\.json)"
    r"|data/constants/(?:tensor_[0-9]+|model_constants_config\.json))"
)
_CHECKPOINT_MEMBER = re.compile(rf"(?:{_TEXT_MEMBERS}|data\.pkl|data/[0-9]+)")

_TENSOR_GLOBALS = frozenset(
    [
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
        "torch Size",
        "torch device",
        "collections OrderedDict",
        "builtins set",
        "__builtin__ set",
        *(
            f"torch {kind}Storage"
            for kind in (
                "Float",
                "Double",
                "Half",
                "BFloat16",
                "Long",
                "Int",
                "Short",
                "Char",
                "Byte",
                "Bool",
            )
        ),
        *(
            f"torch {dtype}"
            for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8")
        ),
    ]
)
_MODULE_GLOBAL = re.compile(r"torch\.nn\.modules\.[a-z_]+ [A-Z][A-Za-z0-9]*")
# torch.save writes protocol 2, whose only way to name a class is GLOBAL.
_FOREIGN_OPCODES = frozenset(["STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID"])

_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims)\.(?!_?from_file|_?save|_?load)[A-Za-z0-9_]+\.[A-Za-z0-9_]+"
    r"|torch\.ops\.higher_order\.(?:wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|_operator\.(?:getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(?:ceil|floor|trunc|sqrt)"
    r"|torch\.(?:sym_int|sym_float|sym_max|sym_min|sym_not|sym_sum|sym_ite|sym_sqrt)"
)
_NAME = re.compile(r"[A-Za-z0-9_]{0,256}")
_KEY = re.compile(r"[A-Za-z0-9_.]{0,512}")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_.:,+\-> /]{0,512}")
_TREE_TYPES = frozenset([None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"])
_EXPRESSION_WORDS = frozenset(
    [
        "True", "False", "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min",
        "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Where", "Eq", "Ne",
        "Gt", "Ge", "Lt", "Le", "Equality", "Unequality", "GreaterThan", "LessThan",
        "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not", "Abs", "floor", "ceiling",
        "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal",
        "ToFloat", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "LShift", "RShift",
        "Identity", "Piecewise", "int_oo", "oo",
    ]
)  # fmt: skip
_EXPRESSION_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,9}")
_EXPRESSION_TEXT = re.compile(r"[a-z]{1,4}[0-9]{1,9}|[0-9.e+\-]{1,60}")
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.Tuple, ast.expr_context, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_GUARD_METHODS = frozenset(["size", "stride", "dim", "storage_offset", "numel"])
_GUARD_NODES = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Constant, ast.Name, ast.Subscript,
    ast.Attribute, ast.Call, ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def exported_program_violations(path: Path) -> Iterator[str]:
    """What in a ``.pt2`` file was not written by ``torch.export.save``, or would run code on load."""
    try:
        with open_archive(path) as archive:
            names = yield from _member_violations(archive, _PT2_MEMBER)
            if names is None:
                return
            if "models/model.json" not in names:
                yield "models/model.json is missing: not written by torch.export.save"
                return
            for inner in (
                "data/weights/model_weights_config.json",
                "data/constants/model_constants_config.json",
            ):
                yield from (f"{inner}: {what}" for what in _payload_violations(_json(archive, names, inner)))
            program = _json(archive, names, "models/model.json")
            yield from (f"models/model.json: {what}" for what in _program_violations(program))
            sample = names.get("data/sample_inputs/model.pt")
            if sample is not None:
                yield from _sample_violations(archive, sample)
    except _REFUSALS as error:
        yield f"cannot be read: {_brief(error)}"


def checkpoint_violations(path: Path, *, modules: bool) -> Iterator[str]:
    """What in a ``torch.save`` file is neither a tensor nor, if ``modules``, a class of ``torch.nn``."""
    try:
        with open_archive(path) as archive:
            yield from _checkpoint_violations(archive, modules=modules)
    except _REFUSALS as error:
        yield f"cannot be read: {_brief(error)}"


# What zipfile, pickle and JSON raise over a file that somebody wrote to break them; NotImplementedError is
# zipfile's word for a compression it does not know.
_REFUSALS = (
    zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
    NotImplementedError, IndexError, RuntimeError, OverflowError, zlib.error, struct.error, EOFError,
)  # fmt: skip


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _member_violations(
    archive: zipfile.ZipFile, allowed: re.Pattern[str]
) -> Generator[str, None, dict[str, zipfile.ZipInfo] | None]:
    """Yield violations of the archive's shape; return its members by name without the root folder.

    Where there is a violation it returns None: the members of such an archive are not read.
    """
    infos = archive.infolist()
    roots = {info.filename.split("/", 1)[0] for info in infos}
    if len(infos) > MAX_MEMBERS or len(roots) != 1:
        yield "the archive does not have one root folder of reasonable size"
        return None
    found = [*_place_violations(archive, infos), *_name_violations(infos, allowed)]
    yield from found[:MAX_TOLD]
    if found:
        return None
    damaged = archive.testzip()
    if damaged is not None:
        yield f"member {damaged[:80]!r} does not agree with the archive's directory: damaged or forged"
        return None
    return {info.filename.split("/", 1)[-1]: info for info in infos}


def _place_violations(archive: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Members must lie one behind the other, stored as they are, from the first byte to the directory."""
    placed = sorted(infos, key=lambda info: info.header_offset)
    if archive.comment or placed[0].header_offset != 0:
        yield "the archive carries bytes before or after its members"
    ends = [info.header_offset for info in placed[1:]] + [archive.start_dir]
    for info, end in zip(placed, ends, strict=True):
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            yield f"member {info.filename[:80]!r} is compressed or encrypted"
        elif info.file_size != info.compress_size:
            yield f"member {info.filename[:80]!r} says two different sizes"
        elif info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > end:
            yield f"member {info.filename[:80]!r} overlaps what follows it"


def _name_violations(infos: Sequence[zipfile.ZipInfo], allowed: re.Pattern[str]) -> Iterator[str]:
    names: set[str] = set()
    for info in infos:
        name = info.filename.split("/", 1)[-1]
        if name in names:
            yield f"member {name[:80]!r} is there twice"
        if allowed.fullmatch(name) is None:
            yield f"member {name[:80]!r} is not one that PyTorch writes for a plain model"
        names.add(name)


def _checkpoint_violations(archive: zipfile.ZipFile, *, modules: bool) -> Iterator[str]:
    names = yield from _member_violations(archive, _CHECKPOINT_MEMBER)
    if names is None:
        return
    if "data.pkl" not in names:
        yield "data.pkl is missing: not written by torch.save"
        return
    info = names["data.pkl"]
    if info.file_size > MAX_PICKLE_BYTES:
        yield f"data.pkl is larger than {MAX_PICKLE_BYTES:,} bytes"
        return
    for reference in sorted(foreign_references(archive.read(info), modules=modules)):
        yield f"data.pkl: {reference}"


def foreign_references(stream: bytes, *, modules: bool) -> set[str]:
    """What a pickle refers to besides tensors and, if ``modules``, classes of ``torch.nn``."""
    foreign: set[str] = set()
    end = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
        if count >= MAX_OPCODES:
            return foreign | {f"has more than {MAX_OPCODES:,} opcodes"}
        end = position or 0
        if opcode.name == "GLOBAL":
            reference = str(argument)
            if reference not in _TENSOR_GLOBALS and not (modules and _MODULE_GLOBAL.fullmatch(reference)):
                foreign.add(f"refers to {reference.replace(' ', '.', 1)[:120]}")
        elif opcode.name in _FOREIGN_OPCODES:
            foreign.add(f"has the opcode {opcode.name}, which torch.save does not write")
    if end + 1 != len(stream):
        foreign.add("goes on after its end")
    return foreign


def _sample_violations(archive: zipfile.ZipFile, sample: zipfile.ZipInfo) -> Iterator[str]:
    if sample.file_size == 0:
        return
    with archive.open(sample) as member, open_archive(member) as inner:
        for what in _checkpoint_violations(inner, modules=False):
            yield f"data/sample_inputs/model.pt: {what}"


def _json(archive: zipfile.ZipFile, names: Mapping[str, zipfile.ZipInfo], name: str) -> Any:
    info = names[name]
    if info.file_size > MAX_JSON_BYTES:
        raise ValueError(f"{name} is larger than {MAX_JSON_BYTES:,} bytes")
    return json.loads(archive.read(info), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a JSON key is there twice")
    return table


def _payload_violations(config: Any) -> Iterator[str]:
    for name, entry in config["config"].items():
        if entry["use_pickle"] is not False:
            yield f"{str(name)[:80]!r} is stored as a pickle"
        if re.fullmatch(r"(?:weight|tensor)_[0-9]+", entry["path_name"]) is None:
            yield f"{str(name)[:80]!r} points to {entry['path_name'][:80]!r}"
        if _KEY.fullmatch(name) is None:
            yield f"{str(name)[:80]!r} is not a parameter's name"


def _program_violations(program: Any) -> Iterator[str]:
    for guard in program.get("guards_code") or ():
        if not _guard_is_plain(guard):
            yield f"guard {str(guard)[:80]!r} is more than a comparison of shapes"
    found: set[str] = set()
    _walk({key: value for key, value in program.items() if key != "guards_code"}, found)
    yield from sorted(found)


def _walk(value: Any, found: set[str], key: str = "") -> None:
    """Hold every string of a serialised graph to the pattern of its place."""
    if isinstance(value, dict):
        is_node = "target" in value and "inputs" in value
        if is_node and _OPERATOR.fullmatch(str(value["target"])) is None:
            found.add(f"operator {str(value['target'])[:80]!r} is not on the list of tensor operators")
        for name, item in value.items():
            if _KEY.fullmatch(name) is None:
                found.add(f"name {name[:80]!r} is not a plain name")
            elif name == "metadata" and is_node:
                continue  # stack traces and origins: looked up by name, never called, and free text
            elif name == "treespec_namedtuple_fields" and item:
                found.add("treespec_namedtuple_fields is not empty")
            elif not (name == "target" and is_node):
                _walk(item, found, name)
    elif isinstance(value, list):
        for item in value:
            _walk(item, found, key)
    elif isinstance(value, str):
        _walk_text(value, found, key)


def _walk_text(text: str, found: set[str], key: str) -> None:
    if key in ("in_spec", "out_spec"):
        if text and not _tree_is_plain(json.loads(text)[1]):
            found.add(f"{key} is more than tuples, lists and dicts")
    elif key == "expr_str":
        if not _expression_is_plain(text):
            found.add(f"shape expression {text[:80]!r} is not arithmetic on sizes")
    elif key == "name":
        if _NAME.fullmatch(text) is None:
            found.add(f"name {text[:80]!r} is not a plain name")
    elif _PLAIN_TEXT.fullmatch(text) is None:
        found.add(f"text {text[:80]!r} under {key!r} is not plain")


def _tree_is_plain(tree: Any) -> bool:
    if tree["type"] not in _TREE_TYPES:
        return False
    context = tree["context"]
    keys = [] if context in (None, "null") else json.loads(context)
    return (
        isinstance(keys, list)
        and all(isinstance(key, str | int) and _KEY.fullmatch(str(key)) for key in keys)
        and all(_tree_is_plain(child) for child in tree["children_spec"])
    )


def _parsed(text: Any) -> Sequence[ast.AST]:
    """Every node of a short Python expression; none where it is not one."""
    if not isinstance(text, str) or len(text) > 2000:
        return ()
    try:
        return list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()


def _expression_is_plain(text: str) -> bool:
    """True for arithmetic such as ``FloorDiv(Symbol('s31', integer=True), Integer(2))``."""
    nodes = _parsed(text)
    return bool(nodes) and all(_is_expression_node(node) for node in nodes)


def _is_expression_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _EXPRESSION_WORDS or _EXPRESSION_SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_WORDS
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _EXPRESSION_TEXT.fullmatch(node.value) is not None
    return isinstance(node, _EXPRESSION_NODES)


def _guard_is_plain(guard: Any) -> bool:
    """True for comparisons such as ``L['x'].size()[2] >= 3``."""
    nodes = _parsed(guard)
    return bool(nodes) and all(_is_guard_node(node) for node in nodes)


def _is_guard_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id == "L"
    if isinstance(node, ast.Attribute):
        return node.attr in _GUARD_METHODS or node.attr in ("shape", "ndim")
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in _GUARD_METHODS and not node.keywords
    return isinstance(node, _GUARD_NODES) and not isinstance(node, ast.Pow | ast.LShift)
