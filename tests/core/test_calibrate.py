"""Bounds from clean models: the wanted rate is kept, too few change nothing, and no trigger is excused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promotion_gate.core.calibrate import (
    CleanModel,
    allowed_rank,
    breach_rate_at_most,
    calibrate,
    models_needed,
)
from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import Finding, Status

POLICY = """\
version = 1
[data.holdout]
path = "holdout"
[checks.per-class.bounds]
accuracy = { min = 0.9 }
[checks.patch-transplant.bounds]
triggers = { max = 0 }
suspected_triggers = { max = 0, otherwise = "hold" }
"""
TWO = {"accuracy", "suspected_triggers"}
RATES = st.floats(0.001, 0.5)


def clean(name="m/1", accuracy=0.95, triggers=0.0, suspected=0.0):
    return CleanModel(
        name,
        [
            Finding("per-class", Status.MEASURED, "", {"accuracy": accuracy}),
            Finding(
                "patch-transplant",
                Status.MEASURED,
                "",
                {"triggers": triggers, "suspected_triggers": suspected},
            ),
        ],
    )


def derived(models, rate=0.1, policy=POLICY, **arguments):
    return {b.metric: b for b in calibrate(parse_policy(policy), models, rate, **arguments).bounds}


def fleet(count, seed=0):
    accuracy = np.random.default_rng(seed).uniform(0.93, 0.99, count)
    return [clean(f"m/{i}", float(a)) for i, a in enumerate(accuracy)], np.sort(accuracy)


@pytest.mark.parametrize(
    ("rate", "confidence", "needed"), [(0.05, None, 19), (0.01, None, 99), (0.5, None, 1), (0.05, 0.95, 59)]
)
def test_how_many_models_a_rate_needs(rate, confidence, needed):
    assert models_needed(rate, confidence) == needed
    assert allowed_rank(needed, rate, confidence) == 1
    assert allowed_rank(needed - 1, rate, confidence) == 0


@settings(deadline=None)
@given(RATES, st.none() | st.floats(0.5, 0.999), st.integers(1, 400))
def test_a_bound_exists_exactly_from_the_needed_number_on(rate, confidence, count):
    assert (allowed_rank(count, rate, confidence) >= 1) == (count >= models_needed(rate, confidence))


@settings(deadline=None)
@given(RATES, st.integers(1, 300))
def test_the_rank_keeps_the_expected_rate(rate, count):
    rank = allowed_rank(count, rate)
    assert rank / (count + 1) <= rate + 1e-9
    assert (rank + 1) / (count + 1) > rate - 1e-9


def test_the_rank_of_a_tolerance_limit_is_the_largest_that_keeps_the_confidence():
    from scipy.stats import beta

    for count, rate in ((59, 0.05), (93, 0.05), (200, 0.1)):
        rank = allowed_rank(count, rate, 0.95)
        assert beta.cdf(rate, rank, count - rank + 1) >= 0.95
        assert beta.cdf(rate, rank + 1, count - rank) < 0.95


def test_the_upper_rate_is_the_exact_one():
    from scipy.stats import beta

    assert breach_rate_at_most(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert breach_rate_at_most(3, 40) == pytest.approx(beta.ppf(0.95, 4, 37))
    assert breach_rate_at_most(4, 4) == 1


def test_a_derived_bound_is_an_order_statistic_rounded_to_let_more_pass():
    models, accuracy = fleet(39)
    bound = derived(models)["accuracy"]
    assert (bound.shipped, bound.change) == (0.9, "tightened")
    assert accuracy[1] - 1e-4 < bound.bound <= accuracy[1]
    assert bound.rate == 2 / 40
    assert sum(m.findings[0].metrics["accuracy"] < bound.bound for m in models) <= 1


def test_new_clean_models_break_the_bounds_as_often_as_was_asked():
    rng = np.random.default_rng(5)
    alarms = tried = 0
    for _ in range(150):
        values = rng.lognormal(size=(29, 2))
        models = [clean(f"m/{i}", float(-a), 0, float(b)) for i, (a, b) in enumerate(values)]
        bounds = derived(models, 0.2)
        fresh = rng.lognormal(size=(200, 2))
        low, high = bounds["accuracy"].bound, bounds["suspected_triggers"].bound
        alarms += int(((-fresh[:, 0] < low) | (fresh[:, 1] > high)).sum())
        tried += len(fresh)
    assert 0.15 < alarms / tried < 0.2


def test_too_few_models_keep_the_shipped_bound_and_say_how_many_are_needed():
    models, _ = fleet(18)
    calibration = calibrate(parse_policy(POLICY), models, 0.1)
    assert calibration.needed == 19
    assert [b.change for b in calibration.bounds] == ["kept"] * 3
    accuracy = calibration.bounds[0]
    assert accuracy.bound == 0.9
    assert "needs 19 clean models, 18 measured; 0 of them break it" in accuracy.reason
    assert "up to 15% of clean models may" in accuracy.reason
    assert math.isnan(accuracy.rate)


def test_a_bound_that_allows_no_trigger_is_kept_whatever_the_models_say():
    models, _ = fleet(200)
    bound = derived(models)["triggers"]
    assert (bound.bound, bound.change) == (0, "kept")


def test_a_model_with_a_trigger_is_not_clean():
    models, _ = fleet(200)
    with pytest.raises(UsageError, match=r"m/bad cannot be called clean: .*triggers is 1, at most 0 allowed"):
        derived([*models, clean("m/bad", triggers=1.0)])
    refused = Finding("artifacts", Status.MEASURED, "", {"violations": 1.0})
    with pytest.raises(UsageError, match="artifacts: violations is 1"):
        derived([CleanModel("m/odd", [refused])])


def test_a_bound_that_clean_models_break_too_often_is_loosened():
    models = [clean(f"m/{i}", suspected=float(i < 3)) for i in range(39)]
    bound = derived(models)["suspected_triggers"]
    assert (bound.bound, bound.change, bound.breached) == (1, "loosened", 3)


def test_what_was_not_measured_does_not_count():
    models, _ = fleet(18)
    unmeasured = [
        clean("m/nan", math.nan),
        CleanModel("m/none", [Finding.inconclusive("per-class", "no data")]),
        CleanModel("m/twice", list(clean().findings) * 2),
    ]
    bounds = derived([*models, *unmeasured])
    assert len(bounds["accuracy"].values) == 18
    assert bounds["accuracy"].change == "kept"
    assert derived(unmeasured[1:])["accuracy"].reason == "no clean model was measured"


def test_the_rate_is_split_over_the_bounds_that_are_asked_for():
    models, _ = fleet(9)
    policy = parse_policy(POLICY)
    assert calibrate(policy, models, 0.1).share == 0.05
    one = calibrate(policy, models, 0.1, only={"per-class.accuracy"})
    assert one.share == 0.1
    assert {b.metric: b.change for b in one.bounds}["accuracy"] == "tightened"
    with pytest.raises(UsageError, match=r"no bound per-class\.recall; it has .*per-class\.accuracy"):
        calibrate(policy, models, 0.1, only={"per-class.recall"})


@pytest.mark.parametrize(("rate", "confidence"), [(0, None), (0.6, None), (math.nan, None), (0.1, 1.0)])
def test_a_rate_or_confidence_that_makes_no_sense_is_refused(rate, confidence):
    with pytest.raises(UsageError, match="cannot be asked for"):
        derived([clean()], rate, confidence=confidence)
    with pytest.raises(UsageError, match="no clean model"):
        derived([])


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=19, max_size=60))
def test_a_derived_bound_lets_every_model_inside_its_rank_pass(values):
    models = [clean(f"m/{i}", value) for i, value in enumerate(values)]
    bound = derived(models)["accuracy"]
    assert sum(value < bound.bound for value in values) < allowed_rank(len(values), 0.05)
