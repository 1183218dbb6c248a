"""The decision: total, monotone, and never a promotion out of doubt."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.decide import OWN_CHECKS, decide
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Finding, Outcome, Ruling, Status

RANK = {Outcome.REJECT: 0, Outcome.HOLD: 1, Outcome.PROMOTE: 2}
CHECKS = [*OWN_CHECKS, "champion", "accuracy", "triggers", "curves"]
METRICS = ["violations", "m", "n"]


def policy(**checks):
    return Policy.model_validate(
        {
            "version": 1,
            "data": {"holdout": {"path": "holdout"}},
            "checks": checks
            or {
                "accuracy": {"bounds": {"m": {"min": 0.9}, "n": {"max": 3, "otherwise": "hold"}}},
                "triggers": {"bounds": {"m": {"max": 0}}},
                "curves": {"required": False, "bounds": {"m": {"max": 1}}},
            },
        }
    )


def measured(check, **metrics):
    return Finding(check, Status.MEASURED, f"{check} was measured", metrics)


def clean():
    """Findings on which the default policy promotes."""
    return {
        "artifacts": measured("artifacts", violations=0.0),
        "model": measured("model"),
        "inputs": measured("inputs"),
        "accuracy": measured("accuracy", m=0.95, n=1.0),
        "triggers": measured("triggers", m=0.0),
        "curves": measured("curves", m=0.5),
    }


def outcome(findings, rules=None):
    return decide(list(findings.values()), rules or policy()).outcome


bounds = st.dictionaries(
    st.sampled_from(METRICS),
    st.one_of(
        st.fixed_dictionaries({"max": st.floats(-2, 2), "otherwise": st.sampled_from(["reject", "hold"])}),
        st.fixed_dictionaries({"min": st.floats(-2, 2), "otherwise": st.sampled_from(["reject", "hold"])}),
    ),
    max_size=3,
)
policies = (
    st.dictionaries(
        st.sampled_from(["accuracy", "triggers", "curves"]),
        st.fixed_dictionaries({"required": st.booleans(), "bounds": bounds}),
        min_size=1,
    )
    .filter(lambda checks: any(check["bounds"] for check in checks.values()))
    .map(lambda checks: policy(**checks))
)
findings = st.builds(
    Finding,
    check=st.sampled_from(CHECKS),
    status=st.sampled_from(Status),
    summary=st.just("as it is"),
    metrics=st.dictionaries(st.sampled_from(METRICS), st.floats()),
    not_applicable=st.dictionaries(st.sampled_from(METRICS), st.just("no champion")),
)


@given(st.lists(findings, max_size=8), policies)
def test_every_list_of_findings_has_a_verdict_and_rejects_exactly_on_a_failure(found, rules):
    verdict = decide(found, rules)
    failed = any(j.ruling is Ruling.FAIL for j in verdict.judgements)
    assert (verdict.outcome is Outcome.REJECT) is failed
    if verdict.outcome is Outcome.PROMOTE:
        assert not any(j.blocking for j in verdict.judgements)
        assert not verdict.reasons
    else:
        assert verdict.reasons or not any(j.ruling is Ruling.PASS for j in verdict.judgements[1:])
    assert verdict.policy_digest == rules.digest


@given(st.lists(findings, max_size=8), policies, st.randoms())
def test_a_further_failure_never_improves_a_verdict(found, rules, random):
    before = decide(found, rules).outcome
    failing = measured("artifacts", violations=1.0)
    more = [*found, failing]
    random.shuffle(more)
    after = decide(more, rules).outcome
    assert after is Outcome.REJECT
    assert RANK[after] <= RANK[before]


@given(st.lists(findings, max_size=8), policies, st.randoms())
def test_the_order_of_findings_does_not_matter(found, rules, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert decide(shuffled, rules).outcome is decide(found, rules).outcome


def test_a_clean_candidate_is_promoted():
    assert outcome(clean()) is Outcome.PROMOTE


@pytest.mark.parametrize("check", [*OWN_CHECKS, "accuracy", "triggers"])
def test_a_required_check_that_is_missing_twice_there_or_crashed_holds(check):
    found = clean()
    without = {name: finding for name, finding in found.items() if name != check}
    assert outcome(without) is Outcome.HOLD
    assert outcome({**found, "again": found[check]}) is Outcome.HOLD
    assert outcome({**found, check: Finding.inconclusive(check, "the check crashed")}) is Outcome.HOLD


@given(
    st.sampled_from([("artifacts", "violations"), ("accuracy", "m"), ("accuracy", "n"), ("triggers", "m")]),
    st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_a_number_that_is_missing_or_not_one_never_promotes(where, value):
    check, metric = where
    found = clean()
    metrics = {name: number for name, number in found[check].metrics.items() if name != metric}
    if value is not None:
        metrics[metric] = value
    found[check] = replace(found[check], metrics=metrics)
    assert outcome(found) is Outcome.HOLD


@pytest.mark.parametrize("check", OWN_CHECKS)
def test_the_gates_own_checks_are_required_whatever_the_policy_asks(check):
    rules = policy(accuracy={"required": False, "bounds": {"m": {"min": 0.9}}})
    found = {name: clean()[name] for name in (*OWN_CHECKS, "accuracy")}
    assert outcome(found, rules) is Outcome.PROMOTE
    del found[check]
    assert outcome(found, rules) is Outcome.HOLD


def test_a_refused_file_rejects_though_nothing_else_was_looked_at():
    assert outcome({"artifacts": measured("artifacts", violations=2.0)}) is Outcome.REJECT


def test_an_optional_check_may_be_missing_or_inconclusive_but_not_fail():
    found = clean()
    del found["curves"]
    assert outcome(found) is Outcome.PROMOTE
    assert outcome({**found, "curves": Finding.inconclusive("curves", "not logged")}) is Outcome.PROMOTE
    assert outcome({**found, "curves": measured("curves", m=2.0)}) is Outcome.REJECT


def test_a_breach_for_people_holds_and_a_failure_beside_it_rejects():
    found = {**clean(), "accuracy": measured("accuracy", m=0.95, n=9.0)}
    verdict = decide(list(found.values()), policy())
    assert verdict.outcome is Outcome.HOLD
    assert [(j.rule.metric, j.measured) for j in verdict.reasons] == [("n", 9.0)]
    found["triggers"] = measured("triggers", m=1.0)
    verdict = decide(list(found.values()), policy())
    assert verdict.outcome is Outcome.REJECT
    assert [j.check for j in verdict.reasons] == ["triggers", "accuracy"]


def test_what_nobody_asked_for_holds_when_it_could_not_be_looked_at():
    found = {**clean(), "champion": Finding.inconclusive("champion", "its files are gone")}
    assert outcome(found) is Outcome.HOLD
    assert outcome({**clean(), "champion": measured("champion")}) is Outcome.PROMOTE


def test_a_metric_that_makes_no_sense_is_passed_over_but_alone_promotes_nothing():
    rules = policy(accuracy={"bounds": {"m": {"max": 0.02}}})
    found = {name: clean()[name] for name in OWN_CHECKS}
    found["accuracy"] = replace(measured("accuracy"), not_applicable={"m": "there is no champion"})
    assert outcome(found, rules) is Outcome.HOLD
    more = policy(accuracy={"bounds": {"m": {"max": 0.02}, "n": {"max": 1}}})
    found["accuracy"] = replace(found["accuracy"], metrics={"n": 0.0})
    assert outcome(found, more) is Outcome.PROMOTE


def test_a_measured_value_counts_even_where_the_finding_is_inconclusive():
    found = clean()
    found["triggers"] = replace(Finding.inconclusive("triggers", "timed out"), metrics={"m": 1.0})
    assert outcome(found) is Outcome.REJECT
