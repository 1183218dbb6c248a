"""One gate run: resolve, fetch, examine, decide, render, record, transition."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from promotion_gate import __version__
from promotion_gate.checks.registry import chosen_checks
from promotion_gate.checks.training_curves import CURVE_PREFIX
from promotion_gate.core.decide import decide
from promotion_gate.core.errors import (
    GateError,
    NotInRegistry,
    RegistryConflict,
    RegistryError,
    SigningError,
)
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import (
    NO_DIGEST,
    Candidate,
    Finding,
    ModelRef,
    Outcome,
    Report,
    Verdict,
)
from promotion_gate.examination import Examined, Progress, Resolved, examine
from promotion_gate.monitor.interface import BASELINE_FILE, Baseline
from promotion_gate.registry.interface import ATTESTATION_FILE, RECORD_FILE, VERDICT_FILE, Registry
from promotion_gate.transition import (
    Actor,
    Judged,
    Recorded,
    note_foreign_moves,
    promote,
    record_verdict,
    recover,
    vouched_digest,
)

CARD_FILE = "card.html"
FINDINGS_FILE = "findings.json"
POLICY_FILE = "policy.toml"


@dataclass(frozen=True, slots=True)
class GateRun:
    """What one gate run leaves behind. ``card`` is the HTML file's bytes, ``findings`` the JSON twin's."""

    report: Report
    card: bytes
    findings: bytes
    recorded: Recorded

    @property
    def verdict(self) -> Verdict:
        return self.report.verdict


def run_gate(
    registry: Registry,
    model_uri: str,
    policy: Policy,
    *,
    promoting: bool = True,
    actor: Actor | None = None,
    progress: Progress = lambda _: None,
) -> GateRun:
    """Gate one model version, and promote it if the verdict is PROMOTE and ``promoting``.

    Whatever goes wrong with the candidate becomes a finding and part of the verdict. What goes wrong with
    the registry is raised, and then nothing was moved.

    Raises
    ------
    PolicyError: the policy names a check, metric or option that does not exist.
    RegistryError: the registry cannot be reached, or production changed under the verdict.
    """
    actor = actor or Actor.here()
    checks = chosen_checks(policy)
    started, clock = actor.clock(), time.monotonic()
    progress(f"resolve {model_uri}")
    resolved = _resolve(registry, model_uri, policy)
    settled: list[str] = []
    try:
        if promoting:
            settled = recover(registry, resolved.candidate.ref.name, policy.production, actor)
    except RegistryConflict as error:
        resolved = replace(resolved, doubt=str(error))
    else:
        for line in settled:
            progress(line)
        # What a dead process left may have moved production.
        resolved = _resolve(registry, model_uri, policy) if settled else resolved
        for noted in note_foreign_moves(registry, resolved.candidate.ref.name, policy.production, actor):
            progress(noted.record.reason)
            settled.append(noted.record.reason)
        resolved = _vouched(registry, resolved, policy, actor)
    run_id = registry.start_gate_run(resolved.candidate.ref, {"policy_digest": policy.digest})
    try:
        with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
            examined = examine(registry, resolved, checks, policy, Path(folder), progress)
        progress("decide")
        verdict = decide(examined.findings, policy)
        report = _report(
            resolved, examined, verdict, policy, actor, run_id, started, time.monotonic() - clock
        )
        progress("render")
        card, findings = _render(report)
        _log(registry, report, card, findings)
        progress("record")
        baseline = _log_baseline(registry, run_id, examined.baseline, actor)
        recorded = _conclude(registry, report, card, baseline, policy, actor, promoting)
        recorded = replace(recorded, notes=(*settled, *recorded.notes))
    except BaseException:
        _close_failed(registry, run_id)
        raise
    return GateRun(report, card, findings, _filed(registry, report, recorded))


def examine_version(
    registry: Registry, ref: ModelRef, policy: Policy, progress: Progress = lambda _: None
) -> Sequence[Finding]:
    """Measure one model version as :func:`run_gate` does, and leave no trace: no run, no record, no move.

    A version that is in production is measured without a champion: it cannot be compared with itself.

    Raises
    ------
    PolicyError: the policy names a check, metric or option that does not exist.
    RegistryError: the registry cannot be reached.
    """
    checks = chosen_checks(policy)
    resolved = _resolve_apart(registry, ref, policy)
    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        return tuple(examine(registry, resolved, checks, policy, Path(folder), progress).findings)


@dataclass(frozen=True, slots=True)
class Preview:
    """What the gate would say of a version: the report, the card's HTML and its JSON twin, as bytes."""

    report: Report
    card: bytes
    findings: bytes

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every metric as ``check.metric``, the names that gate runs are logged under."""
        return _metrics(self.report)


def preview(
    registry: Registry,
    ref: ModelRef,
    policy: Policy,
    run_id: str,
    *,
    actor: Actor | None = None,
    progress: Progress = lambda _: None,
) -> Preview:
    """Examine and judge one model version as :func:`run_gate` does, and record and move nothing.

    A version that is in production is measured without a champion: it cannot be compared with itself.

    Parameters
    ----------
    run_id: the MLflow run that the card will name as its own.

    Raises
    ------
    PolicyError: the policy names a check, metric or option that does not exist.
    RegistryError: the registry cannot be reached.
    """
    actor = actor or Actor.here()
    checks = chosen_checks(policy)
    started, clock = actor.clock(), time.monotonic()
    resolved = _resolve_apart(registry, ref, policy)
    if resolved.candidate.champion is not None:
        resolved = _vouched(registry, resolved, policy, actor)
    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        examined = examine(registry, resolved, checks, policy, Path(folder), progress)
    verdict = decide(examined.findings, policy)
    took = time.monotonic() - clock
    report = _report(resolved, examined, verdict, policy, actor, run_id, started, took)
    return Preview(report, *_render(report))


def _resolve_apart(registry: Registry, ref: ModelRef, policy: Policy) -> Resolved:
    """As :func:`_resolve`, but a version in production has no champion."""
    resolved = _resolve(registry, ref.uri, policy)
    if resolved.candidate.champion != ref:
        return resolved
    return replace(resolved, candidate=replace(resolved.candidate, champion=None), champion_run=None)


def _resolve(registry: Registry, model_uri: str, policy: Policy) -> Resolved:
    ref = registry.resolve(model_uri)
    facts = registry.version(ref)
    if facts.status != "READY":
        raise RegistryConflict(f"{ref} is {facts.status}, not READY", "wait for its registration to finish")
    version = registry.model(ref.name).aliases.get(policy.production.alias)
    champion = None if version is None else ModelRef(ref.name, version)
    champion_run = None if champion is None else registry.version(champion).run_id
    return Resolved(
        Candidate(ref, facts.run_id, facts.source, champion=champion),
        None if facts.run_id is None else registry.run_facts(facts.run_id, CURVE_PREFIX),
        None if champion_run is None else registry.run_facts(champion_run),
        _attestation(registry, facts.run_id) if "provenance" in policy.checks else None,
    )


def _attestation(registry: Registry, run_id: str | None) -> bytes | None:
    """The trainer's statement that the training run holds, as it is; the check judges it."""
    if run_id is None:
        return None
    try:
        return registry.read_file(run_id, ATTESTATION_FILE)
    except NotInRegistry:
        return None


def _vouched(registry: Registry, resolved: Resolved, policy: Policy, actor: Actor) -> Resolved:
    """What the signed history says of the champion, or why it cannot vouch for it."""
    name, champion = resolved.candidate.ref.name, resolved.candidate.champion
    version = None if champion is None else champion.version
    try:
        digest = vouched_digest(registry, name, version, policy.production, actor)
    except (RegistryConflict, SigningError) as error:
        return replace(resolved, doubt=str(error))
    return replace(resolved, champion_digest=digest)


def _report(
    resolved: Resolved,
    examined: Examined,
    verdict: Verdict,
    policy: Policy,
    actor: Actor,
    run_id: str,
    started: datetime,
    seconds: float,
) -> Report:
    return Report(
        candidate=examined.candidate,
        verdict=verdict,
        findings=tuple(examined.findings),
        class_names=examined.class_names,
        files=tuple(examined.files),
        model_format=examined.model_format,
        sandbox=examined.sandbox,
        unsafe=policy.unsafe,
        policy_text=policy.text,
        gate_run_id=run_id,
        user=actor.user,
        host=actor.host,
        started_at=started,
        seconds=seconds,
        gate_version=__version__,
        alias=policy.production.alias,
        candidate_run=resolved.run,
        champion_run=resolved.champion_run,
    )


def _render(report: Report) -> tuple[bytes, bytes]:
    from promotion_gate.card import render_card, report_json

    return render_card(report), report_json(report)


def _log(registry: Registry, report: Report, card: bytes, findings: bytes) -> None:
    run_id = report.gate_run_id
    registry.log_file(run_id, CARD_FILE, card)
    registry.log_file(run_id, FINDINGS_FILE, findings)
    registry.log_file(run_id, POLICY_FILE, report.policy_text.encode())
    registry.log_metrics(run_id, _metrics(report))


def _metrics(report: Report) -> dict[str, float]:
    return {
        f"{found.check}.{name}": value for found in report.findings for name, value in found.metrics.items()
    }


def _log_baseline(registry: Registry, run_id: str, baseline: Baseline | None, actor: Actor) -> str:
    """Sign and store the baseline; its SHA-256 goes into the record. Empty where there is none."""
    from promotion_gate.monitor.baseline import sign_baseline

    if baseline is None:
        return ""
    content = sign_baseline(baseline, actor.keys.signing)
    registry.log_file(run_id, BASELINE_FILE, content)
    return hashlib.sha256(content).hexdigest()


def _conclude(
    registry: Registry,
    report: Report,
    card: bytes,
    baseline: str,
    policy: Policy,
    actor: Actor,
    promoting: bool,
) -> Recorded:
    candidate, verdict = report.candidate, report.verdict
    judged = Judged(
        ref=candidate.ref,
        digest=candidate.digest or NO_DIGEST,
        outcome=verdict.outcome,
        reason=verdict_line(verdict),
        champion=None if candidate.champion is None else candidate.champion.version,
        policy_digest=verdict.policy_digest,
        card_sha256=hashlib.sha256(card).hexdigest(),
        gate_run_id=report.gate_run_id,
        unsafe=report.unsafe,
        baseline_sha256=baseline,
    )
    if promoting and verdict.outcome is Outcome.PROMOTE:
        return promote(registry, judged, policy.production, actor)
    return record_verdict(registry, judged, policy.production, actor)


def verdict_line(verdict: Verdict) -> str:
    """The leading reasons of a verdict, at most three, in one line."""
    if verdict.outcome is Outcome.PROMOTE:
        return "every bound of the policy was met"
    lines = []
    for judgement in verdict.reasons[:3]:
        rule = judgement.rule
        if rule is not None and judgement.measured is not None:
            lines.append(
                f"{judgement.check}: {rule.metric} is {judgement.measured:.4g}, {rule.bound} allowed"
                f" ({judgement.reason})"
            )
        else:
            lines.append(f"{judgement.check}: {judgement.reason}")
    return "; ".join(dict.fromkeys(lines)) or "no bound of the policy could be applied"


def _filed(registry: Registry, report: Report, recorded: Recorded) -> Recorded:
    """Put the record with the run's papers and close the run.

    The verdict stands in history by now, and production may have moved: trouble here is a note, not an error.
    Only now do the version's tags point here: a promotion that failed leaves none behind.
    """
    run_id = report.gate_run_id
    try:
        registry.log_file(run_id, RECORD_FILE, recorded.envelope)
        registry.log_file(run_id, VERDICT_FILE, recorded.verdict)
        registry.set_version_tag(report.candidate.ref, "promotion_gate.run_id", run_id)
        registry.set_version_tag(report.candidate.ref, "promotion_gate.outcome", report.verdict.outcome.value)
        registry.finish_run(run_id)
    except RegistryError as error:
        note = f"the verdict is in the history, but gate run {run_id} could not be closed: {error}"
        return replace(recorded, notes=(*recorded.notes, note))
    return recorded


def _close_failed(registry: Registry, run_id: str) -> None:
    """Mark the gate run as failed where the registry still answers; the first error is the one to show."""
    try:
        registry.finish_run(run_id, failed=True)
    except GateError:
        return
