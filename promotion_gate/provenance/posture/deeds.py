"""What a command of a pipeline does: whether it validates data, or trains.

Told from the command and its operands, never from its options: ``train.py --no-validate-data`` validates
nothing.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence

from promotion_gate.provenance.scan.words import RESERVED, Simple, Word, simple_commands, without_assignments

_DATA = r"(?:the[-_])?(?:data|datasets?|inputs?)"
_CHECKING_NAME = re.compile(
    rf"(?:validate|verify|check)[-_]?{_DATA}|data[-_](?:validation|check|quality|tests?)"
)
_TOOLS = frozenset(
    {"great_expectations", "great-expectations", "tfdv", "deepchecks", "cleanvision", "evidently"}
)
_SUBCOMMANDS = {
    "promotion-gate": (("validate",), ("dbom", "verify"), ("dbom", "coverage"), ("verify",)),
    "gx": (("checkpoint",),),
    "soda": (("scan",),),
    "dbt": (("test",),),
    "frictionless": (("validate",),),
}
_SUMS = re.compile(r"sha(?:256|512)sum")
_HELP = frozenset({"-h", "--help", "--version"})
_PYTHON = re.compile(r"(?:python|pypy|ipython)[\d.]*")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "source", "."})
_LAUNCHERS = frozenset(
    {
        "torchrun",
        "accelerate",
        "deepspeed",
        "horovodrun",
        "uv",
        "poetry",
        "papermill",
        "Rscript",
        "lightning",
        "yolo",
    }
)
_TRAINING = re.compile(r"train|fit|fine[-_]?tun", re.IGNORECASE)
_TRAINING_FILE = re.compile(r"[\w/.-]*train[\w-]*\.(?:sh|py)", re.IGNORECASE)
_MODULES = (
    r"great_expectations|pandera|tensorflow_data_validation|deepchecks|cleanvision|evidently|frictionless"
)
_PYTHON_CHECKS = re.compile(
    rf"\s*(?:import|from)\s+(?:{_MODULES})\b|\s*from\s+promotion_gate\s+import\b.*\b(?:open_dataset|verified_path)\b"
    r"|.*\bpromotion_gate\.(?:open_dataset|verified_path)\("
    rf"|(?!\s*(?:async\s+)?def\s).*(?<![\w.'\"])(?:\w+\.)?(?:validate|verify|check)_?{_DATA}\(",
    re.IGNORECASE,
)
_MAX_LINE = 2000
_CARRIERS = frozenset({"sudo", "env", "time", "nohup", "exec", "command", "xvfb-run", "timeout", "srun"})


def validations(text: str, *, python: bool = False) -> Iterator[tuple[int, str]]:
    """Where a text validates data: offset and words."""
    if python:
        yield from _in_python(text)
        return
    for simple, words in _commands(text):
        if _validates([word.text for word in words]):
            yield words[0].offset, _told(words)
        elif simple.heredoc and _PYTHON.fullmatch(words[0].text):
            for offset, line in _in_python(simple.heredoc):
                yield simple.heredoc_offset + offset, line


def trainings(text: str) -> Iterator[tuple[int, str]]:
    """Where a text trains: offset and words."""
    for _, words in _commands(text):
        if _trains([word.text for word in words]):
            yield words[0].offset, _told(words)
    fitting = text.find(".fit(")
    if fitting >= 0:
        yield fitting, ".fit("


def _commands(text: str) -> Iterator[tuple[Simple, Sequence[Word]]]:
    for simple in sorted(simple_commands(text), key=lambda s: s.words[0].offset):
        words = list(without_assignments(simple.words))
        at = 0
        while at < len(words) and (words[at].text in RESERVED or words[at].text in _CARRIERS):
            at += 1
        if at < len(words):
            yield simple, words[at:]


def _told(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words[:20])[:200]


def _operands(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith("-")]


def _validates(words: Sequence[str]) -> bool:
    name = posixpath.basename(words[0])
    if not _HELP.isdisjoint(words):
        return False
    if name in ("uv", "poetry", "pdm", "pipenv", "conda") and words[1:2] == ["run"] and len(words) > 2:
        return _validates(words[2:])
    if _PYTHON.fullmatch(name):
        return _validates_in_python(words[1:])
    if name in _SHELLS:
        script = next(iter(_operands(words[1:])), "")
        inner = next((after for before, after in itertools.pairwise(words) if before == "-c"), "")
        return any(True for _ in validations(inner)) if inner else _is_checking(script)
    operands = _operands(words[1:])
    if name in _SUBCOMMANDS:
        return any(tuple(operands[: len(verbs)]) == verbs for verbs in _SUBCOMMANDS[name])
    if name in ("pytest", "py.test"):
        return any("data" in operand for operand in operands)
    if name == "make":
        return any(_is_checking(operand) for operand in operands)
    if _SUMS.fullmatch(name):
        return not {"-c", "--check"}.isdisjoint(words)
    return name in _TOOLS or (name not in ("echo", "printf", "cat", "git") and _is_checking(name))


def _validates_in_python(words: Sequence[str]) -> bool:
    for at, word in enumerate(words):
        rest = words[at + 1 : at + 2]
        if word == "-c":
            return any(True for piece in rest for _ in _in_python(piece.replace(";", "\n")))
        if word == "-m" and rest:
            return _validates([rest[0], *words[at + 2 :]]) or _is_checking(rest[0].rpartition(".")[2])
        if not word.startswith("-"):
            return _is_checking(posixpath.basename(word))
    return False


def _is_checking(name: str) -> bool:
    stem = posixpath.basename(name).partition("@")[0].rsplit(".", 1)[0]
    return bool(_CHECKING_NAME.search(stem[:_MAX_LINE].lower()))


def _in_python(text: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for line in text.split("\n"):
        code = line[:_MAX_LINE].partition("#")[0]
        if _PYTHON_CHECKS.match(code):
            yield offset, code.strip()
        offset += len(line) + 1


def _trains(words: Sequence[str]) -> bool:
    name = posixpath.basename(words[0])
    operands = _operands(words[1:])
    if name == "make":
        return any(operand in ("train", "retrain") for operand in operands)
    if name in ("dvc", "mlflow"):
        return operands[:1] in (["repro"], ["run"]) or operands[:2] == ["exp", "run"]
    if (_PYTHON.fullmatch(name) or name in _LAUNCHERS) and any(
        _TRAINING.search(o[:_MAX_LINE]) for o in operands
    ):
        return True
    if name in _SHELLS and any(True for operand in operands if " " in operand for _ in trainings(operand)):
        return True
    if name in ("echo", "printf"):
        return False
    return any(_TRAINING_FILE.fullmatch(word[:_MAX_LINE]) for word in [words[0], *operands])
