"""Four questions about a repository, answered with evidence; what cannot be told is never a yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promotion_gate.core.errors import GateError
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.posture.owners import CodeOwners, read_owners
from promotion_gate.provenance.posture.pipelines import (
    CI_WORKFLOW,
    TRAINS,
    VALIDATES,
    Mention,
    Pipeline,
    Repository,
    find_pipelines,
    mentions,
)
from promotion_gate.provenance.scan.entry import HOLE, Known
from promotion_gate.provenance.scan.files import DOCKERFILE, SourceFile, source_files
from promotion_gate.provenance.scan.judge import ScanFinding
from promotion_gate.provenance.scan.registered import RegisteredSets
from promotion_gate.provenance.scan.run import Scan
from promotion_gate.provenance.verify import verify_at

DATA_FOLDERS = ("data", "datasets", "dataset")
PUBLIC, FLOATING, VALIDATION, REVIEW = "public-pulls", "floating-versions", "validation", "review"
QUESTIONS = {
    PUBLIC: "Do CI jobs and pipelines leave public data alone?",
    FLOATING: "Is every data set pinned to a version?",
    VALIDATION: "Is data validated before every training?",
    REVIEW: "Must somebody review a new data set?",
}
"""The questions, so put that yes is good."""
_ADVICE = {
    PUBLIC: "Mirror the data set, register it with 'promotion-gate dbom add', and load it with open_dataset.",
    FLOATING: "Name a revision, a version or a commit, or load it with open_dataset.",
    VALIDATION: "Run 'promotion-gate validate' or 'dbom verify' in a step before the training.",
    REVIEW: "Give dbom.json an owner in CODEOWNERS, and let the branch's protection ask for a review.",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """A place that an answer rests on; ``good`` is false for one that speaks against it."""

    path: str
    line: int
    what: str
    good: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answer, what that rests on, and what to do."""

    key: str
    question: str
    answer: Known
    because: str
    evidence: Sequence[Evidence] = ()
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A share, with what it is made of; ``of`` 0 means that it is not to be told."""

    count: int
    of: int

    @property
    def share(self) -> float | None:
        return self.count / self.of if self.of else None


@dataclass(frozen=True, slots=True)
class Posture:
    """The answers and the two metrics of a repository."""

    answers: Sequence[Answered]
    coverage: Share
    validation: Share
    pipelines: Sequence[str]
    unreadable: Sequence[str]


def assess(
    root: Path, scan: Scan, registered: RegisteredSets, dbom: str, exclude: Sequence[str] = ()
) -> Posture:
    """Answer the four questions about the folder ``root``.

    Parameters
    ----------
    scan: a scan of the same folder.
    dbom: the bill of materials relative to the folder, or nothing where it has none.
    exclude: what to leave out, in the form of .gitignore.
    """
    repository = Repository([f for f in source_files(root, exclude) if isinstance(f, SourceFile)])
    pipelines = find_pipelines(repository)
    places = [finding for finding in scan.findings if finding.entry is not None]
    unreadable = sorted(
        {f.path for f in scan.findings if f.entry is None} | {p.path for p in pipelines if not p.readable}
    )
    training = [(p, *_validated(p, repository)) for p in pipelines]
    training = [entry for entry in training if entry[1] is not None]
    answers = [
        _public(places, pipelines, repository),
        _floating(places, unreadable),
        _validation(training, pipelines),
        _review(root, dbom),
    ]
    validated = sum(known is Known.YES for _, known, _ in training)
    return Posture(
        [replace(a, advice="" if a.answer is Known.YES else _ADVICE[a.key]) for a in answers],
        _coverage(places, registered, _differing(root, dbom)),
        Share(validated, len(training)),
        [pipeline.path for pipeline in pipelines],
        unreadable,
    )


def _public(places: Sequence[ScanFinding], pipelines: Sequence[Pipeline], repository: Repository) -> Answered:
    reached = {p.path for p in pipelines} | {p for p, f in repository.files.items() if f.kind == DOCKERFILE}
    if not reached:
        return _answered(PUBLIC, Known.UNKNOWN, "no CI workflow, pipeline or Dockerfile was found")
    waiting = [(step.text, step.path) for p in pipelines for step in p.steps]
    waiting += [(repository.text(p), p) for p in reached if repository.files[p].kind == DOCKERFILE]
    while waiting:
        text, path = waiting.pop()
        base = path.rpartition("/")[0]
        called = {
            *repository.called(text, f"{base}/" if base else ""),
            *(r[0] for r in repository.make_recipes(text)),
        }
        for name in called - reached:
            reached.add(name)
            waiting.append((repository.text(name), name))
    inside = [
        f for f in places if f.path in reached and f.entry is not None and f.entry.kind != "verified load"
    ]
    public = [f for f in inside if f.mirror.known is Known.NO]
    untold = [f for f in inside if f.mirror.known is Known.UNKNOWN]
    if public:
        return _answered(
            PUBLIC, Known.NO, _count(len(public), "place pulls", "places pull") + " from elsewhere", public
        )
    if untold:
        because = _count(len(untold), "place brings", "places bring") + " in data from where cannot be told"
        return _answered(PUBLIC, Known.UNKNOWN, because, untold)
    unread = [p.path for p in pipelines if not p.readable]
    if unread:
        return _answered(PUBLIC, Known.UNKNOWN, f"{unread[0]} cannot be read")
    return _answered(
        PUBLIC, Known.YES, f"{_count(len(reached), 'file', 'files')} looked at, none pulls from elsewhere"
    )


def _floating(places: Sequence[ScanFinding], unreadable: Sequence[str]) -> Answered:
    entries = [(f, f.entry) for f in places if f.entry is not None]
    floating = [f for f, e in entries if e.pinned.known is Known.NO]
    untold = [f for f, e in entries if e.pinned.known is Known.UNKNOWN]
    if floating:
        because = (
            f"{len(floating)} of {_count(len(places), 'place', 'places')} can bring other bytes tomorrow"
        )
        return _answered(FLOATING, Known.NO, because, floating)
    if untold:
        return _answered(FLOATING, Known.UNKNOWN, f"{len(untold)} of {len(places)} cannot be told", untold)
    if unreadable:
        return _answered(
            FLOATING, Known.UNKNOWN, f"{_count(len(unreadable), 'file', 'files')} cannot be read"
        )
    if not places:
        return _answered(
            FLOATING, Known.UNKNOWN, "no known loader was found, so nothing is known of the data"
        )
    return _answered(
        FLOATING, Known.YES, f"all {_count(len(places), 'place', 'places')} name what they bring"
    )


def _validated(pipeline: Pipeline, repository: Repository) -> tuple[Known | None, list[Evidence]]:
    """Whether every training of a pipeline comes after a validation; None where it trains nothing."""
    trains = mentions(pipeline, TRAINS, repository)
    if not trains:
        return None, []
    checks = mentions(pipeline, VALIDATES, repository)
    answers = [_before(train, checks, pipeline) for train in trains]
    evidence = [Evidence(t.path, t.line, f"trains: {t.words[:80]}") for t in trains[:3]]
    evidence += [Evidence(c.path, c.line, f"validates: {c.words[:80]}", good=True) for c in checks[:3]]
    worst = next((k for k in (Known.NO, Known.UNKNOWN) if k in answers), Known.YES)
    return worst, evidence


def _before(train: Mention, checks: Sequence[Mention], pipeline: Pipeline) -> Known:
    waits = pipeline.waits_for.get(train.job, set())
    untold = False
    for check in checks:
        if check.job == train.job:
            if check.order <= train.order:
                return Known.YES
        elif check.job in waits or (pipeline.ordered and check.order < train.order):
            return Known.YES
        else:
            # Jobs of a CI workflow that do not wait for each other run side by side.
            untold = untold or pipeline.kind != CI_WORKFLOW
    return Known.UNKNOWN if untold else Known.NO


def _validation(
    training: Sequence[tuple[Pipeline, Known | None, list[Evidence]]], pipelines: Sequence[Pipeline]
) -> Answered:
    if not training:
        because = "no pipeline was found that trains" if pipelines else "no pipeline was found"
        return _answered(VALIDATION, Known.UNKNOWN, because)
    without = [p.path for p, known, _ in training if known is not Known.YES]
    evidence = [e for _, _, places in training for e in places]
    number = _count(len(training), "training pipeline", "training pipelines")
    if not without:
        return Answered(
            VALIDATION, QUESTIONS[VALIDATION], Known.YES, f"all {number} validate first", evidence
        )
    known = Known.NO if any(k is Known.NO for _, k, _ in training) else Known.UNKNOWN
    because = f"{len(without)} of {number}: {', '.join(without[:5])}"
    told = "does not validate first" if known is Known.NO else "validates in an order that cannot be told"
    return Answered(VALIDATION, QUESTIONS[VALIDATION], known, f"{because} {told}", evidence)


def _review(root: Path, dbom: str) -> Answered:
    owners = read_owners(root)
    targets = [dbom] if dbom else [f"{name}/" for name in DATA_FOLDERS if (root / name).is_dir()]
    if not targets:
        return _answered(
            REVIEW, Known.NO, "there is no bill of materials and no data folder that could have an owner"
        )
    if not isinstance(owners, CodeOwners):
        return _answered(REVIEW, Known.NO, owners)
    evidence = []
    missing = []
    for target in targets:
        found = owners.of(target + ("x" if target.endswith("/") else ""))
        if found is None:
            missing.append(f"no pattern of {owners.file} matches {target}")
        elif not found.owners:
            missing.append(f"the last pattern that matches {target} names no owner")
            evidence.append(Evidence(found.file, found.line, f"{found.pattern} without an owner"))
        else:
            what = f"{target} is owned by {', '.join(found.owners)}"
            evidence.append(Evidence(found.file, found.line, what, good=True))
    if missing:
        return Answered(REVIEW, QUESTIONS[REVIEW], Known.NO, "; ".join(missing), evidence)
    because = "new data sets have owners; whether the branch is protected is not in the repository"
    return Answered(REVIEW, QUESTIONS[REVIEW], Known.YES, because, evidence)


def _differing(root: Path, dbom: str) -> set[str]:
    """The data sets whose copy on this machine is there and is not what the bill of materials says."""
    if not dbom:
        return set()
    try:
        bill = read_dbom(root / dbom)
        entries = [(entry, bill.local_path(entry)) for entry in bill.entries.values()]
    except (GateError, OSError):
        return set()  # not one of this program's: there is no place to look at
    return {
        entry.name
        for entry, place in entries
        if place is not None and place.exists() and not verify_at(bill, entry, place).verified
    }


def _coverage(places: Sequence[ScanFinding], registered: RegisteredSets, differing: set[str]) -> Share:
    """The share of data sets in use whose entry is vetted, has a SHA-256, and is not contradicted here."""
    checked = {s.name for s in registered.sets if s.vetted and s.sha256} - differing
    used: dict[str, bool] = {}
    for finding in places:
        entry = finding.entry
        if entry is None:
            continue
        known = entry.url or entry.dataset
        name = finding.registered_as or (
            known if known and HOLE not in known else f"{finding.path}\0{entry.code}"
        )
        used[name] = used.get(name, True) and finding.registered_as in checked
    return Share(sum(used.values()), len(used))


def _answered(key: str, known: Known, because: str, findings: Sequence[ScanFinding] = ()) -> Answered:
    evidence = [Evidence(f.path, f.line, f.message) for f in findings]
    return Answered(key, QUESTIONS[key], known, because, evidence)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
