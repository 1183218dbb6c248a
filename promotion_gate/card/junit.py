"""The verdict as a JUnit file, which CI systems show check by check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from promotion_gate.card.detail import inert, number_text
from promotion_gate.core.types import Finding, Judgement, Outcome, Report, Ruling

# What XML 1.0 forbids even as a character reference, beyond what inert() takes out.
_NOT_XML = re.compile("[\ufffe\uffff\U0001fffe\U0001ffff]")


def report_junit(report: Report) -> bytes:
    """One test case a check and one for the verdict.

    A failed check is a failure, an inconclusive one that holds the candidate an error, and one that the
    verdict does not rest on is skipped.
    """
    ref = report.candidate.ref
    suite = ElementTree.Element("testsuite", name=xml_text(f"promotion-gate {ref}"))
    judgements = report.verdict.judgements
    checks = dict.fromkeys([*(f.check for f in report.findings), *(j.check for j in judgements)])
    cases = [_case(suite, name, report) for name in checks]
    cases.append(_verdict_case(suite, report))
    suite.attrib |= {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": f"{report.seconds:.3f}",
        "timestamp": report.started_at.isoformat(timespec="seconds"),
        "hostname": xml_text(report.host),
    }
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(suite: ElementTree.Element, check: str, report: Report) -> ElementTree.Element:
    finding = report.finding(check)
    seconds = 0.0 if finding is None else finding.seconds
    case = _element(suite, check, report, seconds)
    own = [j for j in report.verdict.judgements if j.check == check]
    failed = [j for j in own if j.ruling is Ruling.FAIL]
    held = [j for j in own if j.blocking]
    if failed:
        _child(case, "failure", failed, "outside the policy's bound")
    elif held:
        _child(case, "error", held, "held for a person")
    elif not any(j.ruling is Ruling.PASS for j in own):
        ElementTree.SubElement(case, "skipped", message=xml_text(_skipped(own, finding)))
    if finding is not None:
        ElementTree.SubElement(case, "system-out").text = xml_text(_measurements(finding))
    return case


def _verdict_case(suite: ElementTree.Element, report: Report) -> ElementTree.Element:
    case = _element(suite, "verdict", report, 0.0)
    kinds = {Outcome.REJECT: "failure", Outcome.HOLD: "error"}
    kind = kinds.get(report.verdict.outcome)
    if kind is not None:
        _child(case, kind, report.verdict.reasons, report.verdict.outcome.value)
    return case


def _element(suite: ElementTree.Element, name: str, report: Report, seconds: float) -> ElementTree.Element:
    group = f"promotion-gate.{report.candidate.ref.name}"
    return ElementTree.SubElement(
        suite, "testcase", classname=xml_text(group), name=xml_text(name), time=f"{seconds:.3f}"
    )


def _child(case: ElementTree.Element, kind: str, judgements: Sequence[Judgement], otherwise: str) -> None:
    sentences = [_sentence(judgement) for judgement in judgements]
    child = ElementTree.SubElement(case, kind, message=xml_text(sentences[0] if sentences else otherwise))
    child.text = xml_text("\n".join(sentences))


def _sentence(judgement: Judgement) -> str:
    if judgement.rule is None:
        return f"{judgement.check}: {judgement.reason}"
    measured = "not measured" if judgement.measured is None else number_text(judgement.measured)
    what = f"{judgement.check}.{judgement.rule.metric}"
    return f"{what}: {measured}, bound {judgement.rule.bound}. {judgement.reason}"


def _skipped(judgements: Sequence[Judgement], finding: Finding | None) -> str:
    if judgements:
        return judgements[0].reason
    return "the check did not run" if finding is None else "the policy sets no bound on this check"


def _measurements(finding: Finding) -> str:
    return "\n".join(
        [finding.summary, *(f"{name} = {number_text(value)}" for name, value in finding.metrics.items())]
    )


def xml_text(text: str) -> str:
    """The text with whatever XML 1.0 forbids made visible."""
    return _NOT_XML.sub("\ufffd", inert(text))
