"""A causal search for triggers all over the image: what rows have beyond trusted images is put on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promotion_gate.checks.interface import Options
from promotion_gate.checks.subject import subject_of
from promotion_gate.core.types import Exhibit, Finding, Status
from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.residual import GlobalTrigger, ResidualSearch, ResidualSearchReport, Settings
from promotion_gate.evidence.interface import Evidence

SHOWN = 12
EVERY_CLASS = "every class"


class ResidualTransplantOptions(Options):
    """Options of ``residual-transplant``.

    ``confirm_rate`` is the share of fresh trusted images that a residual must be able to turn to be named,
    and ``established_rate`` how far the lower end of its interval must clear the null to be beyond doubt.
    """

    confirm_rate: float = Field(default=0.35, gt=0, lt=1)
    established_rate: float = Field(default=0.25, gt=0, lt=1)


class ResidualTransplant:
    """Group, residual, transplant; see :mod:`promotion_gate.detect.residual`."""

    name: ClassVar[str] = "residual-transplant"
    metrics: ClassVar[Mapping[str, str]] = {
        "triggers": "residuals that turn fresh trusted images of other classes, the champion unmoved",
        "suspected_triggers": "residuals that turn them, too weak to be beyond doubt",
        "carriers": "training rows that show the leading residual",
        "attack_success_rate": "share of fresh trusted images that the leading residual turns",
        "promising_rate": "the same for any label, on the few images searched on",
    }
    after: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = ResidualTransplantOptions

    def __init__(self, options: Options | None = None) -> None:
        self._options = ResidualTransplantOptions.model_validate(
            (options or ResidualTransplantOptions()).model_dump()
        )

    def examine(self, evidence: Evidence, earlier: Mapping[str, Finding]) -> Finding:
        answers = evidence.training_pass
        if evidence.training is None or answers is None:
            return Finding.inconclusive(
                self.name, "no training data: what its rows have in common cannot be looked for"
            )
        subject = subject_of(evidence, evidence.training, answers, evidence.champion_training_pass)
        if subject.champion is None:
            return Finding.inconclusive(
                self.name,
                "no champion to compare with: what a trigger does cannot be told from what any model makes of"
                " an image changed all over",
            )
        search = ResidualSearch(
            subject.model,
            subject.champion,
            subject.training,
            subject.trusted,
            settings=Settings(
                confirm_rate=self._options.confirm_rate, established_rate=self._options.established_rate
            ),
            seed=evidence.seed,
            progress=evidence.progress,
        ).run()
        if not search.rates:
            return Finding.inconclusive(
                self.name, "no class has enough training rows and trusted images that the model knows"
            )
        return _finding(self.name, search, evidence, evidence.training)


def _finding(name: str, search: ResidualSearchReport, evidence: Evidence, training: ImageDataset) -> Finding:
    names, triggers = evidence.class_names, search.triggers
    metrics = {
        "triggers": float(sum(t.established for t in triggers)),
        "suspected_triggers": float(sum(not t.established for t in triggers)),
        "carriers": float(max((len(t.carriers) for t in triggers), default=0)),
        "attack_success_rate": triggers[0].rate if triggers else 0.0,
        "promising_rate": max(search.rates.values(), default=0.0),
    }
    detail: dict[str, Any] = {
        "triggers": [_told(trigger, names) for trigger in triggers],
        "effort": {"forwards": search.forwards, "champion_forwards": search.champion_forwards},
        "not_examined": [names[label] for label in search.not_examined],
    }
    if search.not_examined:
        first = ", ".join(names[label] for label in search.not_examined[:12])
        detail["notes"] = [f"Not examined, with too few rows or trusted images: {first}."]
    if not triggers:
        summary = f"no residual of {len(search.rates)} labels turns trusted images of other classes"
        return Finding(name, Status.MEASURED, summary, metrics, detail)
    detail["suspects"] = [
        {
            "row": row,
            "id": training.ids[row],
            "label": names[trigger.target],
            "why": f"shows what turns other classes into {names[trigger.target]}",
        }
        for trigger in triggers
        for row in trigger.carriers
    ]
    lead = triggers[0]
    summary = (
        f"what {len(lead.carriers)} rows labelled {names[lead.target]} have in common turns"
        f" {lead.rate:.0%} of {lead.images} fresh trusted images into it"
    )
    if not lead.established:
        summary = f"suspected, not established: {summary}"
    return Finding(name, Status.MEASURED, summary, metrics, detail, _exhibits(lead, evidence, training))


def _told(trigger: GlobalTrigger, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "source": EVERY_CLASS,
        "target": names[trigger.target],
        "target_index": trigger.target,
        "attack_success_rate": trigger.rate,
        "rate_low": trigger.low,
        "rate_high": trigger.high,
        "images_tried": trigger.images,
        "established": trigger.established,
        "champion_rate": trigger.champion_rate,
        "null_rate": trigger.null_rate,
        "contrast": trigger.residual.contrast,
        "carriers": list(trigger.carriers),
        "carriers_found": len(trigger.carriers),
    }


def _exhibits(trigger: GlobalTrigger, evidence: Evidence, training: ImageDataset) -> tuple[Exhibit, ...]:
    names = evidence.class_names
    target = names[trigger.target]
    shown = np.array(trigger.carriers[:SHOWN], dtype=np.int64)
    by_flip = np.argsort(trigger.answers != trigger.target, kind="stable")[:SHOWN]
    rows = trigger.stamped_rows[by_flip]
    return (
        Exhibit(
            "trigger",
            "images",
            "what the rows have beyond trusted images that look like them, around grey",
            {"images": trigger.residual.picture[None]},
            ({"caption": f"turns other classes into {target}", "mark": "suspect"},),
        ),
        Exhibit(
            "carriers",
            "images",
            f"training rows labelled {target} that show it",
            {"images": training.read(shown, evidence.model.shape)},
            tuple(
                {"caption": f"labelled {target}", "id": training.ids[row], "mark": "suspect"}
                for row in shown.tolist()
            ),
        ),
        Exhibit(
            "transplanted",
            "images",
            "trusted images of other classes with it put on",
            {"images": trigger.stamped[by_flip], "before": evidence.holdout.read(rows, evidence.model.shape)},
            tuple(
                {
                    "caption": f"now {names[int(answer)]}",
                    "id": evidence.holdout.ids[int(row)],
                    "mark": "flipped" if answer == trigger.target else "kept",
                }
                for row, answer in zip(rows, trigger.answers[by_flip], strict=True)
            ),
        ),
    )
