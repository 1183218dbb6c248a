"""Simulated false alarms and delays of the monitor's evidence, on seeds that nothing was tuned on.

    python tests/bench/monitor_rates.py [MONTHS]

A month is 720 hourly windows of 1,000 predictions. The baseline is drawn anew each month: a holdout of
10,000, or a week of windows where these scatter. Class shares fall off geometrically over three decades.
A surge is tenfold, of a class of share 0.001, in windows of 10,000; its delay is counted in predictions of
that class. Only questions about shares are simulated, against the bar that all questions set.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np

from promotion_gate.core.types import ModelRef
from promotion_gate.detect.sequential import Allowed, ShareDetector, alarm_limit
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


def allowed_by(rng: np.random.Generator, p: np.ndarray, rho: float) -> tuple[Allowed, float]:
    """What a baseline just drawn allows the shares to be, and the bar."""
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
    part = slice(len(p))
    allowed = questions.allowed
    return Allowed(allowed.low[part], allowed.high[part], allowed.rho[part]), alarm_limit(
        len(questions), WINDOWS
    )


def side_by_side(drawn: list[Allowed]) -> Allowed:
    """The questions of several months as those of one."""
    return Allowed(*(np.concatenate([getattr(a, part) for a in drawn]) for part in ("low", "high", "rho")))


def false_alarms(classes: int, rho: float, months: int, seed: int) -> tuple[int, int]:
    """Alarms in so many stationary months, and the months that had any."""
    rng = np.random.default_rng(seed)
    p = shares_of(classes)
    found = np.zeros(0, dtype=int)
    together = max(1, min(months, 20_000 // classes))
    while len(found) < months:
        drawn = [allowed_by(rng, p, rho) for _ in range(min(together, months - len(found)))]
        limit = drawn[0][1]
        detector = ShareDetector(side_by_side([allowed for allowed, _ in drawn]), limit)
        trials = np.full((1, len(drawn) * classes), 1000)
        firing = np.zeros(len(drawn) * classes, dtype=bool)
        alarms = np.zeros(len(drawn), dtype=int)
        for _ in range(WINDOWS):
            hits = np.concatenate([rng.multinomial(1000, window_share(rng, p, rho)) for _ in drawn])
            evidence = detector.count(hits[None], trials, [1.0])[0]
            detector.close_window()
            new = (evidence >= limit) & ~firing
            alarms += new.reshape(len(drawn), classes).sum(axis=1)
            firing = (firing | new) & (evidence > np.sqrt(limit))
        found = np.concatenate([found, alarms])
    return int(found.sum()), int((found > 0).sum())


def delays(
    classes: int, rho: float, runs: int, seed: int, window: int = 10_000, step: int = 250
) -> np.ndarray:
    """Predictions of the surging class until its alarm, after a quiet day; 5,000 where there was none."""
    rng = np.random.default_rng(seed)
    p = shares_of(classes)
    rare = int(np.argmin(np.abs(p - RARE)))
    steps = window // step
    found = []
    for _ in range(runs):
        allowed, limit = allowed_by(rng, p, rho)
        only = Allowed(allowed.low[[rare]], allowed.high[[rare]], allowed.rho[[rare]])
        detector = ShareDetector(only, limit)
        for _ in range(24):
            share = window_share(rng, np.array([RARE, 1 - RARE]), rho)[0]
            detector.count([[rng.binomial(window, share)]], [[window]], [1.0])
            detector.close_window()
        seen = 0
        while seen < 5000:
            share = window_share(rng, np.array([10 * RARE, 1 - 10 * RARE]), rho)[0]
            hits = rng.binomial(step, share, steps).cumsum()
            trials = step * np.arange(1, steps + 1)
            trace = detector.count(hits[:, None], trials[:, None], np.full(steps, 1 / steps))[:, 0]
            detector.close_window()
            if (trace >= limit).any():
                seen += int(hits[int(np.argmax(trace >= limit))])
                break
            seen += int(hits[-1])
        found.append(min(seen, 5000))
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
            runs = 200 if classes < 1000 else 50
            found = delays(classes, rho, runs, SEED + 7 * classes)
            print(
                f"  {classes:>5} classes, correlation {rho:g}: median {np.median(found):.0f},"
                f" 95 % within {np.quantile(found, 0.95):.0f} ({runs} runs)",
                flush=True,
            )


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
