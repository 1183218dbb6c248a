"""The baseline: how a version answered while it was trusted, signed, and found again.

Format: an in-toto Statement v1 in a DSSE v1 envelope; its subject is the model version with the digest of its
artifacts. The gate makes one from the holdout, and its SHA-256 stands in the signed record. One made later
from a trusted window of production lies beside it, signed on its own, and takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from promotion_gate.core.envelope import STATEMENT_TYPE
from promotion_gate.core.errors import NotInRegistry, SigningError
from promotion_gate.core.statement import Part, StatedModel, Subject, sign_statement, verified_statement
from promotion_gate.core.types import AuditRecord, ModelRef
from promotion_gate.monitor.interface import BASELINE_FILE, Baseline

if TYPE_CHECKING:
    from promotion_gate.core.keys import SigningKey, TrustedKeys
    from promotion_gate.evidence.interface import ForwardPass
    from promotion_gate.registry.interface import Registry

PREDICATE_TYPE = "urn:promotion-gate:monitoring-baseline:v1"

WINDOW_BASELINE_FILE = "baseline-window.dsse.json"
"""The artifact of a gate run that holds a baseline made later, from production."""

CONFIDENCE_EDGES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)
"""Edges of the histogram of confidence: closer together where a trained model's answers lie."""

MAX_BASELINE_BYTES = 64 * 2**20
PERCENTILES = 101
_ROWS = 8192
_FROM_A_VERDICT = ("promote", "approve", "hold", "reject")

Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Predicate(Part):
    model: StatedModel
    source: Literal["holdout", "window"]
    at: AwareDatetime
    class_names: tuple[str, ...] = Field(min_length=1)
    counts: tuple[tuple[Count, ...], ...] = Field(min_length=1)
    confidence_edges: tuple[Finite, ...] = Field(min_length=2)
    confidence: tuple[tuple[Count, ...], ...]
    confidence_rho: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    embedding_mean: tuple[Finite, ...] = ()
    embedding_distance: tuple[Finite, ...] = ()
    embedding_rho: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        classes = len(self.class_names)
        edges = self.confidence_edges
        if len(set(self.class_names)) != classes:
            raise ValueError("two classes have the same name")
        if any(len(row) != classes for row in self.counts) or not any(map(sum, self.counts)):
            raise ValueError("counts is not predictions by window and class")
        if edges[0] != 0 or edges[-1] != 1 or any(b <= a for a, b in pairwise(edges)):
            raise ValueError("confidence_edges do not ascend from 0 to 1")
        if len(self.confidence) != classes or any(len(row) != len(edges) - 1 for row in self.confidence):
            raise ValueError("confidence is not a histogram for each class")
        if len(self.confidence_rho) not in (0, classes):
            raise ValueError("confidence_rho is not one number a class")
        distance = self.embedding_distance
        if len(distance) != (PERCENTILES if self.embedding_mean else 0):
            raise ValueError("embedding_distance is not 101 percentiles")
        if any(b < a for a, b in pairwise(distance)) or any(value < 0 for value in distance):
            raise ValueError("embedding_distance does not ascend")
        return self


class _Statement(Part):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject]
    predicate_type: Literal["urn:promotion-gate:monitoring-baseline:v1"] = Field(alias="predicateType")
    predicate: _Predicate


def holdout_baseline(
    ref: ModelRef, digest: str, class_names: Sequence[str], answers: ForwardPass, at: datetime
) -> Baseline:
    """The baseline in a model's answers on its holdout; their order there does not matter."""
    import numpy as np

    classes, bins = len(class_names), len(CONFIDENCE_EDGES) - 1
    rows, width = len(answers.logits), answers.embeddings.shape[1]
    histogram = np.zeros((classes, bins), dtype=np.int64)
    total = np.zeros(width)
    pieces = [slice(start, start + _ROWS) for start in range(0, rows, _ROWS)]
    for piece in pieces:
        part = replace(answers, logits=answers.logits[piece], embeddings=answers.embeddings[piece])
        histogram += confidence_histogram(part.predictions, part.probabilities().max(axis=1), classes)
        total += np.asarray(part.embeddings, dtype=np.float64).sum(axis=0)
    mean = total / max(rows, 1)
    distance = np.concatenate([distance_from(mean, answers.embeddings[piece]) for piece in pieces])
    summed = bool(width) and bool(np.isfinite(distance).all())
    return Baseline(
        ref=ref,
        digest=digest,
        class_names=tuple(class_names),
        source="holdout",
        at=at,
        counts=(tuple(histogram.sum(axis=1).tolist()),),
        confidence_edges=CONFIDENCE_EDGES,
        confidence=tuple(map(tuple, histogram.tolist())),
        embedding_mean=tuple(mean.tolist()) if summed else (),
        embedding_distance=percentiles(distance) if summed else (),
    )


def confidence_histogram(label: Any, confidence: Any, classes: int) -> Any:
    """Counts by class and bin of :data:`CONFIDENCE_EDGES`, int64; a bin includes its lower edge."""
    import numpy as np

    bins = len(CONFIDENCE_EDGES) - 1
    place = np.searchsorted(np.asarray(CONFIDENCE_EDGES[1:-1], dtype=np.float32), confidence, side="right")
    cells = np.bincount(label.astype(np.int64) * bins + place, minlength=classes * bins)
    return cells.reshape(classes, bins)


def distance_from(mean: Any, embeddings: Any) -> Any:
    """Euclidean distance of each embedding (n, d) from ``mean`` (d,), float64 (n,)."""
    import numpy as np

    return np.linalg.norm(np.asarray(embeddings, dtype=np.float64) - mean, axis=1)


def percentiles(values: Any) -> tuple[float, ...]:
    """The 101 percentiles of a sample, ascending."""
    import numpy as np

    return tuple(np.percentile(values, np.arange(PERCENTILES)).tolist())


def sign_baseline(baseline: Baseline, key: SigningKey) -> bytes:
    """The baseline as a signed envelope, JSON bytes.

    Raises
    ------
    SigningError: it cannot be stated (no SHA-256 digest, no time zone, shapes that do not fit).
    """
    return sign_statement(_statement(baseline), _Statement, f"the baseline of {baseline.ref}", key)


def verify_baseline(content: bytes, trusted: TrustedKeys, *, name: str = "the baseline") -> Baseline:
    """The baseline in a signed envelope, after its signature was found good and its key trusted.

    Raises
    ------
    SigningError: malformed, altered, or signed by nobody who is trusted.
    """
    statement = verified_statement(content, _Statement, trusted, name, MAX_BASELINE_BYTES)
    said = statement.predicate
    (subject,) = statement.subject
    ref = said.model.subject_of(subject, name)
    fields = {key: getattr(said, key) for key in type(said).model_fields if key != "model"}
    return Baseline(ref=ref, digest=subject.digest.sha256, **fields)


def load_baseline(registry: Registry, ref: ModelRef, trusted: TrustedKeys | None = None) -> Baseline:
    """The baseline of a version: signed by a trusted key, about these bytes, and named by the signed record.

    One made from a trusted window of production takes precedence. It is bound to the version and its bytes by
    its own signature; no record names it.

    Raises
    ------
    NotInRegistry: the version has none.
    SigningError: it is missing, altered, by a key that is not trusted, or about other bytes.
    RegistryError: the registry cannot be reached.
    """
    from promotion_gate.core.keys import load_trusted_keys

    keys = trusted or load_trusted_keys()
    record = judged_record(registry, ref, keys)
    stated = _stated(registry, record, keys) if record.baseline_sha256 else None
    later = _later(registry, record, keys)
    found = later if later is not None and (stated is None or later.at >= stated.at) else stated
    if found is None:
        raise NotInRegistry(
            f"{ref} has no baseline: it was judged before there were any",
            f"gate it again, or make one with 'promotion-gate monitor baseline {ref.name} --log …'",
        )
    return found


def judged_record(registry: Registry, ref: ModelRef, trusted: TrustedKeys) -> AuditRecord:
    """The newest verified record of a verdict on a version, one that names a baseline where there is such.

    Raises
    ------
    NotInRegistry: the gate never judged it, or no record of that verifies.
    """
    from promotion_gate.vouching import read_record

    why, plain = "", None
    for event in reversed(registry.events(ref.name)):
        pointer = event.pointer
        if event.state != "done" or pointer.version != ref.version or pointer.action not in _FROM_A_VERDICT:
            continue
        try:
            record = read_record(registry, event, trusted)
        except SigningError as error:
            why = why or f": {error.what}"
            continue
        if record.baseline_sha256:
            return record
        plain = plain or record
    if plain is None:
        raise NotInRegistry(f"no verified record of a verdict on {ref}{why}", "gate it first")
    return plain


def store_window_baseline(registry: Registry, baseline: Baseline, run_id: str, key: SigningKey) -> None:
    """Put a baseline from production beside the papers of gate run ``run_id``, and replace an older one."""
    registry.log_file(run_id, WINDOW_BASELINE_FILE, sign_baseline(baseline, key))


def _stated(registry: Registry, record: AuditRecord, trusted: TrustedKeys) -> Baseline:
    what = f"the baseline of {record.ref}"
    try:
        content = registry.read_file(record.gate_run_id, BASELINE_FILE)
    except NotInRegistry:
        raise SigningError(f"{what} is missing from run {record.gate_run_id}", "gate it again") from None
    if hashlib.sha256(content).hexdigest() != record.baseline_sha256:
        raise SigningError(f"{what} was altered: the record names another SHA-256", "gate it again")
    return _about(verify_baseline(content, trusted, name=what), record, "holdout", what)


def _later(registry: Registry, record: AuditRecord, trusted: TrustedKeys) -> Baseline | None:
    what = f"the window baseline of {record.ref}"
    try:
        content = registry.read_file(record.gate_run_id, WINDOW_BASELINE_FILE)
    except NotInRegistry:
        return None
    return _about(verify_baseline(content, trusted, name=what), record, "window", what)


def _about(baseline: Baseline, record: AuditRecord, source: str, what: str) -> Baseline:
    if (baseline.ref, baseline.digest, baseline.source) != (record.ref, record.digest, source):
        raise SigningError(f"{what} is about another version or other bytes", "make it anew")
    return baseline


def _statement(baseline: Baseline) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": baseline.ref.uri, "digest": {"sha256": baseline.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "model": {"name": baseline.ref.name, "version": baseline.ref.version},
            "source": baseline.source,
            "at": baseline.at.isoformat(),
            "class_names": list(baseline.class_names),
            "counts": [list(row) for row in baseline.counts],
            "confidence_edges": list(baseline.confidence_edges),
            "confidence": [list(row) for row in baseline.confidence],
            "confidence_rho": list(baseline.confidence_rho),
            "embedding_mean": list(baseline.embedding_mean),
            "embedding_distance": list(baseline.embedding_distance),
            "embedding_rho": baseline.embedding_rho,
        },
    }
