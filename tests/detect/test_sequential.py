"""Evidence that may be looked at any time: its error rate holds; it finds surges, losses and their end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from promotion_gate.detect.sequential import Allowed, ShareDetector, alarm_limit
from promotion_gate.detect.shares import FIVE_SIGMA


def allowed(low, high, rho=0.0):
    low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
    return Allowed(low, high, np.full(len(low), rho))


def step(detector, hits, trials, weight=1.0):
    evidence = detector.count(np.atleast_2d(hits), np.atleast_2d(trials), [weight])[0]
    detector.close_window()
    return evidence


def test_the_limit_is_five_sigma_or_what_many_questions_call_for():
    assert alarm_limit(131, 720) == pytest.approx(1 / FIVE_SIGMA)
    assert alarm_limit(100_000, 720) == 100_000 * 720


@pytest.mark.parametrize("rho", [0.0, 0.02])
@pytest.mark.parametrize("share", [0.004, 0.3])
def test_under_the_worst_allowed_share_evidence_grows_no_faster_than_time(rho, share):
    """The mean over many streams stays at the number of windows begun: crossings are as rare as claimed."""
    rng = np.random.default_rng(4)
    streams, windows, rows = 1500, 12, 60
    detector = ShareDetector(allowed([share] * streams, [share] * streams, rho), 1e12)
    for number in range(1, windows + 1):
        p = rng.beta(share * (1 / rho - 1), (1 - share) * (1 / rho - 1), streams) if rho else share
        first = rng.binomial(rows // 2, p, streams)
        second = first + rng.binomial(rows // 2, p, streams)
        hits = np.stack([first, second])
        trials = np.full((2, streams), rows // 2) * np.array([[1], [2]])
        trace = detector.count(hits, trials, [0.5, 0.5])
        detector.close_window()
        spread = trace[-1].std() / np.sqrt(streams)
        assert trace[-1].mean() < number + 6 * spread
    for level in (50, 200):
        crossed = (trace[-1] > level).mean()
        assert crossed <= windows / level + 3 * np.sqrt(windows / level / streams)


def test_a_window_counted_in_steps_is_the_window_counted_at_once():
    whole, parts = (ShareDetector(allowed(0.01, 0.02, 0.001), 1e9) for _ in range(2))
    at_once = whole.count([[9]], [[300]], [1.0])[-1]
    in_steps = parts.count([[2], [5], [9]], [[100], [200], [300]], [1.0, 0.0, 0.0])[-1]
    np.testing.assert_allclose(at_once, in_steps)


@pytest.mark.parametrize(("share", "side"), [(0.05, "surge"), (0.0005, "loss")])
def test_a_shift_crosses_the_limit_and_fades_again(share, side):
    rng = np.random.default_rng(5)
    limit = alarm_limit(3, 720)
    detector = ShareDetector(allowed(0.008, 0.012), limit)
    for _ in range(50):
        assert step(detector, rng.binomial(2000, 0.01), 2000)[0] < limit
    hours = 1
    while step(detector, rng.binomial(2000, share), 2000)[0] < limit:
        hours += 1
    assert hours <= 3, side
    for _ in range(100):
        evidence = step(detector, rng.binomial(2000, 0.01), 2000)[0]
    assert evidence < np.sqrt(limit)


def test_evidence_that_grew_for_months_fades_as_fast_as_that_of_an_hour():
    limit = alarm_limit(1, 720)
    detector = ShareDetector(allowed(0.1, 0.1), limit)
    for _ in range(1000):
        step(detector, 400, 1000)
    windows = 0
    while step(detector, 100, 1000)[0] > np.sqrt(limit):
        windows += 1
    assert windows <= 3


def test_a_question_without_answers_says_nothing():
    detector = ShareDetector(allowed([0.0, 0.2], [1.0, 0.3]), 1e6)
    evidence = step(detector, [0, 0], [0, 0])
    assert evidence[0] == 0
    assert evidence[1] == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=8),
    st.floats(1e-6, 0.4),
    st.floats(0.4, 1 - 1e-6),
    st.sampled_from([0.0, 1e-6, 0.01, 0.5]),
)
def test_evidence_is_a_number_whatever_is_counted(cells, low, high, rho):
    detector = ShareDetector(allowed(low, high, rho), 1e9)
    for one, other in cells:
        evidence = step(detector, min(one, other), max(one, other))
        assert np.isfinite(evidence).all()
        assert (evidence >= 0).all()


def test_a_tenfold_surge_of_a_rare_class_is_found_within_200_of_it():
    rng = np.random.default_rng(6)
    limit = alarm_limit(3002, 720)
    high = stats.beta.isf(0.01 / 3002, 11, 9991)  # 10 of a holdout of 10,000
    late = 0
    for _ in range(30):
        detector = ShareDetector(allowed(0.0, high), limit)
        step(detector, rng.binomial(50_000, 0.001), 50_000)
        hits = rng.binomial(500, 0.01, 40).cumsum()[:, None]
        trials = 500 * np.arange(1, 41)[:, None]
        trace = detector.count(hits, trials, np.full(40, 1 / 40))[:, 0]
        late += not (trace >= limit).any() or hits[int(np.argmax(trace >= limit)), 0] > 200
    assert late == 0
