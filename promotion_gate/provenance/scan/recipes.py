"""Dockerfile, Makefile and Jenkinsfile: the shell in them, at the lines where it stands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

from promotion_gate.provenance.scan.address import is_remote, pin_of_address
from promotion_gate.provenance.scan.entry import HOLE, Answer, Entry, Known, Unreadable
from promotion_gate.provenance.scan.shell import scan_shell
from promotion_gate.provenance.scan.sources import Sources
from promotion_gate.provenance.scan.words import simple_commands

_INSTRUCTION = re.compile(r"\s*(?:ONBUILD\s+)?([A-Za-z]+)\s+", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_RUN_FLAGS = re.compile(r"(?:\s*--[a-z]+(?:=\S*)?)+")
_MAKE_ASSIGNMENT = re.compile(r"\s*(?:export\s+|override\s+)?([\w.]+)\s*(?:::?:?|\?|\+)?=\s*(.*)")


def scan_dockerfile(text: str, sources: Sources) -> list[Entry | Unreadable]:
    """Every place in a Dockerfile where data enters: ``RUN`` as shell, and ``ADD`` of an address."""
    lines = text.split("\n")
    shell: list[str] = []
    variables: dict[str, str] = {}
    added: list[Entry | Unreadable] = []
    at = 0
    while at < len(lines):
        stop = _instruction_end(lines, at)
        match = _INSTRUCTION.match(lines[at])
        keyword = match[1].upper() if match else ""
        block = lines[at:stop]
        if match and keyword in ("RUN", "CMD", "ENTRYPOINT"):
            shell += _run_lines(block, match.end())
        else:
            shell += [""] * len(block)
        if match and keyword in ("ENV", "ARG"):
            variables |= _settings(_joined(block, match.end()), variables)
        if match and keyword == "ADD":
            added += _add(_joined(block, match.end()), at + 1, match.end() + 1, variables, sources)
        at = stop
    return [*scan_shell("\n".join(shell), sources, variables), *added]


def _instruction_end(lines: list[str], at: int) -> int:
    """The line after an instruction's last, its continuations and here-documents taken in."""
    stop = at
    if not lines[at].lstrip().startswith("#"):
        while stop < len(lines) - 1 and (
            lines[stop].rstrip().endswith("\\") or (stop > at and lines[stop].lstrip().startswith("#"))
        ):
            stop += 1
        for tag in _HEREDOC.findall(lines[at]) if _INSTRUCTION.match(lines[at]) else ():
            while stop < len(lines) - 1 and lines[stop].strip() != tag:
                stop += 1
    return min(stop + 1, len(lines))


def _run_lines(block: list[str], start: int) -> list[str]:
    """The lines of an instruction as shell, as many as there were."""
    first = " " * start + block[0][start:]
    flags = _RUN_FLAGS.match(first)
    if flags is not None:
        first = " " * flags.end() + first[flags.end() :]
    whole = " ".join(line.rstrip().removesuffix("\\") for line in [first, *block[1:]]).strip()
    if whole.startswith("["):
        try:
            words = json.loads(whole)
            return [shlex.join(map(str, words)), *[""] * (len(block) - 1)]
        except (ValueError, TypeError, RecursionError):
            pass
    tag = _HEREDOC.match(first.strip())
    if tag is not None:  # the here-document is itself the script
        return ["", *("" if line.strip() == tag[1] else line for line in block[1:])]
    return [first, *("\\" if line.lstrip().startswith("#") else line for line in block[1:])]


def _joined(block: list[str], start: int) -> str:
    return " ".join(line.rstrip().removesuffix("\\") for line in [block[0][start:], *block[1:]])


def _settings(text: str, variables: dict[str, str]) -> dict[str, str]:
    if re.match(r"\w+\s+[^=]+$", text):
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
        )


def scan_makefile(text: str, sources: Sources) -> list[Entry | Unreadable]:
    """Every place in a Makefile where data enters: recipes, ``define`` bodies and ``$(shell …)``."""
    variables: dict[str, str] = {}
    shell = []
    defining = False
    continued = False
    for raw in text.split("\n"):
        line = raw.replace("$$", " $")
        line = re.sub(r"\$\((\w+)\)", r"${\1}", line)
        line = re.sub(r"\$\(shell\s", lambda m: " " * (len(m[0]) - 1) + "(", line)
        if re.match(r"\s*define\b", line):
            defining, line = True, ""
        elif re.match(r"\s*endef\b", line):
            defining, line = False, ""
        elif continued or raw.startswith("\t") or defining:
            line = re.sub(r"^(\s*)([@+-]+)", lambda m: m[1] + " " * len(m[2]), line)
        else:
            line = _make_line(line, variables)
        continued = raw.endswith("\\") and (continued or raw.startswith("\t"))
        shell.append(line)
    return scan_shell("\n".join(shell), sources, variables)


def _make_line(line: str, variables: dict[str, str]) -> str:
    """A line outside recipes: a variable is remembered, and only what ``$(shell …)`` runs is kept."""
    match = _MAKE_ASSIGNMENT.match(line)
    if match is not None and "(" not in match[2]:
        value = re.sub(r"\$\{(\w+)\}", lambda m: variables.get(m[1], HOLE), match[2])
        variables[match[1]] = value.partition(" #")[0].strip()
    opened = line.find("(")
    if match is None or opened < 0:
        recipe = re.match(r"[^#=]*::?[^=#]*;(.*)", line)
        return " " * recipe.start(1) + recipe[1] if recipe else ""
    return " " * opened + line[opened:]


def scan_jenkinsfile(text: str, sources: Sources) -> list[Entry | Unreadable]:
    """Every place in a Jenkinsfile's ``sh`` steps where data enters."""
    found: list[Entry | Unreadable] = []
    for match in re.finditer(r"\bsh\b[\s(]*(?:script:\s*)?('''|\"\"\"|'|\")(.*?)(?<!\\)\1", text, re.DOTALL):
        offset = text.count("\n", 0, match.start(2))
        found += [
            replace(entry, line=entry.line + offset, end_line=entry.end_line + offset)
            for entry in scan_shell(match[2], sources)
            if isinstance(entry, Entry)
        ]
    return found
