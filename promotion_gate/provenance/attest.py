"""The trainer's statement of which data and code a model was made from, signed.

An in-toto Statement v1 whose predicate is SLSA Provenance v1 (https://slsa.dev/spec/v1.0/provenance).
Subjects are the model's files with their SHA-256. Resolved dependencies are the data sets with the SHA-256 of
their entries, the data bill of materials, and the git commit of the code.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promotion_gate import __version__
from promotion_gate.core.envelope import STATEMENT_TYPE, canonical, seal, unseal
from promotion_gate.core.errors import SigningError
from promotion_gate.core.keys import SigningKey, TrustedKeys
from promotion_gate.core.types import ArtifactFile
from promotion_gate.provenance.dbom import Dbom, DbomEntry
from promotion_gate.provenance.load import require_vetted

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:promotion-gate:training:v1"
DBOM_MEDIA_TYPE = "application/vnd.cyclonedx+json"
DATA_MEDIA_TYPE = "application/vnd.promotion-gate.data-set"
MAX_ATTESTATION_BYTES = 8 * 2**20

UNCOMMITTED = "uncommitted"
"""The annotation of the commit that names code which was not committed when the statement was made."""

_NAMED = 20
_LONG = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Attestation:
    """A statement as read: digests of the model's files by path and of the data sets by name.

    ``commit`` and ``run_id`` are empty where none was stated. ``uncommitted`` are files that differed from
    the commit. ``key_id`` is the signer's.
    """

    files: Mapping[str, str]
    datasets: Mapping[str, str]
    dbom_sha256: str
    commit: str
    run_id: str
    uncommitted: tuple[str, ...] = ()
    key_id: str = ""


class _Open(BaseModel):
    # Predicates grow by fields that a consumer must ignore (in-toto, parsing rules).
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Sha256(_Open):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Subject(_Open):
    name: str = Field(min_length=1)
    digest: _Sha256


class _Resource(_Open):
    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    media_type: str = Field(default="", alias="mediaType")
    annotations: dict[str, Any] = {}


class _Definition(_Open):
    build_type: Literal["urn:promotion-gate:training:v1"] = Field(alias="buildType")
    dependencies: tuple[_Resource, ...] = Field(alias="resolvedDependencies")


class _Metadata(_Open):
    invocation_id: str = Field(default="", alias="invocationId")


class _Details(_Open):
    metadata: _Metadata = _Metadata()


class _Predicate(_Open):
    definition: _Definition = Field(alias="buildDefinition")
    details: _Details = Field(alias="runDetails")


class _Statement(_Open):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(min_length=1)
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = Field(alias="predicateType")
    predicate: _Predicate


def sign_attestation(
    files: Sequence[ArtifactFile],
    dbom: Dbom,
    data: Sequence[DbomEntry],
    key: SigningKey,
    *,
    commit: str,
    uncommitted: Sequence[str] = (),
    run_id: str = "",
    finished: datetime,
) -> bytes:
    """State what a model was made from, as a signed envelope.

    Parameters
    ----------
    files: the model's files.
    dbom, data: the bill of materials, and its entries that were trained on.
    commit: of the code, hex; empty where there is no repository.
    uncommitted: code files that are not as in the commit, or not in it.
    run_id: the MLflow run that trained.

    Raises
    ------
    SigningError: nothing was trained on, or the model has no files.
    Unregistered: an entry is quarantined.
    """
    if not data or not files:
        raise SigningError("an attestation names the model's files and at least one data set")
    for entry in data:
        require_vetted(entry)
    dependencies = [_data_dependency(entry) for entry in sorted(data, key=lambda entry: entry.name)]
    dependencies.append(
        {"name": dbom.path.name, "mediaType": DBOM_MEDIA_TYPE, "digest": {"sha256": dbom.sha256}}
    )
    if commit:
        dependencies.append(
            {
                "uri": f"git+commit:{commit}",
                "digest": {"gitCommit": commit},
                "annotations": {UNCOMMITTED: list(uncommitted[:_NAMED])},
            }
        )
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"datasets": sorted(entry.name for entry in data)},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {
                    "id": f"urn:promotion-gate:trainer:{key.key_id}",
                    "version": {"promotion-gate": __version__},
                },
                "metadata": {"invocationId": run_id, "finishedOn": finished.isoformat(timespec="seconds")},
            },
        },
    }
    return seal(canonical(statement), key)


def verify_attestation(content: bytes, trainers: TrustedKeys) -> Attestation:
    """What a statement says, after its signature was found good and its key is a trainer's.

    Raises
    ------
    SigningError: malformed, altered, or signed by nobody who is trusted.
    """
    name = "the training attestation"
    payload, key_id = unseal(content, trainers, name, MAX_ATTESTATION_BYTES)
    try:
        statement = _Statement.model_validate_json(payload)
    except (ValidationError, RecursionError) as error:
        why = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "too deep"
        raise SigningError(f"{name} is malformed: {why}") from None
    definition = statement.predicate.definition
    data = [r for r in definition.dependencies if r.media_type == DATA_MEDIA_TYPE]
    documents = [r for r in definition.dependencies if r.media_type == DBOM_MEDIA_TYPE]
    commits = [r for r in definition.dependencies if "gitCommit" in r.digest]
    files = {subject.name: subject.digest.sha256 for subject in statement.subject}
    datasets = {resource.name: resource.digest.get("sha256", "") for resource in data}
    if len(documents) != 1 or len(commits) > 1:
        raise SigningError(f"{name} is malformed: it names {len(documents)} bills of materials")
    if len(files) != len(statement.subject) or len(datasets) != len(data):
        raise SigningError(f"{name} is malformed: it names a file or data set twice")
    return Attestation(
        files=files,
        datasets=datasets,
        dbom_sha256=documents[0].digest.get("sha256", ""),
        commit=commits[0].digest["gitCommit"] if commits else "",
        uncommitted=_uncommitted(commits[0]) if commits else (),
        run_id=statement.predicate.details.metadata.invocation_id,
        key_id=key_id,
    )


def _uncommitted(commit: _Resource) -> tuple[str, ...]:
    stated = commit.annotations.get(UNCOMMITTED)
    return tuple(map(str, stated)) if isinstance(stated, list) else ("not stated which",)


def _data_dependency(entry: DbomEntry) -> dict[str, Any]:
    stated = {
        "name": entry.name,
        "mediaType": DATA_MEDIA_TYPE,
        "digest": {"sha256": entry.sha256},
        "annotations": {"version": entry.version},
    }
    return stated | ({"uri": entry.origin} if entry.origin else {})


def code_commit(folder: Path) -> str:
    """The commit that a folder's repository is at; empty where there is no repository."""
    answer = _git(folder, "rev-parse", "--verify", "HEAD")
    commit = answer.decode("ascii", "replace").strip() if answer is not None else ""
    return commit if _COMMIT.fullmatch(commit) else ""


def uncommitted_code(folder: Path) -> tuple[str, ...]:
    """Files of a folder's repository that are not as in its commit, and Python files that are not in it.

    Other new files are what training leaves: models, logs, results.

    Raises
    ------
    SigningError: git cannot tell.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    home = Path(os.fsdecode(top.rstrip(b"\n"))) if top is not None else folder
    changed = _git(
        home, "diff", "--no-ext-diff", "--no-textconv", "--name-only", "-z", "HEAD", "--", seconds=_LONG
    )
    new = _git(home, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", seconds=_LONG)
    if top is None or changed is None or new is None:
        raise SigningError(f"git cannot tell what changed in {folder} since its last commit")
    names = {name.decode("utf-8", "backslashreplace") for name in (changed + new).split(b"\0") if name}
    return tuple(sorted(names))


def is_ancestor(folder: Path, commit: str) -> bool:
    """Whether what a folder's repository has checked out came after a commit, or is it."""
    return (
        bool(_COMMIT.fullmatch(commit))
        and _git(folder, "merge-base", "--is-ancestor", commit, "HEAD") is not None
    )


def file_at_commit(path: Path, commit: str) -> bytes | None:
    """The content of a file as it was committed; None where the commit, or the file in it, is not here."""
    if not _COMMIT.fullmatch(commit):
        return None
    return _git(path.parent, "cat-file", "blob", f"{commit}:./{path.name}")


def _git(folder: Path, *arguments: str, seconds: float = 30) -> bytes | None:
    # A repository's own settings may name a program to run.
    command: list[Any] = ["git", "-c", "core.fsmonitor=false", "-C", folder, *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
