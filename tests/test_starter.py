"""The policy that ``promotion-gate init`` writes must be one that works."""

import re

from promotion_gate.checks.registry import chosen_checks, installed_checks
from promotion_gate.core.policy import parse_policy
from promotion_gate.starter import STARTER_POLICY


def test_it_names_every_check_and_only_metrics_that_exist():
    policy = parse_policy(STARTER_POLICY)
    assert set(policy.checks) == set(installed_checks())
    assert {check.name for check in chosen_checks(policy)} == set(policy.checks)
    assert not policy.unsafe


def test_it_refuses_a_trigger_and_an_inaccurate_model():
    rules = {(rule.check, rule.metric) for rule in parse_policy(STARTER_POLICY).rules()}
    assert {("per-class", "accuracy"), ("patch-transplant", "triggers")} <= rules


def test_what_it_shows_in_comments_can_be_used():
    commented = re.compile(r'^# (?=\[[a-z.]+\]$|[a-z_]+ = (?:["\[{0-9]|true$|false$))', re.MULTILINE)
    policy = parse_policy(commented.sub("", STARTER_POLICY))
    assert policy.input.layout == "NCHW"
    assert policy.input.embedding_layer == "fc"
    assert policy.data.class_names == ["stop", "yield"]
    assert policy.unsafe == ("unsafe_allow_pickle",)
    provenance = policy.checks["provenance"]
    assert provenance.options == {"dbom": "dbom.json", "trainers": "trainers"}
    assert set(provenance.bounds) == {"unregistered_datasets", "unverified_links"}
    assert chosen_checks(policy)
