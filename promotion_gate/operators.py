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
from promotion_gate.core.types import NO_DIGEST, AuditRecord, ForeignMove
from promotion_gate.foreign import foreign_line
from promotion_gate.journal import Recorded
from promotion_gate.registry.interface import Registry
from promotion_gate.rollback import RollbackPlan, duration
from promotion_gate.status import StatusFacts
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
    elif record.action == "accept":
        lines.append(f"accepted {record.ref}: {move.alias} stays where it was found")
    else:
        word = {"rollback": "rolled back", "approve": "approved and promoted"}.get(record.action, "promoted")
        before = "none" if move.from_version is None else str(move.from_version)
        lines.append(f"{word} {name}: {move.alias} is version {move.to_version}, was {before}{took}")
    lines.append(f"digest {record.digest}")
    lines.append(f"by {record.user}@{record.host}: {record.reason}")
    return "\n".join(map(plain, lines))


def planned_message(plan: RollbackPlan) -> str:
    """What a rollback would do, for the operator who asked before doing it."""
    name = plan.ref.name
    before = "none" if plan.from_version is None else str(plan.from_version)
    lines = [
        *(f"note: {note}" for note in plan.notes),
        f"would roll back {name}: {plan.alias} would be version {plan.ref.version}, is {before}",
        f"digest {plan.digest}, taken just now" + "".join(f" [{unsafe}]" for unsafe in plan.unsafe),
        "nothing was moved or written",
    ]
    return "\n".join(map(plain, lines))


def status_text(facts: StatusFacts) -> str:
    """The status of one model, for a person."""
    name = facts.name
    version = "no version" if facts.version is None else f"version {facts.version}"
    lines = [f"{name}: {facts.alias} is {version}"]
    advice: set[int] = set()  # the lines that are indented
    if facts.foreign is not None:
        lines.append(f"warning: {foreign_line(name, facts.foreign)}; the version may never have been judged")
        ways = _ways_to_settle(facts)
        advice.update(range(len(lines), len(lines) + len(ways)))
        lines += ways
    elif facts.last_move is not None:
        lines.append(_how_it_came(facts.last_move))
    if facts.version in facts.revoked:
        lines.append(f"warning: version {facts.version} was revoked; roll back")
    stage = facts.in_production_stage
    is_told = facts.foreign is not None and facts.foreign.stage is not None
    if stage is not None and list(stage) != [facts.version] and not is_told:
        staged = ", ".join(map(str, stage)) or "no version"
        lines.append(f"warning: the legacy stage Production holds {staged}")
    lines += _at_a_glance(facts)
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


def _ways_to_settle(facts: StatusFacts) -> list[str]:
    name = shlex.quote(plain(facts.name))
    ways = [f'promotion-gate rollback {name} --reason "…"']
    if facts.version is not None:
        ways.append(f'promotion-gate recover {name} --accept-foreign --reason "…"')
    return ways


def _at_a_glance(facts: StatusFacts) -> list[str]:
    """The rest of a model's life, a line each; what there is nothing to say of is left out."""
    lines = []
    if facts.candidate is not None:
        lines.append(f"candidate: version {facts.candidate}")
    if facts.version is not None or facts.last_good is not None:
        last_good = "none" if facts.last_good is None else f"version {facts.last_good}"
        lines.append(f"last good: {last_good}")
    if facts.revoked:
        lines.append(f"revoked: {', '.join(map(str, facts.revoked))}")
    if facts.drift:
        lines.append(f"drift: {facts.drift}")
    if facts.mttr is not None:
        count = len(facts.recovery_seconds)
        times = "one rollback" if count == 1 else f"{count} rollbacks"
        lines.append(f"mean time to recovery: {duration(facts.mttr)}, over {times}")
    return lines


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
            "candidate": facts.candidate,
            "last_good": facts.last_good,
            "foreign": None if facts.foreign is None else _foreign_json(facts.foreign),
            "drift": facts.drift,
            "mttr_seconds": facts.mttr,
            "recoveries": len(facts.recovery_seconds),
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
    unsafe = f" [{', '.join(record.unsafe)}]" if record.unsafe else ""
    who = f"{record.user}@{record.host}"
    return f"{record.action} by {who} at {when}, digest {record.digest}{unsafe}: {record.reason}"


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    pointer, record = entry.event.pointer, entry.record
    what = pointer.action if entry.event.state == "done" else f"{pointer.action} ({entry.event.state})"
    tells = pointer.moves or pointer.action == "foreign"
    moved = f"{pointer.from_version or 'none'} -> {pointer.to_version or 'none'}" if tells else "unchanged"
    if record is None:
        when, who, digest = entry.event.at, "?", "?"
        why = f"RECORD NOT VERIFIED: {plain(entry.problem)}"
    else:
        who = f"{record.user}@{record.host}"
        who = f"unknown, seen by {who}" if record.action == "foreign" else who
        when, digest = record.at, "-" if record.digest == NO_DIGEST else record.digest[:12]
        unsafe = f"[{', '.join(record.unsafe)}] " if record.unsafe else ""
        why = unsafe + (_seen(record.foreign) if record.foreign else plain(record.reason, _REASON_WIDTH))
    at = when.isoformat(sep=" ", timespec="seconds")
    return at, what, str(pointer.version), moved, plain(who, 40), digest, why


def _seen(found: ForeignMove) -> str:
    staged = (
        ""
        if found.stage is None
        else f"; stage Production holds {', '.join(map(str, found.stage)) or 'none'}"
    )
    return f"changed past the gate{staged}"


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
        "foreign": None if record.foreign is None else _foreign_json(record.foreign),
        "about": record.about,
        "alarm_at": None if record.alarm_at is None else record.alarm_at.isoformat(),
    }


def _foreign_json(found: ForeignMove) -> dict[str, Any]:
    return {
        "alias": found.alias,
        "from": found.from_version,
        "to": found.to_version,
        "stage": None if found.stage is None else list(found.stage),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True)
