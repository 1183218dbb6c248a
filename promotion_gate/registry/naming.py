"""How model URIs are read, and how events, locks and gate runs are named in MLflow's tags."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import cast, get_args
from urllib.parse import urlsplit

from promotion_gate.core.errors import UsageError
from promotion_gate.core.types import Action
from promotion_gate.registry.interface import MAX_SEQUENCE, EventPointer

PREFIX = "promotion_gate."
KIND = PREFIX + "kind"
MODEL = PREFIX + "model"
MODEL_KEY = PREFIX + "model_key"
VERSION = PREFIX + "version"
NOTE = PREFIX + "note"
CALL_TOKEN = PREFIX + "call_token"
"""Tells the run that one call created from that of a repeat."""
LOCK_TOKEN = PREFIX + "lock_token"
LOCK_WHO = PREFIX + "lock_who"
LOCK_UNTIL = PREFIX + "lock_until"

LOCK_PREFIX = "promotion-gate-lock-"

_ALIAS = re.compile(r"[A-Za-z0-9_\-]{1,255}")
_ABSENT = "-"


def parse_model_uri(uri: str) -> tuple[str, int | str]:
    """Name and either version number or alias of ``models:/name/7``, ``name/7`` or ``models:/name@alias``.

    Raises
    ------
    UsageError: anything else, legacy stages and ``latest`` included.
    """
    body = uri.removeprefix("models:/")
    if match := re.fullmatch(r"([^/@:]{1,256})/([0-9]{1,18})", body):
        return match[1], int(match[2])
    if match := re.fullmatch(r"([^/@:]{1,256})@(.+)", body):
        if not _ALIAS.fullmatch(match[2]):
            raise UsageError(
                f"not an alias: {match[2][:80]!r}", "an alias has only letters, digits, '_' and '-'"
            )
        return match[1], match[2]
    if match := re.fullmatch(r"([^/@:]{1,256})/(Production|Staging|Archived|None|latest)", body, re.I):
        raise UsageError(
            f"{uri!r} names a stage, which can hold several versions",
            f"name one version as models:/{match[1]}/7 or models:/{match[1]}@alias",
        )
    raise UsageError(f"not a model version: {uri[:200]!r}", "write models:/name/7 or models:/name@alias")


def model_key(name: str) -> str:
    """A form of the model's name that needs no quoting in a search filter."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def lock_name(name: str, number: int = 0) -> str:
    """The registered model that stands for the lock of model ``name``, or for one that comes after it."""
    return f"{LOCK_PREFIX}{model_key(name)}" + (f"-{number}" if number else "")


def host_of(uri: str) -> str:
    """A tracking URI as it may be shown: without user, password, query and fragment.

    Raises
    ------
    UsageError: it is no URI.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"not a tracking or registry URI: {error}") from None
    if not parts.netloc:
        return uri.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def pointer_tags(pointer: EventPointer) -> dict[str, str]:
    """The tags of an event's run."""
    return {
        KIND: "event",
        MODEL: pointer.name,
        MODEL_KEY: model_key(pointer.name),
        VERSION: str(pointer.version),
        PREFIX + "action": pointer.action,
        PREFIX + "alias": pointer.alias,
        PREFIX + "sequence": str(pointer.sequence),
        PREFIX + "from": _number(pointer.from_version),
        PREFIX + "to": _number(pointer.to_version),
        PREFIX + "mirror_stage": "yes" if pointer.mirror_stage else "no",
        PREFIX + "gate_run_id": pointer.gate_run_id or _ABSENT,
    }


def read_pointer(tags: Mapping[str, str]) -> EventPointer | None:
    """The pointer in a run's tags; None when the tags are not a whole one."""
    try:
        action = tags[PREFIX + "action"]
        if action not in get_args(Action):
            return None
        gate_run_id = tags.get(PREFIX + "gate_run_id", _ABSENT)
        return EventPointer(
            name=tags[MODEL],
            version=_numbered(tags[VERSION]),
            action=cast(Action, action),
            alias=tags[PREFIX + "alias"],
            sequence=_place(tags[PREFIX + "sequence"]),
            from_version=_version(tags[PREFIX + "from"]),
            to_version=_version(tags[PREFIX + "to"]),
            mirror_stage=tags.get(PREFIX + "mirror_stage") == "yes",
            gate_run_id="" if gate_run_id == _ABSENT else gate_run_id,
        )
    except (KeyError, ValueError):
        return None


def _number(version: int | None) -> str:
    return _ABSENT if version is None else str(version)


def _version(text: str) -> int | None:
    return None if text == _ABSENT else _numbered(text)


def _place(text: str) -> int:
    place = int(text)
    if not 0 <= place <= MAX_SEQUENCE:
        raise ValueError(f"not a place in a history: {text[:80]!r}")
    return place


def _numbered(text: str) -> int:
    version = int(text)
    if not 1 <= version < 10**18:
        raise ValueError(f"not a version number: {text[:80]!r}")
    return version
