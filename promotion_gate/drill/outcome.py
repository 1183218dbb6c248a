"""What came of one drill: the truth from the sealed answers beside what the gate said."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promotion_gate.core.types import Finding, Outcome, Report, Ruling


@dataclass(frozen=True, slots=True)
class DrillOutcome:
    """One finished drill; one line of ``outcomes.jsonl``.

    Attributes
    ----------
    key: names the drill: a digest of scenario and seed.
    attack, parameters: the kind of attack and its fields.
    harmless: nothing was poisoned: a clean control, or a hard negative with right labels.
    start, champion, training_data: where training began, whether a champion was in production, and whether
        the gate saw the training data.
    attack_success_rate, attack_trials: share of triggered holdout images that end where the attacker wants;
        None where the attack has no trigger.
    outcome: PROMOTE, HOLD or REJECT.
    caught: a poisoned model was not promoted; None for a harmless one.
    caught_by: the checks that rejected or held it.
    time_to_detection_s: seconds from the moment the poisoned data was in place to the verdict that stopped
        the model, training included; None where it was not stopped.
    sources_true, targets_true: classes that the attack takes from and leads to.
    sources_named, targets_named: those that the checks which stopped the model named.
    source_right, target_right: whether one of them is true; None where nothing can be right.
    carriers_true, carriers_named, carriers_hit: rows that carry the poison, rows that the checks which
        stopped the model listed, and how many rows are both.
    listed: by check, how many rows it listed as suspects, and how many of them carry the poison.
    findings: what every check measured. ``unmeasured`` says why others did not.
    seconds, cpu_seconds: training, gate and measurement, as if nothing had been kept from before.
    """

    key: str
    scenario: str
    seed: int
    attack: str
    parameters: Mapping[str, Any]
    harmless: bool
    rate: float
    data: str
    architecture: str
    start: str
    champion: bool
    training_data: bool
    attack_success_rate: float | None
    attack_trials: int
    accuracy: float
    champion_accuracy: float | None
    outcome: Outcome
    caught: bool | None
    caught_by: Sequence[str]
    time_to_detection_s: float | None
    sources_true: Sequence[str]
    targets_true: Sequence[str]
    sources_named: Sequence[str]
    targets_named: Sequence[str]
    source_right: bool | None
    target_right: bool | None
    carriers_true: int
    carriers_named: int
    carriers_hit: int
    findings: Mapping[str, Mapping[str, float]]
    unmeasured: Mapping[str, str]
    reasons: Sequence[str]
    seconds: float
    cpu_seconds: float
    answers_sha256: str
    model: str
    gate_run_id: str
    listed: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def got_through(self) -> bool:
        """A poisoned model was promoted."""
        return self.caught is False

    @property
    def false_alarm(self) -> bool:
        """A harmless model was stopped."""
        return self.harmless and self.outcome is not Outcome.PROMOTE

    @property
    def ended(self) -> str:
        """The drill's end in words."""
        if self.harmless:
            words = {Outcome.PROMOTE: "promoted, as it should be", Outcome.HOLD: "false alarm: held"}
            return words.get(self.outcome, "false alarm: rejected")
        words = {Outcome.PROMOTE: "got through", Outcome.HOLD: "caught: held for a person"}
        return words.get(self.outcome, "caught: rejected")

    @property
    def recall(self) -> float | None:
        """Share of the poisoned rows that were listed; None where there are none, or none can be listed."""
        if not self.carriers_true or not self.training_data:
            return None
        return self.carriers_hit / self.carriers_true

    def to_json(self) -> str:
        """One line of JSON; what is no finite number becomes null."""
        return json.dumps(_finite(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> DrillOutcome:
        """Read a line that :meth:`to_json` wrote; keys of a later version are passed over.

        Raises
        ------
        ValueError: it is not such a line.
        """
        table = json.loads(line)
        try:
            names = [one.name for one in dataclasses.fields(cls) if one.name in table]
            known = {name: table[name] for name in names}
            for name in ("attack_success_rate", "accuracy", "time_to_detection_s", "cpu_seconds", "seconds"):
                if known.get(name) is not None and not isinstance(known[name], int | float):
                    raise TypeError(f"{name} is no number")
            for name in ("caught_by", "reasons", "sources_true", "targets_true"):
                if not isinstance(known[name], list):
                    raise TypeError(f"{name} is no list")
            return cls(**{**known, "outcome": Outcome(known["outcome"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a drill's outcome: {error}") from None


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a gate run's verdict rests on: the checks that stopped the model, and what they named.

    ``pairs`` are (source, target) class names, source None where a check names the target alone.
    ``rows`` are the training rows that they listed.
    """

    checks: tuple[str, ...]
    pairs: tuple[tuple[str | None, str], ...]
    rows: frozenset[int]


def read_alarm(report: Report) -> Alarm:
    """What stopped the model of a finished gate run; empty where nothing did."""
    broken: dict[str, set[str]] = {}
    for judgement in report.verdict.reasons:
        metrics = broken.setdefault(judgement.check, set())
        if judgement.rule is not None:
            metrics.add(judgement.rule.metric)
    pairs: list[tuple[str | None, str]] = []
    rows: set[int] = set()
    for finding in report.findings:
        if finding.check in broken:
            pairs += _pairs(finding, broken[finding.check])
            rows |= set(_rows(finding))
    return Alarm(tuple(broken), tuple(dict.fromkeys(pairs)), frozenset(rows))


def listed_rows(report: Report) -> dict[str, frozenset[int]]:
    """The training rows that each check listed as suspects, whether it stopped the model or not."""
    rows = {finding.check: frozenset(_rows(finding)) for finding in report.findings}
    return {check: found for check, found in rows.items() if found}


def measured(report: Report) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Every check's metrics, and why the others measured nothing."""
    metrics = {f.check: dict(f.metrics) for f in report.findings if f.metrics}
    silent = {f.check: f.summary for f in report.findings if not f.metrics}
    return metrics, silent


def judged(report: Report) -> dict[str, str]:
    """What the policy made of each check: ``failed``, ``held``, ``passed``, or ``no bound``."""
    order = ("no bound", "passed", "held", "failed")
    states = {finding.check: "no bound" for finding in report.findings}
    for judgement in report.verdict.judgements:
        state = {Ruling.FAIL: "failed", Ruling.PASS: "passed"}.get(judgement.ruling, "no bound")
        if judgement.ruling is Ruling.INCONCLUSIVE and judgement.blocking:
            state = "held"
        before = states.get(judgement.check, "no bound")
        states[judgement.check] = max(before, state, key=order.index)
    return states


def _pairs(finding: Finding, broken: set[str]) -> Iterator[tuple[str | None, str]]:
    detail = finding.detail
    for trigger in _tables(detail.get("triggers")):
        yield from _pair(trigger.get("source"), trigger.get("target"))
    if "suspected_pairs" in broken:
        for suspect in _tables(detail.get("pairs")):
            if suspect.get("suspected"):
                yield from _pair(suspect.get("source"), suspect.get("target"))
    if "flip_p" in broken:
        for pair in _tables(detail.get("pairs"))[:1]:
            yield from _pair(pair.get("looks_like"), pair.get("label"))
    if "concentration_p" in broken:
        crowding = detail.get("crowding")
        yield from _pair(None, crowding.get("label") if isinstance(crowding, Mapping) else None)
    if isinstance(detail.get("target"), str):
        yield from _pair(detail.get("source"), detail["target"])


def _pair(source: Any, target: Any) -> Iterator[tuple[str | None, str]]:
    if isinstance(target, str):
        yield (source if isinstance(source, str) else None, target)


def _rows(finding: Finding) -> Iterator[int]:
    for suspect in _tables(finding.detail.get("suspects")):
        if isinstance(suspect.get("row"), int):
            yield suspect["row"]


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; a check may report anything."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return []
    return [entry for entry in value if isinstance(entry, Mapping)]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
