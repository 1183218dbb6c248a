"""The verdict in Markdown, for the summary page of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterator

from promotion_gate.card.detail import inert
from promotion_gate.card.records import CardView, Reason
from promotion_gate.card.view import view
from promotion_gate.core.types import Outcome, Report

_SIGNS = {Outcome.PROMOTE: "✅", Outcome.HOLD: "⏸️", Outcome.REJECT: "⛔"}
_MARKUP = re.compile(r"[\\`*_{}\[\]<>()#!|&~@:$\"'=^]|www(?=\.)", re.IGNORECASE)


def report_markdown(report: Report) -> str:
    """Verdict, reasons, triggers, what was not checked and the next commands, in GitHub's Markdown."""
    return "\n".join(_lines(view(report), report)) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown and HTML render as it is: markup becomes character references."""
    return _MARKUP.sub(lambda m: "".join(f"&#{ord(c)};" for c in m[0]), inert(" ".join(text.split())))


def _lines(card: CardView, report: Report) -> Iterator[str]:
    yield f"## {_SIGNS[card.outcome]} {card.outcome.value}: {escaped(card.name)} version {card.version}"
    yield ""
    yield escaped(card.headline)
    if card.reasons:
        yield ""
        yield "| Check | Metric | Measured | Bound | |"
        yield "|---|---|---:|---|---|"
        yield from map(_reason, card.reasons)
    if card.more_reasons:
        yield ""
        yield f"And {card.more_reasons} more on the card."
    for trigger in card.triggers:
        yield ""
        interval = f" (95 % interval {trigger.interval})" if trigger.interval else ""
        yield (
            f"A patch turns **{escaped(trigger.source)}** into **{escaped(trigger.target)}** "
            f"in {trigger.rate} of the images tried{interval}."
        )
    if card.unchecked:
        yield ""
        yield "### Not checked"
        yield ""
        for entry in card.unchecked:
            holds = " (holds the candidate)" if entry.blocking else ""
            yield f"- {escaped(entry.title)}, {entry.kind}{holds}: {escaped(entry.reason)}"
    if card.unsafe:
        yield ""
        yield "**Switched off by the policy:** " + ", ".join(map(escaped, card.unsafe))
    yield ""
    yield f"Digest `{_code(report.candidate.digest)}` · policy `{_code(card.policy_digest)}`"
    for what, command in card.commands.items():
        yield ""
        yield f"{what}:"
        yield ""
        yield f"    {command}"


def _reason(reason: Reason) -> str:
    cells = (reason.title, reason.metric, reason.measured, reason.bound, reason.sentence)
    return "| " + " | ".join(map(escaped, cells)) + " |"


def _code(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z:._-]", "", text) or "none"
