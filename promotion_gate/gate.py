"""One gate run: resolve, fetch, examine, decide, render, record, transition."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from promotion_gate import __version__
from promotion_gate.checks.interface import Check, PreparedCheck
from promotion_gate.checks.registry import chosen_checks
from promotion_gate.checks.training_curves import CURVE_PREFIX
from promotion_gate.core.decide import decide
from promotion_gate.core.errors import (
    ArtifactError,
    GateError,
    InputError,
    ModelError,
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
    RunFacts,
    Status,
    Verdict,
)
from promotion_gate.evidence.interface import ForwardPass
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

if TYPE_CHECKING:
    from promotion_gate.evidence.bundle import GateEvidence
    from promotion_gate.evidence.loader import SandboxedClassifier
    from promotion_gate.evidence.model_input import InputSpec

CARD_FILE = "card.html"
FINDINGS_FILE = "findings.json"
POLICY_FILE = "policy.toml"

ASKED_ALONE = 32
"""How many holdout images are passed through the candidate a second time, one at a time."""
UNSTEADY = 0.1
"""By how much a probability may differ then; rounding in another order stays far below."""

Progress = Callable[[str], None]
M = TypeVar("M")


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


@dataclass(frozen=True, slots=True)
class _Resolved:
    """``champion_digest`` is what history states of the champion's files, ``doubt`` why it does not vouch."""

    candidate: Candidate
    run: RunFacts | None
    champion_run: RunFacts | None
    attestation: bytes | None = None
    champion_digest: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class _Examined:
    """The findings, and what the card says of the model's files and confinement."""

    candidate: Candidate
    findings: Sequence[Finding]
    class_names: Sequence[str] = ()
    files: Sequence = ()  # type: ignore[type-arg]
    model_format: str = "unknown"
    sandbox: str = "the model was not loaded"
    baseline: Baseline | None = None


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
            examined = _examine(registry, resolved, checks, policy, Path(folder), progress)
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
    resolved = _resolve(registry, ref.uri, policy)
    if resolved.candidate.champion == ref:
        resolved = replace(resolved, candidate=replace(resolved.candidate, champion=None), champion_run=None)
    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        return tuple(_examine(registry, resolved, checks, policy, Path(folder), progress).findings)


def _resolve(registry: Registry, model_uri: str, policy: Policy) -> _Resolved:
    ref = registry.resolve(model_uri)
    facts = registry.version(ref)
    if facts.status != "READY":
        raise RegistryConflict(f"{ref} is {facts.status}, not READY", "wait for its registration to finish")
    version = registry.model(ref.name).aliases.get(policy.production.alias)
    champion = None if version is None else ModelRef(ref.name, version)
    champion_run = None if champion is None else registry.version(champion).run_id
    return _Resolved(
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


def _vouched(registry: Registry, resolved: _Resolved, policy: Policy, actor: Actor) -> _Resolved:
    """What the signed history says of the champion, or why it cannot vouch for it."""
    name, champion = resolved.candidate.ref.name, resolved.candidate.champion
    version = None if champion is None else champion.version
    try:
        digest = vouched_digest(registry, name, version, policy.production, actor)
    except (RegistryConflict, SigningError) as error:
        return replace(resolved, doubt=str(error))
    return replace(resolved, champion_digest=digest)


def _examine(
    registry: Registry,
    resolved: _Resolved,
    checks: Sequence[Check],
    policy: Policy,
    folder: Path,
    progress: Progress,
) -> _Examined:
    """Fetch and measure. Trouble with the candidate's files, model or data ends as a finding."""
    from promotion_gate.data.open import open_dataset, require_every_class
    from promotion_gate.evidence.artifacts import verify
    from promotion_gate.evidence.bundle import GateEvidence
    from promotion_gate.evidence.loader import open_model

    candidate = resolved.candidate
    findings = [Finding.inconclusive("registry", resolved.doubt)] if resolved.doubt else []
    progress(f"fetch {candidate.ref}")
    with ExitStack() as open_models:
        target = folder / "candidate"
        target.mkdir()
        try:
            registry.download(candidate.ref, target)
            artifacts = verify(target, allow_pickle=policy.unsafe_allow_pickle)
        except ArtifactError as error:
            return _Examined(candidate, [*findings, _refused("artifacts", [str(error)])])
        candidate = replace(candidate, digest=artifacts.digest)
        examined = _Examined(candidate, findings, files=artifacts.files, model_format=artifacts.model_format)
        findings.append(_artifacts_finding(artifacts.files, artifacts.violations, artifacts.scan))
        if artifacts.violations:
            return examined

        if candidate.champion is not None:
            progress(f"fetch the champion {candidate.champion}")
            (folder / "champion").mkdir()
            refused = _download_refused(registry, candidate.champion, folder / "champion")

        else:
            refused = None

        progress("load the models in their sandboxes")
        assumptions: list[str] = []
        if candidate.champion is not None and not resolved.champion_digest:
            assumptions.append(f"no signed record vouches for the champion {candidate.champion}")

        def load_candidate() -> SandboxedClassifier:
            return open_models.enter_context(
                open_model(artifacts, policy, class_count=None, log=assumptions.append)
            )

        def load_champion() -> SandboxedClassifier | None:
            if candidate.champion is None:
                return None
            if refused is not None:
                raise refused
            files = verify(folder / "champion", allow_pickle=policy.unsafe_allow_pickle)
            if resolved.champion_digest not in ("", files.digest):
                raise ArtifactError("its files have changed since it was promoted", "put the files back")
            return open_models.enter_context(open_model(files, policy, class_count=None, log=lambda _: None))

        model, champion = _side_by_side(load_candidate, load_champion)
        if isinstance(model, GateError):
            findings.append(Finding.inconclusive("model", str(model)))
            return examined
        examined = replace(examined, sandbox=model.sandbox)
        if champion is not None and not isinstance(champion, GateError):
            champion = _incomparable(champion, model, policy) or champion
        if isinstance(champion, GateError):
            reason = f"the champion {candidate.champion} cannot be compared with: {champion}"
            findings.append(Finding.inconclusive("champion", reason))
            champion = None
        loaded = _model_finding(model, None if champion is None else champion.input, assumptions)

        progress("open the data")
        try:
            home = Path(policy.folder)
            names = policy.data.class_names or model.class_names
            holdout = open_dataset(policy.data.holdout, folder=home, class_names=names)
            require_every_class(holdout)
            if len(holdout.class_names) != model.classes:
                raise InputError(
                    f"the model tells {model.classes} classes apart, and {holdout.uri} has"
                    f" {len(holdout.class_names)}",
                    "set data.class_names in the policy to the names in order of the model's logits",
                )
            training = None
            if policy.data.training is not None:
                training = open_dataset(policy.data.training, folder=home, class_names=holdout.class_names)
        except InputError as error:
            findings.append(Finding.inconclusive("inputs", str(error)))
            findings.append(loaded)
            return examined
        examined = replace(examined, class_names=tuple(holdout.class_names))
        evidence = GateEvidence(
            candidate=candidate,
            policy=policy,
            class_names=holdout.class_names,
            holdout=holdout,
            training=training,
            model=model,
            champion=champion,
            folder=folder,
            run=resolved.run,
            champion_run=resolved.champion_run,
            files=artifacts.files,
            attestation=resolved.attestation,
            progress=progress,
        )
        progress("pass every image through the models")
        findings += _first_passes(evidence, loaded)
        examined = replace(examined, baseline=_baseline(evidence))
        findings += _run_checks(checks, evidence, progress)
    return examined


def _download_refused(registry: Registry, ref: ModelRef, folder: Path) -> ArtifactError | None:
    """Fetch a version; what comes back says why its files cannot be."""
    try:
        registry.download(ref, folder)
    except ArtifactError as error:
        return error
    return None


def _side_by_side(
    candidate: Callable[[], M], champion: Callable[[], M | None]
) -> tuple[M | GateError, M | GateError | None]:
    """What the two ways to load a model answer, or the errors that say why they cannot."""
    from joblib import Parallel, delayed

    def answer(load: Callable[[], M | None]) -> M | GateError | None:
        try:
            return load()
        except (ModelError, InputError, ArtifactError) as error:
            return error

    one, other = Parallel(n_jobs=2, prefer="threads")([delayed(answer)(candidate), delayed(answer)(champion)])
    return one, other


def _incomparable(
    champion: SandboxedClassifier, model: SandboxedClassifier, policy: Policy
) -> InputError | None:
    """Why the two models do not take the same images, or their logits do not stand for the same classes.

    Checks show both the same changed images, so they must take the same size. Where the policy names no
    classes, the candidate's own names tell which logit is which. Were they in another order than the
    champion's, the candidate would look right and the champion wrong, and a server that keeps the champion's
    order would answer with the wrong names.
    """
    if champion.shape != model.shape:
        sizes = [f"{s.height} x {s.width} x {s.channels}" for s in (champion.shape, model.shape)]
        return InputError(f"it takes images of {sizes[0]}, and the candidate of {sizes[1]}")
    if champion.classes != model.classes:
        return InputError(f"it tells {champion.classes} classes apart, and the candidate {model.classes}")
    if policy.data.class_names is None and champion.class_names != model.class_names:
        return InputError(
            "it does not carry the same class names in the same order as the candidate",
            "set data.class_names in the policy to the names in order of the logits",
        )
    return None


def _first_passes(evidence: object, loaded: Finding) -> list[Finding]:
    """Every image once through candidate and champion, side by side; says whether data and model held."""
    from joblib import Parallel, delayed

    from promotion_gate.evidence.bundle import GateEvidence

    assert isinstance(evidence, GateEvidence)

    def candidate() -> Finding | None:
        try:
            rows = len(evidence.holdout_pass.logits)
            rows += 0 if evidence.training_pass is None else len(evidence.training_pass.logits)
        except ModelError as error:
            return Finding.inconclusive("model", str(error), **loaded.detail)
        except InputError as error:
            return Finding.inconclusive("inputs", str(error))
        summary = f"{rows:,} images read"
        return Finding("inputs", Status.MEASURED, summary, {"images": float(rows)})

    def champion() -> Finding | None:
        try:
            _ = evidence.champion_holdout_pass, evidence.champion_training_pass
        except ModelError as error:
            return Finding.inconclusive("champion", f"the champion cannot be compared with: {error}")
        except InputError:
            return None  # the candidate's pass reads the same images and says so
        return None

    found = [
        f for f in Parallel(n_jobs=2, prefer="threads")([delayed(candidate)(), delayed(champion)()]) if f
    ]
    if all(f.check != "model" for f in found):
        read = any(f.check == "inputs" and f.status is Status.MEASURED for f in found)
        found.insert(0, _steady(evidence, loaded) if read else loaded)
    if all(f.check != "inputs" for f in found):
        found.append(Finding.inconclusive("inputs", "not all images were read, because the model failed"))
    return found


def _baseline(evidence: GateEvidence) -> Baseline | None:
    """How the candidate answers on the holdout, for monitoring; None where it did not answer."""
    from promotion_gate.core.record import now
    from promotion_gate.monitor.baseline import holdout_baseline

    candidate = evidence.candidate
    try:
        answers = evidence.holdout_pass
    except (ModelError, InputError):
        return None
    return holdout_baseline(candidate.ref, candidate.digest, evidence.class_names, answers, now())


def _steady(evidence: GateEvidence, loaded: Finding) -> Finding:
    """Ask again about a few trusted images, one at a time: an answer must not hang on its neighbours.

    A model that reads the rest of its batch can behave while it is measured and not where it serves.
    """
    rows = np.unique(np.linspace(0, len(evidence.holdout) - 1, ASKED_ALONE).astype(np.int64))
    together = evidence.holdout_pass
    before = ForwardPass(together.logits[rows], together.embeddings[rows]).probabilities()
    try:
        images = evidence.holdout.read(rows, evidence.model.shape)
        alone = [evidence.model.forward(image[None]).probabilities()[0] for image in images]
    except (ModelError, InputError) as error:
        return Finding.inconclusive("model", str(error), **loaded.detail)
    changed = int((np.abs(np.stack(alone) - before).max(axis=1) > UNSTEADY).sum())
    if not changed:
        return loaded
    reason = f"{changed} of {len(rows)} images get another answer alone than in a batch: call model.eval()"
    return Finding.inconclusive("model", f"{reason} before logging it", **loaded.detail)


def _run_checks(checks: Sequence[Check], evidence: object, progress: Progress) -> list[Finding]:
    """Every check, side by side unless one reads another's finding; in the policy's order."""
    from joblib import Parallel, delayed

    done: dict[str, Finding] = {}
    waiting = list(checks)
    chosen = {check.name for check in checks}
    with _prepared(checks):
        while waiting:
            ready = [c for c in waiting if all(name in done or name not in chosen for name in c.after)]
            waiting = [c for c in waiting if c not in ready]
            answers = Parallel(n_jobs=len(ready), prefer="threads")(
                delayed(_run_check)(check, evidence, dict(done), progress) for check in ready
            )
            done |= {finding.check: finding for finding in answers}
    return [done[check.name] for check in checks]


@contextmanager
def _prepared(checks: Sequence[Check]) -> Iterator[None]:
    """Let checks begin what needs no finding; one that cannot measures without, or says why not."""
    preparing = ExitStack()
    for check in checks:
        if isinstance(check, PreparedCheck):
            with suppress(Exception, SystemExit):
                preparing.enter_context(check.prepared())
    try:
        yield
    finally:
        with suppress(Exception, SystemExit):
            preparing.close()


def _run_check(check: Check, evidence: object, earlier: Mapping[str, Finding], progress: Progress) -> Finding:
    clock = time.monotonic()
    progress(f"{check.name} started")
    try:
        finding = check.examine(evidence, earlier)  # type: ignore[arg-type]
        if finding.check != check.name:
            finding = Finding.inconclusive(check.name, f"the check reported as {finding.check!r}")
        finding = replace(finding, metrics={name: float(value) for name, value in finding.metrics.items()})
    except GateError as error:
        finding = Finding.inconclusive(check.name, str(error))
    except MemoryError:
        finding = Finding.inconclusive(check.name, "the check ran out of memory")
    except (Exception, SystemExit) as error:  # a check that calls sys.exit(0) must not end the gate with 0
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        finding = Finding.inconclusive(check.name, f"the check crashed: {what}")
    took = time.monotonic() - clock
    progress(f"{check.name} done in {took:.1f} s: {finding.summary}")
    return replace(finding, seconds=took)


def _refused(check: str, violations: Sequence[str]) -> Finding:
    return Finding(
        check,
        Status.MEASURED,
        violations[0],
        {"violations": float(len(violations))},
        {"violations": list(violations)},
    )


def _artifacts_finding(files: Sequence[object], violations: Sequence[str], scan: Sequence[object]) -> Finding:
    if violations:
        finding = _refused("artifacts", violations)
        return replace(finding, detail={**finding.detail, "scan": list(scan)})
    summary = f"{len(files)} files, all of kinds that load without running foreign code"
    return Finding(
        "artifacts", Status.MEASURED, summary, {"violations": 0.0}, {"violations": [], "scan": list(scan)}
    )


def _model_finding(
    model: SandboxedClassifier, champion_input: InputSpec | None, assumptions: Sequence[str]
) -> Finding:
    """What was loaded, and how images go in; in doubt where the champion is shown them in another way.

    A candidate that chose its own preparation would be measured on other images than those it serves on.
    """
    prepared = model.input.preparation
    notes = [f"an image goes in as {prepared}, {model.input.layout}, {model.input.dtype}", *assumptions]
    if champion_input is not None and not model.input.prepares_like(champion_input):
        reason = (
            f"the model declares that an image goes in as {prepared}, the champion as"
            f" {champion_input.preparation}; set input.scale, input.mean and input.std in the policy"
        )
        return Finding.inconclusive("model", reason, notes=notes)
    return Finding(
        "model",
        Status.MEASURED,
        f"{model.parameters:,} parameters, loaded from {model.format} under {model.sandbox}",
        {"parameters": float(model.parameters)},
        {"notes": notes},
    )


def _report(
    resolved: _Resolved,
    examined: _Examined,
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
    registry.log_metrics(
        run_id,
        {
            f"{finding.check}.{name}": value
            for finding in report.findings
            for name, value in finding.metrics.items()
        },
    )


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
