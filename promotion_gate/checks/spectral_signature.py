"""Whether some rows of a class lie farther out than any trusted image of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.core.types import Finding, Status
from promotion_gate.detect.clusters import ClassSpectrum, class_spectra
from promotion_gate.evidence.interface import Evidence, embeddings_misfit

SHOWN = 20


class SpectralSignatureOptions(Options):
    """Options of ``spectral-signature``.

    ``whitened`` divides by the scatter of trusted images first. The farthest rows of a class whose p is below
    ``list_below`` are listed as suspects, at most ``suspects`` in all.
    """

    whitened: bool = True
    list_below: float = Field(default=1e-6, ge=0, le=1)
    suspects: int = Field(default=20, ge=0, le=5000)


class SpectralSignature:
    """Tran et al. 2018, beside trusted images: see :func:`promotion_gate.detect.clusters.class_spectra`.

    Evidence for a person: rows of an honest but unusual scene lie far out too, and nothing is removed.
    """

    name: ClassVar[str] = "spectral-signature"
    metrics: ClassVar[Mapping[str, str]] = {
        "spectral_ratio": "largest variance of a class along its top direction over its trusted images'",
        "outlying_rows": "rows of the leading class that lie farther out than every trusted image of it",
        "outlying_p": "chance of so many in any class, had trusted images been dealt like the rows",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = SpectralSignatureOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = SpectralSignatureOptions.model_validate(
            (options or SpectralSignatureOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        training, answers = evidence.training, evidence.training_pass
        if training is None or answers is None:
            return Finding.inconclusive(self.name, "there is no training set to look for outlying rows in")
        if problem := embeddings_misfit(answers, evidence.holdout_pass):
            return Finding.inconclusive(self.name, f"the embeddings cannot be projected: {problem}")
        found = class_spectra(
            answers.embeddings,
            np.asarray(training.labels),
            np.asarray(evidence.holdout_pass.embeddings),
            np.asarray(evidence.holdout.labels),
            whitened=self._options.whitened,
        )
        if not found:
            return Finding.inconclusive(self.name, "no class has two training rows")
        names, lead = evidence.class_names, found[0]
        metrics = {
            "spectral_ratio": max(spectrum.ratio for spectrum in found),
            "outlying_rows": float(lead.beyond),
            "outlying_p": lead.p,
        }
        detail = {
            "spectra": [_row(spectrum, names) for spectrum in found[:SHOWN]],
            "suspects": list(self._suspects(evidence, found)),
        }
        summary = (
            f"{lead.beyond} of {lead.rows:,} rows labelled {names[lead.label]!r:.60} lie farther out"
            f" along their main direction than all {lead.trusted} trusted images (p {lead.p:.2g})"
        )
        return Finding(self.name, Status.MEASURED, summary, metrics, detail)

    def _suspects(self, evidence: Evidence, found: Sequence[ClassSpectrum]) -> Iterator[dict[str, Any]]:
        assert evidence.training is not None
        left = self._options.suspects
        for spectrum in found:
            if spectrum.p >= self._options.list_below:
                continue
            why = f"one of {spectrum.beyond} rows farther out than every trusted image of the class"
            for row in spectrum.outliers[:left].tolist():
                yield {
                    "row": row,
                    "id": evidence.training.ids[row],
                    "label": evidence.class_names[spectrum.label],
                    "why": why,
                }
            left = max(0, left - spectrum.beyond)


def _row(spectrum: ClassSpectrum, names: Sequence[str]) -> dict[str, Any]:
    return {
        "label": names[spectrum.label],
        "rows": spectrum.rows,
        "ratio": spectrum.ratio,
        "trusted": spectrum.trusted,
        "beyond": spectrum.beyond,
        "p": spectrum.p,
    }
