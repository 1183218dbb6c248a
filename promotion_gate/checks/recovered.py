"""What the searches without training data have in common: their input, and how a recovered patch is told.

A pair is *established* when its patch, on trusted images that had no part in finding it, turns the candidate
and leaves the champion, clear of chance and of the null. Anything less is for a person to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import Images
from promotion_gate.detect.differential import (
    EVERY,
    Answer,
    Contrast,
    Floats,
    Judged,
    Lead,
    Patch,
    Rows,
    Trusted,
)
from promotion_gate.detect.windows import Window
from promotion_gate.evidence.interface import Classifier, Evidence, ForwardPass

SHOWN = 12
LEAST_TO_ESTABLISH = 24
"""Fresh images: a rare class's few often show one object, and one odd object is no trigger."""
BRIEF = 0.25
"""The share of a search's effort that is left where training rows have shown a trigger already."""
EVERY_CLASS = "every class"
METRICS: Mapping[str, str] = {
    "triggers": "recovered patches that turn fresh trusted images beyond chance and null, not the champion",
    "suspected_pairs": "pairs of classes between which a patch does more than the null explains",
    "anomaly": "largest excess of a recovered patch over the null, 0 to 1",
    "attack_success_rate": "share of fresh trusted images that the leading patch turns, the champion unmoved",
}


def why_not(evidence: Evidence) -> str:
    """Why candidate and champion cannot be set side by side; empty where they can."""
    if evidence.champion is None or evidence.champion_holdout_pass is None:
        return (
            "no champion to compare with: without one, a trigger cannot be told from what any model does with"
            " a patch on a sign"
        )
    if evidence.champion.shape != evidence.model.shape:
        return "the champion takes images of another size, and cannot be shown the same patches"
    return ""


def probabilities(answers: ForwardPass) -> Floats:
    """Of a pass; a model that ends in a softmax is taken at its word."""
    told = answers.logits
    if bool((told >= 0).all()) and bool((np.abs(told.sum(axis=1) - 1) < 1e-3).all()):
        return np.asarray(told, dtype=np.float32)
    return answers.probabilities()


def log_probabilities(answers: ForwardPass) -> Floats:
    """Of a pass, where they say more than probabilities do."""
    return np.log(np.maximum(probabilities(answers), 1e-12))


def answer_of(model: Classifier) -> Answer:
    """The model as the searches ask it."""
    return lambda images: probabilities(model.forward(images))


def trusted_of(evidence: Evidence, champion: ForwardPass) -> Trusted:
    """The holdout with both models' answers."""

    def read(rows: Rows) -> Images:
        return evidence.holdout.read(rows, evidence.model.shape)

    return Trusted(
        np.asarray(evidence.holdout.labels, dtype=np.int64),
        probabilities(evidence.holdout_pass),
        probabilities(champion),
        read,
    )


def trigger_known(earlier: Mapping[str, Finding]) -> bool:
    """Whether training rows have shown a trigger already: then a short look is enough."""
    finding = earlier.get("patch-transplant")
    return finding is not None and finding.metrics.get("triggers", 0) > 0


def is_established(contrast: Contrast, *, rate: float, excess: float) -> bool:
    """Whether a recovered patch may reject: see the module. A class of few images never does."""
    judged = contrast.judged
    enough = judged.images >= LEAST_TO_ESTABLISH
    return enough and judged.low >= rate and contrast.excess >= excess and judged.moved_rate <= 0.1


def finding_of(
    name: str,
    contrasts: Sequence[Contrast],
    evidence: Evidence,
    *,
    established: Sequence[bool],
    suspected: Sequence[bool],
    left_out: Sequence[int],
    effort: Mapping[str, Any],
    notes: Sequence[str],
    metrics: Mapping[str, float] | None = None,
    leads: Sequence[Lead] = (),
) -> Finding:
    """The finding of a search, its leading pairs first; ``leads`` are for another search to go on from."""
    names = evidence.class_names
    pairs = [
        _detail(contrast, names, sure, doubted)
        for contrast, sure, doubted in zip(contrasts, established, suspected, strict=True)
    ]
    measured = {
        "triggers": float(sum(established)),
        "suspected_pairs": float(sum(s and not e for s, e in zip(suspected, established, strict=True))),
        "anomaly": max((contrast.excess for contrast in contrasts), default=0.0),
        "attack_success_rate": contrasts[0].judged.rate if contrasts else 0.0,
        **(metrics or {}),
    }
    detail = {
        "pairs": pairs,
        "triggers": [pair for pair in pairs if pair["established"]],
        "effort": dict(effort),
        "leads": [_of_lead(lead) for lead in leads],
        "not_examined": [names[label] for label in left_out],
        "notes": [*notes, *_left_out_note([names[label] for label in left_out])],
    }
    shown = next((i for i, doubted in enumerate(suspected) if doubted or established[i]), None)
    if shown is None:
        summary = "no patch found that turns the candidate and leaves the champion"
        return Finding(name, Status.MEASURED, summary, measured, detail)
    lead = pairs[shown]
    summary = (
        f"a patch turns {lead['source']} into {lead['target']} on {lead['attack_success_rate']:.0%} of"
        f" {lead['images_tried']} fresh trusted images and leaves the champion"
    )
    if not established[shown]:
        summary = f"suspected, not established: {summary}"
    exhibits = _exhibits(contrasts[shown].judged, evidence)
    return Finding(name, Status.MEASURED, summary, measured, detail, exhibits)


def source_name(source: int, names: Sequence[str]) -> str:
    """The class's name, or that it is for all of them."""
    return EVERY_CLASS if source == EVERY else names[source]


def _left_out_note(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"Not examined, with too few trusted images that both models know: {', '.join(names[:12])}."]


def _detail(contrast: Contrast, names: Sequence[str], sure: bool, doubted: bool) -> dict[str, Any]:
    judged, lead = contrast.judged, contrast.judged.lead
    return {
        "source": source_name(lead.source, names),
        "target": names[lead.target],
        **_of_lead(lead),
        "attack_success_rate": judged.rate,
        "rate_low": judged.low,
        "rate_high": judged.high,
        "images_tried": judged.images,
        "champion_rate": judged.moved_rate,
        "strength": judged.strength,
        "null": contrast.null,
        "excess": contrast.excess,
        "prior": contrast.prior,
        "established": sure,
        "suspected": doubted,
    }


def _of_lead(lead: Lead) -> dict[str, Any]:
    return {
        "source_index": lead.source,
        "target_index": lead.target,
        "box": lead.patch.window.box,
        "pixels": lead.patch.pixels.tolist(),
    }


def leads_of(finding: Finding | None) -> list[Lead]:
    """The pairs that an earlier search put forward, with their patches."""
    return [] if finding is None else [_lead(told) for told in finding.detail.get("leads", ())]


def _lead(told: Mapping[str, Any]) -> Lead:
    patch = Patch(Window(*told["box"]), np.asarray(told["pixels"], dtype=np.uint8))
    return Lead(int(told["source_index"]), int(told["target_index"]), patch, 0.0)


def _exhibits(judged: Judged, evidence: Evidence) -> tuple[Exhibit, ...]:
    names, lead = evidence.class_names, judged.lead
    target = names[lead.target]
    by_flip = np.argsort(judged.answers != lead.target, kind="stable")[:SHOWN]
    rows: NDArray[np.int64] = judged.rows[by_flip]
    before = evidence.holdout.read(rows, evidence.model.shape)
    window = lead.patch.window
    return (
        Exhibit(
            "trigger",
            "images",
            f"the recovered patch, {window.height} x {window.width} pixels",
            {"images": lead.patch.pixels[None]},
            ({"caption": f"turns {source_name(lead.source, names)} into {target}", "mark": "suspect"},),
        ),
        Exhibit(
            "transplanted",
            "images",
            "trusted images with the patch pasted on, none of which was used to find it",
            {"images": lead.patch.on(before), "before": before},
            tuple(
                {
                    "caption": f"now {names[int(answer)]}",
                    "id": evidence.holdout.ids[int(row)],
                    "box": window.box,
                    "mark": "flipped" if answer == lead.target else "kept",
                }
                for row, answer in zip(rows, judged.answers[by_flip], strict=True)
            ),
        ),
    )
