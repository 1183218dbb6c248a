"""A validation as lines, as JSON and as JUnit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from promotion_gate import __version__
from promotion_gate.card.junit import xml_text
from promotion_gate.card.twin import plain
from promotion_gate.validation.judged import Beside, Judged, Offender, State, plural
from promotion_gate.validation.run import Validation, listing_sha256
from promotion_gate.validation.survey import Survey

SCHEMA = "urn:promotion-gate:validation:v1"
_NAMED = 5
_SIGNS = {State.MET: "met", State.NOT_MET: "NOT MET", State.UNEXAMINED: "NOT EXAMINED"}
_TABLE_LINES = 5


def validation_lines(found: Validation) -> Iterator[str]:
    """For the terminal: every expectation, and some of what does not meet it."""
    for one in found.judged:
        bound = f" ({one.bound})" if one.bound and one.state is State.NOT_MET else ""
        yield f"{_SIGNS[one.state]} {one.name}: {one.summary}{bound}"
        if one.state is State.NOT_MET:
            for offender in one.offenders[:_NAMED]:
                yield f"- {offender_text(offender)}"
            for row in one.table[1 : _TABLE_LINES + 1]:
                yield f"- {' · '.join(cell for cell in row if cell)}"
    yield ending(found)


def ending(found: Validation) -> str:
    """One sentence for all of it."""
    failed = found.failed
    if not failed:
        return f"{found.data.uri}: {plural(len(found.judged), 'expectation')} met, {len(found.data):,} images"
    unexamined = sum(one.state is State.UNEXAMINED for one in failed)
    more = f", {unexamined} of them could not be examined" if unexamined else ""
    return f"{found.data.uri}: {len(failed)} of {plural(len(found.judged), 'expectation')} not met{more}"


def offender_text(one: Offender) -> str:
    """A row, its label, and what is wrong with it."""
    parts = [f"{one.id} [{one.label}]"]
    if one.beside is not None:
        parts.append(f"beside {beside_text(one.beside)}")
    if one.why:
        parts.append(one.why)
    return ": ".join(parts)


def beside_text(one: Beside) -> str:
    """The other row."""
    return f"{one.where + ': ' if one.where else ''}{one.id} [{one.label}]"


def validation_json(found: Validation) -> bytes:
    """The whole report but the pixels, as ``validation.schema.json`` describes it."""
    document = {
        "schema": SCHEMA,
        "gate_version": __version__,
        "started_at": found.started_at,
        "met": found.met,
        "data": _data(found.data),
        "holdout": _data(found.holdout),
        "previous": _data(found.previous),
        "expectations_sha256": found.expectations.digest if found.expectations else None,
        "expectations": [_judged(one) for one in found.judged],
        "facts": found.facts(),
    }
    return (json.dumps(plain(document), sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _data(survey: Survey | None) -> dict[str, Any] | None:
    if survey is None:
        return None
    return {
        "uri": survey.uri,
        "rows": len(survey),
        "classes": len(survey.class_names),
        "listing_sha256": listing_sha256(survey),
    }


def _judged(one: Judged) -> dict[str, Any]:
    return {
        "name": one.name,
        "state": one.state,
        "summary": one.summary,
        "bound": one.bound,
        "count": one.count,
        "rows": [_offender(offender) for offender in one.offenders],
        "table": [list(row) for row in one.table],
    }


def _offender(one: Offender) -> dict[str, Any]:
    beside = None
    if one.beside is not None:
        other = one.beside
        beside = {"set": other.where or "data", "row": other.row, "id": other.id, "label": other.label}
    return {"row": one.row, "id": one.id, "label": one.label, "why": one.why, "beside": beside}


def validation_junit(found: Validation) -> bytes:
    """One test case an expectation: not met is a failure, could not be examined an error."""
    suite = ElementTree.Element("testsuite", name=xml_text(f"promotion-gate validate {found.data.uri}"))
    for one in found.judged:
        case = ElementTree.SubElement(
            suite, "testcase", classname="promotion-gate.validate", name=xml_text(one.name), time="0.000"
        )
        if one.state is not State.MET:
            kind = "failure" if one.state is State.NOT_MET else "error"
            child = ElementTree.SubElement(case, kind, message=xml_text(one.summary))
            lines = [offender_text(offender) for offender in one.offenders]
            child.text = xml_text("\n".join([*lines, *(" · ".join(row) for row in one.table)]))
        else:
            ElementTree.SubElement(case, "system-out").text = xml_text(one.summary)
    states = [one.state for one in found.judged]
    suite.attrib |= {
        "tests": str(len(states)),
        "failures": str(states.count(State.NOT_MET)),
        "errors": str(states.count(State.UNEXAMINED)),
        "skipped": "0",
        "timestamp": found.started_at.isoformat(timespec="seconds"),
    }
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
