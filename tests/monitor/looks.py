"""Looks at windows of a made-up model, as the monitor would hand them on."""

from datetime import UTC, datetime, timedelta

import numpy as np

from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.interface import Alarm, Baseline, ClassShare, Predictions, WindowOutcome

NAMES = ("stop", "yield", "speed limit 80", "<script>alert(1)</script>")
START = datetime(2026, 3, 1, tzinfo=UTC)
BASE = (0.5, 0.3, 0.1, 0.1)
HOSTILE = '"><img src=x onerror=window.pwned=1>.png'


def baseline():
    counts = [[round(1000 * share) for share in BASE]]
    edges = [0.0, 0.5, 0.9, 1.0]
    histogram = [[n // 10, n // 5, n - n // 10 - n // 5] for n in counts[0]]
    return Baseline(ModelRef("signs", 3), "d" * 64, NAMES, "holdout", START, counts, edges, histogram)


def alarm(subject="speed limit 80", state="firing", hour=5, kind="class-share", sigma=11.2):
    told = f"prediction distribution for class '{subject}' has deviated by {sigma} standard deviations"
    at = START + timedelta(hours=hour)
    return Alarm(kind, "signs", 3, subject, state, f"{told} from baseline", at, at, sigma)


def samples(count=12, label=2, image=None):
    references = [f"{i}.png" for i in range(count)] if image is None else image
    return Predictions(
        NAMES,
        START.timestamp() + 5 * 3600 + np.arange(count, dtype=np.float64),
        np.full(count, label, np.int32),
        np.full(count, 0.97, np.float32),
        np.full(count, 3, np.int32),
        None,
        references,
    )


def look(hour, surge=0, *, alarms=(), firing=(), shown=None, complete=True, names=NAMES):
    """One window of 1,000 predictions, ``surge`` of them more of the third class than the baseline says."""
    counts = np.round(1000 * np.asarray(BASE)).astype(int)
    counts[2] += surge
    total = int(counts.sum())
    classes = [
        ClassShare(
            name, int(count), total * share, 1e-30 if surge and i == 2 else 0.4,
            0.3 * (-1) ** i if not surge or i != 2 else surge / 80, 1.0,
            unsure=0.9, unsure_baseline=0.25, confidence_sigma=-6.0 if surge and i == 2 else 0.1,
        )
        for i, (name, count, share) in enumerate(zip(names, counts, BASE, strict=True))
    ]  # fmt: skip
    start = START + timedelta(hours=hour)
    end = start + timedelta(hours=1)
    return WindowOutcome(
        "signs", "production", 3, start, end, end, complete, total, classes, 0.01 + surge / 1000,
        tuple(alarms), tuple(firing), {2: 4, 0: 1} if surge else {}, {HOSTILE: 2} if surge else {}, 0,
        shown, baseline(),
    )  # fmt: skip


def surged(hours=30, at=12, image=None):
    """Looks with a surge at one hour, and the alarm that stands from then on."""
    yield from (look(hour) for hour in range(at))
    raised = alarm(hour=at)
    yield look(at, 900, alarms=[raised], firing=[raised], shown=samples(image=image))
    yield from (look(hour, 100, firing=[raised]) for hour in range(at + 1, hours))
