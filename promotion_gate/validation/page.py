"""A validation as one HTML file without outside parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from promotion_gate import __version__
from promotion_gate.card.detail import number_text
from promotion_gate.card.html import content_policy, page_environment, templates_folder
from promotion_gate.validation.judged import Judged, State, plural
from promotion_gate.validation.pictures import picture_uris
from promotion_gate.validation.report import beside_text, ending
from promotion_gate.validation.run import Validation

PICTURED = 12
"""Images that are shown of one expectation, those they go with aside."""

_PICTURED_IN_ALL = 120
_LABELS_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Ending:
    """The banner: a word, a sentence, and the tone that the card's style knows."""

    tone: str
    word: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One offending row: its picture's URI (empty where it cannot be shown) and that of its partner."""

    id: str
    label: str
    why: str
    picture: str
    beside: str = ""
    beside_picture: str = ""


def validation_page(found: Validation) -> bytes:
    """The report for a person: what is not met first, with pictures of the first of the rows."""
    order = {State.NOT_MET: 0, State.UNEXAMINED: 1, State.MET: 2}
    judged = sorted(found.judged, key=lambda one: order[one.state])
    return page(
        "validation.html.j2",
        found=found,
        ending=_ending(found),
        judged=judged,
        shown=_shown(found, judged),
        facts=_facts(found),
        labels=_labels(found),
        gate_version=__version__,
    )


def page(template: str, script: str = "", **values: Any) -> bytes:
    """A page of the folder ``templates/data``, in the card's style."""
    folder = templates_folder()
    style = "".join(
        (folder / part).read_text(encoding="utf-8")
        for part in ("card/card.css", "drill/drill.css", "data/data.css")
    )
    code = (folder / "data" / script).read_text(encoding="utf-8") if script else ""
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(code),  # noqa: S704 - our own file
            content_policy=content_policy(style, code),
            **values,
        )
        .encode("utf-8", "replace")
    )


@cache
def _environment() -> Environment:
    environment = page_environment("data", "drill")
    environment.filters["number"] = number_text
    return environment


def _ending(found: Validation) -> Ending:
    if not found.judged:
        return Ending("hold", "LOOKED AT", f"{plural(len(found.data), 'image')}; nothing was judged")
    if found.met:
        return Ending("promote", "MET", ending(found))
    return Ending("reject", "NOT MET", ending(found))


def _shown(found: Validation, judged: Sequence[Judged]) -> Mapping[str, Sequence[Shown]]:
    """The rows to show of each expectation that is not met, by its name."""
    sets = {"": found.data, "holdout": found.holdout, "previous": found.previous}
    left = _PICTURED_IN_ALL
    picked: dict[str, Sequence[Any]] = {}
    for one in judged:
        if one.state is State.NOT_MET and one.offenders:
            picked[one.name] = one.offenders[: min(PICTURED, left)]
            left -= len(picked[one.name])
    wanted: dict[str, list[int]] = {name: [] for name in sets}
    for offenders in picked.values():
        for offender in offenders:
            wanted[""].append(offender.row)
            if offender.beside is not None:
                wanted[offender.beside.where].append(offender.beside.row)
    uris = {
        name: {} if survey is None else picture_uris(survey.dataset, wanted[name])
        for name, survey in sets.items()
    }
    return {
        name: [
            Shown(o.id, o.label, o.why, uris[""].get(o.row, ""))
            if o.beside is None
            else Shown(
                o.id, o.label, o.why, uris[""].get(o.row, ""),
                beside_text(o.beside), uris[o.beside.where].get(o.beside.row, ""),
            )
            for o in offenders
        ]
        for name, offenders in picked.items()
    }  # fmt: skip


def _facts(found: Validation) -> dict[str, str]:
    facts: dict[str, Any] = found.facts()
    told = {"Images": f"{facts['rows']:,}", "Labels": f"{len(facts['labels']):,}"}
    if facts["width"]:
        (least, most), (low, high) = facts["width"], facts["height"]
        told["Width"] = f"{least:,} px" if least == most else f"{least:,} to {most:,} px"
        told["Height"] = f"{low:,} px" if low == high else f"{low:,} to {high:,} px"
        told["Modes"] = ", ".join(list(facts["modes"])[:6])
        told["Formats"] = ", ".join(list(facts["formats"])[:6])
    told["Exact copies"] = f"{facts['duplicates']['exact']:,}"
    told["Near duplicates"] = f"{facts['duplicates']['near']:,}"
    for name, count in facts["columns"].items():
        told[name.capitalize()] = plural(count, "value")
    for name, other in (("Holdout", found.holdout), ("Previous version", found.previous)):
        if other is not None:
            told[name] = f"{other.uri}, {plural(len(other), 'image')}"
    return told


def _labels(found: Validation) -> list[tuple[str, int, float]]:
    """Label, rows, and their share of the largest label's, most rows first."""
    facts: dict[str, Any] = found.facts()
    counts = sorted(facts["labels"].items(), key=lambda one: -one[1])
    most = max(counts[0][1], 1)
    return [(name, count, count / most) for name, count in counts[:_LABELS_SHOWN]]
