from __future__ import annotations

import dataclasses
import json
import math
from importlib.resources import files
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped

from promotion_gate.card import report_json, report_junit, report_markdown
from promotion_gate.card.summary import escaped
from promotion_gate.card.twin import plain
from promotion_gate.core.types import Finding

SCHEMA = json.loads((files("promotion_gate") / "card" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["reject", "hold", "promote", "first"])
def test_json_validates_and_holds_the_verdict(reports: ModuleType, kind: str) -> None:
    report = reports.report(kind)
    document = json.loads(report_json(report))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["schema"] == "urn:promotion-gate:report:v1"
    assert document["verdict"]["outcome"] == report.verdict.outcome.value
    assert [f["check"] for f in document["findings"]] == [f.check for f in report.findings]


def test_json_never_holds_nan(reports: ModuleType) -> None:
    def spoil(finding: Finding) -> Finding:
        detail = {"a": np.array([1.0, np.nan]), "b": {"c": math.inf}, "d": np.float32(2), "e": {3, 1}}
        return dataclasses.replace(finding, metrics={"m": math.nan}, detail=detail)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    document = json.loads(report_json(reports.report("hold", change=spoil)), parse_constant=refuse)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["findings"][0]["metrics"] == {"m": None}
    assert document["findings"][0]["detail"] == {"a": [1.0, None], "b": {"c": None}, "d": 2.0, "e": [1, 3]}


def test_json_keys_are_in_order(reports: ModuleType) -> None:
    document = json.loads(report_json(reports.report("reject")))
    assert list(document) == sorted(document)
    assert list(document["verdict"]) == sorted(document["verdict"])


def test_plain_keeps_what_json_knows() -> None:
    assert plain({"a": (1, True, None, "x", 1.5), 2: object}) == {
        "a": [1, True, None, "x", 1.5],
        "2": str(object),
    }


def _cases(report: object) -> dict[str, list[object]]:
    suite = next(iter(JUnitXml.fromstring(report_junit(report))))  # type: ignore[arg-type]
    return {case.name: list(case.result) for case in suite}


def test_junit_of_a_rejection(reports: ModuleType) -> None:
    cases = _cases(reports.report("reject"))
    assert isinstance(cases["patch-transplant"][0], Failure)
    assert "26, bound at most 3" in cases["patch-transplant"][0].message
    assert isinstance(cases["verdict"][0], Failure)
    assert cases["per-class"] == []
    assert isinstance(cases["embedding-map"][0], Skipped)


def test_junit_of_a_hold_and_of_a_promotion(reports: ModuleType) -> None:
    held = _cases(reports.report("hold"))
    assert isinstance(held["provenance"][0], Error)
    assert isinstance(held["verdict"][0], Error)
    assert isinstance(held["patch-attribution"][0], Skipped)
    promoted = _cases(reports.report("promote"))
    assert promoted["verdict"] == []
    assert not any(isinstance(r, Error | Failure) for results in promoted.values() for r in results)


def test_junit_counts(reports: ModuleType) -> None:
    suite = next(iter(JUnitXml.fromstring(report_junit(reports.report("reject")))))
    results = [type(r) for case in suite for r in case.result]
    assert (suite.tests, suite.failures) == (len(list(suite)), results.count(Failure))
    assert (suite.errors, suite.skipped) == (results.count(Error), results.count(Skipped))


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=40))
def test_junit_is_well_formed_whatever_the_strings(reports: ModuleType, text: str) -> None:
    JUnitXml.fromstring(report_junit(reports.with_names("hold", f"x{text}\x00\ud800\ufffe")))


def test_markdown_says_the_verdict_first(reports: ModuleType) -> None:
    text = report_markdown(reports.report("reject"))
    assert text.startswith("## ⛔ REJECT: traffic-signs version 2\n")
    assert "| 26 | at most 3 |" in text
    assert "**stop** into **speed limit 80** in 73%" in text
    assert 'promotion-gate rollback traffic-signs --reason "…"' in text


@given(text=st.text(max_size=60))
def test_markdown_escape_leaves_no_markup(text: str) -> None:
    done = escaped(text + "<b>|`[x](y)\n# *a*")
    bare = [part for part in done.replace("&#", "").split(";") if part]
    assert not set("".join(bare)) & set("<>|`[]()*_!\n")


@pytest.mark.parametrize("name", ["</td><script>", "a|b", "`x`", "[x](http://y)", "www.example.com", "@all"])
def test_hostile_names_do_not_break_the_summary(reports: ModuleType, name: str) -> None:
    prose = [
        line
        for line in report_markdown(reports.with_names("hold", name)).split("\n")
        if not line.startswith("    ")
    ]
    assert name not in "\n".join(prose)
    rows = [line for line in prose if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
