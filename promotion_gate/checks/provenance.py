"""Where the candidate came from: run, code, parameters and data, and what nobody recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from promotion_gate.checks.interface import Options
from promotion_gate.core.keys import read_public_keys
from promotion_gate.core.types import Finding, RunFacts, Status
from promotion_gate.data.interface import ImageDataset
from promotion_gate.evidence.interface import Evidence
from promotion_gate.provenance.chain import Link, declared_datasets, follow
from promotion_gate.provenance.dbom import Dbom, read_dbom

DIGEST_NOTE = (
    "MLflow's own data set digest is eight hexadecimal digits over the first 10,000 rows (or array "
    "elements): changes further on leave it as it was. The SHA-256 values here were computed by the gate "
    "over every file."
)


class ProvenanceOptions(Options):
    """What the chain from the model back to its data is followed with; paths are relative to the policy.

    ``dbom`` is the data bill of materials. ``trainers`` is a folder with the public keys (``*.pub``) whose
    training attestations count; they are no keys that may promote anything.
    """

    dbom: str = ""
    trainers: str = ""


class Provenance:
    """The facts of the training run beside the champion's, with real digests of the data.

    What a run says of itself is its author's word: anyone who may write to the tracking server can
    write it. With a data bill of materials, every data set that the run declared is followed to its entry;
    with the trainers' keys, the signed attestation is followed link by link
    (see :mod:`promotion_gate.provenance.chain`).
    """

    name: ClassVar[str] = "provenance"
    metrics: ClassVar[Mapping[str, str]] = {
        "missing_facts": "facts about the candidate's origin that were not recorded",
        "declared_datasets": "data sets that the training run declared to MLflow",
        "unregistered_datasets": "of these, without a vetted entry of their SHA-256 in the bill of materials",
        "unverified_links": "broken links of the chain from the trainer's signature to the data's bytes",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = ProvenanceOptions

    def __init__(self, options: ProvenanceOptions | None = None) -> None:
        self.options = options or ProvenanceOptions()

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        run, champion = evidence.run, evidence.champion_run
        data = {"holdout": _data_facts(evidence.holdout), "training": None}
        if evidence.training is not None:
            data["training"] = _data_facts(evidence.training)
        missing = _missing(run)
        if evidence.training is None:
            missing.append("the training data (the policy names none, so nothing ties the model to data)")
        facts = _run_facts(run)
        champion_facts = _run_facts(champion) if champion is not None else None
        detail: dict[str, Any] = {
            **facts,
            "source": evidence.candidate.source,
            "sha256": {name: known["sha256"] if known else None for name, known in data.items()},
            "data": data,
            "missing": missing,
            "champion": champion_facts,
            "changed": _changed(facts, champion_facts),
            "note": DIGEST_NOTE,
        }
        measured = {"missing_facts": float(len(missing)), "declared_datasets": float(len(facts["datasets"]))}
        summary = _summary(run, missing)
        if self.options.dbom:
            registered = self._registered(evidence)
            measured |= registered.metrics
            detail |= registered.detail
            summary = f"{summary}; {registered.summary}"
        return Finding(self.name, Status.MEASURED, summary, measured, detail)

    def _registered(self, evidence: Evidence) -> _Registered:
        """Follow the run's data sets, and the attestation, to the bill of materials.

        Without one, or without the trainers' keys, the metrics are not there, and a bound on them holds.
        """
        home = Path(evidence.policy.folder)
        dbom = read_dbom(home / self.options.dbom)
        declared = declared_datasets(evidence.run, dbom)
        unregistered = [d for d in declared if not d.registered]
        metrics = {"unregistered_datasets": float(len(unregistered))}
        detail: dict[str, Any] = {
            "dbom": {"path": str(dbom.path), "sha256": dbom.sha256, "entries": len(dbom.entries)},
            "declared": [
                {"name": d.name, "sha256": d.sha256, "registered": d.registered, "said": d.said}
                for d in declared
            ],
        }
        said = [f"data set {d.name!r:.60}: {d.said}" for d in unregistered[:1]]
        if self.options.trainers:
            links = self._links(evidence, dbom)
            broken = [link for link in links if not link.holds]
            metrics["unverified_links"] = float(len(broken))
            detail["links"] = [{"link": x.name, "holds": x.holds, "said": x.said} for x in links]
            said += [f"the chain breaks at {broken[0].name}: {broken[0].said}"] if broken else []
        return _Registered(
            metrics, detail, "; ".join(said) or "every data set that was declared is registered"
        )

    def _links(self, evidence: Evidence, dbom: Dbom) -> list[Link]:
        home = Path(evidence.policy.folder)
        trainers = read_public_keys(home / self.options.trainers)
        source = evidence.policy.data.training
        training = home / source.path if source is not None else None
        return follow(
            evidence.attestation, trainers, evidence.files, evidence.run, dbom, training, evidence.training
        )


@dataclass(frozen=True, slots=True)
class _Registered:
    metrics: Mapping[str, float]
    detail: Mapping[str, Any]
    summary: str


def _data_facts(dataset: ImageDataset) -> dict[str, Any]:
    return {
        "uri": dataset.uri,
        "rows": len(dataset),
        "classes": len(dataset.class_names),
        "columns": sorted(dataset.columns),
        "sha256": dataset.sha256(),
    }


def _run_facts(run: RunFacts | None) -> dict[str, Any]:
    tags = run.tags if run else {}
    return {
        "run": run.run_id if run else "",
        "user": run.user if run else "",
        "started_at": run.started_at.isoformat() if run and run.started_at else "",
        "commit": run.commit if run else "",
        "repository": tags.get("mlflow.source.git.repoURL", ""),
        "branch": tags.get("mlflow.source.git.branch", ""),
        "source_name": tags.get("mlflow.source.name", ""),
        "params": dict(sorted(run.params.items())) if run else {},
        "datasets": [
            {"name": d.name, "context": d.context, "source": d.source, "digest": d.digest}
            for d in (run.datasets if run else ())
        ],
    }


def _missing(run: RunFacts | None) -> list[str]:
    if run is None:
        return ["the training run (the model version names none)"]
    facts = {
        "the code's git commit (tag mlflow.source.git.commit)": run.commit,
        "the program that trained (tag mlflow.source.name)": run.tags.get("mlflow.source.name"),
        "the user": run.user,
        "the parameters": run.params,
        "the data sets (mlflow.log_input)": run.datasets,
    }
    return [name for name, value in facts.items() if not value]


def _changed(candidate: Mapping[str, Any], champion: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What differs between the runs: ``fact``, ``candidate``, ``champion``, None where not recorded."""
    if champion is None:
        return []
    changed = [
        {"fact": fact, "candidate": candidate[fact] or None, "champion": champion[fact] or None}
        for fact in ("commit", "repository", "branch", "source_name", "user")
        if candidate[fact] != champion[fact]
    ]
    ours, theirs = candidate["params"], champion["params"]
    changed += [
        {"fact": f"parameter {name}", "candidate": ours.get(name), "champion": theirs.get(name)}
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    mine, other = _dataset_lines(candidate), _dataset_lines(champion)
    changed += [
        {"fact": "declared data set", "candidate": line, "champion": None}
        for line in mine
        if line not in other
    ]
    changed += [
        {"fact": "declared data set", "candidate": None, "champion": line}
        for line in other
        if line not in mine
    ]
    return changed


def _dataset_lines(facts: Mapping[str, Any]) -> list[str]:
    return sorted({f"{d['context'] or 'data'}: {d['name']} ({d['digest']})" for d in facts["datasets"]})


def _summary(run: RunFacts | None, missing: list[str]) -> str:
    origin = (
        f"trained in run {run.run_id!r:.50} by {run.user or 'nobody named'!r:.50}"
        if run
        else "no training run"
    )
    if not missing:
        return f"{origin}; every fact was recorded"
    return f"{origin}; not recorded: {', '.join(part.split(' (')[0] for part in missing)}"
