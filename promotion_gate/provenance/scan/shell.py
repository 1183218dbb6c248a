"""Where data enters in shell text: scripts, recipes, pipelines, notebooks and ``subprocess`` calls."""

from __future__ import annotations

import itertools
import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from promotion_gate.provenance.scan.address import (
    has_suffix,
    host,
    is_local_host,
    is_remote,
    pin_of_address,
    pin_of_revision,
)
from promotion_gate.provenance.scan.entry import HOLE, Answer, Entry, Known, Unreadable
from promotion_gate.provenance.scan.sources import CommandRule, Sources
from promotion_gate.provenance.scan.words import (
    Simple,
    Word,
    line_starts,
    simple_commands,
    without_assignments,
)

_NESTED = 3
_RESERVED = frozenset(
    [
        "if",
        "then",
        "else",
        "elif",
        "do",
        "while",
        "until",
        "!",
        "{",
        "}",
        "time",
        "case",
        "for",
        "coproc",
        "in",
    ]
)
_CARRIERS = frozenset(
    [
        "sudo",
        "doas",
        "env",
        "nohup",
        "exec",
        "command",
        "builtin",
        "timeout",
        "nice",
        "ionice",
        "xargs",
        "parallel",
        "stdbuf",
        "setsid",
        "chroot",
        "unbuffer",
        "retry",
        "run",
    ]
)
_SHELLS = frozenset(["sh", "bash", "dash", "zsh", "ksh", "ash", "busybox"])
_STRINGS = frozenset({"ssh", "eval", "su", "srun", "watch"})
_CHECKERS = re.compile(
    r"\b(?:sha(?:1|224|256|384|512)sum|md5sum|b2sum|cksum)\b[^\n;|&]*\s(?:-c|--check)\b"
    r"|\bshasum\b[^\n;|&]*\s(?:-c|--check)\b"
    r"|\bgpg\b[^\n;|&]*--verify|\bcosign\s+verify|\bminisign\s+-V"
)
_VERIFIER = re.compile(r"\bpromotion-gate\s+(?:dbom\s+)?verify\b")
_HOST = re.compile(r"(?:[\w.-]+@)?[\w.-]{2,}:(?!//|\\)\S*")
_PYTHON = re.compile(r"(?:python|python3|python3\.\d+|pypy3?|ipython3?|py)")


@dataclass(frozen=True, slots=True)
class _Line:
    """A command as it is judged: without what carries it, its words apart from its options."""

    name: Word
    words: Sequence[Word]
    simple: Simple
    fed: bool


def scan_shell(
    text: str, sources: Sources, variables: Mapping[str, str] | None = None, *, nested: int = 0
) -> list[Entry | Unreadable]:
    """Every place in a shell text where data enters; lines and columns count from 1."""
    if not sources.command_triggers.search(text) and not re.search(r"\bpython|\beval\b", text):
        return []
    commands = simple_commands(text, variables)
    starts = line_starts(text)
    checks = [m.start() for m in _CHECKERS.finditer(text)]
    verifies = bool(_VERIFIER.search(text))
    found: list[Entry | Unreadable] = []
    for simple in commands:
        for line in _lines(simple):
            for entry, offset in _entries(line, sources, nested):
                number = bisect_right(starts, offset)
                whole = _line_of(text, starts, number)
                here = replace(
                    entry,
                    line=number + entry.line - 1,
                    end_line=number + entry.line - 1,
                    column=offset - starts[number - 1] + 1 if entry.line == 1 else entry.column,
                    code=entry.code or whole[:300],
                )
                found.append(_checked(here, any(at > offset for at in checks), verifies))
    return found


def _line_of(text: str, starts: Sequence[int], number: int) -> str:
    stop = starts[number] if number < len(starts) else len(text)
    return " ".join(text[starts[number - 1] : stop].split())


def _checked(entry: Entry, check_follows: bool, verifies: bool) -> Entry:
    if entry.hashed.known is Known.YES:
        return entry
    if check_follows:
        return replace(entry, hashed=Answer(Known.YES, "the checksums verified later in the same script"))
    if verifies:
        return replace(entry, hashed=Answer(Known.UNKNOWN, "the same script verifies a bill of materials"))
    return entry


def _lines(simple: Simple) -> Iterator[_Line]:
    words = list(without_assignments(simple.words))
    while words and words[0].bare and words[0].text in _RESERVED:
        words = words[1:]
        words = list(without_assignments(words))
    if words:
        yield _Line(words[0], words, simple, simple.piped_from is not None)


def _entries(line: _Line, sources: Sources, nested: int) -> Iterator[tuple[Entry, int]]:
    words = line.words
    name = posixpath.basename(words[0].text)
    if name in _CARRIERS:
        if name == "command" and len(words) > 1 and words[1].text in ("-v", "-V"):
            return
        inner = next((i for i, w in enumerate(words[1:], 1) if _is_command(w.text, sources)), 0)
        if inner:
            yield from _entries(
                _Line(words[inner], words[inner:], line.simple, line.fed or name in ("xargs", "parallel")),
                sources,
                nested,
            )
        return
    if name in _SHELLS or name in _STRINGS:
        yield from _inner(line, name, sources, nested)
        return
    if _PYTHON.fullmatch(name):
        yield from _python(line, sources, nested)
        return
    if name == "docker" or name == "podman":
        inner = next(
            (i for i, w in enumerate(words[2:], 2) if _is_command(w.text, sources) and "/" not in w.text), 0
        )
        if inner and len(words) > 1 and words[1].text in ("run", "exec"):
            yield from _entries(_Line(words[inner], words[inner:], line.simple, line.fed), sources, nested)
        return
    yield from _ruled(line, name, sources)


def _is_command(text: str, sources: Sources) -> bool:
    name = posixpath.basename(text)
    return (
        name in sources.command_names or name in _SHELLS or name in _CARRIERS or bool(_PYTHON.fullmatch(name))
    )


def _inner(line: _Line, name: str, sources: Sources, nested: int) -> Iterator[tuple[Entry, int]]:
    """The command lines in ``sh -c "…"``, ``eval "…"``, ``ssh host '…'`` and here-documents for a shell."""
    if nested >= _NESTED:
        return
    if name in _SHELLS:
        texts = [
            w
            for before, w in zip(line.words, line.words[1:], strict=False)
            if re.fullmatch(r"-[a-z]*c", before.text)
        ]
    elif name == "eval":
        texts = (
            [Word(" ".join(w.text for w in line.words[1:]), line.words[0].offset)] if line.words[1:] else []
        )
    else:
        texts = [w for w in line.words[1:] if " " in w.text]
    for word in texts:
        for found in scan_shell(word.text, sources, nested=nested + 1):
            if isinstance(found, Entry):
                yield replace(found, line=1, end_line=1), word.offset
    if line.simple.heredoc and name in _SHELLS | {"ssh"}:
        for found in scan_shell(line.simple.heredoc, sources, nested=nested + 1):
            if isinstance(found, Entry):
                yield found, line.simple.heredoc_offset


def _python(line: _Line, sources: Sources, nested: int) -> Iterator[tuple[Entry, int]]:
    """``python -c "…"``, ``python -m module …`` and ``python <<EOF``."""
    from promotion_gate.provenance.scan.python import scan_python

    words = line.words
    for before, word in itertools.pairwise(words):
        if before.text == "-m":
            at = words.index(word)
            module = [Word("python", words[0].offset), Word("-m", words[0].offset), *words[at:]]
            yield from _ruled(_Line(module[0], module, line.simple, line.fed), "python", sources)
            return
        if before.text == "-c" and nested < _NESTED:
            for found in scan_python(word.text, sources, nested=nested + 1):
                if isinstance(found, Entry):
                    yield replace(found, line=1, end_line=1), word.offset
            return
    if (
        line.simple.heredoc
        and nested < _NESTED
        and len([w for w in words if not w.text.startswith("-")]) == 1
    ):
        for found in scan_python(line.simple.heredoc, sources, nested=nested + 1):
            if isinstance(found, Entry):
                yield found, line.simple.heredoc_offset


def _ruled(line: _Line, name: str, sources: Sources) -> Iterator[tuple[Entry, int]]:
    head = [name, *(w.text for w in line.words[1:] if not w.text.startswith("-") or w.text == "-m")]
    found = sources.command(head)
    if found is None:
        return
    pattern, rule = found
    options, operands = _split(line.words[1:], rule, pattern)
    if any(_is_refused(unless, line.words, options) for unless in rule.unless):
        return
    named = [value for option in rule.input for value in options.get(option, ())]
    source = _source(rule, operands, named, options, fed=line.fed)
    if source is None or not _brings_data(rule, source, line, sources):
        return
    if rule.keep and _only_shown(rule, source, line, options, sources):
        return
    yield _ruled_entry(rule, " ".join(pattern), source, options), line.name.offset


def _split(
    words: Sequence[Word], rule: CommandRule, pattern: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Options with their values, and the operands left over."""
    options: dict[str, list[str]] = {}
    operands: list[str] = []
    rest = list(pattern[1:])
    takes = {*rule.value, *rule.input, *rule.pin, *rule.hash}
    queue = iter(words)
    for word in queue:
        text = word.text
        if rest and text == rest[0]:
            rest.pop(0)
        elif text.startswith("-") and len(text) > 1:
            option, equals, value = text.partition("=")
            if equals:
                options.setdefault(option, []).append(value)
            elif option in takes or _ends_in_value(option, takes):
                options.setdefault(option if option in takes else f"-{option[-1]}", []).append(
                    getattr(next(queue, None), "text", "")
                )
            else:
                options.setdefault(option, []).append("")
        else:
            operands.append(text)
    return options, operands


def _ends_in_value(option: str, takes: set[str]) -> bool:
    """Whether this is a bundle such as ``-fsSLo`` whose last letter takes a value."""
    return bool(re.fullmatch(r"-[A-Za-z]{2,6}", option)) and f"-{option[-1]}" in takes


def _is_refused(unless: str, words: Sequence[Word], options: Mapping[str, Sequence[str]]) -> bool:
    option, _, value = unless.partition(" ")
    if value:
        short = f"{option}{value}" if not option.startswith("--") else ""
        return value in options.get(option, ()) or any(w.text == short for w in words)
    return option in options


def _source(
    rule: CommandRule,
    operands: Sequence[str],
    named: Sequence[str],
    options: Mapping[str, Sequence[str]],
    *,
    fed: bool,
) -> str | None:
    """What is downloaded; nothing where the command names nothing."""
    if rule.address:
        return re.sub(r"\{([^{}]+)\}", lambda m: next(iter(options.get(m[1], ())), HOLE), rule.address)
    if rule.operand == "none":
        return ""
    candidates = [*named, *operands]
    if not candidates:
        return HOLE if fed else None
    if rule.operand == "any":
        return next(
            (c for c in candidates if is_remote(c)), next((c for c in candidates if HOLE in c), candidates[0])
        )
    return candidates[0]


def _brings_data(rule: CommandRule, source: str, line: _Line, sources: Sources) -> bool:
    if rule.address_has and not any(part in source for part in rule.address_has):
        return False
    if rule.when == "remote":
        return is_remote(source) or source.startswith(HOLE) or bool(re.match(r"[\w-]{2,}:(?!\\)", source))
    if rule.when == "host":
        return bool(_HOST.fullmatch(source)) or is_remote(source)
    if rule.when == "http":
        return _http_brings_data(source, line, sources)
    return True


def _http_brings_data(source: str, line: _Line, sources: Sources) -> bool:
    """Not an installer, a health check of this machine, or an answer that is thrown away."""
    if is_local_host(source if is_remote(source) else f"http://{source}"):
        return False
    if line.simple.stdout == "/dev/null":
        return False
    if has_suffix(source, sources.data_suffixes):
        return not _is_piped_to_installer(line.simple, sources)
    if has_suffix(source, sources.installers) or _is_piped_to_installer(line.simple, sources):
        return False
    return is_remote(source) or HOLE in source or "." in source.partition("/")[0] or line.fed or "/" in source


def _only_shown(
    rule: CommandRule, source: str, line: _Line, options: Mapping[str, Sequence[str]], sources: Sources
) -> bool:
    """Whether the answer goes to the terminal, as that of a status page does."""
    simple = line.simple
    if (
        simple.captured
        or simple.stdout
        or simple.piped_into is not None
        or has_suffix(source, sources.data_suffixes)
    ):
        return False
    letters = {option[1] for option in rule.keep if len(option) == 2}
    return not any(
        option in rule.keep or (re.fullmatch(r"-[A-Za-z]+", option) and letters & set(option[1:]))
        for option in options
    )


def _is_piped_to_installer(simple: Simple, sources: Sources) -> bool:
    after = simple.piped_into
    while after is not None:
        names = [posixpath.basename(w.text) for w in without_assignments(after.words)]
        if any(name in sources.installing for name in names[:3]):
            return True
        after = after.piped_into
    return False


def _ruled_entry(rule: CommandRule, loader: str, source: str, options: Mapping[str, Sequence[str]]) -> Entry:
    address = source if is_remote(source) or host(source) else ""
    if not address and rule.when in ("http", "remote", "host"):
        address = (
            f"http://{source}" if rule.when == "http" and HOLE not in source and "." in source else source
        )
    name = "" if address or source in ("", HOLE) else source
    revision = next((v for option in rule.pin for v in options.get(option, ())), None)
    if revision is not None:
        pinned = pin_of_revision(revision)
    elif rule.pinned_by:
        pinned = Answer(Known.YES, rule.pinned_by)
    elif address:
        pinned = pin_of_address(address)
    else:
        pinned = Answer(Known.NO, "no revision or version")
    hashed = Answer(Known.NO)
    if rule.hash_by:
        hashed = Answer(Known.YES, rule.hash_by)
    given = next((v for option in rule.hash for v in options.get(option, ())), None)
    if given:
        hashed = Answer(Known.YES, "a given hash")
        pinned = pinned if pinned.known is Known.YES else Answer(Known.YES, "the hash it is checked against")
    home = rule.home.replace("{name}", name) if rule.home and name and HOLE not in name else ""
    return Entry(1, 1, 1, loader, rule.family, rule.kind, "", name, address, home, pinned, hashed)
