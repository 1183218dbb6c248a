"""Whether one class's training rows fall in two groups, and trusted images know only one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, Status
from promotion_gate.detect.clusters import ClassClusters, class_clusters
from promotion_gate.evidence.interface import Evidence, embeddings_misfit

SHOWN = 20


class ActivationClusteringOptions(Options):
    """Options of ``activation-clustering``.

    ``dimensions`` independent components are clustered. Rows of a cluster that trusted images keep out of are
    listed as suspects, at most ``suspects``, where its silhouette reaches ``list_silhouette`` and its p stays
    below ``list_below``.
    """

    dimensions: int = Field(default=10, ge=2, le=100)
    fit_rows: int = Field(default=4000, ge=100, le=100_000)
    list_silhouette: float = Field(default=0.15, ge=0, le=1)
    list_below: float = Field(default=0.05, ge=0, le=1)
    suspects: int = Field(default=60, ge=0, le=5000)


class ActivationClustering:
    """Chen et al. 2018, beside trusted images: see :func:`promotion_gate.detect.clusters.class_clusters`.

    Evidence for a person. The published figure, the silhouette alone, ranked source-specific backdoors no
    better than chance (AUROC .41 on fine-tuned traffic-sign models). That trusted images keep out of the
    smaller cluster tells more: see the module named above for what was measured and how.
    """

    name: ClassVar[str] = "activation-clustering"
    metrics: ClassVar[Mapping[str, str]] = {
        "silhouette": "how well the best separated class falls in two, -1 to 1",
        "apart_silhouette": "the same among clusters that trusted images keep out of, 0 for none",
        "apart_rows": "training rows in the best separated cluster that trusted images keep out of",
        "apart_p": "chance that trusted images keep out of it, over all classes",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = ActivationClusteringOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = ActivationClusteringOptions.model_validate(
            (options or ActivationClusteringOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        training, answers = evidence.training, evidence.training_pass
        if training is None or answers is None:
            return Finding.inconclusive(self.name, "there is no training set to cluster")
        if problem := embeddings_misfit(answers, evidence.holdout_pass):
            return Finding.inconclusive(self.name, f"the embeddings cannot be clustered: {problem}")
        found = class_clusters(
            answers.embeddings,
            np.asarray(training.labels),
            np.asarray(evidence.holdout_pass.embeddings),
            np.asarray(evidence.holdout.labels),
            dimensions=self._options.dimensions,
            fit_rows=self._options.fit_rows,
            seed=evidence.seed,
        )
        if not found:
            return Finding.inconclusive(self.name, "no class has enough training rows to be clustered")
        return self._report(evidence, found)

    def _report(self, evidence: Evidence, found: Sequence[ClassClusters]) -> Finding:
        names = evidence.class_names
        apart = [clusters for clusters in found if clusters.apart]
        metrics = {
            "silhouette": max(clusters.silhouette for clusters in found),
            "apart_silhouette": max((clusters.silhouette for clusters in apart), default=0.0),
            "apart_rows": float(len(apart[0].members)) if apart else 0.0,
            "apart_p": apart[0].p if apart else 1.0,
        }
        ordered = [*apart, *(clusters for clusters in found if not clusters.apart)]
        detail = {
            "clusters": [_row(clusters, names) for clusters in ordered[:SHOWN]],
            "classes_clustered": len(found),
            "suspects": list(self._suspects(evidence, apart)),
        }
        if apart:
            lead = apart[0]
            summary = (
                f"{len(lead.members)} of {lead.rows:,} rows labelled {names[lead.label]!r:.60} form a cluster"
                f" that holds {lead.trusted_inside} of {lead.trusted} trusted images, where"
                f" {lead.share * lead.trusted:.1f} are due (silhouette {lead.silhouette:.2f})"
            )
        else:
            summary = f"no cluster in any of {len(found)} classes that trusted images keep out of"
        return Finding(self.name, Status.MEASURED, summary, metrics, detail)

    def _suspects(self, evidence: Evidence, apart: Sequence[ClassClusters]) -> Iterator[dict[str, Any]]:
        assert evidence.training is not None
        left = self._options.suspects
        for clusters in apart:
            if clusters.silhouette < self._options.list_silhouette or clusters.p >= self._options.list_below:
                continue
            why = f"one of {len(clusters.members)} rows in a cluster that trusted images keep out of"
            for row in clusters.members[:left].tolist():
                yield {
                    "row": row,
                    "id": evidence.training.ids[row],
                    "label": evidence.class_names[clusters.label],
                    "why": why,
                }
            left = max(0, left - len(clusters.members))


def _row(clusters: ClassClusters, names: Sequence[str]) -> dict[str, Any]:
    return {
        "label": names[clusters.label],
        "rows": clusters.rows,
        "members": len(clusters.members),
        "share": clusters.share,
        "silhouette": clusters.silhouette,
        "trusted": clusters.trusted,
        "trusted_inside": clusters.trusted_inside,
        "trusted_due": clusters.share * clusters.trusted,
        "p": clusters.p,
        "apart": clusters.apart,
    }
