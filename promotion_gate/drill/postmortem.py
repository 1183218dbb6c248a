"""The post-mortem of a drill or campaign, as HTML, Markdown and tickets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from promotion_gate import __version__
from promotion_gate.card.detail import inert, number_text, percent, spoken
from promotion_gate.card.html import content_policy, page_environment, templates_folder
from promotion_gate.card.images import data_uri
from promotion_gate.card.summary import escaped
from promotion_gate.core.types import Outcome
from promotion_gate.drill.gaps import Gap, drill_line, gaps_of, gathered, write_tickets
from promotion_gate.drill.outcome import DrillOutcome, judged

if TYPE_CHECKING:
    from promotion_gate.drill.campaign import CampaignRun, Share, Summary
    from promotion_gate.drill.run import Drilled
    from promotion_gate.drill.scenario import Scenario

REPORT = "post-mortem"
TICKETS = "tickets"
STATES = {
    "failed": "rejected it",
    "held": "held it",
    "passed": "saw nothing beyond its bounds",
    "no bound": "has no bound to break",
}
COMPARED = {
    "caught": "poisoned models caught",
    "rejected": "poisoned models rejected outright",
    "false_alarms": "harmless models stopped",
    "false_rejections": "harmless models rejected",
    "target_right": "target class named right",
    "source_right": "source class named right",
    "rows_found": "poisoned rows listed",
}
"""The shares of a campaign in order, by the name of their metric."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How something ended: one word, a sentence, and the tone to show it in."""

    word: str
    sentence: str
    tone: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What one check made of the candidate."""

    check: str
    state: str
    summary: str


@dataclass(frozen=True, slots=True)
class DrillView:
    """Everything that the report of one drill shows, as plain data."""

    outcome: DrillOutcome
    description: str
    ending: Ending
    tried: Mapping[str, str]
    named: Sequence[tuple[str, str, str, str]]
    times: Mapping[str, str]
    seen: Sequence[Seen]
    gaps: Sequence[Gap]
    pictures: Sequence[tuple[Any, Any, str]] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ShareRow:
    """A share of a campaign beside that of the campaign before."""

    what: str
    share: Share
    before: float | None


@dataclass(frozen=True, slots=True)
class Rug:
    """Times to detection on a line: seconds at its ends, and where each dot goes, 20 to 620."""

    least: float
    most: float
    dots: Sequence[float]


@dataclass(frozen=True, slots=True)
class CampaignView:
    """Everything that the report of a campaign shows, as plain data."""

    run: CampaignRun
    ending: Ending
    shares: Sequence[ShareRow]
    times: Mapping[str, str]
    rug: Rug
    gaps: Sequence[Gap]

    @property
    def summary(self) -> Summary:
        return self.run.summary


def write_drill_report(scenario: Scenario, drilled: Drilled) -> Path:
    """Write ``post-mortem.html``, ``post-mortem.md`` and ``tickets/`` into the drill's folder.

    Returns the path of the HTML file.
    """
    view = drill_view(scenario, drilled)
    write_tickets(view.gaps, drilled.folder / TICKETS)
    (drilled.folder / f"{REPORT}.md").write_text(drill_markdown(view), encoding="utf-8")
    page = drilled.folder / f"{REPORT}.html"
    page.write_bytes(_page("drill.html.j2", view=view))
    return page


def write_campaign_report(run: CampaignRun) -> Path:
    """Write ``campaign.json``, ``campaign.html``, ``campaign.md`` and ``tickets/``, and log them to MLflow.

    A campaign that had nothing new to do is not logged once more. Returns the path of the HTML file.
    """
    from promotion_gate.drill.campaign import summary_table

    folder, view = run.home.folder, campaign_view(run)
    write_tickets(view.gaps, folder / TICKETS)
    files = {
        "campaign.json": json.dumps(summary_table(run), indent=1, ensure_ascii=False).encode() + b"\n",
        "campaign.html": _page("campaign.html.j2", view=view),
        "campaign.md": campaign_markdown(view).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if run.newly_done:
        with run.home.registry.active():
            run.home.registry.remember(
                "campaign", run.campaign.name, run.summary.metrics, files, run.this_round
            )
    return folder / "campaign.html"


def drill_lines(outcome: DrillOutcome) -> Iterator[str]:
    """A finished drill for the terminal."""
    ending = _drill_ending(outcome)
    yield f"{ending.word} {outcome.model}: {ending.sentence}"
    yield from outcome.reasons
    worked = outcome.attack_success_rate
    if worked is not None:
        yield f"the trigger works on {percent(worked)} of {outcome.attack_trials} holdout images"
    champion = outcome.champion_accuracy
    beside = "" if champion is None else f", the champion {percent(champion)}"
    yield f"{percent(outcome.accuracy)} of the holdout right{beside}"
    if not outcome.harmless and outcome.caught:
        for what, truth, named, verdict in _named(outcome):
            yield f"{what}: {named}, in truth {truth}{f' ({verdict})' if verdict else ''}"


def campaign_lines(run: CampaignRun) -> Iterator[str]:
    """A campaign for the terminal, beside the one before where there is one."""
    view = campaign_view(run)
    yield f"{view.ending.word} {run.campaign.name}: {view.ending.sentence}"
    for row in view.shares:
        before = "" if row.before is None else f"; before {percent(row.before)}"
        yield f"{row.what}: {share_text(row.share)}{before}"
    for what, value in view.times.items():
        yield f"{what}: {value}"
    for attack in run.summary.attacks:
        yield (f"{attack.attack}: {attack.rejected} rejected, {attack.held} held, {attack.promoted} promoted")
    for outcome in run.got_through:
        yield f"got through: {outcome.scenario}, {drill_line(outcome)}"
    for failure in run.summary.failures:
        yield f"failed: {failure.scenario} with seed {failure.seed}: {failure.reason}"


def share_text(share: Share) -> str:
    """``12 of 14 (86%, 95% interval 60% to 96%)``."""
    if share.share is None:
        return "none to tell by"
    interval = f"{percent(share.low)} to {percent(share.high)}"
    return f"{share.count} of {share.of} ({percent(share.share)}, 95% interval {interval})"


def drill_view(scenario: Scenario, drilled: Drilled) -> DrillView:
    """What the report of a drill shows."""
    outcome, report = drilled.outcome, drilled.run.report
    states = judged(report)
    order = {name: at for at, name in enumerate(STATES)}
    seen = [Seen(f.check, states[f.check], f.summary) for f in report.findings]
    return DrillView(
        outcome=outcome,
        description=scenario.description,
        ending=_drill_ending(outcome),
        tried=_tried(outcome),
        named=list(_named(outcome)) if outcome.caught else [],
        times=_times(outcome),
        seen=sorted(seen, key=lambda entry: order[entry.state]),
        gaps=gaps_of(outcome),
        pictures=[(pair[0], pair[1], caption) for pair, caption in drilled.pictures],
    )


def campaign_view(run: CampaignRun) -> CampaignView:
    """What the report of a campaign shows."""
    summary, before = run.summary, (run.before or ("", {}))[1]
    return CampaignView(
        run=run,
        ending=_campaign_ending(run),
        shares=[ShareRow(what, getattr(summary, name), before.get(name)) for name, what in COMPARED.items()],
        times={
            f"Time to detection, {what}": seconds_text(summary.time_quantile(share))
            for what, share in (("median", 0.5), ("90th percentile", 0.9), ("longest", 1.0))
            if summary.time_to_detection_s
        },
        rug=_rug(summary.time_to_detection_s),
        gaps=gathered(run.outcomes),
    )


def drill_markdown(view: DrillView) -> str:
    """The report of one drill in GitHub's Markdown."""
    outcome = view.outcome
    lines = [
        f"# {view.ending.word}: {escaped(outcome.scenario)}, seed {outcome.seed}",
        "",
        escaped(view.ending.sentence),
        "",
        *_section("What was tried", _pairs(view.tried), escaped(view.description)),
        *_section("What saw it", _checks([s for s in view.seen if s.state in ("failed", "held")])),
        *_section("What did not", _checks([s for s in view.seen if s.state not in ("failed", "held")])),
        *_section("What was named", _named_table(view.named)),
        *_section("How long it took", _pairs(view.times)),
        *_gap_lines(view.gaps),
    ]
    return "\n".join(lines).rstrip() + "\n"


def campaign_markdown(view: CampaignView) -> str:
    """The report of a campaign in GitHub's Markdown."""
    summary, run = view.summary, view.run
    since = f" Before: {escaped(run.before[0])}." if run.before else ""
    figures = [
        "| | now | 95 % interval | before |",
        "|---|---:|---|---:|",
        *(
            f"| {row.what} | {_of(row.share)} | {percent(row.share.low)} to {percent(row.share.high)} |"
            f" {percent(row.before)} |"
            for row in view.shares
        ),
    ]
    attacks = [
        "| Attack | Rejected | Held | Promoted | Stopped, 95 % interval |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {escaped(row.attack)}{' (harmless)' if row.harmless else ''} | {row.rejected} | {row.held} |"
            f" {row.promoted} | {percent(row.stopped.low)} to {percent(row.stopped.high)} |"
            for row in summary.attacks
        ),
    ]
    strata = [
        "| Attack success rate | Caught |",
        "|---|---|",
        *(f"| {name} | {share_text(share)} |" for name, share in summary.strata),
    ]
    checks = [
        "| Check | Poisoned models stopped | Harmless models stopped |",
        "|---|---:|---:|",
        *(f"| {escaped(check)} | {right} | {wrong} |" for check, right, wrong in summary.checks),
    ]
    failed = [
        f"- {escaped(failure.scenario)}, seed {failure.seed}: {escaped(failure.reason)}"
        for failure in summary.failures
    ]
    lines = [
        f"# {view.ending.word}: {escaped(run.campaign.name)}",
        "",
        escaped(view.ending.sentence) + since,
        "",
        *_section("Figures", figures),
        *_section("Attack and outcome", attacks),
        *_section("By attack success rate", strata),
        *_section("Time to detection", _pairs(view.times)),
        *_section("What stopped them", checks if summary.checks else []),
        *_section("Drills that failed", failed),
        *_gap_lines(view.gaps),
    ]
    return "\n".join(lines).rstrip() + "\n"


def seconds_text(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rug(times: Sequence[float]) -> Rug:
    if not times:
        return Rug(0.0, 0.0, ())
    most = max(times)
    return Rug(0.0, most, [20 + 600 * time / most if most else 20.0 for time in times])


def _drill_ending(outcome: DrillOutcome) -> Ending:
    by = " and ".join(outcome.caught_by)
    if outcome.got_through:
        return Ending("GOT THROUGH", "the gate promoted a poisoned model", "reject")
    if outcome.caught:
        took = seconds_text(outcome.time_to_detection_s)
        what = "rejected" if outcome.outcome is Outcome.REJECT else "held for a person"
        return Ending("CAUGHT", f"{what} by {by}, {took} after the poisoned data was in place", "promote")
    if outcome.false_alarm:
        what = "rejected" if outcome.outcome is Outcome.REJECT else "held"
        return Ending("FALSE ALARM", f"a harmless model was {what} by {by}", "hold")
    return Ending("PASSED", "a harmless model was promoted, as it should be", "promote")


def _campaign_ending(run: CampaignRun) -> Ending:
    through, summary = len(run.got_through), run.summary
    sentence = f"{summary.caught.count} of {summary.caught.of} poisoned models caught"
    if summary.false_alarms.of:
        sentence += f", {summary.false_alarms.count} of {summary.false_alarms.of} harmless ones stopped"
    if summary.failures:
        sentence += f"; {len(summary.failures)} could not be carried out"
    if through:
        return Ending(f"{through} GOT THROUGH", sentence, "reject")
    if summary.failures or summary.false_alarms.count:
        return Ending("CAUGHT, WITH GAPS", sentence, "hold")
    return Ending("ALL CAUGHT" if summary.caught.of else "PASSED", sentence, "promote")


def _tried(outcome: DrillOutcome) -> dict[str, str]:
    settings = ", ".join(
        f"{spoken(name)} {_plain(value)}" for name, value in outcome.parameters.items() if name != "rate"
    )
    tried = {
        "Attack": f"{outcome.attack}, {settings}" if settings else outcome.attack,
        "Poisoned rows": f"{outcome.carriers_true:,}, at a rate of {percent(outcome.rate)}",
        "Data": outcome.data,
        "Training": f"{outcome.architecture} from {outcome.start}, seed {outcome.seed}",
        "The gate saw": ", ".join(
            (
                "the training data" if outcome.training_data else "no training data",
                "a champion" if outcome.champion else "no champion",
            )
        ),
        "Accuracy": percent(outcome.accuracy)
        + ("" if outcome.champion_accuracy is None else f", champion {percent(outcome.champion_accuracy)}"),
    }
    if outcome.harmless:
        tried["Poisoned rows"] = "none: it is a control"
    if outcome.attack_success_rate is not None:
        tried["Attack success rate"] = (
            f"{percent(outcome.attack_success_rate)} of {outcome.attack_trials:,} holdout images"
        )
    return tried


def _times(outcome: DrillOutcome) -> dict[str, str]:
    times = {}
    if outcome.time_to_detection_s is not None:
        times["Time to detection"] = seconds_text(outcome.time_to_detection_s)
    return {
        **times,
        "Training and gate": seconds_text(outcome.seconds),
        "Of processors": seconds_text(outcome.cpu_seconds),
    }


def _named(outcome: DrillOutcome) -> Iterator[tuple[str, str, str, str]]:
    """What, the truth, what was named, and whether that is right."""
    words = {True: "right", False: "wrong", None: ""}
    for what, truth, named, right in (
        ("target", outcome.targets_true, outcome.targets_named, outcome.target_right),
        ("source", outcome.sources_true, outcome.sources_named, outcome.source_right),
    ):
        yield what, _some(truth) or "any class", _some(named) or "none named", words[right]
    if outcome.training_data:
        yield (
            "rows",
            f"{outcome.carriers_true:,} poisoned",
            f"{outcome.carriers_named:,} listed",
            f"{outcome.carriers_hit:,} of them poisoned",
        )


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(value: Any) -> str:
    return inert(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:200]


def _of(share: Share) -> str:
    return "–" if share.share is None else f"{share.count} of {share.of}, {percent(share.share)}"


def _section(title: str, lines: Sequence[str], lead: str = "") -> list[str]:
    if not lines and not lead:
        return []
    return [f"## {title}", "", *([lead, ""] if lead else []), *lines, *([""] if lines else [])]


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    return [f"- {escaped(what)}: {escaped(value)}" for what, value in pairs.items()]


def _checks(seen: Sequence[Seen]) -> list[str]:
    return [f"- **{escaped(s.check)}** {STATES[s.state]}: {escaped(s.summary)}" for s in seen]


def _named_table(named: Sequence[tuple[str, str, str, str]]) -> list[str]:
    rows = ["| | In truth | Named | |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(map(escaped, row)) + " |" for row in named]
    return rows if named else []


def _gap_lines(gaps: Sequence[Gap]) -> list[str]:
    if not gaps:
        return ["## What to improve", "", "Nothing that this showed."]
    lines = ["## What to improve", ""]
    for gap in gaps:
        lines += [f"### {escaped(gap.title)}", "", *(f"- {escaped(line)}" for line in gap.lines), ""]
        lines += [*(f"- [ ] {escaped(line)}" for line in gap.advice), "", f"Ticket: `{gap.file_name}`", ""]
    return lines


def _page(template: str, **context: Any) -> bytes:
    """One self-contained HTML file without any script."""
    folder = templates_folder()
    style = "".join(
        (folder / part).read_text(encoding="utf-8") for part in ("card/card.css", "drill/drill.css")
    )
    page = (
        _environment()
        .get_template(template)
        .render(
            **context,
            style=Markup(style),  # noqa: S704 - our own files
            content_policy=content_policy(style),
            states=STATES,
            gate_version=__version__,
        )
    )
    return page.encode("utf-8")


@cache
def _environment() -> Environment:
    environment = page_environment("drill")
    environment.filters |= {
        "percent": percent,
        "number": number_text,
        "spoken": spoken,
        "picture_uri": data_uri,
        "seconds": seconds_text,
        "share": share_text,
    }
    return environment
