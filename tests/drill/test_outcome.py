import json
from datetime import UTC, datetime

import pytest

from promotion_gate.core.decide import decide
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import Candidate, Finding, ModelRef, Outcome, Report, Status
from promotion_gate.drill.outcome import DrillOutcome, judged, listed_rows, measured, read_alarm

POLICY = parse_policy("""
version = 1
[data.holdout]
path = "h.npz"
[checks.patch-transplant.bounds]
triggers = { max = 0 }
[checks.label-concentration.bounds]
flip_p = { min = 1e-6, otherwise = "hold" }
concentration_p = { min = 0.002, otherwise = "hold" }
[checks.per-class.bounds]
accuracy = { min = 0.9 }
[checks.sticker-sweep]
required = false
[checks.sticker-sweep.bounds]
suspected_pairs = { max = 0, otherwise = "hold" }
[checks.provenance]
required = false
""")

OWN = {"artifacts": "violations", "model": "parameters", "inputs": "images"}


def transplant(found=0.0, **detail):
    return Finding("patch-transplant", Status.MEASURED, "", {"triggers": found}, detail)


def concentration(flip_p=1.0, concentration_p=1.0, **detail):
    metrics = {"flip_p": flip_p, "concentration_p": concentration_p}
    return Finding("label-concentration", Status.MEASURED, "", metrics, detail)


def report(*findings):
    own = [Finding(check, Status.MEASURED, "", {metric: 0.0}) for check, metric in OWN.items()]
    every = [*own, *findings, Finding("per-class", Status.MEASURED, "", {"accuracy": 0.95})]
    return Report(
        candidate=Candidate(ModelRef("drill-x-1", 2), None, ""),
        verdict=decide(every, POLICY),
        findings=tuple(every),
        class_names=("stop", "80"),
        files=(),
        model_format="pt2",
        sandbox="",
        unsafe=(),
        policy_text="",
        gate_run_id="",
        user="",
        host="",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.0,
        gate_version="",
        alias="production",
    )


SUSPECTS = [{"row": 3}, {"row": 5}, {"row": "x"}, "y"]
FLIPS = {"pairs": [{"label": "80", "looks_like": "stop"}, {"label": "stop", "looks_like": "80"}]}
CROWD = {"crowding": {"label": "80"}}


def test_only_what_stopped_the_model_counts_as_named():
    pair = {"source": "stop", "target": "80", "established": True}
    alarm = read_alarm(
        report(
            transplant(1.0, triggers=[pair, 7], suspects=SUSPECTS),
            concentration(suspects=[{"row": 9}], **FLIPS, **CROWD),
        )
    )
    assert alarm.checks == ("patch-transplant",)
    assert alarm.pairs == (("stop", "80"),)
    assert alarm.rows == {3, 5}


@pytest.mark.parametrize(
    ("broken", "pairs"),
    [
        ({"flip_p": 1e-9}, (("stop", "80"),)),
        ({"concentration_p": 1e-4}, ((None, "80"),)),
        ({"flip_p": 1e-9, "concentration_p": 1e-4}, (("stop", "80"), (None, "80"))),
    ],
)
def test_label_concentration_names_by_the_bound_that_broke(broken, pairs):
    alarm = read_alarm(report(transplant(), concentration(**broken, **FLIPS, **CROWD)))
    assert alarm.checks == ("label-concentration",)
    assert alarm.pairs == pairs


def test_pairs_that_a_search_suspects_are_named():
    pairs = [
        {"source": "stop", "target": "80", "suspected": True},
        {"source": "80", "target": "stop", "suspected": False},
    ]
    sweep = Finding("sticker-sweep", Status.MEASURED, "", {"suspected_pairs": 1.0}, {"pairs": pairs})
    assert read_alarm(report(transplant(), concentration(), sweep)).pairs == (("stop", "80"),)


def test_nothing_is_named_where_nothing_stopped_the_model():
    promoted = report(transplant(triggers=[{"source": "a", "target": "b"}]), concentration(**FLIPS))
    assert promoted.verdict.outcome is Outcome.PROMOTE
    alarm = read_alarm(promoted)
    assert (alarm.checks, alarm.pairs, alarm.rows) == ((), (), frozenset())


def test_a_check_that_reports_nonsense_is_read_all_the_same():
    odd = transplant(1.0, triggers={"target": 4}, suspects="rows", target=["x"])
    assert read_alarm(report(odd, concentration())).pairs == ()
    assert listed_rows(report(odd, concentration(suspects=SUSPECTS))) == {"label-concentration": {3, 5}}


def test_what_the_policy_made_of_each_check():
    silent = Finding.inconclusive("label-concentration", "there is no training set")
    found = report(transplant(1.0), silent, Finding("provenance", Status.MEASURED, "", {"missing": 1.0}))
    assert {check: state for check, state in judged(found).items() if check not in OWN} == {
        "patch-transplant": "failed",
        "label-concentration": "held",
        "per-class": "passed",
        "provenance": "no bound",
        "sticker-sweep": "no bound",
    }
    metrics, why = measured(found)
    assert metrics["patch-transplant"] == {"triggers": 1.0}
    assert why == {"label-concentration": "there is no training set"}


def test_an_outcome_is_one_line_and_reads_back(ended):
    outcome = ended(
        "caught", scenario='line\nbreak "quoted" ü', findings={"c": {"x": float("nan"), "y": 2.0}}
    )
    line = outcome.to_json()
    assert "\n" not in line
    table = json.loads(line)
    assert table["findings"] == {"c": {"x": None, "y": 2.0}}
    again = DrillOutcome.from_json(json.dumps({**table, "of a later version": 1}))
    assert again.to_json() == line
    assert again.outcome is Outcome.REJECT


@pytest.mark.parametrize("line", ["", "3", "{}", '{"key": "x"}', "not json"])
def test_another_line_is_refused(line):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own and ours
        DrillOutcome.from_json(line)


@pytest.mark.parametrize(
    ("kind", "through", "alarm", "words"),
    [
        ("caught", False, False, "caught: rejected"),
        ("held", False, False, "caught: held for a person"),
        ("missed", True, False, "got through"),
        ("passed", False, False, "promoted, as it should be"),
        ("false alarm", False, True, "false alarm: held"),
    ],
)
def test_how_it_ended(ended, kind, through, alarm, words):
    outcome = ended(kind)
    assert (outcome.got_through, outcome.false_alarm, outcome.ended) == (through, alarm, words)


def test_recall_is_told_only_where_rows_could_be_listed(ended):
    assert ended("caught").recall == pytest.approx(29 / 30)
    assert ended("caught", training_data=False).recall is None
    assert ended("passed").recall is None
