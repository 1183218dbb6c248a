r"""The list of a data set's files in the form of ``sha256sum``: a line a file, ``<hex sha256>  <path>``.

``cd`` into the set, and ``sha256sum -c`` reads it. Lines are in order of the UTF-8 bytes of the paths, so
that equal sets have equal lists. As GNU's own do, a line whose path holds a backslash, line feed or carriage
return begins with a backslash and has them as ``\\``, ``\n`` and ``\r``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from promotion_gate.core.errors import DbomError

MAX_SIDECAR_BYTES = 2**30

_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  ([^\n\0]+)\n")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escaped: plain for plain, escaped in _ESCAPES.items()}


def sidecar_bytes(files: Iterable[tuple[str, str]]) -> bytes:
    """The list of (path, hex SHA-256) pairs, which come in order."""
    return b"".join(_line(path, digest) for path, digest in files)


def parse_sidecar(content: bytes, name: str) -> dict[str, str]:
    """Paths and their digests, in the list's order.

    Raises
    ------
    DbomError: a line is malformed, out of order or given twice, or a path leads out of the set.
    """
    files: dict[str, str] = {}
    position, last = 0, b""
    for number, match in enumerate(_LINE.finditer(content), 1):
        if match.start() != position:
            break
        position = match.end()
        path = _path(match[3], escaped=bool(match[1]), where=f"{name}: line {number}")
        encoded = path.encode()
        if encoded <= last:
            raise DbomError(f"{name}: line {number} ({path!r:.200}) is out of order or given twice")
        files[path] = match[2].decode()
        last = encoded
    if position != len(content) or not files:
        line = content.count(b"\n", 0, position) + 1
        raise DbomError(f"{name}: line {line} is not a line of sha256sum")
    return files


def refuse_stray_path(path: str, where: str) -> None:
    """Refuse a path that is absolute, leads upwards, or is written in a roundabout way.

    Raises
    ------
    DbomError: naming ``where``.
    """
    if path.startswith("/"):
        raise DbomError(f"{where}: the path {path!r:.200} is absolute")
    parts = path.split("/")
    if ".." in parts:
        raise DbomError(f"{where}: the path {path!r:.200} leads upwards")
    if "" in parts or "." in parts or "\0" in path:
        raise DbomError(f"{where}: the path {path!r:.200} is not in its plain form")


def _line(path: str, digest: str) -> bytes:
    escaped = "".join(_ESCAPES.get(char, char) for char in path)
    return f"{chr(92) * (escaped != path)}{digest}  {escaped}\n".encode()


def _path(raw: bytes, *, escaped: bool, where: str) -> str:
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise DbomError(f"{where}: the path {raw[:80]!r} is not UTF-8") from None
    plain = re.sub(r"\\.?", lambda found: _UNESCAPES.get(found[0], "\0"), path) if escaped else path
    if "\0" in plain or _line(plain, "")[:1] != (b"\\" if escaped else b" "):
        raise DbomError(f"{where}: the path {path!r:.200} is not escaped as sha256sum does")
    refuse_stray_path(plain, where)
    return plain
