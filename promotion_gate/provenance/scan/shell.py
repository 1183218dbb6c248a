"""Where data enters in shell text: scripts, recipes, pipelines, notebooks and ``subprocess`` calls."""

from __future__ import annotations

import itertools
import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
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
    RESERVED,
    Simple,
    Word,
    line_starts,
    read_shell,
    without_assignments,
)

_NESTED = 3
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
        "srun",
        "salloc",
        "mpirun",
        "mpiexec",
        "flock",
        "numactl",
        "taskset",
        "chronic",
        "strace",
        "ltrace",
        "gosu",
        "su-exec",
        "setpriv",
        "runuser",
        "unshare",
        "nsenter",
        "systemd-run",
        "proxychains",
        "proxychains4",
        "torsocks",
        "dumb-init",
        "tini",
        "catchsegv",
        "busybox",
        "toybox",
        "uvx",
        "pipx",
        "find",
    ]
)
"""Commands that run the command among their words."""
_RUNNERS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        ["poetry", "pdm", "hatch", "rye", "pipenv", "uv", "dotenv"], frozenset(["run", "tool", "x"])
    ),
    **dict.fromkeys(
        ["conda", "mamba", "micromamba", "pixi", "nix"], frozenset(["run", "exec", "shell", "develop"])
    ),
    **dict.fromkeys(["docker", "podman", "nerdctl", "docker-compose", "kubectl"], frozenset(["run", "exec"])),
    **dict.fromkeys(["apptainer", "singularity", "aws-vault", "doppler"], frozenset(["exec", "run"])),
}
"""Commands that do so under one of these words; as ``poetry run``, and not ``poetry add``."""
_SHELLS = frozenset(["sh", "bash", "dash", "zsh", "ksh", "ash"])
_STRINGS = frozenset({"ssh", "eval", "su", "watch", "trap", "sbatch", "script"})
_MOST_CARRIED = 32
_UNRESOLVED = "a command that is only known at run time"
_SUMS = re.compile(r"(?:sha(?:1|224|256|384|512)?|md5|b2|c?k)sum")
_TRIGGERS = re.compile(r"\bpython|\beval\b|://|\$'")
_QUOTES = re.compile(r"\\\r?\n|[\\'\"]")
_HOST = re.compile(r"(?:[\w.-]+@)?[\w.-]{2,}:(?!//|\\)\S*")
_REMOTE = re.compile(r"[\w-]{2,}:(?!\\)|[A-Za-z]:(?![\\/])")
_BEFORE = RESERVED | {"function"}
_PYTHON = re.compile(r"(?:python|python3|python3\.\d+|pypy3?|ipython3?|py)")


@dataclass(frozen=True, slots=True)
class _Line:
    """A command as it is judged: without what carries it, its words apart from its options."""

    name: Word
    words: Sequence[Word]
    simple: Simple
    fed: bool


def scan_shell(
    text: str, sources: Sources, variables: MutableMapping[str, str] | None = None, *, nested: int = 0
) -> list[Entry | Unreadable]:
    """Every place in a shell text where data enters; lines and columns count from 1.

    A quote or a here-document without an end is :class:`Unreadable`, and what follows is read all the same.
    """
    if not _may_hold_anything(text, sources):
        return []
    script = read_shell(text, variables)
    starts = line_starts(text)
    lines = [line for simple in script.commands for line in _lines(simple)]
    last_check = max((line.name.offset for line in lines if _is_check(line)), default=-1)
    verifies = any(_is_verifier(line) for line in lines)
    found: list[Entry | Unreadable] = [
        Unreadable(bisect_right(starts, odd.offset), odd.reason) for odd in script.odd
    ]
    for line in lines:
        for part, offset in _entries(line, sources, nested):
            number = bisect_right(starts, offset)
            here = replace(part, line=number + part.line - 1)
            if isinstance(here, Entry) and isinstance(part, Entry):
                here = replace(
                    here,
                    end_line=here.line,
                    column=offset - starts[number - 1] + 1 if part.line == 1 else part.column,
                    code=part.code or " ".join(word.text for word in line.simple.words)[:2000],
                )
                here = _checked(here, last_check > offset, verifies)
            found.append(here)
    return found


def _may_hold_anything(text: str, sources: Sources) -> bool:
    """Whether a text names a command that could bring data in; quotes within its name do not hide it."""
    if _TRIGGERS.search(text) or sources.command_triggers.search(text):
        return True
    if not _QUOTES.search(text):
        return False
    plain = _QUOTES.sub("", text)
    return bool(_TRIGGERS.search(plain) or sources.command_triggers.search(plain))


def _is_check(line: _Line) -> bool:
    """Whether a command compares checksums or signatures with given ones."""
    name = posixpath.basename(line.name.text)
    words = {word.text for word in line.words}
    return (
        (bool(_SUMS.fullmatch(name)) and not words.isdisjoint(("-c", "--check")))
        or (name == "gpg" and "--verify" in words)
        or (name == "cosign" and line.words[1:2] != [] and line.words[1].text.startswith("verify"))
        or (name == "minisign" and "-V" in words)
    )


def _is_verifier(line: _Line) -> bool:
    words = [word.text for word in line.words[:3]]
    return (words[:1] == ["promotion-gate"] and words[1:] in (["verify"], ["dbom", "verify"])) or (
        words[:2] == ["promotion-gate", "verify"]
    )


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
    at = 0
    while at < len(words) and words[at].bare and words[at].text in _BEFORE:
        at += 2 if words[at].text == "function" else 1
        while at < len(words) and not any(without_assignments(words[at : at + 1])):
            at += 1
    if at < len(words):
        yield _Line(words[at], words[at:], simple, simple.piped_from is not None)


def _entries(line: _Line, sources: Sources, nested: int) -> Iterator[tuple[Entry | Unreadable, int]]:
    written = _written(line)
    if written and nested < _NESTED:
        yield from _of_script(written, line.simple, sources, nested)
    for _ in range(_MOST_CARRIED):
        carried = _carried(line, sources)
        if carried is None:
            break
        line = carried
    else:
        yield Unreadable(1, "a command is carried by too many others to be read"), line.name.offset
        return
    name = posixpath.basename(line.words[0].text)
    if name in _SHELLS or name in _STRINGS:
        yield from _inner(line, name, sources, nested)
    elif _PYTHON.fullmatch(name):
        yield from _python(line, sources, nested)
    elif line.words[0].text.startswith(HOLE):
        yield from _unresolved(line, sources)
    elif name not in _CARRIERS and name not in _RUNNERS:
        yield from _ruled(line, name, sources)


def _carried(line: _Line, sources: Sources) -> _Line | None:
    """The command that ``sudo``, ``poetry run`` or the like runs."""
    words = line.words
    name = posixpath.basename(words[0].text)
    start = 1
    if name in _RUNNERS:
        verbs = (i for i, w in enumerate(words[1:8], 1) if w.text in _RUNNERS[name])
        start = next(verbs, len(words)) + 1
    elif name not in _CARRIERS:
        return None
    if name == "command" and len(words) > 1 and words[1].text in ("-v", "-V"):
        return None
    if name == "pipx" and (len(words) < 2 or words[1].text != "run"):
        return None
    if name == "find":
        start = (
            next((i for i, w in enumerate(words) if w.text in ("-exec", "-execdir", "-ok")), len(words)) + 1
        )
    contained = name in ("docker", "podman", "nerdctl", "docker-compose")
    for index in range(start, len(words)):
        word = words[index]
        if _is_command(word.text, sources) and not (contained and "/" in word.text):
            fed = line.fed or name in ("xargs", "parallel", "find")
            return _Line(word, words[index:], line.simple, fed)
    return None


def _is_command(text: str, sources: Sources) -> bool:
    name = posixpath.basename(text)
    return (
        name in sources.command_names
        or name in _SHELLS
        or name in _STRINGS
        or name in _CARRIERS
        or name in _RUNNERS
        or bool(_PYTHON.fullmatch(name))
    )


def _written(line: _Line) -> str:
    """The kind of script that a here-document is written to, as by ``cat > get.sh <<EOF``."""
    if not line.simple.heredoc:
        return ""
    name = posixpath.basename(line.name.text)
    target = line.simple.stdout if name == "cat" else line.words[-1].text if name == "tee" else ""
    return {"py": "python", "sh": "shell", "bash": "shell"}.get(target.rpartition(".")[2], "")


def _of_script(
    kind: str, simple: Simple, sources: Sources, nested: int
) -> Iterator[tuple[Entry | Unreadable, int]]:
    """What a here-document holds that is a script."""
    if kind == "python":
        found = _scan_snippet(simple.heredoc, sources, nested)
    else:
        found = scan_shell(simple.heredoc, sources, nested=nested + 1)
    for part in found:
        yield part, simple.heredoc_offset


def _scan_snippet(text: str, sources: Sources, nested: int) -> list[Entry | Unreadable]:
    """Python that stands in shell text, where a variable of the shell can stand for a part of it."""
    from promotion_gate.provenance.scan.python import scan_python

    found = scan_python(text, sources, nested=nested + 1)
    if any(isinstance(part, Unreadable) for part in found) and ("$" in text or HOLE in text):
        filled = re.sub(r"\$\{\w+\}|\$\w+|" + re.escape(HOLE), "None", text)
        found = scan_python(filled, sources, nested=nested + 1)
    if any(isinstance(part, Unreadable) for part in found):
        return found if sources.python_triggers.search(text.encode("utf-8", "replace")) else []
    return found


def _inner(line: _Line, name: str, sources: Sources, nested: int) -> Iterator[tuple[Entry | Unreadable, int]]:
    """The command lines in ``sh -c "…"``, ``eval "…"``, ``ssh host '…'``, here-documents and pipes."""
    if nested >= _NESTED:
        yield Unreadable(1, "commands within commands too deeply to be read"), line.name.offset
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
        texts = [
            Word(w.text.partition("=")[2], w.offset) if w.text.startswith("--wrap=") else w
            for w in line.words[1:]
            if " " in w.text
        ]
    for word in [*texts, *(_piped_text(line) if name in _SHELLS else ())]:
        for found in scan_shell(word.text, sources, nested=nested + 1):
            yield _on_one_line(found), word.offset
    for simple in _documents(line) if name in _SHELLS | {"ssh"} else ():
        yield from _of_script("shell", simple, sources, nested)


def _on_one_line(found: Entry | Unreadable) -> Entry | Unreadable:
    return replace(found, line=1, end_line=1) if isinstance(found, Entry) else replace(found, line=1)


def _documents(line: _Line) -> list[Simple]:
    """The commands whose here-document an interpreter reads: its own, and one that is piped to it."""
    before = line.simple.piped_from
    return [simple for simple in (line.simple, before) if simple is not None and simple.heredoc]


def _piped_text(line: _Line) -> list[Word]:
    """What ``echo … |`` or ``printf … |`` before an interpreter prints."""
    before = line.simple.piped_from
    if before is None or not before.words or before.words[0].text not in ("echo", "printf"):
        return []
    words = [word.text for word in before.words[1:] if not word.text.startswith("-")]
    return [Word(" ".join(words), before.words[0].offset)]


def _unresolved(line: _Line, sources: Sources) -> Iterator[tuple[Entry, int]]:
    """A command that is only known at run time, where a word of it is a remote address of data."""
    words = [word.text for word in line.words[1:]]
    source = next((w for w in words if is_remote(w) and has_suffix(w, sources.data_suffixes)), "")
    if source and not is_local_host(source):
        entry = Entry(
            1, 1, 1, _UNRESOLVED, "shell", "download", "", url=source, pinned=pin_of_address(source),
            hashed=Answer(Known.NO), context="its address ends like data",
        )  # fmt: skip
        yield entry, line.name.offset


def _python(line: _Line, sources: Sources, nested: int) -> Iterator[tuple[Entry | Unreadable, int]]:
    """``python -c "…"``, ``python -m module …``, ``python <<EOF`` and ``… | python``."""
    words = line.words
    if nested >= _NESTED:
        yield Unreadable(1, "commands within commands too deeply to be read"), line.name.offset
        return
    for at, (before, word) in enumerate(itertools.pairwise(words), 1):
        if before.text == "-m":
            module = [Word("python", words[0].offset), Word("-m", words[0].offset), *words[at:]]
            yield from _ruled(_Line(module[0], module, line.simple, line.fed), "python", sources)
            return
        if re.fullmatch(r"-[A-Za-z]*c", before.text):
            for found in _scan_snippet(word.text, sources, nested):
                yield _on_one_line(found), word.offset
            return
    if len([w for w in words if not w.text.startswith("-")]) > 1:
        return
    for simple in _documents(line):
        yield from _of_script("python", simple, sources, nested)
    for word in _piped_text(line):
        for found in _scan_snippet(word.text, sources, nested):
            yield _on_one_line(found), word.offset


def _ruled(line: _Line, name: str, sources: Sources) -> Iterator[tuple[Entry, int]]:
    head = [name, *(w.text for w in line.words[1:] if not w.text.startswith("-") or w.text == "-m")]
    found = sources.command(head)
    if found is None:
        return
    pattern, rule = found
    options, operands = _split(line.words[1:], rule, pattern)
    if any(_is_refused(unless, line.words, options) for unless in rule.unless):
        return
    if not _is_kept_as_data(rule, operands, options, sources) and any(
        _is_refused(sends, line.words, options) for sends in rule.sends
    ):
        return
    named = [value for option in rule.input for value in options.get(option, ())]
    source = _source(rule, operands, named, options, fed=line.fed)
    if source is None or not _brings_data(rule, source, line, sources):
        return
    if rule.keep and _only_shown(rule, source, line, sources):
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
        given = options.get(option, ())
        if value == "/dev/null":
            return bool(given) and all(item == value for item in given)
        return value in given or any(w.text == short for w in words)
    return option in options


def _is_kept_as_data(
    rule: CommandRule, operands: Sequence[str], options: Mapping[str, Sequence[str]], sources: Sources
) -> bool:
    """Whether the answer to what is sent is data: a query, or kept under a name or address that ends so."""
    if any(option in options for option in rule.query):
        return True
    names = [value for option in rule.kept_as for value in options.get(option, ())]
    return any(has_suffix(name, sources.data_suffixes) for name in [*names, *filter(is_remote, operands)])


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
        return is_remote(source) or source.startswith(HOLE) or bool(_REMOTE.match(source))
    if rule.when == "host":
        return bool(_HOST.fullmatch(source)) or is_remote(source)
    if rule.when == "http":
        return _http_brings_data(rule, source, line, sources)
    return True


def _http_brings_data(rule: CommandRule, source: str, line: _Line, sources: Sources) -> bool:
    """Not an installer, a health check of this machine, or an answer that is thrown away."""
    if is_local_host(source if is_remote(source) else f"http://{source}"):
        return False
    if line.simple.stdout == "/dev/null" and rule.keep and not _keeps(rule, line):
        return False
    if has_suffix(source, sources.data_suffixes):
        return True
    if has_suffix(source, sources.installers) or _is_piped_to_installer(line.simple, sources):
        return False
    return is_remote(source) or HOLE in source or "." in source.partition("/")[0] or line.fed or "/" in source


def _only_shown(rule: CommandRule, source: str, line: _Line, sources: Sources) -> bool:
    """Whether the answer goes to the terminal, as that of a status page does."""
    simple = line.simple
    if (
        simple.captured
        or simple.stdout
        or simple.piped_into is not None
        or has_suffix(source, sources.data_suffixes)
    ):
        return False
    return not _keeps(rule, line)


def _keeps(rule: CommandRule, line: _Line) -> bool:
    """Whether an option stores the answer in a file."""
    letters = {option[1] for option in rule.keep if len(option) == 2}
    options = [word.text.partition("=")[0] for word in line.words if word.text.startswith("-")]
    return any(
        option in rule.keep or (re.fullmatch(r"-[A-Za-z]+", option) and letters & set(option[1:]))
        for option in options
    )


def _is_piped_to_installer(simple: Simple, sources: Sources) -> bool:
    after = simple.piped_into
    for _ in range(_MOST_CARRIED):
        if after is None:
            break
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
    pins = " ".join(f"{o}={v}" for o in (*rule.pin, *rule.hash) for v in options.get(o, ()))
    return Entry(1, 1, 1, loader, rule.family, rule.kind, "", name, address, home, pinned, hashed, "", pins)
