"""What a poisoning did, sealed: written beside the poisoned data, opened when the drill is over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import UsageError

ANSWERS_FILE = "answers.json"
MAX_ANSWER_BYTES = 2**30
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Answers:
    """The truth about a poisoned copy.

    Attributes
    ----------
    kind, parameters: the attack and all its fields.
    harmless: nothing ought to be found.
    sources, targets: the classes that the attack works on and those it wants to be seen.
    rate, seed: the attack's rate, and what everything was drawn from.
    rows, ids: every row that was touched, as numbered and called in the copy.
    labels_before, labels_after: class names of these rows in the original and in the copy.
    triggered: which of these rows carry the trigger.
    carriers: those of the rows that serve the attack and ought to be found.
    data: path of the copy, relative to this file's folder.
    data_sha256: its digest, as :meth:`~promotion_gate.data.interface.ImageDataset.sha256` has it.
    original, original_rows: where the data came from, and the touched rows as numbered there.
    """

    kind: str
    parameters: Mapping[str, Any]
    harmless: bool
    sources: Sequence[str]
    targets: Sequence[str]
    rate: float
    seed: int
    rows: Sequence[int] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    labels_before: Sequence[str] = field(repr=False)
    labels_after: Sequence[str] = field(repr=False)
    triggered: Sequence[bool] = field(repr=False)
    carriers: Sequence[int] = field(repr=False)
    data: str
    data_sha256: str
    original: str
    original_rows: Sequence[int] = field(default=(), repr=False)


def write_answers(path: Path, answers: Answers) -> str:
    """Write the answers to a new file and return its SHA-256: the seal, to be kept elsewhere.

    Raises
    ------
    UsageError: the file is there already or cannot be written.
    """
    content = json.dumps({"schema": _SCHEMA, **asdict(answers)}, indent=1, ensure_ascii=True).encode() + b"\n"
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "choose another folder") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return hashlib.sha256(content).hexdigest()


def read_answers(path: Path, sha256: str) -> Answers:
    """Open sealed answers.

    Parameters
    ----------
    sha256: the seal that :func:`write_answers` returned.

    Raises
    ------
    UsageError: the file is missing, was edited, or does not hold answers.
    """
    try:
        if path.stat().st_size > MAX_ANSWER_BYTES:
            raise UsageError(f"{path} is larger than {MAX_ANSWER_BYTES >> 20} MiB: not an answer file")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the answer file {path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UsageError(
            f"the answer file {path} was edited: its SHA-256 is {found[:12]}…, sealed was {sha256[:12]}…",
            "poison the data anew and drill again",
        )
    try:
        table = json.loads(content)
        schema = table.pop("schema")
        if schema != _SCHEMA:
            raise UsageError(f"{path} has the answer schema {schema!r:.20}, and this version reads {_SCHEMA}")
        return Answers(**{one.name: table[one.name] for one in fields(Answers)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} does not hold a drill's answers") from None
