"""Simulated false alarms and delays of the monitor's evidence, on seeds that nothing was tuned on.

    python tests/bench/monitor_rates.py [MONTHS]

A month is 720 hourly windows of 1,000 predictions. The baseline is drawn anew each month: a holdout of
10,000, or a week of windows where these scatter. Class shares fall off geometrically over three decades. A surge
is tenfold, of a class of share 0.001, in windows of 10,000; its delay is counted in predictions of that class.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np

from promotion_gate.core.types import ModelRef
from promotion_gate.detect.sequential import ShareDetector, alarm_limit
from promotion_gate.detect.statistics import exact_interval
from promotion_gate.monitor.baseline import CONFIDENCE_EDGES
from promotion_gate.monitor.interface import Baseline
from promotion_gate.monitor.questions import questions_of

SEED = 20_260_000
WINDOWS = 720
RARE = 0.001


def shares_of(classes: int) -> np.ndarray:
    """Skewed shares, one of them 0.001."""
    p = np.geomspace(1, 1e-3, classes)
    p /= p.sum()
    rare = int(np.argmin(np.abs(p - RARE)))
    p *= (1 - RARE) / (p.sum() - p[rare])
    p[rare] = RARE
    return p


def window_share(rng: np.random.Generator, p: np.ndarray, rho: float) -> np.ndarray:
    """The shares of one window; ``rho`` is the correlation of two predictions of it."""
    return p if not rho else rng.dirichlet(p * (1 / rho - 1))


def watched(rng: np.random.Generator, p: np.ndarray, rho: float) -> tuple[ShareDetector, float]:
    """A detector on the questions about shares, with a baseline just drawn, and its limit."""
    if rho:
        counts = np.array([rng.multinomial(1000, window_share(rng, p, rho)) for _ in range(168)])
    else:
        counts = rng.multinomial(10_000, p)[None]
    bins = len(CONFIDENCE_EDGES) - 1
    baseline = Baseline(
        ref=ModelRef("simulated", 1),
        digest="0" * 64,
        class_names=tuple(map(str, range(len(p)))),
        source="window" if rho else "holdout",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        counts=tuple(map(tuple, counts.tolist())),
        confidence_edges=CONFIDENCE_EDGES,
        confidence=((0,) * bins,) * len(p),
    )
    questions = questions_of(baseline)
    limit = alarm_limit(len(questions), WINDOWS)
    return ShareDetector(questions.allowed, limit), limit


def false_alarms(classes: int, rho: float, months: int, seed: int) -> tuple[int, int]:
    """Alarms in so many stationary months, and the months that had any."""
    rng = np.random.default_rng(seed)
    p = shares_of(classes)
    alarms = spoilt = 0
    for _ in range(months):
        detector, limit = watched(rng, p, rho)
        size = len(detector.evidence)
        firing, found = np.zeros(size, dtype=bool), 0
        for _ in range(WINDOWS):
            hits, trials = np.zeros(size), np.zeros(size)
            hits[:classes], trials[:classes] = rng.multinomial(1000, window_share(rng, p, rho)), 1000
            evidence = detector.count(hits[None], trials[None], [1.0])[0]
            detector.close_window()
            found += int(((evidence >= limit) & ~firing).sum())
            firing = (firing | (evidence >= limit)) & (evidence > np.sqrt(limit))
        alarms += found
        spoilt += found > 0
    return alarms, spoilt


def delays(
    classes: int, rho: float, runs: int, seed: int, window: int = 10_000, step: int = 500
) -> np.ndarray:
    """Predictions of the surging class until its alarm, after a quiet day."""
    rng = np.random.default_rng(seed)
    p = shares_of(classes)
    rare = int(np.argmin(np.abs(p - RARE)))
    after = p * (1 - 10 * RARE) / (1 - RARE)
    after[rare] = 10 * RARE
    found = []
    for _ in range(runs):
        detector, limit = watched(rng, p, rho)
        size = len(detector.evidence)
        seen, hour = 0, 0
        while seen < 5000:
            share = window_share(rng, p if hour < 24 else after, rho)
            hits, trials = np.zeros(size), np.zeros(size)
            alarm = False
            for _ in range(window // step):
                drawn = rng.multinomial(step, share)
                hits[:classes] += drawn
                trials[:classes] += step
                seen += int(drawn[rare]) if hour >= 24 else 0
                evidence = detector.count(hits[None], trials[None], [step / window])[0]
                alarm = hour >= 24 and bool(evidence[rare] >= limit)
                if alarm:
                    break
            detector.close_window()
            hour += 1
            if alarm:
                break
        found.append(seen)
    return np.array(found)


def report(months: int) -> None:
    """Print the rates and delays."""
    print(f"false alarms in {months} stationary months (at most 1 a month asked for):")
    for classes in (10, 43, 1000):
        for rho in (0.0, 0.001, 0.01):
            alarms, spoilt = false_alarms(classes, rho, months, SEED + classes)
            low, high = exact_interval(spoilt, months)
            print(
                f"  {classes:>5} classes, correlation {rho:g}: {alarms} alarms,"
                f" {alarms / months:.3f} a month; months with any"
                f" {spoilt / months:.3f} (95 % interval {low:.3f} to {high:.3f})",
                flush=True,
            )
    print("a tenfold surge of a class of share 0.001, in predictions of it (200 asked for):")
    for classes in (10, 43, 1000):
        for rho in (0.0, 0.0002, 0.001):
            runs = 200 if classes < 1000 else 40
            found = delays(classes, rho, runs, SEED + 7 * classes)
            print(
                f"  {classes:>5} classes, correlation {rho:g}: median {np.median(found):.0f},"
                f" 95 % within {np.quantile(found, 0.95):.0f} ({runs} runs)",
                flush=True,
            )


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
