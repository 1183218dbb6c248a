"""What the card is made of: plain records that the view fills and the templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.types import ArtifactFile, Outcome, Ruling

State = Literal["failed", "held", "passed", "unmeasured", "unjudged"]
Mark = Literal["plain", "suspect", "flipped", "kept"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A judgement in words, the measured value beside its bound."""

    check: str
    title: str
    metric: str
    measured: str
    bound: str
    sentence: str
    ruling: Ruling
    blocking: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact of the candidate beside production's; ``changed`` is None where it cannot be told."""

    what: str
    candidate: str
    champion: str
    change: str
    changed: bool | None = None


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Something the verdict does not rest on, and why."""

    title: str
    kind: str
    reason: str
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: uint8 (H, W, C), with a box [top, left, height, width] and SHAP mass (H, W) if any."""

    pixels: NDArray[np.uint8] = field(repr=False, compare=False)
    caption: str
    mark: Mark = "plain"
    box: tuple[float, float, float, float] | None = None
    mass: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Gallery:
    """The pictures of one exhibit; ``left_out`` counts those not shown."""

    name: str
    caption: str
    pictures: Sequence[Picture]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Trigger:
    """A patch that turns one class into another."""

    source: str
    target: str
    rate: str
    interval: str
    tried: int | None
    carriers: int | None
    moving: bool | None


@dataclass(frozen=True, slots=True)
class RecoveredPair:
    """A patch found without training data, beside what the champion and the null make of it."""

    trigger: Trigger
    champion: str
    strength: str
    null: str
    standing: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a check and what the policy made of it."""

    name: str
    value: str
    bound: str
    ruling: str


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of the per-class table; fractions in 0 to 1, None where not measured."""

    name: str
    support: int | None
    precision: float | None
    recall: float | None
    f1: float | None
    low: float | None
    high: float | None
    champion: float | None
    delta: float | None
    p_value: float | None
    regressed: bool


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class taken for another."""

    true: str
    predicted: str
    count: int
    champion: int | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Training loss of one class by step."""

    name: str
    steps: Sequence[float]
    losses: Sequence[float]
    departs: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """A training row that one or more checks named."""

    row: int | None
    id: str
    label: str
    why: str
    checks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Group:
    """How many points of one class lie on the map."""

    label: int
    name: str
    holdout: int
    training: int
    suspects: int


@dataclass(frozen=True, slots=True)
class PointMap:
    """The embedding map; coordinates scaled to 0 to 10,000, roles 0 holdout, 1 training, 2 suspect."""

    x: Sequence[int]
    y: Sequence[int]
    labels: Sequence[int]
    roles: Sequence[int]
    ids: Sequence[str]
    names: Sequence[str]
    groups: Sequence[Group]
    caption: str
    thumbnails: NDArray[np.uint8] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table; ``flag`` marks the row that it heads."""

    text: str
    numeric: bool = False
    flag: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """What a check says of groups of rows; the first cell of each row names it."""

    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One check below the first screen. ``raw`` is the detail of a check the card does not know.

    ``accuracy`` says how often the check was right when it was measured, empty where there is nothing to be
    right about; ``evasions`` and ``papers`` are what is known to get round it, and where it comes from.
    """

    check: str
    anchor: str
    title: str
    question: str
    state: State
    summary: str
    seconds: float
    metrics: Sequence[Metric]
    galleries: Sequence[Gallery]
    notes: Sequence[str]
    raw: str
    accuracy: str = ""
    evasions: Sequence[str] = ()
    papers: Sequence[str] = ()
    pairs: Sequence[RecoveredPair] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class PickleRow:
    """One pickle among the model's files: where, what the scanner says, and the names in it."""

    source: str
    listed: bool
    verdict: str
    findings: Sequence[str]
    names: Sequence[str]
    refused: Sequence[str]
    note: str


@dataclass(frozen=True, slots=True)
class CardView:
    """Everything on the card, in words and numbers."""

    outcome: Outcome
    headline: str
    name: str
    version: int
    uri: str
    champion: str
    alias: str
    reasons: Sequence[Reason]
    more_reasons: int
    rules: Sequence[Reason]
    metric_differences: Sequence[Difference]
    data_differences: Sequence[Difference]
    code_differences: Sequence[Difference]
    unchecked: Sequence[Unchecked]
    triggers: Sequence[Trigger]
    trigger_check: str
    evidence: Sequence[Gallery]
    facts: Mapping[str, str]
    unsafe: Sequence[str]
    sandbox: str
    commands: Mapping[str, str]
    sections: Sequence[Section]
    classes: Sequence[ClassRow]
    more_classes: Sequence[ClassRow]
    has_champion: bool
    recall_base: float
    confusions: Sequence[Confusion]
    reliability: Sequence[tuple[float, float, int]]
    curves: Sequence[Curve]
    map: PointMap | None
    suspects: Sequence[Suspect]
    more_suspects: int
    suspect_pictures: Gallery | None
    provenance: Sequence[Difference]
    missing: Sequence[str]
    violations: Sequence[str]
    pickles: Sequence[PickleRow]
    files: Sequence[ArtifactFile]
    policy_text: str
    policy_digest: str
