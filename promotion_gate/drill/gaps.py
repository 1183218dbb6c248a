"""What a drill shows to be missing, each as a ticket that an issue tracker can take in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promotion_gate.card.detail import inert, percent
from promotion_gate.card.summary import escaped
from promotion_gate.core.types import Outcome
from promotion_gate.drill.outcome import DrillOutcome

LABEL = "security-drill"
ROWS_WANTED = 0.5
"""A drill that lists a smaller share of the poisoned rows shows a gap."""

WORKS, WORKS_RARELY = 0.8, 0.3


@dataclass(frozen=True, slots=True)
class Gap:
    """One thing to improve.

    ``kind`` and ``about`` name it, so that many drills make one ticket of it; ``lines`` are sentences about
    what was seen, and ``advice`` what could be done.
    """

    kind: str
    about: str
    title: str
    labels: tuple[str, ...]
    lines: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def file_name(self) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.about}".lower()).strip("-")
        return f"{slug[:100]}.md"


def gaps_of(outcome: DrillOutcome) -> list[Gap]:
    """What one drill shows to be missing; empty where everything went as it should."""
    return list(_gaps(outcome))


def gathered(outcomes: Sequence[DrillOutcome]) -> list[Gap]:
    """The gaps of many drills, one ticket a kind and scenario, the gravest first."""
    found: dict[tuple[str, str], list[Gap]] = {}
    for outcome in outcomes:
        for gap in _gaps(outcome):
            found.setdefault((gap.kind, gap.about), []).append(gap)
    made = []
    for same in found.values():
        first = same[0]
        lines = tuple(dict.fromkeys(line for gap in same for line in gap.lines))
        advice = tuple(dict.fromkeys(line for gap in same for line in gap.advice))
        labels = min((gap.labels for gap in same), key=_urgency)
        title = first.title if len(same) == 1 else f"{first.title} ({len(same)} drills)"
        made.append(Gap(first.kind, first.about, title, labels, lines, advice))
    return sorted(made, key=lambda gap: (_urgency(gap.labels), gap.kind, gap.about))


def write_tickets(gaps: Sequence[Gap], folder: Path) -> list[Path]:
    """One Markdown file a gap; the tickets of an earlier report in the folder are replaced.

    The front matter holds ``title`` and ``labels``, as ``gh issue create`` and its like take them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    paths = []
    for gap in gaps:
        path = folder / gap.file_name
        number = 2
        while path in paths:
            path = folder / f"{path.stem}-{number}.md"
            number += 1
        path.write_text(ticket(gap), encoding="utf-8")
        paths.append(path)
    return paths


def ticket(gap: Gap) -> str:
    """The Markdown of one ticket."""
    lines = [
        "---",
        f"title: {json.dumps(inert(gap.title), ensure_ascii=False)}",
        f"labels: {', '.join(gap.labels)}",
        "---",
        "",
        "## What the drill saw",
        "",
        *(f"- {escaped(line)}" for line in gap.lines),
        "",
        "## What could be done",
        "",
        *(f"- [ ] {escaped(line)}" for line in gap.advice),
    ]
    return "\n".join(lines) + "\n"


def drill_line(outcome: DrillOutcome) -> str:
    """One drill in one sentence: attack, rate, how well it works, and how it ended."""
    worked = outcome.attack_success_rate
    works = "" if worked is None else f", attack success {percent(worked)} of {outcome.attack_trials} images"
    how = f"{outcome.architecture} from {outcome.start}, seed {outcome.seed}"
    return f"{outcome.attack} at {percent(outcome.rate)}{works}; {how}: {outcome.ended}"


def _gaps(outcome: DrillOutcome) -> Iterator[Gap]:
    name, line = outcome.scenario, drill_line(outcome)
    if outcome.got_through:
        worked = outcome.attack_success_rate
        grave = worked is None or worked >= WORKS_RARELY
        yield Gap(
            "got-through",
            name,
            f"{name}: a model poisoned by {outcome.attack} got through the gate",
            (LABEL, "detection-gap", "priority-high" if grave else "priority-low"),
            (line, *_stayed_silent(outcome)),
            tuple(_advice(outcome)),
        )
    if outcome.false_alarm:
        what = "rejected" if outcome.outcome is Outcome.REJECT else "held"
        by = " and ".join(outcome.caught_by) or "the gate"
        yield Gap(
            f"false-alarm-{what}",
            name,
            f"{name}: a harmless model was {what} by {by}",
            (LABEL, "false-alarm", "priority-high" if what == "rejected" else "priority-medium"),
            (line, *outcome.reasons),
            (
                "derive the bounds of these checks from clean retrains: promotion-gate calibrate",
                "look at the card: if the rows that it lists are mislabelled, mend the data instead",
            ),
        )
    if outcome.caught and outcome.target_right is False:
        named = ", ".join(outcome.targets_named) or "none"
        yield Gap(
            "target-not-named",
            name,
            f"{name}: the model was stopped without naming the target class",
            (LABEL, "diagnosis-gap", "priority-medium"),
            (line, f"target named: {named}; in truth {', '.join(outcome.targets_true[:5])}"),
            ("make the check that stopped it name the class, or look why it names another",),
        )
    elif outcome.caught and outcome.source_right is False:
        named = ", ".join(outcome.sources_named) or "none"
        yield Gap(
            "source-not-named",
            name,
            f"{name}: the model was stopped without naming the source class",
            (LABEL, "diagnosis-gap", "priority-low"),
            (line, f"source named: {named}; in truth {', '.join(outcome.sources_true[:5])}"),
            ("make the check that stopped it name the source class, or look why it names another",),
        )
    if outcome.caught and outcome.recall is not None and outcome.recall < ROWS_WANTED:
        yield Gap(
            "rows-not-listed",
            name,
            f"{name}: most poisoned rows are not listed",
            (LABEL, "diagnosis-gap", "priority-medium"),
            (
                line,
                f"{outcome.carriers_hit} of {outcome.carriers_true} poisoned rows are among the"
                f" {outcome.carriers_named} that were listed",
            ),
            ("clean by hand before retraining: taking out the listed rows alone leaves poison behind",),
        )
    for check, why in outcome.unmeasured.items():
        yield Gap(
            "not-measured",
            check,
            f"{check} measured nothing",
            (LABEL, "blind-spot", "priority-medium"),
            (f"{name}, seed {outcome.seed}: {why}",),
            ("give the check what it needs, or take it out of the policy knowingly",),
        )


def _stayed_silent(outcome: DrillOutcome) -> Iterator[str]:
    checks = [check for check, metrics in outcome.findings.items() if metrics]
    yield f"measured, and within every bound: {', '.join(checks) or 'nothing'}"
    if not outcome.training_data:
        yield "the gate did not see the training data"
    if not outcome.champion:
        yield "there was no champion to compare with"


def _advice(outcome: DrillOutcome) -> Iterator[str]:
    if not outcome.training_data:
        yield "let the policy name the training data: most checks for poison read it"
    if not outcome.champion:
        yield "keep a trusted model in production: what a candidate does differently is the best evidence"
    worked = outcome.attack_success_rate
    if worked is not None and worked < WORKS_RARELY:
        yield "weigh it first: this poison hardly works on the finished model"
    yield (
        "compare what the checks measured here with clean retrains (promotion-gate calibrate): a bound"
        " between the two stops this attack"
    )
    yield "drill it again after the change, with the same seeds"


def _urgency(labels: tuple[str, ...]) -> int:
    order = ("priority-high", "priority-medium", "priority-low")
    return next((at for at, label in enumerate(order) if label in labels), len(order))
