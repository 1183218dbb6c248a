"""A tolerant reader of shell text: simple commands as lists of words, with the variables known so far put in.

It reads what POSIX shells and bash have in common and never fails: text that is no shell gives words that
match no command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from promotion_gate.provenance.scan.entry import HOLE

_TOKEN = re.compile(
    r"""(?P<joined>\\\r?\n)
    |(?P<escaped>\\.)
    |(?P<single>\$?'[^']*')
    |(?P<double>"(?:[^"\\]|\\.)*")
    |(?P<heredoc><<-?\s*\\?(?P<q>['"]?)(?P<tag>\w+)(?P=q))
    |(?P<herestring><<<)
    |(?P<redirect>\d*(?:>>|>\||>&|<&|&>>?|>|<)(?!\())
    |(?P<sub>\$\((?!\()|[<>]\()
    |(?P<arith>\$\(\([^)]*\)\))
    |(?P<variable>\$\{[^{}]*\}|\$[\w@*\#?!$-])
    |(?P<end>\r?\n|;;?|&&|\|\|?&?|&)
    |(?P<open>\()|(?P<close>\))|(?P<tick>`)
    |(?P<comment>\#[^\n]*)
    |(?P<blank>[ \t]+)
    |(?P<plain>[^\s;&|<>()'"`\\$\#]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_VARIABLE = re.compile(
    r"\$\{([A-Za-z_]\w*)(?::?[-=](.*?))?[^{}]*\}|\$([A-Za-z_]\w*)|\$\{[^{}]*\}|\$[\d@*#?!$-]"
)
_MAX_DEPTH = 64


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


def simple_commands(text: str, variables: Mapping[str, str] | None = None) -> list[Simple]:
    """Every simple command of a shell text in order of its end; those inside ``$(…)`` and quotes too."""
    return _Reader(text, dict(variables or {})).read()


class _Reader:
    def __init__(self, text: str, variables: dict[str, str]) -> None:
        self.text, self.variables = text, variables
        self.done: list[Simple] = []
        self.current = Simple()
        self.outer: list[tuple[Simple, bool]] = []
        self.word: Word | None = None
        self.waiting: list[tuple[Simple, str]] = []  # here-documents that begin on the next line
        self.redirecting = ""
        self.piping: Simple | None = None

    def read(self) -> list[Simple]:
        position, end = 0, len(self.text)
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:  # cannot be: the last alternative takes anything
                break
            kind = match.lastgroup or "other"
            if kind in ("q", "tag"):
                kind = "heredoc"
            position = self._take(kind, match)
        self._end_command()
        while self.outer:
            self._resume()
            self._end_command()
        return self.done

    def _take(self, kind: str, match: re.Match[str]) -> int:
        token, at, after = match[0], match.start(), match.end()
        if kind == "plain" or kind == "other":
            self._append(token, at)
        elif kind == "blank" or kind == "joined":
            self._end_word()
        elif kind == "comment":
            if self.word is not None:
                self._append("#", at)
                return at + 1
        elif kind == "end":
            return self._end_line(token, after)
        elif kind in ("single", "double", "escaped"):
            self._quoted(kind, token, at)
        elif kind in ("variable", "arith"):
            self._append(self._expand(token), at)
        elif kind == "heredoc":
            self._end_word()
            self.waiting.append((self.current, match["tag"]))
        elif kind in ("redirect", "herestring"):
            self._redirect(token)
        else:
            self._bracket(kind, at)
        return after

    def _append(self, text: str, at: int, *, bare: bool = True) -> None:
        if self.word is None:
            self.word = Word("", at)
        self.word.text += text
        self.word.bare = self.word.bare and bare

    def _quoted(self, kind: str, token: str, at: int) -> None:
        if kind == "single":
            self._append(token.lstrip("$")[1:-1], at, bare=False)
        elif kind == "escaped":
            self._append(token[1:], at)
        else:
            self._append(
                self._expand(re.sub(r'\\(["\\$`]|\n)', r"\1", self._substituted(token[1:-1], at))),
                at,
                bare=False,
            )

    def _substituted(self, text: str, at: int) -> str:
        """A double-quoted text; commands inside ``$(…)`` and backquotes are read on their own."""
        if "$(" not in text and "`" not in text:
            return text

        def read(match: re.Match[str]) -> str:
            for command in simple_commands(match[1] or match[2] or "", self.variables):
                command.captured = True
                for word in command.words:
                    word.offset += at + 1 + match.start() + 2
                self.done.append(command)
            return HOLE

        return re.sub(r"\$\(([^()]*(?:\([^()]*\)[^()]*)*)\)|`([^`]*)`", read, text)

    def _expand(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            return (
                self.variables.get(name or "", match[2] if match[2] is not None else HOLE) if name else HOLE
            )

        return _VARIABLE.sub(value, text) if "$" in text else text

    def _redirect(self, token: str) -> None:
        if self.word is not None and self.word.text.isdigit():
            self.word = None
        self._end_word()
        self.redirecting = token

    def _bracket(self, kind: str, at: int) -> None:
        closing = kind == "close" or (kind == "tick" and bool(self.outer) and self.outer[-1][1])
        if closing:
            if self.outer:
                self._end_command()
                self._resume()
            return
        if len(self.outer) >= _MAX_DEPTH:
            return
        substituting = kind in ("sub", "tick")
        if substituting:
            self._append(HOLE, at)
            word, self.word = self.word, None
            if word is not None:
                self.current.words.append(word)
        else:
            self._end_word()
        self.outer.append((self.current, kind == "tick"))
        self.current = Simple(captured=substituting)

    def _resume(self) -> None:
        self.current, _ = self.outer.pop()

    def _end_word(self) -> None:
        if self.word is None:
            return
        word, self.word = self.word, None
        if self.redirecting:
            if ">" in self.redirecting:
                self.current.stdout = word.text
            self.redirecting = ""
            return
        self.current.words.append(word)

    def _end_command(self) -> None:
        self._end_word()
        self.redirecting = ""
        command, self.current = self.current, Simple(captured=self.current.captured)
        if command.words:
            self._assign(command)
            self.done.append(command)
            if self.piping is not None:
                command.piped_from, self.piping.piped_into = self.piping, command
        self.piping = None

    def _end_line(self, token: str, after: int) -> int:
        command = self.current
        self._end_command()
        if token.startswith("|") and not token.startswith("||") and command.words:
            self.piping = command
        if token.endswith("\n") and self.waiting:
            return self._here_documents(after)
        return after

    def _here_documents(self, position: int) -> int:
        for command, tag in self.waiting:
            end = re.compile(rf"^[ \t]*{re.escape(tag)}[ \t]*\r?$", re.MULTILINE).search(self.text, position)
            stop = end.start() if end else len(self.text)
            command.heredoc, command.heredoc_offset = self.text[position:stop], position
            position = end.end() if end else stop
        self.waiting.clear()
        return position

    def _assign(self, command: Simple) -> None:
        words = command.words
        if words and words[0].text in ("export", "local", "readonly", "declare", "typeset", "ARG", "ENV"):
            words = words[1:]
        for word in words:
            match = _ASSIGNMENT.fullmatch(word.text)
            if match is None:
                return
            if not match[2].startswith("("):
                self.variables[match[1]] = match[2]


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
