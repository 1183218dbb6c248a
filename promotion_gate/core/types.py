"""The vocabulary of the gate: plain frozen records that every room of the program shares."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from promotion_gate.core.errors import ExitCode, UsageError

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]


class Status(enum.StrEnum):
    """Whether a check could measure what it set out to measure."""

    MEASURED = "MEASURED"
    INCONCLUSIVE = "INCONCLUSIVE"


class Ruling(enum.StrEnum):
    """What the policy makes of one measurement."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_APPLICABLE = "NOT_APPLICABLE"


class Outcome(enum.StrEnum):
    """The gate's decision on a candidate."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"

    @property
    def exit_code(self) -> ExitCode:
        return {
            Outcome.PROMOTE: ExitCode.DONE,
            Outcome.HOLD: ExitCode.HELD,
            Outcome.REJECT: ExitCode.REJECTED,
        }[self]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A registered model version: name and version number."""

    name: str
    version: int

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read ``name/7`` or ``models:/name/7``.

        Raises
        ------
        UsageError: the text is neither.
        """
        match = re.fullmatch(r"(?:models:/)?([^/@]+)/([0-9]{1,18})", text)
        if match is None:
            raise UsageError(f"not a model version: {text!r}", "write it as name/7 or models:/name/7")
        return cls(match[1], int(match[2]))


NO_DIGEST = "0" * 64
"""Stands for the digest of artifacts that could not be digested; no files have it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The model version at the gate, and the one in production that it would replace.

    ``digest`` is empty until the artifacts have been fetched and hashed. ``source`` is the registry's
    artifact location.
    """

    ref: ModelRef
    run_id: str | None
    source: str
    digest: str = ""
    champion: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class DatasetInput:
    """A data set that a training run declared with ``mlflow.log_input``, and the tags of that declaration."""

    name: str
    context: str
    source: str
    digest: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a logged metric."""

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the registry tells of the training run behind a model version.

    ``curves`` maps a metric name to its history in order of step. Nothing here is proof: anyone who
    may write to the tracking server can write it.
    """

    run_id: str
    user: str
    started_at: datetime | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    curves: Mapping[str, Sequence[MetricPoint]]
    datasets: Sequence[DatasetInput] = ()

    @property
    def commit(self) -> str:
        return self.tags.get("mlflow.source.git.commit", "")


ExhibitKind = Literal["images", "points", "attribution"]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """Something a person looks at: shown on the card, left out of the JSON but for its captions.

    The arrays by kind, ``n`` being ``len(items)`` except for points:

    - ``images``: ``images`` uint8 (n, H, W, C).
    - ``points``: ``xy`` float32 (n, 2), ``label`` int (n,), ``role`` uint8 (n,) with 0 holdout,
      1 training, 2 suspect, ``images`` uint8 (n, h, w, C), ``ids`` str (n,).
    - ``attribution``: ``images`` uint8 (n, H, W, C), ``positive`` float32 (n, H, W).

    Keys of an item: ``caption``, and where they apply ``id``, ``box`` as [top, left, height, width] in
    pixels, ``mark`` as one of ``plain``, ``suspect``, ``flipped``, ``kept``.
    """

    name: str
    kind: ExhibitKind
    caption: str
    arrays: Mapping[str, Any] = field(repr=False, compare=False)
    items: Sequence[Mapping[str, JSON]] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check measured. No opinion: the policy judges it.

    ``metrics`` are the numbers that bounds may name. ``not_applicable`` maps a metric that makes no
    sense for this candidate to the reason (a regression against a champion that does not exist).
    ``summary`` is one sentence for a person. ``detail`` is JSON.
    """

    check: str
    status: Status
    summary: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    exhibits: Sequence[Exhibit] = ()
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def inconclusive(cls, check: str, reason: str, **detail: Any) -> Finding:
        return cls(check, Status.INCONCLUSIVE, reason, detail=detail)


@dataclass(frozen=True, slots=True)
class Rule:
    """One bound of the policy, on one metric of one check."""

    check: str
    metric: str
    minimum: float = -math.inf
    maximum: float = math.inf
    otherwise: Literal["reject", "hold"] = "reject"

    @property
    def bound(self) -> str:
        parts = []
        if self.minimum > -math.inf:
            parts.append(f"at least {self.minimum:g}")
        if self.maximum < math.inf:
            parts.append(f"at most {self.maximum:g}")
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The policy's ruling on one finding under one rule; ``rule`` is None for the finding as a whole.

    ``blocking`` marks an INCONCLUSIVE that holds the candidate: a required check, or a bound whose
    breach is for a person to look at.
    """

    check: str
    rule: Rule | None
    ruling: Ruling
    measured: float | None
    reason: str
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, with every judgement it rests on and the digest of the policy that made it."""

    outcome: Outcome
    judgements: Sequence[Judgement]
    policy_digest: str

    @property
    def reasons(self) -> Sequence[Judgement]:
        """The judgements that kept the outcome from PROMOTE, in policy order; failures first."""
        failed = [j for j in self.judgements if j.ruling is Ruling.FAIL]
        held = [j for j in self.judgements if j.ruling is Ruling.INCONCLUSIVE and j.blocking]
        return [*failed, *held]


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of the model: relative path, bytes, hex SHA-256, and what it holds by its content.

    ``kind`` is empty until the content has been looked at.
    """

    path: str
    size: int
    sha256: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card shows and the JSON twin carries: one gate run, finished.

    ``unsafe`` names each switch-off that the policy used. ``sandbox`` says how the candidate's code was
    confined. ``policy_text`` is the policy file as read.
    """

    candidate: Candidate
    verdict: Verdict
    findings: Sequence[Finding]
    class_names: Sequence[str]
    files: Sequence[ArtifactFile]
    model_format: str
    sandbox: str
    unsafe: Sequence[str]
    policy_text: str
    gate_run_id: str
    user: str
    host: str
    started_at: datetime
    seconds: float
    gate_version: str
    alias: str
    candidate_run: RunFacts | None = None
    champion_run: RunFacts | None = None

    def finding(self, check: str) -> Finding | None:
        return next((f for f in self.findings if f.check == check), None)


Action = Literal[
    "promote", "rollback", "approve", "reject", "hold", "revoke", "foreign", "accept", "recover", "restored"
]
"""What history tells. ``foreign`` is a change past the gate, ``accept`` a person's word that it stands;
``recover`` closes what a dead process began; ``restored`` ends the time to recovery of a rollback."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A move of the production alias. ``from_version`` is None for the first promotion.

    ``mirror_stage`` is whether the legacy stage follows, None where the record does not say.
    """

    name: str
    alias: str
    from_version: int | None
    to_version: int
    mirror_stage: bool | None = None


@dataclass(frozen=True, slots=True)
class ForeignMove:
    """A change of production past the gate: where the alias was last known to be, and where it was found.

    ``to_version`` is None where the alias is gone. ``stage`` is what the legacy stage Production was found
    to hold, None where it need not follow the alias.
    """

    alias: str
    from_version: int | None
    to_version: int | None
    stage: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of history: who did what to which bytes, when, why, on which verdict.

    ``transition`` is None for events that move nothing (a rejection, a hold). ``card_sha256`` and
    ``policy_digest`` are empty where no card or policy was involved (a rollback). ``verdict_sha256`` is that
    of the signed verdict which the event rests on, empty where there is none. ``sequence`` is the event's
    place in the model's history, so that an old record cannot stand for a new event. ``champion`` is the
    version that was in production when the verdict was made. ``foreign`` is what a foreign entry tells; its
    ``user`` and ``host`` are who noticed, not who did it. ``about`` is the id of the event that a recovery
    closed, or that of the rollback that restored service. ``alarm_at`` is when the trouble was noticed that
    a rollback answers. ``baseline_sha256`` is that of the signed monitoring baseline, empty where none could
    be made. ``unfinished`` are the ids of events that were begun and had not ended when it was written.
    """

    action: Action
    ref: ModelRef
    digest: str
    reason: str
    user: str
    host: str
    at: datetime
    gate_version: str
    outcome: Outcome | None = None
    policy_digest: str = ""
    card_sha256: str = ""
    gate_run_id: str = ""
    transition: Transition | None = None
    unsafe: Sequence[str] = ()
    champion: int | None = None
    verdict_sha256: str = ""
    sequence: int = 0
    foreign: ForeignMove | None = None
    about: str = ""
    alarm_at: datetime | None = None
    baseline_sha256: str = ""
    unfinished: Sequence[str] = ()
