"""The chain from a model at the gate back to the bytes it was trained on, link by link.

``signature`` (a trainer's) -> ``model`` (these files) -> ``commit`` (the bill of materials as committed) ->
``data`` (every data set in it, vetted, by its SHA-256, then and today) -> ``run`` (what the run declared) ->
``examined`` (the training data that the gate looks at). A link that does not hold says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promotion_gate.core.errors import DbomError, SigningError
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.types import ArtifactFile, DatasetInput, RunFacts
from promotion_gate.data.imagefolder import files_outside
from promotion_gate.data.interface import ImageDataset
from promotion_gate.provenance.attest import (
    Attestation,
    code_commit,
    file_at_commit,
    is_ancestor,
    verify_attestation,
)
from promotion_gate.provenance.dbom import Dbom, DbomEntry, parse_dbom
from promotion_gate.provenance.verify import verify_local

SHA256_TAG = "promotion_gate.sha256"
"""The tag of a run's data set that holds its SHA-256."""


@dataclass(frozen=True, slots=True)
class Link:
    """One step of the chain, whether it holds, and what was found."""

    name: str
    holds: bool
    said: str


@dataclass(frozen=True, slots=True)
class Declared:
    """A data set that the run declared, and the entry that vouches for its bytes, if there is one."""

    name: str
    sha256: str
    entry: DbomEntry | None
    said: str

    @property
    def registered(self) -> bool:
        return self.entry is not None and self.entry.vetting == "vetted"


def declared_datasets(run: RunFacts | None, dbom: Dbom) -> list[Declared]:
    """Follow every data set that a run declared to its entry."""
    return [_declared(dataset, dbom) for dataset in (run.datasets if run else ())]


def follow(
    attestation: bytes | None,
    trainers: TrustedKeys,
    files: Sequence[ArtifactFile],
    run: RunFacts | None,
    dbom: Dbom,
    training: Path | None,
    images: ImageDataset | None = None,
) -> list[Link]:
    """Every link of the chain.

    Parameters
    ----------
    attestation: the signed envelope that the run holds, if it does.
    dbom: the bill of materials of today.
    training: where the data lies that the gate examines; without it there is no such link.
    images: that data, opened: what it reads must be part of the data set.
    """
    try:
        if attestation is None:
            raise SigningError("the run holds no training attestation")
        stated = verify_attestation(attestation, trainers)
    except SigningError as error:
        others = ("model", "commit", "data", "run", *(("examined",) if training else ()))
        return [Link("signature", False, str(error)), *map(_hanging, others)]
    then, commit = _document(stated, dbom)
    links = [
        Link("signature", True, f"signed with the trainer's key {stated.key_id[:16]}"),
        _model_link(stated, files),
        commit,
        _data_link(stated, then, dbom) if then else _hanging("data"),
        _run_link(run, stated),
    ]
    return links if training is None else [*links, _examined(dbom, training, images, stated)]


def _hanging(name: str) -> Link:
    return Link(name, False, "not known, since an earlier link is broken")


def _model_link(stated: Attestation, files: Sequence[ArtifactFile]) -> Link:
    here = {file.path: file.sha256 for file in files}
    problem = _difference(stated.files, here)
    return Link("model", not problem, problem or f"all {len(here)} files are those attested")


def _difference(stated: Mapping[str, str], here: Mapping[str, str]) -> str:
    for path in sorted({*stated, *here}):
        if path not in here:
            return f"the attested file {path!r:.120} is missing"
        if path not in stated:
            return f"the file {path!r:.120} was not attested"
        if stated[path] != here[path]:
            return f"the file {path!r:.120} is not the one attested"
    return ""


def _document(stated: Attestation, dbom: Dbom) -> tuple[Dbom | None, Link]:
    """The bill of materials that the training used: from the commit, else the one at hand if it is that."""
    if not stated.commit:
        return _document_at_hand(stated, dbom)
    content = file_at_commit(dbom.path, stated.commit)
    if content is None:
        what = f"the commit {stated.commit[:12]!r} with {dbom.path.name}"
        return None, Link("commit", False, f"{what} is not in the repository of {dbom.folder}: fetch it")
    try:
        then = parse_dbom(content, dbom.path)
    except DbomError as error:
        return None, Link("commit", False, f"at commit {stated.commit[:12]}: {error}")
    if then.sha256 != stated.dbom_sha256:
        said = f"{dbom.path.name} at commit {stated.commit[:12]} is not the one that the training used"
        return None, Link("commit", False, said)
    if not is_ancestor(dbom.folder, stated.commit):
        said = f"the commit {stated.commit[:12]} was never merged into what is checked out in {dbom.folder}"
        return then, Link("commit", False, said)
    if stated.uncommitted:
        some = ", ".join(f"{name!r:.80}" for name in stated.uncommitted[:3])
        return then, Link("commit", False, f"the code was not that of the commit; uncommitted: {some}")
    return then, Link("commit", True, f"{dbom.path.name} of commit {stated.commit[:12]}")


def _document_at_hand(stated: Attestation, dbom: Dbom) -> tuple[Dbom | None, Link]:
    if dbom.sha256 != stated.dbom_sha256:
        return None, Link("commit", False, f"no commit was attested, and {dbom.path.name} has changed since")
    if code_commit(dbom.folder):
        return dbom, Link(
            "commit", False, f"no commit was attested, and {dbom.path.name} lies in a repository"
        )
    return dbom, Link("commit", True, "no commit was attested; the bill of materials is the one here")


def _data_link(stated: Attestation, then: Dbom, now: Dbom) -> Link:
    for name, digest in sorted(stated.datasets.items()):
        entry = then.entries.get(name)
        if entry is None:
            return Link("data", False, f"the data set {name!r:.120} was not registered at that commit")
        if not digest or entry.sha256 != digest:
            return Link("data", False, f"the data set {name!r:.120} has another SHA-256 at that commit")
        if entry.vetting != "vetted":
            return Link("data", False, f"the data set {name!r:.120} was quarantined at that commit")
        today = [e.vetting for e in now.entries.values() if e.sha256 == digest]
        if not today:
            return Link("data", False, f"the data set {name!r:.120} is not registered today")
        if set(today) != {"vetted"}:
            return Link("data", False, f"the data set {name!r:.120} is quarantined today")
    if not stated.datasets:
        return Link("data", False, "no data set was attested")
    return Link("data", True, f"{', '.join(sorted(stated.datasets)):.200}: registered with these SHA-256")


def _run_link(run: RunFacts | None, stated: Attestation) -> Link:
    if run is None:
        return Link("run", False, "the model version names no training run")
    if not stated.run_id:
        return Link("run", False, "the attestation names no run, so it could be of any: attest it with one")
    if stated.run_id != run.run_id:
        return Link("run", False, f"the attestation is of run {stated.run_id!r:.60}, not {run.run_id!r:.60}")
    if run.commit and stated.commit != run.commit:
        attested = repr(stated.commit[:12]) if stated.commit else "none"
        return Link("run", False, f"the run was at commit {run.commit[:12]!r}, attested is {attested}")
    tagged = {dataset.tags.get(SHA256_TAG, "") for dataset in run.datasets}
    for name, digest in sorted(stated.datasets.items()):
        if digest not in tagged:
            return Link("run", False, f"the run did not declare the attested data set {name!r:.120}")
    for dataset in run.datasets:
        if dataset.tags.get(SHA256_TAG) not in stated.datasets.values():
            return Link("run", False, f"the run declared {dataset.name!r:.120}, which was not attested")
    return Link("run", True, f"run {run.run_id!r:.60} declared the same data sets")


def _examined(dbom: Dbom, training: Path, images: ImageDataset | None, stated: Attestation) -> Link:
    """Whether the training data that the gate looks at is data that the model was trained on."""
    entry = _entry_around(dbom, training)
    if entry is None:
        return Link("examined", False, f"no entry covers the training data {str(training)!r:.200}")
    if entry.sha256 not in stated.datasets.values():
        return Link("examined", False, f"the gate examines {entry.name}, which was not attested")
    place = dbom.local_path(entry)
    if images is None or place is None:
        return Link("examined", False, f"the gate could not open the training data {str(training)!r:.200}")
    if outside := files_outside(images, place):
        return Link(
            "examined", False, f"the gate reads {outside[0]!r:.200}, which is not part of {entry.name}"
        )
    check = verify_local(dbom, entry)
    said = f"the gate examines {entry.name}"
    return Link("examined", check.verified, said if check.verified else f"{said}: {check.differences[0]}")


def _entry_around(dbom: Dbom, training: Path) -> DbomEntry | None:
    wanted = Path(os.path.realpath(training))
    for entry in dbom.entries.values():
        place = dbom.local_path(entry)
        if place is not None and wanted.is_relative_to(os.path.realpath(place)):
            return entry
    return None


def _declared(dataset: DatasetInput, dbom: Dbom) -> Declared:
    digest = dataset.tags.get(SHA256_TAG, "")
    if not digest:
        return Declared(dataset.name, "", None, "declared without a SHA-256")
    entry = next((e for e in dbom.entries.values() if e.sha256 == digest), None)
    if entry is None:
        return Declared(dataset.name, digest, None, "no entry has this SHA-256")
    if entry.vetting != "vetted":
        return Declared(dataset.name, digest, entry, f"{entry.name} {entry.version} is quarantined")
    return Declared(dataset.name, digest, entry, f"{entry.name} {entry.version}, vetted")
