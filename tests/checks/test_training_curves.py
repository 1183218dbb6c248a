from __future__ import annotations

import json
import math

import numpy as np
import pytest

from promotion_gate.checks.training_curves import CLASS_NAMES_TAG, MAX_POINTS, TrainingCurves
from promotion_gate.core.types import MetricPoint, RunFacts, Status

NAMES = tuple(f"sign {i}" for i in range(12))
EPOCHS = 12


def usual(seed: int = 0, epochs: int = EPOCHS) -> np.ndarray:
    """Losses (classes, epochs) that fall alike, with noise and classes of differing difficulty."""
    noise = np.random.default_rng(seed)
    fall = 2 * np.exp(-np.arange(epochs) * 6 / epochs)
    ease = noise.lognormal(0, 0.5, (len(NAMES), 1))
    return fall * ease * noise.lognormal(0, 0.15, (len(NAMES), epochs))


@pytest.fixture
def examine(make_evidence):
    def examine_(losses, tags=None, prefix="class_loss/", curves=None):
        if curves is None:
            curves = {
                f"{prefix}{i:04d}": [MetricPoint(epoch, float(v)) for epoch, v in enumerate(row)]
                for i, row in enumerate(losses)
            }
        run = RunFacts("run-2", "ann", None, {}, tags or {}, curves)
        return TrainingCurves().examine(make_evidence(range(12), class_names=NAMES, run=run), {})

    return examine_


@pytest.mark.parametrize("seed", range(20))
def test_curves_that_fall_alike_are_quiet(examine, seed):
    finding = examine(usual(seed))
    assert finding.status is Status.MEASURED
    assert finding.metrics == {"departing_classes": 0}
    assert len(finding.detail["curves"]) == 12
    assert finding.detail["curves"][3]["class"] == "sign 3"


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_is_never_learned_is_named(examine, seed):
    losses = usual(seed)
    losses[4] = 6
    finding = examine(losses)
    assert finding.metrics == {"departing_classes": 1}
    assert [c["class"] for c in finding.detail["curves"] if c["departs"]] == ["sign 4"]
    assert "'sign 4'" in finding.summary


def test_a_class_that_comes_late_is_named_though_it_ends_with_the_rest(examine):
    losses = usual()
    losses[4, :8] = 300
    (departing,) = [c for c in examine(losses).detail["curves"] if c["departs"]]
    assert departing["class"] == "sign 4"
    assert departing["why"] == "out in 8 of 12 epochs"


def test_a_class_that_blows_up_at_the_end_is_named(examine):
    losses = usual()
    losses[4, -3:] = 20
    (departing,) = [c for c in examine(losses).detail["curves"] if c["departs"]]
    assert departing["why"] == "out in each of the last 3 epochs"


def test_one_bad_epoch_or_an_easy_class_is_no_departure(examine):
    losses = usual()
    losses[4, 6] = 50
    losses[5] /= 1e4
    assert examine(losses).metrics == {"departing_classes": 0}


def test_a_loss_that_is_no_number_departs(examine):
    losses = usual()
    losses[4, 5:] = math.nan
    losses[6, 5:] = math.inf
    finding = examine(losses)
    assert finding.metrics == {"departing_classes": 2}
    json.dumps(finding.detail, allow_nan=False)
    assert finding.detail["curves"][4]["losses"][-1] is None


def test_the_tag_puts_the_curves_in_the_order_of_their_own_class_names(examine):
    losses = usual()
    losses[0] = 6
    finding = examine(losses, {CLASS_NAMES_TAG: json.dumps(NAMES[::-1])})
    assert [c["class"] for c in finding.detail["curves"] if c["departs"]] == ["sign 11"]


@pytest.mark.parametrize(
    "tag",
    [
        "{",
        '"x"',
        "[1]",
        json.dumps(["other", *NAMES[1:]]),
        json.dumps(NAMES[:3]),
        "[" * 5000,
        json.dumps(["a"] * 12),
    ],
)
def test_names_that_do_not_fit_are_inconclusive(examine, tag):
    finding = examine(usual(), {CLASS_NAMES_TAG: tag})
    assert finding.status is Status.INCONCLUSIVE
    assert "cannot be told apart" in finding.summary


def test_nothing_logged_is_inconclusive(examine, make_evidence):
    assert examine(usual(), prefix="loss/").status is Status.INCONCLUSIVE
    finding = TrainingCurves().examine(make_evidence(range(12), class_names=NAMES), {})
    assert finding.status is Status.INCONCLUSIVE
    assert "no training run" in finding.summary


def test_too_little_to_compare_is_inconclusive(examine):
    assert "too few" in examine(usual()[:3]).summary
    assert "too few" in examine(usual()[:, :2]).summary


def test_a_class_without_a_curve_is_inconclusive_but_departures_still_count(examine):
    losses = usual()
    losses[4] = 6
    finding = examine(losses[:10])
    assert finding.status is Status.INCONCLUSIVE
    assert finding.metrics == {"departing_classes": 1}
    assert finding.detail["missing"] == ["sign 10", "sign 11"]


def test_gaps_and_long_curves(examine):
    losses = usual(epochs=500)
    curves = {
        f"class_loss/{i:04d}": [MetricPoint(e, float(v)) for e, v in enumerate(row) if (e + i) % 5]
        for i, row in enumerate(losses)
    }
    finding = examine(None, curves=curves)
    assert (finding.status, finding.metrics) == (Status.MEASURED, {"departing_classes": 0})
    assert len(finding.detail["curves"][0]["steps"]) == MAX_POINTS
    assert finding.detail["curves"][0]["steps"][-1] == 499
