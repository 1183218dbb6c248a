"""From findings to a verdict: pure, total, and monotone (a failure never improves the outcome)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Finding, Judgement, Outcome, Rule, Ruling, Status, Verdict

OWN_CHECKS = ("artifacts", "model", "inputs")
"""What the gate itself must be able to say of every candidate, whatever the policy asks for."""

OWN_RULES = (Rule("artifacts", "violations", maximum=0),)


def decide(findings: Sequence[Finding], policy: Policy) -> Verdict:
    """Judge every finding under every bound of the policy, and the gate's own findings under its own.

    Any failure rejects. Otherwise anything in doubt (a required check that is missing, twice there or
    inconclusive, a metric that is missing or not a number, a breach marked ``otherwise = "hold"``)
    holds. Only what is left promotes, and only when at least one bound was met.
    """
    judgements = list(_judge(findings, policy))
    if any(j.ruling is Ruling.FAIL for j in judgements):
        outcome = Outcome.REJECT
    elif any(j.blocking for j in judgements) or not any(
        j.ruling is Ruling.PASS and j.check in policy.checks for j in judgements
    ):
        outcome = Outcome.HOLD
    else:
        outcome = Outcome.PROMOTE
    return Verdict(outcome, tuple(judgements), policy.digest)


def _judge(findings: Sequence[Finding], policy: Policy) -> Iterator[Judgement]:
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)

    rules = [*OWN_RULES, *policy.rules()]
    required = policy.required.union(OWN_CHECKS)
    # A finding that no policy asked for can still hold: whatever could not be looked at is in doubt.
    for name in dict.fromkeys([*OWN_CHECKS, *policy.checks, *by_check]):
        must = name in required or name not in policy.checks
        found = by_check.get(name, [])
        own = [rule for rule in rules if rule.check == name]
        if len(found) != 1:
            reason = "the check did not run" if not found else "the check reported more than once"
            yield Judgement(name, None, Ruling.INCONCLUSIVE, None, reason, blocking=must or bool(found))
        for finding in found:
            if finding.status is not Status.MEASURED:
                yield Judgement(name, None, Ruling.INCONCLUSIVE, None, finding.summary, blocking=must)
            for rule in own:
                yield from _apply(rule, finding, must)


def _apply(rule: Rule, finding: Finding, required: bool) -> Iterator[Judgement]:
    measured = finding.metrics.get(rule.metric)
    if measured is None and rule.metric in finding.not_applicable:
        reason = finding.not_applicable[rule.metric]
        yield Judgement(rule.check, rule, Ruling.NOT_APPLICABLE, None, reason)
    elif measured is None:
        if finding.status is Status.MEASURED:
            reason = f"{rule.metric} was not measured"
            yield Judgement(rule.check, rule, Ruling.INCONCLUSIVE, None, reason, blocking=required)
    elif not math.isfinite(measured):
        reason = f"{rule.metric} is not a finite number"
        yield Judgement(rule.check, rule, Ruling.INCONCLUSIVE, None, reason, blocking=required)
    elif rule.minimum <= measured <= rule.maximum:
        yield Judgement(rule.check, rule, Ruling.PASS, measured, finding.summary)
    elif rule.otherwise == "hold":
        yield Judgement(rule.check, rule, Ruling.INCONCLUSIVE, measured, finding.summary, blocking=True)
    else:
        yield Judgement(rule.check, rule, Ruling.FAIL, measured, finding.summary)
