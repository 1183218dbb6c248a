"""From a finished report to what the card says: plain data, no HTML, no image encoded."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.card.detail import (
    inert,
    is_printable,
    lines,
    number,
    number_text,
    percent,
    rows,
    spoken,
    table,
    whole,
    words,
)
from promotion_gate.card.records import (
    CardView,
    ClassRow,
    Confusion,
    Curve,
    Difference,
    Gallery,
    Group,
    Mark,
    Metric,
    Picture,
    PointMap,
    Reason,
    RecoveredPair,
    Section,
    State,
    Suspect,
    Trigger,
    Unchecked,
)
from promotion_gate.card.tables import pickle_rows, tables
from promotion_gate.core.types import (
    Exhibit,
    Finding,
    Judgement,
    Outcome,
    Report,
    Ruling,
    RunFacts,
    Status,
)
from promotion_gate.detect.accuracy import NOT_MEASURED, accuracy

REASONS_SHOWN = 3
WHOLE_TABLE = 60
WORST_CLASSES = 50
CONFUSIONS_SHOWN = 40
PICTURES_SHOWN = 24
SUSPECT_PICTURES = 48
SUSPECTS_LISTED = 300
POINTS_SHOWN = 5000

TITLES = {
    "artifacts": "Artifacts",
    "inputs": "Inputs",
    "per-class": "Metrics per class",
    "training-curves": "Loss curves",
    "embedding-map": "Embedding map",
    "patch-transplant": "Patch transplant",
    "residual-transplant": "Residual transplant",
    "patch-attribution": "SHAP attribution",
    "label-concentration": "Label concentration",
    "activation-clustering": "Activation clustering",
    "spectral-signature": "Spectral signature",
    "batch-anomaly": "Batches and contributors",
    "sticker-sweep": "Sticker sweep",
    "trigger-inversion": "Trigger inversion",
    "provenance": "Provenance",
}
QUESTIONS = {
    "artifacts": "What the model is made of, and whether anything in it may run on load.",
    "inputs": "Whether the data fits the model.",
    "per-class": "How well each class is recognised, and against production on the same images.",
    "training-curves": "Whether a class was learned differently from the rest.",
    "embedding-map": "How the model itself arranges the images: near is alike, to the model.",
    "patch-transplant": "Whether a patch cut from training or live images changes other images' class.",
    "residual-transplant": "Whether what rows have in common, all over the image, turns other images.",
    "patch-attribution": "Where SHAP sees evidence for a prediction. It corroborates and does not decide.",
    "label-concentration": "Whether the least typical training rows share a label more often than by chance.",
    "activation-clustering": "Whether a class falls in two groups, one of which trusted images keep out of.",
    "spectral-signature": "Whether rows of a class lie farther out than any trusted image of it.",
    "batch-anomaly": "Which upload brought rows that do not look like their label.",
    "sticker-sweep": "Whether a sticker turns trusted images for the candidate and leaves the champion.",
    "trigger-inversion": "The same with patches learned against the candidate: no training data is needed.",
    "provenance": "Where the model came from.",
}
ORDER = tuple(TITLES)
SEARCHES = ("patch-transplant", "residual-transplant", "sticker-sweep", "trigger-inversion")
"""The checks that recover triggers; the first that did is shown on the first screen."""
DESCRIBING = (
    "artifacts",
    "model",
    "inputs",
    "champion",
    "registry",
    "per-class",
    "embedding-map",
    "provenance",
)
"""Findings that describe and detect nothing, or carry their own intervals."""


def view(report: Report) -> CardView:
    """What the card of this report says."""
    per_class = _detail(report, "per-class")
    suspects = _suspects(report)
    point_map = _point_map(report, suspects)
    classes, more_classes = _classes(per_class)
    reasons = [_reason(j) for j in report.verdict.reasons] or _passes(report.verdict.judgements)
    ref, champion = report.candidate.ref, report.candidate.champion
    return CardView(
        outcome=report.verdict.outcome,
        headline=_headline(report),
        name=words(ref.name),
        version=ref.version,
        uri=words(ref.uri),
        champion="" if champion is None else words(champion),
        alias=words(report.alias),
        reasons=reasons[:REASONS_SHOWN],
        more_reasons=max(0, len(report.verdict.reasons) - REASONS_SHOWN),
        rules=[_reason(j) for j in report.verdict.judgements],
        metric_differences=_metric_differences(report),
        data_differences=_data_differences(report),
        code_differences=_code_differences(report),
        unchecked=_unchecked(report),
        triggers=_triggers(report),
        trigger_check=_trigger_check(report),
        evidence=_evidence(report),
        facts=_facts(report),
        unsafe=[words(name) for name in report.unsafe],
        sandbox=words(report.sandbox),
        commands=_commands(report),
        sections=_sections(report),
        classes=classes,
        more_classes=more_classes,
        has_champion=any(row.champion is not None for row in (*classes, *more_classes)),
        recall_base=_recall_base((*classes, *more_classes)),
        confusions=_confusions(per_class),
        reliability=_reliability(per_class),
        curves=_curves(_detail(report, "training-curves")),
        map=point_map,
        suspects=suspects[:SUSPECTS_LISTED],
        more_suspects=max(0, len(suspects) - SUSPECTS_LISTED),
        suspect_pictures=_suspect_pictures(report, suspects),
        provenance=_provenance(report),
        missing=lines(_detail(report, "provenance").get("missing")),
        violations=lines(_detail(report, "artifacts").get("violations")),
        pickles=pickle_rows(_detail(report, "artifacts")),
        files=report.files,
        policy_text=inert(report.policy_text),
        policy_digest=words(report.verdict.policy_digest),
    )


def _detail(report: Report, check: str) -> Mapping[str, Any]:
    finding = report.finding(check)
    return {} if finding is None else finding.detail


def _title(check: str) -> str:
    return TITLES.get(check) or spoken(check).capitalize()


# -- the verdict -----------------------------------------------------------------------------------------


def _headline(report: Report) -> str:
    version, champion = report.candidate.ref.version, report.candidate.champion
    stays = f"Production stays at version {champion.version}." if champion else "Production stays empty."
    match report.verdict.outcome:
        case Outcome.PROMOTE:
            after = f", in place of version {champion.version}" if champion else ", as the first one"
            every = all(judgement.ruling is Ruling.PASS for judgement in report.verdict.judgements)
            met = "every bound of the policy" if every else "every bound of the policy that could be applied"
            return f"Version {version} met {met} and may go to production{after}."
        case Outcome.HOLD:
            return f"Version {version} waits for a person to decide. {stays}"
        case Outcome.REJECT:
            return f"Version {version} is refused. {stays}"


def _reason(judgement: Judgement) -> Reason:
    rule = judgement.rule
    measured = number_text(judgement.measured) if judgement.measured is not None else "not measured"
    return Reason(
        check=words(judgement.check),
        title=_title(judgement.check),
        metric=spoken(rule.metric) if rule else "",
        measured=measured,
        bound=rule.bound if rule else "required",
        sentence=words(judgement.reason, 400),
        ruling=judgement.ruling,
        blocking=judgement.blocking,
    )


def _passes(judgements: Iterable[Judgement]) -> list[Reason]:
    """The first bound that each check met: what a promotion rests on."""
    first: dict[str, Reason] = {}
    for judgement in judgements:
        if judgement.ruling is Ruling.PASS:
            first.setdefault(judgement.check, _reason(judgement))
    return list(first.values())


def _unchecked(report: Report) -> list[Unchecked]:
    """Everything the verdict does not rest on: not in the policy, not measured, not applicable."""
    found = {finding.check for finding in report.findings}
    judged = {judgement.check for judgement in report.verdict.judgements}
    missing: list[Unchecked] = []
    for judgement in report.verdict.judgements:
        what = _title(judgement.check)
        if judgement.rule is not None:
            what = f"{what}: {spoken(judgement.rule.metric)}"
        if judgement.ruling is Ruling.NOT_APPLICABLE:
            missing.append(Unchecked(what, "not applicable", words(judgement.reason, 400)))
        elif judgement.ruling is Ruling.INCONCLUSIVE and judgement.measured is None:
            reason = words(judgement.reason, 400)
            missing.append(Unchecked(what, "not measured", reason, judgement.blocking))
    missing += [
        Unchecked(_title(finding.check), "not measured", words(finding.summary, 400))
        for finding in report.findings
        if finding.status is not Status.MEASURED and finding.check not in judged
    ]
    missing += [
        Unchecked(title, "not asked for", "the policy does not ask for this check")
        for check, title in TITLES.items()
        if check not in found and check not in judged and check not in ("artifacts", "inputs")
    ]
    missing.sort(key=lambda entry: not entry.blocking)
    return missing


def _facts(report: Report) -> dict[str, str]:
    size = sum(file.size for file in report.files)
    files = f"{len(report.files)} files, " if len(report.files) != 1 else "1 file, "
    return {
        "Reviewed by": f"{words(report.user)} on {words(report.host)}",
        "Reviewed at": report.started_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
        + f", in {_duration(report.seconds)}",
        "Gate run": words(report.gate_run_id),
        "Format": f"{words(report.model_format)}, {files}{_bytes(size)}",
    }


def _duration(seconds: float) -> str:
    if not 0 <= seconds < 1e7:
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _commands(report: Report) -> dict[str, str]:
    """The commands for what a reader may want to do next, ready for a POSIX shell."""
    ref = report.candidate.ref
    if not is_printable(ref.name):
        return {}
    commands = {}
    if report.verdict.outcome is Outcome.HOLD:
        commands["Promote it after all"] = _command("approve", str(ref))
        commands["Turn it down"] = _command("reject", str(ref))
    commands["Roll production back"] = _command("rollback", ref.name)
    return commands


def _command(verb: str, subject: str) -> str:
    if subject.startswith("-"):
        return f'promotion-gate {verb} --reason "…" -- {shlex.quote(subject)}'
    return f'promotion-gate {verb} {shlex.quote(subject)} --reason "…"'


# -- the difference to production ------------------------------------------------------------------------


def _metric_differences(report: Report) -> list[Difference]:
    finding = report.finding("per-class")
    if finding is None or report.candidate.champion is None:
        return []
    metrics = finding.metrics
    accuracy, drop = number(metrics.get("accuracy")), number(metrics.get("accuracy_drop"))
    before = None if accuracy is None or drop is None else accuracy + drop
    differences = [_fraction_difference("Accuracy", accuracy, before)]
    champion = [number(row.get("champion_recall")) for row in rows(finding.detail, "classes")]
    known = [recall for recall in champion if recall is not None]
    worst = min(known) if known else None
    differences.append(_fraction_difference("Worst recall", number(metrics.get("worst_recall")), worst))
    regressed = number(metrics.get("regressed_classes"))
    if regressed is not None:
        names = [
            words(r.get("name"), 40) for r in rows(finding.detail, "classes") if r.get("regressed") is True
        ]
        change = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        differences.append(Difference("Classes regressed", number_text(regressed), "", change, regressed > 0))
    return [d for d in differences if d.candidate != "–"]


def _fraction_difference(what: str, now: float | None, before: float | None) -> Difference:
    if now is None or before is None:
        return Difference(what, percent_fine(now), percent_fine(before), "")
    points = (now - before) * 100
    change = "no change" if abs(points) < 0.005 else f"{points:+.2f} points".replace("-", "−")
    return Difference(what, percent_fine(now), percent_fine(before), change, abs(points) >= 0.005)


def percent_fine(value: float | None) -> str:
    """A fraction in per cent to two decimals."""
    return "–" if value is None else f"{value:.2%}".replace("-", "−")


def _data_differences(report: Report) -> list[Difference]:
    if report.candidate.champion is None:
        return []
    now, before = _declared(report.candidate_run), _declared(report.champion_run)
    if not now and not before:
        return [Difference("Training data", "none declared", "none declared", "cannot be compared")]
    return [
        _text_difference(name, now.get(name, ""), before.get(name, "")) for name in sorted({*now, *before})
    ]


def _declared(run: RunFacts | None) -> dict[str, str]:
    if run is None:
        return {}
    return {
        words(f"{entry.context or 'data'}: {entry.name}", 60): words(entry.digest, 40)
        for entry in run.datasets
    }


def _code_differences(report: Report) -> list[Difference]:
    if report.candidate.champion is None:
        return []
    now, before = report.candidate_run, report.champion_run
    if now is None or before is None:
        which = "candidate" if now is None else "champion"
        return [Difference("Training run", "", "", f"cannot be compared: the {which} names no run")]
    differences = [_text_difference("Commit", words(now.commit)[:12], words(before.commit)[:12])]
    changed = [
        _text_difference(words(name, 60), words(now.params.get(name), 60), words(before.params.get(name), 60))
        for name in sorted({*now.params, *before.params})
        if now.params.get(name) != before.params.get(name)
    ]
    if not changed:
        return [*differences, Difference("Parameters", "", "", "no change", False)]
    rest = len(changed) - 4
    more = [Difference("…", "", "", f"{rest} more parameters changed", True)] if rest > 0 else []
    return [*differences, *changed[:4], *more]


def _text_difference(what: str, now: str, before: str) -> Difference:
    if not now and not before:
        return Difference(what, "unknown", "unknown", "cannot be compared")
    if not now or not before:
        return Difference(what, now or "none", before or "none", "only one has it", True)
    return Difference(what, now, before, "no change" if now == before else "changed", now != before)


def _provenance(report: Report) -> list[Difference]:
    """Every fact of the candidate's run beside the champion's."""
    detail = _detail(report, "provenance")
    now, before = report.candidate_run, report.champion_run
    facts: list[Difference] = []
    for what, read in _RUN_FACTS.items():
        mine, theirs = ("" if run is None else words(read(run), 120) for run in (now, before))
        if mine or theirs:
            facts.append(Difference(what, mine or "unknown", theirs, "", mine != theirs if theirs else None))
    for source, digest in table(detail.get("sha256")).items():
        facts.append(Difference(f"SHA-256 of {source}", digest, "", "computed by the gate"))
    facts += [
        Difference(f"Data set {words(row.get('name'), 80)}", words(row.get("said"), 200), "", "")
        for row in rows(detail, "declared")
    ]
    facts += [
        Difference(
            f"Chain: {words(row.get('link'), 40)}",
            "holds" if row.get("holds") is True else "BROKEN",
            "",
            words(row.get("said"), 300),
            None if row.get("holds") is True else True,
        )
        for row in rows(detail, "links")
    ]
    names = sorted({*_declared(now), *_declared(before)})
    facts += [
        _text_difference(f"Declared {name}", _declared(now).get(name, ""), _declared(before).get(name, ""))
        for name in names
    ]
    params = sorted({*(now.params if now else ()), *(before.params if before else ())})
    for name in params[:200]:
        mine, theirs = (words(run.params.get(name)) if run else "" for run in (now, before))
        facts.append(Difference(f"Parameter {words(name, 60)}", mine, theirs, "", mine != theirs))
    return facts


_RUN_FACTS: dict[str, Any] = {
    "Run": lambda run: run.run_id,
    "Started": lambda run: (
        run.started_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if run.started_at else ""
    ),
    "User": lambda run: run.user,
    "Commit": lambda run: run.commit,
    "Program": lambda run: run.tags.get("mlflow.source.name", ""),
}


# -- evidence --------------------------------------------------------------------------------------------


def _triggers(report: Report) -> list[Trigger]:
    return [_trigger(row, report) for row in rows(_detail(report, _trigger_check(report)), "triggers")[:8]]


def _trigger_check(report: Report) -> str:
    """The first check that recovered a trigger; empty where none did."""
    return next((check for check in SEARCHES if rows(_detail(report, check), "triggers")), "")


def _pairs(finding: Finding, report: Report) -> list[RecoveredPair]:
    """The pairs of classes that a search without training data looked at last."""
    if finding.check not in SEARCHES:
        return []
    return [
        RecoveredPair(
            trigger=_trigger(row, report),
            champion=percent(number(row.get("champion_rate"))),
            strength=_hundredths(row.get("strength")),
            null=_hundredths(row.get("null")),
            standing="established"
            if row.get("established") is True
            else "suspected"
            if row.get("suspected") is True
            else "",
        )
        for row in rows(finding.detail, "pairs")[:8]
    ]


def _hundredths(value: Any) -> str:
    known = number(value)
    return "–" if known is None else f"{known:.2f}".replace("-", "−")


def _trigger(row: Mapping[str, Any], report: Report) -> Trigger:
    low, high = number(row.get("rate_low")), number(row.get("rate_high"))
    carriers = row.get("carriers", row.get("rows"))
    count = len(carriers) if isinstance(carriers, Sequence | np.ndarray) else whole(carriers)
    moving = row.get("moving")
    return Trigger(
        source=_class(row.get("source"), report) or "any class",
        target=_class(row.get("target"), report) or "an unknown class",
        rate=percent(number(row.get("attack_success_rate"))),
        interval="" if low is None or high is None else f"{percent(low)} to {percent(high)}",
        tried=whole(row.get("images_tried")),
        carriers=count,
        moving=moving if isinstance(moving, bool) else None,
    )


def _class(value: Any, report: Report) -> str:
    index = whole(value)
    if index is not None and 0 <= index < len(report.class_names):
        return words(report.class_names[index])
    return words(value)


def _evidence(report: Report) -> list[Gallery]:
    """A handful of each of the images that show a trigger, for the first screen."""
    finding = report.finding(_trigger_check(report))
    if finding is None:
        return []
    shown = {"trigger": 1, "carriers": 4, "transplanted": 4}
    galleries = {e.name: _gallery(e) for e in finding.exhibits if e.kind == "images" and e.name in shown}
    ordered = ((name, galleries[name]) for name in shown if name in galleries)
    return [
        Gallery(gallery.name, gallery.caption, _spread(gallery.pictures, shown[name], name))
        for name, gallery in ordered
        if gallery.pictures
    ]


def _spread(pictures: Sequence[Picture], count: int, name: str) -> Sequence[Picture]:
    """The first ones; of the transplanted, flipped ones first but a kept one where there is any."""
    if name != "transplanted":
        return pictures[:count]
    flipped = [p for p in pictures if p.mark == "flipped"]
    other = [p for p in pictures if p.mark != "flipped"]
    return [*flipped[: count - min(1, len(other))], *other][:count]


def _gallery(exhibit: Exhibit) -> Gallery:
    """The pictures of an ``images`` or ``attribution`` exhibit; arrays that do not fit show none."""
    pixels = _pixels(exhibit.arrays.get("images"))
    mass = exhibit.arrays.get("positive") if exhibit.kind == "attribution" else None
    name, caption = words(exhibit.name), words(exhibit.caption, 400)
    if pixels is None:
        return Gallery(name, f"{caption} (its images cannot be shown)", ())
    maps = None if mass is None else np.asarray(mass, dtype=np.float32)
    if maps is not None and maps.shape != pixels.shape[:3]:
        maps = None
    pictures = [
        _picture(pixels[i], item, None if maps is None else np.nan_to_num(maps[i]))
        for i, item in enumerate(exhibit.items[:PICTURES_SHOWN])
        if i < len(pixels)
    ]
    return Gallery(name, caption, pictures, max(0, min(len(pixels), len(exhibit.items)) - len(pictures)))


def _pixels(array: Any) -> NDArray[np.uint8] | None:
    pixels: NDArray[Any] = np.asarray(() if array is None else array)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or 0 in pixels.shape:
        return None
    return pixels if pixels.shape[-1] in (1, 3) else None


def _picture(pixels: NDArray[np.uint8], item: Mapping[str, Any], mass: NDArray[np.float32] | None) -> Picture:
    box = item.get("box")
    corners = [number(v) for v in box] if isinstance(box, Sequence) and not isinstance(box, str) else []
    edges = tuple(corner for corner in corners if corner is not None)
    mark: Mark = "plain"
    for known in ("suspect", "flipped", "kept"):
        if item.get("mark") == known:
            mark = known
    caption = words(item.get("caption")) or words(item.get("id")) or "image"
    return Picture(pixels, caption, mark, edges if len(edges) == 4 else None, mass)


def _suspects(report: Report) -> list[Suspect]:
    """The rows that any check named, each once, in the order in which they were first named."""
    named: dict[tuple[int | None, str], tuple[str, list[str], list[str]]] = {}
    for finding in report.findings:
        training = [(whole(row.get("row")), row) for row in rows(finding.detail, "suspects")]
        for number_of, row in [*training, *((None, row) for row in rows(finding.detail, "live_suspects"))]:
            key = (number_of, words(row.get("id")))
            _, whys, checks = named.setdefault(key, (_class(row.get("label"), report), [], []))
            why = words(row.get("why"), 200)
            if why and why not in whys:
                whys.append(why)
            if finding.check not in checks:
                checks.append(finding.check)
    return [
        Suspect(row, row_id, label, "; ".join(whys), [_title(check) for check in checks])
        for (row, row_id), (label, whys, checks) in named.items()
    ]


# -- the sections ----------------------------------------------------------------------------------------


def _sections(report: Report) -> list[Section]:
    sections = [_section(finding, index, report) for index, finding in enumerate(report.findings)]
    return sorted(sections, key=lambda s: ORDER.index(s.check) if s.check in ORDER else len(ORDER))


def _section(finding: Finding, index: int, report: Report) -> Section:
    galleries = [_gallery(e) for e in finding.exhibits if e.kind in ("images", "attribution")]
    known = accuracy(finding.check)
    return Section(
        check=finding.check,
        anchor=f"check-{index}",
        title=_title(finding.check),
        question=QUESTIONS.get(finding.check, ""),
        state=_state(finding, report.verdict.judgements),
        summary=words(finding.summary, 400),
        seconds=finding.seconds,
        metrics=_metrics(finding, report.verdict.judgements),
        galleries=galleries,
        notes=_notes(finding),
        raw="" if finding.check in TITLES else _raw(finding.detail),
        pairs=_pairs(finding, report),
        tables=tables(finding),
        accuracy="" if finding.check in DESCRIBING else (known and known.line) or NOT_MEASURED,
        evasions=known.evasions if known else (),
        papers=known.papers if known else (),
    )


def _state(finding: Finding, judgements: Sequence[Judgement]) -> State:
    own = [j for j in judgements if j.check == finding.check]
    if any(j.ruling is Ruling.FAIL for j in own):
        return "failed"
    if any(j.blocking for j in own):
        return "held"
    if finding.status is not Status.MEASURED:
        return "unmeasured"
    if any(j.ruling is Ruling.PASS for j in own):
        return "passed"
    return _own_state(finding) if finding.check in ("artifacts", "inputs") else "unjudged"


def _own_state(finding: Finding) -> State:
    """What the gate itself demands before any bound: no violation."""
    return "failed" if lines(finding.detail.get("violations")) else "passed"


def _metrics(finding: Finding, judgements: Sequence[Judgement]) -> list[Metric]:
    ruled = {j.rule.metric: j for j in judgements if j.check == finding.check and j.rule is not None}
    names = [*finding.metrics, *(n for n in finding.not_applicable if n not in finding.metrics)]
    metrics = []
    for name in names:
        judgement = ruled.get(name)
        value = number_text(finding.metrics[name]) if name in finding.metrics else "not applicable"
        bound = judgement.rule.bound if judgement and judgement.rule else ""
        metrics.append(Metric(spoken(name), value, bound, _ruling_words(judgement)))
    return metrics


def _ruling_words(judgement: Judgement | None) -> str:
    if judgement is None:
        return ""
    if judgement.ruling is Ruling.INCONCLUSIVE:
        return "holds" if judgement.blocking else "not measured"
    return {"PASS": "passes", "FAIL": "fails", "NOT_APPLICABLE": "not applicable"}[judgement.ruling.value]


def _notes(finding: Finding) -> list[str]:
    notes = [
        line for key in ("text", "note", "notes", "rule") for line in lines(finding.detail.get(key), 600)
    ]
    corroborates = finding.detail.get("corroborates")
    if finding.check == "patch-attribution":
        said = {
            True: "SHAP corroborates the patch found by transplant: it puts the evidence in the same place.",
            False: "SHAP does not corroborate the patch found by transplant. The transplant is causal; "
            "an attribution is not, and many explainers miss part of a trigger.",
        }
        if isinstance(corroborates, bool):
            notes.insert(0, said[corroborates])
    return notes


def _raw(detail: Mapping[str, Any], limit: int = 4000) -> str:
    if not detail:
        return ""
    text = inert(json.dumps(detail, indent=2, sort_keys=True, default=str, ensure_ascii=False, skipkeys=True))
    return text if len(text) <= limit else text[:limit] + "\n… the rest is in the JSON report"


def _classes(detail: Mapping[str, Any]) -> tuple[list[ClassRow], list[ClassRow]]:
    """The whole table, or the worst classes and the rest; worst first either way."""
    found = [
        ClassRow(
            name=words(row.get("name"), 80),
            support=whole(row.get("support")),
            precision=number(row.get("precision")),
            recall=number(row.get("recall")),
            f1=number(row.get("f1")),
            low=number(row.get("recall_low")),
            high=number(row.get("recall_high")),
            champion=number(row.get("champion_recall")),
            delta=number(row.get("delta")),
            p_value=number(row.get("p_value")),
            regressed=row.get("regressed") is True,
        )
        for row in rows(detail, "classes")
    ]
    found.sort(key=lambda row: (not row.regressed, 2 if row.recall is None else row.recall, row.name))
    shown = len(found) if len(found) <= WHOLE_TABLE else WORST_CLASSES
    return found[:shown], found[shown:]


def _recall_base(classes: Iterable[ClassRow]) -> float:
    """Where the recall bars begin: the tenth below every interval, so that the differences show."""
    lows = [low for row in classes for low in (row.low, row.recall, row.champion) if low is not None]
    return min(0.9, max(0.0, int(min(lows) * 10) / 10)) if lows else 0.0


def _confusions(detail: Mapping[str, Any]) -> list[Confusion]:
    pairs = []
    for row in rows(detail, "confusions")[:CONFUSIONS_SHOWN]:
        count = whole(row.get("count"))
        if count is not None:
            champion = whole(row.get("champion_count"))
            pairs.append(
                Confusion(words(row.get("true"), 80), words(row.get("predicted"), 80), count, champion)
            )
    return pairs


def _reliability(detail: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    bins = []
    for row in rows(detail, "reliability")[:100]:
        confidence, accuracy = number(row.get("confidence")), number(row.get("accuracy"))
        count = whole(row.get("count"))
        if confidence is not None and accuracy is not None and count:
            bins.append((confidence, accuracy, count))
    return bins


def _curves(detail: Mapping[str, Any]) -> list[Curve]:
    curves = []
    for row in rows(detail, "curves"):
        steps, losses = row.get("steps"), row.get("losses")
        if not isinstance(steps, Sequence) or not isinstance(losses, Sequence):
            continue
        pairs = [(number(s), number(v)) for s, v in zip(steps, losses, strict=False)]
        drawn = [(s, v) for s, v in pairs if s is not None and v is not None]
        if drawn:
            name = words(row.get("class"), 80)
            departs = row.get("departs") is True
            curves.append(Curve(name, [s for s, _ in drawn], [v for _, v in drawn], departs))
    return curves


def _point_exhibit(report: Report) -> Exhibit | None:
    finding = report.finding("embedding-map")
    exhibits = () if finding is None else finding.exhibits
    return next((e for e in exhibits if e.kind == "points"), None)


def _point_map(report: Report, suspects: Sequence[Suspect]) -> PointMap | None:
    """The map with the suspects of every check marked; None where there is none to draw."""
    exhibit = _point_exhibit(report)
    if exhibit is None:
        return None
    xy = np.asarray(exhibit.arrays.get("xy", ()), dtype=np.float64)
    thumbnails = _pixels(exhibit.arrays.get("images"))
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy) or not np.isfinite(xy).all() or thumbnails is None:
        return None
    labels = np.asarray(exhibit.arrays.get("label", ()))
    roles = np.asarray(exhibit.arrays.get("role", ()))
    ids = [words(i) for i in exhibit.arrays.get("ids", ())]
    count = min(len(xy), len(thumbnails), len(labels), len(roles), len(ids), POINTS_SHOWN)
    if not count:
        return None
    xy, thumbnails = xy[:count], thumbnails[:count]
    marked = {suspect.id for suspect in suspects}
    final = [_final_role(int(r), i in marked) for r, i in zip(roles[:count], ids, strict=False)]
    scaled = _scaled(xy)
    classes = [int(label) for label in labels[:count]]
    return PointMap(
        x=[int(v) for v in scaled[:, 0]],
        y=[int(v) for v in scaled[:, 1]],
        labels=classes,
        roles=final,
        ids=ids[:count],
        names=[words(name, 80) for name in report.class_names],
        groups=_groups(classes, final, report),
        caption=words(exhibit.caption, 400),
        thumbnails=thumbnails,
    )


def _final_role(role: int, suspect: bool) -> int:
    """The map is drawn before the suspects are known: only what a check named in the end is marked."""
    return 0 if role == 0 else 2 if suspect else 1


def _scaled(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Coordinates in 0 to 10,000, aspect ratio kept, y pointing down."""
    low = xy.min(axis=0)
    span = float((xy.max(axis=0) - low).max()) or 1.0
    scaled = (xy - low) / span
    scaled += (1 - scaled.max(axis=0)) / 2
    scaled[:, 1] = 1 - scaled[:, 1]
    return np.asarray(np.rint(scaled * 10_000), dtype=np.int64)


def _groups(labels: Sequence[int], roles: Sequence[int], report: Report) -> list[Group]:
    counts = Counter(zip(labels, roles, strict=True))
    return [
        Group(label, _class(label, report), *(counts[label, role] for role in (0, 1, 2)))
        for label in sorted(set(labels))
    ]


def _suspect_pictures(report: Report, suspects: Sequence[Suspect]) -> Gallery | None:
    """Thumbnails of the suspects that are on the map."""
    exhibit = _point_exhibit(report)
    pixels = None if exhibit is None else _pixels(exhibit.arrays.get("images"))
    if exhibit is None or pixels is None or not suspects:
        return None
    places = {words(i): place for place, i in enumerate(exhibit.arrays.get("ids", ())) if place < len(pixels)}
    shown = [s for s in suspects if s.id in places]
    pictures = [
        Picture(pixels[places[s.id]], f"row {s.row if s.row is not None else s.id}: {s.label}", "suspect")
        for s in shown[:SUSPECT_PICTURES]
    ]
    left_out = len(suspects) - len(pictures)
    return (
        Gallery("suspects", "The training rows that a check named", pictures, left_out) if pictures else None
    )
