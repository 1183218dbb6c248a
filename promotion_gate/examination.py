"""The examination of one version: fetch, verify, load in a sandbox, one pass over the data, every check.

Whatever is wrong with the candidate's files, model or data becomes a finding, and so part of the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from promotion_gate.checks.interface import Check, PreparedCheck
from promotion_gate.core.errors import ArtifactError, GateError, InputError, ModelError
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Candidate, Finding, ModelRef, RunFacts, Status
from promotion_gate.evidence.interface import ForwardPass
from promotion_gate.monitor.interface import Baseline
from promotion_gate.registry.interface import Registry

if TYPE_CHECKING:
    from promotion_gate.core.policy import DataSource
    from promotion_gate.data.interface import ImageDataset
    from promotion_gate.evidence.artifacts import VerifiedArtifacts
    from promotion_gate.evidence.bundle import GateEvidence
    from promotion_gate.evidence.loader import SandboxedClassifier
    from promotion_gate.evidence.model_input import InputSpec

ASKED_ALONE = 32
"""How many holdout images are passed through the candidate a second time, one at a time."""
UNSTEADY = 0.1
"""By how much a probability may differ then; rounding in another order stays far below."""

Progress = Callable[[str], None]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Resolved:
    """``champion_digest`` is what history states of the champion's files, ``doubt`` why it does not vouch."""

    candidate: Candidate
    run: RunFacts | None
    champion_run: RunFacts | None
    attestation: bytes | None = None
    champion_digest: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Examined:
    """The findings, and what the card says of the model's files and confinement."""

    candidate: Candidate
    findings: Sequence[Finding]
    class_names: Sequence[str] = ()
    files: Sequence = ()  # type: ignore[type-arg]
    model_format: str = "unknown"
    sandbox: str = "the model was not loaded"
    baseline: Baseline | None = None


def examine(
    registry: Registry,
    resolved: Resolved,
    checks: Sequence[Check],
    policy: Policy,
    folder: Path,
    progress: Progress,
) -> Examined:
    """Fetch and measure. Trouble with the candidate's files, model or data ends as a finding."""
    from promotion_gate.evidence.artifacts import verify
    from promotion_gate.evidence.bundle import GateEvidence

    candidate = resolved.candidate
    findings = [Finding.inconclusive("registry", resolved.doubt)] if resolved.doubt else []
    progress(f"fetch {candidate.ref}")
    target = folder / "candidate"
    target.mkdir()
    try:
        registry.download(candidate.ref, target)
        artifacts = verify(target, allow_pickle=policy.unsafe_allow_pickle)
    except ArtifactError as error:
        return Examined(candidate, [*findings, _refused("artifacts", [str(error)])])
    candidate = replace(candidate, digest=artifacts.digest)
    examined = Examined(candidate, findings, files=artifacts.files, model_format=artifacts.model_format)
    findings.append(_artifacts_finding(artifacts.files, artifacts.violations, artifacts.scan))
    if artifacts.violations:
        return examined

    with ExitStack() as open_models:
        model, champion, assumptions = _load(
            registry, resolved, artifacts, policy, folder, open_models, progress
        )
        if isinstance(model, GateError):
            findings.append(Finding.inconclusive("model", str(model)))
            return examined
        examined = replace(examined, sandbox=model.sandbox)
        if isinstance(champion, GateError):
            reason = f"the champion {candidate.champion} cannot be compared with: {champion}"
            findings.append(Finding.inconclusive("champion", reason))
            champion = None
        loaded = _model_finding(model, None if champion is None else champion.input, assumptions)

        progress("open the data")
        try:
            data = _open_data(policy, model)
        except InputError as error:
            findings += [Finding.inconclusive("inputs", str(error)), loaded]
            return examined
        examined = replace(examined, class_names=tuple(data.holdout.class_names))
        evidence = GateEvidence(
            candidate=candidate,
            policy=policy,
            class_names=data.holdout.class_names,
            holdout=data.holdout,
            training=data.training,
            suspects=data.suspects,
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


def _load(
    registry: Registry,
    resolved: Resolved,
    artifacts: VerifiedArtifacts,
    policy: Policy,
    folder: Path,
    open_models: ExitStack,
    progress: Progress,
) -> tuple[SandboxedClassifier | GateError, SandboxedClassifier | GateError | None, Sequence[str]]:
    """Candidate and champion, each in a sandbox that ``open_models`` ends, or why one is not to be had.

    The third is what was assumed about them, a line each.
    """
    from promotion_gate.evidence.artifacts import verify
    from promotion_gate.evidence.loader import open_model

    ref, home = resolved.candidate.champion, folder / "champion"
    refused, assumptions = None, list[str]()
    if ref is not None:
        progress(f"fetch the champion {ref}")
        home.mkdir()
        refused = _download_refused(registry, ref, home)
        if not resolved.champion_digest:
            assumptions.append(f"no signed record vouches for the champion {ref}")

    def load_candidate() -> SandboxedClassifier:
        return open_models.enter_context(
            open_model(artifacts, policy, class_count=None, log=assumptions.append)
        )

    def load_champion() -> SandboxedClassifier | None:
        if ref is None:
            return None
        if refused is not None:
            raise refused
        files = verify(home, allow_pickle=policy.unsafe_allow_pickle)
        if resolved.champion_digest not in ("", files.digest):
            raise ArtifactError("its files have changed since it was promoted", "put the files back")
        return open_models.enter_context(open_model(files, policy, class_count=None, log=lambda _: None))

    progress("load the models in their sandboxes")
    model, champion = _side_by_side(load_candidate, load_champion)
    if not isinstance(model, GateError) and champion is not None and not isinstance(champion, GateError):
        champion = _incomparable(champion, model, policy) or champion
    return model, champion, assumptions


@dataclass(frozen=True, slots=True)
class _Data:
    holdout: ImageDataset
    training: ImageDataset | None
    suspects: ImageDataset | None


def _open_data(policy: Policy, model: SandboxedClassifier) -> _Data:
    """The policy's data sets, with one order of classes, which is the model's.

    Raises
    ------
    InputError: a set cannot be read, or the holdout does not have the model's classes.
    """
    from promotion_gate.data.open import open_dataset, require_every_class

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

    def beside(source: DataSource | None) -> ImageDataset | None:
        if source is None:
            return None
        return open_dataset(source, folder=home, class_names=holdout.class_names)

    return _Data(holdout, beside(policy.data.training), beside(policy.data.suspects))


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
            for more in (evidence.training_pass, evidence.suspects_pass):
                rows += 0 if more is None else len(more.logits)
        except ModelError as error:
            return Finding.inconclusive("model", str(error), **loaded.detail)
        except InputError as error:
            return Finding.inconclusive("inputs", str(error))
        summary = f"{rows:,} images read"
        return Finding("inputs", Status.MEASURED, summary, {"images": float(rows)})

    def champion() -> Finding | None:
        try:
            _ = evidence.champion_holdout_pass, evidence.champion_training_pass
            _ = evidence.champion_suspects_pass
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
