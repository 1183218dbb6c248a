"""Dockerfile, Makefile and Jenkinsfile: the shell in them, at the lines where it stands."""

from __future__ import annotations

import json
import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

from promotion_gate.provenance.scan.address import is_remote, pin_of_address
from promotion_gate.provenance.scan.entry import HOLE, Answer, Entry, Known, Unreadable
from promotion_gate.provenance.scan.files import PYTHON, SHELL, kind_of
from promotion_gate.provenance.scan.python import scan_python
from promotion_gate.provenance.scan.shell import scan_shell
from promotion_gate.provenance.scan.sources import Sources
from promotion_gate.provenance.scan.words import simple_commands

_INSTRUCTION = re.compile(
    r"\s*(?:ONBUILD\s+)?(?:HEALTHCHECK\s+(?:--\S+\s+)*(?=CMD))?([A-Za-z]+)\s+", re.IGNORECASE
)
_HEREDOC = re.compile(r"(?<!\S)\d*<<(-?)(['\"]?)(\w+)\2(?=[\s;|&>)]|$)")
_RUN_FLAGS = re.compile(r"(?:\s*--[a-z]+(?:=\S*)?)+")
_ESCAPE = re.compile(r"#\s*escape\s*=\s*`\s*$", re.IGNORECASE)
_MAKE_ASSIGNMENT = re.compile(r"\s*(?:export\s+|override\s+)?([\w.]+)\s*(?:::?:?|\?|\+|!)?=\s*(.*)")
_MAX_VALUE = 4000
JENKINS_STEP = re.compile(r"\bsh\b[\s(]*(?:script:\s*)?(\'\'\'|\"\"\"|'|\")(.*?)(?<!\\)\1", re.DOTALL)
"""A shell step of a Jenkinsfile; its second group is the script."""
Found = list[Entry | Unreadable]


def scan_dockerfile(text: str, sources: Sources) -> Found:
    """Every place in a Dockerfile where data enters: ``RUN`` as shell, and ``ADD`` of an address."""
    lines = text.split("\n")
    if _ESCAPE.match(lines[0]):
        lines = [f"{line.rstrip()[:-1]}\\" if line.rstrip().endswith("`") else line for line in lines]
    ends = _line_numbers(lines)
    variables: dict[str, str] = {}
    found: Found = []
    at = 0
    while at < len(lines):
        match = _INSTRUCTION.match(lines[at])
        keyword = match[1].upper() if match else ""
        stop, unended = _instruction_end(lines, at, keyword, ends)
        block = lines[at:stop]
        if unended:
            found.append(Unreadable(at + 1, f"a here-document has no end: {unended!r:.40}"))
        if match and keyword in ("RUN", "CMD", "ENTRYPOINT"):
            found += _down(_scan_run(block, match.end(), sources, variables), at)
        elif match and keyword in ("ENV", "ARG"):
            variables |= _settings(_joined(block, match.end()), variables)
        elif match and keyword in ("ADD", "COPY"):
            found += _down(_scan_written(block, sources), at)
        if match and keyword == "ADD":
            found += _add(_joined(block, match.end()), at + 1, match.end() + 1, variables, sources)
        at = stop
    return found


def _down(found: Found, lines: int) -> Found:
    """What was found in a part of a file, at its lines of the file."""
    return [
        replace(part, line=part.line + lines, end_line=part.end_line + lines)
        if isinstance(part, Entry)
        else replace(part, line=part.line + lines)
        for part in found
    ]


def _line_numbers(lines: list[str]) -> dict[str, list[int]]:
    """At which indices a line stands, by its text without the blanks around it."""
    found: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        found.setdefault(line.strip(), []).append(index)
    return found


def _instruction_end(lines: list[str], at: int, keyword: str, ends: dict[str, list[int]]) -> tuple[int, str]:
    """The line after an instruction's last, its continuations and here-documents taken in.

    With the name of a here-document that has no end, else nothing.
    """
    stop = at
    if not lines[at].lstrip().startswith("#"):
        while stop < len(lines) - 1 and (
            lines[stop].rstrip().endswith("\\") or (stop > at and lines[stop].lstrip().startswith("#"))
        ):
            stop += 1
        documents = _HEREDOC.findall(lines[at]) if keyword in ("RUN", "COPY", "ADD") else []
        for _, _, tag in documents:
            places = ends.get(tag, [])
            index = bisect_right(places, stop)
            if index == len(places):
                return min(stop + 1, len(lines)), tag
            stop = places[index]
    return min(stop + 1, len(lines)), ""


def _scan_run(block: list[str], start: int, sources: Sources, variables: dict[str, str]) -> Found:
    """What an instruction runs: shell text, a list of words, or a here-document that is itself the script."""
    first = " " * start + block[0][start:]
    flags = _RUN_FLAGS.match(first)
    if flags is not None:
        first = " " * flags.end() + first[flags.end() :]
    if first.lstrip().startswith("["):
        whole = " ".join(line.rstrip().removesuffix("\\") for line in [first, *block[1:]])
        try:
            return scan_shell(shlex.join(map(str, json.loads(whole))), sources, variables)
        except (ValueError, TypeError, RecursionError):
            pass
    document = _HEREDOC.fullmatch(first.strip())
    if document is not None:  # the here-document is itself the script
        body = [line for line in block[1:] if line.strip() != document[3]]
        return _scan_script("\n".join(body), sources, variables, 1)
    text = [first, *("\\" if line.lstrip().startswith("#") else line for line in block[1:])]
    if _HEREDOC.search(first):
        text = [first, *block[1:]]
    return scan_shell("\n".join(text), sources, variables)


def _scan_script(text: str, sources: Sources, variables: dict[str, str], lines: int, kind: str = "") -> Found:
    shebang = re.match(r"#!\s*\S*/(?:env\s+(?:-S\s+)?)?(python|pypy)", text)
    if kind == PYTHON or shebang is not None:
        return _down(scan_python(text, sources), lines)
    return _down(scan_shell(text, sources, variables), lines)


def _scan_written(block: list[str], sources: Sources) -> Found:
    """The script that ``COPY <<EOF /get.sh`` writes."""
    documents = _HEREDOC.findall(block[0])
    kind = kind_of(block[0].split()[-1].rpartition("/")[2]) if len(documents) == 1 else ""
    if kind not in (SHELL, PYTHON):
        return []
    return _scan_script("\n".join(block[1:-1]), sources, {}, 1, kind)


def _joined(block: list[str], start: int) -> str:
    return " ".join(line.rstrip().removesuffix("\\") for line in [block[0][start:], *block[1:]])


def _settings(text: str, variables: dict[str, str]) -> dict[str, str]:
    if re.match(r"\w+\s[^=]+$", text):
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    words = [word.text for simple in simple_commands(text, variables) for word in simple.words]
    return {name: value for name, equals, value in (w.partition("=") for w in words) if equals}


def _add(text: str, line: int, column: int, variables: dict[str, str], sources: Sources) -> Iterator[Entry]:
    words = [word.text for simple in simple_commands(text, variables) for word in simple.words]
    if text.strip().startswith("["):
        try:
            words = [str(word) for word in json.loads(text)]
        except (ValueError, TypeError, RecursionError):
            return
    operands = [word for word in words if not word.startswith("--")]
    hashed = Answer(Known.NO)
    if any(word.partition("=")[0] in sources.dockerfile.hash for word in words):
        hashed = Answer(Known.YES, "a given hash")
    for source in operands[:-1]:
        if not is_remote(source) and not source.startswith(("git@", f"{HOLE}/")):
            continue
        pinned = pin_of_address(source)
        if hashed.known is Known.YES and pinned.known is not Known.YES:
            pinned = Answer(Known.YES, "the hash it is checked against")
        yield Entry(
            line,
            column,
            line,
            "ADD",
            sources.dockerfile.family,
            "download",
            " ".join(text.split())[:300],
            url=source,
            pinned=pinned,
            hashed=hashed,
            pins=" ".join(word for word in words if word.partition("=")[0] in sources.dockerfile.hash),
        )


def scan_makefile(text: str, sources: Sources) -> Found:
    """Every place in a Makefile where data enters: recipes, ``define`` bodies and ``$(shell …)``."""
    variables: dict[str, str] = {}
    found: Found = []
    prefix = "\t"
    together = re.search(r"(?m)^\.ONESHELL\s*:", text) is not None
    defining = False
    recipe: list[str] = []
    begun = 0
    for number, raw in enumerate([*text.split("\n"), "endef"]):
        chosen = re.match(r"\.RECIPEPREFIX\s*:{0,3}=\s*(\S?)", raw)
        if chosen is not None:
            prefix = chosen[1] or "\t"
        continued = bool(recipe) and recipe[-1].endswith("\\")
        is_recipe = continued or defining or raw.startswith(prefix)
        if recipe and not continued and not (together and is_recipe):
            found += _down(scan_shell("\n".join(map(_recipe_line, recipe)), sources, variables), begun)
            recipe = []
        if re.match(r"\s*define\b", raw):
            defining = True
        elif re.match(r"\s*endef\b", raw):
            defining = False
        elif is_recipe:
            begun = begun if recipe else number
            recipe.append(" " + raw[1:] if raw.startswith(prefix) else raw)
        else:
            outside = scan_shell(_make_line(_make_text(raw), variables), sources, variables)
            found += _down([part for part in outside if isinstance(part, Entry)], number)
    return found


def _make_text(raw: str) -> str:
    """A line with make's own variables and ``$(shell …)`` written as a shell would write them."""
    line = re.sub(r"\$\((\w+)\)", r"${\1}", raw.replace("$$", " $"))
    return re.sub(r"\$\(shell\s", lambda m: " " * (len(m[0]) - 1) + "(", line)


def _recipe_line(raw: str) -> str:
    line = _make_text(raw)
    plain = line.lstrip()
    marks = len(plain) - len(plain.lstrip("@+-"))
    start = len(line) - len(plain)
    return line[:start] + " " * marks + plain[marks:]


def _make_line(line: str, variables: dict[str, str]) -> str:
    """A line outside recipes: a variable is remembered, and only what ``$(shell …)`` runs is kept."""
    match = _MAKE_ASSIGNMENT.match(line)
    if match is not None and line[: match.start(2)].rstrip().endswith("!="):
        return " " * match.start(2) + match[2]
    if match is not None and "(" not in match[2]:
        value = re.sub(r"\$\{(\w+)\}", lambda m: variables.get(m[1], HOLE), match[2])
        variables[match[1]] = value.partition(" #")[0].strip()[:_MAX_VALUE]
    opened = line.find("(")
    if match is None or opened < 0:
        head, semicolon, recipe = line.partition(";")
        is_rule = semicolon and ":" in head and "=" not in head and "#" not in head
        return " " * (len(head) + 1) + recipe if is_rule else ""
    return " " * opened + line[opened:]


def scan_jenkinsfile(text: str, sources: Sources) -> Found:
    """Every place in a Jenkinsfile's ``sh`` steps where data enters."""
    found: Found = []
    for match in JENKINS_STEP.finditer(text):
        found += _down(scan_shell(match[2], sources), text.count("\n", 0, match.start(2)))
    return found
