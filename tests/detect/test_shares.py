"""Tails, limits and overdispersion against brute force and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from promotion_gate.detect.shares import (
    FIVE_SIGMA,
    beta_binomial_tails,
    overdispersion_p,
    population_stability_index,
    predictive,
    scatter_between_windows,
    share_limits,
    sigma_of,
)


def test_five_sigma_is_the_normal_tail():
    assert sigma_of([FIVE_SIGMA, 0.5, 0.9, stats.norm.sf(3.0)]) == pytest.approx([5, 0, 0, 3])
    assert math.isfinite(sigma_of(0.0))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0.5, 500),
    st.floats(0.5, 500),
)
def test_tails_are_those_of_the_beta_binomial(trials, part, a, b):
    k = round(part * trials)
    upper, lower = beta_binomial_tails(k, trials, a, b)
    exact = stats.betabinom(trials, a, b)
    above, below = exact.pmf(np.arange(k, trials + 1)).sum(), exact.pmf(np.arange(k + 1)).sum()
    assert upper[0] == pytest.approx(min(above, 1), rel=1e-7, abs=1e-20)
    assert lower[0] == pytest.approx(min(below, 1), rel=1e-7, abs=1e-20)


def test_a_baseline_without_end_gives_the_binomial_tail_not_the_normal_one():
    a, b = predictive(1e9, 1e12)
    upper, _ = beta_binomial_tails(6, 1000, a, b)
    assert upper[0] == pytest.approx(stats.binom.sf(5, 1000, 0.001), rel=1e-3)
    assert upper[0] > 1000 * FIVE_SIGMA  # the normal approximation calls this five sigma


def test_a_small_baseline_makes_the_same_count_less_strange():
    told = [beta_binomial_tails(20, 1000, *predictive(n / 1000, n))[0][0] for n in (1e3, 1e4, 1e6)]
    assert told[0] > 1e3 * told[1] > 1e3 * told[2]


def test_scatter_widens_the_prediction_by_the_variance_it_stands_for():
    a, b = predictive(1e8, 1e9, 0.01)
    assert float(a / (a + b)) == pytest.approx(0.1, rel=1e-6)
    assert float(1 / (a + b + 1)) == pytest.approx(0.01, rel=1e-3)


def test_limits_hold_the_true_share_as_often_as_they_say():
    rng = np.random.default_rng(1)
    share, level, runs = 0.01, 0.05, 4000
    low, high = share_limits(rng.binomial(1000, share, runs), 1000, level)
    assert np.mean(share < low) <= level + 3 * math.sqrt(level / runs)
    assert np.mean(share > high) <= level + 3 * math.sqrt(level / runs)
    assert share_limits(0, 100, level)[0] == 0
    assert share_limits(100, 100, level)[1] == 1


def windows(rng, shares, rows, count, rho):
    share = rng.dirichlet(shares * (1 / rho - 1), count) if rho else np.tile(shares, (count, 1))
    return np.array([rng.multinomial(rows, p) for p in share])


def test_scatter_is_found_where_it_is_and_not_where_it_is_not():
    rng = np.random.default_rng(2)
    shares = np.array([0.6, 0.3, 0.09, 0.01])
    silent = [
        scatter_between_windows(windows(rng, shares, 500, 50, 0), np.full(50, 500)).any() for _ in range(100)
    ]
    assert sum(silent) <= 2
    counts = windows(rng, shares, 500, 200, 0.02)
    found = scatter_between_windows(counts, counts.sum(axis=1))
    assert np.all(found[:3] > 0.015), "an upper limit"
    assert np.all(found[:3] < 0.05)
    assert overdispersion_p(counts, counts.sum(axis=1))[0] < 1e-6


def test_one_window_tells_nothing_of_scatter():
    assert scatter_between_windows([[10, 20]], [30]).tolist() == [0, 0]
    assert scatter_between_windows([[0, 0], [0, 0]], [0, 0]).tolist() == [0, 0]
    assert scatter_between_windows([[5, 0], [5, 0]], [5, 5]).tolist() == [0, 0]


def test_psi_is_nothing_for_the_same_shares_and_grows():
    assert population_stability_index([1000, 1000], [10_000, 10_000]) == pytest.approx(0, abs=1e-6)
    assert population_stability_index([1000, 1000], [900, 100]) > 0.25
