"""The rules for the files that tell a server what to install: nothing but packages by name.

The gate installs none of them. A serving job does, with the candidate's list, so an index, a URL or an
option in one would choose whose code the server runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from promotion_gate.core.errors import ArtifactError
from promotion_gate.evidence.manifest import parse_yaml

MAX_ENVIRONMENT_BYTES = 256 << 10
MAX_LINE_CHARACTERS = 1000
REQUIREMENT_FILES = frozenset(["requirements.txt", "constraints.txt"])
ENVIRONMENT_FILES = frozenset(["conda.yaml", "python_env.yaml"])

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"(?:===|==|~=|!=|<=|>=|<|>|=)\s*[A-Za-z0-9._*+!-]+"
_PACKAGE = re.compile(
    rf"{_NAME}(?:\s*\[[A-Za-z0-9._,\s-]*\])?\s*(?:{_VERSION}(?:\s*,\s*{_VERSION})*)?(?:\s*;[^@#:/\\]*)?"
)
_INCLUDES = frozenset(["-r requirements.txt", "-c constraints.txt"])
# PyTorch publishes its builds there and nowhere else, and its own instructions put the line into the file.
_PYTORCH_INDEX = re.compile(
    r"--extra-index-url[ =]https://download\.pytorch\.org/whl(?:/[a-z0-9][a-z0-9.]*)*/?"
)
_CHANNELS = frozenset(["anaconda", "conda-forge", "defaults", "main", "nodefaults", "nvidia", "pytorch"])
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PYTHON_VERSION = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,3}){0,2}")
# pip reads a file in the encoding that a comment names, and in another one a comment can hold an option.
_CODING = re.compile(r"coding[:=]")
_CONDA_KEYS = frozenset(["name", "channels", "dependencies"])
_PYTHON_KEYS = frozenset(["python", "build_dependencies", "dependencies"])


def environment_violations(name: str, content: bytes) -> Iterator[str]:
    """What in a file of this name would install from elsewhere, or do more than install."""
    if len(content) > MAX_ENVIRONMENT_BYTES:
        yield f"is larger than {MAX_ENVIRONMENT_BYTES:,} bytes"
    elif name in REQUIREMENT_FILES:
        yield from _encoding_violations(content)
        yield from _requirement_violations(content.decode("utf-8", "replace").splitlines())
    else:
        try:
            table = parse_yaml(content, name)
        except ArtifactError as error:
            yield error.what.removeprefix(name).strip()
            return
        yield from _conda_violations(table) if name == "conda.yaml" else _python_violations(table)


def _encoding_violations(content: bytes) -> Iterator[str]:
    text = content.decode("ascii", "replace")
    if "\ufffd" in text or not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        yield "holds more than plain ASCII, which pip may read as something else"
    if _CODING.search(text):
        yield "names an encoding in a comment, in which pip would read it"


def _requirement_violations(lines: Sequence[Any]) -> Iterator[str]:
    for line in lines:
        text = str(line).split(" #")[0].strip() if isinstance(line, str) else repr(line)
        if not text or text.startswith("#") or text in _INCLUDES:
            continue
        if _PYTORCH_INDEX.fullmatch(text):
            continue
        if len(text) > MAX_LINE_CHARACTERS or _PACKAGE.fullmatch(text) is None:
            yield (
                f"{text[:80]!r} is no package by name: a server would install from where the model says;"
                " set indexes where the server is built"
            )


def _conda_violations(table: dict[str, Any]) -> Iterator[str]:
    yield from _key_violations(table, _CONDA_KEYS)
    yield from _text_violations(table, "name", _ENVIRONMENT_NAME)
    for channel in _listed(table.get("channels")):
        if channel not in _CHANNELS:
            known = ", ".join(sorted(_CHANNELS))
            yield f"channel {str(channel)[:80]!r} is anybody's; accepted are {known}"
    for entry in _listed(table.get("dependencies")):
        if isinstance(entry, dict) and entry.keys() == {"pip"}:
            yield from _requirement_violations(_listed(entry["pip"]))
        else:
            yield from _requirement_violations([entry])


def _python_violations(table: dict[str, Any]) -> Iterator[str]:
    yield from _key_violations(table, _PYTHON_KEYS)
    yield from _text_violations(table, "python", _PYTHON_VERSION)
    for key in ("build_dependencies", "dependencies"):
        yield from _requirement_violations(_listed(table.get(key)))


def _key_violations(table: dict[str, Any], allowed: frozenset[str]) -> Iterator[str]:
    for key in table:
        if key not in allowed:
            yield f"key {key[:60]!r} is not accepted"


def _text_violations(table: dict[str, Any], key: str, allowed: re.Pattern[str]) -> Iterator[str]:
    """MLflow writes these values into Dockerfiles and commands."""
    value = table.get(key)
    if value is not None and (isinstance(value, bool) or allowed.fullmatch(str(value)) is None):
        yield f"{key} {str(value)[:80]!r} is not accepted"


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else [value]
