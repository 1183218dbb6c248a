"""A tolerant reader of shell text: simple commands as lists of words, with the variables known so far put in.

It reads what POSIX shells and bash have in common, in one pass over the text, and never fails: text that is
no shell gives words that match no command. What it cannot make out is told besides (:class:`Odd`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field

from promotion_gate.provenance.scan.entry import HOLE

_DOLLAR = r"\$\{[^{}$`'\"\\]*\}|\$(?:[A-Za-z_]\w*|[\d@*\#?!$-])"
_TOKEN = re.compile(
    r"""(?P<joined>\\\r?\n)
    |(?P<escaped>\\.)
    |(?P<ansi>\$'[^'\\]*(?:\\.[^'\\]*)*')
    |(?P<single>'[^']*')
    |(?P<quote>\$?")
    |(?P<herestring>\d*<<<)
    |(?P<heredoc>\d*<<-?[ \t]*(?:'[^'\n]*'|"[^"\n]*"|\\.|[^\s;&|<>()'"\\`$])+)
    |(?P<redirect>(?:\d+|&)?(?:>>|>\||>&|<&|<>|>|<)(?!\())
    |(?P<arith>\$?\(\()
    |(?P<sub>\$\(|[<>]\()
    |(?P<variable>"""
    + _DOLLAR
    + r""")
    |(?P<brace>\$\{[\w@*\#?!:=+%/,^-]*)
    |(?P<end>\r?\n|;;&|;;|;&|;|&&|\|\|?&?|&)
    |(?P<open>\()|(?P<close>\))|(?P<tick>`)
    |(?P<comment>\#[^\n]*)
    |(?P<blank>[ \t]+)
    |(?P<plain>[^\s;&|<>()'"`\\$\#]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(
    r"""(?P<joined>\\\r?\n)
    |(?P<escaped>\\.)
    |(?P<quote>")
    |(?P<arith>\$\(\()
    |(?P<sub>\$\()
    |(?P<variable>"""
    + _DOLLAR
    + r""")
    |(?P<brace>\$\{[\w@*\#?!:=+%/,^-]*)
    |(?P<tick>`)
    |(?P<plain>[^"\\`$]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\[@\])?(?::?[-=]([^{}]*))?\}|\$([A-Za-z_]\w*)")
_ANSI = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|([0-7]{1,3})|(.))", re.DOTALL)
_PAREN = re.compile(r"[()]")
_DECLARING = frozenset(["export", "local", "readonly", "declare", "typeset", "ARG", "ENV"])
RESERVED = frozenset(
    ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "time", "for", "coproc", "in"]
)
"""Words after which a command begins."""
_MAX_PARENS, _MAX_NESTED = 64, 8
_MAX_VALUE, _MAX_EXPANDED = 4000, 4 << 20


@dataclass(slots=True)
class Word:
    """One word: what it comes to, and where it begins. ``bare`` is false where a part of it was quoted."""

    text: str
    offset: int
    bare: bool = True


@dataclass(slots=True)
class Simple:
    """A simple command: its words, what it is piped into or from, and the text of its here-document."""

    words: list[Word] = field(default_factory=list)
    piped_into: Simple | None = None
    piped_from: Simple | None = None
    heredoc: str = ""
    heredoc_offset: int = 0
    stdout: str = ""
    captured: bool = False


@dataclass(frozen=True, slots=True)
class Odd:
    """A place that cannot be made out: a quote or a here-document without an end."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Script:
    """A shell text as read: its simple commands in order of their end, and what could not be made out."""

    commands: list[Simple]
    odd: list[Odd]


@dataclass(slots=True)
class _Frame:
    """What goes on around an open bracket, backquote or double quote."""

    kind: str  # "(" subshell, "$" substitution, "`" backquote, '"' quote, "h" here-document
    offset: int
    current: Simple
    word: Word | None
    parts: list[str]
    redirecting: str
    piping: Simple | None
    cases: list[bool]
    done: int


@dataclass(frozen=True, slots=True)
class _HereDocument:
    command: Simple
    tag: str
    tabs: bool
    quoted: bool
    offset: int


def read_shell(text: str, variables: MutableMapping[str, str] | None = None) -> Script:
    """The simple commands of a shell text, those inside ``$(…)`` and quotes too, and what is odd in it."""
    known = ChainMap({}, variables or {})
    reader = _Reader(text, known)
    reader.read()
    return Script(reader.done, reader.odd)


def simple_commands(text: str, variables: MutableMapping[str, str] | None = None) -> list[Simple]:
    """Every simple command of a shell text."""
    return read_shell(text, variables).commands


class _Ends:
    """Where the lines stand that can end a here-document: by their text, without tabs, without blanks."""

    def __init__(self, text: str) -> None:
        self.by: tuple[dict[str, list[int]], ...] = ({}, {}, {})
        at = 0
        for line in text.split("\n"):
            plain = line.removesuffix("\r")
            for lines, key in zip(self.by, (plain, plain.lstrip("\t"), plain.strip()), strict=True):
                lines.setdefault(key, []).append(at)
            at += len(line) + 1

    def find(self, tag: str, position: int, *, tabs: bool) -> int:
        """Where the line begins that ends a here-document, or -1; an indented one where there is no other."""
        for lines in self.by[1 if tabs else 0 :]:
            places = lines.get(tag, [])
            index = bisect_left(places, position)
            if index < len(places):
                return places[index]
        return -1


class _Reader:
    def __init__(
        self, text: str, variables: MutableMapping[str, str], start: int = 0, stop: int | None = None,
        *, nested: int = 0, again: bool = False, mode: str = "",
    ) -> None:  # fmt: skip
        self.text, self.variables = text, variables
        self.position, self.stop = start, len(text) if stop is None else stop
        self.nested, self.again = nested, again
        self.done: list[Simple] = []
        self.odd: list[Odd] = []
        self.aliases: dict[str, str] = {}
        self.current = Simple()
        self.frames: list[_Frame] = []
        self.word: Word | None = None
        self.parts: list[str] = []
        self.waiting: list[_HereDocument] = []  # that begin on the next line
        self.redirecting = ""
        self.piping: Simple | None = None
        self.cases: list[bool] = []  # open case commands, each whether a pattern comes next
        self.ends: list[_Ends] = []
        self.expanded = 0
        self.mode = mode
        if mode:
            self._push(mode, start)

    def read(self) -> None:
        while self.position < self.stop:
            quoted = bool(self.frames) and self.frames[-1].kind in '"h'
            match = (_QUOTED if quoted else _TOKEN).match(self.text, self.position, self.stop)
            if match is None:  # cannot be: the last alternative takes anything
                break
            kind = match.lastgroup or "other"
            self.position = match.end()
            if quoted:
                self._take_quoted(kind, match[0], match.start())
            else:
                self._take(kind, match[0], match.start())
        unclosed = next((frame for frame in self.frames if frame.kind == '"'), None)
        while self.frames:
            self._pop()
        if self.mode:
            self.word, self.current = None, Simple()  # the text of a here-document is no command
        self._end_command()
        if unclosed is not None:
            self._read_again(unclosed.offset)

    def _read_again(self, quote: int) -> None:
        """What follows a quote without an end may be a command all the same."""
        if self.again:
            return
        self.odd.append(Odd(quote, "a double quote is never closed"))
        self._read_part(quote + 1, self.stop, again=True)

    def _read_part(self, start: int, stop: int, *, mode: str = "", again: bool = False) -> None:
        if self.nested >= _MAX_NESTED:
            self.odd.append(Odd(start, "nested too deeply to be read"))
            return
        inner = _Reader(
            self.text,
            self.variables,
            start,
            stop,
            nested=self.nested + 1,
            again=self.again or again,
            mode=mode,
        )
        inner.ends = self.ends
        inner.read()
        self.done += inner.done
        self.odd += inner.odd

    # Tokens

    def _take(self, kind: str, lexeme: str, at: int) -> None:
        if kind in ("plain", "other"):
            if lexeme in ("'", '"') and not self.again:
                self.odd.append(Odd(at, "a quote is never closed"))
            self._append(lexeme, at)
        elif kind == "blank":
            self._end_word()
        elif kind == "comment":
            if self.word is not None:
                self._append("#", at)
                self.position = at + 1
        elif kind == "end":
            self._end_line(lexeme)
        elif kind == "single":
            self._append(lexeme[1:-1], at, bare=False)
        elif kind == "ansi":
            self._append(_ANSI.sub(_ansi_character, lexeme[2:-1]), at, bare=False)
        elif kind == "escaped":
            self._append(lexeme[1:], at)
        elif kind == "quote":
            self._append("", at, bare=False)
            self._push('"', at + len(lexeme) - 1)
        elif kind == "variable":
            self._append_split(self._expand(lexeme), at)
        elif kind == "heredoc":
            self._await_here_document(lexeme, at)
        elif kind in ("redirect", "herestring"):
            self._end_word()
            self.redirecting = lexeme
        elif kind != "joined":
            self._bracket(kind, lexeme, at)

    def _take_quoted(self, kind: str, lexeme: str, at: int) -> None:
        if kind == "quote":
            if self.frames[-1].kind == '"':
                self.frames.pop()
        elif kind == "escaped":
            self._append(lexeme[1:] if lexeme[1] in '"\\$`' else lexeme, at, bare=False)
        elif kind == "variable":
            self._append(self._expand(lexeme), at, bare=False)
        elif kind in ("plain", "other"):
            if self.frames[-1].kind == '"':  # the text of a here-document is no word
                self._append(lexeme, at, bare=False)
        elif kind != "joined":
            self._bracket(kind, lexeme, at)

    def _append(self, text: str, at: int, *, bare: bool = True) -> None:
        if self.word is None:
            self.word, self.parts = Word("", at), []
        self.parts.append(text)
        self.word.bare = self.word.bare and bare

    def _append_split(self, value: str, at: int) -> None:
        """The value of a variable that stands without quotes: blanks in it part words."""
        if not re.search(r"\s", value) or (self.parts and self.word and _ASSIGNMENT.match(self.parts[0])):
            self._append(value, at)
            return
        for number, piece in enumerate(re.split(r"\s+", value)):
            if number:
                self._end_word()
            if piece:
                self._append(piece, at)

    def _expand(self, text: str) -> str:
        match = _VARIABLE.fullmatch(text)
        name = (match[1] or match[3]) if match else None
        if match is None or not name or self.expanded > _MAX_EXPANDED:
            return HOLE
        value = self.variables.get(name)
        if value is None:
            value = HOLE if match[2] is None else match[2]
        self.expanded += len(value)
        return value

    # Brackets

    def _bracket(self, kind: str, lexeme: str, at: int) -> None:
        if kind == "brace":  # with a quote or a substitution in it, which is read as what it is
            self._append(HOLE, at, bare=False)
        elif kind == "arith":
            self._arithmetic(lexeme, at)
        elif kind == "sub":
            self._append(HOLE, at)
            self._push("$", at)
        elif kind == "tick":
            self._tick(at)
        elif kind == "open":
            self._open(at)
        elif self._in_pattern():
            self.current.words.clear()
            self.cases[-1] = False
        else:
            self._end_command()
            if self.frames and self.frames[-1].kind in "($":
                self._pop()

    def _open(self, at: int) -> None:
        if self._in_pattern() and not self.current.words:
            return
        empty = re.compile(r"[ \t]*\)").match(self.text, self.position, self.stop)
        if empty is not None and (self.word is not None or self.current.words):
            self.position = empty.end()  # f() begins a function
            self._end_word()
            self.current.words.clear()
            return
        if self.word is not None and self.parts and self.parts[-1].endswith("="):
            self._append(HOLE, at)  # a=(…), a list
        self._push("(", at)

    def _tick(self, at: int) -> None:
        for frame in reversed(self.frames):
            if frame.kind == "`":
                while self.frames and self.frames[-1] is not frame:
                    self._pop()
                self._pop()
                return
            if frame.kind in "($":
                break
        self._append(HOLE, at)
        self._push("`", at)

    def _arithmetic(self, lexeme: str, at: int) -> None:
        """``$((…))``, or ``((…))`` where a command can begin: no ``<<`` in it is a here-document."""
        stop = self._arithmetic_end(at + len(lexeme))
        begins = self.word is None and all(word.text in RESERVED for word in self.current.words)
        if stop < 0 or (lexeme == "((" and not begins):
            self.position = at + len(lexeme) - 1
            if lexeme == "((":
                self._open(at)
            else:
                self._append(HOLE, at)
                self._push("$", at)
            return
        inner = self.text[self.position : stop]
        if "$(" in inner or "`" in inner:
            self._read_part(self.position, stop, mode="h")
        self.position = stop + 2
        if lexeme == "((":
            self.current.words.clear()
        else:
            self._append(HOLE, at)

    def _arithmetic_end(self, position: int) -> int:
        depth = 0
        for match in _PAREN.finditer(self.text, position, self.stop):
            depth += 1 if match[0] == "(" else -1
            if depth > _MAX_PARENS:
                return -1
            if depth < 0:
                return match.start() if self.text.startswith("))", match.start()) else -1
        return -1

    def _push(self, kind: str, at: int) -> None:
        frame = _Frame(
            kind, at, self.current, self.word, self.parts, self.redirecting, self.piping, self.cases,
            len(self.done),
        )  # fmt: skip
        self.frames.append(frame)
        if kind in "($`":
            if kind == "(":
                self._end_word()
                frame.word, frame.parts, frame.redirecting = None, [], ""
            self.current = Simple(captured=kind != "(" or self.current.captured)
            self.word, self.parts, self.redirecting, self.piping, self.cases = None, [], "", None, []

    def _pop(self) -> None:
        frame = self.frames.pop()
        if frame.kind not in "($`":
            return
        self._end_command()
        self.current, self.word, self.parts = frame.current, frame.word, frame.parts
        self.redirecting, self.piping, self.cases = frame.redirecting, frame.piping, frame.cases
        if frame.kind != "(" and self.parts and len(self.done) == frame.done + 1:
            told = _printed(self.done[-1])
            if told:
                self.parts[-1] = told

    # Words and commands

    def _end_word(self) -> None:
        if self.word is None:
            return
        word, self.word = self.word, None
        word.text, self.parts = "".join(self.parts), []
        redirecting, self.redirecting = self.redirecting, ""
        if redirecting.endswith("<<<"):
            self.current.heredoc, self.current.heredoc_offset = word.text, word.offset
        elif redirecting:
            if ">" in redirecting and redirecting[0] in ">&1" and not word.text.isdigit():
                self.current.stdout = word.text
        elif word.bare and "," in word.text and word.text[0] == "{" and word.text[-1] == "}":
            self.current.words += [Word(part, word.offset) for part in word.text[1:-1].split(",")]
        else:
            self.current.words.append(word)
            if word.text == "in" and len(self.current.words) < 8:
                self._begin_case()

    def _end_command(self) -> None:
        self._end_word()
        self.redirecting = ""
        command, self.current = self.current, Simple(captured=self.current.captured)
        if command.words:
            if self.cases and command.words[0].text == "esac":
                self.cases.pop()
            self._assign(command)
            self._put_alias_in(command)
            self.done.append(command)
            if self.piping is not None:
                command.piped_from, self.piping.piped_into = self.piping, command
        self.piping = None

    def _begin_case(self) -> None:
        """After ``case WORD in`` come patterns."""
        words = self.current.words
        begun = next((i for i, word in enumerate(words) if word.text not in RESERVED), 0)
        if words[begun].text == "case" and len(words) > begun + 2:
            words.clear()
            self.cases.append(True)

    def _in_pattern(self) -> bool:
        """Whether the words of this command so far are the pattern of a ``case``."""
        if not self.cases or not self.cases[-1]:
            return False
        self._end_word()
        return not self.current.words or self.current.words[0].text != "esac"

    def _end_line(self, lexeme: str) -> None:
        if lexeme == "|" and self._in_pattern():
            return
        command = self.current
        self._end_command()
        if lexeme.startswith("|") and not lexeme.startswith("||") and command.words:
            self.piping = command
        if self.cases and lexeme in (";;", ";&", ";;&"):
            self.cases[-1] = True
        if lexeme.endswith("\n") and self.waiting:
            self._here_documents()

    def _put_alias_in(self, command: Simple) -> None:
        words = command.words
        if words[0].text == "alias":
            for word in words[1:]:
                name, equals, value = word.text.partition("=")
                if equals:
                    self.aliases[name] = value[:_MAX_VALUE]
        elif words[0].bare and words[0].text in self.aliases and self.expanded <= _MAX_EXPANDED:
            value = self.aliases[words[0].text]
            self.expanded += len(value)
            words[:1] = [Word(part, words[0].offset) for part in value.split()] or words[:1]

    def _assign(self, command: Simple) -> None:
        words = command.words
        if words and words[0].text in _DECLARING:
            words = words[1:]
        for word in words:
            match = _ASSIGNMENT.fullmatch(word.text)
            if match is None:
                return
            if not match[2].startswith("("):
                self.variables[match[1]] = match[2][:_MAX_VALUE]

    # Here-documents

    def _await_here_document(self, lexeme: str, at: int) -> None:
        self._end_word()
        lexeme = lexeme.lstrip("0123456789")
        tabs = lexeme.startswith("<<-")
        written = lexeme[3 if tabs else 2 :].lstrip(" \t")
        tag = re.sub(r"\\(.)|['\"]", lambda m: m[1] or "", written)
        self.waiting.append(_HereDocument(self.current, tag, tabs, tag != written, at))

    def _here_documents(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not self.ends:
            self.ends.append(_Ends(self.text))
        for document in waiting:
            start = self.position
            stop = self.ends[0].find(document.tag, start, tabs=document.tabs)
            if stop < 0 or stop > self.stop:
                self.odd.append(Odd(document.offset, f"a here-document has no end: {document.tag!r:.40}"))
                continue
            body = self.text[start:stop]
            document.command.heredoc_offset = start
            document.command.heredoc = re.sub(r"(?m)^\t+", "", body) if document.tabs else body
            if not document.quoted and ("$(" in body or "`" in body):
                self._read_part(start, stop, mode="h")
            line_end = self.text.find("\n", stop)
            self.position = self.stop if line_end < 0 else min(line_end, self.stop)


def _ansi_character(match: re.Match[str]) -> str:
    for group, base in ((1, 16), (2, 16), (3, 8)):
        if match[group]:
            return chr(int(match[group], base))
    return {"n": "\n", "t": "\t", "r": "\r", "e": "\x1b"}.get(match[4], match[4])


def _printed(command: Simple) -> str:
    """What a substitution is known to print: ``$(which curl)``, ``$(echo curl)``."""
    words = [word.text for word in command.words]
    if words[:1] in (["which"], ["echo"], ["printf"]) and len(words) == 2:
        found = words[1]
    elif words[:2] in (["command", "-v"], ["type", "-p"], ["type", "-P"]) and len(words) == 3:
        found = words[2]
    else:
        return ""
    return "" if HOLE in found or "%" in found else found[:_MAX_VALUE]


def line_starts(text: str) -> list[int]:
    """The offset at which each line begins."""
    return [0, *(m.end() for m in re.finditer(r"\n", text))]


def without_assignments(words: list[Word]) -> Iterator[Word]:
    """The words from the first that is no assignment on."""
    begun = False
    for word in words:
        begun = begun or not _ASSIGNMENT.fullmatch(word.text)
        if begun:
            yield word
