"""Who must review a path, by the rules of CODEOWNERS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

PLACES = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS")
"""Where the file may lie; the first that exists is the one that counts."""
MAX_BYTES = 3 << 20
"""A larger file is not obeyed."""
_OWNER = re.compile(r"@[A-Za-z0-9][\w.-]*(?:/[\w.-]+)*|[^@\s]+@[^@\s]+\.[^@\s]+")


@dataclass(frozen=True, slots=True)
class Ownership:
    """The line that decides on a path, and the owners it names; none means that nobody has to review."""

    file: str
    line: int
    pattern: str
    owners: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    pattern: str
    owners: Sequence[str]


class CodeOwners:
    """A CODEOWNERS file. The last pattern that matches a path decides, also where it names no owner."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._lines = list(filter(None, (_parsed(n, line) for n, line in enumerate(text.splitlines(), 1))))

    def of(self, path: str) -> Ownership | None:
        """Who owns a path, given relative to the repository with slashes."""
        for line in reversed(self._lines):
            if _matches(line.pattern, path):
                return Ownership(self.file, line.number, line.pattern, line.owners)
        return None


def read_owners(root: Path) -> CodeOwners | str:
    """The CODEOWNERS of a repository, or why there is none that counts."""
    for place in PLACES:
        path = root / place
        if not path.is_file():
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
        except OSError as error:
            return f"{place} cannot be read: {error.strerror}"
        if content is None:
            return f"{place} is larger than {MAX_BYTES >> 20} MiB and not obeyed"
        return CodeOwners(place, content.decode("utf-8", "replace"))
    return "there is no CODEOWNERS in .github, at the top or in docs"


def _parsed(number: int, line: str) -> _Line | None:
    text = re.sub(r"(?<!\\)#.*", "", line).strip()
    words = re.split(r"(?<!\\)\s+", text) if text else []
    if not words or words[0].startswith(("!", "[", "^[")) or "[" in words[0]:
        return None
    if not all(_OWNER.fullmatch(owner) for owner in words[1:]):
        return None  # a line with an error in it is passed over
    return _Line(number, words[0], tuple(words[1:]))


def _matches(pattern: str, path: str) -> bool:
    try:
        if not GitIgnoreSpec.from_lines([pattern]).match_file(path):
            return False
    except (ValueError, TypeError):
        return False
    if pattern.endswith("/*"):  # only what lies directly there, unlike in .gitignore
        return path.count("/") == pattern.lstrip("/").count("/")
    return True
