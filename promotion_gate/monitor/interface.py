"""What monitoring speaks of: predictions as they were logged, the baseline, and alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from promotion_gate.core.types import JSON, ModelRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AlarmKind = Literal["class-share", "confidence", "embedding", "unseen-class", "foreign-move", "rollback"]

BASELINE_FILE = "baseline.dsse.json"
"""The artifact of a gate run that holds the signed baseline of the version it judged."""

UNSEEN = -1
"""The class index of a prediction whose class the baseline does not know."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """How a model answered while it was trusted.

    ``counts`` are predictions by window and class (windows x classes); a holdout has no time and is one
    window. ``confidence_edges`` (bins + 1, ascending from 0 to 1) and ``confidence`` (classes x bins) are a
    histogram of the predicted class's probability. ``embedding_mean`` (d) and ``embedding_distance``, the 101
    percentiles of the distance from it, are empty where no embeddings were to be had. ``confidence_rho``
    (classes) and ``embedding_rho`` say how far predictions of one window go together beyond chance in these
    two, as the correlation between two predictions of it; 0 where nothing tells.
    """

    ref: ModelRef
    digest: str
    class_names: Sequence[str]
    source: Literal["holdout", "window"]
    at: datetime
    counts: Sequence[Sequence[int]]
    confidence_edges: Sequence[float]
    confidence: Sequence[Sequence[int]]
    embedding_mean: Sequence[float] = ()
    embedding_distance: Sequence[float] = ()
    confidence_rho: Sequence[float] = ()
    embedding_rho: float = 0.0

    @property
    def total(self) -> int:
        """How many predictions it was made from."""
        return sum(map(sum, self.counts))


@dataclass(frozen=True, slots=True)
class Predictions:
    """A piece of a prediction log, in order of time.

    ``time`` float64 (n,) seconds since the epoch, UTC; ``label`` int32 (n,) as an index into ``class_names``;
    ``confidence`` float32 (n,), NaN where none was logged; ``version`` int32 (n,), 0 where none was logged;
    ``embedding`` float32 (n, d) or None; ``image`` the image references or None, empty strings where one
    prediction has none.
    """

    class_names: Sequence[str]
    time: NDArray[np.float64]
    label: NDArray[np.int32]
    confidence: NDArray[np.float32]
    version: NDArray[np.int32]
    embedding: NDArray[np.float32] | None = None
    image: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something in production that a person should know, or that it is over.

    ``subject`` is what deviates: a class name, or empty. ``sigma`` is the tail probability put as
    standard deviations of a normal variable. ``since`` is when the evidence began, ``at`` when it was seen.
    """

    kind: AlarmKind
    model: str
    version: int | None
    subject: str
    state: Literal["firing", "resolved"]
    message: str
    since: datetime
    at: datetime
    sigma: float = 0.0
    detail: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two reports the same alarm: the model, the kind and the subject."""
        return self.model, self.kind, self.subject


@dataclass(frozen=True, slots=True)
class ClassShare:
    """One class in one window, against the baseline.

    ``expected`` is how many of the window's predictions the baseline would give it. ``p_value`` is the exact
    chance, in this window alone, of a count at least as far off to that side; ``sigma`` the same as standard
    deviations, positive for a surge and negative for a loss. ``evidence`` is the running e-value that alarms
    rest on: it may be looked at as often as one likes.
    """

    name: str
    count: int
    expected: float
    p_value: float
    sigma: float
    evidence: float


@dataclass(frozen=True, slots=True)
class WindowOutcome:
    """What one look at a window of predictions showed.

    ``complete`` is False where the window was not over yet: more of it may come. ``predictions`` are those of
    ``version``, which was in production; rows that name no version are taken as its own. ``other_versions``
    counts the rest by version, ``unseen`` the classes that the baseline does not know. ``late`` are rows that
    came after their window was closed and were counted in this one. ``classes`` are in the baseline's order.
    ``psi`` is the population stability index, for display only. ``alarms`` are those that this look raised or
    resolved, ``firing`` all that stand after it. ``samples`` are up to 32 newest predictions behind each
    standing alarm, where any are known.
    """

    model: str
    alias: str
    version: int
    start: datetime
    end: datetime
    at: datetime
    complete: bool
    predictions: int
    classes: Sequence[ClassShare]
    psi: float
    alarms: Sequence[Alarm] = ()
    firing: Sequence[Alarm] = ()
    other_versions: Mapping[int, int] = field(default_factory=dict)
    unseen: Mapping[str, int] = field(default_factory=dict)
    late: int = 0
    samples: Predictions | None = None
    baseline: Baseline | None = None

    @property
    def drifted(self) -> bool:
        """Whether an alarm stands."""
        return bool(self.firing)
