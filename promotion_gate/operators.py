"""What operators see: status, history, the card, and the message after a move, as text or JSON.

Everything from outside is stripped of control characters before it reaches a terminal.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import GateError, NotInRegistry, UsageError
from promotion_gate.core.types import AuditRecord
from promotion_gate.registry.interface import Registry
from promotion_gate.transition import Recorded, StatusFacts
from promotion_gate.vouching import HistoryEntry

CARD_FILE = "card.html"
"""The artifact of a gate run that holds the model card."""

HISTORY_SCHEMA = "promotion-gate-history/1"
_REASON_WIDTH = 60


def plain(text: str, width: int = 0) -> str:
    """One line that cannot steer a terminal: unprintable characters become spaces; cut to ``width``."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"{line[: width - 1]}…" if 0 < width < len(line) else line


def moved_message(recorded: Recorded, seconds: float | None = None) -> str:
    """What to tell the operator after a promotion, rollback, approval, rejection or hold."""
    record = recorded.record
    name = record.ref.name
    lines = [plain(f"note: {note}") for note in recorded.notes]
    move = record.transition
    took = "" if seconds is None else f" in {seconds:.1f} s"
    if move is None:
        word = {"reject": "rejected", "hold": "held", "revoke": "revoked"}.get(record.action, record.action)
        lines.append(f"{word} {record.ref}{took}; production is unchanged")
    else:
        word = {"rollback": "rolled back", "approve": "approved and promoted"}.get(record.action, "promoted")
        before = "none" if move.from_version is None else str(move.from_version)
        lines.append(f"{word} {name}: {move.alias} is version {move.to_version}, was {before}{took}")
    lines.append(f"digest {record.digest}")
    lines.append(f"by {record.user}@{record.host}: {record.reason}")
    return "\n".join(map(plain, lines))


def status_text(facts: StatusFacts) -> str:
    """The status of one model, for a person."""
    name = facts.name
    version = "no version" if facts.version is None else f"version {facts.version}"
    lines = [f"{name}: {facts.alias} is {version}"]
    advice: set[int] = set()  # the lines that are indented
    if facts.moved_elsewhere:
        lines.append(
            "warning: the alias was not put there by the gate; the version may never have been judged"
        )
    elif facts.last_move is not None:
        lines.append(_how_it_came(facts.last_move))
    if facts.version in facts.revoked:
        lines.append(f"warning: version {facts.version} was revoked; roll back")
    if facts.in_production_stage is not None and list(facts.in_production_stage) != [facts.version]:
        staged = ", ".join(map(str, facts.in_production_stage)) or "no version"
        lines.append(f"warning: the legacy stage Production holds {staged}")
    for entry in facts.held:
        version_name = f"{name}/{entry.event.pointer.version}"
        reason = entry.record.reason if entry.record else entry.problem
        lines.append(f"held: {version_name}: {plain(reason, 200)}")
        advice.add(len(lines))
        lines.append(f'promotion-gate approve {shlex.quote(plain(version_name))} --reason "…"')
    lines += [
        f"unfinished: {event.pointer.action} of {name}/{event.pointer.version}, begun"
        f" {event.at.isoformat(sep=' ', timespec='seconds')}"
        for event in facts.unfinished
    ]
    return "\n".join("  " * (number in advice) + plain(line) for number, line in enumerate(lines))


def status_json(facts: StatusFacts) -> str:
    """The status of one model, for a program."""
    return _dump(
        {
            "name": facts.name,
            "alias": facts.alias,
            "version": facts.version,
            "moved_elsewhere": facts.moved_elsewhere,
            "last_move": None if facts.last_move is None else _entry_json(facts.last_move),
            "held": [_entry_json(entry) for entry in facts.held],
            "revoked": list(facts.revoked),
            "unfinished": [event.event_id for event in facts.unfinished],
            "in_production_stage": facts.in_production_stage,
        }
    )


def history_text(entries: Sequence[HistoryEntry]) -> str:
    """Who did what to which bytes, when and why: a table, oldest first."""
    if not entries:
        return "no history: the gate has never ruled on this model"
    header = ("when", "what", "version", "production", "who", "digest", "why")
    rows = [header, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def history_json(name: str, entries: Sequence[HistoryEntry]) -> str:
    """The whole history, for a program; ``verified`` is false where the record cannot be believed."""
    return _dump({"schema": HISTORY_SCHEMA, "name": name, "events": [_entry_json(e) for e in entries]})


def fetch_card(registry: Registry, model: str, folder: Path) -> Path:
    """Copy the card of the version's newest gate run into ``folder`` and return its path.

    Raises
    ------
    NotInRegistry: no such version, or the gate has made no card of it.
    UsageError: the folder cannot be written.
    """
    ref = registry.resolve(model)
    run_id = registry.last_gate_run(ref)
    try:
        content = registry.read_file(run_id, CARD_FILE)
    except NotInRegistry:
        raise NotInRegistry(
            f"the newest gate run of {ref} made no card (run {run_id})",
            "run 'promotion-gate run' on it again",
        ) from None
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in ref.name)[:100]
    path = folder / f"{name}-{ref.version}-card.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "name another folder") from None
    return path


def error_line(error: GateError) -> str:
    """An error as it may be printed."""
    return plain(str(error))


def _how_it_came(entry: HistoryEntry) -> str:
    record = entry.record
    if record is None:
        return f"warning: {entry.problem}"
    when = record.at.isoformat(timespec="seconds")
    return (
        f"{record.action} by {record.user}@{record.host} at {when}, digest {record.digest}: {record.reason}"
    )


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    pointer, record = entry.event.pointer, entry.record
    what = pointer.action if entry.event.state == "done" else f"{pointer.action} ({entry.event.state})"
    moved = f"{pointer.from_version or 'none'} -> {pointer.to_version}" if pointer.moves else "unchanged"
    if record is None:
        when, who, digest = entry.event.at, "?", "?"
        why = f"RECORD NOT VERIFIED: {plain(entry.problem)}"
    else:
        when, who, digest = record.at, f"{record.user}@{record.host}", record.digest[:12]
        unsafe = f"[{', '.join(record.unsafe)}] " if record.unsafe else ""
        why = unsafe + plain(record.reason, _REASON_WIDTH)
    at = when.isoformat(sep=" ", timespec="seconds")
    return at, what, str(pointer.version), moved, plain(who, 40), digest, why


def _entry_json(entry: HistoryEntry) -> dict[str, Any]:
    event, pointer = entry.event, entry.event.pointer
    return {
        "event": event.event_id,
        "state": event.state,
        "note": event.note,
        "action": pointer.action,
        "version": pointer.version,
        "alias": pointer.alias,
        "from": pointer.from_version,
        "to": pointer.to_version,
        "verified": entry.record is not None,
        "problem": entry.problem,
        "record": None if entry.record is None else _record_json(entry.record),
    }


def _record_json(record: AuditRecord) -> dict[str, Any]:
    return {
        "at": record.at.isoformat(),
        "user": record.user,
        "host": record.host,
        "reason": record.reason,
        "digest": record.digest,
        "outcome": record.outcome,
        "policy_digest": record.policy_digest,
        "card_sha256": record.card_sha256,
        "verdict_sha256": record.verdict_sha256,
        "baseline_sha256": record.baseline_sha256,
        "gate_run_id": record.gate_run_id,
        "gate_version": record.gate_version,
        "champion": record.champion,
        "unsafe": list(record.unsafe),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True)
