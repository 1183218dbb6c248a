"""The record of a place where data enters, as one language's scanner saw it, before it is judged."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HOLE = "{…}"
"""Stands in an address or a name for a part that is only known when the code runs."""


class Known(enum.StrEnum):
    """An answer about an entry; what cannot be told is never taken for a yes."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "not to be told"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with what it rests on."""

    known: Known
    why: str = ""


UNTOLD = Answer(Known.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Entry:
    """One place where data enters.

    ``line``, ``column`` and ``end_line`` count from 1. ``loader`` is the full name of the function or
    command, ``family`` the library it belongs to. ``dataset`` is the set's name in the loader's own terms
    and ``url`` its address, each empty where unknown and with :data:`HOLE` for what is known only at run
    time; ``home`` is the page of a set on a hub. ``context`` says why this is taken for data where the loader
    alone does not tell. ``code`` is the call without layout and ``pins`` the version and hash that it
    gives, for the fingerprint.
    """

    line: int
    column: int
    end_line: int
    loader: str
    family: str
    kind: str
    code: str
    dataset: str = ""
    url: str = ""
    home: str = ""
    pinned: Answer = UNTOLD
    hashed: Answer = UNTOLD
    context: str = ""
    pins: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file, or a part of one, that could not be read as what it says it is."""

    line: int
    reason: str
