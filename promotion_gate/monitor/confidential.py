"""Secrets by reference, and texts from which they are taken out again.

A file names a secret, ``${NAME}`` for a variable of the environment or ``file:PATH``, and never holds it:
such files are committed, copied and mailed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from promotion_gate.core.errors import UsageError

MAX_SECRET_BYTES = 16_384
HIDDEN = "***"

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_SHORTEST = 4
"""Shorter pieces of a secret are not looked for: they are parts of words."""


class Secret:
    """A value that shows itself to nobody who prints it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the wire alone."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"


def is_reference(text: str) -> bool:
    """Whether a text names a secret instead of being one."""
    return _VARIABLE.fullmatch(text) is not None or text.startswith("file:")


def secret(reference: str, where: str) -> Secret:
    """What ``${NAME}`` or ``file:PATH`` stands for, without the line's end.

    Raises
    ------
    UsageError: it is no reference, or what it names is not there or empty. The text itself is never shown,
        since it may be the secret that should not have been written there.
    """
    name = _VARIABLE.fullmatch(reference)
    if name is not None:
        value = os.environ.get(name[1], "")
        source = f"the environment variable {name[1]}"
    elif reference.startswith("file:"):
        path = Path(reference.removeprefix("file:"))
        source = f"the file {path}"
        value = _read(path, where)
    else:
        raise UsageError(f"{where} holds a secret itself", 'name it instead: "${VARIABLE}" or "file:PATH"')
    value = value.strip()
    if not value:
        raise UsageError(f"{where}: {source} is not there or empty")
    if not value.isprintable():
        raise UsageError(f"{where}: {source} holds more than one line, or what is no text")
    return Secret(value)


def redacted(text: str, secrets: Iterable[Secret]) -> str:
    """``text`` without the secrets, without any part of them, and without what follows a URL's scheme."""
    text = _URL.sub(rf"\1://{HIDDEN}", text)
    pieces = {piece for each in secrets for piece in _pieces(each.reveal())}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    return text


def host_in(url: str) -> str:
    """The host of a URL, which may be named in a message; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _read(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where}: the file {path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise UsageError(f"{where}: the file {path} is too large for a secret")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{where}: the file {path} is no text") from None


def _pieces(value: str) -> Iterator[str]:
    """A secret and its telling parts, in every form that an error message may show them in."""
    parts = [value]
    try:
        url = urlsplit(value)
    except ValueError:
        url = urlsplit("")
    if url.scheme and url.netloc:
        parts += [part for part in (url.username, url.password, url.fragment) if part]
        parts += [url.path, *url.path.split("/"), url.query]
        parts += [text for pair in parse_qsl(url.query) for text in pair]
        parts.append(url.netloc.rpartition("@")[0])
    for part in parts:
        for form in (part, quote(part), quote(part, safe=""), unquote(part), json.dumps(part)[1:-1]):
            if len(form) >= _SHORTEST:
                yield form
